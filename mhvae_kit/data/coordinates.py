"""Between nibabel (RAS, array order i, j, k) and SimpleITK (LPS, array order k, j, i): the only place that converts.

World coordinates are in mm. RAS counts to the right, to the front and up; LPS to the left, to the back and up: the same
point has its first two coordinates with the other sign.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from mhvae_kit.data.corners import CORNER_TOLERANCE_MM, corner_distance_mm, corners_mm
from mhvae_kit.errors import DataError, InputError, explain

__all__ = [
    "CORNER_TOLERANCE_MM",
    "FLIP",
    "affine_ras",
    "corner_distance_mm",
    "corners_mm",
    "from_sitk",
    "same_grid",
    "to_sitk",
    "transform_from_ras",
    "transform_ras",
]

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS to LPS and back: it is its own inverse."""


def to_sitk(array: np.ndarray, affine: np.ndarray, name: str = "the image") -> sitk.Image:
    """An array with a nibabel affine as SimpleITK image of the same numbers at the same place.

    Args:
        array: (I, J, K), any type that SimpleITK knows; bool becomes uint8.
        affine: (4, 4), index (i, j, k) to RAS in mm.
        name: What the image is called in errors.
    Raises:
        InputError: Not three-dimensional, or the affine is not (4, 4).
        DataError: The affine is singular or not finite, or sheared by more than 0.01 mm at a corner.
    """
    array, affine = np.asarray(array), np.asarray(affine, dtype=float)
    if array.ndim != 3 or affine.shape != (4, 4):
        got = f"{array.shape} with an affine {affine.shape}"
        raise InputError(explain(f"{name} is not a volume", got=got, expected="(I, J, K) with a (4, 4) affine"))
    direction, spacing = _axes(affine, array.shape, name)
    values = array.astype(np.uint8) if array.dtype == bool else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((FLIP[:3, :3] @ direction).ravel().tolist())
    image.SetOrigin((FLIP[:3, :3] @ affine[:3, 3]).tolist())
    return image


def _axes(affine: np.ndarray, shape: tuple[int, ...], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit axes as columns and spacing in mm of an affine; the nearest right angles, if they are near enough."""
    matrix = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise DataError(
            explain(f"{name} has no usable position in space", got=f"affine {affine.round(4).tolist()}", expected="mm")
        )
    spacing = np.linalg.norm(matrix, axis=0)
    left, _, right = np.linalg.svd(matrix / spacing)
    direction = left @ right
    straight = affine.copy()
    straight[:3, :3] = direction * spacing
    apart = corner_distance_mm(affine, straight, shape)
    if apart > CORNER_TOLERANCE_MM:
        problem = f"the axes of {name} are not at right angles (corners {apart:.2f} mm off)"
        raise DataError(explain(problem, mend="resample it to a grid without shear first"))
    return direction, spacing


def affine_ras(image: sitk.Image) -> np.ndarray:
    """nibabel's affine of a SimpleITK image: index (i, j, k) to RAS in mm, (4, 4)."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return FLIP @ affine


def from_sitk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Array (I, J, K) and nibabel affine of a SimpleITK image.

    Raises:
        InputError: Not three-dimensional.
    """
    if image.GetDimension() != 3:
        raise InputError(explain("the image is not a volume", got=f"{image.GetDimension()}-D", expected="3-D"))
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine_ras(image)


def transform_ras(transform: sitk.Transform) -> np.ndarray:
    """Matrix (4, 4) in RAS of a linear SimpleITK transform, composites included.

    Raises:
        DataError: The transform is not linear.
    """
    if not transform.IsLinear():
        raise DataError(explain("the transform is not linear", got=transform.GetName(), expected="rigid or affine"))
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis, point in enumerate(np.eye(3)):
        matrix[:3, axis] = np.array(transform.TransformPoint(point.tolist())) - matrix[:3, 3]
    return FLIP @ matrix @ FLIP


def transform_from_ras(matrix: np.ndarray) -> sitk.AffineTransform:
    """SimpleITK transform of a (4, 4) matrix between RAS points in mm."""
    lps = FLIP @ np.asarray(matrix, dtype=float) @ FLIP
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether two images have one shape and their corners within 0.01 mm."""
    if first.GetSize() != second.GetSize():
        return False
    return corner_distance_mm(affine_ras(first), affine_ras(second), first.GetSize()) <= CORNER_TOLERANCE_MM
