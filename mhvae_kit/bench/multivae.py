"""AgatheSenellart/MultiVae's MHVAE, run from a checkout around the kit's own networks.

MultiVae brings no networks for this model; its users write them. Both sides therefore have the same modules with the
same weights, and what differs is what is done around them: how often an image is encoded and decoded, the product of
experts, the divergences, one pass a subset. The checkout needs pythae, cloudpickle and nltk installed beside the kit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mhvae_kit.bench.cases import OBSERVED, TARGET, Case
from mhvae_kit.bench.sides import inputs, model_config, precision, seeded_model
from mhvae_kit.networks.mhvae import MHVAE

LEARNING_RATE = 2e-3  # of Adamax, as on the other sides


def import_package(checkout: Path) -> None:
    """Import what the side needs from the checkout."""
    sys.path.insert(0, str(checkout / "src"))
    import_module("multivae.models.mhvae")


class MultiVae:
    """Their model as its documentation calls it: `encode` and `decode` of the missing image, `forward` to train."""

    def __init__(self, checkout: Path, case: Case, device: torch.device) -> None:
        import_package(checkout)
        self.case, self.device, config = case, device, model_config(case, fusion="precision")
        self.images = inputs(case, config, device)
        self.data = import_module("multivae.data.datasets.base").MultimodalBaseDataset
        self.model = _model(seeded_model(config)).to(device)
        works = {"volume": self._volume, "training": self._training_step}
        self.run: Callable[[], object] = works.get(case.kind, self._inference)
        self.model.train(case.kind == "training")
        if case.kind == "training":
            self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=LEARNING_RATE)

    @torch.no_grad()
    def _image(self, images: Tensor, *, mean: bool = False) -> Tensor:
        with precision(self.case, self.device):
            encoded = self.model.encode(self.data(data={OBSERVED: images}), cond_mod=[OBSERVED], return_mean=mean)
            return self.model.decode(encoded, modalities=TARGET)[TARGET]

    def _inference(self) -> Tensor:
        return self._image(self.images[OBSERVED])

    def _volume(self) -> Tensor:
        parts = self.images[OBSERVED].split(self.case.batch)
        return torch.cat([self._image(part.to(self.device), mean=True).cpu() for part in parts])

    def _training_step(self) -> None:
        """Their negative ELBO, the mean over all subsets."""
        with precision(self.case, self.device):
            loss = self.model(self.data(data=self.images)).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save_output(self, path: Path) -> bool:
        """Store the us image that the means of t2 give; nothing after training steps."""
        if self.case.kind == "training":
            return False
        given = self.images[OBSERVED][: self.case.batch].to(self.device)
        np.save(path, self._image(given, mean=True).float().cpu().numpy())
        return True


def _model(kit: MHVAE) -> nn.Module:
    """Their model with the kit's networks as its blocks; both number blocks from fine to coarse."""
    theirs = import_module("multivae.models.mhvae")
    names, finer = kit.config.modalities, kit.config.finer_levels[::-1]
    encoders = {m: kit.encoder[m] for m in names}
    config = theirs.MHVAEConfig(
        n_modalities=len(names), latent_dim=2 * kit.config.channels[-1], n_latent=kit.config.levels
    )
    return theirs.MHVAE(
        config,
        encoders={m: _coder("encoder", lambda x, e=e: e.cells[0](e.first(x)), e) for m, e in encoders.items()},
        decoders={m: _coder("decoder", kit.image_head[m], kit.image_head[m]) for m in names},
        bottom_up_blocks={m: _bottom_up(kit, e) for m, e in encoders.items()},
        top_down_blocks=[_Block(lambda z, k=k: kit._feature(k, z), kit.top_down[k], kit.up[k]) for k in finer],
        posterior_blocks=[
            _expert(kit, lambda x, h=h: h(*x.chunk(2, 1)), h) for h in (kit.expert_head[k] for k in finer)
        ],
        prior_blocks=[_expert(kit, kit.prior_head[k], kit.prior_head[k]) for k in finer],
    )


class _Block(nn.Module):
    """A function as a module; `parts` are the modules whose parameters it uses."""

    def __init__(self, function: Callable[[Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _coder(kind: str, function: Callable[[Tensor], Any], *parts: nn.Module) -> nn.Module:
    """A block of the class that they ask for, "encoder" or "decoder", with the output that they read."""
    base = import_module("multivae.models.nn.base_architectures")
    output = import_module("multivae.models.base").ModelOutput
    bases = {"encoder": base.BaseEncoder, "decoder": base.BaseDecoder}
    name = {"encoder": "embedding", "decoder": "reconstruction"}[kind]

    class Coder(_Block, bases[kind]):
        def __init__(self) -> None:
            _Block.__init__(self, function, *parts)

        def forward(self, x: Tensor) -> Any:
            made = function(x)
            return output(**made) if isinstance(made, dict) else output(**{name: made})

    return Coder()


def _expert(kit: MHVAE, head: Callable[[Tensor], Tensor], *parts: nn.Module) -> nn.Module:
    """A block that gives a Gaussian by its mean and its log-variance, which they call log_covariance."""

    def gaussian(x: Tensor) -> dict[str, Tensor]:
        made = kit._gaussian(head(x))
        return {"embedding": made.mean, "log_covariance": 2 * made.log_std}

    return _coder("encoder", gaussian, *parts)


def _bottom_up(kit: MHVAE, encoder: nn.Module) -> list[nn.Module]:
    """The cells below the first, each behind its strided convolution; the last one gives the vector's expert."""
    steps = list(zip(encoder.down, encoder.cells[1:], strict=True))
    blocks = [_Block(lambda x, d=down, c=cell: c(d(x)), down, cell) for down, cell in steps[:-1]]
    down, cell = steps[-1]
    last = _expert(kit, lambda x: kit.bottleneck_expert(cell(down(x)).flatten(1)), down, cell, kit.bottleneck_expert)
    return [*blocks, last]
