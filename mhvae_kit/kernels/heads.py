"""Residual blocks of the image heads: 3x3 convolutions of a few channels at full size, with the norm between them.

Convolutions pad by reflection and read what is behind norm and ReLU without a map for it; GROUP output channels are
summed up side by side, so that each value that is read serves all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import BAND, GROUP
from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    f32,
    gradient_through_norm,
    kernel,
    mean_and_scale,
    summing,
    taken,
    total_of,
)


@exactly
def _reflected(y: int, n: int) -> int:
    """The row or column that stands at y, from -1 to n, where a map of n is padded by reflection."""
    return -y if y < 0 else (2 * n - 2 - y if y >= n else y)


@exactly
def _padded_row(row: np.ndarray, mean: float, scale: float, active: int, out: np.ndarray) -> None:
    """A row with one reflected value on each side, normalised and through ReLU where it is `active`."""
    width = len(row)
    if active:
        for x in range(width):
            value = (row[x] - mean) * scale
            out[x + 1] = f32(0.0) if value < f32(0.0) else value
    else:
        for x in range(width):
            out[x + 1] = row[x]
    out[0], out[width + 1] = out[2], out[width - 1]


@summing
def _add_row(
    seen: np.ndarray, taps: np.ndarray, r0: np.ndarray, r1: np.ndarray, r2: np.ndarray, r3: np.ndarray
) -> None:
    """Add one row of one channel, seen through three taps, to a row of each of GROUP channels; taps (GROUP, 3)."""
    a0, a1, a2, b0, b1, b2 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    c0, c1, c2, d0, d1, d2 = taps[6], taps[7], taps[8], taps[9], taps[10], taps[11]
    for x in range(len(r0)):
        left, here, right = seen[x], seen[x + 1], seen[x + 2]
        r0[x] += a0 * left + a1 * here + a2 * right
        r1[x] += b0 * left + b1 * here + b2 * right
        r2[x] += c0 * left + c1 * here + c2 * right
        r3[x] += d0 * left + d1 * here + d2 * right


@exactly
def _filled(row: np.ndarray, value: float) -> None:
    for x in range(len(row)):
        row[x] = value


@exactly
def _convolve_row(
    seen: np.ndarray,
    stride: int,
    channels: int,
    taps: np.ndarray,
    start: np.ndarray,
    r0: np.ndarray,
    r1: np.ndarray,
    r2: np.ndarray,
    r3: np.ndarray,
) -> None:
    """A row of each of a group's outputs, from three padded rows of every channel; taps (channels, 3, GROUP, 3)."""
    _filled(r0, start[0])
    _filled(r1, start[1])
    _filled(r2, start[2])
    _filled(r3, start[3])
    width = len(r0) + 2
    for c in range(channels):
        for dy in range(3):
            begin, chosen = c * stride + dy * width, 3 * GROUP * (3 * c + dy)
            _add_row(seen[begin : begin + width], taps[chosen : chosen + 3 * GROUP], r0, r1, r2, r3)


@exactly
def _row_of(address: int, plane: int, planes: int, size: int, begin: int, spare: np.ndarray) -> np.ndarray:
    """A row of as many values as `spare` from a plane, or `spare` itself for one that a group has and a map has not."""
    return block(address, plane, size)[begin : begin + len(spare)] if plane < planes else spare


