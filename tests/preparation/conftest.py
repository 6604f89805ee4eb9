"""A phantom patient in the true formats, written once, and small cases in NIfTI that may be damaged."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mhvae_kit.data.grid import Recipe
from mhvae_kit.preparation import PreparationResult, find_cases, prepare
from mhvae_kit.preparation.made import known_transform, phantom_images, write_patient

CASE = "phantom-001"
RECIPE = Recipe(size_px=64, spacing_mm=1.5)
AFFINE = np.array([[1.0, 0.1, 0, -8], [-0.1, 1.0, 0, 4], [0, 0, 1.2, 20], [0, 0, 0, 1]])
AFFINE[:3, :2] /= np.linalg.norm(AFFINE[:3, 0])


@pytest.fixture(scope="session")
def images():
    """The phantom's images as the machines would deliver them."""
    return phantom_images("phantom-test-000", "smoke")


@pytest.fixture(scope="session")
def known(images):
    """Where MR lies: ultrasound points to MR points."""
    return known_transform(images["us"], (3.0, -2.0, 4.0), (2.0, -1.0, 3.0))


@pytest.fixture(scope="session")
def patients(tmp_path_factory, images, known) -> Path:
    """A folder with one patient: ultrasound, T2, FLAIR, segmentation and the released transform."""
    folder = tmp_path_factory.mktemp("patients")
    chosen = {kind: images[kind] for kind in ("us", "t2", "flair", "tumour")}
    write_patient(folder, CASE, chosen, transform=known, write_transform=True)
    return folder


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory, patients) -> Path:
    """That patient, prepared."""
    folder = tmp_path_factory.mktemp("dataset") / "out"
    result = prepare(find_cases("folder", patients), folder, name="phantom-made", recipe=RECIPE, show_progress=False)
    assert not result.failed
    return folder


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI file in mm."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


@pytest.fixture
def small(tmp_path):
    """A function that writes a small case in NIfTI into a folder of cases and returns that folder."""

    def write(case: str = "P1", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        fan = np.zeros((16, 16, 6), np.uint8)
        fan[3:13, 4:12, 1:] = 1
        tumour = np.zeros_like(fan)
        tumour[6:9, 6:9, 2:4] = 1
        folder = tmp_path / "cases"
        for name, array in (
            ("us", rng.integers(1, 255, fan.shape, dtype=np.uint8) * fan),
            ("t2", rng.integers(1, 900, fan.shape).astype(np.int16)),
            ("tumour", tumour),
        ):
            write_nifti(folder / case / f"{name}.nii.gz", array)
        return folder

    return write


@pytest.fixture
def run(tmp_path):
    """Prepare every case of a folder without registration."""

    def call(folder: Path, output: Path | None = None, **options) -> PreparationResult:
        given = {"name": "made", "recipe": Recipe(size_px=16, spacing_mm=1.0), "show_progress": False, "method": "none"}
        return prepare(find_cases("folder", folder), output or tmp_path / "out", **(given | options))

    return call
