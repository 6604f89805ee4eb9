"""Averaged weights, the gradient guard, checkpoints, and the stop on values that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mhvae_kit.config import TrainingConfig
from mhvae_kit.errors import DataError, RunError
from mhvae_kit.training.loop import CHECKPOINTS, newest_checkpoint
from mhvae_kit.training.state import (
    GradientGuard,
    MovingAverage,
    TrainingState,
    check_finite,
    read_checkpoint,
    write_checkpoint,
)

CPU = torch.device("cpu")
CONFIG = TrainingConfig.from_preset("smoke")


def test_moving_average_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = MovingAverage(layer, 0.9)
    layer.weight.data.fill_(1.0)
    average.update(layer, step=0)  # decay min(0.9, 1 / 10)
    assert average.weights["weight"].item() == pytest.approx(0.9)
    average.update(layer, step=10_000)  # decay 0.9
    assert average.weights["weight"].item() == pytest.approx(0.91)


def test_guard_skips_an_outlier_and_counts_it():
    guard = GradientGuard(10.0, 5)
    assert all(guard.accepts(1.0) for _ in range(20))
    assert not guard.accepts(11.0)
    assert guard.accepts(9.0)
    assert guard.skipped == 1


def test_guard_stops_after_too_many_in_a_row():
    guard = GradientGuard(10.0, 3)
    for _ in range(60):
        guard.accepts(1.0)
    with pytest.raises(RunError, match="4 steps in a row"):
        for _ in range(10):
            guard.accepts(100.0)


def test_initial_weights_depend_on_the_seed_alone():
    torch.rand(3)
    first, second = TrainingState(CONFIG, CPU), TrainingState(CONFIG, CPU)
    other = TrainingState(TrainingConfig.from_preset("smoke", seed=1), CPU)
    name = "encoder.us.first.weight"
    assert torch.equal(first.model.state_dict()[name], second.model.state_dict()[name])
    assert not torch.equal(first.model.state_dict()[name], other.model.state_dict()[name])


def test_making_a_state_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    TrainingState(CONFIG, CPU)
    assert torch.equal(torch.rand(1), expected)


def test_checkpoint_comes_back_equal(tmp_path):
    state = TrainingState(CONFIG, CPU)
    state.step, state.guard.skipped = 7, 2
    write_checkpoint(state, tmp_path / "a.pt")
    again = TrainingState(TrainingConfig.from_preset("smoke", seed=1), CPU)
    again.restore(read_checkpoint(tmp_path / "a.pt", CPU))
    assert (again.step, again.guard.skipped) == (7, 2)
    for name, value in state.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


def test_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "a.pt"
    write_checkpoint(TrainingState(CONFIG, CPU), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"a\.pt cannot be read"):
        read_checkpoint(path, CPU)


def test_pickle_with_code_is_refused_unrun(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"version": 1, "model": Evil()}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.pt", CPU)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    state = TrainingState(CONFIG, CPU)
    for step in (5, 10):
        state.step = step
        write_checkpoint(state, tmp_path / CHECKPOINTS / f"step_{step:06d}.pt")
    (tmp_path / CHECKPOINTS / "step_000010.pt").write_bytes(b"torn")
    assert newest_checkpoint(tmp_path, CPU)["step"] == 5
    assert "step_000010.pt cannot be read" in capsys.readouterr().err


def test_non_finite_value_stops_with_the_batch_saved(tmp_path):
    values = {"loss": torch.tensor(1.0), "kl_z3": torch.tensor(float("nan"))}
    with pytest.raises(RunError, match="kl_z3 is not finite in stage 'kl_ramp', step 12"):
        check_finite(values, {"images": {"us": torch.zeros(1)}}, tmp_path, "kl_ramp", 12)
    saved = torch.load(tmp_path / "bad_batch_step_000012.pt", weights_only=True)
    assert saved["tensors"] == ["kl_z3"]
    assert saved["batch"]["images"]["us"].shape == (1,)
