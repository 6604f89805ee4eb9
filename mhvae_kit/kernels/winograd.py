"""3x3 convolutions, padded by zeros, with 16 multiplications for four pixels instead of 36.

Winograd's F(2x2, 3x3) as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section
4.1: every tile of 2 x 2 pixels of the result is Y = A' [(G g G') * (B' d B)] A, where d are the 4 x 4 pixels that it
sees, g a filter, and * multiplies each of 16 positions by itself. Summed over channels, that is a matrix product at
each position, for WIDTH tiles at once. All factors of B and A are 0, 1 or -1 and those of G at most 1, so that results
are as exact as those of a direct sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import GAP, OUTPUTS, POSITIONS
from mhvae_kit.kernels.lanes import (
    LANES,
    WIDTH,
    block_product,
    copy_run,
    first_woven,
    load,
    room,
    second_woven,
    spread,
    store,
)
from mhvae_kit.kernels.tiles import WORK, fetch_result, fetch_tiles, run_of_tiles, tiles_of_item, transform
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, taken


@exactly
def _across(m: np.ndarray, at: int) -> tuple[Any, Any]:
    """Both columns of m A, of one row of four positions."""
    step = OUTPUTS * WIDTH
    first, second, third, fourth = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    return first + second + third, second - third - fourth


@exactly
def _back(m: np.ndarray, at: int, bias: float, upper: np.ndarray, lower: np.ndarray) -> None:
    """A' m A of WIDTH tiles and a bias: two rows of the result."""
    b, step = spread(bias), 4 * OUTPUTS * WIDTH
    for t in range(0, WIDTH, LANES):
        l0, r0 = _across(m, at + t)
        l1, r1 = _across(m, at + t + step)
        l2, r2 = _across(m, at + t + 2 * step)
        l3, r3 = _across(m, at + t + 3 * step)
        left, right = l0 + l1 + l2 + b, r0 + r1 + r2 + b
        store(upper, 2 * t, first_woven(left, right))
        store(upper, 2 * t + LANES, second_woven(left, right))
        left, right = l1 - l2 - l3 + b, r1 - r2 - r3 + b
        store(lower, 2 * t, first_woven(left, right))
        store(lower, 2 * t + LANES, second_woven(left, right))


@kernel
def winograd(arguments: Any) -> None:
    """The convolution of x by filters from `winograd_filters`; an item is WIDTH tiles of an image, of some channels.

    Height and width must be even, the output channels of each of `parts` a multiple of OUTPUTS.
    """
    counter, items, x, filters, bias, out, n_in, n_out, parts, height, width = carray(arguments, (11,))
    across, size = width // 2, height * width
    tiles = across * (height // 2)
    groups = (tiles + WIDTH - 1) // WIDTH
    stride = n_in * WIDTH + LANES  # as `transform` has it
    values, sums = room(POSITIONS * stride), room(POSITIONS * OUTPUTS * WIDTH)
    work = room(WORK[0]), room(WORK[1])
    upper, lower = room(2 * WIDTH), room(2 * WIDTH)
    i = taken(counter)
    while i < items:
        following = taken(counter)
        image, part, first, last = tiles_of_item(i, parts, groups, tiles)
        next_image, _, next_first, next_last = tiles_of_item(following, parts, groups, tiles)
        wanted = n_in if following < items else 0
        fetched = 0
        transform(x + 4 * image * n_in * size, n_in, height, width, first, last, work, values, 0, WIDTH)
        for o in range(part * (n_out // parts), (part + 1) * (n_out // parts), OUTPUTS):
            of_outputs = block(filters, o // OUTPUTS, POSITIONS * (n_in * OUTPUTS + GAP))
            fetch_result(out + 4 * (image * n_out + o) * size, height, width, 2, first, last)
            for p in range(POSITIONS):
                if fetched < wanted:
                    fetch_tiles(x + 4 * next_image * n_in * size, fetched, height, width, 2, next_first, next_last)
                    fetched += 1
                block_product(
                    of_outputs, p * (n_in * OUTPUTS + GAP), values, p * stride, WIDTH, n_in, sums, p * OUTPUTS * WIDTH
                )
            for k in range(OUTPUTS):
                _back(sums, k * WIDTH, block(bias, o + k, 1)[0], upper, lower)
                plane = block(out, image * n_out + o + k, size)
                t = first
                while t < last:
                    y, n = t // across, run_of_tiles(t, last, across)
                    to = 2 * y * width + 2 * (t % across)
                    copy_run(upper, 2 * (t - first), 2 * n, plane, to)
                    copy_run(lower, 2 * (t - first), 2 * n, plane, to + width)
                    t += n
        i = following


@exactly
def _three_to_four(first: float, second: float, third: float) -> tuple[float, float, float, float]:
    """G g of one column or row g of a filter."""
    ends, middle = f32(0.5) * (first + third), f32(0.5) * second
    return first, ends + middle, ends - middle, third


@exactly
def _write_row(row: tuple[float, float, float, float], out: np.ndarray, to: int, step: int) -> None:
    out[to], out[to + step], out[to + 2 * step], out[to + 3 * step] = row


@kernel
def winograd_filters(arguments: Any) -> None:
    """Filters (D, C, 3, 3) to G g G', (D / OUTPUTS, POSITIONS, C * OUTPUTS + GAP); an item is OUTPUTS of them."""
    counter, items, weight, out, n_in = carray(arguments, (5,))
    n, step = n_in * OUTPUTS, n_in * OUTPUTS + GAP
    taps = np.empty(9 * n, f32)
    i = taken(counter)
    while i < items:
        filters, made = block(weight, i, 9 * n), block(out, i, POSITIONS * step)
        for o in range(OUTPUTS):
            for k in range(n_in):
                for tap in range(9):
                    taps[tap * n + k * OUTPUTS + o] = filters[9 * (o * n_in + k) + tap]
        for f in range(n):
            a0, a1, a2, a3 = _three_to_four(taps[f], taps[f + 3 * n], taps[f + 6 * n])
            b0, b1, b2, b3 = _three_to_four(taps[f + n], taps[f + 4 * n], taps[f + 7 * n])
            c0, c1, c2, c3 = _three_to_four(taps[f + 2 * n], taps[f + 5 * n], taps[f + 8 * n])
            _write_row(_three_to_four(a0, b0, c0), made, f, step)
            _write_row(_three_to_four(a1, b1, c1), made, f + 4 * step, step)
            _write_row(_three_to_four(a2, b2, c2), made, f + 8 * step, step)
            _write_row(_three_to_four(a3, b3, c3), made, f + 12 * step, step)
        i = taken(counter)
