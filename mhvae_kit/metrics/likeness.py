"""How near a prediction is to its target: PSNR, SSIM and mean absolute error, per image, with an explicit mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

from mhvae_kit.errors import InputError, explain
from mhvae_kit.metrics.arrays import ArrayLike, as_masks, paired_images

# The Gaussian window of Wang et al. 2004 is 11 x 11 pixels: its centre and 5 pixels to each side.
SSIM_RADIUS_PX = 5


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of `values` (N, H, W) over the True pixels of `mask` (N, H, W), as (N,)."""
    return np.where(mask, values, 0.0).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))


def mae(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
) -> np.ndarray:
    """Mean absolute error (L1) of each image, in the units of the images.

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W), NumPy or torch.
        target: As many images of the same size.
        data_range: Length of the declared interval, used here only to check the values: 2 for images in [-1, 1].
        mask: Pixels to average over: same shape, or one (H, W) mask for all. None takes the full frame.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
    Returns:
        Float array (N,); a single image gives (1,).
    Raises:
        InputError: See `paired_images` and `as_masks`.
    """
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    return _masked_mean(np.abs(first - second), as_masks(mask, first.shape))


def psnr(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(data_range^2 / mean squared error).

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W), NumPy or torch.
        target: As many images of the same size.
        data_range: Length of the interval in which the values lie: 2 for images in [-1, 1], 255 for 8-bit ones.
        mask: Pixels to average over: same shape, or one (H, W) mask for all. None takes the full frame, where a
            constant background counts as well predicted and raises the score.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
    Returns:
        Float array (N,); a single image gives (1,). Identical images give infinity.
    Raises:
        InputError: See `paired_images` and `as_masks`.
    """
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    mse = _masked_mean((first - second) ** 2, as_masks(mask, first.shape))
    with np.errstate(divide="ignore"):  # an error of 0 is infinity on purpose
        return 20.0 * np.log10(float(data_range)) - 10.0 * np.log10(mse)


def ssim_inner(mask: np.ndarray) -> np.ndarray:
    """Pixels of (N, H, W) masks whose whole 11 x 11 window lies inside both the mask and the frame.

    Only there is the SSIM map free of what is outside the mask. May be empty where the mask is thin.
    """
    size = 2 * SSIM_RADIUS_PX + 1
    return ndimage.minimum_filter(mask.astype(np.uint8), (1, size, size), mode="constant", cval=0).astype(bool)


def ssim_map(prediction: ArrayLike, target: ArrayLike, *, data_range: float, low: float | None = None) -> np.ndarray:
    """SSIM at each pixel (N, H, W), by scikit-image with the settings of Wang et al. 2004.

    Gaussian window of sigma 1.5 px, population covariance, K1 = 0.01, K2 = 0.03. Within 5 px of the frame the map rests
    on mirrored pixels and belongs in no mean. scikit-image is called itself: one batched filter over all images gave
    the same values in the same time, so a second formula to keep right would buy nothing.

    Raises:
        InputError: See `paired_images`; also a side shorter than the 11 px window.
    """
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    size = 2 * SSIM_RADIUS_PX + 1
    if min(first.shape[1:]) < size:
        raise InputError(
            explain(
                "the images are smaller than the SSIM window",
                got=f"{first.shape[1]} x {first.shape[2]} px",
                expected=f"at least {size} x {size} px",
            )
        )
    maps = [
        structural_similarity(
            one,
            other,
            data_range=float(data_range),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1]
        for one, other in zip(first, second, strict=True)
    ]
    return np.stack(maps)


def ssim(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of each image, at most 1.

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W), NumPy or torch; sides of at least 11 px.
        target: As many images of the same size.
        data_range: Length of the interval in which the values lie: 2 for images in [-1, 1].
        mask: Pixels to score: same shape, or one (H, W) mask for all. The SSIM map of the whole images is averaged over
            the mask eroded by the window's 5 px, so that nothing outside the mask takes part. None means the full
            frame, likewise without its outer 5 px, which is scikit-image's own mean.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
    Returns:
        Float array (N,); a single image gives (1,).
    Raises:
        InputError: See `paired_images` and `as_masks`; also a mask too thin to hold one 11 x 11 window.
    Source:
        Z. Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004.
    """
    maps = ssim_map(prediction, target, data_range=data_range, low=low)
    inner = ssim_inner(as_masks(mask, maps.shape))
    thin = ~inner.any(axis=(1, 2))
    if thin.any():
        size = 2 * SSIM_RADIUS_PX + 1
        raise InputError(
            explain(
                "mask is too thin for SSIM",
                got=f"no {size} x {size} window inside it in {int(thin.sum())} of {len(maps)} images, "
                f"the first is image {int(thin.argmax())}",
                expected=f"a mask that holds at least one window of {size} x {size} px",
                mend="Leave such slices out",
            )
        )
    return _masked_mean(maps, inner)
