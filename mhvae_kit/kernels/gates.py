"""Gates of the channels of maps, from their means or sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, sigmoid, summing, taken


@summing
def _dot(weights: np.ndarray, first: int, values: np.ndarray) -> float:
    total = f32(0.0)
    for k in range(len(values)):
        total += weights[first + k] * values[k]
    return total


@exactly
def _gate(
    means: np.ndarray, squeeze: np.ndarray, squeeze_bias: np.ndarray, excite: np.ndarray, excite_bias: np.ndarray,
    hidden: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Sigmoid of a linear layer of ReLU of a linear layer of the means."""
    for h in range(len(hidden)):
        value = squeeze_bias[h] + _dot(squeeze, h * len(means), means)
        hidden[h] = f32(0.0) if value < f32(0.0) else value
    for c in range(len(out)):
        out[c] = sigmoid(excite_bias[c] + _dot(excite, c * len(hidden), hidden))


@kernel
def last_gate(arguments: Any) -> None:
    """Gates of an image's channels from their sums, (images, channels).

    `sums` are (images, bands, stride), of which the first `around` of each band belong together.
    """
    counter, images, sums, bands, stride, around, pixels, w1, b1, w2, b2, hiddens, out, channels = carray(
        arguments, (14,)
    )
    squeeze, squeeze_bias = block(w1, 0, hiddens * channels), block(b1, 0, hiddens)
    excite, excite_bias = block(w2, 0, channels * hiddens), block(b2, 0, channels)
    means, hidden = np.empty(channels, f32), np.empty(hiddens, f32)
    i = taken(counter)
    while i < images:
        seen = block(sums, i, bands * stride)
        means[:] = f32(0.0)
        for band in range(bands):
            for first in range(band * stride, band * stride + around, channels):
                for c in range(channels):
                    means[c] += seen[first + c]
        for c in range(channels):
            means[c] /= f32(pixels)
        _gate(means, squeeze, squeeze_bias, excite, excite_bias, hidden, block(out, i, channels))
        i = taken(counter)


@kernel
def gate(arguments: Any) -> None:
    """Gates of an image's channels from their means, (images, channels), or with `outputs` filters times them."""
    counter, images, means, w1, b1, w2, b2, hiddens, weight, outputs, out, channels = carray(arguments, (12,))
    squeeze, squeeze_bias = block(w1, 0, hiddens * channels), block(b1, 0, hiddens)
    excite, excite_bias = block(w2, 0, channels * hiddens), block(b2, 0, channels)
    factors, hidden = np.empty(channels, f32), np.empty(hiddens, f32)
    i = taken(counter)
    while i < images:
        seen = block(means, i, channels)
        if outputs:
            _gate(seen, squeeze, squeeze_bias, excite, excite_bias, hidden, factors)
            filters, made = block(weight, 0, outputs * channels), block(out, i, outputs * channels)
            for first in range(0, outputs * channels, channels):
                for c in range(channels):
                    made[first + c] = filters[first + c] * factors[c]
        else:
            _gate(seen, squeeze, squeeze_bias, excite, excite_bias, hidden, block(out, i, channels))
        i = taken(counter)
