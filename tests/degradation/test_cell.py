"""A cell of the study: its files, that it is made once, and how it ends when it does not end well."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mhvae_kit.degradation import build, plan_digest
from mhvae_kit.degradation import cell as module
from mhvae_kit.degradation.cell import cell_folder, one_line, run_cell, train_for_ages
from mhvae_kit.degradation.plan import STUDIES
from mhvae_kit.errors import InputError, RunError
from mhvae_kit.runs import read_results, run_status, set_status
from mhvae_kit.segmentation import SegmentationConfig
from mhvae_kit.segmentation.scores import COLUMNS

FILES = {"patients.csv", "images.csv", "drawn.json", "example.npz", "results.json"}
TEST_CASES = ["phantom-test-000", "phantom-test-001"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def rigid(root) -> Path:
    """A defect on the shipped model's images, at the smoke preset."""
    return run_cell("rigid", 1.0, preset="smoke", root=root)


@pytest.fixture
def broken(monkeypatch):
    """Makes the training of the networks end in an error."""

    def breaks_with(error: BaseException) -> None:
        def train(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, "train_segmenter", train)

    return breaks_with


def test_all_files_are_there(rigid):
    assert rigid.name == "smoke-degradation-rigid-100" and run_status(rigid) == "done"
    assert {p.name for p in rigid.iterdir()} >= FILES


def test_every_patient_is_scored_by_every_seed(rigid):
    table = pd.read_csv(rigid / "patients.csv")
    assert set(table.columns) == {*COLUMNS, "seed"}
    assert sorted(zip(table["seed"], table["case"], strict=True)) == [(s, c) for s in (0, 1) for c in TEST_CASES]
    assert table.notna().all(axis=None) and table["dice"].between(0, 1).all()
    assert (table.groupby("case")["volume_ml"].nunique() == 1).all()


def test_every_training_image_is_measured_and_what_was_drawn_is_kept(rigid):
    images = pd.read_csv(rigid / "images.csv")
    drawn = json.loads((rigid / "drawn.json").read_text())
    assert images["case"].tolist() == [f"phantom-train-{i:03d}" for i in range(4)] == list(drawn)
    assert images["contrast_error_db"].notna().all() and images["psnr_fov_db"].between(5, 40).all()
    assert all(np.hypot(*d["shift_mm"]) == pytest.approx(10) for d in drawn.values())


def test_the_example_shows_a_training_slice_and_a_real_one(rigid):
    with np.load(rigid / "example.npz") as arrays:
        shown = dict(arrays)
    assert set(shown) == {"training_image", "training_label", "real_image", "true_mask", "predicted_mask"}
    assert all(a.shape == (96, 96) for a in shown.values())
    assert shown["training_label"].any() and shown["true_mask"].any()


def test_results_name_the_plan_and_the_means(rigid):
    results, table = read_results(rigid), pd.read_csv(rigid / "patients.csv")
    assert results["parameters"] == {
        "condition": "rigid",
        "dose": 1.0,
        "preset": "smoke",
        "plan": plan_digest("smoke"),
    }
    assert results["metrics"]["dice"] == pytest.approx(table["dice"].mean())
    images = pd.read_csv(rigid / "images.csv")
    assert results["metrics"]["images"]["ssim_fov"] == pytest.approx(images["ssim_fov"].mean())
    assert results["extra"]["test_cases"] == TEST_CASES and results["extra"]["training_patients"] == 4
    assert results["extra"]["seeds"] == [0, 1] and results["extra"]["group"] == "defect"


def test_a_cell_in_one_line(rigid):
    told = one_line(rigid)
    assert told.startswith("smoke-degradation-rigid-100: Dice 0.") and " dB; " in told


def test_a_second_call_does_nothing(rigid, root, broken):
    broken(AssertionError("trained again"))
    before = {p: (rigid / p).stat().st_mtime_ns for p in FILES}
    assert run_cell("rigid", 1.0, preset="smoke", root=root) == rigid
    assert {p: (rigid / p).stat().st_mtime_ns for p in FILES} == before


def test_a_cell_of_another_plan_is_refused(rigid, root, monkeypatch):
    monkeypatch.setitem(STUDIES, "smoke", dataclasses.replace(STUDIES["smoke"], temperature=0.5))
    with pytest.raises(InputError, match="is a finished run with other settings; got plan=.*move that folder away"):
        run_cell("rigid", 1.0, preset="smoke", root=root)


