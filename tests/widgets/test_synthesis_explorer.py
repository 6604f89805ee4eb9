"""The synthesis explorer: a state gives a picture, the last value wins, and nothing is swallowed."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mhvae_kit.errors import DataError, InputError
from mhvae_kit.widgets import LevelExplorer, SynthesisExplorer, numbered_noise


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def said(explorer) -> str:
    return explorer.status.value


def test_after_a_fast_drag_the_last_value_is_what_is_shown(explorer, monkeypatch):
    slider, render = explorer._temperature, explorer._render
    monkeypatch.setattr(explorer, "_render", lambda state: time.sleep(0.03) or render(state))
    for value in np.linspace(0, 1.2, 50):
        slider.value = float(value)
    explorer.wait(30)
    assert explorer.latest.asked == 50  # the last position was 0.7, the first of the drag is 0
    assert explorer.latest.done < 50 and not explorer.latest.waiting
    assert explorer.image.value == explorer.picture(temperature=1.2)
    assert "τ = 1.20" in explorer.image.tooltip
    assert "ready in" in said(explorer)


def test_moving_tau_encodes_nothing_anew(explorer):
    cache = explorer.latents.encodings
    assert (cache.misses, cache.hits) == (1, 0)
    for tau in (0.1, 0.2, 0.3):
        explorer.picture(temperature=tau)
    assert (cache.misses, cache.hits) == (1, 3)


def test_each_image_is_encoded_once_whatever_the_subset(explorer):
    for observed in (["us"], ["t2", "us"], ["t2"], []):
        explorer.picture(observed=observed)
    assert explorer.latents.encodings.misses == 2


def test_volumes_are_read_once(explorer):
    explorer.picture(temperature=0.1)
    before = explorer.slices._dataset.reads
    explorer.picture(temperature=0.2)
    assert explorer.slices._dataset.reads == before


def test_the_same_state_gives_the_same_bytes_in_another_explorer(explorer, model, phantom):
    other = SynthesisExplorer(model, phantom, temperature=0.2)
    other.state = {**explorer.state, "observed": ["us", "t2"], "temperature": 0.45}
    other.wait()
    assert other.image.value == explorer.picture(observed=["t2", "us"], temperature=0.45)
    assert other.image.value != explorer.picture()
    other.close()


def test_the_image_is_what_the_model_makes_of_that_slice_with_that_noise(explorer, model):
    state = explorer.state
    noise = numbered_noise(model, 0)
    image = explorer.slices.image(state["case"], state["slice"], "t2")
    with torch.inference_mode():
        expected = model({"t2": image}, temperature=0.7, targets=["us"], noise=noise).images["us"][0, 0]
    assert np.allclose(explorer.image_of(), expected.numpy(), atol=1e-6)


def test_at_temperature_0_the_noise_is_of_no_account(explorer):
    still = explorer.picture(temperature=0.0)
    explorer.state = {"temperature": 0.0}
    explorer.new_noise()
    explorer.wait()
    assert pixels(explorer.image.value) == pixels(still)


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_a_factor_of_0_holds_a_level_at_its_mean(explorer):
    all_still = explorer.picture(level_factors=dict.fromkeys(explorer.latents.levels, 0.0))
    footless = (slice(0, -22), slice(None))  # the footer names the settings
    images = [np.asarray(Image.open(io.BytesIO(p)))[footless] for p in (all_still, explorer.picture(temperature=0.0))]
    assert np.array_equal(images[0][:, :400], images[1][:, :400])


def test_new_noise_leaves_frozen_levels_alone_and_resample_moves_one(explorer):
    explorer.state = {"frozen": ["z3"]}
    explorer.new_noise()
    assert explorer.state["noise"] == {"z3": 0, "z2": 1, "z1": 1}
    explorer.resample(["z3"])
    assert explorer.state["noise"] == {"z3": 1, "z2": 1, "z1": 1}
    explorer.wait()


def test_levels_of_one_size_do_not_share_their_noise(explorer):
    latents = explorer.latents
    flat = [latents.noise(level, 0).flatten()[:8] for level in latents.levels]
    assert not torch.equal(flat[0], flat[1]) and not torch.equal(flat[1], flat[2])
    assert not torch.equal(latents.noise("z1", 0), latents.noise("z1", 1))


def test_no_global_random_number_is_used(model, phantom):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the global state is what must not move
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    made = [SynthesisExplorer(model, phantom), LevelExplorer(model, phantom, draws=2)]
    made[0].new_noise()
    for explorer in made:
        explorer.wait()
        explorer.close()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_the_model_stays_as_it_is(explorer, model):
    model.train()
    explorer.picture()
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_difference_is_taken_inside_the_fan_and_widens_the_picture(explorer):
    state = {**explorer.state, "difference": True}
    panel = explorer.panels(state)[-1]
    truth, fov = explorer.slices.plane("test-0", 3, "us"), explorer.slices.fov("test-0", 3)
    assert np.allclose(panel.values, np.where(fov, explorer.image_of(state) - truth, np.nan), equal_nan=True)
    assert size_of(explorer.picture(difference=True))[0] > size_of(explorer.picture())[0]


def test_the_fixed_size_of_the_widget_is_that_of_the_picture(explorer):
    assert (explorer.image.width, explorer.image.height) == tuple(map(str, size_of(explorer.image.value)))
    assert size_of(explorer.picture(temperature=0.0)) == size_of(explorer.picture(slice=0, observed=[]))


def test_a_test_patient_is_shown_first_and_those_of_the_training_are_marked(explorer):
    assert explorer.state["case"] == "test-0"
    labels = {value: label for label, value in explorer._case.options}
    assert labels == {"train-0": "train-0 (trained on)", "test-0": "test-0", "test-1": "test-1"}


def test_choosing_a_patient_with_fewer_slices_mends_the_slider(explorer):
    explorer.state = {"slice": 5}
    explorer._case.value = "test-1"
    explorer.wait()
    assert explorer.state["slice"] == 2 and "ready" in said(explorer)
    assert explorer.image.value == explorer.picture()


def test_a_state_set_from_code_asks_for_one_picture(explorer):
    before = explorer.latest.asked
    explorer.state = {"temperature": 0.1, "slice": 1, "observed": ["us"], "level_factors": {"z1": 0.5}}
    assert explorer.latest.asked == before + 1
    assert explorer.state["level_factors"] == {"z3": 1.0, "z2": 1.0, "z1": 0.5}
    explorer.wait()
    assert json.loads(json.dumps(explorer.state)) == explorer.state


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"slice": 6}, "slice"),
        ({"slice": 1.5}, "slice"),
        ({"case": "test-9"}, "case"),
        ({"observed": ["flair"]}, "observed"),
        ({"target": "flair"}, "target"),
        ({"level_factors": {"z9": 1.0}}, "z9"),
        ({"noise": {"z1": -1}}, "noise of z1"),
        ({"tau": 0.2}, "no setting tau"),
    ],
)
def test_a_setting_that_does_not_exist_is_named_and_nothing_changes(explorer, changes, named):
    before = explorer.state
    with pytest.raises(InputError, match=named):
        explorer.state = changes
    with pytest.raises(InputError, match=named):
        explorer.picture(**changes)
    assert explorer.state == before


def test_data_of_another_size_are_refused(model, phantom, other_model):
    with pytest.raises(InputError, match=r"16 × 16; expected 32 × 32.*from_nifti"):
        SynthesisExplorer(other_model, phantom)
    with pytest.raises(InputError, match="case cannot be set"):
        SynthesisExplorer(model, phantom, case="nobody")


def test_an_error_in_the_thread_is_shown_logged_and_got_over(explorer, monkeypatch, caplog):
    shown_before = explorer.image.value
    with monkeypatch.context() as patched:
        patched.setattr(explorer.latents, "decode", lambda *a, **k: 1 / 0)
        explorer.state = {"temperature": 0.1}
        explorer.wait()
        assert "no picture: ZeroDivisionError" in said(explorer) and 'role="alert"' in said(explorer)
        assert caplog.records[-1].exc_info and explorer.image.value == shown_before
    explorer.state = {"temperature": 0.2}
    explorer.wait()
    assert "ready" in said(explorer) and explorer.image.value == explorer.picture()


def test_a_sentence_of_the_kit_is_shown_as_it_is(explorer, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise DataError("the volume <us> is gone.")

    monkeypatch.setattr(explorer.latents, "decode", refuse)
    explorer.new_noise()
    explorer.wait()
    assert "no picture: the volume &lt;us&gt; is gone." in said(explorer)


def test_two_explorers_on_one_model_in_two_threads_give_what_each_gives_alone(model, phantom):
    pair = [SynthesisExplorer(model, phantom), LevelExplorer(model, phantom, draws=3)]
    taus = [0.1 * i for i in range(8)]
    alone = [[e.picture(temperature=t) for t in taus] for e in pair]
    together: list[list[bytes]] = [[], []]

    def run(i: int) -> None:
        together[i] = [pair[i].picture(temperature=t) for t in taus]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
