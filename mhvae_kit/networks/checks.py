"""What a model accepts, and what it says when something else is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mhvae_kit.config import Level, MHVAEConfig, Modality
from mhvae_kit.errors import InputError, explain

Temperature = float | Mapping[Level, float]
RANGE_TOLERANCE = 1e-4  # bfloat16 and resampling leave images this far outside [-1, 1] at most


def check_images(config: MHVAEConfig, images: Mapping[Modality, Tensor]) -> int:
    """Check a dict of images against a config and return the batch size.

    Raises:
        InputError: No image, an unknown modality, wrong shape, type, range, or a value that is not finite.
    """
    if not images:
        raise InputError(explain("no image was given", expected="at least one of " + ", ".join(config.modalities)))
    sizes = {}
    for modality, image in images.items():
        if modality not in config.modalities:
            raise InputError(
                explain("unknown modality", got=repr(modality), expected="one of " + ", ".join(config.modalities))
            )
        sizes[modality] = _check_image(modality, image, config.image_size)
    if len(set(sizes.values())) != 1:
        raise InputError(explain("the modalities differ in batch size", got=sizes, expected="the same for all"))
    return next(iter(sizes.values()))


def _check_image(modality: Modality, image: Tensor, size: tuple[int, int]) -> int:
    wanted = f"a float tensor of shape (B, 1, {size[0]}, {size[1]})"
    if not isinstance(image, Tensor):
        raise InputError(explain(f"image {modality!r} is not a tensor", got=type(image).__name__, expected=wanted))
    if image.ndim != 4 or tuple(image.shape[1:]) != (1, *size) or image.shape[0] == 0:
        raise InputError(explain(f"image {modality!r} has the wrong shape", got=tuple(image.shape), expected=wanted))
    if not image.is_floating_point():
        raise InputError(
            explain(
                f"image {modality!r} has the wrong type",
                got=image.dtype,
                expected=wanted + " in [-1, 1]",
                mend="map 8-bit values with x / 255 * 2 - 1",
            )
        )
    low, high = (float(v) for v in torch.aminmax(image.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(explain(f"image {modality!r} holds NaN or infinity", expected="finite values in [-1, 1]"))
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InputError(
            explain(
                f"image {modality!r} is out of range",
                got=f"[{low:.4g}, {high:.4g}]",
                expected="[-1, 1], background exactly -1",
                mend="map 8-bit values with x / 255 * 2 - 1",
            )
        )
    return image.shape[0]


def check_subset(known: tuple[Modality, ...], names: Iterable[Modality], what: str) -> tuple[Modality, ...]:
    """Return `names` as a tuple of distinct members of `known`, or say which is not one."""
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [n for n in names if n not in known]
    if unknown or len(set(names)) != len(names):
        raise InputError(
            explain(
                f"{what} names a modality that is not there or twice", got=names, expected="some of " + ", ".join(known)
            )
        )
    return names


def check_rows(known: tuple[Modality, ...], rows: Mapping[Modality, Tensor], batch_size: int) -> dict[Modality, Tensor]:
    """Return which rows observe which modality as a dict, or say what does not fit.

    Raises:
        InputError: A modality that is not in `known`, or a mask that is not bool (B,).
    """
    check_subset(known, rows, "observed")
    for modality, mask in rows.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (batch_size,):
            found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(
                explain(
                    f"the rows that observe {modality!r} are no mask",
                    got=found,
                    expected=f"a bool tensor of shape ({batch_size},)",
                )
            )
    return dict(rows)


def temperatures(config: MHVAEConfig, given: Temperature | Sequence[Temperature], n: int) -> list[dict[Level, float]]:
    """One temperature per level for each of n subsets: from one for all or a list, each a number or a dict by level.

    Levels that a dict does not name get 1.

    Raises:
        InputError: Not as many as subsets, one that is no number of 0 or more, or an unknown level.
    """
    each = [given] * n if isinstance(given, Mapping) or not isinstance(given, Sequence) else list(given)
    if len(each) != n:
        raise InputError(
            explain("temperatures do not fit the subsets", got=f"{len(each)} for {n}", expected="one, or one a subset")
        )
    return [_by_level(config, temperature) for temperature in each]


def _by_level(config: MHVAEConfig, temperature: Temperature) -> dict[Level, float]:
    given = temperature if isinstance(temperature, Mapping) else dict.fromkeys(config.level_names, temperature)
    tau = dict.fromkeys(config.level_names, 1.0)
    for level, value in given.items():
        config.latent_shape(level)
        if not (math.isfinite(value) and value >= 0):
            raise InputError(explain(f"the temperature of {level} must be 0 or more", got=value))
        tau[level] = float(value)
    return tau


def check_levels(
    config: MHVAEConfig, given: Mapping[Level, Tensor] | None, rows: int, what: str
) -> dict[Level, Tensor]:
    """Check tensors keyed by level against the latents' shapes for a batch of `rows` (1 is broadcast)."""
    checked = {}
    for level, value in (given or {}).items():
        shape = config.latent_shape(level)
        if tuple(value.shape[1:]) != shape or value.shape[0] not in (1, rows):
            raise InputError(
                explain(f"{what}[{level!r}] has the wrong shape", got=tuple(value.shape), expected=(rows, *shape))
            )
        checked[level] = value
    return checked