@kernel
def reflected_convolution(arguments: Any) -> None:
    """3x3 convolution of x, or of ReLU of its instance norm; an item is BAND rows of an image.

    Taps (groups, channels, 3, GROUP, 3), bias (groups * GROUP), statistics (B, channels, 2).
    """
    counter, items, x, taps, bias, statistics, active, out, channels, made, height, width = carray(arguments, (12,))
    size, row_stride, bands = height * width, width + 2, (height + BAND - 1) // BAND
    stride = (BAND + 2) * row_stride
    padded, spare = np.empty(channels * stride, f32), np.empty(width, f32)
    i = taken(counter)
    while i < items:
        image, top = i // bands, i % bands * BAND
        rows = min(BAND, height - top)
        for c in range(channels):
            plane, seen = block(x, image * channels + c, size), block(statistics, image * channels + c, 2)
            for y in range(rows + 2):
                begin, start = _reflected(top + y - 1, height) * width, c * stride + y * row_stride
                _padded_row(plane[begin : begin + width], seen[0], seen[1], active, padded[start : start + row_stride])
        for group in range((made + GROUP - 1) // GROUP):
            of_group, start_at = block(taps, group, channels * 3 * GROUP * 3), block(bias, group, GROUP)
            first, end = image * made + group * GROUP, (image + 1) * made
            for y in range(rows):
                begin = (top + y) * width
                r0, r1 = _row_of(out, first, end, size, begin, spare), _row_of(out, first + 1, end, size, begin, spare)
                r2, r3 = (
                    _row_of(out, first + 2, end, size, begin, spare),
                    _row_of(out, first + 3, end, size, begin, spare),
                )
                _convolve_row(padded[y * row_stride :], stride, channels, of_group, start_at, r0, r1, r2, r3)
        i = taken(counter)


@kernel
def plane_statistics(arguments: Any) -> None:
    """Mean and 1 / standard deviation of every plane."""
    counter, planes, x, statistics, size = carray(arguments, (5,))
    i = taken(counter)
    while i < planes:
        seen = block(statistics, i, 2)
        seen[0], seen[1] = mean_and_scale(block(x, i, size))
        i = taken(counter)


@exactly
def _normalised_onto(plane: np.ndarray, mean: float, scale: float, below: np.ndarray, out: np.ndarray) -> None:
    for k in range(len(plane)):
        out[k] = below[k] + (plane[k] - mean) * scale


@kernel
def norm_onto(arguments: Any) -> None:
    """`below` plus the instance norm of x, and by plane of x its mean and 1 / standard deviation."""
    counter, planes, x, below, statistics, out, size = carray(arguments, (7,))
    i = taken(counter)
    while i < planes:
        plane, seen = block(x, i, size), block(statistics, i, 2)
        seen[0], seen[1] = mean_and_scale(plane)
        _normalised_onto(plane, seen[0], seen[1], block(below, i, size), block(out, i, size))
        i = taken(counter)


@exactly
def _through_relu(plane: np.ndarray, mean: float, grad: np.ndarray, active: int, out: np.ndarray) -> None:
    if active:
        for k in range(len(plane)):
            out[k] = grad[k] if plane[k] > mean else f32(0.0)
    else:
        for k in range(len(plane)):
            out[k] = grad[k]


@kernel
def norm_gradient(arguments: Any) -> None:
    """Gradient of x, from that of its instance norm, or of ReLU of it where it is `active`."""
    counter, planes, x, grad, statistics, active, out, size = carray(arguments, (8,))
    i = taken(counter)
    while i < planes:
        plane, behind, seen, made = (
            block(x, i, size),
            block(grad, i, size),
            block(statistics, i, 2),
            block(out, i, size),
        )
        _through_relu(plane, seen[0], behind, active, made)
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)


@summing
def _tap_sums(
    seen: np.ndarray, g0: np.ndarray, g1: np.ndarray, g2: np.ndarray, g3: np.ndarray, out: np.ndarray
) -> None:
    """Add to (GROUP, 3) taps' gradients what one row gives."""
    a0, a1, a2, b0, b1, b2 = f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0)
    c0, c1, c2, d0, d1, d2 = f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0)
    for x in range(len(g0)):
        left, here, right = seen[x], seen[x + 1], seen[x + 2]
        a0 += g0[x] * left
        a1 += g0[x] * here
        a2 += g0[x] * right
        b0 += g1[x] * left
        b1 += g1[x] * here
        b2 += g1[x] * right
        c0 += g2[x] * left
        c1 += g2[x] * here
        c2 += g2[x] * right
        d0 += g3[x] * left
        d1 += g3[x] * here
        d2 += g3[x] * right
    out[0] += a0
    out[1] += a1
    out[2] += a2
    out[3] += b0
    out[4] += b1
    out[5] += b2
    out[6] += c0
    out[7] += c1
    out[8] += c2
    out[9] += d0
    out[10] += d1
    out[11] += d2


