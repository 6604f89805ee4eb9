"""Phantom volumes in the formats that patients come in: multi-frame ultrasound, MR series, DICOM segmentation.

For the notebook and the tests: what can be written here with a known answer can be read back and compared. Every file
says that it holds a phantom; none is meant for anything else.
"""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

MULTI_FRAME_BYTE = UID("1.2.840.10008.5.1.4.1.1.7.2")
MR_IMAGE = UID("1.2.840.10008.5.1.4.1.1.4")
PATIENT_NAME = "PHANTOM^NOT A PATIENT"
DATE = "19821225"


def _uid(*parts: object) -> UID:
    """A UID that depends on its parts alone, so that the same call writes the same file."""
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def _dataset(case: str, study: str, series: str, modality: str, number: int, instance: int, sop_class: UID) -> Dataset:
    """The part of a header that all kinds share."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = _uid(case, study, series, instance)
    made.PatientID, made.PatientName, made.PatientBirthDate, made.PatientSex = case, PATIENT_NAME, "", "O"
    made.StudyInstanceUID, made.SeriesInstanceUID = _uid(case, study), _uid(case, study, series)
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = _uid(case), ""
    made.StudyDate = made.SeriesDate = made.ContentDate = DATE
    made.StudyTime = made.SeriesTime = made.ContentTime = "000000"
    made.StudyID, made.AccessionNumber, made.ReferringPhysicianName = study[:16], "", ""
    made.Modality, made.SeriesDescription, made.SeriesNumber, made.InstanceNumber = modality, series, number, instance
    made.Manufacturer, made.ImageComments = "mhvae_kit", "simulated phantom"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    return made


def _geometry(image: sitk.Image) -> tuple[list[float], list[float], np.ndarray]:
    """Orientation, spacing (rows, columns) and slice step of an image in DICOM's order."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    orientation = [*direction[:, 0].tolist(), *direction[:, 1].tolist()]
    across, down, between = image.GetSpacing()
    return orientation, [down, across], direction[:, 2] * between


def _decimal(values: object) -> list[str]:
    """Numbers in DICOM's 16 characters."""
    return [pydicom.valuerep.format_number_as_ds(float(v)) for v in np.asarray(values, dtype=float)]


def write_ultrasound(path: Path, image: sitk.Image, *, case: str, series: str = "US_pre_dura", number: int = 1) -> None:
    """One multi-frame 8-bit file with a position for each frame in its functional groups.

    Args:
        path: The file.
        image: uint8.
        case: PatientID.
        series: SeriesDescription.
        number: SeriesNumber.
    """
    pixels = sitk.GetArrayFromImage(image).astype(np.uint8)
    orientation, spacing, step = _geometry(image)
    made = _dataset(case, "intraop", series, "US", number, 1, MULTI_FRAME_BYTE)
    made.NumberOfFrames, made.Rows, made.Columns = pixels.shape
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.ConversionType = 7, "SYN"
    measures, turn, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _decimal(spacing), _decimal([np.linalg.norm(step)])[0]
    turn.ImageOrientationPatient = _decimal(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    made.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in range(len(pixels)):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _decimal(np.array(image.GetOrigin()) + k * step)
        group.PlanePositionSequence = [position]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    made.PixelData = pixels.tobytes()
    _save(made, path)


def write_mr(folder: Path, image: sitk.Image, *, case: str, series: str, study: str = "preop", number: int = 1) -> None:
    """A series with one file a slice.

    Args:
        folder: Where the files go.
        image: Values from 0 to 65535; stored as 16-bit integers.
        case: PatientID.
        series: SeriesDescription.
        study: Whatever tells the study from the patient's others.
        number: SeriesNumber.
    """
    pixels = np.clip(np.rint(sitk.GetArrayFromImage(image).astype(np.float64)), 0, 65535).astype(np.uint16)
    orientation, spacing, step = _geometry(image)
    for k, plane in enumerate(pixels):
        made = _dataset(case, study, series, "MR", number, k + 1, MR_IMAGE)
        made.Rows, made.Columns = plane.shape
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit = 15
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.ScanningSequence, made.SequenceVariant, made.ScanOptions, made.MRAcquisitionType = "RM", "NONE", "", "3D"
        made.PixelSpacing, made.ImageOrientationPatient = _decimal(spacing), _decimal(orientation)
        made.SliceThickness = _decimal([np.linalg.norm(step)])[0]
        made.ImagePositionPatient = _decimal(np.array(image.GetOrigin()) + k * step)
        made.PixelData = plane.tobytes()
        _save(made, folder / f"{k + 1:04d}.dcm")


def write_segmentation(
    path: Path, masks: dict[str, sitk.Image], source: Path, *, series: str, number: int = 300
) -> None:
    """A DICOM SEG with one segment a mask, drawn on an MR series that `write_mr` wrote; empty slices are left out.

    Args:
        path: The file.
        masks: 0 or 1 on the source's grid, by segment label; they may overlap.
        source: Folder of the series.
        series: SeriesDescription.
        number: SeriesNumber.
    """
    slices = [pydicom.dcmread(file) for file in sorted(source.glob("*.dcm"))]
    pixels = np.stack([sitk.GetArrayFromImage(mask) > 0 for mask in masks.values()], axis=-1).astype(np.uint8)
    tumour = CodedConcept("108369006", "SCT", "Neoplasm")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n + 1,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=tumour,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n, label in enumerate(masks)
    ]
    first = slices[0]
    seg = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=_uid(first.PatientID, series, number),
        series_number=number,
        sop_instance_uid=_uid(first.PatientID, series, number, 1),
        instance_number=1,
        manufacturer="mhvae_kit",
        manufacturer_model_name="phantom",
        software_versions="0",
        device_serial_number="0",
        series_description=series,
        omit_empty_frames=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)


def _save(made: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
