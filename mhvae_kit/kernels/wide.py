"""Norm, SiLU and depthwise filter of the wide maps inside top-down cells, plane by plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types

from mhvae_kit.kernels.activations import silu_and_slope, silu_of_normalised
from mhvae_kit.kernels.depthwise import (
    TAPS,
    filtered,
    sums_room,
    surround,
    surround_active,
    surround_active_and_slope,
    surrounded_room,
    taps_gradient,
)
from mhvae_kit.kernels.lanes import LANES, room
from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    f32,
    gradient_through_norm,
    kernel,
    mean_and_scale,
    pointer_to,
    taken,
    total_of,
)

_integers = pointer_to(types.int64)


@kernel
def norm_silu_over(arguments: Any) -> None:
    """x to SiLU of its instance norm, in place."""
    counter, planes, x, size = carray(arguments, (4,))
    i = taken(counter)
    while i < planes:
        plane = block(x, i, size)
        mean, scale = mean_and_scale(plane)
        silu_of_normalised(plane, mean, scale, plane)
        i = taken(counter)


@kernel
def norm_silu_of_sum(arguments: Any) -> None:
    """x plus images of `other` to SiLU of the instance norm, in place; `which` says for each image which it is."""
    counter, planes, x, other, which, channels, size = carray(arguments, (7,))
    images = carray(_integers(which), (planes // channels,))
    i = taken(counter)
    while i < planes:
        plane, added = block(x, i, size), block(other, images[i // channels] * channels + i % channels, size)
        for k in range(size):
            plane[k] += added[k]
        mean, scale = mean_and_scale(plane)
        silu_of_normalised(plane, mean, scale, plane)
        i = taken(counter)


@exactly
def _channel(address: int, stride: int, channels: int, i: int, size: int) -> np.ndarray:
    """Plane i of images of so many channels that lie `stride` floats apart, as half of the channels of another may."""
    return block(address + 4 * (i // channels * stride + i % channels * size), 0, size)


@kernel
def norm_silu(arguments: Any) -> None:
    """x to SiLU of its instance norm, and by plane its mean, 1 / standard deviation and the result's mean."""
    counter, planes, x, out, stride, statistics, channels, size = carray(arguments, (8,))
    i = taken(counter)
    while i < planes:
        plane, made, seen = block(x, i, size), _channel(out, stride, channels, i, size), block(statistics, i, 3)
        mean, scale = mean_and_scale(plane)
        silu_of_normalised(plane, mean, scale, made)
        seen[0], seen[1], seen[2] = mean, scale, total_of(made) / f32(size)
        i = taken(counter)


@kernel
def norm_silu_gradient(arguments: Any) -> None:
    """Gradient of `norm_silu`'s x from that of its result, to which `more` is added, one number a plane."""
    counter, planes, x, grad, stride, more, statistics, out, channels, size = carray(arguments, (10,))
    slope = np.empty(size, f32)
    i = taken(counter)
    while i < planes:
        plane, behind, made, seen = (
            block(x, i, size),
            _channel(grad, stride, channels, i, size),
            block(out, i, size),
            block(statistics, i, 3),
        )
        added = block(more, i, 1)[0]
        silu_and_slope(plane, seen[0], seen[1], made, slope)
        for k in range(size):
            made[k] = (behind[k] + added) * slope[k]
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)


@kernel
def norm_silu_depthwise(arguments: Any) -> None:
    """x to the depthwise convolution of SiLU of its instance norm; by plane its mean and 1 / standard deviation."""
    counter, planes, x, taps, bias, statistics, out, channels, height, width = carray(arguments, (10,))
    size = height * width
    padded, sums, active = surrounded_room(height, width), sums_room(width), room(size)
    i = taken(counter)
    while i < planes:
        plane, seen, channel = block(x, i, size), block(statistics, i, 3), i % channels
        mean, scale = mean_and_scale(plane)
        surround_active(plane, mean, scale, width, active, padded)
        of_channel, start = block(taps, channel, TAPS * TAPS), block(bias, channel, 1)[0]
        filtered(padded, width, of_channel, start, sums, block(out, i, size))
        seen[0], seen[1] = mean, scale
        i = taken(counter)


@kernel
def norm_silu_depthwise_norm_silu(arguments: Any) -> None:
    """`norm_silu_depthwise`, then SiLU of the instance norm, written over x; by plane the result's mean."""
    counter, planes, x, taps, bias, means, channels, height, width = carray(arguments, (9,))
    size = height * width
    padded, sums, between = surrounded_room(height, width), sums_room(width), room(size)
    i = taken(counter)
    while i < planes:
        plane, channel = block(x, i, size), i % channels
        mean, scale = mean_and_scale(plane)
        surround_active(plane, mean, scale, width, between, padded)
        of_channel, start = block(taps, channel, TAPS * TAPS), block(bias, channel, 1)[0]
        filtered(padded, width, of_channel, start, sums, between)
        mean, scale = mean_and_scale(between)
        silu_of_normalised(between, mean, scale, plane)
        block(means, i, 1)[0] = total_of(plane) / f32(size)
        i = taken(counter)


@kernel
def norm_silu_depthwise_gradient(arguments: Any) -> None:
    """Gradients of `norm_silu_depthwise`'s x, and by plane those of its filter and its bias."""
    counter, planes, x, grad, taps, statistics, out, of_taps, channels, height, width = carray(arguments, (11,))
    size = height * width
    padded, behind, sums = surrounded_room(height, width), surrounded_room(height, width), sums_room(width)
    slope, active, rest, flipped = room(size), room(size), room(LANES), room(TAPS * TAPS)
    i = taken(counter)
    while i < planes:
        plane, given, made, seen = block(x, i, size), block(grad, i, size), block(out, i, size), block(statistics, i, 3)
        surround_active_and_slope(plane, seen[0], seen[1], width, active, padded, slope)
        surround(given, width, behind)
        of_filter = block(of_taps, i, TAPS * TAPS + 1)
        taps_gradient(padded, width, height, behind, rest, of_filter)
        of_filter[TAPS * TAPS] = total_of(given)
        flipped[:] = block(taps, i % channels, TAPS * TAPS)[::-1]
        filtered(behind, width, flipped, f32(0.0), sums, made)
        for k in range(size):
            made[k] *= slope[k]
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)
