"""What has run, as text for a terminal and as one CSV file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mhvae_kit.files import write_text
from mhvae_kit.runs import collect, default_root, list_runs

_HEADER = ("run", "status", "notebook", "preset", "seed", "minutes", "note")


def list_as_text(root: str | Path | None = None, ids: Iterable[str] | None = None) -> str:
    """A table of all runs, or of those in `ids`: one line a run, with the reason when it is not done."""
    wanted = None if ids is None else set(ids)
    infos = [info for info in list_runs(root) if wanted is None or info.id in wanted]
    if not infos:
        return f"no runs in {root or default_root()}"
    rows = [_HEADER]
    for info in infos:
        minutes = "" if info.seconds is None else f"{info.seconds / 60:.1f}"
        seed = "" if info.seed is None else str(info.seed)
        rows.append((info.id, info.status, info.notebook, info.preset, seed, minutes, info.message))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)


def collect_to_csv(path: str | Path, root: str | Path | None = None, ids: Iterable[str] | None = None) -> Path:
    """Write the tidy table of `mhvae_kit.runs.collect` to a CSV file, whole or not at all; returns its path."""
    write_text(path, collect(root, ids).to_csv(index=False))
    return Path(path)
