"""The level explorer: one level changes alone, and the rest follows as the model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhvae_kit.errors import InputError
from mhvae_kit.levels.experiments import redraw
from mhvae_kit.widgets import numbered_noise


def test_drawing_a_level_again_at_temperature_0_moves_nothing(levels):
    state = {**levels.state, "temperature": 0.0, "level": "z2"}
    before, after = levels.images_of(state)
    assert after.shape == (4, 16, 16) and np.abs(after - before).max() < 1e-5


@pytest.mark.parametrize("level", ["z3", "z2", "z1"])
def test_drawing_a_level_again_moves_the_image_each_time_otherwise(levels, level):
    before, after = levels.images_of({**levels.state, "level": level})
    assert np.abs(after - before).max(axis=(1, 2)).min() > 1e-4
    assert np.abs(after[0] - after[1]).max() > 1e-4


def test_the_map_is_the_standard_deviation_over_the_draws(levels):
    state = {**levels.state, "level": "z1"}
    _, after = levels.images_of(state)
    fov = levels.slices.fov(state["case"], state["slice"])
    expected = np.where(fov, after.std(axis=0, ddof=1), np.nan)
    np.testing.assert_allclose(levels.panels(state)[-1].values, expected, atol=1e-6)


def test_a_static_figure_of_the_same_draws_shows_the_same_redraws(levels, model):
    state = {**levels.state, "level": "z2", "draws": 3}
    encoding = levels.latents.encoding(state["case"], state["slice"], state["observed"])
    fresh = {"noise": numbered_noise(model, 0), "generator": torch.Generator().manual_seed(0)}
    with torch.inference_mode():
        made = redraw(model, encoding, ["z2"], 5, target=state["target"], temperature=state["temperature"], **fresh)
    np.testing.assert_allclose(made[0, 0, 0].numpy(), levels.images_of(state)[1][0], atol=1e-6)


@pytest.mark.parametrize("level", ["z3", "z2", "z1"])
def test_the_level_of_the_same_slice_changes_nothing(levels, level):
    state = {**levels.state, "action": "swap", "level": level}
    state |= {"donor": state["case"], "donor_slice": state["slice"]}
    before, after = levels.images_of(state)
    assert np.allclose(before, after[0], atol=1e-6)


def test_the_level_of_another_patient_is_what_the_decoder_gets(levels, model):
    state = {**levels.state, "action": "swap", "level": "z2", "donor": "test-1", "donor_slice": 0}
    noise = {k: levels.latents.noise(k, 0) for k in levels.latents.levels}
    ours, theirs = (levels.slices.image(*where, "t2") for where in ((state["case"], state["slice"]), ("test-1", 0)))
    with torch.inference_mode():
        donor = model({"t2": theirs}, noise=noise, targets=["us"])
        expected = model({"t2": ours}, noise=noise, targets=["us"], levels={"z2": donor.latents["z2"]})
    assert np.allclose(levels.images_of(state)[1][0], expected.images["us"][0, 0].numpy(), atol=1e-6)


def test_without_observed_images_the_prior_speaks_anyway(levels):
    before, after = levels.images_of({**levels.state, "action": "prior", "observed": []})
    assert np.allclose(before, after[0], atol=1e-6)
    before, after = levels.images_of({**levels.state, "action": "prior"})
    assert np.abs(before - after[0]).max() > 1e-4


def test_only_the_controls_of_the_chosen_action_are_on_the_page(levels):
    assert levels._donor_row.layout.display == "none" and levels._draws.layout.visibility == "visible"
    levels.state = {"action": "swap"}
    assert levels._donor_row.layout.display is None and levels._draws.layout.visibility == "hidden"
    levels.wait()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"level": "z4"}, "level"),
        ({"action": "guess"}, "action"),
        ({"draws": 1}, "draws"),
        ({"donor_slice": 9}, "donor"),
    ],
)
def test_a_level_setting_that_does_not_exist_is_named(levels, changes, named):
    with pytest.raises(InputError, match=named):
        levels.state = changes
