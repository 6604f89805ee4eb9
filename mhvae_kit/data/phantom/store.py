"""The cache on disk: a case's folder is there whole or not at all, and damage is found before it is used."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from mhvae_kit.errors import DataError, RunError, explain
from mhvae_kit.files import sha256

from .generate import Patient
from .presets import KINDS, VERSION, PhantomPreset

CASE_FILE = "case.json"
TEMPORARY = ".tmp-"
HEADER_BYTES = 352
STALE_S = 3600.0
"""A temporary folder of an unknown owner is taken for a leftover after this time."""


def preset_dir(cache_dir: Path, preset: PhantomPreset) -> Path:
    """Folder of a preset's cases."""
    return cache_dir / f"phantom-{VERSION}-{preset.name}"


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write an uncompressed NIfTI-1 file in mm whose qform and sform are `affine`."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.to_filename(path)


@contextlib.contextmanager
def writing(root: Path, what: str = "the phantom", place: str = "set MHVAE_CACHE to another folder") -> Iterator[None]:
    """Turn an error of the file system into one sentence.

    Args:
        root: Folder that is written to.
        what: What is being written.
        place: How to write somewhere else.
    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        problem = "the disk is full" if full else f"{what} cannot be written ({error.strerror or error})"
        mend = f"free some space or {place}; finished patients are kept"
        raise RunError(explain(f"{problem}: {root}", mend=mend)) from error


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"


@contextlib.contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """A folder inside `root` that is removed at the end; its name says who made it."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{_host()}-{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_case(root: Path, patient: Patient, split: str, images: dict[str, np.ndarray]) -> None:
    """Write a case's folder: beside, then renamed; if another process was faster, its identical folder is kept.

    Raises:
        RunError: If the disk is full or the folder cannot be written.
    """
    with writing(root), temporary_folder(root) as folder:
        files = {}
        for kind in KINDS:
            path = folder / f"{kind}.nii"
            write_nifti(path, images[kind], patient.affine)
            files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        record = {
            "case": patient.case,
            "split": split,
            "seed": patient.seed,
            "shape": list(patient.grid.shape),
            "spacing_mm": patient.grid.spacing_mm,
            "files": files,
            "parameters": patient.parameters,
        }
        (folder / CASE_FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        folder.chmod(0o755)
        _rename(folder, root / patient.case)


def _rename(folder: Path, final: Path) -> None:
    try:
        os.rename(folder, final)
    except OSError:
        if not (final / CASE_FILE).is_file():  # not simply that another process has made the same case
            raise


def clean_leftovers(root: Path) -> None:
    """Remove temporary folders of processes that no longer run; those of running ones are left to them."""
    this_host = _host()
    for folder in root.glob(f"{TEMPORARY}*"):
        host, _, rest = folder.name[len(TEMPORARY) :].partition("-")
        owner = rest.split("-")[0]
        try:
            old = time.time() - folder.stat().st_mtime > STALE_S
        except OSError:
            continue  # its owner has just finished
        # Process ids mean something on their own machine only; the cache may be shared by several.
        if old or (host == this_host and owner.isdigit() and not _alive(int(owner))):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process has no write under way when it cleans up
    if os.name == "nt":
        return True  # os.kill would end it there; the age decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_complete(folder: Path) -> bool:
    """Whether a case's folder holds all its files; their content is another matter."""
    return (folder / CASE_FILE).is_file() and all((folder / f"{kind}.nii").is_file() for kind in KINDS)


def discard(folder: Path) -> None:
    """Remove an incomplete case so that it is made again: moved aside first, so that nobody reads half of it."""
    with writing(folder.parent), temporary_folder(folder.parent) as aside, contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside / "case")


def mend_hint(path: Path) -> str:
    """How to mend a damaged file of the cache."""
    return f"delete the folder {path.parent}, it is made again"


def read_record(folder: Path) -> dict:
    """The case.json of a folder.

    Raises:
        DataError: If it is not what `write_case` wrote.
    """
    path = folder / CASE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        complete = all(f"{kind}.nii" in record["files"] for kind in KINDS) and record["case"] == folder.name
        complete = complete and all(key in record for key in ("split", "seed", "shape", "spacing_mm", "parameters"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(explain(f"{path} cannot be read ({error})", mend=mend_hint(path))) from error
    if not complete:
        raise DataError(explain(f"{path} is not a phantom's record", mend=mend_hint(path)))
    return record


def verify_case(folder: Path, record: dict, hashes: bool = True) -> None:
    """Check the size and, with `hashes`, the sha256 of every file of a case.

    Raises:
        DataError: Names the first file that is missing, truncated or changed.
    """
    for name, expected in record["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(explain(f"{path} is missing", mend=mend_hint(path))) from error
        if size != expected["bytes"]:
            got, want = f"{size} bytes", f"{expected['bytes']} bytes"
            raise DataError(explain(f"{path} is truncated or has grown", got=got, expected=want, mend=mend_hint(path)))
        if hashes and sha256(path) != expected["sha256"]:
            raise DataError(explain(f"{path} has changed since it was made: its sha256 differs", mend=mend_hint(path)))


def open_volume(
    path: Path, shape: tuple[int, ...], dtype: type = np.uint8, hint: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of the cache.

    It is read, not memory-mapped: a map holds a file descriptor, and 56 patients with four files each are more than
    some systems grant a process. The 8-bit volumes of a training set take 60 MB at "demo", 500 MB at "paper".

    Args:
        path: The file.
        shape, dtype: What it must hold.
        hint: How to mend a damaged file; None for one of the phantom's cache.
    Returns:
        The volume (H, W, D), read-only, and its affine (4, 4) in mm.
    Raises:
        DataError: If it is unreadable, truncated, or of another shape or type.
    """
    hint = hint or mend_hint(path)
    try:
        image = nib.load(path, mmap=False)
    except (OSError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(explain(f"{path} cannot be read as NIfTI ({reason})", mend=hint)) from error
    if image.shape != tuple(shape) or image.get_data_dtype() != np.dtype(dtype):
        got, want = f"{image.shape} {image.get_data_dtype()}", f"{tuple(shape)} {np.dtype(dtype)}"
        raise DataError(explain(f"{path} has another shape or type", got=got, expected=want, mend=hint))
    if path.stat().st_size < HEADER_BYTES + int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise DataError(explain(f"{path} is truncated", mend=hint))
    volume = np.asarray(image.dataobj)
    volume.setflags(write=False)
    return volume, image.affine
