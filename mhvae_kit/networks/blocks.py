"""Building blocks: squeeze-excitation, encoder cells, top-down cell, expert head, image head.

Sizes and orders of operations follow ReubenDo/MHVAE:network/blocks.py, so that its weights can be loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from mhvae_kit import gaussian_kernels
from mhvae_kit.kernels import DOUBLED, team
from mhvae_kit.networks import bfloat16, fused, half_convolution
from mhvae_kit.networks.bfloat16 import Map
from mhvae_kit.networks.convolution import Conv2d, pointwise_product, quick_convolution
from mhvae_kit.networks.inference import added, in_parts, laid_out, wide_convolution, without_gradients
from mhvae_kit.networks.normalisation import instance_norm, norm_convolution, norm_silu, norm_silu_convolution
from mhvae_kit.networks.residual import is_quick_for, residual
from mhvae_kit.networks.stacks import joined
from mhvae_kit.networks.upsampling import doubled

MOBILENET_EXPANSION = 6  # widening inside MobileNetV2's inverted residuals
LEARNING_BYTES = 32 * 2**20  # of the widest map of a block, with gradients; without, see `inference`
GPU_BYTES = 64 * 2**20  # likewise on a GPU, where smaller parts are mostly waiting for their start


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channels' spatial means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def factor(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the gate (B, C), in (0, 1)."""
        if self._is_quick_for(x):
            return fused.gate(x.mean((2, 3)), self.squeeze, self.excite)
        return self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x * self.factor(x)[:, :, None, None]

    def projected(
        self, x: Tensor | Map, projection: nn.Module, sums: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """`projection(self(x))` of a 1x1 convolution, (B, C, H, W) to (B, D, H, W), plus `onto`.

        `sums` of the channels of x may be given where `bfloat16` makes x.
        """
        if bfloat16.applies_to(x, self.squeeze.weight, self.excite.weight):
            if sums is None:
                x, sums = bfloat16.seen(x)
            gates, weight = bfloat16.gates(x, sums, self.squeeze, self.excite), projection.weight
            if half_convolution.is_quick_for(projection, weight, x):
                return half_convolution.convolution(projection, weight, x, gates=gates, onto=onto).values
            y = pointwise_product(x, weight, projection.bias, gates)
        elif self._is_quick_for(x := bfloat16.values_of(x)):
            y = fused.gated_product(x, x.mean((2, 3)), self.squeeze, self.excite, projection)
        else:
            y = pointwise_product(x, projection.weight, projection.bias, self.factor(x))
        return y if onto is None else added(onto, y)

    def onto(self, x: Tensor, y: Tensor | Map) -> Tensor:
        """x + self(y), both (B, C, H, W); without gradients written over y, which the caller must own."""
        if bfloat16.applies_to(y, self.squeeze.weight, self.excite.weight):
            return bfloat16.gated_onto(x, y, self.squeeze, self.excite)
        y = bfloat16.values_of(y)
        factor = self.factor(y)[:, :, None, None]
        return torch.addcmul(x, y, factor, out=y) if self._is_quick_for(y) else torch.addcmul(x, y, factor)

    def _is_quick_for(self, x: Tensor) -> bool:
        return without_gradients(x) and team.apply_to(x, self.squeeze.weight, self.excite.weight)


class WideBlock(nn.Module):
    """A block whose maps in between are many and wide; a subclass defines `_forward`, which works image by image.

    With `checkpoint_gradients`, only what goes in is kept for the backward pass, and `_forward` runs once more there.
    Nothing in it is random, so results are the same, and gradients but for the order of sums over the batch.
    """

    checkpoint_gradients = False

    def _forward(self, *tensors: Tensor) -> Tensor:
        raise NotImplementedError

    def _run(self, *tensors: Tensor, channels: int) -> Tensor:
        """`_forward`, in the way that suits; `channels` is the number of channels of its widest map.

        A few images at a time, the backward pass holds the widest maps of these alone. On a GPU that takes longer.
        """
        learning, on_cpu = torch.is_grad_enabled(), tensors[0].device.type == "cpu"
        again = learning and self.checkpoint_gradients
        work = self._again_later if again else self._forward
        if not (again or on_cpu):
            return work(*tensors)
        limit = (LEARNING_BYTES if on_cpu else GPU_BYTES) if learning else None
        return in_parts(work, *tensors, channels=channels, limit=limit)

    def _again_later(self, *tensors: Tensor) -> Tensor:
        return checkpoint(self._forward, *tensors, use_reentrant=False, preserve_rng_state=False)


def checkpoint_gradients(model: nn.Module, on: bool = True) -> None:
    """Let the wide blocks of a model keep their inputs alone for the backward pass, or everything again.

    A training step then takes less memory, and the time of one more forward pass.
    """
    for module in model.modules():
        if isinstance(module, WideBlock):
            module.checkpoint_gradients = on


class ResidualSECell(WideBlock):
    """Encoder cell of the released code: two pre-normalised 3x3 convolutions, squeeze-excitation, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.gate = SqueezeExcitation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self._run(x, channels=x.shape[1])

    def _forward(self, x: Tensor) -> Tensor:
        y = norm_silu_convolution(x, convolution=self.conv1)
        return self.gate.onto(x, norm_silu_convolution(y, convolution=self.conv2, own=True))


class MobileNetV2Cell(WideBlock):
    """Encoder cell in the paper's words: expand by 1x1, depthwise 3x3, squeeze-excitation, project by 1x1, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = MOBILENET_EXPANSION * channels
        self.expand = Conv2d(channels, hidden, 1)
        self.depthwise = Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.gate = SqueezeExcitation(hidden)
        self.project = Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self._run(x, channels=self.expand.out_channels)

    def _forward(self, x: Tensor) -> Tensor:
        y = self.expand(instance_norm(x))
        y = self.depthwise(norm_silu(y))
        return self.gate.projected(norm_silu(y), self.project, onto=x)


class TopDownCell(WideBlock):
    """Top-down cell: widen by 3x3, depthwise 5x5, squeeze-excitation, project by 1x1, residual."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.expand = Conv2d(channels, hidden, 3, padding=1)
        self.depthwise = Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.gate = SqueezeExcitation(hidden)
        self.project = Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self._run(x, channels=self.expand.out_channels)

    def _forward(self, x: Tensor) -> Tensor:
        y = norm_convolution(x, self.expand)
        if bfloat16.applies_to(y, self.depthwise.weight) and self.depthwise.out_channels >= team.lanes():
            wide = bfloat16.norm_silu_depthwise(y, self.depthwise)
            active, sums = bfloat16.norm_silu(wide, out=wide.values)
            return self.gate.projected(active, self.project, sums, onto=x)
        if team.apply_to(y, self.depthwise.weight):
            if without_gradients(y) and y.is_contiguous():
                return added(x, fused.depthwise_gated_over(y, self.depthwise, *self._ends()))
            y = fused.norm_silu_depthwise(y, self.depthwise)
            return added(x, fused.norm_silu_gated(y, *self._ends()))
        y = self.depthwise(norm_silu(y))
        return self.gate.projected(norm_silu(y), self.project, onto=x)

    def _ends(self) -> tuple[nn.Linear, nn.Linear, nn.Conv2d]:
        return self.gate.squeeze, self.gate.excite, self.project


class UpConvolution(nn.Module):
    """Double height and width bilinearly, then a 3x3 convolution without bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, 2H, 2W)."""
        x, weight = laid_out(x, scale=2), self.conv.weight
        if half_convolution.is_quick_for(self.conv, weight, x):
            return half_convolution.convolution(self.conv, weight, x, before=DOUBLED).values
        return self.conv(doubled(x))


class ExpertHead(WideBlock):
    """From the top-down feature and one modality's skip to that modality's expert, before it is split in two."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(2 * channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.gate = SqueezeExcitation(channels)
        self.project = pointwise(channels, latent_channels)

    def forward(self, feature: Tensor, skip: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """Two (B, C, H, W) to (B, 2 L, H, W): L channels of mean, L of log-std.

        With `which`, the feature has as many parts along the batch, and skip has parts of the same size: each part of
        the feature sees the part of skip of that number. None = all of skip.
        """
        if which is None or list(which) == list(range(len(which))):
            return self._run(feature, skip, channels=2 * feature.shape[1])
        size = len(feature) // len(which)
        if without_gradients(feature) and team.apply_to(feature, skip, self.conv1.weight):
            rows = [part * size + i for part in which for i in range(size)]
            return self._of_shared(feature, skip, torch.tensor(rows))
        parts = skip.split(size)
        return self._run(feature, joined([parts[part] for part in which]), channels=2 * feature.shape[1])

    def _forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        y = norm_silu_convolution(feature, skip, convolution=self.conv1)
        return self.gate.projected(norm_silu_convolution(y, convolution=self.conv2, own=True), self.project)

    def _of_shared(self, feature: Tensor, skip: Tensor, rows: Tensor) -> Tensor:
        """`_forward` of the feature and skip[rows], by what the first convolution makes of each skip, once."""
        weight, n = self.conv1.weight, feature.shape[1]
        of_skip = quick_convolution(norm_silu(skip), weight[:, n:], None, 1, 1)

        def seen(feature: Tensor, rows: Tensor) -> Tensor:
            y = quick_convolution(norm_silu(feature), weight[:, :n], self.conv1.bias, 1, 1)
            active = fused.norm_silu_of_sum(y, of_skip, rows)
            y = quick_convolution(active, self.conv2.weight, self.conv2.bias, 1, 1)
            return self.gate.projected(y, self.project)

        return in_parts(seen, feature, rows, channels=2 * n)


def pointwise(channels: int, latent_channels: int) -> nn.Module:
    """A weight-normed 1x1 convolution without bias to mean and log-std: the last layer of every expert and prior."""
    return weight_norm(Conv2d(channels, 2 * latent_channels, 1, bias=False))


def soft_clamped_halves(x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Both halves of the channels of limit * tanh(x / limit), (B, 2 C, ...) to two (B, C, ...).

    In float32 whatever the precision of x; keeps its result alone for the backward pass.
    """
    return team.applied(_SoftClamp, x, limit)


class _SoftClamp(torch.autograd.Function):
    """Gives halves, so that their gradients need not be put together before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        if gaussian_kernels.is_quick_for(x):
            y = gaussian_kernels.soft_clamp(x, limit)
        elif x.ndim == 4 and bfloat16.applies_to(x):
            y = bfloat16.soft_clamp(x, limit)
        else:
            y = (x.float() / limit).tanh_().mul_(limit)
        ctx.save_for_backward(y)
        ctx.limit, ctx.dtype = limit, x.dtype
        return y.chunk(2, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if y.dtype == ctx.dtype and gaussian_kernels.is_quick_for(y) and team.are_plain(*grads):
            return gaussian_kernels.soft_clamp_gradient(y, grads, ctx.limit), None
        slope = torch.addcmul(torch.ones((), device=y.device), y, y, value=-1 / ctx.limit**2)
        return (torch.cat(grads, 1) * slope).to(ctx.dtype), None


class ResidualBlock(nn.Module):
    """Two reflection-padded 3x3 convolutions with instance norm, residual: the unit of the image heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.conv2 = Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if is_quick_for(x, self.conv1):
            return residual(x, self.conv1, self.conv2)
        y = F.relu(instance_norm(self.conv1(x)), inplace=without_gradients(x))
        return added(x, instance_norm(self.conv2(y)))


class ImageHead(WideBlock):
    """Decoder of one modality: residual blocks and two 7x7 convolutions from z1 to an image in [-1, 1]."""

    def __init__(self, channels_in: int, blocks: int, width: int | None = None) -> None:
        super().__init__()
        width = width or channels_in
        self.widen = Conv2d(channels_in, width, 1) if width != channels_in else nn.Identity()
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.conv = Conv2d(width, width, 7, padding=3, padding_mode="reflect")
        self.to_image = Conv2d(width, 1, 7, padding=3, padding_mode="reflect")

    def forward(self, z1: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 1, H, W)."""
        return self._run(z1.contiguous(), channels=self.conv.out_channels)

    def _forward(self, z1: Tensor) -> Tensor:
        z1 = self.widen(z1)
        if bfloat16.is_on(z1) and bfloat16.fits(z1) and min(z1.shape[2:]) > self.conv.kernel_size[0]:
            y = half_convolution.image_head(z1, self.blocks, self.conv, self.to_image.padding[0])
            return wide_convolution(y, self.to_image.weight, self.to_image.bias).float().tanh()
        y = self.conv(self.blocks(z1))
        return self.to_image(F.leaky_relu(instance_norm(y), 0.2, inplace=without_gradients(y))).float().tanh()
