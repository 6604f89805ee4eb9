"""Products, draws and divergences of Gaussians and the soft clamp, forward and backward, in one pass over memory.

What is computed stands in `mhvae_kit.gaussian`. A tensor comes as its address and the floats from one image to the
next, as it may be half of the channels of another; within an image its values lie together. An item is RUN values of
an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import RUN
from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    exponential,
    f32,
    hyperbolic_tangent,
    kernel,
    logarithm,
    summing,
    taken,
)


@exactly
def _part(address: int, stride: int, image: int, first: int, n: int) -> np.ndarray:
    """n values of an image from the first on."""
    return block(address + 4 * (image * stride + first), 0, n)


@exactly
def _add_factor(
    mean: np.ndarray, log_std: np.ndarray, power: float, weights: np.ndarray, weighted: np.ndarray, is_first: bool
) -> None:
    if is_first:
        for i in range(len(mean)):
            weights[i] = exponential(power * log_std[i])
            weighted[i] = weights[i] * mean[i]
    else:
        for i in range(len(mean)):
            weight = exponential(power * log_std[i])
            weights[i] += weight
            weighted[i] += weight * mean[i]


@exactly
def _normalised(weights: np.ndarray, weighted: np.ndarray, power: float) -> None:
    """From the sums to the product's mean and log-std, in place."""
    for i in range(len(weights)):
        weighted[i] = weighted[i] / weights[i]
        weights[i] = logarithm(weights[i]) / power


@kernel
def gaussian_product(arguments: Any) -> None:
    """Mean and log-std of the product of n factors, whose weights are exp(power * log-std)."""
    counter, items, n, power, size, out_mean, out_log_std = carray(arguments, (7,))
    factors = carray(arguments, (7 + 4 * n,))[7:]
    runs = (size + RUN - 1) // RUN
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * RUN
        some = min(RUN, size - first)
        mean, log_std = _part(out_mean, size, image, first, some), _part(out_log_std, size, image, first, some)
        for k in range(n):
            of_mean, mean_stride, of_log_std, log_std_stride = (
                factors[4 * k],
                factors[4 * k + 1],
                factors[4 * k + 2],
                factors[4 * k + 3],
            )
            _add_factor(
                _part(of_mean, mean_stride, image, first, some),
                _part(of_log_std, log_std_stride, image, first, some),
                f32(power),
                log_std,
                mean,
                k == 0,
            )
        _normalised(log_std, mean, f32(power))
        i = taken(counter)


@exactly
def _factor_gradient(
    mean: np.ndarray,
    log_std: np.ndarray,
    power: float,
    product: tuple[np.ndarray, np.ndarray],
    behind: tuple[np.ndarray, np.ndarray],
    of_mean: np.ndarray,
    of_log_std: np.ndarray,
) -> None:
    fused_mean, fused_log_std = product
    behind_mean, behind_log_std = behind
    for i in range(len(mean)):
        share = exponential(power * (log_std[i] - fused_log_std[i]))
        of_mean[i] = share * behind_mean[i]
        of_log_std[i] = share * (power * behind_mean[i] * (mean[i] - fused_mean[i]) + behind_log_std[i])


@kernel
def gaussian_product_gradient(arguments: Any) -> None:
    """Gradients of all factors' means and log-stds, (n, 2, B, size), from the product and those of its two parts."""
    counter, items, n, power, size, images, fused, fused_log_std, behind, behind_log_std, out = carray(arguments, (11,))
    factors = carray(arguments, (11 + 4 * n,))[11:]
    runs = (size + RUN - 1) // RUN
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * RUN
        some = min(RUN, size - first)
        product = _part(fused, size, image, first, some), _part(fused_log_std, size, image, first, some)
        given = _part(behind, size, image, first, some), _part(behind_log_std, size, image, first, some)
        for k in range(n):
            _factor_gradient(
                _part(factors[4 * k], factors[4 * k + 1], image, first, some),
                _part(factors[4 * k + 2], factors[4 * k + 3], image, first, some),
                f32(power),
                product,
                given,
                _part(out, size, 2 * k * images + image, first, some),
                _part(out, size, (2 * k + 1) * images + image, first, some),
            )
        i = taken(counter)


@summing
def _nats(q_mean: np.ndarray, q_log_std: np.ndarray, p_mean: np.ndarray, p_log_std: np.ndarray) -> float:
    nats = f32(0.0)
    for i in range(len(q_mean)):
        log_ratio = q_log_std[i] - p_log_std[i]
        ratio = exponential(log_ratio)
        distance = (q_mean[i] - p_mean[i]) * exponential(-p_log_std[i])
        nats += f32(0.5) * (ratio * ratio + distance * distance - f32(1.0)) - log_ratio
    return nats


