"""What the folder of a training holds whatever is trained: its settings, its checkpoints, and a stop between steps."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import write_json
from mhvae_kit.training.state import read_checkpoint, write_checkpoint

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


class Settings(Protocol):
    """A frozen config of a training, comparable with `==`."""

    def to_dict(self) -> dict[str, Any]: ...


class Saved(Protocol):
    """A state between two steps, as tensors and JSON types, "version" among them."""

    step: int

    def to_dict(self) -> dict[str, Any]: ...


Config = TypeVar("Config", bound=Settings)


def read_settings(folder: str | Path, read: Callable[[dict[str, Any]], Config]) -> Config:
    """The config of a training's folder.

    Args:
        folder: The run.
        read: The inverse of the config's `to_dict`.
    Raises:
        MissingError: There is no training in the folder.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise MissingError(explain(f"no training run in {folder}: {CONFIG} is missing"))
    return read(json.loads(path.read_text(encoding="utf-8")))


def open_folder(folder: Path, config: Config, read: Callable[[dict[str, Any]], Config]) -> None:
    """Make the folder of a training, or check that it belongs to the same config.

    Raises:
        InputError: It belongs to a run with other settings; the message names them.
    """
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        write_json(folder / CONFIG, config.to_dict())
        return
    before = read_settings(folder, read)
    if before != config:
        old, new = before.to_dict(), config.to_dict()
        changed = sorted(k for k in new if old.get(k) != new[k])
        raise InputError(
            explain(
                f"{folder} belongs to a run with other settings",
                got=", ".join(f"{k}={new[k]}" for k in changed),
                expected=", ".join(f"{k}={old.get(k)}" for k in changed),
                mend="choose another run folder or the same settings",
            )
        )


def save_checkpoint(state: Saved, folder: Path, keep: int) -> None:
    """Write the state as a checkpoint of its step, whole or not at all, and drop all but the newest `keep`."""
    checkpoints = folder / CHECKPOINTS
    write_checkpoint(state, checkpoints / f"step_{state.step:06d}.pt")
    for old in sorted(checkpoints.glob("step_*.pt"))[:-keep]:
        old.unlink()


def newest_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None when there is none; a damaged one is named and passed over.

    Raises:
        DataError: There are checkpoints, but none can be read.
    """
    problem: DataError | None = None
    for path in sorted((folder / CHECKPOINTS).glob("step_*.pt"), reverse=True):
        try:
            return read_checkpoint(path, device)
        except DataError as error:
            print(f"{error} Going on from the one before.", file=sys.stderr)
            problem = error
    if problem is not None:
        raise problem
    return None


@contextlib.contextmanager
def stop_at_step_boundary() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the current step; a second one stops at once."""
    wish = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def handle(number: int, frame: Any) -> None:
        if wish.is_set():
            raise KeyboardInterrupt
        wish.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
