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
from mhvae_kit.kernels.activations import soft_clamped
from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    exponential,
    f32,
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
def _place(item: int, size: int) -> tuple[int, int, int]:
    """The image that an item lies in, its first value there, and how many they are."""
    runs = (size + RUN - 1) // RUN
    first = item % runs * RUN
    return item // runs, first, min(RUN, size - first)


@exactly
def _four_parts(
    places: np.ndarray, image: int, first: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_part` of four tensors, from their addresses and strides in turns."""
    return (
        _part(places[0], places[1], image, first, n),
        _part(places[2], places[3], image, first, n),
        _part(places[4], places[5], image, first, n),
        _part(places[6], places[7], image, first, n),
    )


@exactly
def _four_results(
    out: int, size: int, images: int, image: int, first: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_part` of the first four of tensors that lie behind each other."""
    return (
        _part(out, size, image, first, n),
        _part(out, size, images + image, first, n),
        _part(out, size, 2 * images + image, first, n),
        _part(out, size, 3 * images + image, first, n),
    )


@exactly
def _add_factor(mean: np.ndarray, log_std: np.ndarray, power: float, weights: np.ndarray, weighted: np.ndarray) -> None:
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
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        mean, log_std = _part(out_mean, size, image, first, some), _part(out_log_std, size, image, first, some)
        mean[:], log_std[:] = f32(0.0), f32(0.0)
        for k in range(n):
            _add_factor(
                _part(factors[4 * k], factors[4 * k + 1], image, first, some),
                _part(factors[4 * k + 2], factors[4 * k + 3], image, first, some),
                f32(power),
                log_std,
                mean,
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
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
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
def _nats(parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> float:
    q_mean, q_log_std, p_mean, p_log_std = parts
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
    counter, items, size, out = carray(arguments, (4,))
    places = carray(arguments, (12,))[4:]
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        block(out, i, 1)[0] = _nats(_four_parts(places, image, first, some))
        i = taken(counter)


@exactly
def _nats_gradient(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    behind: float,
    out: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    q_mean, q_log_std, p_mean, p_log_std = parts
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
    counter, items, size, images, behind, out = carray(arguments, (6,))
    places = carray(arguments, (14,))[6:]
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        made = _four_results(out, size, images, image, first, some)
        _nats_gradient(_four_parts(places, image, first, some), block(behind, image, 1)[0], made)
        i = taken(counter)


@summing
def _sampled_nats(parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], value: np.ndarray) -> float:
    q_mean, q_log_std, p_mean, p_log_std = parts
    nats = f32(0.0)
    for i in range(len(value)):
        of_q = (value[i] - q_mean[i]) * exponential(-q_log_std[i])
        of_p = (value[i] - p_mean[i]) * exponential(-p_log_std[i])
        nats += f32(0.5) * (of_p * of_p - of_q * of_q) + (p_log_std[i] - q_log_std[i])
    return nats


@kernel
def gaussian_log_ratio(arguments: Any) -> None:
    """log q(value) - log p(value) of each run of values, (B, runs)."""
    counter, items, size, out = carray(arguments, (4,))
    places = carray(arguments, (14,))[4:]
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        value = _part(places[8], places[9], image, first, some)
        block(out, i, 1)[0] = _sampled_nats(_four_parts(places, image, first, some), value)
        i = taken(counter)


@exactly
def _sampled_nats_gradient(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    value: np.ndarray,
    behind: float,
    out: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    of_value: np.ndarray,
) -> None:
    q_mean, q_log_std, p_mean, p_log_std = parts
    of_q_mean, of_q_log_std, of_p_mean, of_p_log_std = out
    for i in range(len(value)):
        q_inverse, p_inverse = exponential(-q_log_std[i]), exponential(-p_log_std[i])
        of_q, of_p = (value[i] - q_mean[i]) * q_inverse, (value[i] - p_mean[i]) * p_inverse
        of_q_mean[i] = behind * of_q * q_inverse
        of_q_log_std[i] = behind * (of_q * of_q - f32(1.0))
        of_p_mean[i] = -(behind * of_p * p_inverse)
        of_p_log_std[i] = behind * (f32(1.0) - of_p * of_p)
        of_value[i] = behind * (of_p * p_inverse - of_q * q_inverse)


@kernel
def gaussian_log_ratio_gradient(arguments: Any) -> None:
    """Gradients of q and p as in `gaussian_divergence_gradient`, and of the value: (5, B, size)."""
    counter, items, size, images, behind, out = carray(arguments, (6,))
    places = carray(arguments, (16,))[6:]
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        made = _four_results(out, size, images, image, first, some)
        value, of_value = (
            _part(places[8], places[9], image, first, some),
            _part(out, size, 4 * images + image, first, some),
        )
        parts, given = _four_parts(places, image, first, some), block(behind, image, 1)[0]
        _sampled_nats_gradient(parts, value, given, made, of_value)
        i = taken(counter)


@exactly
def _draw(mean: np.ndarray, log_std: np.ndarray, noise: np.ndarray, temperature: float, out: np.ndarray) -> None:
    for i in range(len(mean)):
        out[i] = mean[i] + temperature * exponential(log_std[i]) * noise[i]


@kernel
def gaussian_draw(arguments: Any) -> None:
    """mean + temperature * std * noise; temperatures are at an address, one an image."""
    counter, items, size, temperature, out, mean, a, log_std, b, noise, c = carray(arguments, (11,))
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        _draw(
            _part(mean, a, image, first, some),
            _part(log_std, b, image, first, some),
            _part(noise, c, image, first, some),
            block(temperature, image, 1)[0],
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
        image, first, some = _place(i, size)
        soft_clamped(_part(x, size, image, first, some), bound, _part(out, size, image, first, some))
        i = taken(counter)


@kernel
def soft_clamp_gradient(arguments: Any) -> None:
    """The gradient of `soft_clamp`'s x from its result and that of the latter; x may be half of another's channels."""
    counter, items, size, limit, y, a, behind, b, out, c = carray(arguments, (10,))
    bound = block(limit, 0, 1)[0]
    i = taken(counter)
    while i < items:
        image, first, some = _place(i, size)
        values, given, made = (
            _part(y, a, image, first, some),
            _part(behind, b, image, first, some),
            _part(out, c, image, first, some),
        )
        for k in range(some):
            share = values[k] / bound
            made[k] = given[k] * (f32(1.0) - share * share)
        i = taken(counter)
