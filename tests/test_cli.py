"""The command line: quick help, one sentence per error, exit codes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from mhvae_kit import __version__, cli
from mhvae_kit.errors import DataError, InputError, MissingError, RunError
from mhvae_kit.runs import run_folder, set_status, write_results


def call(*arguments: str) -> int:
    """The exit code of `mhvae ARGUMENTS`, in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.app(list(arguments), prog_name="mhvae")
    return ended.value.code or 0


def test_help_needs_none_of_the_heavy_libraries():
    heavy = ("torch", "papermill", "nbconvert", "nbformat", "pandas", "numpy", "matplotlib", "yaml")
    code = f"import sys; import mhvae_kit.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr().out
    for name in (
        "run",
        "runs",
        "train",
        "evaluate",
        "table1",
        "fetch",
        "phantom",
        "report",
        "synthesize",
        "generalise",
        "bench",
    ):
        assert f"  {name} " in printed


def test_the_version_is_printed(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_is_bad_input():
    assert call("frobnicate") == 2


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (InputError("a; b."), 2, "mhvae: a; b."),
        (DataError("broken."), 2, "mhvae: broken."),
        (MissingError("gone."), 2, "mhvae: gone."),
        (RunError("stopped."), 1, "mhvae: stopped."),
        (OSError(errno.ENOSPC, "No space left", "x.bin"), 1, "mhvae: the disk is full (x.bin); free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "y"), 2, "mhvae: no permission (y); choose"),
        (KeyboardInterrupt(), 130, "mhvae: interrupted"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(error, code, sentence, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mhvae_kit.runner.run_notebook", broken)
    assert call("run", "02") == code
    captured = capsys.readouterr()
    assert captured.err.startswith(sentence)
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_a_fault_of_the_kit_keeps_its_traceback(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mhvae_kit.runner.run_notebook", broken)
    with pytest.raises(ZeroDivisionError):
        cli.app(["run", "02"])


def test_debugging_shows_the_traceback_of_any_error(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise InputError("a.")

    monkeypatch.setattr("mhvae_kit.runner.run_notebook", broken)
    monkeypatch.setenv("MHVAE_DEBUG", "1")
    with pytest.raises(InputError):
        cli.app(["run", "02"])


def test_run_hands_its_options_to_the_runner(monkeypatch, tmp_path, capsys):
    seen = {}

    def fake(notebook: str, parameters: dict, **options: object) -> str:
        seen.update(notebook=notebook, parameters=parameters, **options)
        return "folder"

    monkeypatch.setattr("mhvae_kit.runner.run_notebook", fake)
    call("run", "02", "-p", "seed=1", "-p", "note=a=b", "--run-id", "x", "--root", str(tmp_path), "--timeout", "9")
    assert seen == {
        "notebook": "02",
        "parameters": {"seed": "1", "note": "a=b"},
        "run_id": "x",
        "root": tmp_path,
        "timeout_s": 9.0,
        "force": False,
    }
    assert capsys.readouterr().out == "done: folder\n"


@pytest.mark.parametrize("given", [["-p", "seed"], ["-p", "=1"], ["-p", "seed=1", "-p", "seed=2"]])
def test_a_parameter_that_is_no_pair_is_refused(given, capsys):
    assert call("run", "02", *given) == 2
    assert "mhvae: -p" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("false", False), ("none", None), ("[us, t2]", ("us", "t2")), ("laplace", "laplace")],
)
def test_a_setting_is_read_as_what_it_looks_like(text, value):
    read = cli.plain_value(text)
    assert read == value and type(read) is type(value)


def test_runs_are_listed_with_the_reason_when_not_done(runs_root, capsys):
    set_status(run_folder(run_id="a", name="02_staged_training"), "failed", seed=4, message="a cell raised an error")
    assert call("runs") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status", "notebook", "preset", "seed", "minutes", "note"]
    assert line.split()[:4] == ["a", "failed", "02_staged_training", "4"] and line.endswith("a cell raised an error")


def test_no_runs_are_said_to_be_none(runs_root, capsys):
    call("runs")
    assert capsys.readouterr().out == f"no runs in {runs_root}\n"


def test_runs_are_collected_into_a_csv(tmp_path, capsys):
    run = run_folder(run_id="a")
    data = {"name": "none", "digest": "0"}
    write_results(
        run, notebook="n", parameters={"seed": 1}, preset="demo", seed=1, dataset=data, metrics={"x": 2}, seconds=1
    )
    assert call("runs", "--collect", str(tmp_path / "all.csv")) == 0
    header, line = (tmp_path / "all.csv").read_text().splitlines()
    assert header.endswith("param.seed,metric.x") and line.endswith(",1,2")


def test_a_report_of_nothing_is_bad_input(capsys):
    assert call("report") == 2
    assert "no notebook has run at preset demo" in capsys.readouterr().err


def test_an_unknown_setting_of_the_training_is_bad_input(capsys):
    assert call("train", "--preset", "smoke", "--set", "stepz=3") == 2
    assert "stepz" in capsys.readouterr().err


def test_training_by_command_is_recorded_as_a_run(runs_root, monkeypatch):
    from mhvae_kit import commands

    def fake(config, folder, dataset=None, data_dir=None):
        assert json.loads((folder / "status.json").read_text())["parameters"]["steps"] == 7
        raise RunError("loss is NaN.")

    monkeypatch.setattr(commands, "train", fake)
    assert call("train", "--preset", "smoke", "--seed", "2", "--run-id", "t", "--set", "steps=7") == 1
    status = json.loads((runs_root / "t" / "status.json").read_text())
    assert (status["status"], status["seed"], status["message"]) == ("failed", 2, "loss is NaN.")


def test_several_processes_need_a_run_id(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("train", "--preset", "smoke") == 2
    assert "--run-id" in capsys.readouterr().err


def test_an_absent_model_is_bad_input(capsys):
    assert call("evaluate", "--model", "no-such-model") == 2
    assert "no model at no-such-model" in capsys.readouterr().err


def test_a_row_of_table_1_is_made_and_told_in_a_line(monkeypatch, tmp_path, capsys):
    seen = {}

    def fake(row: str, preset: str, **options: object) -> str:
        seen.update(row=row, preset=preset, **options)
        return "folder"

    monkeypatch.setattr("mhvae_kit.table1.run.run_row", fake)
    monkeypatch.setattr("mhvae_kit.table1.run.one_line", lambda folder: f"phantom-smoke: {folder}")
    assert call("table1", "mhvae", "--preset", "smoke", "--seed", "2", "--steps", "7", "--root", str(tmp_path)) == 0
    expected = {"row": "mhvae", "preset": "smoke", "seed": 2, "steps": 7, "root": tmp_path}
    assert seen == {**expected, "run_id": None, "source": None, "data_dir": None}
    assert capsys.readouterr().out == "phantom-smoke: folder\ndone: folder\n"


def test_a_row_that_table_1_does_not_have_is_bad_input(capsys):
    assert call("table1", "cyclegan") == 2
    assert "Table 1 has no such row; got 'cyclegan'; expected one of pix2pix, spade, mvae" in capsys.readouterr().err


def test_the_help_of_table1_names_every_row(capsys):
    from mhvae_kit.table1 import ROWS

    assert call("table1", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"{row}" in printed for row in ROWS)


def test_weights_are_fetched_by_name(monkeypatch, capsys):
    monkeypatch.setattr("mhvae_kit.metrics.perceptual.fetch_lpips_weights", lambda: "alexnet.pth")
    assert call("fetch", "lpips") == 0 and capsys.readouterr().out == "fetched: alexnet.pth\n"
    assert call("fetch", "vgg") == 2 and "nothing of that name to fetch; got 'vgg'" in capsys.readouterr().err
