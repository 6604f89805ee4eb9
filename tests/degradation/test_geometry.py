"""Small tools on volumes, against hand values and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scene import APEX_ROW, HALF_ANGLE, MIDDLE, RADII, SIDE, beam_of, fan_of

from mhvae_kit.degradation import geometry

SETTINGS = settings(max_examples=20)


def test_framed_clips_the_fan_and_blackens_the_rest():
    image = np.array([[[-3.0, 0.5, 2.0, 0.7]]])
    framed = geometry.framed(image, np.array([[[True, True, True, False]]]))
    assert np.array_equal(framed, np.float32([[[1 / 127.5 - 1, 0.5, 1.0, -1.0]]])) and framed.dtype == np.float32


def test_filled_writes_the_nearest_value_of_the_fan_and_leaves_the_fan():
    image = np.array([[[9.0, 1.0, 2.0, 9.0, 9.0]], [[3.0, 3.0, 3.0, 3.0, 3.0]]], dtype=np.float32)
    fov = np.array([[[False, True, True, False, False]], [[False] * 5]])
    assert geometry.filled(image, fov).tolist() == [[[1.0, 1.0, 2.0, 2.0, 2.0]], [[3.0] * 5]]
    assert image[0, 0, 0] == 9.0


def test_smoothing_gives_what_lies_outside_no_weight():
    rng = np.random.default_rng(0)
    fov = fan_of()[None]
    image = rng.uniform(-1, 1, fov.shape).astype(np.float32)
    other = np.where(fov, image, 50.0)
    first, second = (geometry.smoothed(x, fov, 2.0) for x in (image, other))
    np.testing.assert_allclose(first[fov], second[fov], atol=1e-6)
    assert np.array_equal(first[~fov], image[~fov])
    constant = geometry.smoothed(np.where(fov, 0.3, -1.0), fov, 4.0)
    np.testing.assert_allclose(constant[fov], 0.3, atol=1e-5)


def test_smoothing_does_not_cross_slices():
    fov = np.ones((2, 8, 8), bool)
    image = np.stack([np.zeros((8, 8)), np.ones((8, 8))]).astype(np.float32)
    np.testing.assert_allclose(geometry.smoothed(image, fov, 3.0), image, atol=1e-6)


def test_smooth_noise_is_standard_and_its_own_generator_s():
    made = [geometry.smooth_noise(np.random.default_rng(s), (4, 32, 32), (1.0, 2.0, 2.0)) for s in (0, 0, 1)]
    assert abs(made[0].mean()) < 1e-5 and made[0].std() == pytest.approx(1, abs=1e-4)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    neighbours = np.corrcoef(made[0][:, :, :-1].ravel(), made[0][:, :, 1:].ravel())[0, 1]
    assert neighbours > 0.8


def test_a_whole_displacement_reads_other_pixels():
    volume = np.arange(25.0, dtype=np.float32).reshape(1, 5, 5)
    displacement = np.zeros((2, 1, 5, 5), np.float32)
    displacement[0], displacement[1] = 1.0, -2.0
    moved = geometry.warped(volume, displacement)
    assert moved[0, 1, 3] == volume[0, 2, 1]
    assert moved[0, 4, 0] == volume[0, 4, 0]  # beyond the edge, the edge


def test_labels_stay_labels_with_the_nearest_pixel():
    volume = np.array([[[0, 0, 3, 3]]], dtype=np.uint8)
    displacement = np.full((2, 1, 1, 4), 0.4, np.float32)
    assert geometry.warped(volume, displacement, order=0).tolist() == [[[0, 0, 3, 3]]]


@SETTINGS
@given(angle=st.floats(-0.5, 0.5), shift=st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_a_rigid_field_keeps_distances_and_shifts_the_centre(angle, shift):
    shape = (2, 9, 13)
    field = geometry.rigid_px(shape, angle, shift)
    assert field.shape == (2, *shape) and np.array_equal(field[:, 0], field[:, 1])
    np.testing.assert_allclose(field[:, 0, 4, 6], shift, atol=1e-5)
    places = np.stack(np.mgrid[0:9, 0:13]) + field[:, 0]
    before, after = (np.hypot(*(p[:, 1, 2] - p[:, 7, 11])) for p in (np.stack(np.mgrid[0:9, 0:13]), places))
    assert after == pytest.approx(before, abs=1e-4)


def test_a_turn_has_the_asked_angle():
    field = geometry.rigid_px((1, 11, 11), 0.3, (0.0, 0.0))
    arm = np.array([4.0, 0.0]) + field[:, 0, 9, 5]  # the pixel four rows below the centre
    assert arm == pytest.approx([4 * np.cos(0.3), 4 * np.sin(0.3)], abs=1e-5)


def test_signed_distance_by_hand():
    label = np.zeros((2, 1, 7), bool)
    label[0, 0, 2:5] = True
    assert geometry.signed_distance_px(label)[0].tolist() == [[1.5, 0.5, -0.5, -1.5, -0.5, 0.5, 1.5]]
    assert (geometry.signed_distance_px(label)[1] == 7).all()  # absent


def test_signed_distance_against_a_search_over_all_pixels():
    rng = np.random.default_rng(1)
    label = rng.random((1, 12, 10)) < 0.3
    places = np.argwhere(np.ones((12, 10), bool))
    expected = np.empty((12, 10))
    for p in places:
        inside = label[0][tuple(p)]
        others = places[[label[0][tuple(q)] != inside for q in places]]
        nearest = np.linalg.norm(others - p, axis=1).min()
        expected[tuple(p)] = 0.5 - nearest if inside else nearest - 0.5
    np.testing.assert_allclose(geometry.signed_distance_px(label)[0], expected, rtol=1e-6)


def test_the_beam_s_frame_of_an_ideal_fan():
    fov = fan_of()
    depth, angle = geometry.beam_frame(fov)
    radius, true_angle = beam_of()
    assert np.abs(depth - (radius - RADII[0]))[fov].max() < 1.0
    assert np.abs(angle - true_angle)[fov].max() < 0.02
    assert depth[fov].min() == 0
    assert np.abs(angle[fov]).max() == pytest.approx(HALF_ANGLE, abs=0.02)
    apex = np.median((np.arange(SIDE)[:, None] - (depth + RADII[0]) * np.cos(angle))[fov])
    assert apex == pytest.approx(APEX_ROW, abs=1.0)


def test_the_beam_s_frame_follows_a_shifted_fan():
    fov = np.roll(fan_of(), (3, -2), axis=(0, 1))
    depth, angle = geometry.beam_frame(fov)
    first, other = geometry.beam_frame(fan_of())
    np.testing.assert_allclose(np.roll(depth, (-3, 2), axis=(0, 1))[4:70, 4:70], first[4:70, 4:70], atol=0.1)
    assert np.abs(angle[50, round(MIDDLE - 2)]) < 0.02
    assert other.dtype == np.float32


def test_a_field_with_parallel_sides_has_parallel_beams():
    fov = np.zeros((40, 30), bool)
    fov[5:35, 4:26] = True
    depth, angle = geometry.beam_frame(fov)
    rows = np.broadcast_to(np.arange(40.0)[:, None] - 5, fov.shape)
    assert np.abs(depth - rows)[fov].max() < 0.05
    assert np.abs(angle[fov]).max() < 0.01
