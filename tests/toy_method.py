"""Compared methods small enough for tests: one convolution a direction, with a critic, batch statistics and dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mhvae_kit.baselines.registry import Entry
from mhvae_kit.baselines.translator import Translator

SIZES = {"smoke": 64, "demo": 96, "paper": 192}
ENTRIES = {
    "toy": Entry("toy_method", "Toy", "ToyConfig"),
    "toy-noise": Entry("toy_method", "NoisyToy", "ToyConfig"),
    "toy-nan": Entry("toy_method", "BrokenToy", "ToyConfig"),
}


@dataclass(frozen=True)
class ToyConfig:
    modalities: tuple[str, ...] = ("us", "t2")
    image_size: tuple[int, int] = (64, 64)
    width: int = 2
    learning_rate: float = 1e-2
    breaks_at: int = 3

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ToyConfig:
        return dataclasses.replace(cls(image_size=(SIZES[name],) * 2), **overrides)


class Toy(Translator):
    name: ClassVar[str] = "toy"

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)

        def network() -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(1, config.width, 3, padding=1),
                nn.BatchNorm2d(config.width),
                nn.Dropout(0.2),
                nn.Conv2d(config.width, 1, 1),
                nn.Tanh(),
            )

        self.generators = nn.ModuleDict({"t2_to_us": network(), "us_to_t2": network()})
        self.critics = nn.ModuleDict({"us": nn.Conv2d(1, 1, 4, 2), "t2": nn.Conv2d(1, 1, 4, 2)})
        self.seen: list[tuple] = []

    @property
    def directions(self):
        return ((("t2",), "us"), (("us",), "t2"))

    def averaged(self) -> nn.Module:
        return self.generators

    def translate(self, images: dict[str, Tensor], target: str, noise: Mapping, temperature: float) -> Tensor:
        ((source, image),) = images.items()
        if temperature:
            image = image + temperature * 0.1 * noise["image"].to(image)
        return self.generators[f"{source}_to_{target}"](image)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        return {
            "generators": torch.optim.Adam(self.generators.parameters(), lr=rate),
            "critics": torch.optim.Adam(self.critics.parameters(), lr=2 * rate),
        }

    def training_step(self, images, fov, optimizers, generator, progress) -> dict[str, float]:
        self.seen.append((images["us"].clone(), fov.clone(), progress, optimizers["critics"].param_groups[0]["lr"]))
        losses = []
        for (source,), target in self.directions:
            noisy = images[source] + 0.01 * torch.randn(images[source].shape, generator=generator)
            losses.append((self.generators[f"{source}_to_{target}"](noisy) - images[target]).abs().mean())
        loss = torch.stack(losses).mean()
        critic = torch.stack([self.critics[m](x).square().mean() for m, x in images.items()]).sum()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        (loss + critic).backward()
        for optimizer in optimizers.values():
            optimizer.step()
        return {"loss": float(loss.detach()), "critic": float(critic.detach())}


class NoisyToy(Toy):
    name: ClassVar[str] = "toy-noise"
    stochastic: ClassVar[bool] = True


class BrokenToy(Toy):
    """Its loss is infinite from one step on."""

    name: ClassVar[str] = "toy-nan"

    def training_step(self, *args: Any) -> dict[str, float]:
        values = super().training_step(*args)
        return {**values, "adversarial": float("inf") if len(self.seen) > self.config.breaks_at else 0.0}