@kernel
def gaussian_divergence(arguments: Any) -> None:
    """KL(q || p) of each run of values, (B, runs)."""
    counter, items, size, out, q_mean, a, q_log_std, b, p_mean, c, p_log_std, d = carray(arguments, (12,))
    runs = (size + RUN - 1) // RUN
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * RUN
        some = min(RUN, size - first)
        block(out, i, 1)[0] = _nats(
            _part(q_mean, a, image, first, some),
            _part(q_log_std, b, image, first, some),
            _part(p_mean, c, image, first, some),
            _part(p_log_std, d, image, first, some),
        )
        i = taken(counter)


@exactly
def _nats_gradient(
    q_mean: np.ndarray,
    q_log_std: np.ndarray,
    p_mean: np.ndarray,
    p_log_std: np.ndarray,
    behind: float,
    out: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    of_q_mean, of_q_log_std, of_p_mean, of_p_log_std = out
    for i in range(len(q_mean)):
        ratio = exponential(q_log_std[i] - p_log_std[i])
        variances = ratio * ratio
        inverse = exponential(-p_log_std[i])
        distance = (q_mean[i] - p_mean[i]) * inverse
        of_q_mean[i] = behind * distance * inverse
        of_q_log_std[i] = behind * (variances - f32(1.0))
        of_p_mean[i] = -of_q_mean[i]
        of_p_log_std[i] = behind * (f32(1.0) - variances - distance * distance)


@kernel
def gaussian_divergence_gradient(arguments: Any) -> None:
    """Gradients of q's mean and log-std and of p's, (4, B, size), from those of each image's nats (B)."""
    counter, items, size, images, behind, out, q_mean, a, q_log_std, b, p_mean, c, p_log_std, d = carray(
        arguments, (14,)
    )
    runs = (size + RUN - 1) // RUN
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * RUN
        some = min(RUN, size - first)
        _nats_gradient(
            _part(q_mean, a, image, first, some),
            _part(q_log_std, b, image, first, some),
            _part(p_mean, c, image, first, some),
            _part(p_log_std, d, image, first, some),
            block(behind, image, 1)[0],
            (
                _part(out, size, image, first, some),
                _part(out, size, images + image, first, some),
                _part(out, size, 2 * images + image, first, some),
                _part(out, size, 3 * images + image, first, some),
            ),
        )
        i = taken(counter)


@exactly
def _draw(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray, temperature: float, out: np.ndarray) -> None:
    for i in range(len(mean)):
        out[i] = mean[i] + temperature * exponential(log_std[i]) * noise[i]


@kernel
def gaussian_draw(arguments: Any) -> None:
    """mean + temperature * std * noise; the temperature is a value at an address."""
    counter, items, size, temperature, out, mean, a, log_std, b, noise, c = carray(arguments, (11,))
    runs = (size + RUN - 1) // RUN
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * RUN
        some = min(RUN, size - first)
        _draw(
            _part(mean, a, image, first, some),
            _part(log_std, b, image, first, some),
            _part(noise, c, image, first, some),
            block(temperature, 0, 1)[0],
            _part(out, size, image, first, some),
        )
        i = taken(counter)


@kernel
def soft_clamp(arguments: Any) -> None:
    """limit * tanh(x / limit) of all values; the limit is a value at an address."""
    counter, items, x, limit, out, size = carray(arguments, (6,))
    bound = block(limit, 0, 1)[0]
    i = taken(counter)
    while i < items:
        first = i * RUN
        some = min(RUN, size - first)
        values, made = _part(x, 0, 0, first, some), _part(out, 0, 0, first, some)
        for k in range(some):
            made[k] = bound * hyperbolic_tangent(values[k] / bound)
        i = taken(counter)


@kernel
def soft_clamp_gradient(arguments: Any) -> None:
    """The gradient of `soft_clamp`'s x from its result and that of the latter."""
    counter, items, y, behind, limit, out, size = carray(arguments, (7,))
    bound = block(limit, 0, 1)[0]
    i = taken(counter)
    while i < items:
        first = i * RUN
        some = min(RUN, size - first)
        values, given, made = (
            _part(y, 0, 0, first, some),
            _part(behind, 0, 0, first, some),
            _part(out, 0, 0, first, some),
        )
        for k in range(some):
            share = values[k] / bound
            made[k] = given[k] * (f32(1.0) - share * share)
        i = taken(counter)
