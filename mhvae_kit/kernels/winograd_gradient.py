"""Gradients of the filters of 3x3 convolutions, with 16 multiplications for the 36 of four pixels.

What `mhvae_kit.kernels.winograd` does, backward: at each of the 16 positions the gradient of G g G' is the sum over
tiles of (A dY A') * (B' d B), where dY are the 2 x 2 values of the result's gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import POSITIONS
from mhvae_kit.kernels.lanes import (
    LANES,
    WIDTH,
    add_product,
    copy_run,
    eight_totals,
    evens,
    load,
    odds,
    room,
    spread,
    store,
)
from mhvae_kit.kernels.tiles import WORK, run_of_image, run_of_tiles, transform
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, taken

STRETCH = 12 * LANES  # tiles that are summed up in registers
CHANNELS = 8  # of x that are transformed at once


@exactly
def _row_spread(left: Any, right: Any, out: np.ndarray, to: int, stride: int) -> None:
    """One row of A dY A' of LANES tiles from the sums of their left and right columns."""
    store(out, to, left)
    store(out, to + stride, left + right)
    store(out, to + 2 * stride, left - right)
    store(out, to + 3 * stride, spread(f32(0.0)) - right)


@exactly
def _tiles_spread(upper: np.ndarray, lower: np.ndarray, at: int, out: np.ndarray, to: int, stride: int) -> None:
    """A dY A' of LANES tiles from two rows of pixels; positions are `stride` apart."""
    a, b = load(upper, at), load(upper, at + LANES)
    c, d = load(lower, at), load(lower, at + LANES)
    top_left, top_right, left, right = evens(a, b), odds(a, b), evens(c, d), odds(c, d)
    _row_spread(top_left, top_right, out, to, stride)
    _row_spread(top_left + left, top_right + right, out, to + 4 * stride, stride)
    _row_spread(top_left - left, top_right - right, out, to + 8 * stride, stride)
    zero = spread(f32(0.0))
    _row_spread(zero - left, zero - right, out, to + 12 * stride, stride)


