"""Gradient checkpointing: less is kept for the backward pass, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.losses import elbo_terms
from mhvae_kit.networks import blocks
from mhvae_kit.networks.backbone import MultimodalVAE
from mhvae_kit.training import train
from mhvae_kit.training.state import TrainingState

TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "steps": 8, "batch_size": 2, "checkpoint_every": 4}
TINY |= {"validate_every": 8, "log_every": 2, "validation_slices": 2, "discriminator_channels": 2}
TINY["keep_checkpoints"] = 8
SUBSETS = [("us",), ("t2",), ("us", "t2")]


def model_of(on: bool, **settings) -> MultimodalVAE:
    config = TrainingConfig.from_preset("smoke", checkpoint_gradients=on, **settings)
    return TrainingState(config, torch.device("cpu")).model


def loss_of(model: MultimodalVAE) -> Tensor:
    """The ELBO of three subsets on two images of noise."""
    generator = torch.Generator().manual_seed(0)
    images = {m: torch.rand(2, 1, 64, 64, generator=generator) * 1.8 - 0.9 for m in ("us", "t2")}
    syntheses = model.decode_subsets(model.encode(images), SUBSETS, noise=model.draw_noise(6, generator))
    return sum(elbo_terms(s, images, likelihood_scale=0.1).negative_elbo() for s in syntheses)


def gradients(model: MultimodalVAE) -> dict[str, Tensor]:
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def kept_bytes(model: MultimodalVAE) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of(model)
    assert loss.isfinite()
    return sum(kept.values())


@pytest.mark.parametrize("settings", [{}, {"encoder_cell": "mobilenet_v2"}, {"architecture": "mvae", "gan": False}])
def test_gradients_are_equal_bit_for_bit(settings):
    plain, checkpointed = (gradients(model_of(on, **settings)) for on in (False, True))
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_in_parts_gradients_are_equal_up_to_rounding(monkeypatch):
    plain = gradients(model_of(False))
    monkeypatch.setattr(blocks, "LEARNING_BYTES", 1)
    checkpointed = gradients(model_of(True))
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, expected in plain.items():  # a bias before a norm has no gradient but rounding
        torch.testing.assert_close(checkpointed[name], expected, rtol=1e-4, atol=1e-6 * largest)


def test_less_is_kept_for_the_backward_pass():
    assert kept_bytes(model_of(True)) < 0.6 * kept_bytes(model_of(False))


def test_a_training_is_the_same_with_it_and_after_a_stop(tmp_path):
    torch.set_num_threads(1)
    phantom = load_phantom("smoke", splits=("train", "validation"), show_progress=False)
    config = TrainingConfig.from_preset("smoke", checkpoint_gradients=True, **TINY)
    whole = train(config, tmp_path / "whole", dataset=phantom)
    plain = train(TrainingConfig.from_preset("smoke", **TINY), tmp_path / "plain", dataset=phantom)
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "step_000004.pt", stopped / "checkpoints")
    (stopped / "config.json").write_text(json.dumps(config.to_dict()))
    train(config, stopped, dataset=phantom)
    assert weights(whole).keys() == weights(stopped).keys() == weights(plain).keys()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(stopped)[name]) and torch.equal(value, weights(plain)[name]), name


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "weights.safetensors")
