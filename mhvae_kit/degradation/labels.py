"""Labels as registration would have brought them: true ones moved by an error of known size."""

from __future__ import annotations

from typing import Any

import numpy as np

from mhvae_kit.degradation.anatomical import elastic_px
from mhvae_kit.degradation.geometry import rigid_px, warped
from mhvae_kit.errors import InputError, explain


def propagated(
    labels: np.ndarray, error_mm: float, spacing_mm: float, rng: np.random.Generator, *, deform: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """A patient's label off by a registration error.

    The affine part is a shift, a turn and a change of size; the deformation is what an affine registration leaves
    behind. Their field is scaled so that its root mean square over the true label is the error exactly. With `deform`,
    both parts weigh the same. The field says where the moved label is read, so that over the moved label its size is
    only about the error: in the mean over patients it is, but for a single one of 8 mm it may be twice as large.

    Args:
        labels: (D, H, W) bool.
        error_mm: Root mean square displacement over the true label.
        spacing_mm: Pixel size.
        rng: Source of the draw.
        deform: Whether a deformation is part of it.
    Returns:
        The moved label (D, H, W) bool, and what was drawn.
    Raises:
        InputError: A negative or infinite error, or no tumour.
    """
    if not 0 <= error_mm < np.inf or not labels.any():
        got = f"an error of {error_mm} mm" if labels.any() else "a label without a voxel"
        raise InputError(explain("the label cannot be propagated", got=got, expected="0 mm or more, and a tumour"))
    field = _affine_px(labels.shape, rng)
    parts = {"affine": field}
    if deform:
        parts["deformation"] = elastic_px(labels.shape, 1.0, int(rng.integers(2**31)), 1.0)
    share = error_mm / spacing_mm / np.sqrt(len(parts))
    moved = sum(part * np.float32(share / max(_rms(part, labels), 1e-6)) for part in parts.values())
    moved *= np.float32(error_mm / spacing_mm / max(_rms(moved, labels), 1e-6))
    out = warped(labels.astype(np.float32), moved, order=1) > 0.5
    return out, {"error_mm": float(error_mm), "deform": deform, "rms_mm": _rms(moved, labels) * spacing_mm}


def _affine_px(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """A displacement field of a random shift, turn and change of size, before it is scaled."""
    height = shape[1]
    direction = rng.uniform(0, 2 * np.pi)
    shift = (float(np.sin(direction)), float(np.cos(direction)))
    turn = rigid_px(shape, 0.02 * rng.standard_normal(), shift)
    rows, columns = np.mgrid[0:height, 0 : shape[2]].astype(np.float32)
    size = np.float32(0.02 * rng.standard_normal())
    return turn + size * np.stack([rows - (height - 1) / 2, columns - (shape[2] - 1) / 2])[:, None]


def _rms(field: np.ndarray, labels: np.ndarray) -> float:
    return float(np.sqrt(np.mean((field**2).sum(axis=0)[labels])))
