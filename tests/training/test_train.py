"""Training as a whole: real processes, really killed, on the smoke phantom."""

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
from safetensors.torch import load_file

from mhvae_kit import load_model
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError
from mhvae_kit.training import branch_without_gan, train

TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "steps": 20, "batch_size": 2, "checkpoint_every": 4}
TINY |= {"validate_every": 10, "log_every": 2, "validation_slices": 2, "discriminator_channels": 2}

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from mhvae_kit.config import TrainingConfig
from mhvae_kit.training import train
train(TrainingConfig.from_preset("smoke", **json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def phantom():
    return load_phantom("smoke", splits=("train", "validation"), show_progress=False)


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory) -> Path:
    """A tiny run with GAN that went through without a stop, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(command(folder), check=True, capture_output=True)
    return folder


def command(folder: Path, launcher: tuple[str, ...] = (sys.executable,), **overrides) -> list[str]:
    script = folder.parent / "train_script.py"
    script.write_text(SCRIPT)
    return [*launcher, str(script), json.dumps({**TINY, **overrides}), str(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "weights.safetensors")


def assert_equal_bit_for_bit(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before it was stopped"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").glob("step_*.pt"))


def test_a_run_leaves_what_it_promises(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["metrics"]["steps"] == 20
    assert results["dataset"]["name"] == "phantom-smoke"
    assert checkpoints(finished) == ["step_000016.pt", "step_000020.pt"]
    assert (finished / "checkpoints" / "before_adversarial.pt").exists()
    assert list((finished / "tensorboard").iterdir())
    metrics = pd.read_csv(finished / "metrics.csv")
    assert metrics["step"].tolist() == list(range(2, 21, 2))
    assert {"kl_z1", "kl_z2", "kl_z3", "l1_t2_to_us"} <= set(metrics.columns)
    assert set(metrics["stage"]) == {"reconstruction", "kl_ramp", "adversarial"}
    assert load_model(finished / "model").card["training_cases"]


def test_killed_and_resumed_equals_uninterrupted(finished, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: "step_000008.pt" in checkpoints(folder), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    subprocess.run(command(folder), check=True, capture_output=True)
    assert_equal_bit_for_bit(finished, folder)
    assert pd.read_csv(folder / "metrics.csv")["step"].is_unique


def test_ctrl_c_saves_the_step_and_resumes(finished, tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: checkpoints(folder), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert not (folder / "results.json").exists()
    assert not list(folder.rglob(".tmp-*"))
    subprocess.run(command(folder), check=True, capture_output=True)
    assert_equal_bit_for_bit(finished, folder)


def test_without_gan_branch_equals_a_run_without_gan(finished, phantom, tmp_path):
    torch.set_num_threads(1)
    branch = branch_without_gan(finished, tmp_path / "branch")
    config = TrainingConfig.from_preset("smoke", gan=False, **TINY)
    train(config, branch, dataset=phantom)
    train(config, tmp_path / "plain", dataset=phantom)
    assert_equal_bit_for_bit(branch, tmp_path / "plain")
    with pytest.raises(InputError, match="holds a run already"):
        branch_without_gan(finished, branch)
    assert any(not torch.equal(a, b) for a, b in zip(weights(branch).values(), weights(finished).values(), strict=True))


@pytest.mark.parametrize("recipe", [{}, {"modalities": ["us", "t2", "flair"], "objective": "mmhvae", "missing": 0.5}])
def test_two_processes_equal_one(tmp_path, phantom, recipe):
    options = {"steps": 10, "batch_size": 4, "checkpoint_every": 100, **recipe}
    subprocess.run(command(tmp_path / "one", **options), check=True, capture_output=True)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(command(tmp_path / "two", launcher, **options), check=True, capture_output=True)
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    columns = [c for c in one.columns if c.startswith(("loss", "l1", "kl_", "adversarial", "discriminator"))]
    pd.testing.assert_frame_equal(one[columns][:1], two[columns][:1], rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(one[columns], two[columns], rtol=2e-3, atol=1e-4)


def test_accumulated_parts_equal_the_whole_batch(tmp_path, phantom):
    for parts in (1, 2):
        config = TrainingConfig.from_preset("smoke", **{**TINY, "steps": 4, "batch_size": 4, "accumulate": parts})
        train(config, tmp_path / str(parts), dataset=phantom)
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("1", "2"))
    pd.testing.assert_frame_equal(one[["loss", "kl_nats"]], two[["loss", "kl_nats"]], rtol=1e-3)


def test_loss_falls(tmp_path, phantom):
    config = TrainingConfig.from_preset("smoke", **{**TINY, "steps": 60, "gan": False, "log_every": 10})
    metrics = pd.read_csv(train(config, tmp_path / "run", dataset=phantom) / "metrics.csv")
    assert metrics["l1_us+t2_to_t2"].iloc[-1] < 0.7 * metrics["l1_us+t2_to_t2"].iloc[0]


def test_a_training_can_start_from_another_models_weights(finished, phantom, tmp_path):
    options = {**TINY, "steps": 1, "learning_rate": 1e-12, "warmup_steps": 1, "gan": False}
    config = TrainingConfig.from_preset("smoke", start_from=str(finished), **options)
    folder = train(config, tmp_path / "next", dataset=phantom)
    before, after = weights(finished), weights(folder)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    assert load_model(folder / "model").card["start_from"] == str(finished)


def test_weights_of_another_architecture_are_no_start(finished, phantom, tmp_path):
    config = TrainingConfig.from_preset("smoke", start_from=str(finished), **{**TINY, "decoder_blocks": 2})
    with pytest.raises(InputError, match=r"cannot be the start.*decoder_blocks=1.*expected.*decoder_blocks=2"):
        train(config, tmp_path / "next", dataset=phantom)


def test_three_modalities_and_bfloat16_train(tmp_path, phantom):
    options = {**TINY, "modalities": ("us", "t2", "flair"), "precision": "bfloat16", "steps": 6}
    folder = train(TrainingConfig.from_preset("smoke", **options), tmp_path / "run", dataset=phantom)
    assert load_model(folder / "model").config.modalities == ("us", "t2", "flair")


def test_a_finished_run_is_not_trained_again(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    config = TrainingConfig.from_preset("smoke", **TINY)
    assert train(config, finished) == finished
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_other_settings_in_the_same_folder_are_refused(finished):
    with pytest.raises(InputError, match="kl_weight=2.0"):
        train(TrainingConfig.from_preset("smoke", **TINY, kl_weight=2.0), finished)


def test_batch_that_cannot_be_shared_is_refused(monkeypatch):
    from mhvae_kit.training.distributed import Processes

    monkeypatch.setitem(os.environ, "WORLD_SIZE", "1")
    processes = Processes()
    processes.size = 3
    with pytest.raises(InputError, match="batch_size 4 over 3 processes"):
        processes.share(4)