@exactly
def _spread(
    plane: np.ndarray, width: int, first: int, last: int, rows: Any, out: np.ndarray, to: int, stride: int
) -> None:
    """A dY A' of the tiles from `first` to before `last` of a plane."""
    upper, lower, spare = rows
    across = width // 2
    t = first
    while t < last:
        n, done = min(WIDTH, last - t), 0
        while done < n:
            run = run_of_tiles(t + done, t + n, across)
            start = 2 * ((t + done) // across) * width + 2 * ((t + done) % across)
            copy_run(plane, start, 2 * run, upper, 2 * done)
            copy_run(plane, start + width, 2 * run, lower, 2 * done)
            done += run
        start = to + t - first
        if n < LANES:
            _tiles_spread(upper, lower, 0, spare, 0, LANES)
            for p in range(POSITIONS):
                copy_run(spare, p * LANES, n, out, start + p * stride)
        done = 0
        while done < n and n >= LANES:
            done = min(done, n - LANES)  # the last vector goes over what was done rather than beyond
            _tiles_spread(upper, lower, 2 * done, out, start + done, stride)
            done += LANES
        t += n


@exactly
def _add_sums(m: np.ndarray, at: int, v: np.ndarray, of: int, out: np.ndarray, to: int) -> None:
    """Add to eight values the sums over STRETCH tiles of four channels' numbers times two channels'."""
    zero = spread(f32(0.0))
    a0, a1, b0, b1, c0, c1, d0, d1 = zero, zero, zero, zero, zero, zero, zero, zero
    for t in range(0, STRETCH, LANES):
        x0, x1 = load(v, of + t), load(v, of + STRETCH + t)
        y = load(m, at + t)
        a0, a1 = add_product(y, x0, a0), add_product(y, x1, a1)
        y = load(m, at + STRETCH + t)
        b0, b1 = add_product(y, x0, b0), add_product(y, x1, b1)
        y = load(m, at + 2 * STRETCH + t)
        c0, c1 = add_product(y, x0, c0), add_product(y, x1, c1)
        y = load(m, at + 3 * STRETCH + t)
        d0, d1 = add_product(y, x0, d0), add_product(y, x1, d1)
    store(out, to, load(out, to) + eight_totals(a0, a1, b0, b1, c0, c1, d0, d1))


@exactly
def _four_to_three(first: float, second: float, third: float, fourth: float) -> tuple[float, float, float]:
    """G' u of one column or row u."""
    return first + f32(0.5) * (second + third), f32(0.5) * (second - third), f32(0.5) * (second + third) + fourth


@exactly
def _to_filters(sums: np.ndarray, some: int, n_in: int, out: np.ndarray) -> None:
    """G' u G of every filter to (some, n_in, 9), from the sums u (POSITIONS, some / 4, n_in / 2, LANES)."""
    step = some // 4 * (n_in // 2) * LANES
    for f in range(some * n_in):
        o, c = f // n_in, f % n_in
        u = sums[(o // 4 * (n_in // 2) + c // 2) * LANES + o % 4 * 2 + c % 2 :]
        a0, a1, a2 = _four_to_three(u[0], u[4 * step], u[8 * step], u[12 * step])
        b0, b1, b2 = _four_to_three(u[step], u[5 * step], u[9 * step], u[13 * step])
        c0, c1, c2 = _four_to_three(u[2 * step], u[6 * step], u[10 * step], u[14 * step])
        d0, d1, d2 = _four_to_three(u[3 * step], u[7 * step], u[11 * step], u[15 * step])
        out[9 * f], out[9 * f + 1], out[9 * f + 2] = _four_to_three(a0, b0, c0, d0)
        out[9 * f + 3], out[9 * f + 4], out[9 * f + 5] = _four_to_three(a1, b1, c1, d1)
        out[9 * f + 6], out[9 * f + 7], out[9 * f + 8] = _four_to_three(a2, b2, c2, d2)


@kernel
def winograd_gradient(arguments: Any) -> None:
    """Gradients of filters from x and the result's gradient, each the sum over a share of all stretches of tiles.

    An item is `some` output channels of one of `shares`; out has (shares, D, C, 9). Both numbers of channels must be
    even, `some` a multiple of 4 that divides D.
    """
    counter, items, x, grad, out, images, n_in, n_out, some, shares, height, width = carray(arguments, (12,))
    size, tiles = height * width, (width // 2) * (height // 2)
    stretches, chunks = (images * tiles + STRETCH - 1) // STRETCH, n_out // some
    v_stride, m_stride = CHANNELS * STRETCH + LANES, some * STRETCH + LANES
    v, m = room(POSITIONS * v_stride), room(POSITIONS * m_stride)
    sums, spare = room(POSITIONS * some * n_in // 8 * LANES), room(POSITIONS * LANES)
    rows = room(2 * WIDTH + 2 * LANES), room(2 * WIDTH + 2 * LANES), spare
    work = room(WORK[0]), spare
    i = taken(counter)
    while i < items:
        share, chunk = i // chunks, i % chunks
        sums[:] = f32(0.0)
        for s in range(share * stretches // shares, (share + 1) * stretches // shares):
            first, last = s * STRETCH, min(images * tiles, (s + 1) * STRETCH)
            if last < first + STRETCH:  # tiles that are not there count as 0
                m[:] = f32(0.0)
            t = first
            while t < last:  # image by image
                image, start, end = run_of_image(t, last, tiles)
                for o in range(some):
                    plane = block(grad, image * n_out + chunk * some + o, size)
                    _spread(plane, width, start, end, rows, m, o * STRETCH + t - first, m_stride)
                t += end - start
            for c in range(0, n_in, CHANNELS):
                channels = min(CHANNELS, n_in - c)
                t = first
                while t < last:
                    image, start, end = run_of_image(t, last, tiles)
                    place = x + 4 * (image * n_in + c) * size
                    transform(place, channels, height, width, start, end, work, v, t - first, STRETCH)
                    t += end - start
                for p in range(POSITIONS):
                    of = p * (channels * STRETCH + LANES)
                    for o in range(0, some, 4):
                        for k in range(0, channels, 2):
                            to = ((p * some + o) // 4 * n_in + c + k) // 2 * LANES
                            _add_sums(m, p * m_stride + o * STRETCH, v, of + k * STRETCH, sums, to)
        _to_filters(sums, some, n_in, block(out, i, 9 * some * n_in))
        i = taken(counter)
