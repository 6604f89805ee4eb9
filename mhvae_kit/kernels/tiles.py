"""Winograd's tiles of 2 x 2 pixels: what a 3x3 filter sees of a plane around them, transformed to 16 positions.

See `mhvae_kit.kernels.winograd`. Tiles are counted row by row; d are the 4 x 4 pixels that one of them sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mhvae_kit.kernels import OUTPUTS, POSITIONS
from mhvae_kit.kernels.lanes import LANES, WIDTH, copy_run, evens, load, odds, store
from mhvae_kit.kernels.vectors import block, exactly, f32, fetch_to_read, fetch_to_write

HALF = WIDTH + LANES  # every other pixel of a row: one a tile, one on a side, and what vectors read beyond
SEEN = 2 * HALF
AT_ONCE = 8  # channels whose rows are copied before the first is read, as a value just written is slow to read


@exactly
def _row_of_tiles(x: np.ndarray, start: int, n: int, rows: np.ndarray, to: int) -> None:
    """The 2 n pixels of n tiles of a row: the first, third, ... to the second half of SEEN, the others to the first."""
    if n < LANES:
        for j in range(n):
            rows[to + HALF + j], rows[to + 1 + j] = x[start + 2 * j], x[start + 2 * j + 1]
    done = 0
    while done < n and n >= LANES:
        done = min(done, n - LANES)  # the last vector goes over what was done rather than beyond
        a, b = load(x, start + 2 * done), load(x, start + 2 * done + LANES)
        store(rows, to + HALF + done, evens(a, b))
        store(rows, to + 1 + done, odds(a, b))
        done += LANES


@exactly
def _rows_of_tiles(x: np.ndarray, height: int, width: int, top: int, left: int, n: int, rows: np.ndarray) -> None:
    """The four rows that n tiles of a plane see, with a column on both sides; zeros outside of the plane."""
    for r in range(4):
        y, to = top - 1 + r, r * SEEN
        if y < 0 or y >= height:
            rows[to : to + n + 1], rows[to + HALF : to + HALF + n + 1] = f32(0.0), f32(0.0)
        else:
            start = y * width + left
            _row_of_tiles(x, start, n, rows, to)
            rows[to] = x[start - 1] if left > 0 else f32(0.0)
            rows[to + HALF + n] = x[start + 2 * n] if left + 2 * n < width else f32(0.0)


@exactly
def _columns_transformed(a: Any, b: Any, c: Any, d: Any, out: np.ndarray, to: int, stride: int) -> None:
    """One row of B' d B of LANES tiles, from their four columns."""
    store(out, to, a - c)
    store(out, to + stride, b + c)
    store(out, to + 2 * stride, c - b)
    store(out, to + 3 * stride, b - d)


@exactly
def _columns(rows: np.ndarray, at: int) -> tuple[Any, Any, Any, Any]:
    """The four columns of LANES tiles in one row."""
    return load(rows, at), load(rows, at + HALF), load(rows, at + 1), load(rows, at + HALF + 1)


@exactly
def _tiles_transformed(rows: np.ndarray, at: int, out: np.ndarray, to: int, stride: int) -> None:
    """B' d B of LANES tiles, whose rows begin at `at`; positions are `stride` apart."""
    a, b, c, d = _columns(rows, at + SEEN)
    e, f, g, h = _columns(rows, at + 2 * SEEN)
    s, t, u, v = _columns(rows, at)
    _columns_transformed(s - e, t - f, u - g, v - h, out, to, stride)
    _columns_transformed(a + e, b + f, c + g, d + h, out, to + 4 * stride, stride)
    _columns_transformed(e - a, f - b, g - c, h - d, out, to + 8 * stride, stride)
    s, t, u, v = _columns(rows, at + 3 * SEEN)
    _columns_transformed(a - s, b - t, c - u, d - v, out, to + 12 * stride, stride)


