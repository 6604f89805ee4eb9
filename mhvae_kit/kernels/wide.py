"""Norm, SiLU and depthwise filter of the wide maps inside top-down cells, plane by plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    f32,
    gradient_through_norm,
    kernel,
    mean_and_scale,
    silu_and_slope,
    silu_of_normalised,
    silu_over,
    summing,
    taken,
    total_of,
)

TAPS = 5  # rows and columns of a depthwise filter
EDGE = TAPS // 2


@summing
def _filtered(padded: np.ndarray, width: int, taps: np.ndarray, start: float, out: np.ndarray) -> None:
    """A TAPS x TAPS correlation of a plane with a margin of EDGE on each side, plus `start`."""
    stride = width + 2 * EDGE
    for y in range(len(out) // width):
        row = out[y * width : (y + 1) * width]
        for dy in range(TAPS):
            w0, w1, w2, w3, w4 = (
                taps[TAPS * dy],
                taps[TAPS * dy + 1],
                taps[TAPS * dy + 2],
                taps[TAPS * dy + 3],
                taps[TAPS * dy + 4],
            )
            seen = padded[(y + dy) * stride : (y + dy + 1) * stride]
            if dy == 0:
                for x in range(width):
                    row[x] = start + (
                        w0 * seen[x] + w1 * seen[x + 1] + w2 * seen[x + 2] + w3 * seen[x + 3] + w4 * seen[x + 4]
                    )
            else:
                for x in range(width):
                    row[x] += w0 * seen[x] + w1 * seen[x + 1] + w2 * seen[x + 2] + w3 * seen[x + 3] + w4 * seen[x + 4]


@summing
def _taps_gradient(padded: np.ndarray, width: int, grad: np.ndarray, out: np.ndarray) -> None:
    """The gradient of `_filtered`'s taps; `grad` is that of its result, with a margin as `padded` has."""
    stride = width + 2 * EDGE
    out[:] = f32(0.0)
    for y in range(len(padded) // stride - 2 * EDGE):
        behind = grad[(y + EDGE) * stride + EDGE : (y + EDGE) * stride + EDGE + width]
        for dy in range(TAPS):
            seen = padded[(y + dy) * stride : (y + dy + 1) * stride]
            s0, s1, s2, s3, s4 = f32(0.0), f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            for x in range(width):
                g = behind[x]
                s0 += g * seen[x]
                s1 += g * seen[x + 1]
                s2 += g * seen[x + 2]
                s3 += g * seen[x + 3]
                s4 += g * seen[x + 4]
            out[TAPS * dy] += s0
            out[TAPS * dy + 1] += s1
            out[TAPS * dy + 2] += s2
            out[TAPS * dy + 3] += s3
            out[TAPS * dy + 4] += s4


@kernel
def norm_silu_over(arguments: Any) -> None:
    """x to SiLU of its instance norm, in place."""
    counter, planes, x, size = carray(arguments, (4,))
    i = taken(counter)
    while i < planes:
        plane = block(x, i, size)
        mean, scale = mean_and_scale(plane)
        silu_over(plane, mean, scale)
        i = taken(counter)


@kernel
def norm_silu(arguments: Any) -> None:
    """x to SiLU of its instance norm, and by plane its mean, 1 / standard deviation and the result's mean."""
    counter, planes, x, out, statistics, size = carray(arguments, (6,))
    i = taken(counter)
    while i < planes:
        plane, made, seen = block(x, i, size), block(out, i, size), block(statistics, i, 3)
        mean, scale = mean_and_scale(plane)
        silu_of_normalised(plane, mean, scale, made)
        seen[0], seen[1], seen[2] = mean, scale, total_of(made) / f32(size)
        i = taken(counter)


@kernel
def norm_silu_gradient(arguments: Any) -> None:
    """Gradient of `norm_silu`'s x from that of its result, to which `more` is added, one number a plane."""
    counter, planes, x, grad, more, statistics, out, size = carray(arguments, (8,))
    slope = np.empty(size, f32)
    i = taken(counter)
    while i < planes:
        plane, behind, made, seen = (
            block(x, i, size),
            block(grad, i, size),
            block(out, i, size),
            block(statistics, i, 3),
        )
        added = block(more, i, 1)[0]
        silu_and_slope(plane, seen[0], seen[1], made, slope)
        for k in range(size):
            made[k] = (behind[k] + added) * slope[k]
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)


