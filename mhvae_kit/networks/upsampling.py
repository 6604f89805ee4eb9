"""Doubling the height and width of maps bilinearly, by `mhvae_kit.kernels.upsampling` where it can."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mhvae_kit.kernels import team
from mhvae_kit.kernels.team import planes


def doubled(x: Tensor) -> Tensor:
    """`F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)`, (B, C, H, W) to (B, C, 2 H, 2 W)."""
    if team.apply_to(x):
        return team.applied(_Doubled, x.contiguous())
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        out = x.new_empty(*x.shape[:2], 2 * height, 2 * width)
        team.run("doubled", planes(x), x, out, height, width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        height, width = grad.shape[2] // 2, grad.shape[3] // 2
        out = grad.new_empty(*grad.shape[:2], height, width)
        team.run("doubled_gradient", planes(grad), grad.contiguous(), out, height, width)
        return out
