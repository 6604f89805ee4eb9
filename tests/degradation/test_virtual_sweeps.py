"""Virtual sweeps: T2 beyond the fan, and ultrasound that stays inside it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mhvae_kit.data.phantom.atlas import load_atlas
from mhvae_kit.data.phantom.generate import make_images, make_patient
from mhvae_kit.data.phantom.presets import get_preset
from mhvae_kit.degradation import study_of, sweeps
from mhvae_kit.degradation.sweeps import virtual_sweeps, wide_mr
from mhvae_kit.evaluation.predictions import slices_first
from mhvae_kit.files import default_cache_dir

CASE = "phantom-test-000"
STUDY = dataclasses.replace(study_of("demo"), phantom="smoke", sweeps=2)


@pytest.fixture(scope="module")
def patient():
    return make_patient(CASE, get_preset("smoke"), load_atlas(default_cache_dir()))


@pytest.fixture
def made_once(patient, monkeypatch):
    """The patient without the time that it takes."""
    monkeypatch.setattr(sweeps, "make_patient", lambda *_: patient)


def test_t2_beyond_the_fan_is_the_stored_one_inside_it(patient):
    t2, label = wide_mr(patient)
    stored = make_images(patient)
    fan = slices_first(stored["fov"]) > 0
    difference = (t2 + 1) * 127.5 - slices_first(stored["t2"])
    assert np.abs(difference[fan]).max() <= 2
    tumour = slices_first(stored["tumour"]) > 0
    overlap = 2 * (label & tumour).sum() / ((label & fan).sum() + tumour.sum())
    assert overlap > 0.97


def test_t2_goes_on_beyond_the_fan(patient):
    t2, label = wide_mr(patient)
    fan = slices_first(patient.scan.fov)
    assert t2.dtype == np.float32 and label.dtype == bool and t2.shape == label.shape == fan.shape
    assert t2.min() >= 1 / 127.5 - 1 - 1e-6 and t2.max() <= 1
    assert t2[~fan].std() > 0.1


def test_sweeps_stay_inside_the_fan_and_have_their_own_views(patient, made_once, model):
    scene, drawn = virtual_sweeps(CASE, STUDY, model, np.random.default_rng(0))
    fan = slices_first(patient.scan.fov)
    depth = len(fan)
    assert scene.images.shape == (2 * depth, *fan.shape[1:]) and scene.spacing_mm == 1.5
    assert np.array_equal(scene.fov, np.concatenate([fan, fan]))
    assert (scene.images[~scene.fov] == -1).all() and np.abs(scene.images).max() <= 1
    assert not (scene.labels & ~scene.fov).any()
    assert scene.labels[:depth].any() and not np.array_equal(scene.labels[:depth], scene.labels[depth:])
    assert not np.array_equal(scene.images[:depth], scene.images[depth:])
    assert len(drawn["sweeps"]) == 2 and json.loads(json.dumps(drawn)) == drawn


def test_draws_stay_within_their_limits(made_once, model):
    study = dataclasses.replace(STUDY, sweeps=6)
    _, drawn = virtual_sweeps(CASE, study, model, np.random.default_rng(1))
    for sweep in drawn["sweeps"]:
        assert abs(sweep["angle_rad"]) <= sweeps.LARGEST_TURN_RAD
        assert all(abs(s) <= most for s, most in zip(sweep["shift_mm"], sweeps.LARGEST_SHIFT_MM, strict=True))
        assert sweeps.TEMPERATURES[0] <= sweep["temperature"] <= sweeps.TEMPERATURES[1]
    assert len({s["seed"] for s in drawn["sweeps"]}) == 6


def test_the_same_generator_gives_the_same_sweeps(made_once, model):
    (first, told), (second, again) = (virtual_sweeps(CASE, STUDY, model, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first.images, second.images) and told == again


def test_without_motion_the_label_is_the_patient_s(patient, made_once, model, monkeypatch):
    monkeypatch.setattr(sweeps, "LARGEST_TURN_RAD", 0.0)
    monkeypatch.setattr(sweeps, "LARGEST_SHIFT_MM", (0.0, 0.0))
    scene, _ = virtual_sweeps(CASE, dataclasses.replace(STUDY, sweeps=1), model, np.random.default_rng(0))
    _, label = wide_mr(patient)
    assert np.array_equal(scene.labels, label & scene.fov)
