"""Volumes from NIfTI and NRRD: what cannot be meant is refused by name, with the mend."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.testing import data_path

from mhvae_kit.data.coordinates import affine_ras, corner_distance_mm, to_sitk
from mhvae_kit.data.volumes_in import read_volume
from mhvae_kit.errors import DataError, MissingError


def values(shape=(12, 10, 8)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)


def write(path, array, affine=None, unit="mm"):
    image = nib.Nifti1Image(array, np.diag([1.0, 1.2, 2.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_every_format_gives_the_same_volume(tmp_path, name):
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    if name.endswith(("nrrd", "mha")):
        sitk.WriteImage(to_sitk(values(), affine), str(tmp_path / name))
    else:
        write(tmp_path / name, values(), affine)
    found = read_volume(tmp_path / name)
    assert corner_distance_mm(affine_ras(found.image), affine, values().shape) < 1e-4
    assert np.array_equal(sitk.GetArrayFromImage(found.image).transpose(2, 1, 0), values())


def test_a_file_that_ships_with_nibabel_is_read():
    image = read_volume(f"{data_path}/anatomical.nii").image
    theirs = nib.load(f"{data_path}/anatomical.nii")
    assert image.GetSize() == theirs.shape
    assert corner_distance_mm(affine_ras(image), theirs.affine, theirs.shape) < 0.01


def test_nilearns_template_is_read_where_it_is():
    folder = Path(str(files("nilearn"))) / "datasets" / "data"
    path = next(folder.glob("mni_icbm152_t1*.nii.gz"))
    image, theirs = read_volume(path).image, nib.load(path)
    assert image.GetSize() == theirs.shape
    assert corner_distance_mm(affine_ras(image), theirs.affine, theirs.shape) < 0.01


def test_a_series_in_time_that_ships_with_nibabel_is_refused():
    with pytest.raises(DataError, match=r"example4d\.nii\.gz is not one volume.*take out the volume"):
        read_volume(f"{data_path}/example4d.nii.gz")


def test_four_dimensions_in_nrrd_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), str(tmp_path / "v.nrrd"))
    with pytest.raises(DataError, match="not one volume"):
        read_volume(tmp_path / "v.nrrd")


def test_metres_in_the_header_are_refused(tmp_path):
    with pytest.raises(DataError, match="not in mm; got unit meter.*scale its affine"):
        read_volume(write(tmp_path / "m.nii", values(), unit="meter"))


def test_metres_that_the_header_does_not_admit_are_refused(tmp_path):
    path = write(tmp_path / "m.nii", values(), np.diag([0.001, 0.001, 0.002, 1.0]))
    with pytest.raises(DataError, match="looks as if it were in metres"):
        read_volume(path)


def test_a_head_of_ten_metres_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be in mm"):
        read_volume(write(tmp_path / "big.nii", values((200, 10, 8)), np.diag([15.0, 1.0, 1.0, 1.0])))


def test_an_empty_volume_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"volume is empty: .*zero\.nii.*get or export it again"):
        read_volume(write(tmp_path / "zero.nii", values() * 0))


def test_an_empty_label_says_so(tmp_path):
    with pytest.raises(DataError, match="label is empty.*leave the file out"):
        read_volume(write(tmp_path / "zero.nii", values() * 0), label=True)


def test_values_that_are_not_finite_are_refused(tmp_path):
    array = values().astype(np.float32)
    array[2, 2, 2] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        read_volume(write(tmp_path / "nan.nii", array))


def test_a_file_without_a_place_is_refused(tmp_path):
    image = nib.Nifti1Image(values(), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.to_filename(tmp_path / "nowhere.nii")
    with pytest.raises(DataError, match="does not say where it lies"):
        read_volume(tmp_path / "nowhere.nii")


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz", "cut.nrrd"])
def test_a_truncated_file_is_refused(tmp_path, name):
    if name.endswith("nrrd"):
        sitk.WriteImage(to_sitk(values(), np.eye(4)), str(tmp_path / name))
    else:
        write(tmp_path / name, values())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        read_volume(path)


def test_an_unknown_format_is_refused(tmp_path):
    (tmp_path / "scan.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DataError, match="no format that is read here"):
        read_volume(tmp_path / "scan.pkl")


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingError, match="is not there"):
        read_volume(tmp_path / "none.nii")
