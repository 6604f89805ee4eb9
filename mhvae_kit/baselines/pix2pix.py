"""Pix2Pix: a U-Net and a conditional PatchGAN for each direction of two modalities.

Reads top to bottom: settings, U-Net, the method with its training rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.baselines.patchgan import (
    GANLoss,
    Norm,
    PatchGAN,
    adam_pair,
    check_gan_config,
    critic_loss,
    descend,
    frozen,
    gan_loss,
    init_normal,
    norm_layer,
    seeded_dropout,
)
from mhvae_kit.baselines.translator import Direction, Translator
from mhvae_kit.config import Modality, check_preset, from_dict
from mhvae_kit.errors import InputError, explain

Variant = Literal["native", "padded-256"]
STOCK_SIDE_PX, STOCK_DOWNS = 256, 8
BACKGROUND = -1.0


@dataclass(frozen=True)
class Pix2PixConfig:
    """Everything that fixes a Pix2Pix for both directions between two modalities.

    Args:
        modalities: The two.
        image_size: Height and width in pixels.
        width: Channels of the U-Net's first layer; deeper ones have up to 8 times as many.
        downs: Halvings of the U-Net; None = as many as the size allows, 8 at most (6 at 192, 5 at 96, 6 at 64 px).
        variant: "native" fits the U-Net to the image; "padded-256" is the published one of 8 halvings, with the image
            padded by background to a multiple of 256 and cropped again.
        norm: "batch", or "instance" for batches smaller than 8.
        gan: "bce" (published default) or "lsgan".
        l1_weight: Weight of the mean absolute error beside the GAN term.
        dropout: Share of features dropped in the inner blocks while training; a U-Net with fewer than 6 halvings has
            no such block, by the published rule.
        critic_width: Channels of the critic's first layer.
        learning_rate, critic_learning_rate, betas: Of the two Adam optimisers.
    Raises:
        InputError: A setting does not fit.
    Source:
        Isola et al., CVPR 2017, sections 3 and 6.1; junyanz/pytorch-CycleGAN-and-pix2pix:options/.
    """

    modalities: tuple[Modality, ...] = ("us", "t2")
    image_size: tuple[int, int] = (192, 192)
    width: int = 64
    downs: int | None = None
    variant: Variant = "native"
    norm: Norm = "batch"
    gan: GANLoss = "bce"
    l1_weight: float = 100.0
    dropout: float = 0.5
    critic_width: int = 64
    learning_rate: float = 2e-4
    critic_learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        check_gan_config(self, ("width", "critic_width") + (() if self.downs is None else ("downs",)))
        if len(self.modalities) != 2:
            raise InputError(
                explain("pix2pix goes between two modalities", got=self.modalities, mend="take another method for more")
            )
        if self.variant not in get_args(Variant):
            raise InputError(
                explain("unknown variant", got=repr(self.variant), expected=" or ".join(get_args(Variant)))
            )
        depth, step = self.depth, 2**self.depth
        if depth < 1 or any(side % step for side in self.network_size):
            got = f"{depth} halvings of {self.network_size[0]}x{self.network_size[1]} px"
            raise InputError(
                explain("image_size does not fit downs", got=got, mend="take fewer, or variant padded-256")
            )

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width of what the U-Net gets."""
        if self.variant == "native":
            return self.image_size
        height, width = (math.ceil(side / STOCK_SIDE_PX) * STOCK_SIDE_PX for side in self.image_size)
        return height, width

    @property
    def depth(self) -> int:
        """Halvings of the U-Net, `downs` or what the size allows."""
        if self.downs is not None:
            return self.downs
        common = math.gcd(*self.network_size)
        return min((common & -common).bit_length() - 1, STOCK_DOWNS)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Pix2PixConfig:
        """The settings of a preset, with single ones overridden.

        demo and smoke have small batches, hence instance norm, and a budget of a few hundred steps, hence a learning
        rate of 1e-3: with the published one they end undertrained.
        """
        return from_dict(cls, {**_PRESETS[check_preset(name)], **overrides})


_SMALL = {"norm": "instance", "learning_rate": 1e-3, "critic_learning_rate": 1e-3}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {**_SMALL, "image_size": (96, 96), "width": 32, "critic_width": 32},
    "smoke": {**_SMALL, "image_size": (64, 64), "width": 16, "critic_width": 16},
}


