"""Training of a compared method: the batches of MHVAE, an exact resume, and honest ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toy_method import ENTRIES, Toy, ToyConfig

from mhvae_kit.baselines import registry
from mhvae_kit.baselines.storage import load_method
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import SliceDataset, load_phantom
from mhvae_kit.errors import InputError, RunError
from mhvae_kit.metrics import psnr
from mhvae_kit.training import baselines
from mhvae_kit.training.baselines import BaselineConfig, BaselineState, train_baseline
from mhvae_kit.training.folder import newest_checkpoint
from mhvae_kit.training.loop import Trainer

CPU = torch.device("cpu")
TINY = {"steps": 7, "batch_size": 2, "warmup_steps": 2, "checkpoint_every": 3, "validate_every": 4, "log_every": 2}
TINY |= {"validation_slices": 2}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "METHODS", {**registry.METHODS, **ENTRIES})
        yield


@pytest.fixture(scope="module")
def phantom():
    return load_phantom("smoke", splits=("train", "validation"), show_progress=False)


def config(method: str = "toy", **overrides) -> BaselineConfig:
    return BaselineConfig.from_preset(method, "smoke", **{**TINY, **overrides})


@pytest.fixture
def watched(monkeypatch) -> list[Toy]:
    """The methods that trainings make, as they are made."""
    made = []

    def make(name, settings):
        made.append(registry.make_method(name, settings))
        return made[-1]

    monkeypatch.setattr(baselines, "make_method", make)
    return made


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory) -> Path:
    return train_baseline(config(), tmp_path_factory.mktemp("runs") / "whole", dataset=phantom)


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint and of the saved model, by a name of its place."""

    def flat(value, place):
        if isinstance(value, torch.Tensor):
            yield place, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{place}/{key}")

    saved = newest_checkpoint(folder, CPU)
    return dict(flat({"checkpoint": saved, "model": load_file(folder / "model" / "weights.safetensors")}, ""))


def assert_equal_bit_for_bit(a: Path, b: Path) -> None:
    first, second = everything(a), everything(b)
    assert first.keys() == second.keys() and len(first) > 30
    assert all(torch.equal(first[k], second[k]) for k in first)


def stop_at(step: int, monkeypatch) -> None:
    """Send this process a Ctrl-C in the midst of a step (counted from 0), once."""
    original = Toy.training_step
    calls = []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == step + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Toy, "training_step", interrupted)


def test_budget_and_cadence_are_those_of_mhvae():
    for preset in ("smoke", "demo", "paper"):
        mine, other = BaselineConfig.from_preset("toy", preset), TrainingConfig.from_preset(preset)
        for name in ("steps", "batch_size", "warmup_steps", "ema_decay", "log_every", "validate_every"):
            assert getattr(mine, name) == getattr(other, name)
        assert mine.final_learning_rate_share == other.final_learning_rate / other.learning_rate


def test_settings_survive_json():
    mine = config(width=3, seed=4, phantom="demo")
    assert BaselineConfig.from_saved(json.loads(json.dumps(mine.to_dict()))) == mine
    assert mine.settings.width == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stepz": 3}, "toy has no setting 'stepz'; expected perhaps 'steps'"),
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"ema_decay": 1.0}, "the schedule does not fit; .*ema_decay=1.0"),
        ({"settings": "wide"}, "these are no settings of toy; got str"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(InputError, match=message):
        config(**overrides)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(InputError, match="unknown method; got 'cyclegan'"):
        BaselineConfig.from_preset("cyclegan", "smoke")


def test_a_run_leaves_what_it_promises(finished, phantom):
    results = json.loads((finished / "results.json").read_text())
    assert results["metrics"]["steps"] == 7 and results["dataset"]["digest"] == phantom.digest
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["step_000006.pt", "step_000007.pt"]
    metrics, scores = (pd.read_csv(finished / f"{name}.csv") for name in ("metrics", "validation"))
    assert metrics["step"].tolist() == [2, 4, 6] and {"loss", "critic", "learning_rate_share"} <= set(metrics)
    assert scores["step"].tolist() == [4, 7]
    card = load_method(finished / "model").card
    assert card["training_cases"] == phantom.case_ids("train") and card["data"] == "phantom-smoke"
    assert not list(finished.rglob(".tmp-*"))


def test_the_batches_are_those_of_mhvae(phantom, tmp_path, watched):
    train_baseline(config(seed=5, steps=3), tmp_path / "toy", dataset=phantom)
    options = {"levels": 3, "base_channels": 2, "max_channels": 4, "gan": False, "batch_size": 2, "seed": 5}
    processes = type("One", (), {"device": CPU, "is_first": True, "share": lambda self, n: range(n)})()
    other = Trainer(TrainingConfig.from_preset("smoke", **options), tmp_path / "vae", phantom, processes)
    for step, (images, *_) in enumerate(watched[0].seen):
        other.state.step = step
        assert torch.equal(images, other._batch().images["us"])


def test_the_fan_is_mirrored_with_its_images(phantom, tmp_path, watched):
    train_baseline(config(steps=3), tmp_path / "run", dataset=phantom)
    for images, fov, *_ in watched[0].seen:
        assert fov.dtype == torch.bool and torch.equal(images > -1, fov & (images > -1))
        assert (images > -1)[fov].float().mean() > 0.9


def test_each_optimiser_follows_the_shape_from_its_own_rate(phantom, tmp_path, watched):
    train_baseline(config(final_learning_rate_share=0.1), tmp_path / "run", dataset=phantom)
    critic_rates = [rate for *_, rate in watched[0].seen]
    assert critic_rates[:2] == pytest.approx([0.01, 0.02])
    assert critic_rates[4] == pytest.approx(0.02 * (0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(4 * torch.pi / 7)))))
    assert [progress for *_, progress, _ in watched[0].seen] == pytest.approx([i / 7 for i in range(7)])


