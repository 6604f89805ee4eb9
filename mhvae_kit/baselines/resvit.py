"""ResViT, unified: one network of convolutions and a shared vision transformer for every direction.

Reads top to bottom: settings, blocks, network, the method with its training rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, ClassVar

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
    norm_layer,
    seeded_dropout,
)
from mhvae_kit.baselines.resvit_vit import TokenEmbedding, VisionTransformer, load_imagenet_weights
from mhvae_kit.baselines.translator import Direction, Translator
from mhvae_kit.config import Modality, check_preset, from_dict
from mhvae_kit.errors import InputError, explain
from mhvae_kit.networks.mhvae import Subset

BLOCKS = 9
TRANSFORMER_BLOCKS = (1, 6)  # counted from 1
PATCH_PX = 16  # pixels of the image to a token, each way
UPSTREAM_VIT_NAMES = 3  # the released code registers the one transformer at the root, in block 1 and in block 6


@dataclass(frozen=True)
class ResViTConfig:
    """Everything that fixes a unified ResViT.

    Args:
        modalities: Input and output channels, in this order.
        image_size: Height and width in pixels, multiples of 16.
        width: Channels of the first convolution (64 as published).
        vit_width, vit_layers, vit_heads: Token length, depth and heads of the transformer (768, 12, 12).
        dropout: Inside the transformer, in training mode.
        norm: "batch", or "instance" for batches smaller than 8.
        gan: "lsgan" (published) or "bce".
        l1_weight: Weight of the mean absolute error of each image beside the GAN term.
        critic_width: Channels of the critic's first layer.
        learning_rate, critic_learning_rate, betas: Of the two Adam optimisers.
        transformer_from: Share of the budget before which blocks 1 and 6 are plain residual blocks; 0 trains all at
            once. As published, the first 100 of 150 passes over the data are without the transformer.
        pretrained: Path of `R50+ViT-B_16.npz`, read when training begins; None = from scratch.
    Raises:
        InputError: A setting does not fit.
    Source:
        Dalmaz et al., IEEE TMI 2022, section III; icon-lab/ResViT:options/ and README.md.
    """

    modalities: tuple[Modality, ...] = ("us", "t2")
    image_size: tuple[int, int] = (192, 192)
    width: int = 64
    vit_width: int = 768
    vit_layers: int = 12
    vit_heads: int = 12
    dropout: float = 0.1
    norm: Norm = "batch"
    gan: GANLoss = "lsgan"
    l1_weight: float = 100.0
    critic_width: int = 64
    learning_rate: float = 2e-4
    critic_learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    transformer_from: float = 0.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        check_gan_config(self, ("width", "vit_width", "vit_layers", "vit_heads", "critic_width"))
        if any(side % PATCH_PX for side in self.image_size):
            raise InputError(
                explain("image_size does not fit the tokens", got=self.image_size, expected=f"multiples of {PATCH_PX}")
            )
        if self.vit_width % self.vit_heads:
            got = f"vit_width={self.vit_width}, vit_heads={self.vit_heads}"
            raise InputError(explain("vit_width must be a multiple of vit_heads", got=got))
        if not isinstance(self.transformer_from, (int, float)) or not 0 <= self.transformer_from < 1:
            raise InputError(explain("transformer_from must lie in [0, 1)", got=repr(self.transformer_from)))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ResViTConfig:
        """The settings of a preset, with single ones overridden.

        demo and smoke have a quarter of the published widths, small batches, hence instance norm, and a budget of a
        few hundred steps, hence a learning rate of 5e-4.
        """
        return from_dict(cls, {**_PRESETS[check_preset(name)], **overrides})


_SMALL = {"width": 16, "critic_width": 16, "vit_width": 192, "vit_heads": 3, "norm": "instance"}
_SMALL |= {"learning_rate": 5e-4, "critic_learning_rate": 5e-4}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {**_SMALL, "image_size": (96, 96)},
    "smoke": {**_SMALL, "image_size": (64, 64), "vit_layers": 4},
}


def _conv(channels_in: int, channels: int, kernel: int, norm: Norm, stride: int = 1) -> list[nn.Module]:
    """Zero-padded convolution without bias, and a norm."""
    conv = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [conv, norm_layer(norm, channels)]


def _reflected(channels_in: int, channels: int, kernel: int, norm: Norm) -> list[nn.Module]:
    """Reflection-padded convolution without bias, and a norm."""
    padding = {"padding": kernel // 2, "padding_mode": "reflect"}
    return [nn.Conv2d(channels_in, channels, kernel, bias=False, **padding), norm_layer(norm, channels)]


def _up(channels_in: int, channels: int, norm: Norm) -> list[nn.Module]:
    """Transposed convolution to twice the size, norm, ReLU."""
    conv = nn.ConvTranspose2d(channels_in, channels, 3, stride=2, padding=1, output_padding=1, bias=False)
    return [conv, norm_layer(norm, channels), nn.ReLU()]


class ResidualBlock(nn.Module):
    """Two reflection-padded 3x3 convolutions, residual: the convolutional half of every ART block."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        first, second = (_reflected(channels, channels, 3, norm) for _ in range(2))
        self.layers = nn.Sequential(*first, nn.ReLU(), *second)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.layers(x)