class UNet(nn.Module):
    """Strided 4x4 convolutions down, transposed ones up, and the feature of each resolution concatenated on the way.

    Down: LeakyReLU 0.2, convolution, norm (none on the first and the last). Up: ReLU, transposed convolution, norm,
    and dropout where the widest features go to the widest, except at the very bottom. No bias beside a norm.

    Args:
        width: Channels after the first convolution; doubled at each step, up to 8 times.
        downs: Number of halvings.
        norm: Norm of the layers.
        dropout: Probability, in training mode.
    Source:
        Isola et al., CVPR 2017, section 6.1; junyanz/pytorch-CycleGAN-and-pix2pix:models/networks.py, whose `unet_256`
        has downs=8 (54,407,809 parameters for one channel in and out).
    """

    def __init__(self, width: int, downs: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(downs)]
        last = downs - 1
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()  # index i undoes down[i]
        for i, channels in enumerate(widths):
            normed = 0 < i < last
            before = widths[i - 1] if i else 1
            layers: list[nn.Module] = [nn.Conv2d(before, channels, 4, stride=2, padding=1, bias=False)]
            layers += [norm_layer(norm, channels)] if normed else []
            self.down.append(nn.Sequential(*layers))
            coming = channels if i == last else 2 * channels  # with the skip from down[i]
            layers = [nn.ConvTranspose2d(coming, before, 4, stride=2, padding=1, bias=i == 0)]
            layers += [norm_layer(norm, before)] if i else []
            if 0 < i < last and channels == before == 8 * width and dropout:
                layers.append(nn.Dropout(dropout))
            self.up.append(nn.Sequential(*layers))
        init_normal(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) to the same shape in [-1, 1]; both sides multiples of 2 ** downs."""
        x = self.down[0](image)
        skips = [x]
        for down in self.down[1:]:
            x = down(F.leaky_relu(x, 0.2))
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = x if i == len(self.up) - 1 else torch.cat((skips[i], x), 1)
            x = self.up[i](F.relu(x))
        return x.tanh()


class Pix2Pix(Translator):
    """One U-Net and one critic for each direction; both directions are trained in the same step on the same batch.

    Synthesis is in evaluation mode: dropout off, running statistics of batch norm. The authors' test script leaves
    both on unless told otherwise, so that their images vary from call to call.

    Args:
        config: The settings.
    Source:
        Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017.
    """

    name: ClassVar[str] = "pix2pix"
    config: Pix2PixConfig

    def __init__(self, config: Pix2PixConfig) -> None:
        super().__init__(config)
        u_net = (config.width, config.depth, config.norm, config.dropout)
        self.generators = nn.ModuleDict({target: UNet(*u_net) for target in config.modalities})
        self.critics = nn.ModuleDict(
            {target: PatchGAN(width=config.critic_width, norm=config.norm) for target in config.modalities}
        )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """From each of the two modalities to the other."""
        first, second = self.config.modalities
        return ((second,), first), ((first,), second)

    def averaged(self) -> nn.Module:
        """The U-Nets of both directions."""
        return self.generators

    def parameters_per_direction(self) -> int:
        """Parameters of one of the two networks; `n_unique_parameters` counts both."""
        return self.n_unique_parameters() // len(self.generators)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for "critics", then for "generators"; each holds both directions, which share no weight."""
        return adam_pair(self.config, self.generators, self.critics)

    def translate(
        self, images: dict[Modality, Tensor], target: Modality, noise: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """The target, (B, 1, H, W) in [-1, 1], from the image of the other modality."""
        (image,) = images.values()
        return self._generate(image, target)

    def _generate(self, image: Tensor, target: Modality) -> Tensor:
        """Pad with background where the variant asks for it, run the U-Net, crop."""
        (height, width), (net_height, net_width) = self.config.image_size, self.config.network_size
        top, left = (net_height - height) // 2, (net_width - width) // 2
        border = (left, net_width - width - left, top, net_height - height - top)
        made = self.generators[target](F.pad(image, border, value=BACKGROUND))
        return made[..., top : top + height, left : left + width]

    def training_step(
        self,
        images: dict[Modality, Tensor],
        fov: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, float]:
        """Critics, then generators, of both directions; as published, the loss covers the whole frame.

        Returns:
            "loss" (GAN + l1_weight * L1, mean of the two generators) and, by target, "l1_", "adversarial_", "critic_".
        """
        config, values = self.config, {}
        with seeded_dropout(generator, fov.device):
            made = {target: self._generate(images[source], target) for (source,), target in self.directions}
        for (source,), target in self.directions:
            judged = (images[source], images[target], made[target])
            values[f"critic_{target}"] = critic_loss(self.critics[target], *judged, config.gan)
        descend(optimizers["critics"], torch.stack(list(values.values())).sum())
        losses = []
        with frozen(self.critics):
            for (source,), target in self.directions:
                l1 = F.l1_loss(made[target], images[target])
                adversarial = gan_loss(self.critics[target](images[source], made[target]), True, config.gan)
                losses.append(adversarial + config.l1_weight * l1)
                values |= {f"l1_{target}": l1, f"adversarial_{target}": adversarial}
            descend(optimizers["generators"], torch.stack(losses).sum())
        values["loss"] = torch.stack(losses).mean()
        return {name: float(value.detach()) for name, value in values.items()}