def test_the_saved_weights_are_the_moving_average(phantom, tmp_path):
    folder = train_baseline(config(steps=1, ema_decay=0.05), tmp_path / "run", dataset=phantom)
    name = "t2_to_us.0.weight"
    before = BaselineState(config(), CPU).method.averaged().state_dict()[name]
    after = newest_checkpoint(folder, CPU)["method"][f"generators.{name}"]
    saved = load_file(folder / "model" / "weights.safetensors")
    assert torch.allclose(saved[name], 0.05 * before + 0.95 * after, atol=1e-7)
    assert saved["t2_to_us.1.num_batches_tracked"].item() == 1  # an integer: the newest, not a mean


def test_validation_scores_the_averaged_method_in_evaluation_mode(finished, phantom):
    items = SliceDataset(phantom, "validation", ("us", "t2")).batch([0, len(SliceDataset(phantom, "validation")) // 2])
    method = load_method(finished / "model")
    with torch.no_grad():
        made = method({"t2": items["images"]["t2"]}).images["us"]
    expected = psnr(made, items["images"]["us"], data_range=2.0, mask=items["fov"]).mean()
    assert pd.read_csv(finished / "validation.csv")["psnr_t2_to_us_db"].iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_initial_weights_and_noise_depend_on_the_seed_alone(finished, phantom, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = train_baseline(config(), tmp_path / "again", dataset=phantom)
    assert torch.equal(before, torch.get_rng_state())
    assert_equal_bit_for_bit(finished, again)
    other = train_baseline(config(seed=1), tmp_path / "other", dataset=phantom)
    assert any(
        not torch.equal(a, b) for a, b in zip(everything(again).values(), everything(other).values(), strict=True)
    )


@pytest.mark.parametrize("step", [1, 5])
def test_ctrl_c_saves_the_step_and_the_resumed_run_is_the_same(step, finished, phantom, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(step, patched)
        with pytest.raises(KeyboardInterrupt):
            train_baseline(config(), tmp_path / "stopped", dataset=phantom)
    assert newest_checkpoint(tmp_path / "stopped", CPU)["step"] == step + 1
    assert not (tmp_path / "stopped" / "results.json").exists()
    resumed = train_baseline(config(), tmp_path / "stopped", dataset=phantom)
    assert_equal_bit_for_bit(finished, resumed)
    scores = [pd.read_csv(folder / "validation.csv") for folder in (finished, resumed)]
    pd.testing.assert_frame_equal(*scores)


def test_a_value_that_is_not_finite_stops_with_step_and_name(phantom, tmp_path):
    with pytest.raises(RunError, match="adversarial is not finite in stage 'training of toy-nan', step 4"):
        train_baseline(config("toy-nan", breaks_at=4), tmp_path / "run", dataset=phantom)
    assert newest_checkpoint(tmp_path / "run", CPU)["step"] == 3
    assert not (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "bad_batch_step_000004.pt").exists()


def test_weights_that_are_not_finite_are_never_saved(phantom, tmp_path, monkeypatch):
    original = Toy.training_step

    def poisoned(self, *args):
        values = original(self, *args)
        self.generators["us_to_t2"][0].weight.data[0] = float("nan")
        return values

    monkeypatch.setattr(Toy, "training_step", poisoned)
    monkeypatch.setattr(baselines.BaselineTrainer, "_validate", lambda self: {"psnr_mean_db": 0.0})
    with pytest.raises(RunError, match="us_to_t2.0.weight is not finite"):
        train_baseline(config(steps=1), tmp_path / "run", dataset=phantom)
    assert not list((tmp_path / "run" / "checkpoints").iterdir()) and not (tmp_path / "run" / "model").exists()


def test_a_finished_run_is_not_trained_again(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert train_baseline(config(), finished) == finished
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_other_settings_in_the_same_folder_are_refused(finished):
    with pytest.raises(InputError, match="other settings; got batch_size=3; expected batch_size=2"):
        train_baseline(config(batch_size=3), finished)
    with pytest.raises(InputError, match="other settings; got settings=.*'width': 3"):
        train_baseline(config(width=3), finished)


def test_the_folder_of_another_kind_of_training_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TrainingConfig.from_preset("smoke").to_dict()))
    with pytest.raises(InputError, match="not those of a compared method"):
        train_baseline(config(), tmp_path)


def test_slices_of_another_size_are_refused(phantom, tmp_path):
    settings = ToyConfig(image_size=(32, 32))
    with pytest.raises(
        InputError, match=r"toy is made for other slices; got image_size \(32, 32\); expected \(64, 64\)"
    ):
        train_baseline(dataclasses.replace(config(), settings=settings), tmp_path / "run", dataset=phantom)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    def start(self):
        self.size, self.rank, self.device, self.started = 2, 0, CPU, False

    monkeypatch.setattr(baselines.Processes, "__init__", start)
    with pytest.raises(InputError, match="compared methods train in one process; got 2"):
        train_baseline(config(), tmp_path / "run")


def test_the_live_line_names_the_method(phantom, tmp_path, capfd):
    train_baseline(config(steps=2), tmp_path / "run", dataset=phantom)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("toy training")]
    assert lines[-1].startswith("toy training: 2/2 step") and "loss=" in lines[-1] and "kl" not in lines[-1]
