"""From a condition to the slices of a training set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_scene import made_scene

from mhvae_kit.degradation import Condition, build, study_of
from mhvae_kit.degradation.build import (
    Context,
    TrainingPatient,
    case_generator,
    temperature_of,
    training_patients,
    training_slices,
)
from mhvae_kit.degradation.plan import defects, find_condition, routes
from mhvae_kit.errors import InputError

STUDY = dataclasses.replace(study_of("demo"), phantom="smoke", ood_phantom="smoke", n_train=2, n_test=1)


@pytest.fixture
def context(cohort, model, tmp_path, monkeypatch) -> Context:
    """A small study whose model is the small one, whatever the condition."""
    monkeypatch.setattr(build, "condition_model", lambda *_: lambda: model)
    return Context(STUDY, "demo", tmp_path, cohort, cohort, cache=tmp_path)


def condition(name: str, dose: float | None = None) -> Condition:
    return find_condition("demo", name, dose)


def made(name: str, context: Context, dose: float | None = None) -> list[TrainingPatient]:
    return list(training_patients(condition(name, dose), context))


@pytest.mark.parametrize(
    ("name", "dose", "temperature"),
    [
        ("synthetic", None, 0.7),
        ("synthetic-tau-100", None, 1.0),
        ("synthetic-t2-us", None, 0.7),
        ("blur", 1.0, 0.7),
        ("gan-off", 1.0, 0.7),
        ("age", 0.8, 0.7),
        ("temperature-low", 0.5, 0.35),
        ("temperature-low", 1.0, 0.0),
        ("temperature-high", 0.5, 1.35),
        ("temperature-high", 1.0, 2.0),
        ("table1-pix2pix", None, 0.0),
    ],
)
def test_temperature_of_each_condition(name, dose, temperature):
    assert temperature_of(condition(name, dose), study_of("demo")) == pytest.approx(temperature)


def test_real_images_are_the_stored_ones_with_true_labels(context, cohort):
    for patient in made("real", context):
        stored = cohort.patient(patient.case)
        assert np.array_equal(patient.scene.images, stored.images["us"])
        assert np.array_equal(patient.scene.labels, stored.labels) and patient.truth is None
        assert patient.drawn == {} and patient.scene.spacing_mm == 1.5


def test_the_trivial_route_takes_t2(context, cohort):
    for patient in made("t2-as-us", context):
        assert np.array_equal(patient.scene.images, cohort.patient(patient.case).images["t2"])
        assert patient.truth is None  # T2 does not claim to be that ultrasound


@pytest.mark.parametrize("name", ["labels-affine-4mm", "labels-deformed-4mm"])
def test_label_routes_move_labels_but_no_pixel(context, cohort, name):
    for patient in made(name, context):
        stored = cohort.patient(patient.case)
        assert np.array_equal(patient.scene.images, stored.images["us"])
        assert not np.array_equal(patient.scene.labels, stored.labels)
        assert np.array_equal(patient.true_labels, stored.labels)
        assert not (patient.scene.labels & ~stored.fov).any()
        assert patient.drawn["rms_mm"] == pytest.approx(4.0, rel=1e-4)
        assert patient.drawn["deform"] == (name == "labels-deformed-4mm")


def test_defects_change_the_clean_synthetic_images_and_no_label(context, cohort):
    clean, worse = made("synthetic", context), made("rigid", context, 1.0)
    for before, after in zip(clean, worse, strict=True):
        stored = cohort.patient(before.case)
        assert np.array_equal(before.truth, stored.images["us"]) and np.array_equal(after.truth, before.truth)
        assert not np.array_equal(before.scene.images, after.scene.images)
        assert np.array_equal(after.scene.labels, stored.labels)
        assert set(after.drawn) == {"angle_rad", "shift_mm"} and before.drawn == {}


def test_a_condition_is_made_alike_again(context):
    first, second = (made("hallucinated", context, 1.0) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.scene.images, b.scene.images) and a.drawn == b.drawn


def test_other_patients_and_defects_have_other_draws_and_doses_the_same():
    draws = {
        (name, dose, case): case_generator(condition(name, dose), case).integers(2**31)
        for name in ("blur", "rigid")
        for dose in (0.5, 1.0)
        for case in ("a", "b")
    }
    assert len(set(draws.values())) == 4
    assert draws["blur", 0.5, "a"] == draws["blur", 1.0, "a"]


def test_what_was_drawn_is_json(context):
    for name, dose in (("elastic", 0.5), ("labels-affine-1mm", None), ("hallucinated", 0.5)):
        for patient in made(name, context, dose):
            assert json.loads(json.dumps(patient.drawn)) == patient.drawn


def test_the_mr_cohort_is_other_patients(context):
    patients = made("mr-cohort", context)
    assert [p.case for p in patients] == ["phantom-ood-000", "phantom-ood-001"]


def test_images_from_t2_and_ultrasound_are_others_than_from_t2(context):
    one, both = (made(n, context)[0].scene.images for n in ("synthetic", "synthetic-t2-us"))
    assert not np.array_equal(one, both)


def test_patient_specific_has_a_way_of_its_own(context):
    with pytest.raises(InputError, match="one training set a patient; use patient_specific"):
        made("patient-specific", context)


def test_every_condition_of_the_plan_can_be_read():
    """A name or a registration error that `temperature_of` or the label routes cannot read would stop a long run."""
    study = study_of("paper")
    for c in routes(study) + defects(study):
        assert 0 <= temperature_of(c, study) <= build.HIGHEST_TEMPERATURE
        if c.name.startswith("labels-"):
            _, kind, error = c.name.split("-")
            assert kind in ("affine", "deformed") and float(error.removesuffix("mm")) > 0


def test_slices_without_a_fan_are_left_out():
    scene = made_scene()
    fov = scene.fov.copy()
    fov[[0, 3]] = False
    patients = [TrainingPatient("a", dataclasses.replace(scene, fov=fov), None, scene.labels, {})]
    patients.append(TrainingPatient("b", scene, None, scene.labels, {}))
    slices = training_slices(patients)
    assert slices.cases == ("a",) * 4 + ("b",) * 6
    assert np.array_equal(slices.images[:4], scene.images[[1, 2, 4, 5]])
    assert np.array_equal(slices.labels[4:], scene.labels) and np.array_equal(slices.fov[4:], scene.fov)


def test_a_context_reads_its_own_cohorts(tmp_path):
    opened = build.open_context(STUDY, "demo", Path(tmp_path))
    assert opened.train.cases == ["phantom-train-000", "phantom-train-001"]
    assert opened.test.cases == ["phantom-test-000"] and opened.cache is None
