"""A network on disk: weights as safetensors and one JSON file in a folder that appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import atomic_folder, atomic_path, write_json

WEIGHTS_FILE = "weights.safetensors"


def write_network(
    folder: str | Path, file: str, content: Mapping[str, Any], state: Mapping[str, Tensor], what: str
) -> Path:
    """Write a network's folder; one of the same kind is replaced.

    Args:
        folder: Where to.
        file: Name of the JSON file, by which the kind is known.
        content: JSON types.
        state: Tensors by name; each is stored on its own, also where two share their memory.
        what: The kind in words, "a model".
    Raises:
        InputError: The folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / file).exists() and any(folder.iterdir()):
        raise InputError(explain(f"{folder} holds something else than {what}", mend="choose another folder"))
    with atomic_folder(folder) as beside:
        with atomic_path(beside / WEIGHTS_FILE) as path:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, path)
        write_json(beside / file, dict(content))
    return folder


def read_network(
    folder: str | Path, file: str, version: int, keys: tuple[str, ...], what: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_network` wrote: the JSON file and the weights.

    Args:
        folder, file, what: As given to `write_network`.
        version: The "format" that is understood.
        keys: What the JSON file must have besides.
    Raises:
        MissingError: No such folder, or a file of it is missing.
        DataError: A file is damaged or of another format version.
    """
    folder = Path(folder)
    for name in (file, WEIGHTS_FILE):
        if not (folder / name).is_file():
            noun = what.removeprefix("a ")
            mend = f"give a folder that a {noun} was saved to"
            raise MissingError(explain(f"no {noun} in {folder}: {name} is missing", mend=mend))
    mend = f"save or copy {what.replace('a ', 'the ', 1)} again"
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        found = content["format"]
        missing = [key for key in keys if key not in content]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(explain(f"{folder / file} is damaged ({error})", mend=mend)) from error
    if found != version:
        raise DataError(explain(f"{folder} has an unknown format version", got=found, expected=version))
    if missing:
        raise DataError(explain(f"{folder / file} is damaged ({', '.join(missing)} missing)", mend=mend))
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise DataError(explain(f"{folder / WEIGHTS_FILE} is damaged ({error})", mend=mend)) from error
    return content, state


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Give a network its weights; every tensor must be there, with its shape, and no other.

    Raises:
        DataError: Names the first tensor that differs.
    """
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
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
    network.load_state_dict(dict(state))
