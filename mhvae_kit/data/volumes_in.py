"""Reading one volume from NIfTI, NRRD, MetaImage or DICOM, and refusing what cannot be meant.

Everything becomes a `SimpleITK.Image` in mm; `read_volume` looks at the name and at the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from mhvae_kit.data.coordinates import affine_ras, to_sitk
from mhvae_kit.data.dicom import is_dicom, read_dicom
from mhvae_kit.errors import DataError, MissingError, explain

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
SPACING_MM = (0.02, 20.0)
EXTENT_MM = (5.0, 1000.0)


@dataclass(frozen=True)
class SourceVolume:
    """One volume as it was found.

    Attributes:
        image: Values in their own units, geometry in mm (LPS).
        path: File or folder it was read from.
        uid: SeriesInstanceUID, empty when it is not DICOM.
        description: What the file says it is; the file's name when it says nothing.
        modality: DICOM's modality ("MR", "US", …), empty when it is not DICOM.
    """

    image: sitk.Image
    path: Path
    uid: str = ""
    description: str = ""
    modality: str = ""


def ending(path: Path) -> str:
    """The ending that names a format: ".nii.gz" counts as one."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def read_volume(path: str | Path, *, files: Sequence[Path] = (), label: bool = False) -> SourceVolume:
    """Read a volume of any of the formats above; a folder is one DICOM series.

    Args:
        path: File, or folder of one DICOM series.
        files: The files of one DICOM series, when the folder holds several.
        label: Whether it is a label; only the wording of an error depends on it.
    Raises:
        MissingError: There is nothing.
        DataError: It cannot be read, is 4-D, all zero, not finite, or its size in space cannot be in mm.
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(explain(f"{path} is not there", expected="a NIfTI, NRRD or DICOM file or folder"))
    if files or path.is_dir() or is_dicom(path):
        image, series = read_dicom(path, files)
        found = SourceVolume(image, path, series.uid, series.description, series.modality)
    else:
        found = SourceVolume(_read_file(path), path, description=path.name)
    check_volume(found.image, path, label=label)
    return found


def _read_file(path: Path) -> sitk.Image:
    if ending(path) in NIFTI:
        return _read_nifti(path)
    if ending(path) not in ITK:
        expected = ", ".join((*NIFTI, *ITK)) + " or DICOM"
        raise DataError(
            explain(f"{path} is of no format that is read here", got=path.suffix or "no ending", expected=expected)
        )
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise DataError(_unreadable(path, error)) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        got = f"{image.GetDimension()}-D, {image.GetNumberOfComponentsPerPixel()} values a voxel"
        raise DataError(
            explain(f"{path} is not one volume", got=got, expected="3-D with one value a voxel", mend=_SPLIT)
        )
    return image


_SPLIT = "take out the volume you mean and save it on its own"


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[-200:]
    return explain(f"{path} cannot be read ({reason})", mend="get the file again, it may be truncated")


def _read_nifti(path: Path) -> sitk.Image:
    try:
        image = nib.load(path, mmap=False)
        header = image.header
        values = np.asanyarray(image.dataobj)
    except (
        OSError,
        EOFError,
        ValueError,
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
    ) as error:
        raise DataError(_unreadable(path, error)) from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise DataError(explain(f"{path} is not one volume", got=values.shape, expected="(I, J, K)", mend=_SPLIT))
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        mend = "scale its affine to mm and set the unit, for example with nibabel's header.set_xyzt_units('mm')"
        raise DataError(explain(f"{path} is not in mm", got=f"unit {unit}", expected="mm", mend=mend))
    if not (header["qform_code"] or header["sform_code"]):
        mend = "copy the affine from the file it was made from"
        raise DataError(explain(f"{path} does not say where it lies", got="no sform and no qform", mend=mend))
    kept = values if values.dtype in (np.uint8, np.int16, np.uint16, np.int32) else values.astype(np.float32)
    return to_sitk(kept, image.affine, str(path))


def check_volume(image: sitk.Image, path: Path, *, label: bool = False) -> None:
    """Refuse a volume whose size cannot be in mm, or whose values are all the same or not finite.

    Raises:
        DataError: Names the file and what is wrong with it.
    """
    spacing, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    extent = spacing * size
    if (size < 2).any():
        raise DataError(explain(f"{path} is a single slice", got=tuple(size.tolist()), expected="a volume"))
    wrong = (spacing < SPACING_MM[0]) | (spacing > SPACING_MM[1]) | (extent < EXTENT_MM[0]) | (extent > EXTENT_MM[1])
    if wrong.any():
        got = f"spacing {_numbers(spacing)}, size {_numbers(extent)}"
        hint = "it looks as if it were in metres" if (extent < 1).all() else "check its unit"
        expected = f"mm: voxels of {SPACING_MM[0]:g} to {SPACING_MM[1]:g}, {EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} in all"
        raise DataError(
            explain(f"{path} cannot be in mm", got=got, expected=expected, mend=f"{hint}; scale its affine")
        )
    affine_ras(image)
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            explain(f"{path} has values that are NaN or infinite", mend="replace them, outside tissue by 0")
        )
    if values.min() == values.max():
        what = "label is empty" if label else "volume is empty"
        mend = "leave the file out if there is nothing to see" if label else "get or export it again"
        raise DataError(explain(f"the {what}: {path}", got=f"{values.min():g} in every voxel", mend=mend))


def _numbers(values: np.ndarray) -> str:
    return " x ".join(f"{v:.4g}" for v in values)
