"""Defects of place and content, each on a scene where the right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scene import SIDE, beam_of, discs
from scipy import ndimage

from mhvae_kit.degradation import Scene, anatomical, degrade
from mhvae_kit.degradation.geometry import signed_distance_px

WHOLE = np.ones((6, SIDE, SIDE), bool)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ideal_disc(radius: float = 12.0) -> Scene:
    """A bright disc on grey, everywhere in the fan."""
    labels = discs(40, 40, radius)
    return Scene(np.where(labels, 0.6, -0.4).astype(np.float32), labels, WHOLE, 1.0)


def area_radius(images: np.ndarray, level: float = 0.1) -> float:
    return float(np.sqrt((images[2] > level).sum() / np.pi))


@pytest.mark.parametrize("seed", range(4))
def test_rigid_moves_a_point_by_the_recorded_shift(seed):
    image = np.full(WHOLE.shape, -0.9, np.float32)
    image[:, 39:41, 39:41] = 0.9  # about the slice's centre, which a turn leaves where it is
    made, parameters = degrade("rigid", 1.0, Scene(image, discs(40, 40, 3), WHOLE, 1.0), rng(seed))
    found = np.array(ndimage.center_of_mass(made[2] + 0.9)) - 39.5
    # The record is where a pixel is read, so that the image moves the other way.
    assert found == pytest.approx(-_turned_back(parameters), abs=0.15)
    assert np.hypot(*parameters["shift_mm"]) == pytest.approx(10.0)
    assert abs(np.degrees(parameters["angle_rad"])) == pytest.approx(10.0)


def _turned_back(parameters: dict) -> np.ndarray:
    """R(-angle) shift: where p + displacement is the centre."""
    c, s = np.cos(parameters["angle_rad"]), np.sin(parameters["angle_rad"])
    return np.array([[c, s], [-s, c]]) @ parameters["shift_mm"]


def test_rigid_shifts_are_in_millimetres():
    image = np.full(WHOLE.shape, -0.9, np.float32)
    image[:, 39:41, 39:41] = 0.9
    made, _ = degrade("rigid", 1.0, Scene(image, discs(40, 40, 3), WHOLE, 2.0), rng())
    found = np.array(ndimage.center_of_mass(made[2] + 0.9)) - 39.5
    assert np.hypot(*found) == pytest.approx(5.0, abs=0.15)


@settings(max_examples=15)
@given(rms_mm=st.floats(0.1, 20), spacing_mm=st.sampled_from([0.5, 1.0, 1.5]), seed=st.integers(0, 2**31 - 1))
def test_an_elastic_field_has_the_asked_root_mean_square(rms_mm, spacing_mm, seed):
    field = anatomical.elastic_px((4, 24, 20), rms_mm, seed, spacing_mm)
    assert field.shape == (2, 4, 24, 20)
    length_mm = np.sqrt(field[0].astype(float) ** 2 + field[1].astype(float) ** 2) * spacing_mm
    assert np.sqrt(np.mean(length_mm**2)) == pytest.approx(rms_mm, rel=1e-4)


def test_an_elastic_field_is_smooth_and_its_seed_s():
    first, again, other = (anatomical.elastic_px((6, 60, 60), 8.0, seed, 1.0) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.abs(np.diff(first, axis=2)).max() < 3.0


def test_elastic_records_its_dose(scene):
    assert degrade("elastic", 0.5, scene, rng())[1]["rms_mm"] == 4.0


def ring_of(scene: Scene) -> np.ndarray:
    distance = signed_distance_px(scene.labels) * scene.spacing_mm
    return (distance > 0) & (distance < anatomical.RING_MM) & scene.fov


def test_without_contrast_the_tumour_is_at_the_mean_of_its_ring(scene):
    made, _ = degrade("contrast-lost", 1.0, scene, rng())
    core = ndimage.binary_erosion(scene.labels, np.ones((1, 5, 5)))
    before = scene.images[core].mean() - scene.images[ring_of(scene)].mean()
    after = made[core].mean() - scene.images[ring_of(scene)].mean()
    assert before > 0.4 and abs(after) < 0.03
    half = degrade("contrast-lost", 0.5, scene, rng())[0][core].mean() - scene.images[ring_of(scene)].mean()
    assert half == pytest.approx((before + after) / 2, abs=0.01)


def test_a_tumour_without_contrast_keeps_its_texture_and_the_rest_its_pixels(scene):
    made, _ = degrade("contrast-lost", 1.0, scene, rng())
    core = ndimage.binary_erosion(scene.labels, np.ones((1, 7, 7)))
    fine = [x - ndimage.gaussian_filter(x, (0, 1.5, 1.5)) for x in (scene.images, made)]
    assert np.corrcoef(fine[0][core], fine[1][core])[0, 1] > 0.9
    far = signed_distance_px(scene.labels) * scene.spacing_mm > anatomical.EDGE_MM
    assert np.array_equal(made[far], scene.images[far])


def test_a_dark_tumour_is_lifted_to_its_ring():
    scene = ideal_disc()
    dark = dataclasses.replace(scene, images=-scene.images)
    made, _ = degrade("contrast-lost", 1.0, dark, rng())
    core = signed_distance_px(scene.labels) < -2 * anatomical.EDGE_MM
    np.testing.assert_allclose(made[core], 0.4, atol=0.03)


def test_a_blurred_border_is_less_steep_with_the_dose():
    scene = ideal_disc(16.0)
    made = [degrade("border-blurred", d, scene, rng())[0][2] for d in (0, 0.25, 0.5, 1.0)]
    # In the structure: what is finer than 1 mm stays on purpose, and is some of an ideal edge.
    steep = [np.abs(np.diff(ndimage.gaussian_filter(m, 2.0)[40])).max() for m in made]
    assert steep == sorted(steep, reverse=True) and steep[-1] < 0.5 * steep[0]


@pytest.mark.parametrize("dose", [0.25, 0.5])
def test_far_from_a_blurred_border_nothing_changes(dose):
    scene = ideal_disc(16.0)
    made, _ = degrade("border-blurred", dose, scene, rng())
    far = np.abs(signed_distance_px(scene.labels)) > 4 * anatomical.FULL_BORDER_MM * dose
    assert np.abs(made - scene.images)[far].max() < 0.01


@pytest.mark.parametrize("shift_mm", [-5.0, -2.5, 2.5, 5.0])
def test_a_shifted_border_makes_a_disc_larger_or_smaller_by_the_shift(shift_mm):
    scene = ideal_disc(14.0)
    made = anatomical.border_shifted(scene, {"shift_mm": shift_mm})
    moved = area_radius(made) - area_radius(scene.images)
    assert moved == pytest.approx(shift_mm, abs=0.3)


def test_a_shifted_border_leaves_what_is_far_from_it():
    rows = np.linspace(-0.5, 0.5, SIDE, dtype=np.float32)[None, :, None]
    scene = dataclasses.replace(ideal_disc(6.0), images=np.broadcast_to(rows, WHOLE.shape).copy())
    made = anatomical.border_shifted(scene, {"shift_mm": 5.0})
    far = signed_distance_px(scene.labels) > 4 * anatomical.FADES_MM
    assert np.abs(made - scene.images)[far].max() < 1e-3
    assert np.array_equal(made[0], scene.images[0])  # no tumour there


@pytest.mark.parametrize("seed", range(5))
def test_false_masses_are_centred_away_from_the_tumour_and_in_the_fan(scene, seed):
    made, parameters = degrade("hallucinated", 1.0, scene, rng(seed))
    distance = signed_distance_px(scene.labels) * scene.spacing_mm
    assert len(parameters["masses"]) == 8
    for mass in parameters["masses"]:
        place = tuple(mass["place"])
        assert scene.fov[place] and distance[place] > anatomical.RING_MM
        assert all(4.0 <= a <= 9.0 for a in mass["half_axes_mm"])
        assert made[place] >= min(1.0, scene.images[place] + anatomical.MASS_LEVEL - 1e-6)


def test_a_false_mass_has_its_half_axes():
    flat = dataclasses.replace(ideal_disc(), images=np.zeros(WHOLE.shape, np.float32))
    mass = {"place": [3, 20, 30], "half_axes_mm": [4.0, 6.0, 9.0]}
    made = anatomical.hallucinated(flat, {"masses": [mass], "level": 0.4})
    assert (made[3, :, 30] >= 0.2).sum() == 13 and (made[3, 20] >= 0.2).sum() == 19
    assert made[3, 20, 30] == pytest.approx(0.4) and made[3, 60, 60] == 0


def test_no_place_for_a_false_mass_means_none():
    labels = np.zeros(WHOLE.shape, bool)
    labels[:, 10:70, 10:70] = True
    tight = Scene(np.zeros(WHOLE.shape, np.float32), labels, labels, 1.0)
    made, parameters = degrade("hallucinated", 1.0, tight, rng())
    assert parameters["masses"] == []
    assert np.array_equal(made[labels], tight.images[labels])


def shadowed(scene: Scene, depth: float = -0.5) -> tuple[Scene, np.ndarray]:
    """A flat fan with a wedge of shadow from the middle of its depth to its end."""
    radius, angle = beam_of()
    wedge = (radius > 55) & (np.abs(angle - 0.1) < 0.06)
    image = np.where(scene.fov, np.where(wedge, depth, 0.2), -1.0).astype(np.float32)
    return dataclasses.replace(scene, images=image), wedge & scene.fov


def test_missing_shadows_are_filled_and_the_rest_is_left(scene):
    dark, wedge = shadowed(scene)
    made, _ = degrade("shadows-missing", 1.0, dark, rng())
    middle = ndimage.binary_erosion(wedge, np.ones((1, 5, 5)))
    deep = middle & (beam_of()[0] > 62)
    # The mean of a depth has the shadow's own share in it, about a seventh.
    assert made[deep].mean() > dark.images[deep].mean() + 0.4
    assert made[deep].max() < 0.2 + 1e-6
    outside = dark.fov & ~ndimage.binary_dilation(wedge, np.ones((1, 15, 15)))
    assert np.abs(made - dark.images)[outside].max() < 0.02


def test_half_a_dose_fills_half_a_shadow(scene):
    dark, wedge = shadowed(scene)
    half, full = (degrade("shadows-missing", d, dark, rng())[0] - dark.images for d in (0.5, 1.0))
    np.testing.assert_allclose(half[wedge], full[wedge] / 2, atol=1e-6)


def test_a_dark_spot_with_light_below_is_no_shadow(scene):
    image = np.where(scene.fov, 0.2, -1.0).astype(np.float32)
    image[:, 30:36, 36:44] = -0.5
    spot = dataclasses.replace(scene, images=image)
    made, _ = degrade("shadows-missing", 1.0, spot, rng())
    assert np.abs(made - image)[:, 30:36, 36:44].max() < 0.05


def test_the_lift_of_a_shadow_is_never_negative(scene):
    noise = np.random.default_rng(2).uniform(-1, 1, scene.fov[0].shape)
    lift = anatomical.shadow_depth(noise, scene.fov[0])
    assert lift.min() >= 0 and (lift[~scene.fov[0]] == 0).all()
    assert anatomical.shadow_depth(np.full_like(noise, 0.3), scene.fov[0]).max() < 1e-6
