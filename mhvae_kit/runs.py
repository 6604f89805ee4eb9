"""Run folders: one folder a run, `results.json` written last, an honest status, and one tidy table over all runs.

    runs/<id>/   status.json  results.json  figures/  NAME.ipynb
                 and whatever else the run writes: config.json, metrics.csv, checkpoints/

A run is done when `results.json` is there and nothing says that it stopped after writing it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import psutil

from mhvae_kit.environment import code_version, device_name, git_commit, library_versions, project_folder
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import write_json
from mhvae_kit.plain import json_safe

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
Status = Literal["running", "done", "failed", "timeout", "killed"]
STATUSES: tuple[Status, ...] = get_args(Status)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of one run without opening its results.

    Args:
        id: Name of the run folder.
        path: The run folder.
        status: running, done, failed, timeout or killed; a "running" whose process is gone is killed.
        notebook: Name of the notebook or command that made it.
        preset: smoke, demo or paper; "" when unknown.
        seed: Its seed; None when unknown.
        seconds: Wall-clock time it took; None while it runs.
        time_utc: When its status was last written, ISO 8601.
        parameters: The parameters it was given.
        message: Why it is not done, in one sentence; "" when it is.
    """

    id: str
    path: Path
    status: Status
    notebook: str = ""
    preset: str = ""
    seed: int | None = None
    seconds: float | None = None
    time_utc: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    message: str = ""


def utc_now() -> str:
    """The time now in UTC, ISO 8601 with seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def default_root() -> Path:
    """Where run folders go: MHVAE_RUNS, else `runs/` of the project folder around the working directory, else ./runs.

    So a notebook opened in notebooks/ and a command called at the top write to the same place.
    """
    if os.environ.get("MHVAE_RUNS"):
        return Path(os.environ["MHVAE_RUNS"]).expanduser().resolve()
    return (project_folder() or Path.cwd()) / "runs"


def check_run_id(run_id: str) -> str:
    """Return `run_id` when it can name a folder safely.

    Raises:
        InputError: It is empty, too long or holds other characters than letters, digits, dot, dash and underscore.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(
            explain(
                "unusable run id", got=repr(run_id), expected="letters, digits, '.', '-' and '_', at most 120 of them"
            )
        )
    return run_id


def run_folder(root: str | Path | None = None, name: str = "run", run_id: str | None = None) -> Path:
    """Make (or find again) the folder of a run, with its `figures/` folder.

    Args:
        root: The folder of all runs; None = `default_root()`.
        name: What runs, e.g. "02_staged_training"; part of the id when `run_id` is None.
        run_id: A fixed id, to continue or replace a run; None = UTC time, name and six random hex digits.
    Returns:
        The absolute path of the run folder.
    """
    if run_id is None:
        run_id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{name}-{secrets.token_hex(3)}"
    folder = Path(root if root is not None else default_root()).expanduser().resolve() / check_run_id(run_id)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    if _recorded_status(folder).get("by") != "runner" or run_status(folder) != "running":
        set_status(folder, "running", notebook=name)
    return folder


def set_status(run_dir: str | Path, status: Status, **detail: Any) -> None:
    """Record in `status.json` what a run is doing, with the process that does it.

    Args:
        run_dir: The run folder.
        status: running, done, failed, timeout or killed.
        detail: Further JSON values, e.g. notebook, parameters, message; what was recorded before is kept.
    """
    if status not in STATUSES:
        raise InputError(explain("unknown run status", got=repr(status), expected="one of " + ", ".join(STATUSES)))
    recorded = _recorded_status(Path(run_dir))
    if status == "running":
        recorded = {"started_utc": utc_now()}
    process = {"pid": os.getpid(), "pid_started": psutil.Process().create_time(), "host": socket.gethostname()}
    record = {**recorded, **detail, "schema": SCHEMA_VERSION, "status": status, **process, "time_utc": utc_now()}
    write_json(Path(run_dir) / "status.json", json_safe(record))


