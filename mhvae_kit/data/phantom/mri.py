"""The MR images: tissue signal, texture, point-spread function, bias field and Rician noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .fields import Grid, smooth_field
from .presets import MRSettings

SEQUENCES = ("t2", "cet1", "flair")


def mr_images(
    rng: np.random.Generator,
    maps: dict[str, np.ndarray],
    contrast: float,
    heterogeneity: np.ndarray,
    fov: np.ndarray,
    grid: Grid,
    settings: MRSettings,
) -> dict[str, np.ndarray]:
    """All sequences of a patient as displayed, uint8 (H, W, D), background 0.

    Args:
        rng: Source of bias fields, texture and noise.
        maps: Share of each tissue in every voxel.
        contrast: The tumour's own draw, moves its T2 and FLAIR signal.
        heterogeneity: Field of variance about 1 in the solid tumour, 0 elsewhere.
        fov: Mask of the fan.
        grid: The voxel grid.
        settings: Signals and what spoils them.
    """
    texture = 1.0 + settings.texture * smooth_field(rng, grid, 4.0)
    images = {}
    for name in SEQUENCES:
        signal = dict(getattr(settings, name))
        if name != "cet1":
            signal = signal | {k: signal[k] + 0.03 * contrast for k in ("tumour", "rim")}
        clean = sum(np.float32(signal[tissue]) * share for tissue, share in maps.items()) * texture
        clean += settings.heterogeneity * heterogeneity
        clean = ndimage.gaussian_filter(clean, settings.blur_mm / grid.spacing_mm, mode="nearest", truncate=3.0)
        clean *= np.exp(settings.bias * smooth_field(rng, grid, 45.0))
        real = clean + settings.noise * rng.standard_normal(clean.shape, dtype=np.float32)
        imaginary = settings.noise * rng.standard_normal(clean.shape, dtype=np.float32)
        images[name] = to_display(np.hypot(real, imaginary), fov)
    return images


def to_display(image: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """8-bit image: smallest to 99.95th percentile of the foreground onto 1..255, background 0.

    Source:
        The rule of the preparation of the authors' public data (minimum and 99.95th percentile over the foreground).
    """
    foreground = image[fov]
    low = foreground.min()
    rank = int(0.9995 * (foreground.size - 1))
    high = np.partition(foreground, rank)[rank]
    scaled = 1.5 + 254.0 * (image - low) / max(high - low, 1e-6)
    return np.where(fov, np.clip(scaled, 1.0, 255.0), 0.0).astype(np.uint8)
