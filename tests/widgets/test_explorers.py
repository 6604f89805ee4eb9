"""What all explorers promise: to be saved, shown, described and drawn as a static figure."""

from __future__ import annotations

import json
from pathlib import Path

import ipywidgets
import pytest
from matplotlib.figure import Figure
from PIL import Image

import mhvae_kit.widgets as package
from mhvae_kit.errors import InputError

VIEW = "application/vnd.jupyter.widget-view+json"


def said(explorer) -> str:
    return explorer.status.value


def test_a_saved_picture_says_how_it_was_made(explorer, tmp_path):
    explorer.state = {"temperature": 0.25}
    path = explorer.save()
    assert path.parent == tmp_path and path.name.startswith("synthesis-test-0-slice3-us-")
    kept = json.loads(Image.open(path).text["mhvae_kit"])
    assert (kept["temperature"], kept["data"]) == (0.25, "phantom-tiny")
    assert kept["noise"] == {"z1": 0, "z2": 0, "z3": 0}
    assert path.read_bytes() == explorer.picture()


def test_the_button_saves_what_is_on_the_page(explorer, tmp_path):
    explorer.save_button.click()
    (path,) = tmp_path.glob("*.png")
    assert path.read_bytes() == explorer.image.value and path.name in said(explorer)


def test_a_folder_that_cannot_be_written_is_said(explorer, tmp_path):
    (tmp_path / "file").write_text("")
    explorer._save_to = tmp_path / "file"
    explorer.save_button.click()
    assert "not saved:" in said(explorer)


def test_only_png_is_saved(explorer, tmp_path):
    with pytest.raises(InputError, match="a.jpg"):
        explorer.save(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["explorer", "levels", "product"])
def test_display_gives_the_widget_and_a_sentence(kind, request):
    made = request.getfixturevalue(kind)
    bundle = made._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == made.box.model_id
    assert bundle["text/plain"].startswith(type(made).__name__) and len(bundle["text/plain"]) < 300


@pytest.mark.parametrize("kind", ["explorer", "levels", "product"])
def test_everything_that_can_be_reached_has_words_and_the_picture_too(kind, request):
    made = request.getfixturevalue(kind)
    reached, queue = [], [made.box]
    while queue:
        widget = queue.pop()
        queue += list(getattr(widget, "children", ()))
        if isinstance(widget, (ipywidgets.ValueWidget, ipywidgets.Button)) and not isinstance(
            widget, (ipywidgets.HTML, ipywidgets.Image)
        ):
            reached.append(widget.description)
    assert len(reached) > 5 and all(reached) and len(set(reached)) == len(reached)
    assert made.image.tooltip == made.description() and len(made.image.tooltip) > 40
    assert made.image.description == ""  # without it the front end does not write the title


def test_pictures_of_a_phantom_say_so(explorer, levels):
    for made in (explorer, levels):
        assert "phantom" in made.image.tooltip and "phantom" in made.figure()._suptitle.get_text()


@pytest.mark.parametrize("kind", ["explorer", "levels", "product"])
def test_a_figure_has_a_row_or_panel_for_each_state(kind, request):
    made = request.getfixturevalue(kind)
    key = {"explorer": "temperature", "levels": "temperature", "product": "prior"}[kind]
    values = {"product": ([0.0, 1.0], [1.0, 2.0])}.get(kind, (0.0, 0.7))
    before = made.state
    one, two = made.figure(), made.figure({key: values[0]}, {key: values[1]})
    assert isinstance(one, Figure) and len(two.axes) == 2 * len(one.axes)
    assert made.state == before


def test_the_maps_of_one_figure_share_their_scale(levels):
    figure = levels.figure(*({"level": level} for level in levels.latents.levels))
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.get_title().startswith("std")}
    assert len(limits) == 1


def test_callbacks_have_no_pyplot_and_no_output_widget():
    for path in Path(package.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import matplotlib.pyplot" not in text and "widgets.Output" not in text