def run_status(run_dir: str | Path) -> Status | None:
    """The status of a run as it truly is now; None when the folder holds no run.

    A "running" whose process is gone is "killed"; a "done" whose results.json has gone is "failed".
    """
    folder = Path(run_dir)
    has_results = (folder / "results.json").is_file()
    record = _recorded_status(folder)
    status = record.get("status")
    if status not in STATUSES:
        return "done" if has_results else None
    if status == "running" and not _is_alive(record):
        return "killed"
    if status == "done" and not has_results:
        return "failed"
    return status


def write_results(
    run_dir: str | Path,
    *,
    notebook: str,
    parameters: Mapping[str, Any],
    preset: str,
    seed: int,
    dataset: Mapping[str, Any],
    metrics: Mapping[str, Any],
    seconds: float,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `results.json`, the last file of a run: its being there says that the run came to its end.

    Args:
        run_dir: The run folder.
        notebook: Name of the notebook or command.
        parameters: All parameters with the values used.
        preset: smoke, demo or paper.
        seed: The seed used.
        dataset: `name` and `digest` (SHA-256) of the data.
        metrics: Name -> number, nested as wanted. NaN and infinity are written as null.
        seconds: Wall-clock time of the run.
        extra: Anything else worth keeping.
    Returns:
        The path of `results.json`. Version of the code, git commit, library versions, device and UTC time are added.
    Raises:
        InputError: A value has no JSON form, or the dataset has no name or digest.
    """
    if not {"name", "digest"} <= set(dataset):
        raise InputError(explain("dataset is not identified", got=sorted(dataset), expected="the keys name and digest"))
    folder = Path(run_dir)
    results = {
        "schema": SCHEMA_VERSION,
        "run_id": folder.resolve().name,
        "notebook": notebook,
        "preset": preset,
        "seed": seed,
        "parameters": parameters,
        "dataset": dataset,
        "metrics": metrics,
        "seconds": round(float(seconds), 3),
        "time_utc": utc_now(),
        "code_version": code_version(),
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
        "libraries": library_versions(),
        "device": device_name(),
        "extra": extra or {},
    }
    path = folder / "results.json"
    write_json(path, json_safe(results))
    # The runner says itself how the process ended; without a runner this is the end.
    if _recorded_status(folder).get("by") != "runner":
        set_status(folder, "done", notebook=notebook, preset=preset, seed=seed, seconds=results["seconds"])
    return path


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """Read `results.json` of a run.

    Raises:
        MissingError: The run has none, so it is not done.
        DataError: The file is no results file of this schema.
    """
    path = Path(run_dir) / "results.json"
    if not path.is_file():
        raise MissingError(explain(f"{path} is not there", mend="the run is not done; `mhvae runs` shows its status"))
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        schema = results["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            explain(f"{path} is not a results file", got=str(error), mend="run again with --force")
        ) from error
    if schema != SCHEMA_VERSION:
        raise DataError(explain(f"{path} has another schema", got=schema, expected=SCHEMA_VERSION, mend="run again"))
    return results


def list_runs(root: str | Path | None = None) -> list[RunInfo]:
    """All runs below `root` (None = `default_root()`), oldest first."""
    folder = Path(root if root is not None else default_root())
    if not folder.is_dir():
        return []
    infos = [_info(path, status) for path in folder.iterdir() if path.is_dir() and (status := run_status(path))]
    return sorted(infos, key=lambda info: (info.time_utc, info.id))


def find_run(
    root: str | Path | None = None,
    *,
    notebook: str,
    preset: str,
    seed: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of the newest finished run of a notebook at a preset.

    Args:
        root: The folder of all runs; None = `default_root()`.
        notebook: Its name.
        preset: smoke, demo or paper.
        seed: Only runs with this seed; None = any.
        parameters: Only runs whose parameters have these values.
    Raises:
        MissingError: There is none; the message says how to make one.
    """
    wanted = json_safe(parameters or {})
    for info in reversed(list_runs(root)):
        fits = info.status == "done" and info.notebook == notebook and info.preset == preset
        if fits and seed in (None, info.seed) and all(info.parameters.get(k) == v for k, v in wanted.items()):
            return info.path
    raise MissingError(
        explain(
            f"no finished run of {notebook} at preset {preset} in {root or default_root()}",
            mend=f"make one with `mhvae run {notebook} -p preset={preset}`",
        )
    )


def collect(root: str | Path | None = None, ids: Iterable[str] | None = None) -> pd.DataFrame:
    """One tidy table over all runs: one row a run, columns param.* and metric.* (nested names joined by dots).

    Args:
        root: The folder of all runs; None = `default_root()`.
        ids: Only these runs, in this order; None = all, oldest first.
    Returns:
        Columns run_id, status, notebook, preset, seed, dataset, dataset_digest, seconds, time_utc, code_version, then
        the parameters, then the metrics. A run that is not done has its parameters and no metrics.
    Raises:
        MissingError: One of `ids` is not there.
    """
    import pandas as pd

    infos = {info.id: info for info in list_runs(root)}
    chosen = list(infos) if ids is None else list(ids)
    absent = [run_id for run_id in chosen if run_id not in infos]
    if absent:
        raise MissingError(explain(f"no run named {', '.join(absent)} in {root or default_root()}"))
    rows = [_row(infos[run_id]) for run_id in chosen]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    ordered = [c for c in columns if "." not in c]
    ordered += [c for prefix in ("param.", "metric.") for c in columns if c.startswith(prefix)]
    return pd.DataFrame(rows, columns=ordered)


def _row(info: RunInfo) -> dict[str, Any]:
    """One row of the tidy table."""
    row = {
        "run_id": info.id,
        "status": info.status,
        "notebook": info.notebook,
        "preset": info.preset,
        "seed": info.seed,
    }
    results = read_results(info.path) if info.status == "done" else {}
    dataset = results.get("dataset", {})
    row |= {"dataset": dataset.get("name"), "dataset_digest": dataset.get("digest"), "seconds": info.seconds}
    row |= {"time_utc": info.time_utc, "code_version": results.get("code_version")}
    row |= _flat("param", results.get("parameters", info.parameters))
    return row | _flat("metric", results.get("metrics", {}))


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested dicts as one level with dotted names; lists as JSON text."""
    if isinstance(value, dict):
        return {name: item for key, inner in value.items() for name, item in _flat(f"{prefix}.{key}", inner).items()}
    return {prefix: json.dumps(value) if isinstance(value, list) else value}


def _info(path: Path, status: Status) -> RunInfo:
    """Gather what status.json and results.json say of one run."""
    record = _recorded_status(path)
    try:
        results = read_results(path) if status == "done" else {}
    except DataError as error:
        status, results, record = "failed", {}, {**record, "message": str(error)}
    known = {**record, **results}
    message = "" if status == "done" else str(record.get("message", ""))
    if status == "killed" and record.get("status") == "running":
        message = "its process ended without a word: killed, out of memory, or the machine went down"
    return RunInfo(
        id=path.name,
        path=path,
        status=status,
        notebook=str(known.get("notebook", "")),
        preset=str(known.get("preset", "")),
        seed=known.get("seed"),
        seconds=known.get("seconds"),
        time_utc=str(known.get("time_utc", "")),
        parameters=known.get("parameters") or {},
        message=message,
    )


def _recorded_status(folder: Path) -> dict[str, Any]:
    """The content of status.json; empty when it is missing or unreadable."""
    try:
        record = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_alive(record: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status still lives. On another host nobody can tell: it is believed."""
    if record.get("host") != socket.gethostname():
        return True
    try:
        # The start time tells the process from a later one that was given the same number.
        process = psutil.Process(int(record["pid"]))
        return (
            abs(process.create_time() - float(record["pid_started"])) < 2 and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
