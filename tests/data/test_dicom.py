"""DICOM series and multi-frame ultrasound: read as they were written, and refused when they are no volume."""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from mhvae_kit.data.coordinates import same_grid, to_sitk
from mhvae_kit.data.dicom import find_series, read_dicom
from mhvae_kit.data.dicom_write import write_mr, write_ultrasound
from mhvae_kit.data.volumes_in import read_volume
from mhvae_kit.errors import DataError, MissingError


def oblique_image(seed: int = 0) -> sitk.Image:
    """12 x 10 x 6 voxels, turned about two axes."""
    array = np.random.default_rng(seed).integers(1, 255, (12, 10, 6), dtype=np.uint8)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.3, -0.2, 0.0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn.GetMatrix()).reshape(3, 3) * [0.9, 1.2, 2.5]
    affine[:3, 3] = (4.0, -70.0, 33.0)
    return to_sitk(array, affine)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with an MR series and one with a multi-frame ultrasound of the same image."""
    folder = tmp_path_factory.mktemp("dicom")
    write_mr(folder / "mr", oblique_image(), case="P1", series="3D_AX_T2_SPACE")
    write_ultrasound(folder / "us" / "us.dcm", oblique_image(), case="P1")
    return folder


@pytest.fixture
def series(written, tmp_path):
    """A copy of the MR series that may be damaged."""
    return shutil.copytree(written / "mr", tmp_path / "mr")


@pytest.mark.parametrize("kind", ["mr", "us"])
def test_a_volume_comes_back_where_it_was(written, kind):
    image, series = read_dicom(written / kind)
    assert same_grid(image, oblique_image())
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(oblique_image()))
    assert series.modality == kind.upper() and series.patient == "P1"


def test_the_series_reader_of_itk_agrees(written):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(written / "mr")))
    theirs, ours = reader.Execute(), read_dicom(written / "mr")[0]
    assert same_grid(theirs, ours) and np.array_equal(sitk.GetArrayFromImage(theirs), sitk.GetArrayFromImage(ours))


def test_file_names_and_order_do_not_matter(series):
    for k, path in enumerate(sorted(series.glob("*.dcm"))):
        path.rename(series / f"{'cafbed'[k]}.dcm")
    assert same_grid(read_dicom(series)[0], oblique_image())


def test_frames_are_sorted_by_their_place(written, tmp_path):
    header = pydicom.dcmread(written / "us" / "us.dcm")
    header.PixelData = header.pixel_array[::-1].tobytes()
    header.PerFrameFunctionalGroupsSequence = list(header.PerFrameFunctionalGroupsSequence)[::-1]
    header.save_as(tmp_path / "us.dcm")
    image = read_dicom(tmp_path / "us.dcm")[0]
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(oblique_image()))


def test_slope_and_intercept_are_applied(series):
    for path in series.glob("*.dcm"):
        header = pydicom.dcmread(path)
        header.RescaleSlope, header.RescaleIntercept = "2", "-5"
        header.save_as(path)
    assert np.array_equal(
        sitk.GetArrayFromImage(read_dicom(series)[0]), 2.0 * sitk.GetArrayFromImage(oblique_image()) - 5
    )


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_files_of_others_hold_the_same_image(tmp_path, name):
    volumes = []
    for source in ("MR_small.dcm", name):
        for k in range(2):
            header = pydicom.dcmread(get_testdata_file(source))
            header.ImagePositionPatient = [*header.ImagePositionPatient[:2], float(header.ImagePositionPatient[2]) + k]
            (tmp_path / source).mkdir(exist_ok=True)
            header.save_as(tmp_path / source / f"{k}.dcm")
        volumes.append(read_dicom(tmp_path / source)[0])
    assert volumes[0].GetSize() == (64, 64, 2) and same_grid(*volumes)
    assert np.array_equal(*map(sitk.GetArrayFromImage, volumes))


def test_a_single_slice_of_others_is_refused():
    with pytest.raises(DataError, match="single slice"):
        read_dicom(get_testdata_file("MR_small.dcm"))


def test_a_segmentation_of_others_is_no_image():
    with pytest.raises(DataError, match="is a DICOM segmentation"):
        read_dicom(get_testdata_file("liver_1frame.dcm"))


def test_a_truncated_file_is_named(series):
    path = series / "0003.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"0003\.dcm .*(truncated|ends early)"):
        read_volume(series)


def test_a_file_cut_in_its_header_is_named(series):
    path = series / "0002.dcm"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"0002\.dcm"):
        read_volume(series)


def test_mixed_series_are_refused_by_their_names(series):
    write_mr(series, oblique_image(1), case="P1", series="3D_AX_T1_postcontrast", number=9)
    (series / "0001.dcm").rename(series / "x.dcm")
    write_mr(series / "sub", oblique_image(), case="P1", series="3D_AX_T2_SPACE")
    with pytest.raises(DataError, match=r"mixes 2 series.*T1_postcontrast"):
        read_volume(series)


@pytest.mark.parametrize("lost", [["0003.dcm"], ["0003.dcm", "0004.dcm"]])
def test_missing_slices_are_counted(series, lost):
    for name in lost:
        (series / name).unlink()
    with pytest.raises(DataError, match=f"lacks {len(lost)} slice"):
        read_volume(series)


def test_a_slice_that_is_there_twice_is_refused(series):
    shutil.copy(series / "0004.dcm", series / "copy.dcm")
    with pytest.raises(DataError, match="two slices at one place"):
        read_volume(series)


def test_slices_of_another_orientation_are_refused(series):
    header = pydicom.dcmread(series / "0002.dcm")
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.save_as(series / "0002.dcm")
    with pytest.raises(DataError, match=r"0002\.dcm differs"):
        read_volume(series)


def test_a_cine_loop_is_no_volume(written, tmp_path):
    header = pydicom.dcmread(written / "us" / "us.dcm")
    del header.PerFrameFunctionalGroupsSequence
    header.save_as(tmp_path / "cine.dcm")
    with pytest.raises(DataError, match="does not say where its frames lie"):
        read_volume(tmp_path / "cine.dcm")


def test_no_dicom_at_all(tmp_path):
    with pytest.raises(MissingError, match="no DICOM file"):
        find_series(tmp_path)
