"""Residual block of the image heads in few passes over memory, forward and backward, by `mhvae_kit.kernels`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mhvae_kit.kernels import BAND, OUTPUTS, team
from mhvae_kit.kernels.team import plane_size, planes

FEWER_THAN = 16  # channels, from which torch's convolutions are quicker


def is_quick_for(x: Tensor, convolution: nn.Conv2d) -> bool:
    """Whether `residual` can work on a map and is quicker than torch's operations."""
    return x.shape[1] < FEWER_THAN and min(x.shape[2:]) > 1 and team.apply_to(x, convolution.weight)


def residual(x: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """x + norm(second(relu(norm(first(x))))), both 3x3 and padded by reflection; (B, C, H, W) to the same shape."""
    return team.applied(_Residual, x.contiguous(), first.weight, first.bias, second.weight, second.bias)


class _Residual(torch.autograd.Function):
    """Keeps its input and what comes out of the convolutions; norm and ReLU are computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        y1 = _convolved(x, w1, b1)
        of_y1 = _statistics(y1)
        team.run("plane_statistics", planes(y1), y1, of_y1, plane_size(y1))
        y2 = _convolved(y1, w2, b2, of_y1)
        out, of_y2 = torch.empty_like(x), _statistics(y2)
        team.run("norm_onto", planes(y2), y2, x, of_y2, out, plane_size(y2))
        ctx.save_for_backward(x, y1, of_y1, y2, of_y2, w1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, y1, of_y1, y2, of_y2, w1, w2 = ctx.saved_tensors
        grad = grad.contiguous()
        grad_y2 = _norm_gradient(y2, grad, of_y2)
        grad_w2, grad_b2 = _parameter_gradients(y1, grad_y2, w2, of_y1)
        grad_y1 = _norm_gradient(y1, _input_gradient(grad_y2, w2), of_y1, relu=True)
        grad_w1, grad_b1 = _parameter_gradients(x, grad_y1, w1)
        return _input_gradient(grad_y1, w1, grad), grad_w1, grad_b1, grad_w2, grad_b2


def _statistics(x: Tensor) -> Tensor:
    """Where the kernels write mean and 1 / standard deviation of every plane."""
    return x.new_empty(*x.shape[:2], 2)


def _taps(weight: Tensor) -> Tensor:
    """Filters (D, C, 3, 3) as (groups, C, 3, 3, OUTPUTS), with zeros for outputs that the last group lacks."""
    n_out, n_in = weight.shape[:2]
    groups = -(-n_out // OUTPUTS)
    whole = weight.new_zeros(groups * OUTPUTS, n_in, 3, 3)
    whole[:n_out] = weight
    return whole.view(groups, OUTPUTS, n_in, 3, 3).permute(0, 2, 3, 4, 1).contiguous()


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor | None = None) -> Tensor:
    """Convolution, padded by reflection, of x, or with its statistics of ReLU of its instance norm."""
    n_out, taps = len(weight), _taps(weight)
    y = x.new_empty(len(x), n_out, *x.shape[2:])
    start = bias.new_zeros(len(taps) * OUTPUTS)
    start[:n_out] = bias
    bands = len(x) * -(-x.shape[2] // BAND)
    seen = x if statistics is None else statistics  # anything: it is not read without
    arguments = (x, taps, start, seen, int(statistics is not None), y, x.shape[1], n_out, *x.shape[2:])
    team.run("reflected_convolution", bands, *arguments)
    return y


def _norm_gradient(x: Tensor, grad: Tensor, statistics: Tensor, relu: bool = False) -> Tensor:
    """Gradient of x from that of its instance norm, or of ReLU of it."""
    out = torch.empty_like(x)
    team.run("norm_gradient", planes(x), x, grad, statistics, int(relu), out, plane_size(x))
    return out


def _parameter_gradients(
    x: Tensor, grad: Tensor, weight: Tensor, statistics: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the filters and the bias of `_convolved`."""
    n_out, n_in = weight.shape[:2]
    filters = x.new_empty(len(x), n_out, n_in, 3, 3)
    bias = x.new_empty(len(x), n_out)
    seen = x if statistics is None else statistics
    arguments = (x, grad, seen, int(statistics is not None), filters, bias, n_in, n_out, *x.shape[2:])
    team.run("reflected_convolution_taps", len(x), *arguments)
    return filters.sum(0), bias.sum(0)


def _input_gradient(grad: Tensor, weight: Tensor, start: Tensor | int = 0) -> Tensor:
    """The gradient of what `_convolved` convolves, plus `start`."""
    n_out, n_in = weight.shape[:2]
    flipped = _taps(weight.flip(2, 3).transpose(0, 1))
    out = grad.new_empty(len(grad), n_in, *grad.shape[2:])
    bands = len(grad) * -(-grad.shape[2] // BAND)
    team.run("reflected_convolution_input", bands, grad, flipped, start, out, n_out, n_in, *grad.shape[2:])
    return out
