"""Reading the arguments of the metrics: images and masks as checked NumPy batches."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch

from mhvae_kit.errors import InputError, explain

ArrayLike: TypeAlias = "np.ndarray | torch.Tensor"

# Room for float32 rounding at the ends of the declared interval, as a part of the data range.
_RANGE_TOLERANCE = 1e-6


def _numpy(value: ArrayLike, name: str) -> np.ndarray:
    """`value` as an array: tensors are detached, brought to the CPU and, if they are bfloat16, widened."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(
            explain(
                f"{name} does not hold real numbers",
                got=f"{type(value).__name__} of dtype {array.dtype}",
                expected="a NumPy array or a tensor of floats, integers or bools",
            )
        )
    return array


def _batched(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W), (N, H, W) or (N, 1, H, W) as (N, H, W)."""
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.size == 0:
        raise InputError(
            explain(
                f"{name} is not an image or a batch of images",
                got=f"shape {tuple(array.shape)}",
                expected="(H, W), (N, H, W) or (N, 1, H, W), none of them 0",
                mend="Score a volume slice by slice: numpy.moveaxis(volume, 2, 0)",
            )
        )
    return array


def as_images(images: ArrayLike, *, name: str = "image") -> np.ndarray:
    """Check images and return them as float64 (N, H, W).

    Args:
        images: (H, W), (N, H, W) or (N, 1, H, W), of any real dtype, never modified. A volume (H, W, D) cannot be told
            from a batch: move its slices to the front first.
        name: What the images are, for the error message.
    Raises:
        InputError: Wrong shape or dtype; NaN or infinity, with their count and the first image that has them.
    """
    array = _batched(_numpy(images, name), name).astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        bad = ~finite.all(axis=(1, 2))
        raise InputError(
            explain(
                f"{name} holds NaN or infinity",
                got=f"{int((~finite).sum())} such values in {int(bad.sum())} of {len(array)} images, "
                f"the first in image {int(bad.argmax())}",
                expected="finite values",
            )
        )
    return array


def as_masks(mask: ArrayLike | None, shape: tuple[int, int, int], *, name: str = "mask") -> np.ndarray:
    """Check a mask and return it as bool of the given (N, H, W); None selects every pixel.

    Args:
        mask: Same shapes as the images, or one (H, W) mask for all of them. Only 0 and 1 (or False and True) are masks.
        shape: (N, H, W) of the images.
        name: What the mask is, for the error message.
    Raises:
        InputError: Wrong shape, values other than 0 and 1, or no pixel selected in one of the images.
    """
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = _batched(_numpy(mask, name), name)
    if array.shape[1:] != shape[1:] or len(array) not in (1, shape[0]):
        raise InputError(
            explain(
                f"{name} does not fit the images",
                got=f"{tuple(array.shape)} as (N, H, W)",
                expected=f"{tuple(shape)}, or one mask of {tuple(shape[1:])}",
            )
        )
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise InputError(
            explain(
                f"{name} is not a mask",
                got=f"values from {array.min()} to {array.max()}",
                expected="bools, or only 0 and 1",
                mend="Compare it first, for example fov > 0",
            )
        )
    array = np.broadcast_to(array.astype(bool), shape)
    empty = ~array.any(axis=(1, 2))
    if empty.any():
        raise InputError(
            explain(
                f"{name} is empty",
                got=f"no pixel in {int(empty.sum())} of {len(array)} images, the first is image {int(empty.argmax())}",
                expected="at least one pixel in each image",
                mend="Leave out the slices that the mask does not reach",
            )
        )
    return array


def _check_range(images: np.ndarray, low: float, high: float, name: str) -> None:
    """Refuse values outside [low, high]: an image in another range would shift every score without a word."""
    slack = _RANGE_TOLERANCE * (high - low)
    if images.min() < low - slack or images.max() > high + slack:
        raise InputError(
            explain(
                f"{name} lies outside the declared range",
                got=f"values from {images.min():.6g} to {images.max():.6g}",
                expected=f"[{low:g}, {high:g}]",
                mend="Declare the interval with data_range (its length) and low (its lower end)",
            )
        )


def paired_images(
    prediction: ArrayLike, target: ArrayLike, *, data_range: float, low: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Check a prediction and its target and return both as float64 (N, H, W).

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W).
        target: As many images of the same size.
        data_range: Length of the interval in which all values lie, above 0. There is no default, and it is never read
            off the data.
        low: Lower end of that interval. None means -1 when `data_range` is 2 (the kit's images) and 0 otherwise
            (255 for 8-bit images, 1 for images in [0, 1]).
    Raises:
        InputError: Shapes that differ, NaN, values outside the interval, or a data range that is not a positive number.
    """
    # Beside Python's numbers only NumPy's scalars pass; a string or a bool would otherwise be taken for a number.
    if isinstance(data_range, bool) or not isinstance(data_range, (int, float, np.number)):
        raise InputError(explain("data_range is not a number", got=repr(data_range), expected="for example 2.0"))
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(explain("data_range is not usable", got=data_range, expected="a finite number above 0"))
    first, second = as_images(prediction, name="prediction"), as_images(target, name="target")
    if first.shape != second.shape:
        raise InputError(
            explain(
                "prediction and target differ in shape",
                got=f"{tuple(first.shape)} and {tuple(second.shape)} as (N, H, W)",
                expected="the same shape",
            )
        )
    lower = float(low) if low is not None else (-1.0 if data_range == 2 else 0.0)
    _check_range(first, lower, lower + float(data_range), "prediction")
    _check_range(second, lower, lower + float(data_range), "target")
    return first, second
