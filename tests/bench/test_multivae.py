"""MultiVae's side of the bench, around a stand-in that calls the blocks in the order in which MultiVae does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mhvae_kit.bench import sides
from mhvae_kit.bench.cases import Case, choose, kind_of, quick_cases

# Its interfaces and no more: the classes that blocks must have, what they return, who calls whom with what.
STAND_IN = {
    "models/base/__init__.py": """
class ModelOutput(dict):
    __getattr__ = dict.__getitem__
""",
    "models/nn/base_architectures.py": """
from torch import nn
class BaseEncoder(nn.Module): pass
class BaseDecoder(nn.Module): pass
""",
    "data/datasets/base.py": """
class MultimodalBaseDataset:
    def __init__(self, data): self.data = data
""",
    "models/mhvae/__init__.py": "from .mhvae_model import MHVAE, MHVAEConfig\n",
    "models/mhvae/mhvae_model.py": """
import torch
from dataclasses import dataclass
from multivae.models.base import ModelOutput
from multivae.models.nn.base_architectures import BaseDecoder, BaseEncoder
@dataclass
class MHVAEConfig:
    n_modalities: int
    latent_dim: int
    n_latent: int
def product(experts):
    weights = [(-e.log_covariance).exp() for e in experts]
    return sum(w * e.embedding for w, e in zip(weights, experts)) / sum(weights)
class MHVAE(torch.nn.Module):
    def __init__(
        self, config, *, encoders, decoders, bottom_up_blocks, top_down_blocks, posterior_blocks, prior_blocks
    ):
        super().__init__()
        gaussians = [*posterior_blocks, *prior_blocks, *encoders.values(), *(b[-1] for b in bottom_up_blocks.values())]
        assert all(isinstance(block, BaseEncoder) for block in gaussians)
        assert all(isinstance(block, BaseDecoder) for block in decoders.values())
        assert len(top_down_blocks) == len(posterior_blocks) == len(prior_blocks) == config.n_latent - 1
        assert all(len(blocks) == config.n_latent - 1 for blocks in bottom_up_blocks.values())
        self.encoders, self.decoders = torch.nn.ModuleDict(encoders), torch.nn.ModuleDict(decoders)
        self.up = torch.nn.ModuleDict({m: torch.nn.ModuleList(b) for m, b in bottom_up_blocks.items()})
        lists = (top_down_blocks, posterior_blocks, prior_blocks)
        self.down, self.posterior, self.prior = (torch.nn.ModuleList(blocks) for blocks in lists)
    def encode(self, inputs, cond_mod, return_mean):
        skips, last = {}, {}
        for m in cond_mod:
            x = self.encoders[m](inputs.data[m]).embedding
            skips[m] = [x]
            for block in self.up[m][:-1]:
                x = block(x)
                skips[m].append(x)
            last[m] = self.up[m][-1](x)
        standard = ModelOutput(embedding=torch.zeros(()), log_covariance=torch.zeros(()))
        z = product([*last.values(), standard])
        for i in reversed(range(len(self.down))):
            h = self.down[i](z)
            experts = [self.posterior[i](torch.cat([h, skips[m][i]], 1)) for m in cond_mod]
            z = product([*experts, self.prior[i](h)])
        return ModelOutput(z=z)
    def decode(self, embedding, modalities):
        return {modalities: self.decoders[modalities](embedding.z).reconstruction}
    def forward(self, inputs):
        z = self.encode(inputs, list(inputs.data), True)
        made = {m: self.decode(z, m)[m] for m in inputs.data}
        return ModelOutput(loss=sum((made[m] - x).square().mean() for m, x in inputs.data.items()))
""",
}


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    for name, text in STAND_IN.items():
        path = tmp_path / "src" / "multivae" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "multivae"]:
        del sys.modules[name]


def task(case: Case, checkout: Path, side: str) -> dict:
    return {"case": vars(case), "side": side, "checkout": str(checkout), "weights": None, "fusion": "precision"}


def by_name(name: str) -> Case:
    return choose(quick_cases(), [name])[0]


def test_a_checkout_of_multivae_is_known(checkout):
    assert kind_of(checkout) == "multivae"


@pytest.mark.parametrize("name", ["inference", "volume"])
def test_the_kit_and_multivae_make_the_same_image_of_the_same_modules(checkout, tmp_path, name):
    made = {}
    for side in ("kit", "multivae"):
        prepared = sides.prepare(task(by_name(name), checkout, side))
        prepared.run()
        assert prepared.save_output(tmp_path / f"{side}.npy")
        made[side] = np.load(tmp_path / f"{side}.npy")
    assert made["kit"].std() > 1e-3, "a flat image would prove nothing"
    np.testing.assert_allclose(made["multivae"], made["kit"], atol=1e-4)


def test_a_step_moves_nearly_every_weight(checkout):
    side = sides.prepare(task(by_name("training"), checkout, "multivae"))
    before = {k: p.detach().clone() for k, p in side.model.named_parameters()}
    side.run()
    moved = [k for k, p in side.model.named_parameters() if not torch.equal(p, before[k])]
    assert len(moved) > 0.9 * len(before)


def test_what_multivae_cannot_do_is_not_asked_of_it():
    assert not by_name("temperatures").can("multivae") and not by_name("training").can("fast")
    assert by_name("training").can("multivae") and by_name("temperatures").can("fast")
