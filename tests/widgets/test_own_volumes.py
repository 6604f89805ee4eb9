"""A reader's own NIfTI volumes: fitted to the model in stated steps, or refused by name."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mhvae_kit.data.nifti import eight_bit, fitted
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.widgets import LevelExplorer, SynthesisExplorer
from mhvae_kit.widgets.sources import NiftiVolumes


@pytest.fixture
def nifti(tmp_path):
    """Write a volume as NIfTI and return its path."""

    def write(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.diag([0.5, 0.5, 2.0, 1.0]) if affine is None else affine), path)
        return path

    return write


def test_8_bit_volumes_of_the_models_size_are_taken_as_they_are(model, nifti, explorer, phantom):
    paths = {m: nifti(m, phantom.volume("test-0", m)) for m in ("us", "t2")}
    own = SynthesisExplorer.from_nifti(paths, model, fov=nifti("fov", phantom.volume("test-0", "fov")))
    assert np.array_equal(own.image_of(), explorer.image_of())
    assert "in fan" in own.caption.value and "pixels 0.5 × 0.5 mm" in own.caption.value
    own.close()


def test_one_image_alone_has_no_truth_and_says_so(model, nifti, phantom):
    path = nifti("t2", phantom.volume("test-0", "t2"))
    own = SynthesisExplorer.from_nifti({"t2": path}, model)
    assert own.state["observed"] == ["t2"] and "PSNR" not in own.caption.value
    assert own.panels({**own.state, "difference": True})[-1].title == "no truth to compare"
    own.close()


def test_without_a_mask_scores_are_of_the_full_frame(model, nifti, phantom):
    paths = {m: nifti(m, phantom.volume("test-0", m)) for m in ("us", "t2")}
    own = LevelExplorer.from_nifti({"a": paths, "b": paths}, model, draws=2, action="swap")
    assert own.state["donor"] == "b" and own.slices.fov("a", 0) is None
    own.close()
    assert "full frame" in SynthesisExplorer.from_nifti(paths, model).caption.value


def test_other_sizes_are_cut_or_filled_about_the_centre_and_it_is_said(nifti):
    array = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)
    volumes = NiftiVolumes({"a": {"t2": nifti("t2", array)}}, (16, 16))
    volume = volumes.volume("a", "t2")
    assert volume.shape == (16, 16, 3)
    assert np.array_equal(volume[:, 3:13], array[2:18]) and not volume[:, :3].any() and not volume[:, 13:].any()
    assert "16 × 16 about the centre of 20 × 10" in volumes.notes["a"]


def test_the_axes_of_a_volume_can_be_named(nifti):
    array = np.zeros((3, 16, 16), np.uint8)
    array[1, 2, 5] = 7
    volumes = NiftiVolumes({"a": {"t2": nifti("t2", array)}}, (16, 16), axes=(1, 2, 0))
    assert volumes.volume("a", "t2")[2, 5, 1] == 7
    assert volumes.spacing_mm == (0.5, 2.0)


def test_other_intensities_are_mapped_from_the_smallest_to_the_last_percentile():
    array = np.zeros((4, 4, 4), np.float32)
    array[1:3] = np.linspace(100, 900, 32).reshape(2, 4, 4)
    mapped = eight_bit(array, "x")
    assert mapped[0].max() == 0 and mapped[1:3].min() == 1 and mapped[1:3].max() == 255
    assert mapped.dtype == np.uint8 and (np.diff(mapped[1:3].ravel().astype(int)) >= 0).all()


def test_fitting_leaves_a_volume_of_the_right_size_alone():
    array = np.random.default_rng(0).integers(0, 255, (4, 6, 2))
    assert np.array_equal(fitted(array, (4, 6)), array)


def test_what_is_no_usable_volume_is_named(model, nifti, tmp_path):
    good = nifti("good", np.ones((16, 16, 3), np.uint8))
    moved = np.diag([0.5, 0.5, 2.0, 1.0])
    moved[0, 3] = 1.0
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(good.read_bytes()[:60])
    wrong: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "absent.nii", MissingError, "absent.nii is not there"),
        (broken, DataError, "broken.nii.gz cannot be read"),
        (nifti("short", np.ones((16, 16, 2), np.uint8)), DataError, "short.nii.gz does not lie on the grid"),
        (nifti("moved", np.ones((16, 16, 3), np.uint8), moved), DataError, "corners 1.00 mm apart"),
        (nifti("flat", np.ones((16, 16), np.uint8)), DataError, "flat.nii.gz is not one volume"),
        (nifti("below", np.full((16, 16, 3), -1, np.int16)), DataError, "below.nii.gz cannot be mapped"),
        (nifti("nan", np.full((16, 16, 3), np.nan, np.float32)), DataError, "NaN or infinity"),
    ]
    for path, kind, sentence in wrong:
        with pytest.raises(kind, match=sentence):
            SynthesisExplorer.from_nifti({"us": good, "t2": path}, model)
    with pytest.raises(InputError, match="no such modality"):
        SynthesisExplorer.from_nifti({"ct": good}, model)
    with pytest.raises(InputError, match="no volume"):
        SynthesisExplorer.from_nifti({}, model)
