"""Other code for the same model, run from a checkout: ReubenDo/MHVAE and cate-galata/TrackerlessIUS (mhvae_fast).

Nothing of theirs is in the kit: their modules are imported from the folder that the user gives, called as their own
scripts call them, with their defaults.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mhvae_kit.bench.cases import OBSERVED, PEER_FILES, TARGET, Case
from mhvae_kit.config import MHVAEConfig

ALMOST_ZERO = 1e-20  # their distributions refuse a standard deviation of 0


def make_peer(kind: str, checkout: Path, case: Case, weights: Path, device: torch.device) -> Any:
    """A peer's side. Where it has networks of its own, they get the weights in `weights`, a state dict in its naming,
    which is written if absent.
    """
    if kind == "multivae":
        from mhvae_kit.bench.multivae import MultiVae

        return MultiVae(checkout, case, device)
    return {"authors": Peer, "fast": Fast}[kind](checkout, case, weights, device)


def import_peer(kind: str, checkout: Path) -> None:
    """Import a peer's code from its folder."""
    if kind == "multivae":
        from mhvae_kit.bench.multivae import import_package

        import_package(checkout)
    else:
        network_class(kind, checkout)


class Peer:
    """ReubenDo/MHVAE as its inference.py and train.py call it."""

    kind = "authors"

    def __init__(self, checkout: Path, case: Case, weights: Path, device: torch.device) -> None:
        from mhvae_kit.bench.sides import SEED, inputs, model_config, precision, temperatures

        self.case, self.device, self.precision = case, device, lambda: precision(case, device)
        config = model_config(case)
        self.images, self.temperatures = inputs(case, config, device), temperatures(case)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their spelling of weight norm is deprecated
            torch.manual_seed(SEED)
            self.model = self._make(network_class(self.kind, checkout), config)
        if weights.exists():
            self.model.load_state_dict(torch.load(weights, weights_only=True))
        else:
            torch.save(self.model.state_dict(), weights)
        self.model.to(device)
        works = {"volume": self._volume, "training": self._training_step}
        self.run: Callable[[], object] = works.get(case.kind, self._inference)
        self.model.train(case.kind == "training")
        if case.kind == "training":
            self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=2e-3, betas=(0.9, 0.999))

    def _make(self, network: type[nn.Module], config: MHVAEConfig) -> nn.Module:
        return network(**_settings(config), num_img=len(config.modalities))

    def _image(self, images: Tensor, tau: float) -> Tensor:
        """The us image (B, 1, H, W) of a batch of t2 images; their forward pass writes into the dict it is given."""
        position = list(self.images).index(TARGET)
        return self.model({OBSERVED: images}, temp=tau)[0][:, position : position + 1]

    @torch.no_grad()
    def _inference(self) -> Tensor:
        with self.precision():
            return [self._image(self.images[OBSERVED], tau) for tau in self.temperatures][-1]

    @torch.no_grad()
    def _volume(self) -> Tensor:
        """In batches, though their script takes all slices at once, which would not fit into memory here."""
        with self.precision():
            parts = self.images[OBSERVED].split(self.case.batch)
            return torch.cat([self._image(part.to(self.device), 1.0).cpu() for part in parts])

    def _training_step(self) -> None:
        """All images, then each alone: SmoothL1 summed over pixels plus the one-sample KL, as in their train.py."""
        images, target = self.images, torch.cat(list(self.images.values()), 1)
        total: Any = 0.0
        for given in (dict(images), *({m: x} for m, x in images.items())):
            with self.precision():
                made, kl = self.model(given)
            total = total + nn.functional.smooth_l1_loss(made, target, reduction="sum")
            total = total + torch.stack(kl["prior"]).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    @torch.no_grad()
    def save_output(self, path: Path) -> bool:
        """Store the us image that t2 gives at a temperature of almost 0; nothing after training steps."""
        if self.case.kind == "training":
            return False
        given = self.images[OBSERVED][: self.case.batch].to(self.device)
        np.save(path, self._image(given, ALMOST_ZERO).cpu().numpy())
        return True


class Fast(Peer):
    """TrackerlessIUS's mhvae_fast as its fast synthesis calls it: encode once, one target, no KL. It does not train."""

    kind = "fast"

    def _make(self, network: type[nn.Module], config: MHVAEConfig) -> nn.Module:
        return network(**_settings(config), nfeat_finalblock=config.map_channels("z1"), nb_finalblocks=6)

    def _decoded(self, encoded: dict[str, Any], tau: float) -> Tensor:
        return self.model.decode(encoded, temp=tau, target_modality=TARGET, compute_kl=False)[0][TARGET]

    def _image(self, images: Tensor, tau: float) -> Tensor:
        return self._decoded(self.model.encode({OBSERVED: images}), tau)

    @torch.no_grad()
    def _inference(self) -> Tensor:
        with self.precision():
            encoded = self.model.encode({OBSERVED: self.images[OBSERVED]})
            return [self._decoded(encoded, tau) for tau in self.temperatures][-1]


def _settings(config: MHVAEConfig) -> dict[str, Any]:
    """What both networks are made with; residual connections and squeeze-excitation on, as their scripts have it."""
    return {
        "modalities": list(config.modalities),
        "base_num_features": config.base_channels,
        "num_pool": config.levels - 1,
        "original_shape": config.image_size,
        "max_features": config.max_channels,
        "with_residual": True,
        "with_se": True,
    }


def network_class(kind: str, checkout: Path) -> type[nn.Module]:
    """Import the peer's network from its folder."""
    sys.path.insert(0, str(checkout))
    return import_module(PEER_FILES[kind].removesuffix(".py").replace("/", ".")).MHVAE2D
