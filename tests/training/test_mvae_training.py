"""Training of the MVAE, and the two objectives: what each pass is asked to reconstruct."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch

from mhvae_kit import load_model
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import DataError
from mhvae_kit.evaluation import evaluate
from mhvae_kit.networks.mvae import MVAE
from mhvae_kit.training import train
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.state import TrainingState, read_checkpoint, write_checkpoint
from mhvae_kit.training.step import Batch, scored_images, train_step

CPU = torch.device("cpu")
SIZES = {"levels": 3, "base_channels": 2, "max_channels": 4, "decoder_blocks": 1, "batch_size": 2}
TINY = {**SIZES, "architecture": "mvae", "image_size": (16, 16), "gan": False}


def config_of(**overrides) -> TrainingConfig:
    return TrainingConfig.from_preset("smoke", **{**TINY, **overrides})


def batch_of(config: TrainingConfig, step: int = 0) -> Batch:
    source = torch.Generator().manual_seed(step)
    names, size = config.model.modalities, config.model.image_size
    images = {m: torch.rand(2, 1, *size, generator=source) * 2 - 1 for m in names}
    return Batch(images, [0, 1], [("case", 0), ("case", 1)])


def head_gradient(state: TrainingState, modality: str) -> float:
    grads = [p.grad for p in state.model.image_head[modality].parameters()]
    return sum(float(g.abs().sum()) for g in grads if g is not None)


@pytest.fixture
def only_t2(monkeypatch):
    """Steps with the subset t2 and no other."""
    monkeypatch.setattr("mhvae_kit.training.step.subsets_of_step", lambda config, step: [("t2",)])


def test_a_run_ends_in_an_mvae_that_evaluation_takes(tmp_path):
    phantom = load_phantom("smoke", splits=("train", "validation"), show_progress=False)
    options = {"steps": 4, "log_every": 2, "validate_every": 4, "checkpoint_every": 4, "validation_slices": 2}
    config = TrainingConfig.from_preset("smoke", architecture="mvae", gan=False, **SIZES, **options)
    folder = train(config, tmp_path / "run", dataset=phantom)
    metrics = pd.read_csv(folder / "metrics.csv")
    assert [c for c in metrics.columns if c.startswith("kl_z")] == ["kl_z3"]
    model = load_model(folder / "model")
    assert isinstance(model, MVAE)
    case = phantom.case_ids("validation")[:1]
    scores = evaluate(model, phantom, split="validation", cases=case, observed=["t2"], temperature=1.0)
    assert set(scores["target"]) == {"us", "t2"}
    assert scores["psnr_fov_db"].notna().all()


def test_one_batch_is_learnt(tmp_path):
    config = config_of(steps=30, learning_rate=1e-2, kl_floor=0.0, kl_weight=0.0)
    state, batch = TrainingState(config, CPU), batch_of(config)
    smooth = {m: torch.nn.functional.avg_pool2d(x, 9, 1, 4) * 3 for m, x in batch.images.items()}
    batch = dataclasses.replace(batch, images={m: x.clamp(-1, 1) for m, x in smooth.items()})
    losses = [train_step(state, batch, Processes(), tmp_path)["loss"] for _ in range(30)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_resumed_equals_uninterrupted(tmp_path):
    config, processes = config_of(gan=True, discriminator_channels=2, discriminator_layers=1, steps=4), Processes()
    whole = TrainingState(config, CPU)
    for step in range(4):
        if step == 2:
            write_checkpoint(whole, tmp_path / "half.pt")
        train_step(whole, batch_of(config, step), processes, tmp_path)
    resumed = TrainingState(config, CPU)
    resumed.restore(read_checkpoint(tmp_path / "half.pt", CPU))
    for step in (2, 3):
        train_step(resumed, batch_of(config, step), processes, tmp_path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
        assert torch.equal(resumed.average.weights[name], whole.average.weights[name])


@pytest.mark.parametrize(("written", "read"), [("mvae", "mhvae"), ("mhvae", "mvae")])
def test_checkpoint_of_another_architecture_is_refused_by_name(tmp_path, written, read):
    write_checkpoint(TrainingState(config_of(architecture=written), CPU), tmp_path / "a.pt")
    saved = read_checkpoint(tmp_path / "a.pt", CPU)
    with pytest.raises(DataError, match=f"another architecture.*{written}.*{read}"):
        TrainingState(config_of(architecture=read), CPU).restore(saved)


def test_checkpoint_from_before_the_setting_is_of_an_mhvae(tmp_path):
    config = config_of(architecture="mhvae")
    state = TrainingState(config, CPU)
    saved = state.to_dict()
    del saved["config"]["model"]["architecture"]
    again = TrainingState(dataclasses.replace(config, seed=1), CPU)
    again.restore(saved)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in state.model.state_dict().items())


@pytest.mark.parametrize(
    ("objective", "observed", "expected"),
    [
        ("mhvae", ("t2",), {"us", "t2", "flair"}),
        ("wu2018", ("t2",), {"t2"}),
        ("wu2018", ("us", "t2"), {"us", "t2"}),
        ("wu2018", ("us", "t2", "flair"), {"us", "t2", "flair"}),
    ],
)
def test_what_a_subset_reconstructs(objective, observed, expected):
    images = {m: torch.zeros(1) for m in ("us", "t2", "flair")}
    assert set(scored_images(objective, observed, images)) == expected


@pytest.mark.parametrize("architecture", ["mvae", "mhvae"])
def test_wu2018_teaches_no_synthesis_from_one_image(tmp_path, only_t2, architecture):
    gradients = {}
    for objective in ("mhvae", "wu2018"):
        state = TrainingState(config_of(architecture=architecture, objective=objective), CPU)
        train_step(state, batch_of(state.config), Processes(), tmp_path)
        gradients[objective] = {m: head_gradient(state, m) for m in ("us", "t2")}
    assert gradients["wu2018"]["us"] == 0 < gradients["mhvae"]["us"]
    assert gradients["wu2018"]["t2"] == pytest.approx(gradients["mhvae"]["t2"], rel=1e-4)


def test_wu2018_trains_both_heads_where_both_are_observed(tmp_path, monkeypatch):
    monkeypatch.setattr("mhvae_kit.training.step.subsets_of_step", lambda config, step: [("us", "t2")])
    state = TrainingState(config_of(objective="wu2018"), CPU)
    train_step(state, batch_of(state.config), Processes(), tmp_path)
    assert head_gradient(state, "us") > 0
    assert head_gradient(state, "t2") > 0


def test_wu2018_leaves_out_the_synthetic_images_and_nothing_else(tmp_path):
    values = {}
    for objective in ("mhvae", "wu2018"):
        state = TrainingState(config_of(objective=objective), CPU)
        values[objective] = train_step(state, batch_of(state.config), Processes(), tmp_path)
    both, own = values["mhvae"], values["wu2018"]
    assert own["kl_nats"] == both["kl_nats"]
    assert own["l1_t2_to_us"] == both["l1_t2_to_us"]
    b = state.config.likelihood_scale
    left_out = (both["l1_t2_to_us"] + both["l1_us_to_t2"]) / b + 2 * math.log(2 * b)
    assert both["loss"] - own["loss"] == pytest.approx(left_out / 3, rel=1e-4)


def test_wu2018_trains_more_than_two_modalities(tmp_path):
    config = config_of(objective="wu2018", modalities=("us", "t2", "flair"))
    values = train_step(TrainingState(config, CPU), batch_of(config), Processes(), tmp_path)
    assert all(math.isfinite(v) for v in values.values())
