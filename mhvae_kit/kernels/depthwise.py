"""A depthwise TAPS x TAPS filter of one plane and the gradient of its taps, over explicit vectors.

The plane has a margin of EDGE zeros on each side. It is gone through as one long row, margins included: what comes out
between two rows is dropped. Vectors then need no regard for a row's length, which may be shorter than they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mhvae_kit.kernels.activations import silu_and_slope, silu_of_normalised
from mhvae_kit.kernels.lanes import (
    LANES,
    WIDTH,
    add_product,
    copy_run,
    eight_totals,
    load,
    room,
    spread,
    store,
    store_six,
)
from mhvae_kit.kernels.vectors import exactly, f32

TAPS = 5  # rows and columns of the filter
EDGE = TAPS // 2
ROWS = 4  # whose places are summed up together, WIDTH of each
STEP = 6 * LANES  # places whose sums are made together
RUN = 20 * STEP  # places that are made before their rows are copied out of the core's fastest cache


@exactly
def surrounded_room(height: int, width: int) -> np.ndarray:
    """Zeros for a plane with its margin, and for what vectors read behind it."""
    return room((height + 2 * EDGE) * (width + 2 * EDGE) + TAPS + STEP)


@exactly
def sums_room(width: int) -> np.ndarray:
    """Room for what `filtered` makes before it copies it."""
    return room(max(RUN, width + 2 * EDGE) + STEP)


@exactly
def surround(x: np.ndarray, width: int, padded: np.ndarray) -> None:
    """Copy a plane into its margin."""
    pitch = width + 2 * EDGE
    for y in range(len(x) // width):
        copy_run(x, y * width, width, padded, (y + EDGE) * pitch + EDGE)


@exactly
def surround_active(
    x: np.ndarray, mean: float, scale: float, width: int, active: np.ndarray, padded: np.ndarray
) -> None:
    """SiLU of the normalised plane in its margin; `active` is room for a plane, for rows that fill no whole vectors."""
    pitch = width + 2 * EDGE
    if width % LANES:
        silu_of_normalised(x, mean, scale, active)
        surround(active, width, padded)
    else:
        for y in range(len(x) // width):
            start = (y + EDGE) * pitch + EDGE
            silu_of_normalised(x[y * width : (y + 1) * width], mean, scale, padded[start : start + width])


@exactly
def surround_active_and_slope(
    x: np.ndarray, mean: float, scale: float, width: int, active: np.ndarray, padded: np.ndarray, slope: np.ndarray
) -> None:
    """`surround_active`, and SiLU's slope at each pixel of the plane."""
    pitch = width + 2 * EDGE
    if width % LANES:
        silu_and_slope(x, mean, scale, active, slope)
        surround(active, width, padded)
    else:
        for y in range(len(x) // width):
            start, row = (y + EDGE) * pitch + EDGE, slice(y * width, (y + 1) * width)
            silu_and_slope(x[row], mean, scale, padded[start : start + width], slope[row])


@exactly
def _sums(padded: np.ndarray, start: int, pitch: int, taps: np.ndarray, bias: float, out: np.ndarray, to: int) -> None:
    """STEP neighbouring places' sums over all taps; `start` is where the first tap of the first place lies."""
    a = spread(bias)
    b, c, d, e, f = a, a, a, a, a
    for dy in range(TAPS):
        for dx in range(TAPS):
            w, at = spread(taps[TAPS * dy + dx]), start + dy * pitch + dx
            a, b = add_product(w, load(padded, at), a), add_product(w, load(padded, at + LANES), b)
            c, d = add_product(w, load(padded, at + 2 * LANES), c), add_product(w, load(padded, at + 3 * LANES), d)
            e, f = add_product(w, load(padded, at + 4 * LANES), e), add_product(w, load(padded, at + 5 * LANES), f)
    store_six((a, b, c, d, e, f), out, to, LANES)


@exactly
def _three_more(w: float, x: Any, sums: Any) -> Any:
    """Three vectors' sums and a tap's products."""
    v = spread(w)
    return add_product(v, x[0], sums[0]), add_product(v, x[1], sums[1]), add_product(v, x[2], sums[2])


@exactly
def _add_seen_row(padded: np.ndarray, at: int, row: int, taps: np.ndarray, sums: Any) -> Any:
    """Add what the taps see of a row to the sums of ROWS rows of places; it lies `row` rows below their first tap."""
    a, b, c, d = sums
    for dx in range(TAPS):
        x = load(padded, at + dx), load(padded, at + dx + LANES), load(padded, at + dx + 2 * LANES)
        if row < TAPS:
            a = _three_more(taps[TAPS * row + dx], x, a)
        if 1 <= row < TAPS + 1:
            b = _three_more(taps[TAPS * (row - 1) + dx], x, b)
        if 2 <= row < TAPS + 2:
            c = _three_more(taps[TAPS * (row - 2) + dx], x, c)
        if row >= 3:
            d = _three_more(taps[TAPS * (row - 3) + dx], x, d)
    return a, b, c, d


@exactly
def _block_of_sums(
    padded: np.ndarray, start: int, pitch: int, taps: np.ndarray, bias: float, out: np.ndarray, to: int, width: int
) -> None:
    """The sums of ROWS rows of WIDTH places, for which each vector is read once for all of the rows."""
    none = spread(bias)
    row = none, none, none
    sums = row, row, row, row
    sums = _add_seen_row(padded, start, 0, taps, sums)
    sums = _add_seen_row(padded, start + pitch, 1, taps, sums)
    sums = _add_seen_row(padded, start + 2 * pitch, 2, taps, sums)
    sums = _add_seen_row(padded, start + 3 * pitch, 3, taps, sums)
    sums = _add_seen_row(padded, start + 4 * pitch, 4, taps, sums)
    sums = _add_seen_row(padded, start + 5 * pitch, 5, taps, sums)
    sums = _add_seen_row(padded, start + 6 * pitch, 6, taps, sums)
    sums = _add_seen_row(padded, start + 7 * pitch, 7, taps, sums)
    for y in range(ROWS):
        for k in range(3):
            store(out, to + y * width + k * LANES, sums[y][k])


@exactly
def filtered(padded: np.ndarray, width: int, taps: np.ndarray, bias: float, sums: np.ndarray, out: np.ndarray) -> None:
    """The correlation of a plane with the taps, plus a bias."""
    pitch, height = width + 2 * EDGE, len(out) // width
    if width >= WIDTH and height >= ROWS:
        for row in range(0, height, ROWS):
            top = min(row, height - ROWS)  # the last block goes over what was done rather than beyond
            for column in range(0, width, WIDTH):
                left = min(column, width - WIDTH)
                _block_of_sums(padded, top * pitch + left, pitch, taps, bias, out, top * width + left, width)
    else:
        rows = max(1, RUN // pitch)
        for top in range(0, height, rows):
            count = min(rows, height - top)
            for at in range(0, count * pitch, STEP):
                _sums(padded, top * pitch + at, pitch, taps, bias, sums, at)
            for y in range(count):
                copy_run(sums, y * pitch, width, out, (top + y) * width)


@exactly
def _add_row(g: Any, padded: np.ndarray, at: int, sums: Any) -> Any:
    """Add the products of a vector of the gradient and what a row of taps sees there."""
    a, b, c, d, e = sums
    a, b = add_product(g, load(padded, at), a), add_product(g, load(padded, at + 1), b)
    c, d = add_product(g, load(padded, at + 2), c), add_product(g, load(padded, at + 3), d)
    return a, b, c, d, add_product(g, load(padded, at + 4), e)


@exactly
def taps_gradient(
    padded: np.ndarray, width: int, height: int, grad: np.ndarray, rest: np.ndarray, out: np.ndarray
) -> None:
    """The gradient of `filtered`'s taps; `grad` is that of its result, in a margin like the plane's; `rest` is room for
    a vector.
    """
    pitch, zero = width + 2 * EDGE, spread(f32(0.0))
    for dy in range(TAPS):
        even = zero, zero, zero, zero, zero
        odd = even
        for at in range(0, height * pitch, 2 * LANES):
            g = EDGE * pitch + EDGE + at
            even = _add_row(load(grad, g), padded, dy * pitch + at, even)
            odd = _add_row(load(grad, g + LANES), padded, dy * pitch + at + LANES, odd)
        a, b, c, d, e = even
        store(rest, 0, eight_totals(a + odd[0], b + odd[1], c + odd[2], d + odd[3], e + odd[4], zero, zero, zero))
        out[TAPS * dy : TAPS * (dy + 1)] = rest[:TAPS]
