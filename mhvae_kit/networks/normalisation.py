"""Instance norm, alone and with SiLU behind it; on CPUs with kernels and a backward pass that read few bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mhvae_kit.networks.inference import is_channels_last, without_gradients

EPSILON = 1e-5  # added to the variance
CACHED_BYTES = 2 * 2**20  # of each of the four maps that one part of the backward pass goes through


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every image to mean 0, variance 1, without learned parameters.

    Written as a group norm with one channel a group: the same function, with a faster kernel on CPUs.
    """
    if without_gradients(x) and x.dtype == torch.float32 and is_channels_last(x):
        return two_pass_norm(x)
    if x.is_cuda:  # autocast would turn the map into float32 there; the kernel sums up in float32 as it is
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, x.shape[1], eps=EPSILON)
    return F.group_norm(x, x.shape[1], eps=EPSILON)


def norm_silu(x: Tensor) -> Tensor:
    """Instance norm, then SiLU (Swish)."""
    if without_gradients(x):
        return F.silu(instance_norm(x), inplace=True)
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return _NormSiLU.apply(x)
    return F.silu(instance_norm(x))


def two_pass_norm(x: Tensor) -> Tensor:
    """Instance norm of a channels-last map: centre it, then scale it.

    torch's kernels for this layout sum up x and x^2 plainly and lose two more digits than for the usual layout.
    """
    y = x - x.mean((2, 3), keepdim=True)
    return y.mul_((y * y).mean((2, 3), keepdim=True).add_(EPSILON).rsqrt_())


class _NormSiLU(torch.autograd.Function):
    """SiLU of the instance norm; keeps its input alone for the backward pass, which goes through the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        n, channels, height, width = x.shape
        y, mean, rstd = torch.native_group_norm(x, None, None, n, channels, height * width, channels, EPSILON)
        ctx.save_for_backward(x, mean, rstd)
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, mean, rstd = ctx.saved_tensors
        of_x = torch.empty_like(x)
        rows = (x.flatten(0, 1).flatten(1), mean.view(-1, 1), rstd.view(-1, 1), grad.flatten(0, 1).flatten(1))
        made = of_x.flatten(0, 1).flatten(1)
        at_once = max(1, CACHED_BYTES // (made.shape[1] * made.element_size()))
        for *part, out in zip(*(t.split(at_once) for t in (*rows, made)), strict=True):
            _norm_silu_gradient(*part, out)
        return of_x


def _norm_silu_gradient(x: Tensor, mean: Tensor, rstd: Tensor, grad: Tensor, out: Tensor) -> None:
    """The gradient of some channels' values x (N, H * W), written to `out`; `grad` is that of SiLU's output."""
    normalised = (x - mean).mul_(rstd)
    torch.ops.aten.silu_backward.grad_input(grad, normalised, grad_input=out)
    along = (out * normalised).mean(1, keepdim=True)
    out.sub_(out.mean(1, keepdim=True)).addcmul_(normalised, along, value=-1).mul_(rstd)
