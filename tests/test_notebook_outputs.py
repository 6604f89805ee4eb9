"""Notebooks that keep their outputs: nbval runs them and compares every stored output; solutions run to their end.

Pictures are not compared (nbval cannot); their alternative texts are, and those carry the numbers of the picture.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from keep_outputs import kept

from mhvae_kit import exercises
from mhvae_kit.errors import InputError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
KEEPS_OUTPUTS = FOLDER / "05_product_of_experts.ipynb"
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
NOT_COMPARED = "nbval-ignore-output"
LIMIT_S = 270
# Without the project's settings, whose warnings-are-errors would meet nbval's own remarks, and without other plugins.
PYTEST = ("-m", "pytest", "-c", os.devnull, "--rootdir=/", "-p", "nbval.plugin", "-p", "no:cacheprovider")
NBVAL = ("-rA", "-q", "--color=no", "--nbval", "--nbval-current-env")


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def compared(cell: nbformat.NotebookNode) -> bool:
    return NOT_COMPARED not in cell.metadata.get("tags", [])


# --- the committed form ---


def test_what_is_stored_is_what_is_compared():
    """A cell either keeps its output and is compared, or keeps none: nothing on the page can be out of date."""
    cells = code_cells(KEEPS_OUTPUTS)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom"
    assert not [cell.id for cell in cells if cell.outputs and not compared(cell)]
    silent = [cell.id for cell in cells if compared(cell) and not cell.outputs]
    assert silent == [cells[0].id, cells[1].id], "only parameters and imports have nothing to say"


def test_what_depends_on_weights_clock_or_kernel_is_not_compared():
    for cell in code_cells(KEEPS_OUTPUTS):
        weights = re.search(r"\bfind_model\(|\bsay\b|\bmaps\b|\bpoint\b|by_channel", cell.source)
        elsewhere = re.search(r"code_version\(|time\.monotonic\(\) - |Explorer\(", cell.source)
        assert compared(cell) is not bool(weights or elsewhere), cell.source


def test_stored_outputs_are_whole_and_tie_to_no_machine():
    node = nbformat.read(KEEPS_OUTPUTS, as_version=4)
    nbformat.validate(node)
    assert "widgets" not in node.metadata and node.metadata["language_info"] == {"name": "python"}
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert kinds == {"image/png", "text/plain"}, "no widget, no script"
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6
    for picture in pictures:
        assert picture.metadata["image/png"]["alt"] == picture.data["text/plain"]
        assert re.search(r"\d", picture.data["text/plain"]), "the text has the picture's numbers, which are compared"
    assert not re.search(r"/(home|Users|root|tmp|work)/", "".join(o.get("text", "") for o in outputs))
    assert KEEPS_OUTPUTS.stat().st_size < 250 * 1024


def test_each_interactive_cell_is_followed_by_a_static_figure():
    cells = code_cells(KEEPS_OUTPUTS)
    interactive = [i for i, cell in enumerate(cells) if "Explorer(" in cell.source]
    assert len(interactive) == 2
    for i in interactive:
        assert "if sliders else None" in cells[i].source and "try" not in cells[i].source
        assert "figures.show(" in cells[i + 1].source


def test_keeping_outputs_anew_stores_what_is_compared_and_nothing_else():
    stored = nbformat.v4.new_output("stream", text="1")
    cells = [nbformat.v4.new_code_cell("1", outputs=[stored], execution_count=1) for _ in range(2)]
    cells[1].metadata.tags = [NOT_COMPARED]
    cells[0].metadata.execution = {"iopub.execute_input": "2026-01-01T00:00:00"}
    node = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.12.1"}})
    assert [len(cell.outputs) for cell in kept(node).cells] == [1, 0]
    assert "execution" not in node.cells[0].metadata and node.metadata.language_info == {"name": "python"}


# --- nbval, and the solutions ---


@pytest.fixture(scope="module")
def altered(tmp_path_factory) -> Path:
    """The first cells of the notebook without the slow imports, one stored number changed."""
    node = nbformat.read(KEEPS_OUTPUTS, as_version=4)
    by_hand = [cell for cell in node.cells if cell.cell_type == "code" and "grid_mean" in cell.source][:2]
    node.cells = [nbformat.v4.new_code_cell("import numpy as np"), *by_hand]
    assert "mean 0.800" in by_hand[1].outputs[0].text
    by_hand[1].outputs[0].text = by_hand[1].outputs[0].text.replace("mean 0.800", "mean 0.801")
    path = tmp_path_factory.mktemp("altered") / "altered.ipynb"
    nbformat.write(node, path)
    return path


@pytest.fixture(scope="module")
def outcomes(altered, tmp_path_factory) -> tuple[dict[str, list[str]], str]:
    """By notebook, the outcome of each of its cells under strict nbval; and all that nbval said."""
    told = {"MHVAE_RUNS": str(tmp_path_factory.mktemp("runs")), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    call = [sys.executable, *PYTEST, *NBVAL, f"--nbval-cell-timeout={LIMIT_S}"]
    paths = [str(path) for path in (KEEPS_OUTPUTS, *SOLUTIONS, altered)]
    options = {"env": {**os.environ, **told}, "cwd": altered.parent, "timeout": LIMIT_S}
    done = subprocess.run([*call, *paths], capture_output=True, text=True, **options)
    found: dict[str, list[str]] = {}
    for outcome, name in re.findall(r"^([A-Z]+) .*?(\w+)\.ipynb::", done.stdout, re.M):
        found.setdefault(name, []).append(outcome)
    return found, done.stdout + done.stderr


def test_every_stored_output_comes_out_again(outcomes):
    found, text = outcomes
    assert found.get(KEEPS_OUTPUTS.stem) == ["PASSED"] * len(code_cells(KEEPS_OUTPUTS)), text


def test_a_changed_number_is_noticed(outcomes):
    found, text = outcomes
    assert sorted(found.get("altered", [])) == ["FAILED", "PASSED", "PASSED"], text
    assert "mean 0.801" in text and "Cell outputs differ" in text


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run_to_their_end(outcomes, path):
    found, text = outcomes
    assert found.get(path.stem) == ["PASSED"] * len(code_cells(path)), text


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_answer_every_exercise_of_their_notebook(path):
    asked = [c.source for c in code_cells(FOLDER / f"{path.stem.removesuffix('_solutions')}.ipynb")]
    solved = code_cells(path)
    numbers = re.findall(r'exercises\.check\("([\d.]+)", \w+\)', "\n".join(asked))
    assert len(numbers) >= 4
    assert (
        re.findall(r'exercises\.check\("([\d.]+)", \w+, required=True\)', "\n".join(c.source for c in solved))
        == numbers
    )
    assert not [cell.id for cell in solved if cell.outputs or cell.execution_count is not None], "committed clean"
    assert not [n for c in asked for n in ast.walk(ast.parse(c)) if isinstance(n, ast.ClassDef)]


# --- the checks of the exercises ---


def test_an_open_exercise_is_passed_over_unless_it_is_required(capsys):
    exercises.check("05.1", ...)
    exercises.check("05.3", lambda prior, experts: ...)
    assert capsys.readouterr().out.count("in place of the three dots") == 2
    with pytest.raises(InputError, match=r"exercise 05\.1 has no answer"):
        exercises.check("05.1", ..., required=True)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("05.1", (1.6, 0.447)),
        ("05.2", 0.3015),
        ("05.4", (0.278, 0.377)),
        ("05.5", 0.3536),
        ("05.6", 4480),
    ],
)
def test_a_right_answer_rounded_as_printed_is_right(exercise, answer, capsys):
    exercises.check(exercise, answer)
    assert f"exercise {exercise}: right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("exercise", "answer", "hint"),
    [
        ("05.1", (1.6, 0.2), "that is the variance"),
        ("05.1", (1.6, 1 / 3), "1/σ does not add"),
        ("05.1", (1.0, 0.447), "plain mean"),
        ("05.1", 1.6, "another form"),
        ("05.1", ("a", 0.447), "the mean is not a number"),
        ("05.2", 12**-0.5, "the prior brings precision too"),
        ("05.4", (0.243, 0.3527), "the prior is inside both"),
        ("05.5", 1 / 3, "to which the prior has added"),
        ("05.6", 67, "with √n, not with n"),
        ("05.6", 1_000_000, "divided by √n"),
        ("05.9", 1, "no such exercise"),
    ],
)
def test_a_wrong_answer_is_told_where_to_look(exercise, answer, hint):
    with pytest.raises(InputError, match=re.escape(hint)):
        exercises.check(exercise, answer)


def test_a_function_is_tried_with_none_one_and_several_experts():
    def without_prior(prior, experts):
        precision = sum(1 / s**2 for _, s in experts) or 1 / prior[1] ** 2
        mean = sum(m / s**2 for m, s in experts) / precision if experts else prior[0]
        return mean, precision**-0.5

    with pytest.raises(InputError, match="the prior counts too"):
        exercises.check("05.3", without_prior)
    with pytest.raises(InputError, match="the prior comes back"):
        exercises.check("05.3", lambda prior, experts: (0.0, 1.0))
    with pytest.raises(InputError, match="not a function"):
        exercises.check("05.3", 3)
