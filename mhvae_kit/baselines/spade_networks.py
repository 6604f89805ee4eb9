"""The networks of SPADE: spectral norm, SPADE norm, residual block, generator, critic at two scales."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from mhvae_kit.baselines.patchgan import Norm
from mhvae_kit.networks.normalisation import instance_norm

Resize = Literal["nearest", "area"]
Maps = list[list[Tensor]]  # of each scale of the critic, of each layer
# Width of each residual block's output, in units of `width`, and how often its map has been doubled.
BLOCKS = ((16, 0), (16, 1), (16, 1), (8, 2), (4, 3), (2, 4), (1, 5))
SHRINK = 2 ** BLOCKS[-1][1]  # the first map has 1/32 of the image's sides
CRITIC_SCALES = 2
WARM_UP_STEPS, EVALUATION_STEPS = 15, 8  # of the power iteration: when made, and in evaluation mode


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value, estimated by power iteration; a parametrization of a layer.

    In training mode each use is one step of the iteration, from the vector of the last use. In evaluation mode there
    are several steps, none of them kept. torch's own parametrization takes none and multiplies by its vectors as they
    are; but the vectors that come with averaged weights are averages, shorter than 1, and would divide by too little.

    Source:
        Miyato et al., ICLR 2018, algorithm 1.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("left", torch.randn(len(matrix), device=matrix.device))
        self.left.copy_(self._singular_vectors(matrix, WARM_UP_STEPS)[0])

    @torch.no_grad()
    def _singular_vectors(self, matrix: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Left and right singular vector of the largest singular value, by so many steps from the kept one."""
        left = self.left
        for _ in range(steps):
            right = F.normalize(matrix.T @ left, dim=0)
            left = F.normalize(matrix @ right, dim=0)
        return left, right

    def forward(self, weight: Tensor) -> Tensor:
        """A weight (C_out, ...) to the same shape."""
        matrix = weight.flatten(1)
        left, right = self._singular_vectors(matrix, 1 if self.training else EVALUATION_STEPS)
        if self.training:
            with torch.no_grad():
                self.left.copy_(left)
        return weight / (left @ (matrix @ right))


def convolution(
    channels_in: int, channels_out: int, kernel: int, *, spectral: bool = False, **options: Any
) -> nn.Module:
    """A convolution with Xavier weights of gain 0.02 and bias 0, as published, with spectral norm where asked for."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, **options)
    nn.init.xavier_normal_(layer.weight, gain=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if spectral:
        register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class SpadeNorm(nn.Module):
    """Normalise each channel, then scale and shift it, pixel by pixel, by what two convolutions make of the source.

    Source:
        Park et al., CVPR 2019, equation 1 and figure 3: out = norm(x) * (1 + scale) + shift.
    """

    def __init__(self, channels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False) if norm == "batch" else None
        self.hidden = convolution(1, hidden, 3, padding=1)
        # Two convolutions in the paper; here the halves of one, which is faster, each drawn for itself.
        self.scale_and_shift = convolution(hidden, 2 * channels, 3, padding=1)
        for half in self.scale_and_shift.weight.detach().chunk(2):
            nn.init.xavier_normal_(half, gain=0.02)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, C, h, w) and the source (B, 1, h, w) to the shape of the first."""
        scale, shift = self.scale_and_shift(F.relu(self.hidden(source))).chunk(2, dim=1)
        normalised = instance_norm(x) if self.norm is None else self.norm(x)
        return normalised * (1 + scale) + shift


