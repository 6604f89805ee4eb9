"""A model with what an explorer needs to be quick: encodings kept, noise by number, one computation at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mhvae_kit.config import Level, Modality
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.networks.mhvae import MHVAE, Encoding
from mhvae_kit.widgets.latest import RecentlyUsed
from mhvae_kit.widgets.sources import Slices

KEPT_ENCODINGS = 24
KEPT_NOISES = 64
_locks: weakref.WeakKeyDictionary[MHVAE, threading.RLock] = weakref.WeakKeyDictionary()


def model_lock(model: MHVAE) -> threading.RLock:
    """The one lock of a model: explorers on the same model take turns, whatever threads they run in."""
    return _locks.setdefault(model, threading.RLock())


def numbered_noise(model: MHVAE, number: int, levels: Iterable[Level] | None = None) -> dict[Level, Tensor]:
    """The draws of an explorer's noise number, by level (1, ...): what a static figure needs to show the same states.

    Args:
        model: The model.
        number: 0 is the noise an explorer starts with unless it is given another `seed`.
        levels: Which levels; None = all.
    """
    draws = {}
    for level in model.config.level_names if levels is None else levels:
        # The level is part of the seed: with one number for all, two levels of a size would get the same draws.
        generator = torch.Generator().manual_seed(1000 * number + int(level[1:]))
        draws[level] = torch.randn(1, *model.config.latent_shape(level), generator=generator)
    return draws


class Latents:
    """Encodes and decodes slices for an explorer. All randomness comes from numbers in the explorer's state.

    Args:
        model: The model; it is neither changed nor switched to another mode.
        slices: Where images come from.
    Attributes:
        encodings: Cache of encoded images by (case, slice, modality); every subset of modalities uses the same ones.
    """

    def __init__(self, model: MHVAE, slices: Slices) -> None:
        keep_freed_memory()
        self.model = model
        self.levels: tuple[Level, ...] = model.config.level_names
        self.encodings = RecentlyUsed(KEPT_ENCODINGS)
        self.lock = model_lock(model)
        self._slices = slices
        self._noises = RecentlyUsed(KEPT_NOISES)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def noise(self, level: Level, number: int) -> Tensor:
        """The standard-normal draw of a level that belongs to a number, (1, ...): the same whenever it is asked."""

        with self.lock:
            draw = self._noises.get((level, number), lambda: numbered_noise(self.model, number, [level])[level])
            return draw.to(self.device)

    def encoding(self, case: str, index: int, observed: Iterable[Modality]) -> Encoding:
        """The encoding of one slice, (1, ...); nothing observed gives the one that leaves the prior alone."""
        with self.lock, torch.inference_mode():
            parts = [self._encoded(case, index, m) for m in observed]
        skips = {m: part.skips[m] for part in parts for m in part.modalities}
        bottleneck = {m: part.bottleneck[m] for part in parts for m in part.modalities}
        return Encoding(skips, bottleneck, 1)

    def _encoded(self, case: str, index: int, modality: Modality) -> Encoding:
        def make() -> Encoding:
            return self.model.encode({modality: self._slices.image(case, index, modality).to(self.device)})

        return self.encodings.get((case, index, modality), make)

    def decode(
        self,
        encoding: Encoding,
        target: Modality,
        temperature: Mapping[Level, float],
        noise: Mapping[Level, Tensor],
    ) -> Tensor:
        """The target image of one slice, (H, W) in [-1, 1]: one decoding of one image, which is all a τ costs."""
        options = {"temperature": dict(temperature), "targets": [target], "noise": noise}
        with self.lock, torch.inference_mode():
            return self.model.decode(encoding, **options).images[target][0, 0].cpu()
