"""SPADE: a generator whose features are normalised by the source image, and a critic at two scales, by direction.

Reads top to bottom: settings, losses, the method with its training rule; the networks are in `spade_networks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.baselines.patchgan import Norm, adam_pair, frozen
from mhvae_kit.baselines.spade_networks import SHRINK, Maps, Resize, SpadeCritic, SpadeGenerator
from mhvae_kit.baselines.translator import Direction, Translator
from mhvae_kit.baselines.vgg import PerceptualLoss, find_vgg19, load_vgg19
from mhvae_kit.config import Modality, check_preset, from_dict
from mhvae_kit.errors import InputError, RunError, explain

Perceptual = Literal["vgg19", "l1"]


@dataclass(frozen=True)
class SpadeConfig:
    """Everything that fixes a SPADE for both directions between two modalities.

    Args:
        modalities: The two.
        image_size: Height and width in pixels, multiples of 32, at least 64.
        width: Channels of the last residual block; the first ones have 16 times as many.
        hidden: Channels between the source image and the scale and shift that it gives.
        norm: The norm before it, without learned parameters: "batch", or "instance" for batches smaller than 8.
        resize: How the source is brought to a map's size: "nearest" as published, for label maps, or "area", the mean
            over what a pixel covers.
        critic_width, critic_layers: Channels of the critic's first layer; its convolutions before the score.
        perceptual: Term beside hinge and feature matching: "vgg19" as published, "l1" without its weights, or "auto":
            vgg19 when its weights are found as training begins. The card of the trained method says which it was.
        perceptual_weight, feature_weight: Published.
        l1_weight: Of the mean absolute error that stands in for vgg19. An estimate, not tuned: Pix2Pix's.
        learning_rate, critic_learning_rate, betas: Of the two Adam optimisers.
    Raises:
        InputError: A setting does not fit.
    Source:
        Park et al., CVPR 2019, section 3 and supplement; NVlabs/SPADE:options/ for the numbers.
    """

    modalities: tuple[Modality, ...] = ("us", "t2")
    image_size: tuple[int, int] = (192, 192)
    width: int = 64
    hidden: int = 128
    norm: Norm = "batch"
    resize: Resize = "nearest"
    critic_width: int = 64
    critic_layers: int = 4
    perceptual: Literal["auto", "vgg19", "l1"] = "auto"
    perceptual_weight: float = 10.0
    feature_weight: float = 10.0
    l1_weight: float = 100.0
    learning_rate: float = 1e-4
    critic_learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.0, 0.9)

    def __post_init__(self) -> None:
        names, size = self.modalities, self.image_size
        if len(set(names)) != 2 or len(names) != 2 or not all(isinstance(n, str) and n.isidentifier() for n in names):
            raise InputError(explain("spade goes between two modalities", got=repr(names), expected='as ("us", "t2")'))
        if len(size) != 2 or any(side % SHRINK or side < 2 * SHRINK for side in size):
            expected = f"height and width in multiples of {SHRINK}, at least {2 * SHRINK}"
            raise InputError(explain("image_size does not fit", got=repr(size), expected=expected))
        for name in ("width", "hidden", "critic_width", "critic_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(explain(f"{name} must be a whole number of at least 1", got=repr(value)))
        for name, allowed in (("norm", Norm), ("resize", Resize), ("perceptual", Literal["auto", "vgg19", "l1"])):
            value, words = getattr(self, name), get_args(allowed)
            if value not in words:
                raise InputError(explain(f"unknown {name}", got=repr(value), expected=" or ".join(words)))
        if min(self.perceptual_weight, self.feature_weight, self.l1_weight) < 0:
            raise InputError(explain("no weight of a loss may be negative"))
        if not min(self.learning_rate, self.critic_learning_rate) > 0:
            raise InputError(explain("learning rates must be positive"))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(explain("betas of Adam do not fit", got=self.betas, expected="two numbers in [0, 1)"))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> SpadeConfig:
        """The settings of a preset, with single ones overridden.

        demo and smoke have a quarter of the channels or fewer, a critic with one layer less, so that it sees the same
        share of the image, instance norm for their small batches, and 1e-3 as learning rate for a budget of a few
        hundred steps, with which the published one ends undertrained.
        """
        return from_dict(cls, {**_PRESETS[check_preset(name)], **overrides})


_SMALL = {"norm": "instance", "critic_layers": 3, "learning_rate": 1e-3, "critic_learning_rate": 1e-3}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {**_SMALL, "image_size": (96, 96), "width": 16, "hidden": 32, "critic_width": 16},
    "smoke": {**_SMALL, "image_size": (64, 64), "width": 4, "hidden": 8, "critic_width": 8},
}


def generator_hinge(synthetic: Maps) -> Tensor:
    """-mean score of the synthetic images, mean over scales, a scalar (maps as from `SpadeCritic`)."""
    return torch.stack([-maps[-1].mean() for maps in synthetic]).mean()


def critic_hinge(real: Maps, synthetic: Maps) -> Tensor:
    """mean max(0, 1 - score) of real plus mean max(0, 1 + score) of synthetic images, mean over scales, a scalar."""
    terms = [F.relu(1 - a[-1]).mean() + F.relu(1 + b[-1]).mean() for a, b in zip(real, synthetic, strict=True)]
    return torch.stack(terms).mean()


def feature_matching(real: Maps, synthetic: Maps) -> Tensor:
    """Mean absolute difference of the critic's maps, summed over layers without the score, mean over scales, a scalar.

    The gradient goes to the synthetic images alone.
    """
    terms = [
        sum(F.l1_loss(b, a.detach()) for a, b in zip(one[:-1], other[:-1], strict=True))
        for one, other in zip(real, synthetic, strict=True)
    ]
    return torch.stack(terms).mean()


class Spade(Translator):
    """One generator and one critic for each direction; both directions are trained in the same step on the same batch.

    The condition is the continuous source image, where the paper has label maps; there is no style encoder and no
    noise. Synthesis is in evaluation mode, as in the authors' test script.

    Args:
        config: The settings.
    Source:
        Park et al., "Semantic image synthesis with spatially-adaptive normalization", CVPR 2019.
    """

    name: ClassVar[str] = "spade"
    config: SpadeConfig

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__(config)
        settings = (config.width, config.hidden, config.norm, config.resize)
        self.generators = nn.ModuleDict({target: SpadeGenerator(*settings) for target in config.modalities})
        critic = (config.critic_width, config.critic_layers)
        self.critics = nn.ModuleDict({target: SpadeCritic(*critic) for target in config.modalities})
        self._vgg: list[PerceptualLoss] = []  # in a list, so that it is no part of the method's weights

    @property
    def directions(self) -> tuple[Direction, ...]:
        """From each of the two modalities to the other."""
        first, second = self.config.modalities
        return ((second,), first), ((first,), second)

    @property
    def perceptual(self) -> Perceptual | None:
        """The term it was trained with, "vgg19" or "l1", which the card tells too; None before training."""
        return self.card.get("perceptual")

    def averaged(self) -> nn.Module:
        """The generators of both directions."""
        return self.generators

    def parameters_per_direction(self) -> int:
        """Parameters of one of the two networks; `n_unique_parameters` counts both."""
        return self.n_unique_parameters() // len(self.generators)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """ "critics", then "generators". Training begins here: VGG19's weights are looked for now.

        Not earlier, so that a trained method can be loaded where they are not.

        Raises:
            MissingError: The config asks for vgg19, or MHVAE_VGG19 names a file, and there is none.
            DataError: The file holds something else.
        """
        wanted = self.config.perceptual
        if wanted == "auto":
            wanted = "l1" if find_vgg19() is None else "vgg19"
        self._train_with(wanted)
        return adam_pair(self.config, self.generators, self.critics)

    def _train_with(self, perceptual: Perceptual) -> None:
        """Note the term in the card, and read VGG19's weights if it needs them."""
        self.card["perceptual"] = perceptual
        if perceptual == "vgg19" and not self._vgg:
            self._vgg.append(PerceptualLoss(load_vgg19()))

    def get_extra_state(self) -> dict[str, Any]:
        """Goes into checkpoints, so that training goes on with the term it began with, wherever it is resumed."""
        return {"perceptual": self.perceptual}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over `get_extra_state`.

        Raises:
            MissingError: It began with vgg19, whose weights are not here.
        """
        if state["perceptual"] is not None:
            self._train_with(state["perceptual"])

    def translate(
        self, images: dict[Modality, Tensor], target: Modality, noise: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """The target, (B, 1, H, W) in [-1, 1], from the image of the other modality."""
        (image,) = images.values()
        return self.generators[target](image)

    def training_step(
        self,
        images: dict[Modality, Tensor],
        fov: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, float]:
        """Gradients of one direction after the other, which spares memory, then a step of critics and generators.

        As published, the losses cover the whole frame. Nothing is drawn: `generator` is not used.

        Returns:
            "loss" (of the generators, mean of the two) and, by target, "adversarial_", "features_", "critic_", and
            "vgg19_" or "l1_", each without its weight.
        """
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        weights = {"adversarial": 1.0, "features": self.config.feature_weight, "l1": self.config.l1_weight}
        weights["vgg19"] = self.config.perceptual_weight
        losses, values = [], {}
        for (source,), target in self.directions:
            made = self.generators[target](images[source])
            with frozen(self.critics):
                terms = self._generator_terms(images[source], images[target], made, target)
            loss = sum(weights[name] * term for name, term in terms.items())
            loss.backward()
            losses.append(loss)
            real, synthetic = self._judge(images[source], images[target], made.detach(), target)
            terms["critic"] = critic_hinge(real, synthetic)
            terms["critic"].backward()
            values |= {f"{name}_{target}": term for name, term in terms.items()}
        for optimizer in optimizers.values():
            optimizer.step()
        values["loss"] = torch.stack(losses).mean()
        return {name: float(value.detach()) for name, value in values.items()}

    def _judge(self, source: Tensor, real: Tensor, made: Tensor, target: Modality) -> tuple[Maps, Maps]:
        """The critic's maps of the real and of the synthetic images, which go through it as one batch."""
        both = self.critics[target](torch.cat((source, source)), torch.cat((real, made)))
        on_real = [[m[: len(real)] for m in maps] for maps in both]
        on_made = [[m[len(real) :] for m in maps] for maps in both]
        return on_real, on_made

    def _generator_terms(self, source: Tensor, real: Tensor, made: Tensor, target: Modality) -> dict[str, Tensor]:
        """The generator's losses by name, without their weights."""
        on_real, on_made = self._judge(source, real, made, target)
        terms = {"adversarial": generator_hinge(on_made), "features": feature_matching(on_real, on_made)}
        if self.perceptual is None:
            raise RunError(explain("training of spade begins with its optimizers", mend="call optimizers() first"))
        if self.perceptual == "vgg19":
            terms["vgg19"] = self._vgg[0].to(made.device)(made, real)
        else:
            terms["l1"] = F.l1_loss(made, real)
        return terms
