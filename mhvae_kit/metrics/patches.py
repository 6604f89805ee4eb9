"""Do two images hold the same kinds of small patches, wherever they lie: sliced Wasserstein distance, inside a mask."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from mhvae_kit.errors import InputError, explain
from mhvae_kit.metrics.arrays import ArrayLike, as_masks, paired_images

PATCH_PX = 7
N_DIRECTIONS = 128
N_LEVELS = 2
MAX_PATCHES = 1024

# Burt and Adelson's binomial kernel for image pyramids.
_KERNEL = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
_GREY_LEVELS = 255


def _smooth(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Binomial mean of the masked pixels around each pixel; 0 outside the mask, and nothing outside it counts."""
    total, weight = np.where(masks, images, 0.0), masks.astype(np.float64)
    for axis in (1, 2):
        total = ndimage.convolve1d(total, _KERNEL, axis=axis, mode="constant")
        weight = ndimage.convolve1d(weight, _KERNEL, axis=axis, mode="constant")
    return np.divide(total, weight, out=np.zeros_like(total), where=masks)


def _bands(images: np.ndarray, masks: np.ndarray, n_levels: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Laplacian-like bands of (N, H, W) images with their masks, the finest first, each half the size of the last."""
    bands = []
    for _ in range(n_levels):
        smooth = _smooth(images, masks)
        bands.append((np.where(masks, images - smooth, 0.0), masks))
        images, masks = smooth[:, ::2, ::2], masks[:, ::2, ::2]
    return bands


def _corners(mask: np.ndarray, patch_px: int, max_patches: int, rng: np.random.Generator) -> np.ndarray:
    """Upper left corners (P, 2) of patches that lie whole inside a mask (H, W), at most `max_patches` of them."""
    if min(mask.shape) < patch_px:
        return np.empty((0, 2), dtype=int)
    size = (patch_px, patch_px)
    whole = np.lib.stride_tricks.sliding_window_view(mask, size).all(axis=(-1, -2))
    corners = np.argwhere(whole)
    if len(corners) > max_patches:
        corners = corners[np.sort(rng.choice(len(corners), max_patches, replace=False))]
    return corners


def _projections(image: np.ndarray, corners: np.ndarray, directions: np.ndarray, patch_px: int) -> np.ndarray:
    """Sorted scalar products (D, P) of the patches at `corners` with each direction (D, patch_px ** 2)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (patch_px, patch_px))
    patches = windows[corners[:, 0], corners[:, 1]].reshape(len(corners), -1).astype(np.float32)
    return np.sort(directions @ patches.T, axis=1)


def _band_distance(
    one: np.ndarray, other: np.ndarray, places: np.ndarray, directions: np.ndarray, patch_px: int
) -> float:
    """Sliced Wasserstein-1 distance between the patches of two images (H, W) at the same places."""
    first, second = (_projections(x, places, directions, patch_px) for x in (one, other))
    return float(np.abs(first - second).mean(dtype=np.float64))


def sliced_wasserstein(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
    n_levels: int = N_LEVELS,
    patch_px: int = PATCH_PX,
    n_directions: int = N_DIRECTIONS,
    max_patches: int = MAX_PATCHES,
    seed: int = 0,
) -> np.ndarray:
    """Sliced Wasserstein distance between the patches of an image and those of its target, per image; lower is nearer.

    Both images are split into bands of a Laplacian-like pyramid, each half the size of the one before; what is left
    below the last band, the brightness of tissue, is no texture and is not compared (PSNR does that). In each band the
    7 x 7 patches that lie whole inside the mask are projected on random directions; the distance is the mean absolute
    difference of the sorted projections (Wasserstein-1 on a line), averaged over directions. It is divided by the
    standard deviation of the target's band, so that all bands count alike, and averaged over bands. 0 for identical
    images; two speckle draws of one kind are near, a blurred one is not. Where a patch lies does not matter.

    Unlike the paper, which compares two sets of thousands of photographs: one image against one, no patch reaches out
    of the mask, nor does the smoothing, and both sides are divided by the target's deviation, not each by its own, so
    that lost contrast counts.

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W), NumPy or torch.
        target: As many images of the same size.
        data_range: Length of the interval in which the values lie. Its 255th part, the step of an 8-bit image, bounds
            the divisor from below.
        mask: Where patches may lie: same shape, or one (H, W) mask for all. None takes the full frame. A band in which
            no whole patch fits is left out, which depends on the mask alone, so all methods are judged by the same.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
        n_levels: Number of bands.
        patch_px: Side of a patch.
        n_directions: Number of random directions.
        max_patches: Patches per band; from more, so many are drawn, at the same places in both images.
        seed: Of the local generator of directions and places: every call with the same seed uses the same.
    Returns:
        Float array (N,), in standard deviations of the target's bands.
    Raises:
        InputError: See `paired_images` and `as_masks`; a target that is constant inside the mask, a mask too thin for
            one patch, or settings that are not whole numbers above 0.
    Source:
        T. Karras et al., Progressive growing of GANs, ICLR 2018, section 5; J. Rabin et al., Wasserstein barycenter and
        its application to texture mixing, SSVM 2011.
    """
    settings = {"n_levels": n_levels, "patch_px": patch_px, "n_directions": n_directions, "max_patches": max_patches}
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(explain(f"{name} is not usable", got=repr(value), expected="a whole number of at least 1"))
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    masks = as_masks(mask, first.shape)
    check_textured(second, masks)
    # The step of an 8-bit image, rounded to, leaves this deviation; a target without a band would divide by 0.
    floor = float(data_range) / _GREY_LEVELS / math.sqrt(12.0)
    directions = np.random.default_rng(seed).normal(size=(n_directions, patch_px * patch_px))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    bands = [list(zip(*_bands(x, masks, n_levels), strict=True)) for x in (first, second)]
    scores = []
    for index in range(len(first)):
        distances = []
        for level, (one, other, inside) in enumerate(zip(bands[0][0], bands[1][0], bands[1][1], strict=True)):
            places = _corners(inside[index], patch_px, max_patches, np.random.default_rng([seed, level]))
            if len(places):
                spread = math.hypot(float(other[index][inside[index]].std()), floor)
                distances.append(_band_distance(one[index], other[index], places, directions, patch_px) / spread)
        if not distances:
            raise InputError(
                explain(
                    "mask is too thin for patches",
                    got=f"no patch of {patch_px} x {patch_px} px inside it in image {index}",
                    expected="a mask that holds at least one",
                    mend="Leave such slices out",
                )
            )
        scores.append(float(np.mean(distances)))
    return np.array(scores)


def check_textured(target: np.ndarray, masks: np.ndarray) -> None:
    """Refuse targets (N, H, W) without any structure inside their masks: a slice that is all background has none.

    Raises:
        InputError: Names the first such image.
    """
    inside = np.where(masks, target, np.nan)
    flat = np.nanmax(inside, axis=(1, 2)) - np.nanmin(inside, axis=(1, 2)) <= 0
    if flat.any():
        index = int(flat.argmax())
        value = float(target[index][masks[index]][0])
        raise InputError(
            explain(
                "target is constant inside the mask, as a slice of background is",
                got=f"{value:g} everywhere in {int(flat.sum())} of {len(target)} images, the first is image {index}",
                expected="an image with texture",
                mend="Leave such slices out",
            )
        )