class SpadeBlock(nn.Module):
    """Residual block: twice SPADE norm, LeakyReLU 0.2, spectral-norm 3x3; a normed 1x1 beside it if widths differ."""

    def __init__(self, channels_in: int, channels_out: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        between = min(channels_in, channels_out)
        self.norm1 = SpadeNorm(channels_in, hidden, norm)
        self.conv1 = convolution(channels_in, between, 3, padding=1, spectral=True)
        self.norm2 = SpadeNorm(between, hidden, norm)
        self.conv2 = convolution(between, channels_out, 3, padding=1, spectral=True)
        self.beside = channels_in != channels_out
        if self.beside:
            self.norm_beside = SpadeNorm(channels_in, hidden, norm)
            self.conv_beside = convolution(channels_in, channels_out, 1, bias=False, spectral=True)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(B, C_in, h, w) and the source (B, 1, h, w) to (B, C_out, h, w)."""
        beside = self.conv_beside(self.norm_beside(x, source)) if self.beside else x
        y = self.conv1(F.leaky_relu(self.norm1(x, source), 0.2))
        return beside + self.conv2(F.leaky_relu(self.norm2(y, source), 0.2))


class SpadeGenerator(nn.Module):
    """From the source at 1/32 of its size through seven residual blocks and five doublings to the image.

    Args:
        width: Channels of the last block.
        hidden: Channels inside each SPADE norm.
        norm, resize: See `spade.SpadeConfig`.
    Source:
        Park et al., CVPR 2019, supplement, figure 12. Width 64, hidden 128, one channel: 91,998,529 parameters.
    """

    def __init__(self, width: int, hidden: int, norm: Norm, resize: Resize) -> None:
        super().__init__()
        self.resize = resize
        widths = [factor * width for factor, _ in BLOCKS]
        self.first = convolution(1, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(SpadeBlock(a, b, hidden, norm) for a, b in pairwise([widths[0], *widths]))
        self.to_image = convolution(widths[-1], 1, 3, padding=1)

    def forward(self, source: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] to the same shape and range; both sides multiples of 32."""
        height, width = (side // SHRINK for side in source.shape[-2:])
        sizes = [(height << i, width << i) for i in range(BLOCKS[-1][1] + 1)]
        sources = [F.interpolate(source, size, mode=self.resize) for size in sizes]
        x = self.first(sources[0])
        for block, (_, doublings) in zip(self.blocks, BLOCKS, strict=True):
            if x.shape[-2:] != sizes[doublings]:
                x = F.interpolate(x, sizes[doublings], mode="nearest")
            x = block(x, sources[doublings])
        return self.to_image(F.leaky_relu(x, 0.2)).tanh()


class SpadeCritic(nn.Module):
    """Patch critic of source and image together, once at full and once at half size.

    4x4 convolutions with LeakyReLU 0.2: the first with stride 2, then ones with spectral norm and instance norm, of
    which all but the last have stride 2, then the score.

    Args:
        width: Channels of the first layer; doubled at each layer, up to 8 times.
        layers: Convolutions before the score (4 as published).
    Source:
        Park et al., CVPR 2019, supplement, figure 13. Width 64, 4 layers: 5,525,634 parameters.
    """

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList(self._layers(width, layers)) for _ in range(CRITIC_SCALES))

    @staticmethod
    def _layers(width: int, layers: int) -> Iterator[nn.Module]:
        """The convolutions of one scale."""
        widths = [width * min(2**i, 8) for i in range(layers)]
        yield convolution(2, width, 4, stride=2, padding=2)
        for i, (before, after) in enumerate(pairwise(widths), start=2):
            stride = 1 if i == layers else 2
            yield convolution(before, after, 4, stride=stride, padding=2, bias=False, spectral=True)
        yield convolution(widths[-1], 1, 4, padding=2)

    def forward(self, source: Tensor, image: Tensor) -> Maps:
        """Two (B, 1, H, W) to the maps of every layer at every scale, scores (B, 1, h, w) last: high for real."""
        x = torch.cat((source, image), 1)
        found = []
        for i, (first, *middle, score) in enumerate(self.scales):
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) if i else x
            maps = [F.leaky_relu(first(x), 0.2)]
            for layer in middle:
                maps.append(F.leaky_relu(instance_norm(layer(maps[-1])), 0.2))
            found.append([*maps, score(maps[-1])])
        return found
