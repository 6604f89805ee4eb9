"""DICOM to volumes: slices of an MR series, and multi-frame ultrasound with its geometry in functional groups.

What DICOM allows and a volume does not is refused by name: files of several series together, a slice that is missing or
there twice, a file that ends early, frames without a position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset

from mhvae_kit.errors import DataError, MissingError, explain

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
GAP_TOLERANCE = 0.05
"""How much two slice distances may differ, as a share of the usual one."""


@dataclass(frozen=True)
class Series:
    """One DICOM series: what its headers say, and its files.

    Attributes:
        uid, study, patient: SeriesInstanceUID, StudyInstanceUID, PatientID.
        modality: "MR", "US", "SEG", …
        description: SeriesDescription.
        number: SeriesNumber, 0 when there is none.
        files: In no particular order.
    """

    uid: str
    study: str
    patient: str
    modality: str
    description: str
    number: int
    files: tuple[Path, ...]


def is_dicom(path: Path) -> bool:
    """Whether a file carries the mark of DICOM."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(path: str | Path) -> list[Path]:
    """DICOM files at or below a path, sorted."""
    path = Path(path)
    if path.is_file():
        return [path] if is_dicom(path) else []
    return sorted(file for file in path.rglob("*") if file.is_file() and is_dicom(file))


def read_header(path: Path, *, pixels: bool = False) -> Dataset:
    """Header of a file, or all of it.

    Raises:
        DataError: It cannot be read or ends early.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, pydicom.errors.InvalidDicomError) as error:
        reason = " ".join(str(error).split())
        mend = "get the file again, it ends early"
        raise DataError(explain(f"{path} cannot be read as DICOM ({reason})", mend=mend)) from error


def find_series(folder: str | Path) -> list[Series]:
    """Every series below a folder, by its SeriesInstanceUID, in the order of study, number and UID.

    Raises:
        MissingError: There is no DICOM file.
    """
    found = series_of(dicom_files(folder))
    if not found:
        raise MissingError(explain(f"there is no DICOM file in {folder}", expected="files of at least one series"))
    return found


def series_of(files: Iterable[Path]) -> list[Series]:
    """The series that files belong to, in the order of study, number and UID."""
    groups: dict[str, tuple[Dataset, list[Path]]] = {}
    for path in files:
        header = read_header(path)
        if header.file_meta.get("MediaStorageSOPClassUID") == MEDIA_DIRECTORY:
            continue  # a DICOMDIR lists files, it is none of them
        if "SeriesInstanceUID" not in header or "Modality" not in header:
            raise DataError(explain(f"{path} belongs to no series", mend="get the file again, it ends early"))
        groups.setdefault(str(header.SeriesInstanceUID), (header, []))[1].append(path)
    found = [
        Series(
            uid,
            str(header.get("StudyInstanceUID", "")),
            str(header.get("PatientID", "")),
            str(header.get("Modality", "")),
            str(header.get("SeriesDescription", "")),
            int(header.get("SeriesNumber") or 0),
            tuple(files),
        )
        for uid, (header, files) in groups.items()
    ]
    return sorted(found, key=lambda s: (s.study, s.number, s.uid))


def read_dicom(path: str | Path, files: Iterable[Path] = ()) -> tuple[sitk.Image, Series]:
    """The volume of one series: a folder of slices, one multi-frame file, or the given files.

    Returns:
        The image, and what the headers say.
    Raises:
        MissingError: There is no DICOM file.
        DataError: Several series, or the series is no volume.
    """
    series = series_of(files) or find_series(path)
    if len(series) > 1:
        got = "; ".join(f"{s.modality} {s.description!r} ({len(s.files)} files)" for s in series[:4])
        mend = "put each series into a folder of its own"
        raise DataError(explain(f"{path} mixes {len(series)} series", got=got, expected="one series", mend=mend))
    return read_series(series[0]), series[0]


def read_series(series: Series) -> sitk.Image:
    """The volume of a series, in mm and LPS; slope and intercept applied.

    Raises:
        DataError: The series is no volume, as the functions below say.
    """
    if series.modality == "SEG":
        what = f"{series.files[0]} is a DICOM segmentation, not an image"
        raise DataError(explain(what, mend="name it as the case's label"))
    headers = [read_header(path, pixels=True) for path in series.files]
    for path, header in zip(series.files, headers, strict=True):
        _check_pixels(path, header)
    if int(headers[0].get("NumberOfFrames") or 1) > 1:
        if len(headers) > 1:
            got = f"{len(headers)} multi-frame files"
            raise DataError(explain(f"series {series.description!r} is not one volume", got=got, expected="one file"))
        return _frames(series.files[0], headers[0])
    return _slices(series, headers)


def _check_pixels(path: Path, header: Dataset) -> None:
    """Refuse a file whose pixels are fewer than its header says; compressed ones are left to their decoder."""
    if "PixelData" not in header:
        raise DataError(explain(f"{path} has no pixels", mend="get the file again, it is no image or ends early"))
    if header.get("SamplesPerPixel", 1) != 1:
        raise DataError(explain(f"{path} is in colour", expected="one value a pixel"))
    if header.file_meta.TransferSyntaxUID.is_compressed:
        return
    frames = int(header.get("NumberOfFrames") or 1)
    expected = int(header.Rows) * int(header.Columns) * frames * int(header.BitsAllocated) // 8
    if len(header.PixelData) < expected:
        got, want = f"{len(header.PixelData)} bytes of pixels", f"{expected}"
        raise DataError(explain(f"{path} is truncated", got=got, expected=want, mend="get the file again"))


def _pixels(path: Path, header: Dataset) -> np.ndarray:
    """Values of a file with slope and intercept, (H, W) or (N, H, W); integers stay integers where they can."""
    try:
        if header.file_meta.TransferSyntaxUID.is_compressed:
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # its decoders know more of them; scaled already
            return values if int(header.get("NumberOfFrames") or 1) > 1 else values[0]
        stored = header.pixel_array
    except (ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[-200:]
        mend = "get the file again, or without compression"
        raise DataError(explain(f"the pixels of {path} cannot be decoded ({reason})", mend=mend)) from error
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    return stored if (slope, intercept) == (1.0, 0.0) else (stored * slope + intercept).astype(np.float32)


def _slices(series: Series, headers: list[Dataset]) -> sitk.Image:
    """A series with one file a slice."""
    name = f"series {series.description!r} in {series.files[0].parent}"
    for path, header in zip(series.files, headers, strict=True):
        if any(key not in header for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
            raise DataError(explain(f"{path} does not say where it lies", expected="position, orientation and spacing"))
    first = headers[0]
    for path, header in zip(series.files, headers, strict=True):
        alike = (header.Rows, header.Columns) == (first.Rows, first.Columns)
        alike = alike and np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3)
        if not (alike and np.allclose(header.PixelSpacing, first.PixelSpacing, atol=1e-4)):
            problem = f"{path} differs in size, spacing or orientation from the other slices"
            raise DataError(explain(problem, mend="leave localisers and other stacks out"))
    positions = np.array([h.ImagePositionPatient for h in headers], dtype=float)
    order, step = stack_order(positions, np.array(first.ImageOrientationPatient, dtype=float), name)
    pixels = np.stack([_pixels(series.files[i], headers[i]) for i in order])
    return _image(pixels, positions[order[0]], np.array(first.ImageOrientationPatient, float), first.PixelSpacing, step)


def _frames(path: Path, header: Dataset) -> sitk.Image:
    """A multi-frame file whose frames say in functional groups where they lie."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    frames = int(header.NumberOfFrames)
    if len(per_frame) != frames:
        got = f"{len(per_frame)} positions for {frames} frames"
        mend = "a cine loop is no volume; export the reconstructed one"
        raise DataError(explain(f"{path} does not say where its frames lie", got=got, expected="one each", mend=mend))

    def values(group: Dataset, names: tuple[str, ...], keys: tuple[str, ...]) -> list[float]:
        for name, key in ((n, k) for n in names for k in keys):
            for source in (group, shared[0]):
                items = source.get(name)
                if items and key in items[0]:
                    return [float(v) for v in items[0][key].value]
        raise DataError(
            explain(f"{path} does not say where its frames lie", got=f"no {keys[0]}", expected="one a frame")
        )

    place = ("PlanePositionSequence", "PlanePositionVolumeSequence")
    turn = ("PlaneOrientationSequence", "PlaneOrientationVolumeSequence")
    at = ("ImagePositionPatient", "ImagePositionVolume")
    along = ("ImageOrientationPatient", "ImageOrientationVolume")
    positions = np.array([values(group, place, at) for group in per_frame])
    orientations = np.array([values(group, turn, along) for group in per_frame])
    spacing = values(per_frame[0], ("PixelMeasuresSequence",), ("PixelSpacing",))
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise DataError(explain(f"the frames of {path} are not parallel", mend="export the reconstructed volume"))
    order, step = stack_order(positions, orientations[0], str(path))
    return _image(_pixels(path, header)[order], positions[order[0]], orientations[0], spacing, step)


