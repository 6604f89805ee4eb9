"""The HTML report: it needs nothing from outside, and loses neither alt text nor equations."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mhvae_kit.errors import InputError, MissingError
from mhvae_kit.report import equation, markdown_to_html, newest_runs, notebook_html, write_report
from mhvae_kit.runs import run_folder, set_status, write_results

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WIDGET = "application/vnd.jupyter.widget-view+json"
OUTSIDE = re.compile(r"""(src\s*=\s*["'](?!data:))|<script|<link|@import|url\(""", re.IGNORECASE)


def figure(alt: str | None = "phantom: loss over steps") -> nbformat.NotebookNode:
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>"}, metadata=metadata)


def executed(*outputs: nbformat.NotebookNode, text: str = "# Staged *training*\n\n$x^2$") -> nbformat.NotebookNode:
    cells = [new_markdown_cell(text), *(new_code_cell("cell()", outputs=[output]) for output in outputs)]
    return new_notebook(cells=cells)


def finished_run(root: Path, notebook: str, node: nbformat.NotebookNode, run_id: str | None = None) -> Path:
    run = run_folder(root, notebook, run_id)
    nbformat.write(node, run / f"{notebook}.ipynb")
    write_results(
        run,
        notebook=notebook,
        parameters={},
        preset="demo",
        seed=3,
        dataset={"name": "phantom-demo", "digest": "0"},
        metrics={},
        seconds=90,
    )
    return run


@pytest.fixture
def report(tmp_path) -> Path:
    """A report of one done and one failed run."""
    done = finished_run(tmp_path, "00_quickstart", executed(figure()), "done")
    failed = run_folder(tmp_path, "02_staged_training", "failed")
    set_status(failed, "failed", notebook="02_staged_training", preset="demo", message="a cell raised <an> error")
    nbformat.write(executed(figure(alt=None)), failed / "02_staged_training.ipynb")
    return write_report([done, failed], tmp_path / "report")


def test_no_page_loads_anything_from_outside(report):
    pages = list(report.parent.glob("*.html"))
    assert len(pages) == 3
    for path in pages:
        assert not OUTSIDE.search(path.read_text()), path


def test_every_image_has_an_alt_text(report):
    tags = [tag for path in report.parent.glob("*.html") for tag in re.findall("<img[^>]*>", path.read_text())]
    assert len(tags) == 4
    assert all(re.search(r'alt="[^"]+"', tag) for tag in tags)
    assert sum('alt="phantom: loss over steps"' in tag for tag in tags) == 2


def test_the_index_has_a_card_per_run_with_title_status_and_time(report):
    text = report.read_text()
    assert text.count('class="card"') == 2
    assert '<a href="done.html">Staged training</a>' in text
    assert "preset demo · seed 3 · 1.5 min · run done" in text
    assert '<span class="status failed">failed</span>' in text
    assert "a cell raised &lt;an&gt; error" in text
    assert "1 of 2 notebooks done" in text


def test_widgets_leave_nothing_dead_behind():
    dead = new_output("display_data", data={WIDGET: {"model_id": "a"}, "text/plain": "HBox(children=())"})
    page = notebook_html(executed(dead))
    assert "HBox" not in page and "model_id" not in page


def test_a_widget_beside_a_picture_leaves_the_picture():
    both = new_output("display_data", data={WIDGET: {"model_id": "a"}, "image/png": PIXEL})
    assert PIXEL in notebook_html(executed(both)).replace("\n", "")


def test_scripts_in_outputs_are_removed_and_tables_kept():
    table = "<table><tr><td>22.1</td></tr></table><script src='https://cdn.example/x.js'></script>"
    page = notebook_html(executed(new_output("display_data", data={"text/html": table})))
    assert "<td>22.1</td>" in page and "cdn.example" not in page


def test_an_image_of_another_server_is_replaced_by_its_text():
    page = notebook_html(executed(text="![the probe](https://example.org/a.png)"))
    assert "[image: the probe]" in page and "example.org" not in page


def test_an_image_beside_the_notebook_is_put_inside(tmp_path):
    (tmp_path / "a.png").write_bytes(base64.b64decode(PIXEL))
    assert f"data:image/png;base64,{PIXEL}" in notebook_html(executed(text="![dot](a.png)"), tmp_path)


def test_equations_become_mathml_with_their_source():
    html = markdown_to_html("mean $\\mu_1$ and\n\n$$\\sum_i a_i$$\n\ncosts `$5`")
    assert html.count("<math") == 2 and 'display="block"' in html
    assert 'alttext="\\mu_1"' in html
    assert "$5" in html


def test_an_equation_that_cannot_be_converted_stays_readable():
    assert "frac{a" in equation("\\frac{a}{")


def test_a_title_before_papermills_banner_is_found(tmp_path):
    node = executed(figure())
    banner = new_markdown_cell("# An error", metadata={"tags": ["papermill-error-cell-tag"]})
    node.cells.insert(0, banner)
    index = write_report([finished_run(tmp_path, "00_quickstart", node)], tmp_path / "report")
    assert "Staged training" in index.read_text()


def test_the_newest_run_of_each_notebook_is_chosen_done_before_unfinished(tmp_path):
    finished_run(tmp_path, "02_staged_training", executed(), "b-done")
    finished_run(tmp_path, "00_quickstart", executed(), "a-done")
    unfinished = run_folder(tmp_path, "00_quickstart", "c-failed")
    set_status(unfinished, "failed", preset="demo")
    nbformat.write(executed(), unfinished / "00_quickstart.ipynb")
    assert [path.name for path in newest_runs(tmp_path, "demo")] == ["a-done", "b-done"]


def test_a_preset_at_which_nothing_ran_is_named(tmp_path):
    with pytest.raises(MissingError, match="no notebook has run at preset paper"):
        newest_runs(tmp_path, "paper")


def test_a_folder_without_run_is_named(tmp_path):
    with pytest.raises(MissingError, match="holds no executed notebook"):
        write_report([tmp_path], tmp_path / "report")


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report")
