"""The Snakefile with four tiny notebooks: order, what is run again and what is not, sweeps and report."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mhvae_kit.runs import run_folder, write_results
from mhvae_kit.sweeps import read_sweep

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("00_quickstart", "01_data_preparation", "02_staged_training", "03_evaluation")
PARAMETERS = 'preset: str = "demo"\nseed: int = 0\nrun_dir: str = ""\ntrain_run: str = ""'
RECORD = """import pathlib
assert not ("{name}".startswith("02") and pathlib.Path("fail").exists()), "asked to fail"
from mhvae_kit.runs import read_results, write_results
trained = read_results(train_run)["run_id"] if train_run else ""
pathlib.Path("ran").open("a").write("{name}\\n")
data = {{"name": "none", "digest": "0"}}
write_results(run_dir, notebook="{name}", parameters={{"seed": seed}}, preset=preset, seed=seed, dataset=data,
              metrics={{"trained": trained, "twice": 2 * seed}}, seconds=1)"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder with this Snakefile and four tiny notebooks."""
    monkeypatch.delenv("MHVAE_RUNS")
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "notebooks").mkdir()
    for name in NAMES:
        first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell(f"# {name}"), first, new_code_cell(RECORD.format(name=name))]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def snakemake(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(project / ".cache")}
    return subprocess.run(call, cwd=project, env=environment, capture_output=True, text=True, timeout=200, check=False)


def ran(project: Path) -> list[str]:
    """Names of the notebooks that came to their end since the last look, in order."""
    told = project / "notebooks" / "ran"
    names = told.read_text().split() if told.exists() else []
    told.unlink(missing_ok=True)
    return names


def pretend_done(project: Path, run_id: str, name: str, seed: int = 0) -> None:
    """A finished run without the time that running takes."""
    run = run_folder(project / "runs", name, run_id)
    shutil.copy(project / "notebooks" / f"{name}.ipynb", run)
    data = {"name": "none", "digest": "0"}
    options = {"notebook": name, "preset": "smoke", "seed": seed, "dataset": data, "seconds": 1}
    write_results(run, parameters={"seed": seed}, metrics={"twice": 2 * seed}, **options)


def test_a_failed_run_is_run_again_and_done_ones_are_not(project):
    for name in NAMES[:2]:
        pretend_done(project, f"smoke-{name}", name)
    (project / "notebooks" / "fail").touch()
    first = snakemake(project, "smoke")
    assert first.returncode != 0 and "asked to fail" in first.stderr
    assert ran(project) == []
    (project / "notebooks" / "fail").unlink()
    second = snakemake(project, "smoke")
    assert second.returncode == 0, second.stderr
    assert ran(project) == ["02_staged_training", "03_evaluation"]
    assert "4 of 4 notebooks done" in (project / "runs" / "report-smoke" / "index.html").read_text()
    assert '"trained": "smoke-02_staged_training"' in (project / "runs/smoke-03_evaluation/results.json").read_text()
    for notebook in project.glob("notebooks/*.ipynb"):
        notebook.touch()  # newer code alone is no reason
    third = snakemake(project, "smoke")
    assert third.returncode == 0 and ran(project) == []


def test_a_sweep_gives_one_run_a_row_and_one_table(project, monkeypatch):
    (project / "study.csv").write_text("notebook,preset,seed\n00_quickstart,smoke,1\n02,smoke,2\n")
    monkeypatch.chdir(project)
    pretend_done(project, read_sweep("study.csv")[0].run_id, "00_quickstart", seed=1)
    done = snakemake(project, "sweep", "--config", "table=study.csv")
    assert done.returncode == 0, done.stderr
    assert ran(project) == ["02_staged_training"]
    table = pd.read_csv(project / "runs" / "sweep-study.csv")
    assert list(table["param.seed"]) == [1, 2]
    assert list(table["metric.twice"]) == [2, 4]
    assert list(table["status"]) == ["done", "done"]


def test_a_sweep_without_table_says_what_is_missing(project):
    ended = snakemake(project, "sweep")
    assert ended.returncode != 0 and "--config table=sweep.csv" in ended.stderr
