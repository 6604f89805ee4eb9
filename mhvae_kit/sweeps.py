"""Reading a sweep: a table of notebooks and parameters, one run a row, each with an id that its content decides.

CSV: a column `notebook` and one column a parameter; an empty cell leaves the notebook's own value.
YAML: a list of mappings with the same names.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhvae_kit.errors import DataError, KitError, MissingError, explain
from mhvae_kit.parameters import check_parameters, declared_parameters, find_notebook, read_notebook


@dataclass(frozen=True)
class SweepRun:
    """One row of a sweep.

    Args:
        run_id: "sweep-<table>-<notebook>-<digest>": the same parameters give the same id wherever the row stands, so
            rows can be added or moved and finished ones are not run again.
        notebook: Name of the notebook.
        parameters: Name -> value, checked and typed.
    """

    run_id: str
    notebook: str
    parameters: dict[str, Any]


def read_sweep(path: str | Path) -> list[SweepRun]:
    """Read and check a whole sweep before any of it runs.

    Args:
        path: A .csv, .yaml or .yml file.
    Raises:
        MissingError: The file is not there.
        DataError: It is no such table, a row is wrong (the message has its number), or two rows are the same run.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(explain(f"sweep table {path} is not there"))
    rows = _rows(path)
    if not rows:
        raise DataError(explain(f"sweep table {path} has no rows", expected="one row a run"))
    runs = [_run(path, number, row) for number, row in enumerate(rows, start=1)]
    first: dict[str, int] = {}
    for number, run in enumerate(runs, start=1):
        if first.setdefault(run.run_id, number) != number:
            raise DataError(explain(f"rows {first[run.run_id]} and {number} of {path} are the same run"))
    return runs


def sweep_name(path: str | Path) -> str:
    """The name of a sweep, from the name of its file: letters, digits, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).stem)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows as dicts; empty cells left out."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() in (".yaml", ".yml"):
        import yaml

        try:
            rows = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DataError(explain(f"{path} is not YAML", got=" ".join(str(error).split()))) from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(explain(f"{path} is not a sweep", expected="a list of mappings"))
        return rows
    lines = [line for line in csv.reader(text.splitlines()) if any(cell.strip() for cell in line)]
    header = [name.strip() for name in lines[0]] if lines else []
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(
                explain(f"row {number} of {path} is uneven", got=f"{len(line)} cells", expected=len(header))
            )
    named = [dict(zip(header, (cell.strip() for cell in line), strict=True)) for line in lines[1:]]
    return [{name: cell for name, cell in row.items() if cell != ""} for row in named]


def _run(path: Path, number: int, row: dict[str, Any]) -> SweepRun:
    """Check one row."""
    if not row.get("notebook"):
        raise DataError(explain(f"row {number} of {path} names no notebook", expected="a column `notebook`"))
    try:
        notebook = find_notebook(str(row["notebook"]))
        declared = declared_parameters(read_notebook(notebook), notebook.stem)
        given = {name: value for name, value in row.items() if name != "notebook"}
        parameters = check_parameters(declared, given, notebook.stem)
    except KitError as error:
        raise DataError(f"row {number} of {path}: {error}") from error
    content = json.dumps([notebook.stem, parameters], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return SweepRun(f"sweep-{sweep_name(path)}-{notebook.stem}-{digest}", notebook.stem, parameters)
