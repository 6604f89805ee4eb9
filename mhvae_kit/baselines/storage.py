"""Saving and loading compared methods: safetensors and JSON in one folder, never pickle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mhvae_kit.baselines.registry import make_method, saved_settings
from mhvae_kit.baselines.translator import Translator
from mhvae_kit.errors import DataError, InputError, explain
from mhvae_kit.networks.folders import load_exactly, read_network, write_network

METHOD_FILE = "method.json"
FORMAT_VERSION = 1


def save_method(
    method: Translator,
    folder: str | Path,
    card: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write what a method needs to synthesise into a folder, which appears whole or not at all.

    Args:
        method: Gives name and settings, and the weights of its `averaged()` part unless `weights` is given.
        folder: Is replaced when it already holds a method.
        card: JSON types: data, seed, steps, training_cases ... None keeps the method's own.
        weights: A state dict of `averaged()` to store instead, for example averaged weights.
    Returns:
        The folder.
    Raises:
        InputError: The folder holds something else.
    """
    content = {
        "format": FORMAT_VERSION,
        "method": method.name,
        "config": dataclasses.asdict(method.config),
        "card": dict(method.card if card is None else card),
    }
    state = method.averaged().state_dict() if weights is None else weights
    return write_network(folder, METHOD_FILE, content, state, "a method")


def load_method(folder: str | Path) -> Translator:
    """Read what `save_method` wrote; the method comes back in evaluation mode, with its card.

    Its critics are as made, not as trained: synthesis does not need them, and they are not saved.

    Raises:
        MissingError: No method in the folder.
        DataError: A file is damaged or of another version, the method or a setting is unknown, or weights and settings
            do not fit.
    """
    content, state = read_network(folder, METHOD_FILE, FORMAT_VERSION, ("method", "config"), "a method")
    try:
        method = make_method(content["method"], saved_settings(content["method"], content["config"]))
    except (InputError, TypeError) as error:
        raise DataError(explain(f"{Path(folder) / METHOD_FILE} names no method of this kit ({error})")) from error
    load_exactly(method.averaged(), state, folder)
    method.card = content.get("card", {})
    return method.eval()
