"""DICOM segmentations onto the geometry of the image they were drawn on.

Two traps: empty slices are left out of the file, so its stack is shorter than the image's; and segments may overlap, so
they come as one mask each, never as one map of numbers.
"""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import SimpleITK as sitk

from mhvae_kit.data.coordinates import FLIP, affine_ras, to_sitk
from mhvae_kit.data.dicom import read_header
from mhvae_kit.errors import DataError, explain


def referenced_series(path: str | Path) -> str:
    """SeriesInstanceUID of the image a segmentation was drawn on; empty when the file does not say."""
    items = read_header(Path(path)).get("ReferencedSeriesSequence")
    return str(items[0].SeriesInstanceUID) if items else ""


def read_segments(path: str | Path, source: sitk.Image) -> dict[str, sitk.Image]:
    """Every segment of a DICOM SEG as a mask on the grid of its source image.

    Args:
        path: The file.
        source: The image it was drawn on.
    Returns:
        uint8 masks (0 or 1) by segment label; a label that comes twice gets its number appended.
    Raises:
        DataError: It cannot be read, or none of it lies inside the source image.
    """
    path = Path(path)
    read_header(path)  # says so when the file ends early
    try:
        seg = highdicom.seg.segread(path)
        numbers = [int(n) for n in seg.segment_numbers]
        volume = seg.get_volume(combine_segments=False, rescale_fractional=True, allow_missing_positions=True)
    except (ValueError, RuntimeError, EOFError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            explain(f"{path} cannot be read as DICOM segmentation ({reason})", mend="get it again")
        ) from error
    masks: dict[str, sitk.Image] = {}
    affine = FLIP @ volume.affine  # highdicom's world is DICOM's: LPS
    for channel, number in enumerate(numbers):
        label = str(seg.get_segment_description(number).segment_label)
        mask = (np.asarray(volume.array)[..., channel] > 0.5).astype(np.uint8)
        name = label if label not in masks else f"{label} {number}"
        masks[name] = _onto(to_sitk(mask, affine, str(path)), mask, source)
    if not any(sitk.GetArrayViewFromImage(mask).any() for mask in masks.values()):
        got = (
            f"corner {(affine[:3, 3]).round(1).tolist()} mm, image at {affine_ras(source)[:3, 3].round(1).tolist()} mm"
        )
        mend = "give the image that it was drawn on"
        raise DataError(explain(f"no segment of {path} lies inside its image", got=got, mend=mend))
    return masks


def _onto(stack: sitk.Image, mask: np.ndarray, source: sitk.Image) -> sitk.Image:
    """A stack without its empty slices on the full grid; a single slice gets empty neighbours for resampling."""
    if min(mask.shape) == 1:
        padded = sitk.ConstantPad(stack, [int(n == 1) for n in mask.shape], [int(n == 1) for n in mask.shape], 0)
        return sitk.Resample(padded, source, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return sitk.Resample(stack, source, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
