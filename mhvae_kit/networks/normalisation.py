"""Instance norm, alone, with SiLU behind it, and with a convolution behind that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.kernels import EPSILON, NORM, NORM_SILU, team
from mhvae_kit.networks import bfloat16, fused, half_convolution
from mhvae_kit.networks.bfloat16 import Map
from mhvae_kit.networks.inference import without_gradients


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every image to mean 0, variance 1, without learned parameters.

    Written as a group norm with one channel a group: the same function, with a faster kernel on CPUs.
    """
    if bfloat16.applies_to(x):
        return bfloat16.norm_leaky(x)
    if x.is_cuda:  # autocast would turn the map into float32 there; the kernel sums up in float32 as it is
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, x.shape[1], eps=EPSILON)
    return F.group_norm(x, x.shape[1], eps=EPSILON)


def norm_silu(x: Tensor) -> Tensor:
    """Instance norm, then SiLU (Swish)."""
    if team.apply_to(x):
        return fused.norm_silu(x)
    if bfloat16.applies_to(x):
        return bfloat16.norm_silu(x)[0]
    return F.silu(instance_norm(x), inplace=without_gradients(x))


def norm_convolution(x: Tensor, convolution: nn.Conv2d) -> Tensor | Map:
    """Instance norm, then a convolution."""
    if half_convolution.is_quick_for(convolution, convolution.weight, x):
        return half_convolution.convolution(convolution, convolution.weight, x, before=NORM)
    return convolution(instance_norm(x))


def norm_silu_convolution(*maps: Tensor | Map, convolution: nn.Conv2d, own: bool = False) -> Tensor | Map:
    """Instance norm, SiLU, then a convolution of stride 1 with zero padding, of maps side by side.

    Args:
        maps: (B, C, H, W) each; their channels go behind each other into the convolution.
        convolution: From all their channels.
        own: Whether the caller owns the maps, which may then be written over without gradients.
    """
    if half_convolution.is_quick_for(convolution, convolution.weight, *maps):
        return half_convolution.convolution(convolution, convolution.weight, *maps, before=NORM_SILU)
    if team.apply_to(*maps, convolution.weight):
        return fused.norm_silu_convolution(*maps, convolution=convolution, own=own)
    if len(maps) == 2 and all(map(bfloat16.applies_to, maps)):
        return convolution(bfloat16.norm_silu_of_both(*maps))
    return convolution(norm_silu(torch.cat(maps, 1) if len(maps) > 1 else maps[0]))
