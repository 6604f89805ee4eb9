"""Finding notebooks and checking what they are given."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mhvae_kit import config_base
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.parameters import (
    PRESETS,
    Parameter,
    check_parameters,
    declared_parameters,
    find_notebook,
    read_notebook,
)

CELL = """# what to run with
preset: str = "demo"  # smoke, demo or paper
seed: int = 0  # random seed
rate: float = 1e-3  # step size
gan: bool = True  # adversarial term
levels: list[int] = [1, 2]  # which
name: str | None = None  # "" for none
guessed = 3
"""


def declare(source: str = CELL) -> dict[str, Parameter]:
    return declared_parameters(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})]))


def test_names_types_defaults_and_help_are_read():
    found = declare()
    assert found["preset"] == Parameter("preset", "str", "demo", help="smoke, demo or paper")
    assert found["rate"].default == 1e-3 and found["rate"].kind == "float"
    assert found["levels"].type_name == "list[int]"
    assert found["name"].type_name == "str | None"
    assert found["guessed"].kind == "int"


@pytest.mark.parametrize("line", ["x: int = 1 + y", "x = print", "import os", "x: Tensor = 1", "x = y = 1"])
def test_a_line_that_declares_nothing_is_named(line):
    with pytest.raises(DataError, match="declares no parameter"):
        declare(line)


def test_a_parameters_cell_that_is_no_python_is_named():
    with pytest.raises(DataError, match="the parameters cell of the notebook is not Python"):
        declare("x: int = ")


def test_a_notebook_without_parameters_cell_is_refused():
    with pytest.raises(DataError, match="0 cells tagged"):
        declared_parameters(new_notebook(cells=[new_code_cell("x = 1")]))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("preset", "demo", "demo"),
        ("seed", "1", 1),
        ("seed", "-1", -1),
        ("rate", "2", 2.0),
        ("rate", "1e-4", 1e-4),
        ("gan", "false", False),
        ("gan", "True", True),
        ("levels", "[3, 4]", [3, 4]),
        ("name", "none", None),
        ("name", "1", "1"),
    ],
)
def test_text_is_read_by_the_declared_type(name, text, value):
    checked = check_parameters(declare(), {name: text}, "n")[name]
    assert checked == value and type(checked) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", np.float32(0.5)), ("seed", np.int64(2)), ("levels", (1, 2)), ("rate", 1)],
)
def test_numpy_and_tuples_are_taken_for_what_they_are(name, value):
    assert type(check_parameters(declare(), {name: value}, "n")[name]) in (int, float, list)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "1.0"),
        ("seed", 1.5),
        ("seed", False),
        ("seed", None),
        ("rate", "fast"),
        ("rate", float("nan")),
        ("gan", "1"),
        ("gan", 1),
        ("levels", "[a]"),
        ("levels", "3"),
        ("levels", "[1"),
        ("preset", 3),
    ],
)
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(InputError, match=f"parameter {name} of n has the wrong type"):
        check_parameters(declare(), {name: value}, "n")


def test_an_unknown_name_gets_the_nearest_suggested():
    with pytest.raises(InputError, match="n has no parameter 'presett'.*the nearest is preset"):
        check_parameters(declare(), {"presett": "demo"}, "n")


def test_the_presets_are_those_of_the_configs():
    assert PRESETS == config_base.PRESETS


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project folder with three empty notebooks, as the working directory."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "Snakefile").touch()
    for name in ("00_quickstart", "02_staged_training", "02_other"):
        nbformat.write(new_notebook(), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["00", "00_quickstart", "00_quickstart.ipynb", "notebooks/00_quickstart.ipynb"])
def test_a_notebook_is_found_by_name_beginning_or_path(project, name):
    assert find_notebook(name) == project / "notebooks" / "00_quickstart.ipynb"


def test_a_misspelt_notebook_gets_the_nearest_suggested(project):
    with pytest.raises(MissingError, match="the nearest is 00_quickstart"):
        find_notebook("00_quikstart")


def test_a_name_that_fits_several_notebooks_is_refused(project):
    with pytest.raises(InputError, match="02_other or 02_staged_training"):
        find_notebook("02")


def test_a_notebook_path_that_is_not_there_is_named():
    with pytest.raises(MissingError, match="no-such"):
        find_notebook("folder/no-such.ipynb")


@pytest.mark.parametrize("text", ["{}[", "{}", "[]", '{"nbformat": 3, "worksheets": []}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(DataError, match="not a readable notebook of format 4"):
        read_notebook(tmp_path / "a.ipynb")
