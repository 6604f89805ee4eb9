"""Norm, activation and depthwise filters of bfloat16 maps that are stored channels-last.

The channels of a pixel lie together, so that a pass goes through whole rows, and statistics of channels are sums over
rows. They come in two steps: one kernel adds up bands of rows of each image ("totals"), the next reads the totals of
all bands before it works on its own. Totals are (images, bands, 2, around): sums and sums of squares, of vectors that
hold several pixels' channels where a vector is longer than a pixel; `around` is the longer of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import EPSILON
from mhvae_kit.kernels.activations import half_sigmoid
from mhvae_kit.kernels.depthwise import EDGE, TAPS
from mhvae_kit.kernels.halves import at_least, halves, load_half, store_half
from mhvae_kit.kernels.lanes import LANES, add_product, load, product, room, spread, store
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, taken

BLOCK = 4  # neighbouring pixels that a depthwise filter computes together


@exactly
def statistics(
    totals: np.ndarray, first: int, bands: int, around: int, channels: int, pixels: int, exact: np.ndarray,
    scale: np.ndarray, shift: np.ndarray,
) -> None:  # fmt: skip
    """1 / standard deviation and -mean / standard deviation of channels, so that x * scale + shift is the norm.

    From the totals of an image, as often as they fit into `scale`; `exact` is room for twice as many float64.
    """
    n = len(scale)
    sums, squares = exact[:n], exact[n:]
    exact[:] = 0.0
    for band in range(bands):
        for copy in range(0, n, channels):
            at = first + 2 * band * around + copy
            for c in range(channels):
                sums[c] += totals[at + c]
                squares[c] += totals[at + around + c]
    for c in range(channels):
        m = sums[c] / pixels
        variance = squares[c] / pixels - m * m
        inverse = 1.0 / np.sqrt((0.0 if variance < 0.0 else variance) + EPSILON)
        scale[c], shift[c] = f32(inverse), f32(-m * inverse)
    for c in range(channels, n):
        scale[c], shift[c] = scale[c - channels], shift[c - channels]


@kernel
def last_totals(arguments: Any) -> None:
    """The totals of a map, band by band."""
    counter, items, x, totals, bands, rows, height, width, channels = carray(arguments, (9,))
    around = max(channels, LANES)
    length, period = width * channels, around // LANES
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        count = min(rows, height - first)
        band = halves(x + 2 * (image * height + first) * length, count * length)
        sums = block(totals + 8 * i * around, 0, 2 * around)
        sums[:] = f32(0.0)
        for y in range(count):
            for p in range(period):
                total, squares = load(sums, p * LANES), load(sums, around + p * LANES)
                for at in range(y * length + p * LANES, (y + 1) * length, around):
                    value = load_half(band, at)
                    total, squares = total + value, add_product(value, value, squares)
                store(sums, p * LANES, total)
                store(sums, around + p * LANES, squares)
        i = taken(counter)


@kernel
def last_norm_silu(arguments: Any) -> None:
    """SiLU of the instance norm, pixel by pixel `stride` apart in `out`, and by band and channel the result's sums."""
    counter, items, x, totals, of_bands, out, stride, sums, bands, rows, height, width, channels = carray(
        arguments, (13,)
    )
    around = max(channels, LANES)
    length, period, step = width * channels, around // LANES, stride * (around // channels)
    scale, shift, exact = room(around), room(around), np.empty(2 * around)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        count = min(rows, height - first)
        seen = block(totals, 0, (image + 1) * of_bands * 2 * around)
        at = 2 * image * of_bands * around
        statistics(seen, at, of_bands, around, channels, height * width, exact, scale, shift)
        band = halves(x + 2 * (image * height + first) * length, count * length)
        made = halves(out + 2 * (image * height + first) * width * stride, count * width * stride)
        added = block(sums + 4 * i * around, 0, around)
        added[:] = f32(0.0)
        for y in range(count):
            for p in range(period):
                scaled, shifted, total = load(scale, p * LANES), load(shift, p * LANES), load(added, p * LANES)
                to = y * width * stride + p * LANES
                for at in range(y * length + p * LANES, (y + 1) * length, around):
                    value = add_product(load_half(band, at), scaled, shifted)
                    value = product(value, half_sigmoid(value))
                    total = total + value
                    store_half(made, to, value)
                    to += step
                store(added, p * LANES, total)
        i = taken(counter)


