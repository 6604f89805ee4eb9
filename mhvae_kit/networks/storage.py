"""Saving and loading models: safetensors and JSON in one folder, never pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhvae_kit.config import MHVAEConfig, from_dict
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import atomic_path, write_json
from mhvae_kit.networks.mhvae import MHVAE

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "model.json"
FORMAT_VERSION = 1
SHIPPED_FOLDER = Path(__file__).resolve().parent.parent / "weights"


def save_model(
    model: MHVAE, folder: str | Path, card: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a model's weights and config into a folder, which appears whole or not at all.

    Args:
        model: The model; gives the config, and the weights unless `weights` is given.
        folder: Is replaced when it already holds a model.
        card: JSON types: data, command, seed, steps, scores, training_cases ... Kept as `model.card`.
        weights: A state dict to store in place of the model's own, for example averaged weights.
    Returns:
        The folder.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG_FILE).exists() and any(folder.iterdir()):
        raise InputError(explain(f"{folder} holds something else than a model", mend="choose another folder"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
    try:
        state = {k: v.detach().cpu().contiguous().clone() for k, v in (weights or model.state_dict()).items()}
        with atomic_path(beside / WEIGHTS_FILE) as path:
            save_file(state, path)
        content = {
            "format": FORMAT_VERSION,
            "config": dataclasses.asdict(model.config),
            "card": dict(model.card if card is None else card),
        }
        write_json(beside / CONFIG_FILE, content)
        beside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def load_model(folder: str | Path) -> MHVAE:
    """Read a model that `save_model` wrote; it comes back in evaluation mode, with its card.

    Raises:
        MissingError: No model in the folder.
        DataError: A file is damaged, of another format version, or the weights do not fit the config.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise MissingError(
                explain(f"no model in {folder}: {name} is missing", mend="give the folder that save_model wrote")
            )
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        version, values = content["format"], content["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            explain(f"{folder / CONFIG_FILE} is damaged ({error})", mend="save or copy the model again")
        ) from error
    if version != FORMAT_VERSION:
        raise DataError(explain(f"{folder} has an unknown format version", got=version, expected=FORMAT_VERSION))
    model = MHVAE(from_dict(MHVAEConfig, values))
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise DataError(
            explain(f"{folder / WEIGHTS_FILE} is damaged ({error})", mend="save or copy the model again")
        ) from error
    _load_state(model, state, folder)
    model.card = content.get("card", {})
    return model.eval()


def _load_state(model: MHVAE, state: Mapping[str, Tensor], folder: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if expected != given:
        odd = sorted(k for k in expected.keys() | given.keys() if expected.get(k) != given.get(k))
        raise DataError(
            explain(
                f"the weights in {folder} do not fit its config",
                got=f"{len(odd)} tensors that differ, first {odd[0]} {given.get(odd[0], 'absent')}",
                expected=expected.get(odd[0], "absent"),
            )
        )
    model.load_state_dict(dict(state))


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED_FOLDER.glob(f"*/{CONFIG_FILE}"))


def load_shipped(name: str = "demo") -> MHVAE:
    """Load a model that comes with the package: "demo" (without GAN) or "demo-gan". Trained on the phantom.

    Raises:
        InputError: There is no such model.
    """
    if name not in shipped_models():
        raise InputError(explain("no shipped model of that name", got=repr(name), expected=", ".join(shipped_models())))
    return load_model(SHIPPED_FOLDER / name)
