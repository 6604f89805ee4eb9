"""The compared methods by name."""

from __future__ import annotations

import dataclasses

import pytest
from toy_method import ENTRIES, Toy, ToyConfig

from mhvae_kit.baselines import registry
from mhvae_kit.errors import InputError


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **ENTRIES})


def test_a_method_is_found_by_its_name():
    assert registry.method_class("toy") is Toy and registry.settings_class("toy") is ToyConfig


def test_the_compared_methods_are_listed():
    assert set(registry.METHODS) - set(ENTRIES) == {"pix2pix", "spade", "resvit", "flow"}


@pytest.mark.parametrize("call", [registry.check_method, registry.method_class, registry.settings_class])
def test_an_unknown_method_is_refused_by_name(call):
    with pytest.raises(InputError, match="unknown method; got 'cyclegan'; expected one of pix2pix, spade"):
        call("cyclegan")


def test_settings_come_from_the_preset_with_overrides():
    assert registry.preset_settings("toy", "demo", width=3) == ToyConfig(image_size=(96, 96), width=3)


def test_an_unknown_setting_or_preset_is_refused():
    with pytest.raises(InputError, match="toy has no setting widht; expected one of modalities, image_size, width"):
        registry.preset_settings("toy", "demo", widht=3)
    with pytest.raises(InputError, match="unknown preset"):
        registry.preset_settings("toy", "huge")


def test_saved_settings_are_the_same_settings():
    config = ToyConfig.preset("smoke", width=5)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    assert registry.saved_settings("toy", values) == config


def test_settings_of_another_method_are_refused():
    with pytest.raises(InputError, match="these are no settings of toy; got str; expected ToyConfig"):
        registry.make_method("toy", "paper")


@pytest.mark.parametrize("name", sorted(set(registry.METHODS)))
@pytest.mark.parametrize("preset", ["smoke", "demo", "paper"])
def test_every_method_has_its_name_and_every_preset(name, preset):
    size = {"smoke": 64, "demo": 96, "paper": 192}[preset]
    settings = registry.preset_settings(name, preset)
    assert registry.method_class(name).name == name
    assert settings.image_size == (size, size) and settings.modalities == ("us", "t2")
    assert registry.saved_settings(name, dataclasses.asdict(settings)) == settings
