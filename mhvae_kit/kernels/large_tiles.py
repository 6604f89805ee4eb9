"""Winograd's tiles of 4 x 4 pixels: what a 3x3 filter sees around them, transformed to 36 positions, and the way back.

See `mhvae_kit.kernels.winograd_large`. Tiles are counted row by row; d are the 6 x 6 pixels that one of them sees.
Pixels of a row, and a filter's, are coefficients of polynomials, which are multiplied by their values at the points 0,
A, -A, B, -B and infinity (Toom and Cook's scheme). The divisors of the scheme, which filters usually have, are left to
the way back, where they cost neither an instruction nor a rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mhvae_kit.kernels import LARGE_POSITIONS
from mhvae_kit.kernels.lanes import (
    LANES,
    WIDTH,
    add_product,
    copy_run,
    every_fourth,
    four_in_turns,
    load,
    product,
    spread,
    store,
    store_six,
)
from mhvae_kit.kernels.tiles import run_of_tiles
from mhvae_kit.kernels.vectors import block, exactly, f32

# The usual points 1 and 2 err twice as much, four times at worst: products should be of one size at all positions.
A, B = 11 / 16, 3 / 2  # their squares, and these' sum and product, are float32 numbers
OF_A, OF_B = 1 / (2 * A**2 * (A**2 - B**2)), 1 / (2 * B**2 * (B**2 - A**2))
ROW = 4 * WIDTH + 2 * LANES  # a row of pixels of WIDTH tiles, with a vector on each side
AT_ONCE = 4  # channels whose rows are transformed before the columns of the first, as a value just written is slow


ROOMS = 6 * ROW * AT_ONCE, 6 * LANES, ROW  # for what `transform` works with


@exactly
def filter_to_six(first: Any, second: Any, third: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """One column or row g of filters, to six."""
    of_a, of_b = add_product(spread(f32(A * A)), third, first), add_product(spread(f32(B * B)), third, first)
    a, b = product(spread(f32(A)), second), product(spread(f32(B)), second)
    return first, of_a + a, of_a - a, of_b + b, of_b - b, third


@exactly
def _to_six(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """One column or row d of tiles, to six."""
    first = add_product(spread(f32(1 / (A * B) ** 2)), e, add_product(spread(f32(-1 / A**2 - 1 / B**2)), c, a))
    last = add_product(spread(f32((A * B) ** 2)), b, add_product(spread(f32(-A * A - B * B)), d, f))
    even, odd = add_product(spread(f32(-B * B)), c, e), add_product(spread(f32(-B * B)), b, d)
    more_even, more_odd = add_product(spread(f32(-A * A)), c, e), add_product(spread(f32(-A * A)), b, d)
    a, b = add_product(spread(f32(A)), odd, even), add_product(spread(f32(-A)), odd, even)
    c, d = add_product(spread(f32(B)), more_odd, more_even), add_product(spread(f32(-B)), more_odd, more_even)
    return first, a, b, c, d, last


@exactly
def _to_four(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> tuple[Any, Any, Any, Any]:
    """The way back of one column or row of positions, to four pixels."""
    even, odd, more_even, more_odd = b + c, b - c, d + e, d - e
    first = add_product(spread(f32(OF_A)), even, add_product(spread(f32(OF_B)), more_even, a))
    second = add_product(spread(f32(A * OF_A)), odd, product(spread(f32(B * OF_B)), more_odd))
    third = add_product(spread(f32(A**2 * OF_A)), even, product(spread(f32(B**2 * OF_B)), more_even))
    fourth = add_product(spread(f32(A**3 * OF_A)), odd, add_product(spread(f32(B**3 * OF_B)), more_odd, f))
    return first, second, third, fourth


@exactly
def _load_six(x: np.ndarray, at: int, step: int) -> tuple[Any, Any, Any, Any, Any, Any]:
    a, b, c = load(x, at), load(x, at + step), load(x, at + 2 * step)
    return a, b, c, load(x, at + 3 * step), load(x, at + 4 * step), load(x, at + 5 * step)


@exactly
def _rows_transformed(
    plane: np.ndarray,
    height: int,
    width: int,
    top: int,
    left: int,
    n: int,
    spare: np.ndarray,
    zeros: np.ndarray,
    rows: np.ndarray,
    to: int,
) -> None:
    """The rows that n tiles see, from `top` - 1 on, to six, without the columns on both sides."""
    upper = zeros if top == 0 else plane[(top - 1) * width + left :]
    lower = zeros if top + 4 == height else plane[(top + 4) * width + left :]
    at = top * width + left
    if 4 * n < LANES:
        copy_run(upper, 0, 4 * n, spare, 0)
        for r in range(4):
            copy_run(plane, at + r * width, 4 * n, spare, (r + 1) * LANES)
        copy_run(lower, 0, 4 * n, spare, 5 * LANES)
        store_six(_to_six(*_load_six(spare, 0, LANES)), rows, to + LANES, ROW)
    done = 0
    while done < 4 * n and 4 * n >= LANES:
        done = min(done, 4 * n - LANES)  # the last vector goes over what was done rather than beyond
        b, c, d = load(plane, at + done), load(plane, at + width + done), load(plane, at + 2 * width + done)
        e = load(plane, at + 3 * width + done)
        store_six(_to_six(load(upper, done), b, c, d, e, load(lower, done)), rows, to + LANES + done, ROW)
        done += LANES


@exactly
def _sides_transformed(
    x: int, channels: int, height: int, width: int, top: int, left: int, n: int, spare: np.ndarray, rows: np.ndarray
) -> None:
    """The columns to the left and right of what n tiles of a few channels cover, to six; zeros outside of the plane."""
    spare[:] = f32(0.0)
    for k in range(channels):
        plane = block(x, k, height * width)
        for r in range(6):
            start = (top - 1 + r) * width + left
            if 0 <= top - 1 + r < height:
                spare[r * LANES + 2 * k] = plane[start - 1] if left > 0 else f32(0.0)
                spare[r * LANES + 2 * k + 1] = plane[start + 4 * n] if left + 4 * n < width else f32(0.0)
    store_six(_to_six(*_load_six(spare, 0, LANES)), spare, 0, LANES)
    for k in range(channels):
        for r in range(6):
            to = (6 * k + r) * ROW + LANES
            rows[to - 1], rows[to + 4 * n] = spare[r * LANES + 2 * k], spare[r * LANES + 2 * k + 1]


@exactly
def _columns_transformed(rows: np.ndarray, at: int, out: np.ndarray, to: int, stride: int) -> None:
    """All positions of LANES tiles from their six rows, the first of which begins at `at`; they are `stride` apart."""
    for r in range(6):
        left, right = at + r * ROW - 1, at + r * ROW + 3
        a, b, c, d = every_fourth(
            load(rows, left), load(rows, left + LANES), load(rows, left + 2 * LANES), load(rows, left + 3 * LANES)
        )
        e, f, _, _ = every_fourth(
            load(rows, right), load(rows, right + LANES), load(rows, right + 2 * LANES), load(rows, right + 3 * LANES)
        )
        store_six(_to_six(a, b, c, d, e, f), out, to + 6 * r * stride, stride)


@exactly
def _channel_transformed(
    rows: np.ndarray, at: int, n: int, out: np.ndarray, to: int, stride: int, spare: np.ndarray
) -> None:
    """All positions of n tiles; fewer than LANES go through `spare`, so that nothing is written behind them."""
    if n < LANES:
        _columns_transformed(rows, at, spare, 0, LANES)
        for p in range(LARGE_POSITIONS):
            copy_run(spare, p * LANES, n, out, to + p * stride)
    done = 0
    while done < n and n >= LANES:
        done = min(done, n - LANES)
        _columns_transformed(rows, at + 4 * done, out, to + done, stride)
        done += LANES


@exactly
def transform(
    x: int, channels: int, height: int, width: int, first: int, last: int, work: Any, out: np.ndarray
) -> None:
    """All positions of the tiles from `first` to before `last`, WIDTH at most, of all channels of an image.

    Args:
        x: Address of the first channel's plane; the others follow.
        work: Arrays of ROOMS, the last of zeros, and one of LARGE_POSITIONS vectors.
        out: Tile t of channel c and position p goes to `p * (WIDTH * channels + LANES) + c * WIDTH + t - first`.
    """
    rows, spare, zeros, spare_tiles = work
    across, stride = width // 4, WIDTH * channels + LANES
    t = first
    while t < last:
        top, left, n = 4 * (t // across), 4 * (t % across), run_of_tiles(t, last, across)
        for c in range(0, channels, AT_ONCE):
            some = min(AT_ONCE, channels - c)
            for k in range(some):
                plane = block(x, c + k, height * width)
                _rows_transformed(plane, height, width, top, left, n, spare, zeros, rows, 6 * ROW * k)
            _sides_transformed(x + 4 * c * height * width, some, height, width, top, left, n, spare, rows)
            for k in range(some):
                to = (c + k) * WIDTH + t - first
                _channel_transformed(rows, 6 * ROW * k + LANES, n, out, to, stride, spare_tiles)
        t += n


@exactly
def _pixels(
    sums: np.ndarray, at: int, step: int, bias: float, spare: np.ndarray, out: np.ndarray, to: int, width: int
) -> None:
    """LANES tiles from their positions, which are `step` apart, and a bias: four rows of 4 LANES pixels."""
    for column in range(6):
        a, b, c, d = _to_four(*_load_six(sums, at + column * step, 6 * step))
        store(spare, column * LANES, a)
        store(spare, (6 + column) * LANES, b)
        store(spare, (12 + column) * LANES, c)
        store(spare, (18 + column) * LANES, d)
    more = spread(bias)
    for r in range(4):
        a, b, c, d = _to_four(*_load_six(spare, 6 * r * LANES, LANES))
        a, b, c, d = four_in_turns(a + more, b + more, c + more, d + more)
        start = to + r * width
        store(out, start, a)
        store(out, start + LANES, b)
        store(out, start + 2 * LANES, c)
        store(out, start + 3 * LANES, d)


@exactly
def to_pixels(
    sums: np.ndarray,
    at: int,
    step: int,
    bias: float,
    first: int,
    last: int,
    spare: np.ndarray,
    made: np.ndarray,
    plane: np.ndarray,
    width: int,
) -> None:
    """Tiles from `first` to before `last` of a plane from their positions, which are `step` apart, and a bias.

    `spare` has room for 24 vectors, `made` for 16: there, pixels go of runs that are shorter than a vector.
    """
    across = width // 4
    t = first
    while t < last:
        n = run_of_tiles(t, last, across)
        to = 4 * (t // across) * width + 4 * (t % across)
        if n < LANES:
            _pixels(sums, at + t - first, step, bias, spare, made, 0, 4 * LANES)
            for r in range(4):
                copy_run(made, 4 * r * LANES, 4 * n, plane, to + r * width)
        done = 0
        while done < n and n >= LANES:
            done = min(done, n - LANES)
            _pixels(sums, at + t - first + done, step, bias, spare, plane, to + 4 * done, width)
            done += LANES
        t += n
