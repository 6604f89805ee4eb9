"""A phantom patient written as a hospital would send it: for the notebook and the tests, with the answer known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mhvae_kit.data import registration
from mhvae_kit.data.coordinates import affine_ras, from_sitk, to_sitk, transform_ras
from mhvae_kit.data.dicom_write import write_mr, write_segmentation, write_ultrasound
from mhvae_kit.data.grid import oriented
from mhvae_kit.data.phantom.atlas import load_atlas
from mhvae_kit.data.phantom.generate import make_images, make_patient
from mhvae_kit.data.phantom.presets import PhantomPreset, get_preset
from mhvae_kit.errors import InputError, explain
from mhvae_kit.files import default_cache_dir

LAYOUTS = ("folder", "remind")
DESCRIPTIONS = {"t2": "3D_AX_T2_SPACE", "cet1": "3D_AX_T1_postcontrast", "flair": "3D_AX_T2_FLAIR"}


def phantom_images(
    case: str, preset: str | PhantomPreset, cache_dir: str | Path | None = None
) -> dict[str, sitk.Image]:
    """Images of a phantom patient as they would leave the machines: MR of the whole block, not only of the fan.

    Args:
        case: Phantom case, such as "phantom-test-000".
        preset: Geometry, by name or itself.
        cache_dir: Where the atlas is kept.
    Returns:
        uint8 images in LPS by kind: "us", the MR sequences, and "tumour" (0 or 1), rows along the beam.
    """
    geometry = get_preset(preset) if isinstance(preset, str) else preset
    patient = make_patient(case, geometry, load_atlas(Path(cache_dir) if cache_dir else default_cache_dir()))
    arrays = make_images(patient, mr_field=np.ones_like(patient.scan.fov))
    del arrays["fov"]  # nobody delivers it
    return {kind: oriented(to_sitk(array, patient.affine, case), "i") for kind, array in arrays.items()}


def known_transform(image: sitk.Image, degrees: tuple[float, ...], shift_mm: tuple[float, ...]) -> sitk.Transform:
    """A rotation about the image's centre and a shift, in LPS: the answer that a registration should find."""
    transform = sitk.Euler3DTransform()
    middle = [(n - 1) / 2 for n in image.GetSize()]
    transform.SetCenter(image.TransformContinuousIndexToPhysicalPoint(middle))
    transform.SetRotation(*np.radians(degrees).tolist())
    transform.SetTranslation(tuple(shift_mm))
    return transform


def moved(image: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """The same voxels at another place: `transform` then maps points of the old place to points of the new one."""
    array, affine = from_sitk(image)
    return to_sitk(array, transform_ras(transform) @ affine)


def write_patient(
    folder: str | Path,
    case: str,
    images: dict[str, sitk.Image],
    *,
    layout: str = "folder",
    transform: sitk.Transform | None = None,
    write_transform: bool = False,
) -> Path:
    """Write one patient in the true formats.

    "folder" gives `us.dcm` (multi-frame), `t2/` and `cet1/` (DICOM series), `flair.nrrd` and `tumour.dcm` (DICOM SEG
    drawn on T2); "remind" gives DICOM only, in folders that say nothing, to be found by its descriptions.

    Args:
        folder: Where the patient's folder goes.
        case: Its id.
        images: From `phantom_images`; MR sequences may be left out.
        layout: "folder" or "remind".
        transform: Where MR lies: maps ultrasound points to MR points; None = in place.
        write_transform: Write it as released files are: it maps MR points to ultrasound points.
    Returns:
        The patient's folder.
    Raises:
        InputError: There is no such layout.
    """
    if layout not in LAYOUTS:
        raise InputError(explain("unknown layout", got=repr(layout), expected=" or ".join(LAYOUTS)))
    place, remind = Path(folder) / case, layout == "remind"
    place.mkdir(parents=True, exist_ok=True)
    there = transform or sitk.AffineTransform(3)
    write_ultrasound(place / ("a1/0001.dcm" if remind else "us.dcm"), images["us"], case=case)
    for number, (role, description) in enumerate(DESCRIPTIONS.items(), start=2):
        if role not in images:
            continue
        image = moved(images[role], there)
        if role == "flair" and not remind:
            sitk.WriteImage(image, str(place / "flair.nrrd"))
            continue
        series = place / (f"b{number}" if remind else role)
        write_mr(series, image, case=case, series=description, number=number)
        if role == "t2" and "tumour" in images:
            mask = {"tumour": moved(images["tumour"], there)}
            name = place / ("c9/0001.dcm" if remind else "tumour.dcm")
            write_segmentation(name, mask, series, series=f"tumor seg - MR ref: {description}")
    if write_transform:
        sitk.WriteTransform(registration.inverse(there), str(place / "transform.tfm"))
    return place


def fan_points(image: sitk.Image, step: int = 97) -> np.ndarray:
    """Every `step`-th point above 0 of an image, (N, 3) in LPS: where a registration's error is measured."""
    indices = np.argwhere(sitk.GetArrayViewFromImage(image) > 0)[::step, ::-1]
    affine = affine_ras(image)
    return (indices @ affine[:3, :3].T + affine[:3, 3]) * np.array([-1.0, -1.0, 1.0])
