"""The compared methods by name: class and settings, each imported when it is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mhvae_kit.baselines.translator import Translator, TranslatorConfig
from mhvae_kit.config import check_preset, from_dict
from mhvae_kit.errors import InputError, explain


@dataclass(frozen=True)
class Entry:
    """Where a method lives.

    Args:
        module: Its module.
        method: Name of its `Translator`.
        settings: Name of its settings dataclass.
    """

    module: str
    method: str
    settings: str


METHODS = {
    "pix2pix": Entry("mhvae_kit.baselines.pix2pix", "Pix2Pix", "Pix2PixConfig"),
    "spade": Entry("mhvae_kit.baselines.spade", "Spade", "SpadeConfig"),
    "resvit": Entry("mhvae_kit.baselines.resvit", "ResViT", "ResViTConfig"),
    "flow": Entry("mhvae_kit.baselines.flow", "RectifiedFlow", "FlowConfig"),
}


def check_method(name: str) -> str:
    """Return `name` when it is a compared method, otherwise say which ones there are.

    Raises:
        InputError: There is no such method.
    """
    if name not in METHODS:
        raise InputError(explain("unknown method", got=repr(name), expected="one of " + ", ".join(METHODS)))
    return name


def method_class(name: str) -> type[Translator]:
    """The class of a method."""
    entry = METHODS[check_method(name)]
    return getattr(import_module(entry.module), entry.method)


def settings_class(name: str) -> Any:
    """The settings dataclass of a method."""
    entry = METHODS[check_method(name)]
    return getattr(import_module(entry.module), entry.settings)


def preset_settings(name: str, preset: str, **overrides: Any) -> TranslatorConfig:
    """A method's settings at a preset.

    Args:
        name: The method.
        preset: smoke, demo or paper.
        overrides: Single settings.
    Raises:
        InputError: Unknown method, preset or setting.
    """
    cls = settings_class(name)
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise InputError(explain(f"{name} has no setting {', '.join(unknown)}", expected="one of " + ", ".join(known)))
    return cls.preset(check_preset(preset), **overrides)


def saved_settings(name: str, values: dict[str, Any]) -> TranslatorConfig:
    """A method's settings from what `dataclasses.asdict` and JSON made of them."""
    return from_dict(settings_class(name), values)


def make_method(name: str, settings: TranslatorConfig) -> Translator:
    """An untrained method; its initial weights come from torch's global generator.

    Raises:
        InputError: Unknown method, or settings of another one.
    """
    cls = settings_class(name)
    if not isinstance(settings, cls):
        raise InputError(
            explain(f"these are no settings of {name}", got=type(settings).__name__, expected=cls.__name__)
        )
    return method_class(name)(settings)
