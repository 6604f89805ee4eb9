"""The common grid: crop, spacing, size, bytes, labels and the fan."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit.data.coordinates import to_sitk
from mhvae_kit.data.grid import (
    Recipe,
    common_grid,
    field_of_view,
    foreground_box,
    oriented,
    resample,
    resample_label,
    to_bytes,
)
from mhvae_kit.errors import DataError, InputError


@pytest.fixture
def block() -> sitk.Image:
    """20 x 16 x 10 voxels of 1 x 1 x 3 mm with a box of ones from (4, 6, 2) to (11, 9, 7)."""
    array = np.zeros((20, 16, 10), np.uint8)
    array[4:12, 6:10, 2:8] = 100
    return to_sitk(array, np.diag([1.0, 1.0, 3.0, 1.0]))


def test_the_box_is_that_of_the_foreground(block):
    assert foreground_box(block) == ([4, 6, 2], [8, 4, 6])


def test_the_grid_is_centred_on_the_foreground_and_keeps_its_depth(block):
    grid = common_grid(block, Recipe(size_px=12, spacing_mm=1.0))
    assert grid.GetSize() == (12, 12, 6) and grid.GetSpacing() == (1.0, 1.0, 3.0)
    middle = grid.TransformContinuousIndexToPhysicalPoint([5.5, 5.5, 2.5])
    assert np.allclose(middle, block.TransformContinuousIndexToPhysicalPoint([7.5, 7.5, 4.5]))


def test_slices_of_nearly_the_pixels_spacing_get_the_same_spacing():
    array = np.ones((10, 10, 10), np.uint8)
    grid = common_grid(to_sitk(array, np.diag([1.0, 1.0, 1.1, 1.0])), Recipe(size_px=16, spacing_mm=0.5))
    assert grid.GetSpacing() == (0.5, 0.5, 0.5) and grid.GetSize()[2] == 22


def test_a_crop_on_the_same_spacing_changes_no_value(block):
    grid = common_grid(block, Recipe(size_px=8, spacing_mm=1.0))
    cropped = sitk.GetArrayFromImage(resample(block, grid))
    assert cropped.sum() == sitk.GetArrayFromImage(block).sum() and set(np.unique(cropped)) == {0, 100}


def test_rows_can_be_the_first_axis_and_nothing_moves(block):
    turned = oriented(block, "i")
    assert turned.GetSize() == (16, 20, 10) and turned[7, 5, 3] == block[5, 7, 3]
    here, there = turned.TransformIndexToPhysicalPoint((7, 5, 3)), block.TransformIndexToPhysicalPoint((5, 7, 3))
    assert np.allclose(here, there)


def test_an_empty_reference_has_no_box(block):
    with pytest.raises(DataError, match="no foreground"):
        foreground_box(block * 0)


@settings(max_examples=30)
@given(st.floats(0.1, 1000), st.integers(0, 2**31))
def test_bytes_fill_their_range_and_only_the_outside_is_zero(scale, seed):
    values = np.random.default_rng(seed).random((3, 8, 8)) * scale
    inside = np.zeros(values.shape, bool)
    inside[:, 2:7, 1:] = True
    shown, levels = to_bytes(values, inside, 99.0)
    assert shown.dtype == np.uint8 and (shown[~inside] == 0).all()
    assert shown[inside].min() == 1 and shown[inside].max() == 255
    order = np.argsort(values[inside])
    assert (np.diff(shown[inside][order].astype(int)) >= 0).all() and levels["low"] == values[inside].min()


def test_bytes_by_hand():
    values, inside = np.array([0.0, 10.0, 60.0, 110.0, 7.0]), np.array([True, True, True, True, False])
    shown, levels = to_bytes(values, inside, 100.0)
    assert shown.tolist() == [1, 1, 128, 255, 0] and levels == {"low": 10.0, "high": 110.0}


def test_an_image_with_nothing_in_the_fan_is_refused():
    with pytest.raises(DataError, match="t2 has nothing inside the fan"):
        to_bytes(np.zeros((2, 3, 3)), np.ones((2, 3, 3), bool), 99.0, "t2")


@pytest.mark.parametrize("rule", ["argmax", "nearest"])
def test_labels_never_gain_a_value(rule):
    array = np.zeros((12, 12, 6), np.uint8)
    array[2:7, 3:8, 1:5], array[7:10, 3:8, 1:5] = 1, 4
    grid = common_grid(to_sitk((array > 0).astype(np.uint8), np.eye(4)), Recipe(size_px=30, spacing_mm=0.37))
    moved = sitk.GetArrayFromImage(resample_label(to_sitk(array, np.eye(4)), grid, rule=rule))
    assert set(np.unique(moved)) == {0, 1, 4} and moved.dtype == np.uint8


def test_argmax_keeps_a_border_where_the_share_is_half():
    array = np.zeros((4, 8, 2), np.uint8)
    array[:, :4] = 3
    fine = common_grid(to_sitk(np.ones_like(array), np.eye(4)), Recipe(size_px=16, spacing_mm=0.5))
    moved = sitk.GetArrayFromImage(resample_label(to_sitk(array, np.eye(4)), fine))
    assert (moved[1, 2:8, 8] == 3).all() and (moved[1, 8:14, 8] == 0).all()


def test_dark_spots_inside_the_fan_belong_to_it():
    fan = np.zeros((1, 20, 20), np.uint8)
    fan[0, 3:17, 3:17] = 50
    fan[0, 8:12, 8:12] = 0
    fan[0, 0, 0] = 9
    inside = field_of_view(fan)
    assert inside[0, 8:12, 8:12].all() and inside.sum() == 14 * 14


@pytest.mark.parametrize(
    ("field", "value"), [("size_px", 4), ("spacing_mm", 0), ("percentile", 20), ("rows", "k"), ("labels", "linear")]
)
def test_a_recipe_that_cannot_be_cooked_is_refused(field, value):
    with pytest.raises(InputError, match=field):
        Recipe(**{field: value})