def test_the_same_cell_elsewhere_has_the_same_scores(rigid, tmp_path):
    again = run_cell("rigid", 1.0, preset="smoke", root=tmp_path)
    for name in ("patients.csv", "images.csv", "drawn.json"):
        assert (again / name).read_bytes() == (rigid / name).read_bytes()


def test_a_route_without_truth_has_an_empty_table_of_images(tmp_path, small):
    folder = run_cell("t2-as-us", preset="smoke", root=tmp_path)
    images = pd.read_csv(folder / "images.csv")
    assert list(images.columns) == ["case", "slice"] and images.empty
    assert read_results(folder)["metrics"]["images"] == {} and "dB" not in one_line(folder)


@pytest.fixture
def small(monkeypatch):
    """The smoke study on the smaller phantom, with fewer steps."""
    sizes = {"phantom": "smoke", "n_train": 2, "n_test": 2, "steps": 1, "sweeps": 1}
    monkeypatch.setitem(STUDIES, "smoke", dataclasses.replace(STUDIES["smoke"], **sizes))
    tiny = SegmentationConfig(channels=(4, 8), steps=1)
    monkeypatch.setattr(module._Cell, "_config", lambda self, share=1.0: tiny)


def test_one_network_a_patient_is_tested_on_that_patient(tmp_path, small, model, monkeypatch):
    monkeypatch.setattr(build, "condition_model", lambda *_: lambda: model)
    folder = run_cell("patient-specific", preset="smoke", root=tmp_path)
    table, drawn = pd.read_csv(folder / "patients.csv"), json.loads((folder / "drawn.json").read_text())
    assert sorted(zip(table["seed"], table["case"], strict=True)) == [(s, c) for s in (0, 1) for c in TEST_CASES]
    assert list(drawn) == TEST_CASES and all(len(d["sweeps"]) == 1 for d in drawn.values())


def test_a_share_of_the_steps_is_at_least_one():
    made = module._Cell.__new__(module._Cell)
    made.context = type("Context", (), {"study": STUDIES["smoke"]})
    assert made._config().steps == 4 and made._config(0.25).steps == 1 and made._config(0.01).steps == 1


def test_a_cell_that_fails_says_so(tmp_path, small, broken):
    broken(RunError("the loss is not finite."))
    with pytest.raises(RunError, match="the loss is not finite"):
        run_cell("real", preset="smoke", root=tmp_path)
    folder = cell_folder("real", "smoke", tmp_path)
    assert run_status(folder) == "failed" and not (folder / "results.json").exists()
    assert json.loads((folder / "status.json").read_text())["message"] == "the loss is not finite."


def test_a_failed_cell_is_made_again(tmp_path, small):
    folder = cell_folder("real", "smoke", tmp_path)
    folder.mkdir()
    set_status(folder, "failed")
    assert run_status(run_cell("real", preset="smoke", root=tmp_path)) == "done"


def test_an_interrupted_cell_is_killed(tmp_path, small, broken):
    broken(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_cell("real", preset="smoke", root=tmp_path)
    assert run_status(cell_folder("real", "smoke", tmp_path)) == "killed"


def test_a_cell_that_another_process_makes_is_left_alone(tmp_path):
    folder = cell_folder("real", "smoke", tmp_path)
    folder.mkdir()
    set_status(folder, "running")
    with pytest.raises(RunError, match="cell real is being made in another process"):
        run_cell("real", preset="smoke", root=tmp_path)


def test_what_is_not_in_the_plan_makes_no_folder(tmp_path):
    with pytest.raises(InputError, match="rigid has no such dose in the plan of smoke; got 0.5; expected dose 1"):
        run_cell("rigid", 0.5, preset="smoke", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cells_are_in_the_folder_of_all_runs_by_default(runs_root):
    assert cell_folder("real", "smoke") == runs_root.resolve() / "smoke-degradation-real"


def test_the_smoke_study_has_no_ages_to_train_for(tmp_path):
    with pytest.raises(InputError, match="the plan at smoke has no checkpoint ages; expected demo or paper"):
        train_for_ages("smoke", tmp_path)


@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_the_training_for_ages_keeps_every_twentieth(preset, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("mhvae_kit.commands.train_in_run_folder", lambda config, **o: asked.update(o, config=config))
    train_for_ages(preset, tmp_path, "data")
    config = asked["config"]
    assert asked["run_id"] == f"{preset}-degradation-training" and asked["data_dir"] == "data"
    assert config.checkpoint_every == config.steps // 20 and config.keep_checkpoints >= 20
