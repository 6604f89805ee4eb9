"""Run folders: safe JSON, honest status, results written last, one tidy table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from mhvae_kit import __version__
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.files import write_json
from mhvae_kit.runs import (
    collect,
    default_root,
    find_run,
    list_runs,
    read_results,
    run_folder,
    run_status,
    set_status,
    write_results,
)


def finish(run_dir: Path, notebook: str = "02_staged_training", preset: str = "demo", seed: int = 0, **options) -> Path:
    """Write results as the last cell of a notebook does."""
    parameters = options.pop("parameters", {"seed": seed})
    metrics = options.pop("metrics", {"psnr_db": {"us": 22.5}})
    return write_results(
        run_dir,
        notebook=notebook,
        parameters=parameters,
        preset=preset,
        seed=seed,
        dataset={"name": "phantom-demo", "digest": "ab"},
        metrics=metrics,
        seconds=12.3456,
        **options,
    )


def test_a_new_run_has_a_folder_of_its_own_with_figures(runs_root):
    first, second = run_folder(name="train"), run_folder(name="train")
    assert first != second
    assert first.parent == runs_root and "-train-" in first.name
    assert (first / "figures").is_dir()
    assert run_status(first) == "running"


def test_a_run_of_a_given_id_is_found_again(tmp_path):
    assert run_folder(tmp_path, run_id="demo-1") == run_folder(tmp_path, run_id="demo-1") == tmp_path / "demo-1"


@pytest.mark.parametrize("run_id", ["../out", "a/b", "", ".hidden", "a b", "x" * 200])
def test_an_id_that_leaves_the_folder_is_refused(tmp_path, run_id):
    with pytest.raises(InputError, match="unusable run id"):
        run_folder(tmp_path, run_id=run_id)


def test_results_carry_what_is_needed_to_repeat_them(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    finish(run, metrics={"psnr_db": np.float32(22.5), "ssim": float("nan")}, extra={"note": Path("x")})
    results = read_results(run)
    assert results["run_id"] == "a"
    assert results["code_version"] == __version__
    assert results["metrics"] == {"psnr_db": 22.5, "ssim": None}
    assert results["libraries"]["numpy"] == np.__version__
    assert results["dataset"] == {"name": "phantom-demo", "digest": "ab"}
    assert results["seconds"] == 12.346
    assert results["extra"] == {"note": "x"}
    assert {"schema", "time_utc", "device", "python", "git_commit"} <= set(results)


def test_results_end_a_run_without_a_runner(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    finish(run)
    assert run_status(run) == "done"


def test_results_do_not_end_a_run_under_the_runner(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    set_status(run, "running", by="runner")
    finish(run)
    assert run_status(run) == "running"


def test_a_dataset_without_digest_is_refused(tmp_path):
    with pytest.raises(InputError, match="dataset is not identified"):
        write_results(
            tmp_path, notebook="n", parameters={}, preset="demo", seed=0, dataset={"name": "x"}, metrics={}, seconds=1
        )


def test_a_running_run_whose_process_is_gone_is_killed(tmp_path):
    code = "import sys; from mhvae_kit.runs import run_folder; run_folder(sys.argv[1], run_id='a')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert run_status(tmp_path / "a") == "killed"
    assert "without a word" in list_runs(tmp_path)[0].message


def test_a_later_process_of_the_same_number_is_not_taken_for_the_run(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    record = json.loads((run / "status.json").read_text())
    assert record["pid"] == os.getpid()
    write_json(run / "status.json", {**record, "pid_started": psutil.Process().create_time() - 100})
    assert run_status(run) == "killed"


def test_a_run_on_another_host_is_believed(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    record = json.loads((run / "status.json").read_text())
    write_json(run / "status.json", {**record, "pid": 2**22 + 1, "host": "elsewhere"})
    assert run_status(run) == "running"


def test_a_done_run_whose_results_have_gone_is_failed(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    finish(run).unlink()
    assert run_status(run) == "failed"


def test_a_folder_that_holds_no_run_is_not_listed(tmp_path):
    (tmp_path / "report-demo").mkdir()
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "absent") == []


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown run status"):
        set_status(tmp_path, "finished")


def test_reading_results_of_an_unfinished_run_says_so(tmp_path):
    with pytest.raises(MissingError, match="the run is not done"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}'])
def test_damaged_results_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="results"):
        read_results(tmp_path)


def test_a_run_with_damaged_results_is_listed_as_failed(tmp_path):
    run = run_folder(tmp_path, run_id="a")
    finish(run).write_text("{")
    assert [(info.status, "not a results file" in info.message) for info in list_runs(tmp_path)] == [("failed", True)]


def test_the_newest_finished_run_that_fits_is_found(tmp_path):
    for number, (notebook, seed) in enumerate([("02_staged_training", 0), ("02_staged_training", 1), ("03_x", 0)]):
        finish(run_folder(tmp_path, run_id=f"r{number}"), notebook=notebook, seed=seed)
    run_folder(tmp_path, run_id="unfinished")
    assert find_run(tmp_path, notebook="02_staged_training", preset="demo").name == "r1"
    assert find_run(tmp_path, notebook="02_staged_training", preset="demo", seed=0).name == "r0"
    assert find_run(tmp_path, notebook="02_staged_training", preset="demo", parameters={"seed": 0}).name == "r0"


def test_no_fitting_run_says_how_to_make_one(tmp_path):
    with pytest.raises(MissingError, match="mhvae run 02_staged_training -p preset=demo"):
        find_run(tmp_path, notebook="02_staged_training", preset="demo")


def test_runs_are_collected_into_one_tidy_table(tmp_path):
    finish(run_folder(tmp_path, run_id="a"), parameters={"seed": 0, "steps": [1, 2]})
    set_status(run_folder(tmp_path, run_id="b"), "failed", parameters={"seed": 5}, message="why")
    table = collect(tmp_path)
    assert list(table["run_id"]) == ["a", "b"]
    assert list(table["status"]) == ["done", "failed"]
    assert table["metric.psnr_db.us"][0] == 22.5 and np.isnan(table["metric.psnr_db.us"][1])
    assert list(table["param.seed"]) == [0, 5]
    assert table["param.steps"][0] == "[1, 2]"
    assert list(collect(tmp_path, ids=["b"])["run_id"]) == ["b"]


def test_collecting_an_absent_run_is_refused(tmp_path):
    with pytest.raises(MissingError, match="no run named zz"):
        collect(tmp_path, ids=["zz"])


def test_runs_go_to_the_project_folder_from_anywhere_inside(tmp_path, monkeypatch):
    monkeypatch.delenv("MHVAE_RUNS")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert default_root() == tmp_path / "runs"
