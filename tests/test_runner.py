"""The runner: what it refuses before running, and what it records after every kind of end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mhvae_kit.errors import InputError, RunError
from mhvae_kit.files import write_json
from mhvae_kit.runner import _claim, _stopped_by_signals, failing_cell, run_notebook
from mhvae_kit.runs import list_runs, read_results, run_status, set_status

PARAMETERS = """preset: str = "smoke"  # smoke, demo or paper
seed: int = 0  # random seed
wait: float = 0.0  # seconds
gan: bool = True  # adversarial term
run_dir: str = ""  # run folder; "" = none"""
RECORD = """from mhvae_kit.runs import write_results
write_results(run_dir, notebook="tiny", parameters={"seed": seed, "gan": gan}, preset=preset, seed=seed,
              dataset={"name": "none", "digest": "0"}, metrics={"twice": 2 * seed}, seconds=1.0)"""


def make(folder: Path, *cells: str, timeout_s: dict[str, float] | None = None) -> Path:
    """A notebook with the usual parameters and these cells."""
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "x", "language": "python"}
    node = new_notebook(cells=[first, *map(new_code_cell, cells)], metadata={"kernelspec": kernel})
    if timeout_s:
        node.metadata["mhvae_kit"] = {"timeout_s": timeout_s}
    path = folder / "tiny.ipynb"
    nbformat.write(node, path)
    return path


def recorded(run_dir: Path) -> dict:
    return json.loads((run_dir / "status.json").read_text())


def kernels_below_this_process() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]


def test_a_run_that_ends_well_is_done_with_its_results_and_executed_notebook(tmp_path, capfd, monkeypatch):
    # A kernel that a user has installed under the same name is not taken.
    spec = {"argv": ["/bin/false"], "display_name": "mine", "language": "python"}
    write_json(tmp_path / "kernels" / "python3" / "kernel.json", spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    look = "import sys, os\nprint('python', sys.executable, os.environ['MHVAE_HEADLESS'], os.getcwd())"
    run = run_notebook(make(tmp_path, look, RECORD), {"seed": "4", "gan": "false"}, run_id="one")
    assert run_status(run) == "done"
    assert read_results(run)["metrics"] == {"twice": 8}
    assert read_results(run)["parameters"] == {"seed": 4, "gan": False}
    assert (run / "tiny.ipynb").is_file()
    # The kernel is this very Python, started where the notebook lies; what it prints is seen while it runs.
    assert f"python {sys.executable} 1 {tmp_path}" in capfd.readouterr().out
    assert [(info.id, info.status, info.parameters["seed"]) for info in list_runs()] == [("one", "done", 4)]


def test_a_failing_cell_is_printed_and_results_written_before_it_do_not_count(tmp_path, capfd, runs_root):
    notebook = make(tmp_path, RECORD, "boom = 1 / 0", "never = 1")
    with pytest.raises(RunError, match="tiny failed: a cell raised an error"):
        run_notebook(notebook, run_id="bad")
    printed = capfd.readouterr().err
    assert "cell 3 of 4" in printed and "boom = 1 / 0" in printed and "ZeroDivisionError" in printed
    assert recorded(runs_root / "bad")["status"] == "failed"
    assert not (runs_root / "bad" / "results.json").exists()
    # The same id again goes on in the same folder, where a training finds its checkpoints.
    (runs_root / "bad" / "checkpoint").touch()
    assert run_status(run_notebook(make(tmp_path, RECORD), run_id="bad")) == "done"
    assert (runs_root / "bad" / "checkpoint").exists()


def test_a_notebook_without_results_is_not_done(tmp_path):
    with pytest.raises(RunError, match="without writing results"):
        run_notebook(make(tmp_path, "x = 1"))


def test_a_killed_kernel_is_recorded_as_killed(tmp_path, capfd, runs_root):
    with pytest.raises(RunError, match="was killed: its kernel died"):
        run_notebook(make(tmp_path, "import os\nos.kill(os.getpid(), 9)", RECORD), run_id="dead")
    assert recorded(runs_root / "dead")["status"] == "killed"
    assert "os.kill(os.getpid(), 9)" in capfd.readouterr().err


def test_a_run_over_its_time_limit_is_ended_with_its_kernel(tmp_path, runs_root):
    notebook = make(tmp_path, "import time\ntime.sleep(600)", RECORD, timeout_s={"smoke": 6})
    with pytest.raises(RunError, match="ran out of time: the limit of 6 s"):
        run_notebook(notebook, run_id="slow")
    assert recorded(runs_root / "slow")["status"] == "timeout"
    assert not kernels_below_this_process()


# A shell that started pytest in the background has told its children to ignore Ctrl-C; a user's has not.
START = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mhvae_kit.runner import run_notebook
run_notebook(sys.argv[1], run_id='x')"""
TELL = "import os, pathlib, time\npathlib.Path(run_dir, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_is_ended_takes_its_kernel_along_and_its_run_is_killed(tmp_path, runs_root, number):
    runner = subprocess.Popen(
        [sys.executable, "-c", START, str(make(tmp_path, TELL, RECORD))], stderr=subprocess.DEVNULL
    )
    told = runs_root / "x" / "pid"
    wait_until(lambda: told.is_file() and told.read_text() != "")
    runner.send_signal(number)
    runner.wait(timeout=30)
    wait_until(lambda: not psutil.pid_exists(int(told.read_text())))
    assert run_status(runs_root / "x") == "killed"


def wait_until(true: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sed": 1}, "tiny has no parameter 'sed'; expected one of .*; the nearest is seed"),
        ({"seed": "1.5"}, "parameter seed of tiny has the wrong type; got '1.5'; expected int"),
        ({"seed": True}, "expected int"),
        ({"gan": "maybe"}, "expected bool, true or false"),
        ({"gan": 0}, "expected bool"),
        ({"wait": "nan"}, "expected float"),
        ({"preset": "big"}, "unknown preset; got 'big'; expected one of smoke, demo, paper"),
        ({"run_dir": "/tmp"}, "run_dir is set by the runner"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_runs(tmp_path, runs_root, given, message):
    with pytest.raises(InputError, match=message):
        run_notebook(make(tmp_path, RECORD), given)
    assert not list(runs_root.iterdir())


def test_a_limit_of_no_time_is_refused(tmp_path):
    with pytest.raises(InputError, match="time limit must be positive"):
        run_notebook(make(tmp_path, RECORD), timeout_s=0)


def test_a_done_run_is_run_again_only_by_force(tmp_path, runs_root):
    write_json(runs_root / "one" / "results.json", {})
    with pytest.raises(RunError, match="run one is done"):
        run_notebook(make(tmp_path, RECORD), run_id="one")
    assert _claim("tiny", {}, "one", None, force=True) == runs_root / "one"
    assert not (runs_root / "one" / "results.json").exists()


def test_a_run_that_is_going_on_is_left_alone(tmp_path, runs_root):
    set_status(runs_root / "one", "running", by="runner")
    with pytest.raises(RunError, match="going on in another process"):
        run_notebook(make(tmp_path, RECORD), run_id="one")


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look() -> None:
        with _stopped_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_notebook_that_never_began_has_no_failing_cell(tmp_path):
    assert failing_cell(tmp_path / "none.ipynb") == "no cell had begun."
