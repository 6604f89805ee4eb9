"""From bfloat16 maps stored channels-last to float32 planes and back, with what is to be done on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels.channels_last import copied, mirrored
from mhvae_kit.kernels.halves import halves, load_half, narrowed, widened
from mhvae_kit.kernels.lanes import LANES, first_woven, load, room, second_woven, store
from mhvae_kit.kernels.vectors import block, exactly, f32, hyperbolic_tangent, kernel, taken

SQUARE = LANES * LANES
ROUNDS = LANES.bit_length() - 1


@exactly
def _turned(square: np.ndarray) -> int:
    """Transpose LANES vectors behind each other, from the first half of an array; returns where the result begins.

    Each round weaves vectors of the first half with those of the second, which rotates the bits of a value's place by
    one; after ROUNDS of them number of vector and lane have changed places.
    """
    start, to = 0, SQUARE
    for _ in range(ROUNDS):
        for k in range(LANES // 2):
            a, b = load(square, start + k * LANES), load(square, start + SQUARE // 2 + k * LANES)
            store(square, to + 2 * k * LANES, first_woven(a, b))
            store(square, to + (2 * k + 1) * LANES, second_woven(a, b))
        start, to = to, start
    return start


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
            start = _turned(square)
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
    inverse, size, square = f32(1.0) / bound, height * width, room(2 * SQUARE)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        seen, made = halves(x + 2 * image * size * channels, size * channels), block(out, image, size * channels)
        n = min(rows, height - first) * width
        _planes_of(seen, first * width, n, channels, square, made, size)
        for c in range(channels):
            plane = made[c * size + first * width : c * size + first * width + n]
            for k in range(n):
                plane[k] = bound * hyperbolic_tangent(plane[k] * inverse)
        i = taken(counter)


@kernel
def last_laid(arguments: Any) -> None:
    """float32 planes to a bfloat16 map whose margins, of so many pixels on each side, are filled by reflection."""
    counter, items, x, out, margin, bands, rows, height, width, channels = carray(arguments, (10,))
    wide, size = (width + 2 * margin) * channels, height * width
    area = wide * (height + 2 * margin)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        seen, made = block(x, image, size * channels), halves(out + 2 * image * area, area)
        for y in range(first, min(first + rows, height)):
            start = (y + margin) * wide + margin * channels
            for c in range(channels):
                row = seen[c * size + y * width : c * size + (y + 1) * width]
                for k in range(width):
                    made[start + k * channels + c] = narrowed(row[k])
            mirrored(made, start, width, margin, channels)
            copied(made, y, height, margin, wide)
        i = taken(counter)
