"""The explorers in a real JupyterLab: run all, move sliders by key and by mouse, and look at what is shown.

Times are measured and printed, never asserted: they say as much of the machine as of the kit.
"""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from jupyter_page import Explorer
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = ["05_product_of_experts", "06_latent_levels", "07_temperature"]
PRESSES = 15
TAU = "temperature τ"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}

LOAD = """import numpy as np
import torch
from mhvae_kit import MHVAE, MHVAEConfig, load_shipped
from mhvae_kit.data import load_phantom
from mhvae_kit.widgets import SynthesisExplorer
data = load_phantom("demo", cases=["phantom-test-000", "phantom-test-001"])"""
AT_96 = """explorer = SynthesisExplorer(load_shipped("demo-gan"), data, temperature=0.3)
explorer"""
# Every pixel four times: what is timed is the size. The weights are random for the same reason.
AT_192 = """import nibabel as nib
paths = {m: f"{m}.nii.gz" for m in ("us", "t2", "fov")}
for kind, path in paths.items():
    volume = data.volume("phantom-test-000", kind)[:, :, 8:12].repeat(2, axis=0).repeat(2, axis=1)
    nib.save(nib.Nifti1Image(volume, np.diag([0.5, 0.5, 1.0, 1.0])), path)
torch.manual_seed(0)
model, fov = MHVAE(MHVAEConfig.paper()).eval(), paths.pop("fov")
explorer = SynthesisExplorer.from_nifti(paths, model, fov=fov, temperature=0.3)
explorer"""

BUSY = """expected = explorer.picture(temperature=1.0)
for i in range(60):
    explorer.state = {"temperature": 0.5 + 0.1 * (i % 2)}
    assert explorer.picture(temperature=1.0) == expected
print("undisturbed")"""


@pytest.fixture
def own_notebook(server, lab):
    """Open a notebook made of these cells and run it; gives its one explorer."""

    def opened(name: str, *cells: str):
        path = server.root / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=KERNEL), path)
        lab.open(path)
        lab.run_all()
        (explorer,) = lab.explorers()
        explorer.watch()
        explorer.settle()
        return explorer

    return opened


