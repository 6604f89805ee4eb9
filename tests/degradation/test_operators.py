"""Every defect: nothing at dose 0, more with the dose, the same again with the same generator."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from mhvae_kit.degradation import OPERATORS, anatomical, appearance, degrade
from mhvae_kit.degradation.geometry import LOWEST
from mhvae_kit.errors import InputError
from mhvae_kit.plain import json_safe

NAMES = list(OPERATORS)
GRADUAL = [n for n in NAMES if n != "speckle-size"]
"""Texture that is magnified a little lies elsewhere at once; its width grows with the dose, see test_appearance."""


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("name", NAMES)
def test_dose_0_leaves_every_bit(name, scene):
    made, parameters = degrade(name, 0, scene, rng())
    assert np.array_equal(made, scene.images) and made.dtype == np.float32
    assert made is not scene.images
    json.dumps(parameters)


@pytest.mark.parametrize("name", NAMES)
def test_full_dose_changes_the_fan_and_nothing_else(name, scene):
    before = [a.copy() for a in (scene.images, scene.labels, scene.fov)]
    made, _ = degrade(name, 1.0, scene, rng())  # the scene is read-only: writing into it would fail
    assert made.dtype == np.float32 and made.shape == scene.images.shape
    assert np.isfinite(made).all() and made.min() >= -1 and made.max() <= 1
    assert (made[~scene.fov] == -1).all()
    assert np.abs(made - scene.images)[scene.fov].mean() > 0.005
    assert all(np.array_equal(a, b) for a, b in zip(before, (scene.images, scene.labels, scene.fov), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_images_and_record(name, scene):
    first, second = (degrade(name, 0.5, scene, rng()) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]


@pytest.mark.parametrize("name", GRADUAL)
def test_a_larger_dose_changes_more(name, scene):
    changes = [np.abs(degrade(name, d, scene, rng())[0] - scene.images)[scene.fov].mean() for d in (0.25, 0.5, 1.0)]
    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("name", GRADUAL)
def test_a_tiny_dose_changes_little(name, scene):
    made, _ = degrade(name, 0.01, scene, rng())
    full, _ = degrade(name, 1.0, scene, rng())
    assert np.abs(made - scene.images).mean() < 0.2 * np.abs(full - scene.images).mean()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_drawn_is_plain_json_and_makes_the_images_again(name, scene):
    made, parameters = degrade(name, 1.0, scene, rng())
    read = json.loads(json.dumps(parameters))
    assert read == parameters == json_safe(parameters)
    again = OPERATORS[name].apply(scene, read)
    assert np.array_equal(np.clip(again, LOWEST, 1).astype(np.float32)[scene.fov], made[scene.fov])


@pytest.mark.parametrize("name", NAMES)
def test_a_patient_without_tumour_is_no_obstacle(name, scene):
    empty = type(scene)(scene.images, np.zeros_like(scene.labels), scene.fov, scene.spacing_mm)
    made, _ = degrade(name, 1.0, empty, rng())
    assert np.isfinite(made).all()


@pytest.mark.parametrize("name", NAMES)
def test_slices_without_a_fan_stay_empty(name, scene):
    arrays = [np.concatenate([a, np.full_like(a[:1], empty)]) for a, empty in
              ((scene.images, -1), (scene.labels, False), (scene.fov, False))]  # fmt: skip
    made, _ = degrade(name, 1.0, type(scene)(*arrays, scene.spacing_mm), rng())
    assert (made[-1] == -1).all() and np.isfinite(made).all()


def test_doses_share_what_chance_decides(scene):
    for name, key in (("gain", "shift"), ("attenuation", "change"), ("border-shifted", "shift_mm")):
        half, full = (degrade(name, d, scene, rng())[1][key] for d in (0.5, 1.0))
        assert half == pytest.approx(full / 2)
    half, full = (degrade("rigid", d, scene, rng())[1] for d in (0.5, 1.0))
    assert np.array(half["shift_mm"]) == pytest.approx(np.array(full["shift_mm"]) / 2)
    seeds = {degrade("elastic", d, scene, rng())[1]["seed"] for d in (0.25, 0.5, 1.0)}
    assert len(seeds) == 1
    half, full = (degrade("hallucinated", d, scene, rng())[1]["masses"] for d in (0.5, 1.0))
    assert full[:4] == half and len(full) == 8


@pytest.mark.parametrize("name", ["gain", "attenuation", "border-shifted"])
def test_both_senses_are_drawn(name, scene):
    drawn = [next(iter(OPERATORS[name].draw(np.random.default_rng(s), 1.0, scene).values())) for s in range(40)]
    assert 8 < sum(x > 0 for x in drawn) < 32


def test_an_unknown_defect_is_refused_with_the_known_ones(scene):
    with pytest.raises(InputError, match="unknown defect; got 'rust'; expected one of blur, excess-speckle"):
        degrade("rust", 0.5, scene, rng())


@pytest.mark.parametrize("dose", [-0.1, 1.1, float("nan"), float("inf"), True, "1", None])
def test_a_dose_outside_0_to_1_is_refused(dose, scene):
    with pytest.raises(InputError, match="the dose of blur is not usable; got .*; expected a number from 0 to 1"):
        degrade("blur", dose, scene, rng())


def numbers(name: str) -> list[float]:
    return [float(n) for n in re.findall(r"\d+(?:\.\d+)?", OPERATORS[name].full_dose)]


def test_full_doses_in_words_are_those_in_the_code():
    """The plan keeps the words; this ties the numbers to them."""
    assert numbers("blur") == [appearance.FULL_BLUR_MM]
    assert numbers("excess-speckle") == [appearance.FULL_SPECKLE_DB]
    assert "four times" in OPERATORS["speckle-size"].full_dose and appearance.FULL_GRAIN == 3.0
    assert numbers("gain") == [appearance.FULL_GAIN, 2]
    assert numbers("attenuation") == [appearance.FULL_ATTENUATION, 2]
    assert numbers("rigid") == [anatomical.FULL_SHIFT_MM, pytest.approx(np.degrees(anatomical.FULL_TURN_RAD))]
    assert numbers("elastic") == [anatomical.FULL_ELASTIC_MM]
    assert numbers("border-blurred") == [anatomical.FULL_BORDER_MM]
    assert numbers("border-shifted") == [anatomical.FULL_BORDER_SHIFT_MM]
    assert "eight" in OPERATORS["hallucinated"].full_dose and anatomical.FULL_MASSES == 8


def test_every_defect_has_a_title_and_a_kind():
    assert all(o.title and o.full_dose and o.name == name for name, o in OPERATORS.items())
    assert {o.kind for o in OPERATORS.values()} == {"texture", "intensity", "geometry", "content"}
    assert len({o.title for o in OPERATORS.values()}) == len(OPERATORS)
