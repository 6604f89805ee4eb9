"""NIfTI volumes of others: opened without being read whole, checked, and refused by name when they are unusable."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import is_full

GRID_TOLERANCE_MM = 0.01
SMALLEST_MM, LARGEST_MM = 0.02, 20.0
"""Voxel sizes outside these are taken for a wrong unit: no scan of a head has them."""
UPPER_QUANTILE = 0.9995
Axes = tuple[int, int, int]
_UNREADABLE = (OSError, EOFError, ImageFileError, HeaderDataError, ValueError, zlib.error)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Turn what a library says about an unreadable file into a sentence that names the file."""
    try:
        yield
    except (DataError, InputError, MissingError):
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and is_full(error):
            raise  # no fault of the file
        mend = "copy or convert it again; it must be a whole .nii or .nii.gz file"
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(explain(f"{path} cannot be read as NIfTI ({reason})", mend=mend)) from error


def open_nifti(path: str | Path, *, whole: bool = False) -> nib.Nifti1Image:
    """Open one volume.

    Args:
        path: A .nii or .nii.gz file.
        whole: Read it too, since a truncated file shows only then.
    Raises:
        MissingError: There is no such file.
        DataError: It cannot be read, or is not one volume (a series over time, a plane, colours).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingError(explain(f"{path} is not there", mend="give the path of a .nii or .nii.gz file"))
    with naming(path):
        image = nib.load(path)
        if whole:
            np.asarray(image.dataobj)
    if not isinstance(image, nib.Nifti1Pair):
        mend = "convert it to .nii.gz"
        raise DataError(explain(f"{path} is not NIfTI", got=type(image).__name__, expected="NIfTI", mend=mend))
    if len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]) or min(image.shape) < 1:
        mend = "cut out one volume, for example with nibabel: image.slicer[..., 0]"
        raise DataError(
            explain(f"{path} is not one volume", got=f"shape {image.shape}", expected="three axes", mend=mend)
        )
    if image.get_data_dtype().kind not in "iuf":
        mend = "convert it to one grey value a voxel"
        raise DataError(explain(f"{path} holds no grey values", got=image.get_data_dtype(), mend=mend))
    return image


def check_grid(path: str | Path, image: nib.Nifti1Image, first: nib.Nifti1Image) -> None:
    """Refuse a volume that does not lie on the grid of the case's first one.

    Raises:
        DataError: The shapes differ, or corners are more than 0.01 mm apart.
    """
    apart = f"shape {image.shape[:3]}, not {first.shape[:3]}" if image.shape[:3] != first.shape[:3] else ""
    if not apart:
        far = [n - 1 for n in first.shape[:3]]
        corners = np.array(np.meshgrid(*[(0, n) for n in far], [1], indexing="ij")).reshape(4, -1)
        distance = float(np.abs((image.affine - first.affine) @ corners).max())
        apart = f"corners {distance:.2f} mm apart" if not distance <= GRID_TOLERANCE_MM else ""
    if apart:
        mend = "resample all volumes of a patient to one grid first"
        raise DataError(explain(f"{path} does not lie on the grid of the first volume", got=apart, mend=mend))


def check_spacing(path: str | Path, image: nib.Nifti1Image) -> np.ndarray:
    """Voxel size in mm along the array's axes, (3,).

    Raises:
        DataError: The affine is singular or not finite, or the size is that of another unit than mm.
    """
    sizes = nib.affines.voxel_sizes(image.affine)
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        mend = "repair its qform or sform, or convert it from DICOM again"
        raise DataError(explain(f"the affine of {path} cannot be inverted", got=image.affine[:3].tolist(), mend=mend))
    unit = image.header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown") or sizes.min() < SMALLEST_MM or sizes.max() > LARGEST_MM:
        got = f"voxels of {' x '.join(f'{s:.3g}' for s in sizes)}, unit {unit}"
        mend = "write its affine in mm"
        expected = f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm"
        raise DataError(explain(f"the voxel size of {path} is in a wrong unit", got=got, expected=expected, mend=mend))
    return sizes


def check_axes(axes: Axes) -> Axes:
    """Which array axes are rows, columns and slices: a permutation of 0, 1, 2."""
    if sorted(axes) != [0, 1, 2]:
        raise InputError(explain("axes are not usable", got=axes, expected="rows, columns, slices: 0, 1 and 2"))
    return (int(axes[0]), int(axes[1]), int(axes[2]))


class LazyVolume:
    """One NIfTI volume whose planes are read when they are asked for.

    A compressed file is unpacked once, into `scratch`: going back and forth in it would unpack it each time.

    Args:
        path: The file.
        axes: Which array axes are rows, columns and slices.
        scratch: Folder for the unpacked copy; the caller removes it.
    Attributes:
        shape: (H, W, D) in the order rows, columns, slices.
        spacing_mm: Size of a voxel, in the same order.
        plain: Whether the file holds 8-bit values as they are.
    Raises:
        MissingError, DataError: As `open_nifti` and `check_spacing`.
    """

    def __init__(self, path: str | Path, axes: Axes, scratch: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.axes = check_axes(axes)
        self.image = open_nifti(self.path)
        self.shape = tuple(int(self.image.shape[a]) for a in self.axes)
        self.spacing_mm = tuple(float(check_spacing(self.path, self.image)[a]) for a in self.axes)
        proxy = self.image.dataobj
        self._slope, self._inter = float(proxy.slope), float(proxy.inter)
        self.plain = self.image.get_data_dtype() == np.uint8 and (self._slope, self._inter) == (1.0, 0.0)
        with naming(self.path):
            self._file = self._unpacked(Path(scratch))
            self._map()  # a file that is too short shows here

    def planes(self, start: int, stop: int) -> np.ndarray:
        """The slices from `start` to `stop`, (n, H, W): 8-bit values as they are, others scaled to float32."""
        with naming(self.path):
            part = np.moveaxis(self._map()[:, :, start:stop], 2, 0)
            if self.plain:
                return np.array(part)
            values = part.astype(np.float32)
            return values if (self._slope, self._inter) == (1.0, 0.0) else values * self._slope + self._inter

    def _map(self) -> np.memmap:
        """A view of the file in the order rows, columns, slices; made anew each time, so that no page stays mapped."""
        proxy = self.image.dataobj
        shape, dtype = self.image.shape[:3], self.image.get_data_dtype()
        return np.memmap(self._file, dtype, "r", proxy.offset, shape, order="F").transpose(self.axes)

    def _unpacked(self, scratch: Path) -> Path:
        file = Path(self.image.dataobj.file_like if isinstance(self.image.dataobj.file_like, str) else self.path)
        if file.suffix != ".gz":
            return file
        copy = scratch / f"{len(list(scratch.iterdir()))}.unpacked"
        with gzip.open(file) as packed, open(copy, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        return copy


def fitted(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Cut or fill (with 0) each slice of (H, W, D) round its centre to `size`; nothing is resampled."""
    for axis, wanted in enumerate(size):
        spare = array.shape[axis] - wanted
        if spare > 0:
            start = spare // 2
            array = array.take(range(start, start + wanted), axis=axis)
        elif spare < 0:
            before = -spare // 2
            room = [(0, 0)] * array.ndim
            room[axis] = (before, -spare - before)
            array = np.pad(array, room)
    return np.ascontiguousarray(array)


