"""From a case id to its images: draws everything a patient is made of, in one fixed order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from . import anatomy, mri, tumour, ultrasound
from .atlas import Atlas
from .fields import Grid
from .presets import PhantomPreset, USSettings, case_seed, mr_settings, us_settings

N_ORACLE_DRAWS = 64


@dataclass(frozen=True)
class Patient:
    """A patient before any image is made: tissue shares, acoustic maps, geometry and the drawn parameters."""

    case: str
    seed: int
    grid: Grid
    affine: np.ndarray
    maps: dict[str, np.ndarray]
    label: np.ndarray
    scan: ultrasound.Scan
    us_settings: USSettings
    contrast: float
    heterogeneity: np.ndarray
    parameters: dict[str, object]


def _streams(seed: int) -> dict[str, np.random.Generator]:
    """Independent random streams by purpose, so that a change in one part leaves the others as they were."""
    names = ("pose", "deformation", "tumour", "border", "mr", "machine", "speckle", "oracle")
    children = np.random.SeedSequence(seed).spawn(len(names))
    return {name: np.random.Generator(np.random.PCG64(child)) for name, child in zip(names, children, strict=True)}


def make_patient(case: str, preset: PhantomPreset, atlas: Atlas) -> Patient:
    """Draw a patient: geometry, anatomy with tumour, and its acoustic maps.

    Args:
        case: Case id of the preset, for example "phantom-test-003".
        preset: Geometry.
        atlas: The anatomy.
    """
    split, seed = case.split("-")[1], case_seed(case)
    streams = _streams(seed)
    grid = Grid(preset.shape, preset.spacing_mm)
    settings = us_settings(split)
    with threadpool_limits(limits=1):  # the order of sums, hence the bytes, must not depend on the number of threads
        similarity = anatomy.draw_similarity(streams["pose"])
        lesion = tumour.draw_tumour(streams["tumour"])
        pose = anatomy.draw_pose(streams["pose"], atlas, lesion.radius_mm)
        displacement = anatomy.deformation_mm(streams["deformation"], grid)
        pose = anatomy.settle(atlas, pose, displacement, grid)
        distance, offsets = tumour.radial_frame(lesion, pose.tumour_mm, grid)
        points = anatomy.voxel_points(pose, grid) + displacement
        points += tumour.mass_effect(lesion, distance, offsets, pose.axes)
        healthy = anatomy.tissue_maps(atlas, points)
        maps, label, heterogeneity = tumour.tumour_maps(streams["border"], lesion, distance, healthy, grid)
        machine = streams["machine"]
        fan = ultrasound.Fan(float(machine.uniform(28.0, 31.0)), float(machine.uniform(80.0, 89.0)))
        gain_db = float(machine.normal(0.0, 0.5))
        scan = ultrasound.make_scan(maps, lesion.contrast, heterogeneity, gain_db, fan, grid, settings)
    affine = anatomy.affine_mm(pose, similarity, grid)
    parameters = {
        "tumour": lesion.describe() | {"centre_mm": [round(float(v), 3) for v in pose.tumour_mm]},
        "probe": {"face_mni_mm": [round(float(v), 3) for v in pose.face_mm], "gain_db": gain_db},
        "fan": {"half_angle_deg": fan.half_angle_deg, "depth_mm": fan.depth_mm},
        "head": {"scale": similarity.scale, "shift_mm": [float(v) for v in similarity.shift_mm]},
    }
    label = label * scan.fov
    return Patient(case, seed, grid, affine, maps, label, scan, settings, lesion.contrast, heterogeneity, parameters)


def make_images(patient: Patient, mr_field: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All images of a patient, uint8 (H, W, D): the modalities, "tumour" and "fov" (0 or 1).

    Args:
        patient: From `make_patient`.
        mr_field: Where MR is kept, bool (H, W, D), as a scanner keeps more than the fan; None = the fan.
    """
    streams = _streams(patient.seed)
    split = patient.case.split("-")[1]
    fov = patient.scan.fov
    with threadpool_limits(limits=1):
        images = mri.mr_images(
            streams["mr"],
            patient.maps,
            patient.contrast,
            patient.heterogeneity,
            fov if mr_field is None else mr_field,
            patient.grid,
            mr_settings(split),
        )
        images["us"] = ultrasound.ultrasound_image(streams["speckle"], patient.scan, patient.grid, patient.us_settings)
    return images | {"tumour": patient.label.astype(np.uint8), "fov": fov.astype(np.uint8)}


def make_oracle(patient: Patient, n_draws: int = N_ORACLE_DRAWS) -> np.ndarray:
    """Mean of `n_draws` displayed ultrasound images of the same patient, none of them the stored one.

    Returns:
        float32 (H, W, D) in [-1, 1], background exactly -1.
    """
    rng = _streams(patient.seed)["oracle"]
    total = np.zeros(patient.grid.shape, dtype=np.float32)
    with threadpool_limits(limits=1):
        for _ in range(n_draws):
            total += ultrasound.ultrasound_image(rng, patient.scan, patient.grid, patient.us_settings)
    return np.where(patient.scan.fov, total / n_draws / 255.0 * 2.0 - 1.0, -1.0).astype(np.float32)
