"""Manifests: one CSV row a file, with what identifies its bytes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pandas as pd

from mhvae_kit.errors import DataError, MissingError, explain
from mhvae_kit.files import sha256, write_text

COLUMNS = ("case", "split", "file", "sha256", "shape", "spacing", "seed")
"""shape is "HxWxD" in voxels, spacing in mm, file a path with "/" relative to the data folder."""


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a manifest; further columns are kept.

    Raises:
        MissingError: If there is no such file.
        DataError: If it is not a CSV, or a column is missing, or a case has two splits.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(explain("the manifest is not there", got=path, expected="a CSV file"))
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(("case", "split", "file", "sha256", "shape"), str))
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(explain(f"the manifest {path} cannot be read ({error})", expected="a CSV file")) from error
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise DataError(explain(f"the manifest {path} lacks columns", got=list(frame.columns), expected=list(COLUMNS)))
    mixed = frame.groupby("case")["split"].nunique()
    if (mixed > 1).any():
        case = mixed.index[mixed > 1][0]
        raise DataError(explain(f"the manifest {path} puts case {case} into two splits", expected="one split a case"))
    return frame


def write_manifest(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a manifest whole or not at all, in the column order of `COLUMNS`, further columns after them."""
    ordered = [*COLUMNS, *(c for c in frame.columns if c not in COLUMNS)]
    write_text(path, frame[ordered].to_csv(index=False, lineterminator="\n"))


def verify_manifest(
    frame: pd.DataFrame, root: str | Path, mend: str = "get the file again, or delete its row if it is not needed"
) -> None:
    """Check that every file is there, inside `root`, with the bytes the manifest names.

    Args:
        frame: The manifest.
        root: Folder its paths are relative to.
        mend: What the user should do about a file that is wrong; goes into the message.
    Raises:
        DataError: Names the first file that leaves the folder, is missing or has another hash.
    """
    root = Path(root).resolve()
    for name, expected in zip(frame["file"], frame["sha256"], strict=True):
        relative = PurePosixPath(str(name))
        path = root / relative
        if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(root):
            raise DataError(
                explain("a manifest path leaves the data folder", got=name, expected=f"a path below {root}")
            )
        if not path.is_file():
            raise DataError(explain(f"{path} is in the manifest but not on disk", mend=mend))
        actual = sha256(path)
        if actual != expected:
            raise DataError(
                explain(f"{path} has changed", got=f"sha256 {actual[:12]}", expected=str(expected)[:12], mend=mend)
            )