def tau_in(text: str) -> float:
    return float(re.search(r"τ = (\d\.\d\d)", text).group(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_every_explorer_in_it_answers_to_keys_and_mouse(lab, name):
    lab.open(NOTEBOOKS / f"{name}.ipynb", preset="smoke")
    lab.run_all()
    lab.screenshot("after run all")
    explorers = lab.explorers()
    assert explorers, "the notebook shows no explorer"
    for explorer in explorers:
        explorer.watch()
        explorer.settle()
        assert len(explorer.title) > 40
        labels = [label for label in explorer.labels() if label != "slice"]
        keyed, dragged = labels[0], labels[-1] if len(labels) < 3 else labels[1]
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            before = explorer.source
            explorer.press(keyed, key)
            assert explorer.source != before, f"{key} on {keyed!r} changed nothing"
        explorer.screenshot("after keys")
        before = explorer.title
        explorer.drag(dragged, 0.15, 0.85)
        explorer.wait_for(lambda e=explorer, b=before: e.title != b, f"dragging {dragged!r} changes the picture")
        explorer.settle()
        if name == "05_product_of_experts":
            explorer.wait_for(lambda e=explorer: shows_the_product(e), "the product of what the sliders say")
        explorer.screenshot("after drag")
    cells = [cell for cell in lab.saved()["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]
    assert all(cell["execution_count"] for cell in cells if cell["source"])


def shows_the_product(explorer: Explorer) -> bool:
    """Whether the numbers shown are the product of what the sliders of a product explorer say, by either rule."""
    names = [label.removesuffix(" mean") for label in explorer.labels() if label.endswith(" mean")]
    means, stds = ([float(explorer.value(f"{name} {what}")) for name in names] for what in ("mean", "std"))
    shown = re.findall(r"(product|released rule): mean (-?[\d.]+), std ([\d.]+)", explorer.title)
    assert shown
    agree = []
    for rule, mean, std in shown:
        power = 1 if rule == "released rule" else 2
        weights = [1 / std**power for std in stds]
        expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        agree.append(float(mean) == pytest.approx(expected, abs=0.002))
        agree.append(float(std) == pytest.approx(sum(weights) ** (-1 / power), abs=0.002))
    return all(agree)


@pytest.mark.parametrize(("size", "cell"), [(96, AT_96), (192, AT_192)], ids=["96", "192"])
def test_the_time_from_key_press_to_picture(own_notebook, lab, measured, size, cell):
    explorer = own_notebook(f"time_{size}", LOAD, cell)
    explorer.press(TAU, "ArrowRight")
    lab.screenshot(f"{size} px")
    times = []
    for i in range(PRESSES):
        times.append(explorer.press(TAU, "ArrowLeft" if i % 2 else "ArrowRight"))
        assert tau_in(explorer.title) == float(explorer.value(TAU)) == (0.35 if i % 2 else 0.4)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    measured.append(
        f"key press to picture at {size} px: median {statistics.median(times):.0f} ms of {len(times)} "
        f"(fastest {min(times):.0f}, slowest {max(times):.0f}; {os.cpu_count()} cores, load {load:.1f})"
    )
    assert explorer.pictures() >= PRESSES


def test_after_a_fast_drag_the_last_value_is_shown_and_nothing_is_queued(own_notebook, lab, measured):
    explorer = own_notebook("drag", LOAD, AT_96)
    for start, stop in ((0.1, 0.9), (0.9, 0.3)):
        before = explorer.pictures()
        explorer.drag(TAU, start, stop, steps=50, seconds=2.0)
        value = float(explorer.value(TAU))
        assert value == pytest.approx(1.2 * stop, abs=0.1)
        explorer.wait_for(lambda v=value: tau_in(explorer.title) == v, "the last value is shown")
        explorer.settle()
        lab.screenshot(f"dragged to {stop}")
        made = explorer.pictures() - before
        lab.page.wait_for_timeout(1500)
        assert explorer.pictures() - before == made, "pictures still came after the last one"
        assert tau_in(explorer.title) == value
        measured.append(f"drag of 2 s at 96 px: {made} pictures shown, the last one for τ = {value:.2f}")


def test_the_controls_of_the_synthesis_explorer_work_by_keyboard(own_notebook, lab):
    explorer = own_notebook("controls", LOAD, AT_96)
    page, box = lab.page, explorer.box

    def after(act) -> str:
        before = explorer.pictures()
        act()
        page.wait_for_function(f"window.mhvae.pictures.length > {before}", timeout=60_000)
        explorer.settle()
        return explorer.title

    # The image widget has no alt text: its title is what the browser gives to screen readers.
    assert page.get_by_role("img", name=re.compile("^phantom-demo · phantom-test-000.*τ = 0.30")).count() == 1
    assert explorer.image.get_attribute("width") and explorer.image.get_attribute("height")
    first = explorer.source
    box.get_by_role("button", name="new noise").focus()
    after(lambda: page.keyboard.press("Enter"))
    assert explorer.source != first
    assert "made - truth" in after(lambda: box.get_by_label("difference from the truth").press("Space"))
    lab.screenshot("difference")
    assert "US, observed" in after(lambda: box.get_by_label("observe US").press("Space"))
    assert "→ T2" in after(lambda: box.get_by_label("make").select_option(label="T2"))
    assert "phantom-test-001" in after(lambda: box.get_by_label("patient").select_option(label="phantom-test-001"))
    box.locator(".jupyter-widget-Collapse-header, .widget-accordion .p-Collapse-header").first.click()
    z1 = explorer.row("z1: factor on τ").locator(".noUi-handle")
    assert "z1 × 0.95" in after(lambda: z1.press("ArrowLeft"))
    lab.screenshot("level by level")
    after(lambda: box.get_by_role("button", name="resample z1").press("Enter"))
    box.get_by_role("button", name="save PNG").press("Enter")
    page.wait_for_function("() => document.querySelector('.mhvae-status').innerText.startsWith('saved as')")


def test_keys_pressed_while_a_cell_uses_the_same_explorer_disturb_neither(server, lab):
    """Callbacks run beside a cell or after it, as ipykernel's version and the last message have it: both must do."""
    path = server.root / "beside.ipynb"
    cells = [new_code_cell(c) for c in (LOAD, AT_96, BUSY)]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    lab.open(path)
    lab.start_all()
    (explorer,) = lab.explorers()
    explorer.watch()
    handle = explorer.row(TAU).locator(".noUi-handle").first
    handle.focus()
    for _ in range(10):
        handle.press("ArrowRight")
        lab.page.wait_for_timeout(100)
    lab.wait_for_rest()
    explorer.press(TAU, "ArrowRight")
    assert tau_in(explorer.title) == float(explorer.value(TAU))
    texts = [o.get("text", "") for cell in lab.saved()["cells"] for o in cell.get("outputs", ())]
    assert any("undisturbed" in text for text in texts), texts
