"""Defects of texture and intensity, each by the quantity that it is about."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_scene import RADII, beam_of
from scipy import ndimage

from mhvae_kit.degradation import Scene, appearance, degrade
from mhvae_kit.degradation.geometry import LOWEST


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def inner(scene: Scene) -> np.ndarray:
    """The fan without its rim, where smoothing by any method sees the fan alone."""
    return ndimage.binary_erosion(scene.fov, np.ones((1, 9, 9)))


def texture_of(images: np.ndarray) -> np.ndarray:
    return images - ndimage.gaussian_filter(images, (0, 3, 3))


def neighbour_correlation(images: np.ndarray, inside: np.ndarray) -> float:
    texture = texture_of(images)
    pairs = inside[:, :, 1:] & inside[:, :, :-1]
    return float(np.corrcoef(texture[:, :, 1:][pairs], texture[:, :, :-1][pairs])[0, 1])


def test_blur_lowers_the_local_variance_and_keeps_the_mean(scene):
    inside = inner(scene)
    spreads = [texture_of(degrade("blur", d, scene, rng())[0])[inside].std() for d in (0, 0.25, 0.5, 1.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < 0.3 * spreads[0]
    made, _ = degrade("blur", 1.0, scene, rng())
    assert made[scene.fov].mean() == pytest.approx(scene.images[scene.fov].mean(), abs=0.02)


def test_blur_is_in_millimetres(scene):
    coarse = dataclasses.replace(scene, spacing_mm=2.0)
    made, _ = degrade("blur", 1.0, coarse, rng())
    assert np.array_equal(made, degrade("blur", 0.5, scene, rng())[0])


def test_excess_speckle_has_the_recorded_spread_and_mean_0(scene):
    _, parameters = degrade("excess-speckle", 0.5, scene, rng())
    added = appearance.excess_speckle(scene, parameters) - scene.images
    assert parameters["spread_db"] == 4.0
    assert added.std() == pytest.approx(2.0 * 4.0 / appearance.RANGE_DB, rel=1e-3)
    assert abs(added.mean()) < 1e-4
    assert added.min() < -added.max()  # Rayleigh in the logarithm: dark spots are deeper than bright ones are high


def test_excess_speckle_is_new_for_every_seed(scene):
    first, second = (degrade("excess-speckle", 1.0, scene, rng(s))[0] for s in (0, 1))
    assert not np.array_equal(first, second)


def test_speckle_grows_with_the_dose_and_keeps_its_spread_and_the_structure(scene):
    inside = inner(scene)
    made = [degrade("speckle-size", d, scene, rng())[0] for d in (0, 0.25, 0.5, 1.0)]
    widths = [neighbour_correlation(m, inside) for m in made]
    assert widths == sorted(widths) and widths[0] < widths[1] - 0.02
    structures = [ndimage.gaussian_filter(m, (0, 4, 4))[inside] for m in made]
    assert np.corrcoef(structures[0], structures[-1])[0, 1] > 0.85
    assert made[-1][inside].std() == pytest.approx(made[0][inside].std(), rel=0.15)


def test_grain_is_as_many_times_wider_as_recorded(scene):
    _, parameters = degrade("speckle-size", 1.0, scene, rng())
    assert parameters == {"factor": 4.0}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_gain_shifts_every_grey_level_before_clipping(scene, seed):
    made, parameters = degrade("gain", 0.5, scene, rng(seed))
    assert abs(parameters["shift"]) == pytest.approx(0.3)
    expected = np.clip(scene.images + parameters["shift"], LOWEST, 1)
    np.testing.assert_allclose(made[scene.fov], expected[scene.fov], atol=1e-6)
    unclipped = appearance.gain(scene, parameters)[scene.fov].mean() - scene.images[scene.fov].mean()
    assert unclipped == pytest.approx(parameters["shift"], abs=1e-5)


def test_attenuation_is_a_ramp_along_the_beam(scene):
    parameters = {"change": 0.8}
    added = (appearance.attenuation(scene, parameters) - scene.images)[2]
    radius, _ = beam_of()
    expected = 0.8 * ((radius - RADII[0]) / (RADII[1] - RADII[0]) - 0.5)
    assert np.abs(added - expected)[scene.fov[2]].max() < 0.02
    assert added[scene.fov[2]].min() == pytest.approx(-0.4, abs=1e-5)
    assert added[scene.fov[2]].max() == pytest.approx(0.4, abs=1e-5)


def test_attenuation_is_the_same_along_an_arc(scene):
    added = (appearance.attenuation(scene, {"change": 1.0}) - scene.images)[2]
    radius, _ = beam_of()
    arc = scene.fov[2] & (np.abs(radius - 60) < 0.3)
    assert np.ptp(added[arc]) < 0.03


@pytest.mark.parametrize(("dose", "levels"), [(1.0, 2), (0.5, 23), (0.25, 76), (0.0, 256)])
def test_quantisation_leaves_that_many_levels(scene, dose, levels):
    assert degrade("quantisation", dose, scene, rng())[1] == {"levels": levels}
    if dose:
        ramp = np.linspace(-1, 1, scene.images.size, dtype=np.float32).reshape(scene.images.shape)
        wide = dataclasses.replace(scene, images=ramp, fov=np.ones_like(scene.fov))
        made = np.unique(degrade("quantisation", dose, wide, rng())[0])
        np.testing.assert_allclose(made, np.maximum(np.linspace(-1, 1, levels), LOWEST), atol=1e-6)


@pytest.mark.parametrize("dose", [0.25, 0.5, 1.0])
def test_quantisation_rounds_to_the_nearest_level(scene, dose):
    made, parameters = degrade("quantisation", dose, scene, rng())
    assert np.abs(made - scene.images)[scene.fov].max() <= 1 / (parameters["levels"] - 1) + 1e-6
