"""Bad input: each is refused by name with the mend, the other cases are finished, and nothing half-written stays."""

from __future__ import annotations

import errno
import shutil

import nibabel as nib
import numpy as np
import pytest

from mhvae_kit.data import load_prepared
from mhvae_kit.data.phantom import store
from mhvae_kit.errors import DataError, RunError
from mhvae_kit.preparation import find_cases
from mhvae_kit.preparation.prepare import refuse_failed


def stored(folder, name):
    image = nib.load(folder / name)
    return np.asarray(image.dataobj), image.affine


def save(folder, name, array, affine):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(folder / name)


def refused(run, folder, case="P1") -> str:
    """The reason a case is refused; it must have left nothing behind."""
    result = run(folder)
    assert list(result.failed) == [case] and case not in result.done
    left = [p.name for p in result.folder.iterdir() if p.name.startswith(".tmp") or p.name == case]
    assert left == []
    with pytest.raises(DataError, match=f"cases could not be prepared.*\n  {case}: "):
        refuse_failed(result)
    return result.failed[case]


def test_one_bad_case_does_not_stop_the_others(small, run):
    folder = small("P1")
    small("P2", seed=1)
    array, affine = stored(folder / "P1", "t2.nii.gz")
    save(folder / "P1", "t2.nii.gz", array * 0, affine)
    assert "volume is empty" in refused(run, folder)
    assert load_prepared(folder.parent / "out").case_ids() == ["P2"]
    assert "P1" in (folder.parent / "out" / "failed.json").read_text()


def test_a_mended_case_is_taken_in(small, run):
    folder = small("P1")
    small("P2", seed=1)
    good = (folder / "P1" / "t2.nii.gz").read_bytes()
    (folder / "P1" / "t2.nii.gz").write_bytes(good[:100])
    refused(run, folder)
    (folder / "P1" / "t2.nii.gz").write_bytes(good)
    result = run(folder)
    assert result.done == ["P1", "P2"] and not (result.folder / "failed.json").exists()


def test_two_cases_with_one_id(small):
    folder = small("P1")
    shutil.copy(folder / "P1" / "us.nii.gz", folder / "p1-us.nii.gz")
    with pytest.raises(DataError, match="two cases have the id.*rename one of them"):
        find_cases("folder", folder)


def test_swapped_ultrasound_and_mr(small, run):
    folder = small("P1") / "P1"
    (folder / "us.nii.gz").rename(folder / "x")
    (folder / "t2.nii.gz").rename(folder / "us.nii.gz")
    (folder / "x").rename(folder / "t2.nii.gz")
    assert "is no ultrasound with a fan" in refused(run, folder.parent)


def test_one_file_under_two_names(small, run):
    folder = small("P1") / "P1"
    shutil.copy(folder / "t2.nii.gz", folder / "flair.nii.gz")
    assert "t2 and flair hold the same image" in refused(run, folder.parent)


def test_a_dicom_series_that_says_it_is_another(small, run, patients):
    folder = small("P1") / "P1"
    (folder / "t2.nii.gz").unlink()
    (folder / "tumour.nii.gz").unlink()
    shutil.copytree(patients / "phantom-001" / "t2", folder / "flair")
    reason = refused(run, folder.parent)
    assert "given as flair but is another modality" in reason and "3D_AX_T2_SPACE" in reason


def test_mr_where_ultrasound_should_be_in_dicom(small, run, patients):
    folder = small("P1") / "P1"
    (folder / "us.nii.gz").unlink()
    shutil.copytree(patients / "phantom-001" / "t2", folder / "us")
    assert "given as us but is another modality" in refused(run, folder.parent)


def test_a_four_dimensional_volume(small, run):
    folder = small("P1")
    array, affine = stored(folder / "P1", "t2.nii.gz")
    save(folder / "P1", "t2.nii.gz", np.stack([array, array], axis=-1), affine)
    assert "is not one volume" in refused(run, folder)


def test_metres_instead_of_millimetres(small, run):
    folder = small("P1")
    array, affine = stored(folder / "P1", "us.nii.gz")
    save(folder / "P1", "us.nii.gz", array, np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine)
    assert "looks as if it were in metres" in refused(run, folder)


def test_a_label_beside_its_image(small, run):
    folder = small("P1")
    array, affine = stored(folder / "P1", "tumour.nii.gz")
    affine = affine.copy()
    affine[0, 3] += 0.5
    save(folder / "P1", "tumour.nii.gz", array, affine)
    reason = refused(run, folder)
    assert "is not aligned" in reason and "0.50 mm off us" in reason and "resample the label" in reason


def test_a_label_with_fractions(small, run):
    folder = small("P1")
    array, affine = stored(folder / "P1", "tumour.nii.gz")
    save(folder / "P1", "tumour.nii.gz", array * np.float32(0.4), affine)
    assert "is no label" in refused(run, folder)


def test_a_segmentation_of_an_image_that_is_not_there(small, run, patients):
    folder = small("P1") / "P1"
    (folder / "tumour.nii.gz").unlink()
    shutil.copy(patients / "phantom-001" / "tumour.dcm", folder / "tumour.dcm")
    assert "drawn on an image that the case does not have" in refused(run, folder.parent)


def test_mr_that_does_not_reach_the_fan(small, run):
    folder = small("P1")
    (folder / "P1" / "tumour.nii.gz").unlink()
    array, affine = stored(folder / "P1", "t2.nii.gz")
    affine = affine.copy()
    affine[:3, 3] += 500
    save(folder / "P1", "t2.nii.gz", array, affine)
    assert "t2 of P1 has nothing inside the fan" in refused(run, folder)


def test_a_transform_that_cannot_be_inverted(small, run):
    folder = small("P1")
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: AffineTransform_double_3_3"]
    lines += ["Parameters: 1 0 0 0 1 0 0 0 0 5 5 5", "FixedParameters: 0 0 0"]
    (folder / "P1" / "transform.tfm").write_text("\n".join(lines) + "\n")
    assert "cannot be inverted" in refused(run, folder)


def test_no_room_is_told_before_anything_is_written(small, run, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    folder = small("P1")
    with pytest.raises(RunError, match="the disk is full.*finished cases are kept"):
        run(folder)
    assert [p.name for p in (folder.parent / "out").iterdir()] == ["dataset.json"]


def test_a_disk_that_fills_up_keeps_finished_cases(small, run, monkeypatch):
    folder = small("P1")
    run(folder)
    small("P2", seed=1)

    def fails(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_nifti", fails)
    with pytest.raises(RunError, match="the disk is full.*choose another --output"):
        run(folder)
    assert load_prepared(folder.parent / "out").case_ids() == ["P1"]
    assert not list((folder.parent / "out").glob(".tmp*"))


def test_an_interrupted_case_is_made_again(small, run):
    folder = small("P1")
    output = run(folder).folder
    (output / "P1" / "t2.nii").unlink()
    (output / ".tmp-elsewhere-0-x").mkdir()
    result = run(folder)
    assert result.skipped == [] and load_prepared(output).has("P1", "t2")