@exactly
def mirrored(row: np.ndarray, start: int, width: int, margin: int, channels: int) -> None:
    """Fill the margins of a row of pixels by reflection; `start` is where its own pixels begin."""
    last = start + (width - 1) * channels
    for k in range(1, margin + 1):
        for c in range(channels):
            row[start - k * channels + c] = row[start + k * channels + c]
            row[last + k * channels + c] = row[last - k * channels + c]


@exactly
def copied(values: np.ndarray, y: int, height: int, margin: int, wide: int) -> None:
    """Copy row y of a map with margins, of `wide` values, to those rows of the margins that reflect it."""
    start, last = (y + margin) * wide, height - 1
    if 1 <= y <= margin:
        for k in range(wide):
            values[(margin - y) * wide + k] = values[start + k]
    if last - margin <= y < last:
        for k in range(wide):
            values[(2 * last - y + margin) * wide + k] = values[start + k]


@kernel
def last_norm_leaky(arguments: Any) -> None:
    """max(v, v * slope) of v the instance norm, slope in tenths (10: the norm alone), plus `onto` unless that is 0.

    With `of_bands` 0, `totals` are numbers by which channels are multiplied instead of being normalised, one a channel.
    `out` has a margin of so many pixels on each side, which is filled by reflection.
    """
    (
        counter, items, x, totals, of_bands, tenths, onto, out, margin, bands, rows, height, width, channels,
    ) = carray(arguments, (14,))  # fmt: skip
    around = max(channels, LANES)
    length, period, slope = width * channels, around // LANES, spread(f32(tenths) / f32(10.0))
    scale, shift, exact = room(around), room(around), np.empty(2 * around)
    wide = (width + 2 * margin) * channels
    area = wide * (height + 2 * margin)
    i = taken(counter)
    while i < items:
        image, first = i // bands, i % bands * rows
        if of_bands:
            seen, at = block(totals, 0, (image + 1) * of_bands * 2 * around), 2 * image * of_bands * around
            statistics(seen, at, of_bands, around, channels, height * width, exact, scale, shift)
        else:
            for c in range(around):
                scale[c] = block(totals + 4 * image * channels, 0, channels)[c % channels]
        whole = halves(x + 2 * image * height * length, height * length)
        made = halves(out + 2 * image * area, area)
        below = halves(onto + 2 * image * height * length, height * length)
        for y in range(first, min(first + rows, height)):
            start = (y + margin) * wide + margin * channels
            for p in range(period):
                scaled, shifted = load(scale, p * LANES), load(shift, p * LANES)
                for at in range(p * LANES, length, around):
                    value = add_product(load_half(whole, y * length + at), scaled, shifted)
                    value = at_least(value, product(value, slope))
                    if onto:
                        value = value + load_half(below, y * length + at)
                    store_half(made, start + at, value)
            mirrored(made, start, width, margin, channels)
            copied(made, y, height, margin, wide)
        i = taken(counter)


@exactly
def _activated_row(
    x: np.ndarray, start: int, step: int, width: int, group: int, scale: np.ndarray, shift: np.ndarray, out: np.ndarray,
    to: int,
) -> None:  # fmt: skip
    """A row of a group of channels, normalised, through SiLU, to float32 pixels that lie `group` apart."""
    for p in range(0, group, LANES):
        scaled, shifted, place = load(scale, p), load(shift, p), to + p
        for at in range(start + p, start + p + width * step, step):
            value = add_product(load_half(x, at), scaled, shifted)
            store(out, place, product(value, half_sigmoid(value)))
            place += group


@exactly
def _four_filtered(
    seen: np.ndarray, rows: np.ndarray, at: int, group: int, taps: np.ndarray, p: int, start: Any
) -> Any:
    """BLOCK neighbouring pixels' sums over TAPS x TAPS, of one vector of channels."""
    a, b, c, d = start, start, start, start
    for dy in range(TAPS):
        place = rows[dy] + at
        x0, x1, x2, x3 = (
            load(seen, place),
            load(seen, place + group),
            load(seen, place + 2 * group),
            load(seen, place + 3 * group),
        )
        for dx in range(TAPS):
            w = load(taps, (TAPS * dy + dx) * group + p)
            a, b, c, d = add_product(w, x0, a), add_product(w, x1, b), add_product(w, x2, c), add_product(w, x3, d)
            x0, x1, x2 = x1, x2, x3
            x3 = load(seen, place + (BLOCK + dx) * group)
    return a, b, c, d