@kernel
def reflected_convolution_taps(arguments: Any) -> None:
    """Gradients by image of `reflected_convolution`'s taps (groups, channels, 3, GROUP, 3) and bias (made)."""
    counter, images, x, grad, statistics, active, of_taps, of_bias, channels, made, height, width = carray(
        arguments, (12,)
    )
    size, row_stride, groups = height * width, width + 2, (made + GROUP - 1) // GROUP
    padded = np.empty((height + 2) * row_stride, f32)
    i = taken(counter)
    while i < images:
        of_image = block(of_taps, i, groups * channels * 3 * GROUP * 3)
        of_image[:] = f32(0.0)
        for c in range(channels):
            plane, seen = block(x, i * channels + c, size), block(statistics, i * channels + c, 2)
            for y in range(height + 2):
                begin = _reflected(y - 1, height) * width
                _padded_row(
                    plane[begin : begin + width],
                    seen[0],
                    seen[1],
                    active,
                    padded[y * row_stride : (y + 1) * row_stride],
                )
            for group in range(groups):
                first, last = group * GROUP, made - 1
                p0, p1 = block(grad, i * made + first, size), block(grad, i * made + min(first + 1, last), size)
                p2, p3 = (
                    block(grad, i * made + min(first + 2, last), size),
                    block(grad, i * made + min(first + 3, last), size),
                )
                start = (group * channels + c) * 3 * GROUP * 3
                for y in range(height):
                    row = slice(y * width, (y + 1) * width)
                    for dy in range(3):
                        chosen = of_image[start + dy * 3 * GROUP : start + (dy + 1) * 3 * GROUP]
                        _tap_sums(
                            padded[(y + dy) * row_stride : (y + dy + 1) * row_stride],
                            p0[row],
                            p1[row],
                            p2[row],
                            p3[row],
                            chosen,
                        )
        for o in range(made):
            block(of_bias, i * made + o, 1)[0] = total_of(block(grad, i * made + o, size))
        i = taken(counter)


@exactly
def _copied(row: np.ndarray, out: np.ndarray) -> None:
    for x in range(len(row)):
        out[x] = row[x]


@exactly
def _add_folded(row: np.ndarray, out: np.ndarray) -> None:
    """Add a padded row's gradient to that of the row: what stands in the padding belongs to what it reflects."""
    width = len(out)
    for x in range(width):
        out[x] += row[x + 1]
    out[1] += row[0]
    out[width - 2] += row[width + 1]


@kernel
def reflected_convolution_input(arguments: Any) -> None:
    """Gradient of `reflected_convolution`'s (normalised) input, added to `out`; taps of the filters flipped."""
    counter, images, grad, taps, out, channels, made, height, width = carray(arguments, (9,))
    size, wide = height * width, width + 2
    row_stride = width + 4
    stride = (height + 4) * row_stride
    padded, sums, start = np.zeros(channels * stride, f32), np.empty(GROUP * wide, f32), np.zeros(GROUP, f32)
    r0, r1, r2, r3 = sums[:wide], sums[wide : 2 * wide], sums[2 * wide : 3 * wide], sums[3 * wide :]
    i = taken(counter)
    while i < images:
        for c in range(channels):
            plane = block(grad, i * channels + c, size)
            for y in range(height):
                _copied(plane[y * width : (y + 1) * width], padded[c * stride + (y + 2) * row_stride + 2 :])
        for first in range(0, made, GROUP):
            of_group = block(taps, first // GROUP, channels * 3 * GROUP * 3)
            for y in range(height + 2):
                _convolve_row(padded[y * row_stride :], stride, channels, of_group, start, r0, r1, r2, r3)
                begin = _reflected(y - 1, height) * width
                for o in range(min(GROUP, made - first)):
                    whole = block(out, i * made + first + o, size)
                    _add_folded(sums[o * wide : (o + 1) * wide], whole[begin : begin + width])
        i = taken(counter)
