"""The Snakefile with tiny notebooks: order, what is run again and what is not, sweeps, Table 1 and report."""

from __future__ import annotations

import os
import re
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
from mhvae_kit.table1 import ROWS

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("00_quickstart", "01_data_preparation", "02_staged_training", "03_evaluation")
TABLE1 = "04_table1"
MISSING = "08_missing_modalities"
PARAMETERS = 'preset: str = "demo"\nseed: int = 0\nrun_dir: str = ""\ntrain_run: str = ""\nrows_root: str = ""'
RECORD = """import pathlib
assert not ("{name}".startswith("02") and pathlib.Path("fail").exists()), "asked to fail"
from mhvae_kit.runs import read_results, write_results
trained = read_results(train_run)["run_id"] if train_run else ""
pathlib.Path("ran").open("a").write("{name}\\n")
data = {{"name": "none", "digest": "0"}}
write_results(run_dir, notebook="{name}", parameters={{"seed": seed}}, preset=preset, seed=seed, dataset=data,
              metrics={{"trained": trained, "twice": 2 * seed, "rows_root": rows_root}}, seconds=1)"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder with this Snakefile and six tiny notebooks."""
    monkeypatch.delenv("MHVAE_RUNS")
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "notebooks").mkdir()
    for name in (*NAMES, TABLE1, MISSING):
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
    if (project / "notebooks" / f"{name}.ipynb").exists():
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


def test_table1_is_a_run_a_row_then_its_notebook(project):
    planned = snakemake(project, "table1", "--config", "preset=smoke", "--dry-run", "--printshellcmds")
    assert planned.returncode == 0, planned.stderr
    told = planned.stdout + planned.stderr
    for row in ROWS:
        assert told.count(f"-m mhvae_kit.cli table1 {row} --preset smoke --root runs\n") == 1
    place = {row: told.index(f"cli table1 {row} ") for row in ROWS}
    assert place["mhvae-gan"] < place["mhvae"]
    rows_root = (project / "runs").resolve()
    assert max(place.values()) < told.index(f"run 04_table1 -p preset=smoke -p rows_root={rows_root} --root runs")


def test_finished_rows_are_not_made_again(project):
    for row in ROWS:  # mhvae-gan after mhvae, which builds on it: its being newer is no reason
        pretend_done(project, f"smoke-table1-{row}", "table1")
    first = snakemake(project, "table1", "--config", "preset=smoke")
    assert first.returncode == 0, first.stderr
    assert ran(project) == [TABLE1]
    assert (
        f'"rows_root": "{(project / "runs").resolve()}"' in (project / "runs/smoke-04_table1/results.json").read_text()
    )
    assert "1 of 1 notebooks done" in (project / "runs/table1-smoke/index.html").read_text()
    again = snakemake(project, "table1", "--config", "preset=smoke")
    assert again.returncode == 0 and ran(project) == []


def test_the_gallery_needs_the_demo_and_the_notebooks_of_the_shipped_models(project):
    planned = snakemake(project, "gallery", "--config", "preset=smoke", "--dry-run", "--printshellcmds")
    assert planned.returncode == 0, planned.stderr
    wanted = (*NAMES, "05_product_of_experts", "06_latent_levels", "07_temperature")
    assert all(f"--run-id smoke-{name}" in planned.stdout + planned.stderr for name in wanted)
    assert "gallery --preset smoke" in planned.stdout + planned.stderr


def test_missing_is_one_notebook_and_its_report(project):
    for name in ("01_data_preparation", MISSING):
        pretend_done(project, f"smoke-{name}", name)
    done = snakemake(project, "missing", "--config", "preset=smoke")
    assert done.returncode == 0, done.stderr
    assert ran(project) == []
    assert "1 of 1 notebooks done" in (project / "runs/missing-smoke/index.html").read_text()
    planned = snakemake(project, "missing", "--config", "preset=paper", "--dry-run", "--printshellcmds")
    assert "run 08_missing_modalities -p preset=paper --root runs" in planned.stdout + planned.stderr


def test_degradation_plans_the_cells_that_were_asked_for_and_no_row_of_table_1(project):
    asked = ("--config", "preset=smoke", "only=blur", "--dry-run", "--printshellcmds")
    planned = snakemake(project, "degradation", *asked)
    assert planned.returncode == 0, planned.stderr
    told = planned.stdout + planned.stderr
    cells = re.findall(r"degradation-cell (\S+) +(?:--dose (\S+) )?--preset smoke --root runs", told)
    assert sorted(cells) == [("blur", "1.0"), ("synthetic", "")]
    outputs = set(re.findall(r"runs/smoke-degradation-([\w-]+)/results.json", told))
    assert outputs == {"blur-100", "synthetic"}
    assert "table1" not in told and "degradation-training" not in told
    assert told.count("degradation-plan --preset smoke") == 1
    assert "run 09_degradation_study -p preset=smoke" in told and "-p only=blur " in told


def test_cells_wait_for_the_models_that_make_their_images(project):
    asked = ("--config", "preset=demo", "only=age,table1-spade", "--dry-run", "--printshellcmds")
    planned = snakemake(project, "degradation", *asked)
    assert planned.returncode == 0, planned.stderr
    told = planned.stdout + planned.stderr
    assert told.index("cli table1 spade ") < told.index("degradation-cell table1-spade ")
    assert told.index("cli degradation-training ") < told.index("degradation-cell age --dose 0.95 ")
    assert len(re.findall("cli table1 ", told)) == 1


def test_degradation_refuses_unknown_conditions(project):
    ended = snakemake(project, "degradation", "--config", "preset=smoke", "only=rust", "--dry-run")
    assert ended.returncode != 0 and "unknown conditions; got rust" in ended.stdout + ended.stderr


def test_a_sweep_without_table_says_what_is_missing(project):
    ended = snakemake(project, "sweep")
    assert ended.returncode != 0 and "--config table=sweep.csv" in ended.stderr
