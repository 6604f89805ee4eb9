"""The plan: what is in it, how it is asked for, and that its digest shows every change."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhvae_kit.config import TrainingConfig
from mhvae_kit.degradation import OPERATORS, plan_digest, plan_text, study_of
from mhvae_kit.degradation import plan as exported_plan
from mhvae_kit.degradation.plan import (
    AGES,
    BASELINE,
    STUDIES,
    Condition,
    defects,
    estimated_seconds,
    find_condition,
    find_key,
    plan,
    routes,
)
from mhvae_kit.errors import InputError
from mhvae_kit.runs import check_run_id
from mhvae_kit.table1 import ROWS

PRESETS = list(STUDIES)
MODULE = sys.modules[plan.__module__]
"""The package has a function of the same name."""


def every(preset: str) -> list[Condition]:
    return routes(study_of(preset)) + defects(study_of(preset))


def test_the_package_offers_the_plan():
    assert exported_plan is plan


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_are_unique_and_name_run_folders(preset):
    keys = [c.key for c in every(preset)]
    assert len(set(keys)) == len(keys)
    assert all(check_run_id(f"{preset}-degradation-{k}") for k in keys)
    assert not {"training", "plan"} & set(keys)  # taken by other files beside the cells


@pytest.mark.parametrize("preset", PRESETS)
def test_every_condition_is_found_by_its_name_and_dose_and_by_its_key(preset):
    for condition in every(preset):
        assert find_condition(preset, condition.name, condition.dose) == condition
        assert find_key(preset, condition.key) == condition


def test_keys_are_the_name_and_hundredths():
    assert find_condition("demo", "blur", 0.5).key == "blur-050"
    assert find_condition("demo", "real").key == "real"
    assert find_key("demo", "age-095").dose == 0.95


def test_the_demo_study_has_at_least_eight_defects_with_curves():
    doses = {}
    for condition in plan("demo"):
        if condition.group == "defect":
            doses.setdefault(condition.name, []).append(condition.dose)
    curves = [name for name, found in doses.items() if len(found) >= 2]
    assert len(curves) >= 8 and set(OPERATORS) <= set(curves)


@pytest.mark.parametrize("preset", PRESETS)
def test_doses_are_the_study_s_and_rise_to_full(preset):
    study = study_of(preset)
    assert list(study.doses) == sorted(set(study.doses)) and study.doses[0] > 0 and study.doses[-1] == 1.0
    for name in OPERATORS:
        assert tuple(c.dose for c in defects(study) if c.name == name) == study.doses
    assert all(c.dose is None for c in routes(study))
    assert all(0 <= c.dose <= 1 for c in defects(study))


def test_the_floor_the_ceiling_and_every_trained_row_are_routes():
    named = {c.name: c for c in routes(study_of("demo"))}
    assert {"real", "t2-as-us", "synthetic", "patient-specific", "labels-affine-1mm", "labels-deformed-8mm"} <= set(
        named
    )
    rows = {c.needs for c in named.values() if c.needs}
    assert rows == {name for name, row in ROWS.items() if row.kind != "references"}


def test_smoke_is_its_six_cells():
    assert [c.key for c in plan("smoke")] == [
        "real",
        "t2-as-us",
        "synthetic",
        "labels-affine-4mm",
        "blur-100",
        "rigid-100",
    ]


@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_checkpoints_are_kept_at_every_age(preset):
    """As `train_for_ages` trains: one checkpoint every twentieth of the steps."""
    steps = TrainingConfig.from_preset(preset).steps
    assert all(round(steps * age) % (steps // 20) == 0 for age in AGES)
    assert [c.dose for c in defects(study_of(preset)) if c.name == "age"] == [0.95, 0.8, 0.5, 0.0]


@pytest.mark.parametrize("only", ["blur,rigid", ["blur", "rigid"], " blur , rigid "])
def test_some_conditions_come_with_the_clean_images(only):
    assert [c.key for c in plan("demo", only)] == [BASELINE, "blur-050", "blur-100", "rigid-050", "rigid-100"]


def test_only_may_name_what_the_preset_leaves_out():
    assert [c.key for c in plan("smoke", "gain")] == [BASELINE, "gain-100"]


@pytest.mark.parametrize("only", [None, "", []])
def test_no_choice_is_all(only):
    assert plan("demo", only) == every("demo")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan("huge"), "unknown preset; got 'huge'; expected one of smoke, demo, paper"),
        (lambda: plan("demo", "blur,rust"), "unknown conditions; got rust; expected some of real, t2-as-us"),
        (lambda: plan("smoke", "age"), "unknown conditions; got age"),
        (lambda: find_condition("demo", "rust"), "unknown condition; got 'rust'; expected one of real"),
        (lambda: find_condition("demo", "blur"), "blur has no such dose in the plan of demo; .*expected dose 0.5, 1"),
        (lambda: find_condition("demo", "blur", 0.0), "blur has no such dose .*; got 0.0; expected dose 0.5, 1"),
        (lambda: find_condition("demo", "blur", float("nan")), "blur has no such dose"),
        (lambda: find_condition("demo", "real", 1.0), "real has no such dose .*; got 1.0; expected no dose"),
        (lambda: find_key("demo", "blur-051"), "unknown cell of the degradation study; got 'blur-051'"),
        (lambda: plan_digest("huge"), "unknown preset"),
    ],
)
def test_what_is_not_in_the_plan_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_dose_from_the_command_line_may_be_rounded():
    assert find_condition("demo", "age", 1 - 0.05).dose == 0.95


def test_the_digest_is_stable_and_each_preset_s_own():
    digests = [plan_digest(p) for p in PRESETS]
    assert digests == [plan_digest(p) for p in PRESETS] and len(set(digests)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)


CHANGES = {
    "steps": 601,
    "seeds": (0, 1),
    "doses": (0.4, 1.0),
    "temperature": 0.8,
    "model": "demo",
    "model_without_gan": "demo-gan",
    "n_train": 5,
    "n_test": 5,
    "sweeps": 5,
    "phantom": "smoke",
    "ood_phantom": "demo",
    "ages": False,
    "rows": False,
    "only": ("real",),
}


def test_every_size_of_the_study_is_tried():
    assert set(CHANGES) == {f.name for f in dataclasses.fields(STUDIES["demo"])}


@pytest.mark.parametrize("field", CHANGES)
def test_the_digest_changes_with_every_size(field, monkeypatch):
    before = plan_digest("demo")
    monkeypatch.setitem(STUDIES, "demo", dataclasses.replace(STUDIES["demo"], **{field: CHANGES[field]}))
    assert plan_digest("demo") != before


@pytest.mark.parametrize("name", ["HYPOTHESES", "NEGATIVE", "TESTS"])
def test_the_digest_changes_with_the_words(name, monkeypatch):
    before = plan_digest("demo")
    monkeypatch.setattr(MODULE, name, "Something else.")
    assert plan_digest("demo") != before


def test_the_digest_changes_with_a_full_dose(monkeypatch):
    before = plan_digest("demo")
    monkeypatch.setitem(OPERATORS, "blur", dataclasses.replace(OPERATORS["blur"], full_dose="Gaussian of 4 mm"))
    assert plan_digest("demo") != before


@pytest.mark.parametrize("preset", PRESETS)
def test_every_cell_takes_time_and_a_larger_preset_more(preset):
    assert all(estimated_seconds(c, preset) > 0 for c in every(preset))


def test_a_network_a_patient_takes_longer_than_one_for_all():
    one, many = (estimated_seconds(find_condition("demo", n), "demo") for n in ("real", "patient-specific"))
    assert many > one


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_in_words_names_all_that_is_fixed(preset):
    told = plan_text(preset)
    assert plan_digest(preset)[:12] in told and all(f"H{i}: " in told for i in range(1, 6))
    assert all(re.search(rf"\b{re.escape(c.name)}\b", told) for c in plan(preset))
    assert f"{len(plan(preset))} cells x {len(study_of(preset).seeds)} seeds" in told


def test_the_plan_in_words_counts_what_was_asked():
    told = plan_text("demo", "blur")
    assert "routes: synthetic\n" in told and "defects: blur (0.5 1)\n" in told and "3 cells x 3 seeds" in told
    assert "defects: none" in plan_text("demo", "real")


def test_more_cores_take_less_time():
    minutes = [int(re.search(r"about (\d+) min", plan_text("demo", cores=n)).group(1)) for n in (1, 2, 4)]
    assert minutes[0] == pytest.approx(2 * minutes[1], abs=2) and minutes[1] == pytest.approx(2 * minutes[2], abs=2)


@given(name=st.sampled_from(sorted({c.name for c in every("paper")})))
def test_any_one_name_gives_itself_and_the_clean_images(name):
    kept = plan("paper", name)
    assert {c.name for c in kept} == {name, BASELINE}
