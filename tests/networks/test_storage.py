"""Saved models come back as they were; damaged ones are refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from mhvae_kit import MHVAE, MHVAEConfig, load_model, load_shipped, save_model
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.networks.storage import shipped_models

TINY = MHVAEConfig(image_size=(16, 16), levels=3, base_channels=2, decoder_blocks=1)


@pytest.fixture
def saved(tmp_path):
    model = MHVAE(TINY)
    save_model(model, tmp_path / "model", {"steps": 3})
    return model, tmp_path / "model"


def test_model_comes_back_equal(saved):
    model, folder = saved
    again = load_model(folder)
    assert again.config == model.config
    assert again.card == {"steps": 3}
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_saving_again_replaces_the_model_and_leaves_nothing_beside(saved):
    model, folder = saved
    save_model(model, folder, {"steps": 4})
    assert load_model(folder).card == {"steps": 4}
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        save_model(MHVAE(TINY), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_missing_model(tmp_path):
    with pytest.raises(MissingError, match=r"model\.json is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_truncated_file_is_named(saved, name):
    path = saved[1] / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=name.replace(".", r"\.") + " is damaged"):
        load_model(saved[1])


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [("base_channels", DataError, "do not fit its config"), ("depth", InputError, "no setting depth")],
)
def test_a_config_that_does_not_belong_to_the_weights_is_refused(saved, setting, error, message):
    path = saved[1] / "model.json"
    content = json.loads(path.read_text())
    content["config"][setting] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        load_model(saved[1])


def test_unknown_shipped_model_is_refused():
    with pytest.raises(InputError, match="no shipped model of that name"):
        load_shipped("large")


def test_shipped_models_are_small_and_carry_their_card():
    assert {"demo", "demo-gan"} <= set(shipped_models())
    for name in shipped_models():
        model = load_shipped(name)
        assert sum(p.numel() for p in model.parameters()) * 4 <= 8 * 10**6
        assert model.card["data"].startswith("phantom")
        assert model.card["training_cases"]