@exactly
def _activated(plane: np.ndarray, mean: float, scale: float, width: int, padded: np.ndarray) -> None:
    """SiLU of the normalised plane, with a margin of EDGE around it that is left as it is."""
    stride = width + 2 * EDGE
    for y in range(len(plane) // width):
        start = (y + EDGE) * stride + EDGE
        silu_of_normalised(plane[y * width : (y + 1) * width], mean, scale, padded[start : start + width])


@kernel
def norm_silu_depthwise(arguments: Any) -> None:
    """x to the depthwise convolution of SiLU of its instance norm; by plane its mean and 1 / standard deviation."""
    counter, planes, x, taps, bias, statistics, out, channels, height, width = carray(arguments, (10,))
    size = height * width
    padded = np.zeros((height + 2 * EDGE) * (width + 2 * EDGE), f32)
    i = taken(counter)
    while i < planes:
        plane, seen = block(x, i, size), block(statistics, i, 3)
        mean, scale = mean_and_scale(plane)
        _activated(plane, mean, scale, width, padded)
        channel = i % channels
        _filtered(padded, width, block(taps, channel, TAPS * TAPS), block(bias, channel, 1)[0], block(out, i, size))
        seen[0], seen[1] = mean, scale
        i = taken(counter)


@kernel
def norm_silu_depthwise_norm_silu(arguments: Any) -> None:
    """`norm_silu_depthwise`, then SiLU of the instance norm, written over x; by plane the result's mean."""
    counter, planes, x, taps, bias, means, channels, height, width = carray(arguments, (9,))
    size = height * width
    padded, filtered = np.zeros((height + 2 * EDGE) * (width + 2 * EDGE), f32), np.empty(size, f32)
    i = taken(counter)
    while i < planes:
        plane, channel = block(x, i, size), i % channels
        mean, scale = mean_and_scale(plane)
        _activated(plane, mean, scale, width, padded)
        _filtered(padded, width, block(taps, channel, TAPS * TAPS), block(bias, channel, 1)[0], filtered)
        mean, scale = mean_and_scale(filtered)
        silu_of_normalised(filtered, mean, scale, plane)
        block(means, i, 1)[0] = total_of(plane) / f32(size)
        i = taken(counter)


@kernel
def norm_silu_depthwise_gradient(arguments: Any) -> None:
    """Gradients of `norm_silu_depthwise`'s x, and by plane those of its filter and its bias."""
    counter, planes, x, grad, taps, statistics, out, of_taps, channels, height, width = carray(arguments, (11,))
    size, stride = height * width, width + 2 * EDGE
    padded, behind = np.zeros((height + 2 * EDGE) * stride, f32), np.zeros((height + 2 * EDGE) * stride, f32)
    slope = np.empty(size, f32)
    i = taken(counter)
    while i < planes:
        plane, given, made, seen = block(x, i, size), block(grad, i, size), block(out, i, size), block(statistics, i, 3)
        for y in range(height):
            start, of_row = (y + EDGE) * stride + EDGE, slice(y * width, (y + 1) * width)
            silu_and_slope(plane[of_row], seen[0], seen[1], padded[start : start + width], slope[of_row])
            behind[start : start + width] = given[of_row]
        of_filter = block(of_taps, i, TAPS * TAPS + 1)
        _taps_gradient(padded, width, behind, of_filter[: TAPS * TAPS])
        of_filter[TAPS * TAPS] = total_of(given)
        _filtered(behind, width, block(taps, i % channels, TAPS * TAPS)[::-1], f32(0.0), made)
        for k in range(size):
            made[k] *= slope[k]
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)
