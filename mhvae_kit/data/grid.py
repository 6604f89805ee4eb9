"""The common grid of a case: cropped to the fan, one spacing in plane, one size, eight bits, and the fan as a mask.

The recipe follows the released preparation of the four-modality model (crop to the non-zero box, 0.5 mm, crop again,
centre to 192 x 192, depth kept; minimum to the 99.95 percentile of the foreground onto 1 to 255).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import SimpleITK as sitk

from mhvae_kit.errors import DataError, InputError, explain

ROWS = ("i", "j")
LABEL_RULES = ("argmax", "nearest")
SIMILAR = 0.2
"""Spacings that differ by less than this share are set to one value; the slice spacing is kept when it differs more."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a case is brought onto its grid. Every field is written into the case's record.

    Attributes:
        size_px: Height and width of a slice.
        spacing_mm: Of a pixel; also of slices whose spacing differs by less than a fifth from the pixels'.
        percentile: Upper end of the 8-bit range over the foreground, in percent.
        rows: Which axis of the file becomes the rows: "j", as DICOM, dcm2niix and Slicer store them, or "i", as this
            kit's own files do.
        labels: "argmax" (each class linearly, then the largest) or "nearest".
    """

    size_px: int = 192
    spacing_mm: float = 0.5
    percentile: float = 99.95
    rows: str = "j"
    labels: str = "argmax"

    def __post_init__(self) -> None:
        wrong = [
            (self.size_px < 8 or int(self.size_px) != self.size_px, "size_px", "a whole number from 8"),
            (not 0.01 <= self.spacing_mm <= 10, "spacing_mm", "0.01 to 10 mm"),
            (not 50 < self.percentile <= 100, "percentile", "above 50, at most 100"),
            (self.rows not in ROWS, "rows", " or ".join(ROWS)),
            (self.labels not in LABEL_RULES, "labels", " or ".join(LABEL_RULES)),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise InputError(explain(f"{name} cannot be used", got=repr(getattr(self, name)), expected=expected))

    def to_dict(self) -> dict:
        """Plain values for a record."""
        return asdict(self)


def oriented(image: sitk.Image, rows: str) -> sitk.Image:
    """The image with its rows along the second axis of the file, as SimpleITK and DICOM have it; "i" swaps the two.

    Nothing moves in space: axes change their order together with their directions.
    """
    return sitk.PermuteAxes(image, [1, 0, 2]) if rows == "i" else image


def foreground_box(image: sitk.Image) -> tuple[list[int], list[int]]:
    """Start and size (i, j, k) of the smallest box that holds all values above 0.

    Raises:
        DataError: There is none.
    """
    inside = sitk.GetArrayViewFromImage(image) > 0
    if not inside.any():
        raise DataError(explain("the reference image has no foreground", expected="values above 0 inside the fan"))
    start, size = [], []
    for axis in (2, 1, 0):
        used = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        start.append(int(used[0]))
        size.append(int(used[-1] - used[0] + 1))
    return start, size


def common_grid(reference: sitk.Image, recipe: Recipe, centre_mm: np.ndarray | None = None) -> sitk.Image:
    """An empty image that says where the voxels of a case lie.

    Args:
        reference: The image whose foreground (the fan) is cropped to; its axes are kept, so nothing is turned.
        recipe: Spacing and size.
        centre_mm: Centre of the slices in LPS instead of the foreground's; depth is then that of the reference.
    Returns:
        uint8 zeros, size (width, height, depth).
    """
    start, size = foreground_box(reference)
    spacing = np.array(reference.GetSpacing())
    in_plane = spacing[:2].mean()
    between = recipe.spacing_mm if abs(spacing[2] - in_plane) <= SIMILAR * in_plane else float(spacing[2])
    target = np.array([recipe.spacing_mm, recipe.spacing_mm, between])
    # A voxel reaches half its size beyond its centre: the box is measured from edge to edge.
    extent = np.array(size) * spacing
    depth = max(round(float(extent[2] / between)), 2)
    number = np.array([recipe.size_px, recipe.size_px, depth])
    middle_index = np.array(start) + (np.array(size) - 1) / 2
    middle = np.array(reference.TransformContinuousIndexToPhysicalPoint(middle_index.tolist()))
    direction = np.array(reference.GetDirection()).reshape(3, 3)
    if centre_mm is not None:
        shift = direction.T @ (np.asarray(centre_mm, dtype=float) - middle)
        middle = middle + direction[:, :2] @ shift[:2]
    grid = sitk.Image([int(n) for n in number], sitk.sitkUInt8)
    grid.SetSpacing(target.tolist())
    grid.SetDirection(reference.GetDirection())
    grid.SetOrigin((middle - direction @ ((number - 1) / 2 * target)).tolist())
    return grid


def resample(image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None) -> sitk.Image:
    """Linear interpolation onto a grid as float32, 0 outside. `transform` maps points of the grid to the image's."""
    floating = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.Resample(floating, grid, transform or sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


def resample_label(
    label: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, rule: str = "argmax"
) -> sitk.Image:
    """A label map onto a grid: nearest, or each class linearly and then the largest; the set of values never grows.

    Args:
        label: Whole numbers, 0 is background.
        grid: Where the voxels lie.
        transform: Maps points of the grid to the label's.
        rule: "argmax" or "nearest".
    Returns:
        The label's own pixel type.
    """
    move = transform or sitk.Transform()
    if rule == "nearest":
        return sitk.Resample(label, grid, move, sitk.sitkNearestNeighbor, 0)
    classes = [int(v) for v in np.unique(sitk.GetArrayViewFromImage(label)) if v != 0]
    shares = [
        sitk.GetArrayFromImage(sitk.Resample(sitk.Cast(label == c, sitk.sitkFloat32), grid, move, sitk.sitkLinear, 0.0))
        for c in classes
    ]
    shares.insert(0, 1.0 - np.sum(shares, axis=0))
    winner = np.array([0, *classes])[np.argmax(shares, axis=0)]
    made = sitk.Cast(sitk.GetImageFromArray(winner.astype(np.int32)), label.GetPixelID())
    made.CopyInformation(grid)
    return made


def to_bytes(
    values: np.ndarray, inside: np.ndarray, percentile: float, name: str = "the image"
) -> tuple[np.ndarray, dict]:
    """Values inside a mask to 1..255, outside to 0: minimum to 1, the percentile and all above it to 255.

    Args:
        values: Any shape.
        inside: Mask of that shape; voxels outside become 0.
        percentile: Upper end, in percent of the foreground (voxels above 0 inside).
    Returns:
        uint8 array, and {"low", "high"}: the two values that became 1 and 255.
    Raises:
        DataError: There is no foreground inside, or it has one value only.
    """
    foreground = values[inside & (values > 0)]
    if foreground.size == 0:
        mend = "check that it overlaps the reference, and its transform"
        raise DataError(explain(f"{name} has nothing inside the fan", mend=mend))
    low, high = float(foreground.min()), float(np.percentile(foreground, percentile))
    if not high > low:
        raise DataError(explain(f"{name} has one value only inside the fan", got=low, expected="an image"))
    scaled = (np.clip(values, low, high) - low) / (high - low)
    shown = np.where(inside, 1 + np.rint(scaled * 254), 0).astype(np.uint8)
    return shown, {"low": low, "high": high}


def field_of_view(reference: np.ndarray) -> np.ndarray:
    """The fan of an ultrasound volume (N, H, W): voxels above 0, with the dark spots inside each slice filled.

    Blood and shadows may be exactly 0 inside the fan; they belong to it.
    """
    from scipy.ndimage import binary_fill_holes, label

    inside = np.zeros(reference.shape, dtype=bool)
    for k, plane in enumerate(reference > 0):
        if not plane.any():
            continue
        pieces, count = label(plane)
        largest = plane if count < 2 else pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        inside[k] = binary_fill_holes(largest)
    return inside
