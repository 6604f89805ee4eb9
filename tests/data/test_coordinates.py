"""nibabel and SimpleITK agree on where every voxel is, oblique or not."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit.data.coordinates import (
    affine_ras,
    corner_distance_mm,
    from_sitk,
    same_grid,
    to_sitk,
    transform_from_ras,
    transform_ras,
)
from mhvae_kit.errors import DataError, InputError

SHAPE = (5, 6, 7)


def oblique(degrees=(20.0, -35.0, 50.0), spacing=(0.4, 0.7, 1.9), origin=(-31.0, 12.5, 77.0)) -> np.ndarray:
    """A rotation about all three axes, made without SimpleITK."""
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)


@settings(max_examples=30)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.floats(0.1, 5)] * 3), st.tuples(*[st.floats(-300, 300)] * 3)
)
def test_corners_come_back_within_a_hundredth_of_a_millimetre(degrees, spacing, origin):
    affine = oblique(degrees, spacing, origin)
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    back, again = from_sitk(to_sitk(array, affine))
    assert corner_distance_mm(affine, again, SHAPE) < 0.01
    assert np.array_equal(back, array)


def test_itk_reads_nibabels_file_as_the_converter_does(array, tmp_path):
    nib.Nifti1Image(array, oblique()).to_filename(tmp_path / "a.nii")
    read, made = sitk.ReadImage(str(tmp_path / "a.nii")), to_sitk(array, oblique())
    assert same_grid(read, made)
    assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(made))


def test_a_voxel_has_one_place_in_both_worlds(array):
    image, index = to_sitk(array, oblique()), (1, 2, 3)
    ras = oblique() @ [*index, 1]
    assert np.allclose(image.TransformIndexToPhysicalPoint(index), ras[:3] * [-1, -1, 1], atol=1e-9)
    assert image[index] == array[index]


def test_a_left_handed_image_keeps_its_place(array):
    affine = oblique() @ np.diag([-1, 1, 1, 1])
    assert corner_distance_mm(affine, affine_ras(to_sitk(array, affine)), SHAPE) < 1e-9


def test_transforms_go_there_and_back():
    matrix = oblique(spacing=(1.1, 0.9, 1.0))
    assert np.allclose(transform_ras(transform_from_ras(matrix)), matrix)


def test_a_transform_moves_the_same_point_in_both_worlds():
    matrix, point = oblique(), np.array([3.0, -4.0, 5.0])
    moved = np.array(transform_from_ras(matrix).TransformPoint((point * [-1, -1, 1]).tolist()))
    assert np.allclose(moved * [-1, -1, 1], (matrix @ [*point, 1])[:3])


def test_a_sheared_affine_is_refused(array):
    affine = oblique()
    affine[:3, 0] += 0.2 * affine[:3, 1]
    with pytest.raises(DataError, match="scan.nii are not at right angles"):
        to_sitk(array, affine, "scan.nii")


@pytest.mark.parametrize("column", [np.zeros(3), np.full(3, np.nan)])
def test_an_affine_without_a_place_is_refused(array, column):
    affine = oblique()
    affine[:3, 1] = column
    with pytest.raises(DataError, match="no usable position"):
        to_sitk(array, affine)


def test_four_dimensions_are_refused():
    with pytest.raises(InputError, match="not a volume"):
        to_sitk(np.zeros((2, 2, 2, 2)), np.eye(4))


def test_grids_differ_when_a_corner_is_off(array):
    shifted = oblique(origin=(-31.0, 12.5, 77.02))
    assert not same_grid(to_sitk(array, oblique()), to_sitk(array, shifted))
