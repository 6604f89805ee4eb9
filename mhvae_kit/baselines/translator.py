"""What every compared method shows to evaluation and to the trainer: the face of MHVAE, and one training rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mhvae_kit.config import Modality
from mhvae_kit.errors import InputError, explain
from mhvae_kit.networks.checks import check_images
from mhvae_kit.networks.mhvae import Subset

Direction = tuple[Subset, Modality]


class TranslatorConfig(Protocol):
    """What a method's settings have in common; the rest is its own."""

    @property
    def modalities(self) -> tuple[Modality, ...]: ...

    @property
    def image_size(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class TranslatorEncoding:
    """The given images; a translator has nothing to compute before it knows the target.

    Args:
        images: By modality, (B, 1, H, W) in [-1, 1].
        batch_size: B.
    """

    images: dict[Modality, Tensor]
    batch_size: int

    @property
    def modalities(self) -> Subset:
        """The modalities that were given."""
        return tuple(self.images)


@dataclass(frozen=True)
class Translation:
    """What a translator made.

    Args:
        images: By target, (B, 1, H, W) in [-1, 1].
        observed: The modalities it was made from.
    """

    images: dict[Modality, Tensor]
    observed: Subset


class Translator(nn.Module):
    """Base of the compared methods. A subclass sets `name`, `stochastic`, `config` and defines the abstract methods.

    It is used as an MHVAE is: `encode`, then `decode` with a subset, targets, a temperature and fixed noise. Methods
    without randomness accept temperature 0 and nothing else, so that no table can claim a sample of theirs.
    """

    name: ClassVar[str]
    stochastic: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.card: dict[str, Any] = {}

    @property
    def directions(self) -> tuple[Direction, ...]:
        """(observed subset, target) of everything the method can make."""
        raise NotImplementedError

    def translate(
        self, images: dict[Modality, Tensor], target: Modality, noise: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """The target, (B, 1, H, W) in [-1, 1], from the observed images (those keys and no others)."""
        raise NotImplementedError

    def averaged(self) -> nn.Module:
        """The part whose weights are averaged while training, saved and evaluated: generators without critics."""
        raise NotImplementedError

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by name, with the learning rates the schedule starts from."""
        raise NotImplementedError

    def training_step(
        self,
        images: dict[Modality, Tensor],
        fov: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, float]:
        """One step of every network on one batch.

        Args:
            images: By modality, (B, 1, H, W) in [-1, 1], all of them.
            fov: The fan, bool (B, 1, H, W).
            optimizers: As made by `optimizers`; their learning rates are set from outside.
            generator: Source of all randomness.
            progress: Share of the budget that is spent, in [0, 1).
        Returns:
            Numbers to log, "loss" among them.
        """
        raise NotImplementedError

    def n_unique_parameters(self) -> int:
        """Parameters needed to synthesise, each counted once however often it is shared."""
        return sum(p.numel() for p in self.averaged().parameters())

    def encode(self, images: Mapping[Modality, Tensor]) -> TranslatorEncoding:
        """Check the given images and keep them.

        Raises:
            InputError: No image, an unknown modality, or a wrong shape, type, range or value.
        """
        batch_size = check_images(self.config, images)
        return TranslatorEncoding(dict(images), batch_size)

    def decode(
        self,
        encoding: TranslatorEncoding,
        observed: Iterable[Modality] | None = None,
        temperature: float = 0.0,
        targets: Iterable[Modality] | None = None,
        generator: torch.Generator | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> Translation:
        """Make the targets from the observed images.

        Args:
            encoding: From `encode`.
            observed: Which of the encoded modalities to use; None = all.
            temperature: Factor on the noise; 0 draws nothing. Methods without noise take 0 alone.
            targets: Which images to make; None = all that can be made from the observed ones.
            generator: Source of the noise; None = the global one.
            noise: Standard-normal draws from `draw_noise`, so that temperatures can be compared.
        Raises:
            InputError: A direction the method does not have, an unknown modality or an unfit temperature.
        """
        subset = encoding.modalities if observed is None else tuple(observed)
        possible = [target for inputs, target in self.directions if set(inputs) == set(subset)]
        wanted = possible if targets is None else list(targets)
        impossible = [target for target in wanted if target not in possible]
        if impossible or not wanted or not set(subset) <= set(encoding.modalities):
            made_from = "+".join(subset) or "nothing"
            raise InputError(
                explain(
                    f"{self.name} cannot make {', '.join(impossible) or 'anything'} from {made_from}",
                    expected=", ".join(f"{'+'.join(inputs)} to {target}" for inputs, target in self.directions),
                )
            )
        if not 0 <= temperature < float("inf") or (temperature and not self.stochastic):
            bound = "a finite number of at least 0" if self.stochastic else "0, as nothing in it is random"
            raise InputError(explain(f"{self.name} cannot use this temperature", got=temperature, expected=bound))
        if noise is None:
            noise = self.draw_noise(encoding.batch_size, generator) if temperature else {}
        given = {m: encoding.images[m] for m in subset}
        return Translation({m: self.translate(given, m, noise, temperature) for m in wanted}, subset)

    def forward(self, images: Mapping[Modality, Tensor], **options: Any) -> Translation:
        """`encode`, then `decode` with the given options."""
        return self.decode(self.encode(images), **options)

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Standard-normal draws that `decode` takes as `noise`; empty for a method without noise."""
        if not self.stochastic:
            return {}
        draw = torch.randn(n, 1, *self.config.image_size, generator=generator)
        return {"image": draw}
