"""Convolutions of bfloat16 maps that are stored channels-last, with the norm before them and totals behind them.

The channels of a pixel lie together, so that a sum goes through runs of LANES of them, pair by pair: see
`mhvae_kit.kernels.half_products`. Where a map has fewer channels, a run holds those of neighbouring pixels, and filters
are made for all of these together. An item is a band of rows of one image and some of its outputs. What the band sees
is laid out anew, activated on the way: plane of runs by plane, row by row, with a margin between rows that serves both.
Neighbouring results then see neighbouring runs, across rows too, and only those of the margin are dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import DOUBLED, NORM_RELU, NORM_SILU, PLAIN
from mhvae_kit.kernels.activations import half_sigmoid
from mhvae_kit.kernels.channels_last import mirrored, statistics
from mhvae_kit.kernels.half_filters import filters_shared, runs_seen
from mhvae_kit.kernels.half_products import NARROW, WIDE, narrow_sums, wide_sums
from mhvae_kit.kernels.halves import at_least, halves, load_half, store_half
from mhvae_kit.kernels.lanes import LANES, add_product, load, product, room, spread, store
from mhvae_kit.kernels.vectors import block, counted, exactly, f32, kernel, taken


@exactly
def _row_activated(
    x: np.ndarray, at: int, step: int, runs: int, scaled: Any, shifted: Any, before: int, out: np.ndarray, to: int
) -> None:
    """Runs of channels that are `step` apart, to neighbouring ones."""
    zero = spread(f32(0.0))
    if before == PLAIN:
        for _ in range(runs):
            store_half(out, to, load_half(x, at))
            at += step
            to += LANES
    elif before == NORM_SILU:
        for _ in range(runs):
            value = add_product(load_half(x, at), scaled, shifted)
            store_half(out, to, product(value, half_sigmoid(value)))
            at += step
            to += LANES
    else:
        for _ in range(runs):
            value = add_product(load_half(x, at), scaled, shifted)
            store_half(out, to, at_least(value, zero) if before == NORM_RELU else value)
            at += step
            to += LANES


@exactly
def _row_doubled(x: np.ndarray, own: int, other: int, step: int, runs: int, out: np.ndarray, to: int) -> None:
    """A row between two of half as many runs, nearer to the first, bilinearly between pixels' centres."""
    near, far = spread(f32(0.75)), spread(f32(0.25))
    middle = add_product(load_half(x, other), far, product(load_half(x, own), near))
    left = middle
    for k in range(1, runs // 2 + 1):
        next_at = min(k, runs // 2 - 1) * step  # beyond an edge the outermost pixel goes on
        right = add_product(load_half(x, other + next_at), far, product(load_half(x, own + next_at), near))
        nearest = product(middle, near)
        store_half(out, to, add_product(left, far, nearest))
        store_half(out, to + LANES, add_product(right, far, nearest))
        left, middle = middle, right
        to += 2 * LANES


@exactly
def _cleared(out: np.ndarray, to: int, runs: int) -> None:
    for k in range(runs):
        store_half(out, to + k * LANES, spread(f32(0.0)))


@exactly
def _band_activated(
    x: int, channels: int, scale: np.ndarray, shift: np.ndarray, before: int, top: int, lines: int, size: Any,
    layout: Any, out: np.ndarray, start: int,
) -> None:  # fmt: skip
    """So many lines of an image from row `top` on, which may lie outside of it, to planes from `start` on.

    With a stride, lines and columns go to as many planes in turns, so that neighbouring results see neighbours there.
    """
    (height, width), (reflect, edge, stride, pitch, plane) = size, layout
    seen, some, step = halves(x, height * width * channels), min(channels, LANES), max(channels, LANES)
    across, margin = width * some // LANES, edge * (LANES // some)
    for c in range(0, channels, LANES):
        scaled, shifted = load(scale, c), load(shift, c)
        for line in range(lines):
            y = top + line
            if reflect:
                y = abs(y)
                y = min(y, 2 * (height - 1) - y)
            for turn in range(stride):
                of_turn = (c // LANES * stride + line % stride) * stride + turn
                to = start + of_turn * plane + line // stride * pitch * LANES
                first = (turn - edge) % stride  # column of the image
                left, runs = (first + edge) // stride, (across - first + stride - 1) // stride
                row = to + left * LANES
                _cleared(out, to, left)
                if 0 <= y < height and before == DOUBLED:
                    own, other = y // 2, min(max(y // 2 - 1 + y % 2 * 2, 0), height // 2 - 1)
                    wide = width // 2 * channels
                    _row_doubled(seen, own * wide + c, other * wide + c, step, runs, out, row)
                elif 0 <= y < height:
                    at = y * width * channels + first * step + c
                    _row_activated(seen, at, stride * step, runs, scaled, shifted, before, out, row)
                    if reflect:
                        mirrored(out, row, width, margin, some)
                else:
                    _cleared(out, row, runs)
                _cleared(out, to + pitch * LANES, edge)  # the margin that the last line has on its right


@exactly
def _map_activated(
    given: Any, image: int, before: int, top: int, lines: int, size: Any, layout: Any, numbers: Any, out: np.ndarray,
    start: int,
) -> None:  # fmt: skip
    """Likewise, of a map given by its address, that of its totals, their bands and its channels."""
    (x, totals, bands, channels), (exact, scale, shift) = given, numbers
    pixels, around = size[0] * size[1], max(channels, LANES)
    if channels and before != PLAIN and before != DOUBLED:
        seen = block(totals, image, bands * 2 * around)
        statistics(seen, 0, bands, around, channels, pixels, exact[: 2 * around], scale[:around], shift)
    of_image = x + 2 * image * (pixels // 4 if before == DOUBLED else pixels) * channels
    _band_activated(of_image, channels, scale, shift, before, top, lines, size, layout, out, start)


@exactly
def _results_written(
    made: np.ndarray, vectors: int, pixels: int, row: int, column: int, rows: int, width: int, pitch: int,
    onto: int, out: np.ndarray, first: int, outputs: int, totals: np.ndarray, of: int,
) -> tuple[int, int]:  # fmt: skip
    """Neighbouring results from a row and column on to a map, and to the totals; returns the next row and column.

    Unless that is 0, what lies at the address `onto`, in the map's order, is added to them.
    """
    below = halves(onto, len(out))
    r, c = row, column
    for v in range(vectors):
        total, squares = load(totals, of + v * LANES), load(totals, outputs + of + v * LANES)
        r, c = row, column
        to = first + (row * width + min(column, width)) * outputs + v * LANES
        for p in range(pixels):
            if c < width and r < rows:
                value = load(made, (p * vectors + v) * LANES)
                if onto:
                    value = value + load_half(below, to)
                total, squares = total + value, add_product(value, value, squares)
                store_half(out, to, value)
                to += outputs
            c += 1
            if c == pitch:
                r, c = r + 1, 0
        store(totals, of + v * LANES, total)
        store(totals, outputs + of + v * LANES, squares)
    return r, c


@exactly
def _places_of_taps(n: int, side: int, across: int, stride: int, pitch: int, plane: int, ahead: int) -> np.ndarray:
    """Where what each tap sees of each of n runs of channels lies, from a result's own place on."""
    places = np.empty(side * across * n, np.int64)
    for k in range(len(places)):
        line, column = k // n // across, k // n % across
        of_turn = (k % n * stride + line % stride) * stride + column % stride
        places[k] = of_turn * plane + (line // stride * pitch + column // stride) * LANES + ahead
    return places


@kernel
def last_convolution(arguments: Any) -> None:
    """The convolution of one map, or of two behind each other, and the totals of the result.

    `before` is what is done to the maps first: PLAIN nothing, NORM, NORM_SILU, NORM_RELU, DOUBLED their height and
    width. Unless they are 0, `gates` are numbers by which an image's channels are multiplied, and `onto` is a map that
    is added to the result.

    `side` is the height of the filters; a map is padded by half of it, by reflection if `reflect`, else by zeros.
    Height and width, those of the maps (doubled), must be multiples of the stride. Channels must be multiples of LANES.
    Or those of a single map divide LANES, as many come out, and the stride is 1; `outputs` are those of all pixels of a
    run.

    Threads first share the filters, which go to `filters` in another order (for each image, if there are gates), and
    wait for each other before they use them; the last two arguments are 0 and count them. All memory is asked for
    before, as a thread that failed with filters of its own would be waited for without end.
    """
    (
        counter, items, x, totals, of_bands, channels, y, totals_y, of_bands_y, channels_y, before, weight, gates,
        filters, bias, onto, out, made_totals, outputs, vectors, side, stride, reflect, parts, bands, rows, height,
        width, images, _, _,
    ) = carray(arguments, (31,))  # fmt: skip
    together, pixels = LANES // min(channels, LANES), WIDE[1] if vectors == WIDE[0] else NARROW[1]
    n, of_outputs, edge = max(channels, LANES) + channels_y, vectors * LANES, (side // 2 + together - 1) // together
    across, down = width // (together * stride), height // stride  # runs and rows of the result
    taps_across, pitch = runs_seen(side, together), across + (2 * edge if reflect else edge)
    plane = ((rows + side) * pitch + pixels + taps_across) * LANES
    size, layout = (height, width), (reflect, edge, stride, pitch, plane)
    of_run = stride * stride * plane
    values, of_y = np.empty(n // LANES * of_run, np.uint16), channels // LANES * of_run
    ahead = (edge * together - side // 2) * min(channels, LANES)
    places = _places_of_taps(n // LANES, side, taps_across, stride, pitch, plane, ahead)
    exact, scale, shift, sums = np.empty(2 * n), room(n), room(n), room(pixels * of_outputs)
    start, taps, area = block(bias, 0, outputs), side * taps_across, across * down * outputs
    of_filters = filters_shared(
        weight, outputs, min(channels, LANES) if together > 1 else n, vectors, side, gates, images, filters,
        counter - 16, counter - 8,
    )  # fmt: skip
    filled, i = -1, taken(counter)
    while i < items:
        band, part = i // parts, i % parts
        image, first = band // bands, band % bands * rows
        count = min(rows, down - first)
        if band != filled:
            top, lines = stride * first - side // 2, stride * (count - 1) + side
            given, given_y = (x, totals, of_bands, channels), (y, totals_y, of_bands_y, channels_y)
            numbers, numbers_y = (exact, scale, shift), (exact, scale[n - channels_y :], shift[n - channels_y :])
            _map_activated(given, image, before, top, lines, size, layout, numbers, values, 0)
            _map_activated(given_y, image, before, top, lines, size, layout, numbers_y, values, of_y)
            filled = band
        while counted(counter - 8) < of_filters:
            pass
        packed = halves(filters + 2 * (image if gates else 0) * outputs * n * taps, outputs * n * taps)
        made, below = halves(out + 2 * image * area, area), onto + 2 * image * area if onto else 0
        new = block(made_totals, band, 2 * outputs)
        for o in range(part * (outputs // parts), (part + 1) * (outputs // parts), of_outputs):
            new[o : o + of_outputs], new[outputs + o : outputs + o + of_outputs] = f32(0.0), f32(0.0)
            row, column, to = 0, 0, first * across * outputs + o
            for at in range(0, count * pitch * LANES, pixels * LANES):
                if vectors == WIDE[0]:
                    wide_sums(values, at, places, len(places), packed, o * n * taps, start, o, sums)
                else:
                    narrow_sums(values, at, places, len(places), packed, o * n * taps, start, o, sums)
                row, column = _results_written(
                    sums, vectors, pixels, row, column, count, across, pitch, below, made, to, outputs, new, o
                )
        i = taken(counter)
