"""Norm, SiLU and what follows them in one go, forward and backward, by `mhvae_kit.kernels`.

The functions compute what the cells of `mhvae_kit.networks.blocks` say, up to rounding, for float32 maps (B, C, H, W)
on a CPU (`team.apply_to`). For the backward pass they keep their input alone and compute the wide maps in between once
more, which takes less time than reading them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mhvae_kit.kernels import team
from mhvae_kit.kernels.team import plane_size, planes
from mhvae_kit.networks import pointwise
from mhvae_kit.networks.convolution import input_gradient, quick_convolution, weight_gradient

PART_BYTES = 16 * 2**20  # of a wide map that is made for a part of the batch and used at once


def norm_silu(x: Tensor) -> Tensor:
    """SiLU of the instance norm, (B, C, H, W) to the same shape."""
    return team.applied(_NormSiLU, x.contiguous())


def norm_silu_convolution(*maps: Tensor, convolution: nn.Conv2d, own: bool = False) -> Tensor:
    """A convolution, of stride 1 with zero padding, of SiLU of the instance norm of maps side by side.

    Args:
        maps: (B, C, H, W) each; their channels go behind each other into the convolution.
        convolution: From all their channels to D.
        own: Whether the caller owns the maps, so that without gradients a single one may be written over.
    Returns:
        (B, D, H', W').
    """
    maps = tuple(x.contiguous() for x in maps)
    given = (convolution.weight, convolution.bias, convolution.padding[0])
    if torch.is_grad_enabled():
        return _NormSiLUConvolution.apply(*given, *maps)
    if own and len(maps) == 1:
        active = maps[0]
        team.run("norm_silu_over", planes(active), active, plane_size(active))
    else:
        active, _ = _side_by_side(maps)
    return quick_convolution(active, *given, 1)


def norm_silu_of_sum(x: Tensor, other: Tensor, which: Tensor) -> Tensor:
    """SiLU of the instance norm of x + other[which], without gradients, written over x, which the caller must own.

    Args:
        x: (B, C, H, W).
        other: (A, C, H, W).
        which: int64 (B,), from 0 to A - 1.
    """
    team.run("norm_silu_of_sum", planes(x), x, other.contiguous(), which, x.shape[1], plane_size(x))
    return x


def norm_silu_depthwise(x: Tensor, depthwise: nn.Conv2d) -> Tensor:
    """A 5x5 depthwise convolution of SiLU of the instance norm, (B, C, H, W) to the same shape."""
    return _NormSiLUDepthwise.apply(x.contiguous(), depthwise.weight, depthwise.bias)


def norm_silu_gated(x: Tensor, squeeze: nn.Linear, excite: nn.Linear, projection: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of a = SiLU of the instance norm, each channel of which is multiplied by a gate.

    Args:
        x: (B, C, H, W).
        squeeze: From the means of a over height and width, (B, C), to a hidden layer with ReLU.
        excite: From there to the gate, (B, C), with a sigmoid.
        projection: 1x1, from C to D channels.
    Returns:
        (B, D, H, W).
    """
    gate = (squeeze.weight, squeeze.bias, excite.weight, excite.bias)
    return _NormSiLUGated.apply(x.contiguous(), projection.weight, projection.bias, *gate)


def depthwise_gated_over(
    x: Tensor, depthwise: nn.Conv2d, squeeze: nn.Linear, excite: nn.Linear, projection: nn.Conv2d
) -> Tensor:
    """`norm_silu_gated` of `norm_silu_depthwise` without gradients, each channel in one go; it is written over x.

    (B, C, H, W), which the caller must own, to (B, D, H, W); arguments as there.
    """
    means, weight = x.new_empty(x.shape[:2]), depthwise.weight.contiguous()
    team.run("norm_silu_depthwise_norm_silu", planes(x), x, weight, depthwise.bias, means, *x.shape[1:])
    return gated_product(x, means, squeeze, excite, projection)


def gated_product(x: Tensor, means: Tensor, squeeze: nn.Linear, excite: nn.Linear, projection: nn.Module) -> Tensor:
    """A 1x1 convolution of x, each channel of which is multiplied by a gate, without gradients.

    (B, C, H, W) to (B, D, H, W); `means` (B, C) are those of x, other arguments as in `norm_silu_gated`.
    """
    weight = projection.weight.contiguous()
    filters = x.new_empty(len(x), *weight.shape[:2])
    _run_gate(means, squeeze, excite, weight, len(weight), filters)
    return _product(x, filters, projection.bias)


def gate(means: Tensor, squeeze: nn.Linear, excite: nn.Linear) -> Tensor:
    """A factor for each channel from the means of all, (B, C) to (B, C), without gradients; arguments as above."""
    out = torch.empty_like(means)
    _run_gate(means, squeeze, excite, 0, 0, out)
    return out


def _run_gate(
    means: Tensor, squeeze: nn.Linear, excite: nn.Linear, weight: Tensor | int, outputs: int, out: Tensor
) -> None:
    layers = (squeeze.weight.contiguous(), squeeze.bias, excite.weight.contiguous(), excite.bias, squeeze.out_features)
    team.run("gate", len(means), means.contiguous(), *layers, weight, outputs, out, means.shape[1])


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, statistics = _activated(x)
        ctx.save_for_backward(x, statistics)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _activation_gradient(*ctx.saved_tensors, grad)


