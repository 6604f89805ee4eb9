"""How a run made by a command begins and ends, and whether it is there already."""

from __future__ import annotations

import json

import pytest

from mhvae_kit.errors import InputError, RunError
from mhvae_kit.recording import is_done_with, recording
from mhvae_kit.runs import run_folder, run_status, set_status, write_results

PARAMETERS = {"row": "pix2pix", "steps": 5, "channels": (1, 2)}


@pytest.fixture
def folder(runs_root):
    return run_folder(runs_root, "test", "one")


def status(folder) -> dict:
    return json.loads((folder / "status.json").read_text())


def finish(folder, parameters=PARAMETERS) -> None:
    data = {"name": "none", "digest": "0"}
    write_results(folder, notebook="test", parameters=parameters, preset="smoke", seed=0, dataset=data, metrics={},
                  seconds=1)  # fmt: skip


def test_while_it_goes_on_it_is_running_with_its_details(folder):
    with recording(folder, notebook="test", preset="smoke", seed=3, parameters=PARAMETERS):
        assert run_status(folder) == "running"
        told = status(folder)
        assert (told["notebook"], told["preset"], told["seed"], told["parameters"]["steps"]) == ("test", "smoke", 3, 5)


def test_a_run_that_wrote_its_results_is_done(folder):
    with recording(folder, notebook="test"):
        finish(folder)
    assert run_status(folder) == "done"


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (RunError("it broke."), "failed", "it broke."),
        (ValueError(), "failed", "ValueError"),
        (KeyboardInterrupt(), "killed", "interrupted from outside (Ctrl-C or a signal)"),
    ],
)
def test_how_it_ended_is_told_and_the_error_goes_on(folder, error, state, message):
    with pytest.raises(type(error)) as raised, recording(folder, notebook="test"):
        raise error
    assert raised.value is error
    assert run_status(folder) == state and status(folder)["message"] == message


def test_what_was_never_begun_or_failed_is_not_done(folder, tmp_path):
    assert not is_done_with(tmp_path / "nothing", PARAMETERS, "row x")
    set_status(folder, "failed")
    assert not is_done_with(folder, PARAMETERS, "row x")


def test_a_run_of_the_same_parameters_is_done_also_after_json(folder):
    finish(folder, {**PARAMETERS, "more": 1})
    assert is_done_with(folder, PARAMETERS, "row x")  # a tuple is a list in the file


def test_a_run_in_another_process_is_waited_for(folder):
    set_status(folder, "running")
    with pytest.raises(RunError, match="row x is being made in another process, in .*one; wait for it"):
        is_done_with(folder, PARAMETERS, "row x")


def test_a_run_of_other_parameters_is_refused_with_those_that_differ(folder):
    finish(folder)
    with pytest.raises(InputError, match="is a finished run with other settings; got steps=6; expected steps=5;"):
        is_done_with(folder, {**PARAMETERS, "steps": 6}, "row x")
