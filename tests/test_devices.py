"""Several processes of one machine, asked for by --devices: the same results as one, and errors in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from mhvae_kit import MHVAE, MHVAEConfig, cli, save_model
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError, RunError
from mhvae_kit.launch import check_devices, threads_each
from mhvae_kit.synthesis import parallel, phantom_cases, synthesize_cases
from mhvae_kit.training import distributed

TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "steps": 4, "batch_size": 4, "checkpoint_every": 100}
TINY |= {"validate_every": 4, "log_every": 1, "validation_slices": 2, "discriminator_channels": 2}


def training(root: Path, run_id: str, *options: str, **changes) -> list[str]:
    settings = [text for name, value in {**TINY, **changes}.items() for text in ("--set", f"{name}={value}")]
    call = [sys.executable, "-m", "mhvae_kit.cli", "train", "--preset", "smoke", "--root", str(root)]
    return [*call, "--run-id", run_id, *options, *settings]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")


def test_two_devices_train_as_one_and_a_finished_run_is_left(tmp_path):
    load_phantom("smoke", splits=("train", "validation"), show_progress=False)
    for run_id, options in (("one", ()), ("two", ("--devices", "2")), ("two", ("--devices", "2"))):
        done = call(training(tmp_path, run_id, *options))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done: ") == 1
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    columns = [c for c in one.columns if c.startswith(("loss", "l1", "kl_", "adversarial", "discriminator"))]
    pd.testing.assert_frame_equal(one[columns][:1], two[columns][:1], rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(one[columns], two[columns], rtol=2e-3, atol=1e-4)


def test_an_interrupted_training_on_two_devices_saves_and_goes_on(tmp_path):
    command = training(tmp_path, "stopped", "--devices", "2", steps=400, gan=False, validate_every=400)
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.csv"
    while not metrics.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130, told
    assert "interrupted; what was finished is kept" in told and "Traceback" not in told
    assert len(list((tmp_path / "stopped" / "checkpoints").glob("step_*.pt"))) == 1
    assert not (tmp_path / "stopped" / "results.json").exists()


def test_what_is_wrong_is_told_once_and_without_traceback(tmp_path):
    (tmp_path / "other").mkdir()
    before = TrainingConfig.from_preset("smoke", **{**TINY, "steps": 9})
    (tmp_path / "other" / "config.json").write_text(json.dumps(before.to_dict()))
    ended = call(training(tmp_path, "other", "--devices", "2"))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.count("belongs to a run with other settings; got steps=4; expected steps=9") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", "3", "--set", "batch_size=4"], "got batch_size 4 over 3 processes"),
        (["--devices", "0"], "--devices must be a whole number of at least 1"),
    ],
)
def test_devices_that_cannot_be_used_are_refused_before_anything_starts(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.app(["train", "--preset", "smoke", "--root", str(tmp_path / "runs"), *arguments], prog_name="mhvae")
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_devices_than_gpus_are_refused_by_name(gpus):
    assert check_devices(2) == 2 and check_devices(3, device="cpu") == 3
    with pytest.raises(InputError, match=r"got 3; expected at most 2 \(Card 0, Card 1\); give --devices 2"):
        check_devices(3)


def test_processes_of_torchrun_start_no_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check_devices(1) == 1
    with pytest.raises(InputError, match="torchrun has started"):
        check_devices(2)


def test_threads_are_shared_and_never_none():
    assert threads_each(1) >= threads_each(2) >= threads_each(10**6) == 1


# --- Synthesis ---


@pytest.fixture(scope="module")
def model() -> MHVAE:
    torch.manual_seed(0)
    return MHVAE(MHVAEConfig.smoke()).eval()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_made_by_two_processes_is_that_of_one(model, tmp_path, capsys):
    torch.set_num_threads(1)
    data = load_phantom("smoke", splits=["test"], show_progress=False)
    cases = phantom_cases(data, "test", ["t2"])
    options = {"temperature": 0.7, "samples": 2, "seed": 3}
    one = synthesize_cases(model, cases, output=tmp_path / "one", **options)
    capsys.readouterr()
    two = synthesize_cases(model, cases, output=tmp_path / "two", devices=2, **options)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert [r.folder.name for r in two] == [r.folder.name for r in one] == [case.name for case in cases]
    shown = "".join(capsys.readouterr())
    assert "synthesis: " in shown and f"{len(cases)}/{len(cases)} patient" in shown and "slice" not in shown
    again = synthesize_cases(model, cases, output=tmp_path / "two", devices=2, show_progress=False, **options)
    assert not any(result.made for result in again)


def test_wrong_files_stop_no_other_patient_and_wrong_settings_stop_all(model, tmp_path):
    data = load_phantom("smoke", splits=["test"], show_progress=False)
    cases = phantom_cases(data, "test", ["t2"])[:2]
    (tmp_path / "t2.nii.gz").write_text("no image")
    broken = [type(cases[0])("broken", {"t2": tmp_path / "t2.nii.gz"}), *cases]
    options = {"output": tmp_path / "out", "devices": 2, "show_progress": False}
    with pytest.raises(RunError, match=r"1 of 3 patients could not be synthesised; got broken"):
        synthesize_cases(model, broken, **options)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(case.name for case in cases)
    with pytest.raises(InputError, match="holds a synthesis made otherwise"):
        synthesize_cases(model, cases, seed=5, temperature=1.0, **options)


def test_a_process_that_dies_is_told(model):
    with pytest.raises(RunError, match="one of the processes ended"):
        list(parallel.shared_out(die, [1, 2], model, 2, 1))


def die(model: MHVAE, item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_command_shares_patients_out(model, tmp_path, capsys):
    save_model(model, tmp_path / "model")
    given = ["synthesize", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--devices", "2"]
    cli.app([*given, "--phantom", "smoke", "--split", "ood", "--target", "us"], standalone_mode=False)
    assert "2 of 2 patients, 0 of them were there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.app([*given, "--input", "a.nii.gz:t2"], prog_name="mhvae")
    assert "one patient is made by one process" in capsys.readouterr().err


def test_a_process_that_lost_another_lets_that_one_end_first(monkeypatch):
    """Both used to end at once, and the exit code could be that of the one that had only lost the other."""
    waited = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    monkeypatch.setattr(distributed.dist, "barrier", lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    with pytest.raises(RunError, match="another process of this training has ended; got Connection closed by peer"):
        distributed.Processes().wait()
    assert waited == [distributed.CAUSE_FIRST_S]


def lost() -> None:
    raise RuntimeError("Connection closed by peer\nmore of gloo's words")