class _NormSiLUConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, padding: int, *maps: Tensor) -> Tensor:
        active, statistics = _side_by_side(maps)
        ctx.save_for_backward(weight, *maps, *statistics)
        ctx.padding, ctx.has_bias = padding, bias is not None
        return quick_convolution(active, weight, bias, padding, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        maps, statistics = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grad = grad.contiguous()
        of_maps, of_weight = [None] * len(maps), None
        if any(ctx.needs_input_grad[3:]):
            parts = input_gradient(grad, weight, ctx.padding, 1).split([x.shape[1] for x in maps], 1)
            of_maps = [_activation_gradient(*given) for given in zip(maps, statistics, parts, strict=True)]
        if ctx.needs_input_grad[0]:
            of_weight = weight_gradient(_side_by_side(maps)[0], grad, weight, ctx.padding, 1)
        return of_weight, grad.sum((0, 2, 3)) if ctx.has_bias else None, None, *of_maps


class _NormSiLUDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, statistics, weight = torch.empty_like(x), _statistics(x), weight.contiguous()
        team.run("norm_silu_depthwise", planes(x), x, weight, bias, statistics, y, *x.shape[1:])
        ctx.save_for_backward(x, statistics, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, statistics, weight = ctx.saved_tensors
        of_x, of_taps = torch.empty_like(x), x.new_empty(*x.shape[:2], weight[0].numel() + 1)
        arguments = (x, grad.contiguous(), weight, statistics, of_x, of_taps, *x.shape[1:])
        team.run("norm_silu_depthwise_gradient", planes(x), *arguments)
        of_taps = of_taps.sum(0)
        return of_x, of_taps[:, :-1].reshape(weight.shape), of_taps[:, -1]


class _NormSiLUGated(torch.autograd.Function):
    """The wide maps are made for a part of the batch at a time and used while they are in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *gate: Tensor) -> Tensor:
        y, statistics = x.new_empty(len(x), len(weight), *x.shape[2:]), _statistics(x)
        for seen, made, of_part in _parts(x, y, statistics):
            active, _ = _activated(seen, of_part)
            filters = _gated_filters(weight, of_part[..., 2], *gate)
            made.copy_(_product(active, filters, bias))
        ctx.save_for_backward(x, statistics, weight, *gate)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, statistics, *parameters = ctx.saved_tensors
        grad = grad.contiguous()
        weight, *gate = (p.detach().requires_grad_() for p in parameters)
        means = statistics[..., 2].clone().requires_grad_()
        with torch.enable_grad():
            filters = _gated_filters(weight, means, *gate)
        products = [torch.bmm(g.flatten(2), _activated(seen)[0].flatten(2).mT) for seen, g in _parts(x, grad)]
        of_means, of_weight, *of_gate = torch.autograd.grad(filters, (means, weight, *gate), torch.cat(products))
        of_x, through_means = torch.empty_like(x), of_means / plane_size(x)
        for seen, g, chosen, of_part, more, made in _parts(x, grad, filters.detach(), statistics, through_means, of_x):
            _activation_gradient(seen, of_part, _product(g, chosen.mT, None), more, made)
        return of_x, of_weight, grad.sum((0, 2, 3)), *of_gate


def _product(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution with filters (B, D, C) of every image."""
    if pointwise.is_quick_for(x, filters):
        return pointwise.product(x, filters, bias)
    if bias is None:
        return torch.bmm(filters, x.flatten(2)).unflatten(2, x.shape[2:])
    return torch.baddbmm(bias[:, None], filters, x.flatten(2)).unflatten(2, x.shape[2:])


def _gated_filters(
    weight: Tensor, means: Tensor, squeeze: Tensor, squeeze_bias: Tensor, excite: Tensor, excite_bias: Tensor
) -> Tensor:
    """The filters of a 1x1 convolution (D, C, 1, 1) times the gate of each image, (B, D, C)."""
    hidden = F.linear(means, squeeze, squeeze_bias).relu()
    return weight.flatten(1) * F.linear(hidden, excite, excite_bias).sigmoid()[:, None]


def _parts(x: Tensor, *others: Tensor) -> Any:
    """A batch cut into parts of which x has at most PART_BYTES, or one image."""
    images = max(1, PART_BYTES // (x.element_size() * x.shape[1] * plane_size(x)))
    return zip(*(t.split(images) for t in (x, *others)), strict=True)


def _statistics(x: Tensor) -> Tensor:
    """Where the kernels write three numbers a plane: its mean, 1 / standard deviation and the mean of the result."""
    return x.new_empty(*x.shape[:2], 3)


def _activated(x: Tensor, statistics: Tensor | None = None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """SiLU of the instance norm, and the statistics; written to those that are given.

    `out` may be some of the channels of a wider map.
    """
    y = torch.empty_like(x) if out is None else out
    statistics = _statistics(x) if statistics is None else statistics
    team.run("norm_silu", planes(x), x, y, y.stride(0), statistics, x.shape[1], plane_size(x))
    return y, statistics


def _side_by_side(maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """SiLU of the instance norm of all maps' channels behind each other, and the statistics of each map."""
    x = maps[0]
    widths = [x.shape[1] for x in maps]
    active = x.new_empty(len(x), sum(widths), *x.shape[2:])
    parts = zip(maps, active.split(widths, 1), strict=True)
    return active, [_activated(x, out=part)[1] for x, part in parts]


def _activation_gradient(
    x: Tensor, statistics: Tensor, grad: Tensor, more: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Gradient of x from that of SiLU of its instance norm, to which `more` (B, C) is added at every pixel.

    `grad` may be some of the channels of a wider map.
    """
    out = torch.empty_like(x) if out is None else out
    more = x.new_zeros(x.shape[:2]) if more is None else more
    grad = grad if grad[0].is_contiguous() else grad.contiguous()
    given = (x, grad, grad.stride(0), more, statistics, out, x.shape[1], plane_size(x))
    team.run("norm_silu_gradient", planes(x), *given)
    return out
