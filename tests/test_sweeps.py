"""Sweep tables: one row a run, checked before anything runs, with ids that follow the content."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mhvae_kit.errors import DataError, MissingError
from mhvae_kit.sweeps import read_sweep, sweep_name

CELL = 'preset: str = "demo"\nseed: int = 0\nrate: float = 0.1'


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "Snakefile").touch()
    node = new_notebook(cells=[new_code_cell(CELL, metadata={"tags": ["parameters"]})])
    nbformat.write(node, tmp_path / "notebooks" / "02_staged_training.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "study.csv") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_each_row_is_a_run_with_typed_parameters():
    runs = read_sweep(write("notebook,preset,seed,rate\n02,smoke,1,\n02_staged_training,smoke,2,1e-3\n"))
    assert [run.parameters for run in runs] == [
        {"preset": "smoke", "seed": 1},
        {"preset": "smoke", "seed": 2, "rate": 1e-3},
    ]
    assert all(run.run_id.startswith("sweep-study-02_staged_training-") for run in runs)


def test_yaml_and_csv_of_the_same_content_give_the_same_runs():
    table = read_sweep(write("notebook,seed\n02,1\n"))
    assert read_sweep(write("- {notebook: '02', seed: 1}\n", "study.yaml")) == table


def test_moving_a_row_does_not_change_its_id():
    before = {run.run_id for run in read_sweep(write("notebook,seed\n02,1\n02,2\n"))}
    assert before == {run.run_id for run in read_sweep(write("seed,notebook\n2,02_staged_training\n1,02\n"))}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("notebook,sed\n02,1\n", "a.csv", "row 1 of a.csv: 02_staged_training has no parameter 'sed'"),
        ("notebook,seed\n02,1\n02,x\n", "a.csv", "row 2 of a.csv: parameter seed"),
        ("notebook,seed\n02,1\n02,1\n", "a.csv", "rows 1 and 2 of a.csv are the same run"),
        ("notebook,seed\n09,1\n", "a.csv", "row 1 of a.csv: no notebook is called '09'"),
        ("seed\n1\n", "a.csv", "row 1 of a.csv names no notebook"),
        ("notebook,seed\n02,1,3\n", "a.csv", "row 1 of a.csv is uneven"),
        ("notebook,seed\n", "a.csv", "has no rows"),
        ("", "a.csv", "has no rows"),
        ("a: 1\n", "a.yaml", "a.yaml is not a sweep"),
        ("[", "a.yml", "a.yml is not YAML"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(text, name, message):
    with pytest.raises(DataError, match=message):
        read_sweep(write(text, name))


def test_an_absent_table_is_named():
    with pytest.raises(MissingError, match=r"none\.csv is not there"):
        read_sweep("none.csv")


def test_a_sweeps_name_is_safe_in_a_file_name():
    assert sweep_name("a/my study (2).csv") == "my-study-2-"