class TransformerPath(nn.Module):
    """The other half of ART blocks 1 and 6: down to tokens, the shared transformer, up, and compression with x.

    The transformer is handed in at each call and belongs to the network, so that its weights are registered once.
    """

    def __init__(self, channels: int, vit_width: int, grid: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        down = [_conv(a, 2 * a, 3, norm, stride=2) for a in (channels, 2 * channels)]
        self.down = nn.Sequential(*down[0], nn.ReLU(), *down[1], nn.ReLU())
        self.embedding = TokenEmbedding(4 * channels, vit_width, grid)
        self.up = nn.Sequential(*_up(vit_width, 2 * channels, norm), *_up(2 * channels, channels, norm))
        first, second = _conv(2 * channels, channels, 3, norm), _conv(channels, channels, 3, norm)
        self.compress = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut = nn.Sequential(*_conv(2 * channels, channels, 1, norm))

    def forward(self, x: Tensor, vit: VisionTransformer) -> Tensor:
        """(B, C, H, W) to the same shape; H and W are 4 times the grid of tokens."""
        tokens = vit(self.embedding(self.down(x)))
        both = torch.cat((self.up(tokens.transpose(1, 2).unflatten(2, self.embedding.grid)), x), 1)
        return F.relu(self.compress(both) + self.shortcut(both))


class ResViTNetwork(nn.Module):
    """Two halvings, nine aggregated residual transformer (ART) blocks, two doublings.

    Args:
        config: The architecture; its modalities do not matter here.
        n_inputs, n_outputs: Channels in and out.
    Source:
        Dalmaz et al., IEEE TMI 2022, figure 1; icon-lab/ResViT:models/residual_transformers.py.
    """

    def __init__(self, config: ResViTConfig, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        width, norm = config.width, config.norm
        widths = (width, 2 * width, 4 * width)
        grid = (config.image_size[0] // PATCH_PX, config.image_size[1] // PATCH_PX)
        self.use_transformer = True  # off in the first part of training if `transformer_from` asks for it
        head = [*_reflected(n_inputs, width, 7, norm), nn.ReLU()]
        for a, b in pairwise(widths):
            head += [*_conv(a, b, 3, norm, stride=2), nn.ReLU()]
        self.head = nn.Sequential(*head)
        self.vit = VisionTransformer(config.vit_width, config.vit_layers, config.vit_heads, config.dropout)
        self.transformer_paths = nn.ModuleDict(
            {str(block): TransformerPath(widths[2], config.vit_width, grid, norm) for block in TRANSFORMER_BLOCKS}
        )
        self.residual_blocks = nn.ModuleList(ResidualBlock(widths[2], norm) for _ in range(BLOCKS))
        to_image = nn.Conv2d(width, n_outputs, 7, padding=3, padding_mode="reflect")
        self.tail = nn.Sequential(*_up(widths[2], widths[1], norm), *_up(widths[1], width, norm), to_image)

    def forward(self, images: Tensor) -> Tensor:
        """(B, n_inputs, H, W) to (B, n_outputs, H, W) in [-1, 1]."""
        x = self.head(images)
        for block, residual in enumerate(self.residual_blocks, start=1):
            if self.use_transformer and str(block) in self.transformer_paths:
                x = self.transformer_paths[str(block)](x, self.vit)
            x = residual(x)
        return self.tail(x).tanh()


def parameters_as_released(network: ResViTNetwork) -> int:
    """The number that counting the released code's state dict gives: the shared transformer three times.

    293,553,537 for one channel in and out at 256 px, where 123,441,537 are unique: the published 293 M.
    """
    unique = sum(p.numel() for p in network.parameters())
    return unique + (UPSTREAM_VIT_NAMES - 1) * sum(p.numel() for p in network.vit.parameters())


class ResViT(Translator):
    """One network from any subset of the modalities to all of them, and one critic of what was missing.

    A missing input is filled with 0. That is mid-grey and not background (-1), so absence is not mistaken for an
    empty slice; and since the first convolution has no bias, a missing input adds exactly nothing to it.

    Synthesis is in evaluation mode; the authors' test script is not: dropout on, batch norm by the one test slice.

    Args:
        config: The settings.
    Source:
        Dalmaz et al., "ResViT: residual vision transformers for multimodal medical image synthesis", IEEE TMI 2022.
        The released code has no unified model: zero filling, L1 on given and missing images and a conditional critic
        of the missing ones follow the paper's text.
    """

    name: ClassVar[str] = "resvit"
    config: ResViTConfig

    def __init__(self, config: ResViTConfig) -> None:
        super().__init__(config)
        n = len(config.modalities)
        self.network = ResViTNetwork(config, n, n)
        self.critic = PatchGAN(n, n, config.critic_width, config.norm)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Every subset to every modality: synthesis first, then what reconstructs."""
        found = [(subset, target) for subset in self._subsets() for target in self.config.modalities]
        return tuple(sorted(found, key=lambda direction: (len(direction[0]), direction[1] in direction[0])))

    def _subsets(self) -> list[Subset]:
        """All non-empty subsets, the last modality's first, so that T2 to US leads for ("us", "t2")."""
        names = self.config.modalities[::-1]
        return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]

    def averaged(self) -> nn.Module:
        """The network without its critic."""
        return self.network

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam for "critics", then for "generators". Training begins here: ImageNet weights, if any, are read now.

        Not earlier, so that a trained method can be loaded where their file is not.

        Raises:
            MissingError: `pretrained` names no file.
            DataError: The file does not fit.
        """
        path = self.config.pretrained
        if path is not None:
            embeddings = [part.embedding for part in self.network.transformer_paths.values()]
            load_imagenet_weights(path, self.network.vit, embeddings)
        self.card["transformer"] = "from scratch" if path is None else f"started from {Path(path).name}"
        return adam_pair(self.config, self.network, self.critic)

    def translate(
        self, images: dict[Modality, Tensor], target: Modality, noise: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """The target, (B, 1, H, W) in [-1, 1], from the observed images; the others are filled with 0."""
        absent = torch.zeros_like(next(iter(images.values())))
        stacked = torch.cat([images.get(m, absent) for m in self.config.modalities], 1)
        channel = self.config.modalities.index(target)
        return self.network(stacked)[:, channel : channel + 1]

    def training_step(
        self,
        images: dict[Modality, Tensor],
        fov: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, float]:
        """Critic, then network. Each slice of the batch has its own observed subset, all in turn, drawn anew each step.

        So batch norm sees the mixture of subsets in every batch that its running statistics stand for. L1 is taken on
        every output, given or missing; the critic sees the given images beside the missing ones, both filled with 0.

        Returns:
            "loss", "l1_missing" and "l1_given" (means per image), "adversarial", "critic" (0 if nothing is missing).
        """
        config = self.config
        self.network.use_transformer = progress >= config.transformer_from
        truth = torch.cat([images[m] for m in config.modalities], 1)
        given = self._draw_given(len(truth), generator).to(truth)
        missing = 1 - given
        with seeded_dropout(generator, truth.device):
            made = self.network(truth * given)
        judged = missing.flatten(1).any(1)  # slices with something to judge
        condition, real, synthetic = (
            (x * mask)[judged] for x, mask in ((truth, given), (truth, missing), (made, missing))
        )
        on_critic = on_network = truth.new_zeros(())
        if judged.any():
            on_critic = critic_loss(self.critic, condition, real, synthetic, config.gan)
            descend(optimizers["critics"], on_critic)
        l1 = (made - truth).abs().mean((2, 3), keepdim=True)  # (B, M, 1, 1)
        with frozen(self.critic):
            if judged.any():
                # The mean over judged slices, times their share: a slice counts alike in both terms.
                on_network = gan_loss(self.critic(condition, synthetic), True, config.gan) * judged.float().mean()
            loss = on_network + config.l1_weight * l1.sum(1).mean()
            descend(optimizers["generators"], loss)
        values = {"loss": loss, "adversarial": on_network, "critic": on_critic}
        values |= {
            "l1_missing": (l1 * missing).sum() / missing.sum().clamp(min=1),
            "l1_given": (l1 * given).sum() / given.sum(),
        }
        return {name: float(value.detach()) for name, value in values.items()}

    def _draw_given(self, n: int, generator: torch.Generator) -> Tensor:
        """Which modalities each of `n` slices shows, 1 or 0, (n, M, 1, 1): all subsets in turn, in a drawn order."""
        masks = torch.tensor([[float(m in subset) for m in self.config.modalities] for subset in self._subsets()])
        order = torch.randperm(len(masks), generator=generator, device=generator.device).cpu()
        return masks[order[torch.arange(n) % len(masks)]][:, :, None, None]
