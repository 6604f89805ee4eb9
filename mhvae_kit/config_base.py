"""What all settings have in common: presets by name, reading from a dict, and checks of their types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from mhvae_kit.errors import InputError, explain

Preset = Literal["smoke", "demo", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Config = TypeVar("Config")


def check_preset(name: str) -> Preset:
    """Return `name` when it is a preset, otherwise say which ones there are.

    Raises:
        InputError: The preset is unknown.
    """
    if name not in PRESETS:
        raise InputError(explain("unknown preset", got=repr(name), expected="one of " + ", ".join(PRESETS)))
    return name  # type: ignore[return-value]


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """Build a config dataclass from a dict (JSON lists become tuples); unknown keys are refused by name."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(
            explain(f"{cls.__name__} has no setting {', '.join(unknown)}", expected="one of " + ", ".join(known))
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def check_types(config: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse numbers and truth values of the wrong type, numbers that are not finite, and unknown words.

    Args:
        config: A dataclass; its fields annotated int, float, bool or int | None are looked at.
        choices: By field, the words it may hold.
    Raises:
        InputError: Names the field.
    """
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
    kinds["int | None"] = (int, type(None))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        allowed = kinds.get(str(field.type))
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            raise InputError(explain(f"{field.name} has the wrong type", got=repr(value), expected=str(field.type)))
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(explain(f"{field.name} must be a finite number", got=value))
        if field.name in choices and value not in choices[field.name]:
            raise InputError(
                explain(f"unknown {field.name}", got=repr(value), expected=" or ".join(choices[field.name]))
            )
