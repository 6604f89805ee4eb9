"""A compared method on disk: the same numbers come back, and what is damaged or unknown is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from toy_method import ENTRIES, Toy, ToyConfig

from mhvae_kit.baselines import registry
from mhvae_kit.baselines.storage import METHOD_FILE, load_method, save_method
from mhvae_kit.errors import DataError, InputError, MissingError

CONFIG = ToyConfig(image_size=(16, 16))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **ENTRIES})


@pytest.fixture
def saved(tmp_path):
    """A saved method and its folder."""
    torch.manual_seed(0)
    method = Toy(CONFIG)
    method.generators["t2_to_us"][1].running_mean += 0.5  # a buffer that is no parameter
    return method, save_method(method, tmp_path / "model", {"training_cases": ["a"]})


def edit(folder, **changes) -> None:
    content = json.loads((folder / METHOD_FILE).read_text())
    (folder / METHOD_FILE).write_text(json.dumps({**content, **changes}))


def test_the_same_images_come_back(saved):
    method, folder = saved
    images = {"t2": torch.linspace(-1, 1, 256).view(1, 1, 16, 16)}
    loaded = load_method(folder)
    assert not loaded.training and loaded.card == {"training_cases": ["a"]} and loaded.config == CONFIG
    assert torch.equal(loaded(images).images["us"], method.eval()(images).images["us"])


def test_critics_are_not_saved(saved):
    from safetensors.torch import load_file

    names = load_file(saved[1] / "weights.safetensors").keys()
    assert set(names) == set(saved[0].averaged().state_dict())


def test_other_weights_can_be_stored(saved, tmp_path):
    method, _ = saved
    zeros = {k: torch.zeros_like(v) for k, v in method.averaged().state_dict().items()}
    loaded = load_method(save_method(method, tmp_path / "zeros", weights=zeros))
    assert not any(p.any() for p in loaded.averaged().parameters())


def test_nothing_of_pickle_is_in_the_folder(saved):
    assert sorted(p.name for p in saved[1].iterdir()) == ["method.json", "weights.safetensors"]


def test_a_method_is_replaced_but_nothing_else(saved, tmp_path):
    method, folder = saved
    assert save_method(method, folder, {"steps": 2}) == folder and load_method(folder).card == {"steps": 2}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(InputError, match="notes holds something else than a method"):
        save_method(method, tmp_path / "notes")
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_unknown_method_is_refused_by_name(saved):
    edit(saved[1], method="cyclegan")
    with pytest.raises(DataError, match="method.json names no method of this kit .*'cyclegan'"):
        load_method(saved[1])


def test_an_unknown_setting_is_refused_by_name(saved):
    edit(saved[1], config={"depth": 3})
    with pytest.raises(DataError, match="has no setting depth"):
        load_method(saved[1])


def test_settings_that_do_not_fit_the_weights_are_refused_by_tensor(saved):
    edit(saved[1], config={"width": 3, "image_size": [16, 16]})
    with pytest.raises(DataError, match="do not fit its config; got .* first t2_to_us.0.bias"):
        load_method(saved[1])


def test_another_version_is_refused(saved):
    edit(saved[1], format=9)
    with pytest.raises(DataError, match="unknown format version; got 9; expected 1"):
        load_method(saved[1])


@pytest.mark.parametrize("name", [METHOD_FILE, "weights.safetensors"])
def test_a_damaged_or_absent_file_is_named(saved, name):
    path = saved[1] / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=f"{name} is damaged"):
        load_method(saved[1])
    path.unlink()
    with pytest.raises(MissingError, match=f"no method in .*: {name} is missing"):
        load_method(saved[1])


def test_a_file_without_method_is_damaged(saved):
    (saved[1] / METHOD_FILE).write_text('{"format": 1, "config": {}}')
    with pytest.raises(DataError, match="damaged .method missing"):
        load_method(saved[1])
