"""Image metrics: likeness of a prediction to its target, perceptual distance, patches, and statistics of speckle.

Every function works per image: a (H, W) image, or a batch (N, H, W) or (N, 1, H, W), as a NumPy array or a tensor,
gives one value per image. The mask is always an explicit keyword, and so is the data range where one is needed.
"""

from __future__ import annotations

from mhvae_kit.metrics.arrays import ArrayLike, as_images, as_masks, paired_images
from mhvae_kit.metrics.likeness import SSIM_RADIUS_PX, mae, psnr, ssim, ssim_inner, ssim_map
from mhvae_kit.metrics.patches import check_textured, sliced_wasserstein
from mhvae_kit.metrics.perceptual import fetch_lpips_weights, lpips, lpips_available
from mhvae_kit.metrics.speckle import (
    absolute_log_ratio,
    autocorrelation_width,
    envelope_snr,
    linear_envelope,
    local_texture,
    radial_power_spectrum,
    radial_spectrum_distance_db,
    speckle_statistics,
    spectrum_distance_db,
)

__all__ = [
    "SSIM_RADIUS_PX",
    "ArrayLike",
    "absolute_log_ratio",
    "as_images",
    "as_masks",
    "autocorrelation_width",
    "check_textured",
    "envelope_snr",
    "fetch_lpips_weights",
    "linear_envelope",
    "local_texture",
    "lpips",
    "lpips_available",
    "mae",
    "paired_images",
    "psnr",
    "radial_power_spectrum",
    "radial_spectrum_distance_db",
    "sliced_wasserstein",
    "speckle_statistics",
    "spectrum_distance_db",
    "ssim",
    "ssim_inner",
    "ssim_map",
]