def eight_bit(array: np.ndarray, name: str) -> np.ndarray:
    """A volume as 8 bit: smallest to 99.95th percentile of the voxels above 0 onto 1..255, background (0) to 0.

    Raises:
        DataError: It holds NaN, infinity or values below 0, or nothing above 0.
    """
    values = np.asarray(array, dtype=np.float32)
    check_values(values, name)
    inside = values > 0
    if not inside.any():
        raise all_background(name)
    low, high = values[inside].min(), np.quantile(values[inside], UPPER_QUANTILE, method="lower")
    return to_eight_bit(values, float(low), float(high))


def to_eight_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` of the values above 0 onto 1..255; background (0) stays 0."""
    scaled = 1.5 + 254.0 * (values - low) / max(high - low, 1e-6)
    return np.where(values > 0, np.clip(scaled, 1, 255), 0).astype(np.uint8)


def check_values(values: np.ndarray, name: str) -> None:
    """Refuse values that are not finite or below 0.

    Raises:
        DataError: Says what was found.
    """
    low, high = float(values.min()), float(values.max())  # NaN and infinity come through
    if np.isfinite(low) and np.isfinite(high) and low >= 0:
        return
    found = f"{low:g} to {high:g}" if np.isfinite(low) and np.isfinite(high) else "NaN or infinity"
    mend = "shift the intensities so that the background, and only it, is 0"
    raise DataError(explain(f"{name} cannot be mapped to 8 bit", got=found, expected="values from 0 up", mend=mend))


def all_background(name: str) -> DataError:
    """The error for a volume without a voxel above 0."""
    mend = "leave this image out: an image that is missing needs no volume"
    return DataError(
        explain(f"{name} cannot be mapped to 8 bit", got="0 in every voxel", expected="values above 0", mend=mend)
    )
