"""Winograd's tiles of 2 x 2 pixels: what a 3x3 filter sees of a plane around them, transformed to 16 positions.

See `mhvae_kit.kernels.winograd`. Tiles are counted row by row; d are the 4 x 4 pixels that one of them sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mhvae_kit.kernels import OUTPUTS, POSITIONS
from mhvae_kit.kernels.lanes import LANES, WIDTH, copy_run, evens, load, load_first, odds, spread, store
from mhvae_kit.kernels.vectors import block, exactly, f32, fetch_to_read, fetch_to_write

HALF = WIDTH + LANES  # every other pixel of a row: one a tile, one on a side, and what vectors read beyond
SEEN = 2 * HALF
AT_ONCE = 8  # channels whose rows are copied before the first is read, as a value just written is slow to read
# Of tiles that lie in several rows: one of the four columns that they see, of all behind each other, and all of these.
BESIDE = WIDTH + 2 * LANES
SEEN_BESIDE = 4 * BESIDE
AT_ONCE_BESIDE = 4
WORK = 4 * max(AT_ONCE * SEEN, AT_ONCE_BESIDE * SEEN_BESIDE), POSITIONS * LANES  # room for what `transform` works with


@exactly
def run_of_tiles(t: int, last: int, across: int) -> int:
    """How many tiles from t on, before `last`, lie in one row of `across`; WIDTH at most."""
    return min(across * (t // across + 1) - t, last - t, WIDTH)


@exactly
def _row_of_tiles(x: np.ndarray, start: int, n: int, rows: np.ndarray, to: int) -> None:
    """The 2 n pixels of n tiles of a row: the first, third, ... to the second half of SEEN, the others to the first.

    n must be LANES at least.
    """
    done = 0
    while done < n:
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
def _every_other(x: np.ndarray, at: int) -> tuple[Any, Any]:
    """Of 2 LANES values from an index on, which may end behind x, the first, third, ... and the others."""
    if at + 2 * LANES <= len(x):
        a, b = load(x, at), load(x, at + LANES)
    else:
        a, b = load_first(x, at, len(x) - at), load_first(x, at + LANES, len(x) - at - LANES)
    return evens(a, b), odds(a, b)


@exactly
def _columns_beside(x: np.ndarray, start: int, n: int, rows: np.ndarray, to: int) -> None:
    """The four columns of n tiles of a row, whose pixels begin at `start`; vectors also write what lies behind n."""
    for done in range(0, n, LANES):
        second, third = _every_other(x, start + 2 * done)
        store(rows, to + done + 1, third)
        store(rows, to + done + BESIDE, second)
        store(rows, to + done + 2 * BESIDE, third)
        fourth, _ = _every_other(x, start + 2 * done + 2)
        store(rows, to + done + 3 * BESIDE, fourth)


@exactly
def _rows_beside(x: np.ndarray, height: int, width: int, t: int, last: int, rows: np.ndarray) -> None:
    """The four rows that the tiles from t to before `last` of a plane see, column by column; zeros outside of it."""
    across, done = width // 2, 0
    while t < last:
        left, n = 2 * (t % across), run_of_tiles(t, last, across)
        for r in range(4):
            y, to = 2 * (t // across) - 1 + r, r * SEEN_BESIDE + done
            if y < 0 or y >= height:
                for at in range(to, to + n, LANES):
                    for column in range(4):
                        store(rows, at + column * BESIDE, spread(f32(0.0)))
            else:
                start = y * width + left
                _columns_beside(x, start, n, rows, to)
                rows[to] = x[start - 1] if left > 0 else f32(0.0)
                if left + 2 * n == width:
                    rows[to + n - 1 + 3 * BESIDE] = f32(0.0)
        done += n
        t += n


@exactly
def _columns_transformed(a: Any, b: Any, c: Any, d: Any, out: np.ndarray, to: int, stride: int) -> None:
    """One row of B' d B of LANES tiles, from their four columns."""
    store(out, to, a - c)
    store(out, to + stride, b + c)
    store(out, to + 2 * stride, c - b)
    store(out, to + 3 * stride, b - d)


@exactly
def _columns(rows: np.ndarray, at: int, apart: int, step: int) -> tuple[Any, Any, Any, Any]:
    """The four columns of LANES tiles in one row: the second `apart` from the first, both others a step behind."""
    return load(rows, at), load(rows, at + apart), load(rows, at + step), load(rows, at + apart + step)


@exactly
def _tiles_transformed(
    rows: np.ndarray, at: int, seen: int, apart: int, step: int, out: np.ndarray, to: int, stride: int
) -> None:
    """B' d B of LANES tiles, whose rows begin at `at` and are `seen` long; positions are `stride` apart."""
    a, b, c, d = _columns(rows, at + seen, apart, step)
    e, f, g, h = _columns(rows, at + 2 * seen, apart, step)
    s, t, u, v = _columns(rows, at, apart, step)
    _columns_transformed(s - e, t - f, u - g, v - h, out, to, stride)
    _columns_transformed(a + e, b + f, c + g, d + h, out, to + 4 * stride, stride)
    _columns_transformed(e - a, f - b, g - c, h - d, out, to + 8 * stride, stride)
    s, t, u, v = _columns(rows, at + 3 * seen, apart, step)
    _columns_transformed(a - s, b - t, c - u, d - v, out, to + 12 * stride, stride)


@exactly
def _channel_transformed(
    rows: np.ndarray,
    at: int,
    seen: int,
    apart: int,
    step: int,
    n: int,
    out: np.ndarray,
    to: int,
    stride: int,
    spare: np.ndarray,
) -> None:
    """B' d B of n tiles; fewer than LANES go through `spare`, so that nothing is written behind them."""
    if n < LANES:
        _tiles_transformed(rows, at, seen, apart, step, spare, 0, LANES)
        for p in range(POSITIONS):
            copy_run(spare, p * LANES, n, out, to + p * stride)
    done = 0
    while done < n and n >= LANES:
        done = min(done, n - LANES)
        _tiles_transformed(rows, at + done, seen, apart, step, out, to + done, stride)
        done += LANES


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
        work: Two arrays of WORK values, the first without NaN.
        out: Tile t of channel c and position p goes to `to + p * (apart * channels + LANES) + c * apart + t - first`.
        apart: Floats from one channel to the next.
    """
    rows, spare = work
    across, stride, size = width // 2, apart * channels + LANES, height * width
    t = first
    while t < last:
        n = run_of_tiles(t, last, across)
        if n >= LANES:
            for c in range(0, channels, AT_ONCE):
                some = min(AT_ONCE, channels - c)
                for k in range(some):
                    plane = block(x, c + k, size)
                    _rows_of_tiles(plane, height, width, 2 * (t // across), 2 * (t % across), n, rows[4 * SEEN * k :])
                for k in range(some):
                    start = to + (c + k) * apart + t - first
                    _channel_transformed(rows, 4 * SEEN * k, SEEN, HALF, 1, n, out, start, stride, spare)
        else:
            n = min(WIDTH, last - t)
            for c in range(0, channels, AT_ONCE_BESIDE):
                some = min(AT_ONCE_BESIDE, channels - c)
                for k in range(some):
                    plane = block(x, c + k, size)
                    _rows_beside(plane, height, width, t, t + n, rows[4 * SEEN_BESIDE * k :])
                for k in range(some):
                    at, start = 4 * SEEN_BESIDE * k, to + (c + k) * apart + t - first
                    _channel_transformed(rows, at, SEEN_BESIDE, BESIDE, 2 * BESIDE, n, out, start, stride, spare)
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
