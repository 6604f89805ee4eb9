"""How far and how finely an image changes: projection, spectrum of a change, its centroid."""

from __future__ import annotations

import numpy as np

from mhvae_kit.errors import InputError, explain
from mhvae_kit.metrics import as_masks, radial_power_spectrum


def towards(images: np.ndarray, start: np.ndarray, end: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How far images have gone from one image to another: 0 at `start`, 1 at `end`, 0.5 as far from both.

    The distance to `start` as a part of both distances, each the root mean square difference inside the mask.

    Args:
        images: (N, H, W).
        start, end: (H, W), which must differ inside the mask.
        mask: (H, W) bool.
    Returns:
        (N,) in [0, 1].
    """
    if not np.any((end - start)[mask]):
        raise InputError(explain("start and end are the same image inside the mask"))
    left, ahead = (np.sqrt(((np.asarray(images) - x)[:, mask] ** 2).mean(1)) for x in (start, end))
    return left / (left + ahead)


def change_spectrum(
    images: np.ndarray, mask: np.ndarray, spacing_mm: float | tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Radial power spectrum of the change between redraws: of their differences from their mean.

    Args:
        images: Redraws (n, H, W), at least 2.
        mask: (H, W) bool, where to look.
        spacing_mm: Pixel size.
    Returns:
        Frequencies (K,) in cycles/mm; power (K,), as in `metrics.radial_power_spectrum`, unbiased for finite n; zeros
        where nothing changes.
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 3 or len(images) < 2:
        raise InputError(explain("a change needs redraws", got=f"shape {images.shape}", expected="(2 or more, H, W)"))
    inside = as_masks(mask, (1, *images.shape[1:]))[0]
    change = (images - images.mean(0)) * np.sqrt(len(images) / (len(images) - 1))
    if np.abs(change[:, inside]).max() < 1e-6:  # below the rounding of float32 images
        probe = np.zeros(images.shape[1:])
        probe[tuple(np.argwhere(inside)[0])] = 1.0
        frequency, power = radial_power_spectrum(probe, mask=inside, spacing_mm=spacing_mm)
        return frequency, np.zeros_like(power[0])
    frequency, power = radial_power_spectrum(change, mask=inside, spacing_mm=spacing_mm)
    return frequency, power.mean(0)


def band_power(frequency: np.ndarray, power: np.ndarray, low: float = 0.0, high: float = np.inf) -> np.ndarray:
    """Variance in a band of radial frequencies, up to a constant: a ring at f holds frequencies in proportion to f.

    Args:
        frequency: (K,) in cycles/mm, evenly spaced.
        power: (..., K).
        low, high: The band, low <= f < high.
    """
    inside = (frequency >= low) & (frequency < high)
    return (np.asarray(power)[..., inside] * frequency[inside]).sum(-1)


def spectral_centroid(frequency: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Mean radial frequency of a change, weighted by the variance at each frequency, in cycles/mm.

    A pattern of period p mm has 1 / p; white noise has 2/3 of the highest frequency. NaN where there is no power.
    """
    total = band_power(frequency, power)
    weighted = (np.asarray(power) * frequency**2).sum(-1)
    return np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
