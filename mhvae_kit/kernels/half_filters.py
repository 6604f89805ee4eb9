"""Filters in the order in which `mhvae_kit.kernels.half_products` multiplies them, in bfloat16."""

from __future__ import annotations

import numpy as np

from mhvae_kit import kernels
from mhvae_kit.kernels.half_products import store_pairs
from mhvae_kit.kernels.halves import halves, narrowed
from mhvae_kit.kernels.lanes import LANES, SQUARE, load, product, room, spread, store, transposed
from mhvae_kit.kernels.vectors import block, exactly, f32, finished, taken

runs_seen = exactly(kernels.runs_seen)


@exactly
def _some_packed(
    weight: np.ndarray, channels: int, vectors: int, taps: int, gates: int, square: np.ndarray, turned: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """`vectors` * LANES filters (channels, taps), with what is multiplied together side by side.

    Unless that is 0, there are numbers at the address `gates` by which their channels are multiplied.
    """
    n, run = taps * channels, taps * LANES
    lower, upper = spread(f32(1.0)), spread(f32(1.0))
    for v in range(vectors):
        first = v * LANES * n
        for c in range(0, channels, LANES):
            for k in range(0, run, LANES):
                for o in range(LANES):
                    store(square, o * LANES, load(weight, first + o * n + c * taps + k))
                start = transposed(square, LANES)
                for o in range(LANES):
                    store(turned, (k + o) * LANES, load(square, start + o * LANES))
            for pair in range(0, LANES, 2):
                if gates:
                    gate = block(gates, 0, channels)
                    lower, upper = spread(gate[c + pair]), spread(gate[c + pair + 1])
                for tap in range(taps):
                    x, y = load(turned, (pair * taps + tap) * LANES), load(turned, ((pair + 1) * taps + tap) * LANES)
                    to = ((tap * channels + c + pair) * vectors + 2 * v) * LANES
                    store_pairs(out, to, product(x, lower), product(y, upper))


@exactly
def _row_spread(weight: np.ndarray, channels: int, side: int, row: int, out: np.ndarray) -> None:
    """A row of filters (channels, channels, side, side) of a map whose runs of LANES numbers hold several pixels.

    There is a filter for each pixel of a run; what belongs to pixels that it does not see is 0.
    """
    together = LANES // channels
    across = runs_seen(side, together)
    for k in range(LANES):
        pixel, o = k // channels, k % channels
        for tap in range(across):
            for c in range(LANES):
                column = tap * together + c // channels - pixel
                value = f32(0.0)
                if 0 <= column < side:
                    value = weight[((o * channels + c % channels) * side + row) * side + column]
                out[((row * across + tap) * LANES + c - c % 2) * LANES + 2 * k + c % 2] = narrowed(value)


@exactly
def filters_shared(
    weight: int, outputs: int, channels: int, vectors: int, side: int, gates: int, images: int, out: int, begun: int,
    done: int,
) -> int:  # fmt: skip
    """Put filters (outputs, channels, side, side) into order, with other threads; returns how many parts these are.

    With gates, an image's filters are behind those of the one before. Of fewer channels than LANES, as many come out.
    A thread takes part after part from the counter at the address `begun`, and raises that at `done` behind each.
    """
    taps, together = side * side, LANES // min(channels, LANES)
    of_part, parts = vectors * LANES * channels * taps, outputs // (vectors * LANES) * (images if gates else 1)
    square, turned = room(2 * SQUARE), room(taps * SQUARE)
    if together > 1:
        parts = side
    k = taken(begun)
    while k < parts:
        if together > 1:
            of_all = side * runs_seen(side, together) * SQUARE
            _row_spread(block(weight, 0, channels * channels * taps), channels, side, k, halves(out, of_all))
        else:
            some = k * vectors * LANES % outputs // (vectors * LANES)
            of_image = gates + 4 * (k * vectors * LANES // outputs) * channels if gates else 0
            made = halves(out + 2 * k * of_part, of_part)
            _some_packed(block(weight, some, of_part), channels, vectors, taps, of_image, square, turned, made)
        finished(done)
        k = taken(begun)
    return parts