@exactly
def _transposed(taps: np.ndarray, group: int, out: np.ndarray) -> None:
    """Filters of single channels behind each other to the channels of single taps."""
    for c in range(group):
        for t in range(TAPS * TAPS):
            out[t * group + c] = taps[c * TAPS * TAPS + t]


@exactly
def _filtered_row(
    seen: np.ndarray, rows: np.ndarray, width: int, group: int, taps: np.ndarray, bias: np.ndarray, out: np.ndarray,
    to: int, step: int, sums: np.ndarray, rest: np.ndarray,
) -> None:  # fmt: skip
    """A row of the depthwise convolution of a group of channels, written `step` apart and added to its totals."""
    whole = width // BLOCK * BLOCK
    for p in range(0, group, LANES):
        total, squares, start = load(sums, p), load(sums, group + p), load(bias, p)
        for at in range(0, whole, BLOCK):
            a, b, c, d = _four_filtered(seen, rows, at * group + p, group, taps, p, start)
            place = to + p + at * step
            store_half(out, place, a)
            store_half(out, place + step, b)
            store_half(out, place + 2 * step, c)
            store_half(out, place + 3 * step, d)
            total = total + ((a + b) + (c + d))
            squares = add_product(a, a, add_product(b, b, squares))
            squares = add_product(c, c, add_product(d, d, squares))
        if whole < width:
            a, b, c, d = _four_filtered(seen, rows, whole * group + p, group, taps, p, start)
            store(rest, 0, a)
            store(rest, LANES, b)
            store(rest, 2 * LANES, c)
            for k in range(width - whole):
                value = load(rest, k * LANES)
                store_half(out, to + p + (whole + k) * step, value)
                total, squares = total + value, add_product(value, value, squares)
        store(sums, p, total)
        store(sums, group + p, squares)


@kernel
def last_norm_silu_depthwise(arguments: Any) -> None:
    """The depthwise convolution of SiLU of the instance norm, and its own totals.

    An item is a band of rows of one of `parts` of the channels, gone through `group` channels at a time while it is in
    the core's cache: lines that a group reads half of are read by the next as well.
    """
    (
        counter, items, x, totals, of_bands, taps, bias, out, new, group, parts, bands, rows, height, width, channels,
    ) = carray(arguments, (16,))  # fmt: skip
    size, some = height * width * channels, channels // parts
    row_size = (-(-width // BLOCK) * BLOCK + 2 * EDGE + 1) * group
    seen, places, filters = room(TAPS * row_size), np.empty(TAPS, np.int64), room(TAPS * TAPS * group)
    scale, shift, sums, rest = room(group), room(group), room(2 * group), room(BLOCK * LANES)
    exact = np.empty(2 * group)
    i = taken(counter)
    while i < items:
        share, part = i // parts, i % parts
        image, first = share // bands, share % bands * rows
        last = min(first + rows, height)
        before = block(totals, 0, (image + 1) * of_bands * 2 * channels)
        whole, made = halves(x + 2 * image * size, size), halves(out + 2 * image * size, size)
        behind = block(new + 8 * share * channels, 0, 2 * channels)
        for c in range(part * some, (part + 1) * some, group):
            at = 2 * image * of_bands * channels + c
            statistics(before, at, of_bands, channels, group, height * width, exact, scale, shift)
            _transposed(block(taps + 4 * c * TAPS * TAPS, 0, group * TAPS * TAPS), group, filters)
            start = block(bias + 4 * c, 0, group)
            sums[:] = f32(0.0)
            for y in range(first - EDGE, last + EDGE):
                place = (y + TAPS) % TAPS * row_size
                if 0 <= y < height:
                    to = place + EDGE * group
                    _activated_row(whole, y * width * channels + c, channels, width, group, scale, shift, seen, to)
                else:
                    seen[place : place + row_size] = f32(0.0)
                z = y - EDGE
                if z >= first:
                    for dy in range(TAPS):
                        places[dy] = (z - EDGE + dy + TAPS) % TAPS * row_size
                    to = z * width * channels + c
                    _filtered_row(seen, places, width, group, filters, start, made, to, channels, sums, rest)
            behind[c : c + group], behind[channels + c : channels + c + group] = sums[:group], sums[group:]
        i = taken(counter)
