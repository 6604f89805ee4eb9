"""Running a notebook without a front end: in a process of its own, within time limits, with an honest record.

papermill alone would let a misspelt parameter pass, and a killed kernel leaves a notebook whose cells all claim to be
completed. Here a run is done only when the process ended well AND the notebook wrote results.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhvae_kit.errors import InputError, MissingError, RunError, explain
from mhvae_kit.files import write_json
from mhvae_kit.parameters import check_parameters, declared_parameters, find_notebook, read_notebook, tags
from mhvae_kit.processes import end_children, end_processes
from mhvae_kit.runs import Status, check_run_id, default_root, run_folder, run_status, set_status

START_TIMEOUT_S = 180
DEFAULT_TIMEOUT_S = 6 * 3600.0  # for a notebook whose metadata gives no limit for the preset
# How notebook_process says how it ended; any other number but 0 is a failure.
_EXIT_CELL_TIMEOUT, _EXIT_KERNEL_DIED, _EXIT_NO_KERNEL = 3, 4, 5
_VERB = {"failed": "failed", "timeout": "ran out of time", "killed": "was killed"}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    root: str | Path | None = None,
    timeout_s: float | None = None,
    force: bool = False,
) -> Path:
    """Run a notebook from top to bottom in a run folder of its own.

    Args:
        notebook: A path, a name ("02_staged_training") or the start of one ("02").
        parameters: Name -> value or text; checked against the notebook's parameters cell before anything runs.
            `run_dir` is set here to the run folder, when the notebook has it.
        run_id: Name of the run folder; None = a new one. A folder left by a failed run is used again, so that a
            training inside goes on from its checkpoints.
        root: Folder of all runs; None = `mhvae_kit.runs.default_root()`.
        timeout_s: Wall-clock limit; None = what the notebook's metadata says for the preset.
        force: Throw away what a run of that id has written, and start over.
    Returns:
        The run folder, with the executed notebook and results.json.
    Raises:
        InputError, MissingError, DataError: Notebook or parameters are not right; nothing was run.
        RunError: The run is done already, still going on, or did not come to its end; status.json says which.
    """
    path = find_notebook(notebook)
    node = read_notebook(path)
    declared = declared_parameters(node, path.stem)
    given = dict(parameters or {})
    if "run_dir" in given:
        raise InputError(explain("run_dir is set by the runner", mend="use --run-id and --root to choose the folder"))
    checked = check_parameters(declared, given, path.stem)
    values = {name: parameter.default for name, parameter in declared.items() if name != "run_dir"} | checked
    limit = _limit(node, values.get("preset"), timeout_s)
    folder = _claim(path.stem, values, run_id, root, force)
    injected = checked | ({"run_dir": str(folder)} if "run_dir" in declared else {})
    _execute(path, folder, injected, limit)
    return folder


def _limit(node: Mapping[str, Any], preset: Any, timeout_s: float | None) -> float:
    """The wall-clock limit in seconds: the caller's, else the notebook's for this preset, else the default."""
    declared = node["metadata"].get("mhvae_kit", {}).get("timeout_s", {})
    limit = timeout_s if timeout_s is not None else declared.get(preset, DEFAULT_TIMEOUT_S)
    if limit <= 0:
        raise InputError(explain("a time limit must be positive", got=limit, expected="seconds above 0"))
    return float(limit)


def _claim(name: str, values: Mapping[str, Any], run_id: str | None, root: str | Path | None, force: bool) -> Path:
    """Make the run folder ours, unless its run is done or going on."""
    if run_id is not None:
        existing = _folder_of(root, run_id)
        status = run_status(existing)
        if status == "running":
            raise RunError(
                explain(f"run {run_id} is going on in another process", mend="wait for it, or end that process")
            )
        if status == "done" and not force:
            raise RunError(explain(f"run {run_id} is done", mend="give another --run-id, or --force to start it over"))
        if force and existing.is_dir():
            shutil.rmtree(existing)  # with its checkpoints: a training would go on from them instead of starting over
    folder = run_folder(root, name, run_id)
    (folder / "results.json").unlink(missing_ok=True)  # it must come from this run
    detail = {
        "notebook": name,
        "preset": values.get("preset", ""),
        "seed": values.get("seed"),
        "parameters": dict(values),
    }
    set_status(folder, "running", by="runner", **detail)
    return folder


def _folder_of(root: str | Path | None, run_id: str) -> Path:
    """Where the folder of a run is or would be, without making it."""
    return Path(root if root is not None else default_root()).expanduser().resolve() / check_run_id(run_id)


@dataclass(frozen=True)
class _End:
    """How one notebook process ended: status, why, the last cell it started, and whether another try may help."""

    status: Status
    message: str = ""
    cell: int | None = None
    try_again: bool = False


def _execute(path: Path, folder: Path, injected: Mapping[str, Any], limit: float) -> None:
    """Run the notebook process and record how it ended; RunError unless it ended well."""
    executed = folder / path.name
    begun = time.monotonic()
    try:
        end = _one_process(path, executed, injected, limit)
        if end.try_again:
            end = _one_process(path, executed, injected, limit)
    except KeyboardInterrupt:
        _record_unfinished(folder, _End("killed", "interrupted from outside (Ctrl-C or a signal)"), begun)
        raise
    if end.status == "done" and not (folder / "results.json").is_file():
        end = _End("failed", "it ended without writing results.json, which its last cell must do", end.cell)
    if end.status == "done":
        set_status(folder, "done", seconds=round(time.monotonic() - begun, 1), message="")
        return
    _record_unfinished(folder, end, begun)
    print(failing_cell(executed, end.cell), file=sys.stderr, flush=True)
    raise RunError(explain(f"{path.stem} {_VERB[end.status]}: {end.message}", mend=f"what it wrote is in {folder}"))


def _record_unfinished(folder: Path, end: _End, begun: float) -> None:
    """Write down why a run is not done, and leave no results.json that would say otherwise."""
    results = folder / "results.json"
    if results.is_file():
        os.replace(results, folder / "results-of-unfinished-run.json")
    set_status(folder, end.status, seconds=round(time.monotonic() - begun, 1), message=end.message)


def _one_process(path: Path, executed: Path, injected: Mapping[str, Any], limit: float) -> _End:
    """One notebook process from start to end; nothing it started is left behind."""
    with tempfile.TemporaryDirectory(prefix="mhvae-run-") as temporary:
        told = Path(temporary) / "told.json"
        job = {
            "input": str(path),
            "output": str(executed),
            "parameters": dict(injected),
            "cwd": str(path.parent),
            "told": str(told),
            "start_timeout_s": START_TIMEOUT_S,
            "cell_timeout_s": max(1, int(limit)),
        }
        write_json(Path(temporary) / "job.json", job)
        call = [sys.executable, "-m", "mhvae_kit.notebook_process", str(Path(temporary) / "job.json")]
        with _stopped_by_signals(), subprocess.Popen(call, env=_environment(), start_new_session=True) as process:
            try:
                end = _end(process.wait(timeout=limit), limit, told)
            except subprocess.TimeoutExpired:
                end = _End("timeout", f"the limit of {limit:.0f} s was reached", _told(told).get("cell"))
            finally:
                end_children(process.pid, itself=True)
                end_processes(_told(told).get("processes", []))
        return end


def _environment() -> dict[str, str]:
    """The environment of the notebook process: this one, told that nobody watches, and able to import this kit."""
    package_home = str(Path(__file__).resolve().parent.parent)
    paths = [package_home, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "MHVAE_HEADLESS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end(code: int, limit: float, told: Path) -> _End:
    """What an exit code of the notebook process means."""
    cell = _told(told).get("cell")
    if code == 0:
        return _End("done", "", cell)
    if code < 0:
        return _End("killed", f"its process was ended by signal {signal.Signals(-code).name}", cell)
    if code == _EXIT_CELL_TIMEOUT:
        return _End("timeout", f"a cell took longer than {limit:.0f} s", cell)
    if code == _EXIT_KERNEL_DIED:
        return _End("killed", "its kernel died, most often for lack of memory", cell)
    if code == _EXIT_NO_KERNEL:
        # Many kernels that start at once now and then race for a port; no cell had begun, so a second try is safe.
        return _End("failed", f"its kernel did not start within {START_TIMEOUT_S} s", None, try_again=True)
    return _End("failed", "a cell raised an error" if cell is not None else "it could not be started", cell)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, so that a scheduler's cancel leaves no kernel behind."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    names = [signal.SIGTERM, signal.SIGHUP] if hasattr(signal, "SIGHUP") else [signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _told(path: Path) -> dict[str, Any]:
    """What the notebook process told last: `cell` it started, `processes` it had; empty before the first cell."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def failing_cell(executed: Path, index: int | None = None) -> str:
    """The cell at which an executed notebook stopped: its source and its error, as text for a terminal.

    Args:
        executed: The executed notebook, as far as it was saved.
        index: The last cell that was started, for when no cell holds an error, as after a kill; None = unknown.
    """
    try:
        # papermill's banners are no cells of the notebook; its cell of given parameters counts in `index` alone.
        cells = [cell for cell in read_notebook(executed)["cells"] if "papermill-error-cell-tag" not in tags(cell)]
    except MissingError:
        return "no cell had begun."
    own = [cell for cell in cells if "injected-parameters" not in tags(cell)]
    for number, cell in enumerate(own, start=1):
        errors = [output for output in cell.get("outputs", []) if output["output_type"] == "error"]
        if errors:
            last = errors[-1]
            traceback = _ANSI.sub("", "\n".join(last["traceback"])) or f"{last['ename']}: {last['evalue']}"
            return f"--- cell {number} of {len(own)}\n{cell['source']}\n--- its error\n{traceback}"
    if index is None or index >= len(cells) or cells[index] not in own:
        return "no cell holds an error."
    return f"--- cell {own.index(cells[index]) + 1} of {len(own)} was running\n{cells[index]['source']}"
