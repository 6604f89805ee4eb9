"""What the conditional GANs share: the 70x70 PatchGAN critic, GAN losses, initial weights, seeded dropout, checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.errors import InputError, explain

Norm = Literal["batch", "instance"]
GANLoss = Literal["bce", "lsgan"]
SMALLEST_SIDE_PX = 24  # below it the critic's last map is empty


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or instance norm with the same learned scale and shift.

    Instance norm is what batch norm in training mode does at batch size 1, as these methods are published; written as
    a group norm with one channel a group, which has a faster kernel on CPUs.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels, channels)


def init_normal(network: nn.Module) -> None:
    """Draw convolutions from N(0, 0.02) and scales of norms from N(1, 0.02), biases 0, as in Pix2Pix."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatchGAN(nn.Module):
    """Critic of patches of 70x70 pixels, conditional: it sees the source together with the image it judges.

    4x4 convolutions to width, 2, 4 (stride 2) and 8 times width, then to one map of logits (stride 1); LeakyReLU 0.2,
    and a norm on the middle three.

    Args:
        condition_channels, image_channels: Channels of the source and of what is judged.
        width: Channels of the first layer.
        norm: Norm of the middle layers.
    Source:
        Isola et al., CVPR 2017, section 3.2.2; junyanz/pytorch-CycleGAN-and-pix2pix:models/networks.py
        (one and one channel, width 64: 2,764,609 parameters).
    """

    def __init__(
        self, condition_channels: int = 1, image_channels: int = 1, width: int = 64, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(condition_channels + image_channels, width, 4, stride=2, padding=1)
        steps = [(width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 1)]
        self.middle = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, stride=s, padding=1, bias=False), norm_layer(norm, b)) for a, b, s in steps
        )
        self.score = nn.Conv2d(8 * width, 1, 4, padding=1)
        init_normal(self)

    def forward(self, condition: Tensor, image: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D, H, W) to logits (B, 1, H / 8 - 2, W / 8 - 2): high for real."""
        x = F.leaky_relu(self.first(torch.cat((condition, image), 1)), 0.2)
        for layer in self.middle:
            x = F.leaky_relu(layer(x), 0.2)
        return self.score(x)


def gan_loss(scores: Tensor, real: bool, kind: GANLoss) -> Tensor:
    """How far a critic's scores are from "real" or "synthetic", mean over scores, a scalar.

    Args:
        scores: Logits of any shape.
        real: Whether they should say real.
        kind: "bce" (cross-entropy of the logits, the original GAN) or "lsgan" (squared distance to 1 or 0).
    """
    wanted = torch.full_like(scores, float(real))
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(scores, wanted)
    return F.mse_loss(scores, wanted)


def critic_loss(critic: nn.Module, condition: Tensor, real: Tensor, synthetic: Tensor, kind: GANLoss) -> Tensor:
    """Mean of the critic's losses on real and synthetic images; the generator's graph is not followed.

    Real and synthetic images go through separately, so that batch norm sees them apart, as in Pix2Pix.
    """
    on_real = gan_loss(critic(condition, real), True, kind)
    on_synthetic = gan_loss(critic(condition, synthetic.detach()), False, kind)
    return (on_real + on_synthetic) / 2


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimizer down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients for a network's own weights while the gradient passes through it."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


@contextmanager
def seeded_dropout(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Let dropout depend on `generator` alone; torch's global generators, which it draws from, are put back after.

    Dropout takes no generator of its own, so the global ones are seeded with a number drawn from the given one.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def check_gan_config(config: Any, counts: tuple[str, ...]) -> None:
    """Check what the settings of these methods have in common.

    Args:
        config: Has modalities, image_size, norm, gan, l1_weight, dropout, betas and the two learning rates.
        counts: Names of its settings that must be whole numbers of at least 1.
    Raises:
        InputError: A setting does not fit.
    """
    names, size = config.modalities, config.image_size
    if len(set(names)) != len(names) or not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise InputError(
            explain("modalities must be distinct names", got=repr(names), expected='for example ("us", "t2")')
        )
    if len(size) != 2 or not all(isinstance(side, int) and side >= SMALLEST_SIDE_PX for side in size):
        wanted = f"height and width of at least {SMALLEST_SIDE_PX} px, or the critic has nothing to score"
        raise InputError(explain("image_size does not fit", got=repr(size), expected=wanted))
    for name in counts:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(explain(f"{name} must be a whole number of at least 1", got=repr(value)))
    for name, allowed in (("norm", get_args(Norm)), ("gan", get_args(GANLoss))):
        if getattr(config, name) not in allowed:
            raise InputError(explain(f"unknown {name}", got=repr(getattr(config, name)), expected=" or ".join(allowed)))
    for name in ("l1_weight", "dropout", "learning_rate", "critic_learning_rate"):
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise InputError(explain(f"{name} must be a finite number of at least 0", got=repr(value)))
    if config.dropout >= 1 or not min(config.learning_rate, config.critic_learning_rate) > 0:
        got = f"{config.dropout}, {config.learning_rate} and {config.critic_learning_rate}"
        raise InputError(explain("dropout must be below 1 and both learning rates positive", got=got))
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise InputError(explain("betas of Adam do not fit", got=repr(config.betas), expected="two numbers in [0, 1)"))


def adam_pair(config: Any, generators: nn.Module, critics: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Adam for the critics, then for the generators: the order in which they are stepped."""
    rates = {"critics": (critics, config.critic_learning_rate), "generators": (generators, config.learning_rate)}
    return {
        name: torch.optim.Adam(network.parameters(), lr=rate, betas=config.betas, fused=True)
        for name, (network, rate) in rates.items()
    }
