"""The folder a synthesis is written to: whole or not at all, with a record that says how its files were made."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mhvae_kit.errors import InputError, RunError, explain
from mhvae_kit.files import atomic_folder, is_full, write_json

RECORD_FILE = "synthesis.json"
FORMAT_VERSION = 1
_SPARE_BYTES = 1 << 20


def model_digest(model: Any) -> str:
    """Short digest of a model's config and weights."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def finished(folder: Path, settings: Mapping[str, Any], force: bool) -> dict[str, Any] | None:
    """The record of a synthesis that is there already with the same settings; None when there is nothing to keep.

    Raises:
        InputError: The folder holds something else, or a synthesis with other settings.
    """
    if not folder.exists():
        return None
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        known = dict(record["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        problem = f"{folder} holds something else than a synthesis"
        raise InputError(explain(problem, mend="give an output folder that is new or empty")) from None
    if force:
        return None
    wanted = json.loads(json.dumps(settings))
    other = sorted(k for k in known.keys() | wanted.keys() if known.get(k) != wanted.get(k))
    if other:
        got = ", ".join(f"{k} {known.get(k)}" for k in other)
        expected = ", ".join(f"{k} {wanted.get(k)}" for k in other)
        mend = "give another output folder, or replace it with force (--force)"
        raise InputError(explain(f"{folder} holds a synthesis made otherwise", got=got, expected=expected, mend=mend))
    return record if all((folder / name).is_file() for name in record.get("files", ())) else None


MEND_FULL = "free some space, or give an output folder on another disk; finished cases are kept"


@contextlib.contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, for what is unpacked on the way; a full disk becomes a sentence.

    Raises:
        RunError: The disk is full.
    """
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".tmp-{folder.name}-", dir=parent) as scratch:
            yield Path(scratch)
    except OSError as error:
        if not is_full(error):
            raise
        raise RunError(explain(f"the disk is full: {parent}", mend=MEND_FULL)) from error


@contextlib.contextmanager
def new_folder(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `folder` that takes its name and place when all went well, and is removed otherwise.

    Args:
        folder: The final folder; an earlier synthesis there is replaced.
        needed_bytes: What will be written at most.
    Raises:
        RunError: The disk has not that much left.
    """
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes + _SPARE_BYTES:
        got, expected = f"{free / 1e6:.0f} MB free", f"{needed_bytes / 1e6:.0f} MB"
        raise RunError(explain(f"no space on disk for {folder}", got=got, expected=expected, mend=MEND_FULL))
    with atomic_folder(folder) as beside:
        yield beside


def write_record(folder: Path, settings: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """Write the record of a synthesis, last of its files."""
    record = {"format": FORMAT_VERSION, "settings": dict(settings), **found}
    write_json(folder / RECORD_FILE, record)
    return record
