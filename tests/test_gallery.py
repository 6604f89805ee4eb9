"""The gallery: it opens from the disk alone, shows finished runs only, and leaves no dead widget behind."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mhvae_kit.errors import InputError, MissingError
from mhvae_kit.gallery import THUMBNAIL_PX, finished_runs, thumbnail, write_gallery
from mhvae_kit.runs import run_folder, set_status, write_results
from mhvae_kit.widgets import ProductOfExpertsExplorer

OUTSIDE = re.compile(r"""(src\s*=\s*["'](?!data:))|href\s*=\s*["'](https?:|//)|<script|<link|@import|url\(""", re.I)
TITLE = "# 05 · Product of *experts*\n\n| | |\n| --- | --- |\n| **Question** | How do $q_1$ & `q2` fuse? |\n"


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def figure(alt: str, width: int = 900) -> nbformat.NotebookNode:
    return new_output(
        "display_data", data={"image/png": png(width, 600), "text/plain": "x"}, metadata={"image/png": {"alt": alt}}
    )


def interactive() -> nbformat.NotebookNode:
    """What `display(explorer)` leaves in an executed notebook."""
    explorer = ProductOfExpertsExplorer()
    output = new_output("display_data", data=explorer._repr_mimebundle_())
    explorer.close()
    return output


def make_run(root: Path, name: str, *outputs: nbformat.NotebookNode, done: bool = True) -> Path:
    cells = [new_markdown_cell(TITLE), *(new_code_cell("display(explorer)", outputs=[o]) for o in outputs)]
    run = run_folder(root, name, f"demo-{name}")
    nbformat.write(new_notebook(cells=cells), run / f"{name}.ipynb")
    if not done:
        set_status(run, "failed", notebook=name, preset="demo", message="a cell raised an error")
        return run
    values = {"parameters": {}, "preset": "demo", "seed": 0, "metrics": {}, "seconds": 1}
    write_results(run, notebook=name, dataset={"name": "phantom-demo", "digest": "0"}, **values)
    return run


@pytest.fixture
def site(tmp_path) -> Path:
    runs = [
        make_run(tmp_path, "05_product_of_experts", interactive(), figure("phantom: two experts agree")),
        make_run(tmp_path, "06_latent_levels"),
    ]
    return write_gallery(runs, tmp_path / "gallery")


def test_no_page_needs_a_network_and_every_link_leads_to_a_page(site):
    for path in site.parent.glob("*.html"):
        text = path.read_text()
        assert not OUTSIDE.search(text), path
        for link in re.findall(r'href="([^"#]+)"', text):
            assert (site.parent / link).is_file()


def test_nothing_of_a_widget_is_left_and_the_figure_after_it_is(site):
    text = (site.parent / "demo-05_product_of_experts.html").read_text()
    assert "ProductOfExpertsExplorer:" not in text and "model_id" not in text and "widget-view" not in text
    assert "display(explorer)" in re.sub("<[^>]+>", "", text)
    assert 'alt="phantom: two experts agree"' in text


def test_the_first_page_has_picture_alt_text_title_and_question(site):
    text = site.read_text()
    assert text.count('class="card"') == 2
    assert 'alt="phantom: two experts agree"' in text
    assert '<a href="demo-05_product_of_experts.html">05 · Product of experts</a>' in text
    assert "<math" in text and "<code>q2</code>" in text  # the question, with its marks
    assert "no figure" in text  # of the one that has none


def test_thumbnails_are_small_and_keep_their_proportions():
    small = thumbnail(f"data:image/png;base64,{png(1200, 600)}")
    picture = Image.open(io.BytesIO(base64.b64decode(small.partition(",")[2])))
    assert picture.size == (THUMBNAIL_PX[0], THUMBNAIL_PX[0] // 2)
    vector = "data:image/svg+xml;base64,PHN2Zy8+"
    assert thumbnail(vector) == vector


def test_only_finished_runs_are_shown(tmp_path):
    done = make_run(tmp_path, "05_product_of_experts")
    make_run(tmp_path, "06_latent_levels", done=False)
    assert finished_runs(tmp_path, "demo") == [done]


def test_when_nothing_finished_it_says_so(tmp_path):
    make_run(tmp_path, "06_latent_levels", done=False)
    with pytest.raises(MissingError, match="no notebook has finished at preset demo"):
        finished_runs(tmp_path, "demo")
    with pytest.raises(InputError, match="at least one run"):
        write_gallery([], tmp_path / "gallery")
