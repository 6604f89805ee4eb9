"""Saved models come back as they were; damaged ones are refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from mhvae_kit import MHVAE, MHVAEConfig, load_model, load_shipped, save_model
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.networks.mvae import MVAE
from mhvae_kit.networks.storage import make_model, shipped_models

TINY = MHVAEConfig(image_size=(16, 16), levels=3, base_channels=2, decoder_blocks=1)


FLAT = dataclasses.replace(TINY, architecture="mvae")


@pytest.fixture
def saved(tmp_path):
    model = MHVAE(TINY)
    save_model(model, tmp_path / "model", {"steps": 3})
    return model, tmp_path / "model"


@pytest.mark.parametrize(("config", "cls"), [(TINY, MHVAE), (FLAT, MVAE)])
def test_model_comes_back_equal(tmp_path, config, cls):
    model = make_model(config)
    save_model(model, tmp_path / "model", {"steps": 3})
    again = load_model(tmp_path / "model")
    assert type(model) is type(again) is cls
    assert again.config == model.config
    assert again.card == {"steps": 3}
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def edit_config(folder, change) -> None:
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content["config"])
    path.write_text(json.dumps(content))


def test_a_model_saved_before_there_were_architectures_is_an_mhvae(saved):
    edit_config(saved[1], lambda config: config.pop("architecture"))
    again = load_model(saved[1])
    assert type(again) is MHVAE
    assert again.config == saved[0].config


@pytest.mark.parametrize(("config", "other"), [(TINY, FLAT), (FLAT, TINY)])
def test_weights_of_another_architecture_are_refused_by_name(tmp_path, config, other):
    for name, settings in (("right", config), ("wrong", other)):
        save_model(make_model(settings), tmp_path / name)
    shutil.copy(tmp_path / "wrong" / "weights.safetensors", tmp_path / "right")
    with pytest.raises(DataError, match=f"another architecture.*{other.architecture}.*{config.architecture}"):
        load_model(tmp_path / "right")


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
    [
        ("base_channels", DataError, "do not fit its config"),
        ("depth", InputError, "no setting depth"),
        ("architecture", InputError, "unknown architecture"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights_is_refused(saved, setting, error, message):
    edit_config(saved[1], lambda config: config.update({setting: 4}))
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