@exactly
def _channel_transformed(
    rows: np.ndarray, at: int, n: int, out: np.ndarray, to: int, stride: int, spare: np.ndarray
) -> None:
    """B' d B of n tiles; fewer than LANES go through `spare`, so that nothing is written behind them."""
    if n < LANES:
        _tiles_transformed(rows, at, spare, 0, LANES)
        for p in range(POSITIONS):
            copy_run(spare, p * LANES, n, out, to + p * stride)
    done = 0
    while done < n and n >= LANES:
        done = min(done, n - LANES)
        _tiles_transformed(rows, at + done, out, to + done, stride)
        done += LANES


@exactly
def run_of_tiles(t: int, last: int, across: int) -> int:
    """How many tiles from t on, before `last`, lie in one row of `across`; WIDTH at most."""
    return min(across * (t // across + 1) - t, last - t, WIDTH)


@exactly
def transform(
    x: int,
    channels: int,
    height: int,
    width: int,
    first: int,
    last: int,
    work: Any,
    out: np.ndarray,
    to: int,
    apart: int,
) -> None:
    """B' d B of the tiles from `first` to before `last` of all channels of an image, or of some of them.

    Args:
        x: Address of the first channel's plane; the others follow.
        work: Two arrays, (AT_ONCE, 4, SEEN) and (POSITIONS, LANES), flat; the first without NaN.
        out: Tile t of channel c and position p goes to `to + p * (apart * channels + LANES) + c * apart + t - first`.
        apart: Floats from one channel to the next.
    """
    rows, spare = work
    across, stride = width // 2, apart * channels + LANES
    t = first
    while t < last:
        y, n = t // across, run_of_tiles(t, last, across)
        for c in range(0, channels, AT_ONCE):
            some = min(AT_ONCE, channels - c)
            for k in range(some):
                plane = block(x, c + k, height * width)
                _rows_of_tiles(plane, height, width, 2 * y, 2 * (t % across), n, rows[4 * SEEN * k :])
            for k in range(some):
                _channel_transformed(rows, 4 * SEEN * k, n, out, to + (c + k) * apart + t - first, stride, spare)
        t += n


@exactly
def run_of_image(t: int, last: int, tiles: int) -> tuple[int, int, int]:
    """Of tiles counted through all images of so many: the image of t, its first tile there, and the end there."""
    image, start = t // tiles, t % tiles
    return image, start, min(tiles, start + last - t)


@exactly
def tiles_of_item(i: int, parts: int, groups: int, tiles: int) -> tuple[int, int, int, int]:
    """Of items that are `groups` of WIDTH tiles an image, each in parts: image, part, first tile and that behind it."""
    group = i // parts % groups
    return i // parts // groups, i % parts, group * WIDTH, min(tiles, (group + 1) * WIDTH)


@exactly
def fetch_tiles(x: int, channel: int, height: int, width: int, edge: int, first: int, last: int) -> None:
    """Bring into the cache what tiles of `edge` x `edge` pixels see of a channel."""
    across = width // edge
    t = first
    while t < last:
        n = run_of_tiles(t, last, across)
        start = x + 4 * (channel * height * width + edge * (t % across))
        top = edge * (t // across)
        for row in range(max(0, top - 1), min(height, top + edge + 1)):
            for at in range(0, 4 * edge * n, 64):
                fetch_to_read(start + 4 * row * width + at)
        t += n


@exactly
def fetch_result(out: int, height: int, width: int, edge: int, first: int, last: int) -> None:
    """Bring into the cache where the results of such tiles go in OUTPUTS planes."""
    across = width // edge
    t = first
    while t < last:
        n = run_of_tiles(t, last, across)
        for k in range(OUTPUTS):
            start = out + 4 * ((k * height + edge * (t // across)) * width + edge * (t % across))
            for row in range(edge):
                for at in range(0, 4 * edge * n, 64):
                    fetch_to_write(start + 4 * row * width + at)
        t += n