def stack_order(positions: np.ndarray, orientation: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Order of parallel slices along their normal, and the step from one to the next.

    Args:
        positions: (N, 3) in mm.
        orientation: Six cosines: along a row, along a column.
        name: What the stack is called in errors.
    Returns:
        Indices (N,), and the step (3,) in mm.
    Raises:
        DataError: A single slice, one that is missing or there twice, or slices that do not lie on one line.
    """
    if len(positions) < 2:
        raise DataError(explain(f"{name} is a single slice", expected="at least two"))
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.argsort(positions @ normal, kind="stable")
    along = (positions @ normal)[order]
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if (gaps < 0.01 * max(usual, 0.01)).any():
        at = along[int(np.argmin(gaps))]
        raise DataError(explain(f"{name} has two slices at one place", got=f"at {at:.2f} mm", mend="remove the copies"))
    wide = np.abs(gaps - usual) > GAP_TOLERANCE * usual
    if wide.any():
        k = int(np.argmax(wide))
        missing = max(round(gaps[k] / usual) - 1, 0)
        what = f"lacks {missing} slice{'s' if missing > 1 else ''}" if missing else "has uneven slices"
        got = f"a gap of {gaps[k]:.2f} mm after slice {k} at {along[k]:.2f} mm, elsewhere {usual:.2f} mm"
        raise DataError(explain(f"{name} {what}", got=got, mend="get the whole series again"))
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    if np.linalg.norm(np.cross(step, normal)) > 0.02 * usual:
        raise DataError(explain(f"the slices of {name} lie askew", mend="straighten the gantry tilt first"))
    return order, step


def _image(
    pixels: np.ndarray, origin: np.ndarray, orientation: np.ndarray, spacing: Iterable[float], step: np.ndarray
) -> sitk.Image:
    """Slices (N, H, W) as image; DICOM's spacing is (between rows, between columns)."""
    between_rows, between_columns = (float(v) for v in spacing)
    thickness = float(np.linalg.norm(step))
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels))
    image.SetSpacing((between_columns, between_rows, thickness))
    across, down = orientation[:3], orientation[3:]
    normal = np.cross(across, down)
    image.SetDirection(np.stack([across, down, normal], axis=1).ravel().tolist())
    image.SetOrigin(np.asarray(origin, dtype=float).tolist())
    return image
