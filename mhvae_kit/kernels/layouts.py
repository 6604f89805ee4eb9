"""From bfloat16 maps stored channels-last to float32 planes and back, with what is to be done on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels.activations import soft_clamped
from mhvae_kit.kernels.halves import halves, load_half, narrowed, store_half, widened
from mhvae_kit.kernels.lanes import LANES, SQUARE, load, room, store, transposed
from mhvae_kit.kernels.vectors import block, exactly, kernel, taken


@exactly
def _planes_of(
    x: np.ndarray, first: int, n: int, channels: int, square: np.ndarray, out: np.ndarray, size: int
) -> None:
    """n pixels of a channels-last map from `first` on, to planes of `size` values."""
    whole = n // LANES * LANES if channels % LANES == 0 else 0
    for c in range(0, channels if whole else 0, LANES):
        for t in range(first, first + whole, LANES):
            for k in range(LANES):
                store(square, k * LANES, load_half(x, (t + k) * channels + c))
            start = transposed(square, LANES)
            for k in range(LANES):
                store(out, (c + k) * size + t, load(square, start + k * LANES))
    for c in range(channels):
        for t in range(first + whole, first + n):
            out[c * size + t] = widened(x[t * channels + c])


@kernel
def last_soft_clamp(arguments: Any) -> None:
    """limit * tanh(x / limit) of a bfloat16 map, to float32 planes; the limit is at an address."""
    counter, items, x, limit, out, bands, rows, height, width, channels = carray(arguments, (10,))
    bound = block(limit, 0, 1)[0]
    size, square = height * width, room(2 * SQUARE)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        seen, made = halves(x + 2 * image * size * channels, size * channels), block(out, image, size * channels)
        n = min(rows, height - first) * width
        _planes_of(seen, first * width, n, channels, square, made, size)
        for c in range(channels):
            plane = made[c * size + first * width : c * size + first * width + n]
            soft_clamped(plane, bound, plane)
        i = taken(counter)


@exactly
def _row_of(x: np.ndarray, size: int, width: int, channels: int, square: np.ndarray, out: np.ndarray, to: int) -> None:
    """A row of planes of `size` values, from their first on, to a row of a channels-last map."""
    some = min(channels, LANES)
    whole = width // LANES * LANES if channels % some == 0 and LANES % some == 0 else 0
    step = channels if some == LANES else LANES  # between vectors of one pixel, or of the few that one has room for
    for t in range(0, whole, LANES):
        for c in range(0, channels, some):
            for k in range(some):
                store(square, k * LANES, load(x, (c + k) * size + t))
            start = transposed(square, some)
            for k in range(some):
                store_half(out, to + t * channels + c + k * step, load(square, start + k * LANES))
    for t in range(whole, width):
        for c in range(channels):
            out[to + t * channels + c] = narrowed(x[c * size + t])


@kernel
def last_laid(arguments: Any) -> None:
    """float32 planes to a bfloat16 map."""
    counter, items, x, out, bands, rows, height, width, channels = carray(arguments, (9,))
    size, square = height * width, room(2 * SQUARE)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        seen, made = block(x, image, size * channels), halves(out + 2 * image * size * channels, size * channels)
        for y in range(first, min(first + rows, height)):
            _row_of(seen[y * width :], size, width, channels, square, made, y * width * channels)
        i = taken(counter)
