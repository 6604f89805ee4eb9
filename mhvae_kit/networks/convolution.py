"""Convolution whose backward pass is quick on CPUs: the same function as `nn.Conv2d`, by other kernels.

oneDNN's forward kernels are much faster than its backward ones for the few channels and small depthwise filters that
this model has at full resolution. The gradients are therefore written as what the library does well:

- the gradient of the input is a forward convolution of the output's gradient with the flipped filters;
- a convolution with fewer channels than the processor has lanes works on several pixels or images at once;
- a 1x1 convolution is a matrix product, forward and backward.

Without gradients, `mhvae_kit.networks.inference` says what is done instead. docs/performance.md has the figures.
Elsewhere (GPU, autocast, strides) `nn.Conv2d` does the work itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mhvae_kit.kernels import team
from mhvae_kit.networks import half_convolution, large_filters, pointwise, winograd
from mhvae_kit.networks.inference import LANES, is_channels_last, wide_convolution, without_gradients

FEW_VALUES = 20480  # of a single image, for which torch has kernels of its own, which take longer than oneDNN's
WIDE_FROM = 5  # size of a filter from which neighbouring pixels are computed as channels


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with the quick backward pass where it applies; parameters and results are the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if without_gradients(input):
            return self._without_gradients(input, weight, bias)
        if not self._has_quick_path(input):
            return super()._conv_forward(input, weight, bias)
        if self.kernel_size == (1, 1) and self.groups == 1:
            return pointwise_product(input, weight, bias)
        padding = self.padding[0]
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return _QuickBackward.apply(input, weight, bias, padding, self.groups)

    def _without_gradients(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The forward pass alone, whatever the precision."""
        if half_convolution.is_quick_for(self, weight, x):
            return half_convolution.convolution(self, weight, x).values
        size = self.kernel_size
        if size == (1, 1) and self._has_quick_path(x):
            return pointwise_product(x, weight, bias)
        if self.padding_mode == "zeros":
            if self._has_quick_path(x):
                return quick_convolution(x, weight, bias, self.padding[0], self.groups)
            return super()._conv_forward(x, weight, bias)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        if self._has_quick_path(x):
            return quick_convolution(x, weight, bias, 0, self.groups)
        if size[0] == size[1] >= WIDE_FROM and self.stride == self.dilation == (1, 1) and self.groups == 1:
            return wide_convolution(x, weight, bias)
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    def _has_quick_path(self, x: Tensor) -> bool:
        """Float32 on a CPU without autocast; stride and dilation 1, square filters no smaller than their padding."""
        size, padding = self.kernel_size, self.padding
        return (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and self.stride == self.dilation == (1, 1)
            and size[0] == size[1]
            and not isinstance(padding, str)
            and padding[0] == padding[1] < size[0]
            and self.groups in (1, self.in_channels)
        )


def pointwise_product(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor | None = None) -> Tensor:
    """A 1x1 convolution as a matrix product, of channels that are multiplied by a gate before.

    The gate goes into the filters, which are fewer numbers than the map; and a product image by image has a backward
    pass that copies nothing.

    Args:
        x: (B, C, H, W).
        weight: (D, C, 1, 1).
        bias: (D,) or None.
        gate: (B, C); None = 1.
    Returns:
        (B, D, H, W).
    """
    if gate is None and is_channels_last(x):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    filters = weight.flatten(1).expand(len(x), -1, -1) if gate is None else weight.flatten(1) * gate[:, None]
    if is_channels_last(x):
        y = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), filters.transpose(1, 2)).unflatten(1, x.shape[2:])
        return (y if bias is None else y + bias).permute(0, 3, 1, 2)
    if without_gradients(x) and pointwise.is_quick_for(x, filters):
        return pointwise.product(x, filters, bias)
    y = torch.bmm(filters, x.flatten(2)).unflatten(2, x.shape[2:])
    return y if bias is None else y + bias[:, None, None]


def quick_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """`F.conv2d` of stride 1, by the kernel that is quick for its number of channels; float32 on a CPU.

    oneDNN's kernels work on 16 output channels at once. A dense convolution with fewer computes either neighbouring
    pixels as channels (large filters), or two images as two groups of one.
    """
    if winograd.is_quick_for(x, weight, padding, groups):
        return winograd.convolution(x, weight, bias)
    n_out, n_in, size = weight.shape[:3]
    if groups == 1 and n_out < LANES and size >= WIDE_FROM:
        x = F.pad(x, (padding,) * 4) if padding else x
        if large_filters.is_quick_for(x, weight):
            return large_filters.convolution(x, weight, bias)
        return wide_convolution(x, weight, bias)
    if groups == 1 and 2 * max(n_out, n_in) <= LANES and len(x) % 2 == 0 and x.is_contiguous():
        pairs = x.view(len(x) // 2, 2 * n_in, *x.shape[2:])
        both = None if bias is None else bias.repeat(2)
        y = F.conv2d(pairs, weight.repeat(2, 1, 1, 1), both, padding=padding, groups=2)
        return y.view(len(x), n_out, *y.shape[2:])
    if groups == 1 and len(x) == 1 and x.numel() <= FEW_VALUES and min(n_in, n_out) >= LANES:
        return _by_onednn(x, weight, bias, padding)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """What torch would leave to kernels of its own, by oneDNN where it is there."""
    if not (torch.backends.mkldnn.is_available() and team.apply_to(x, weight)):
        return F.conv2d(x, weight, bias, padding=padding)
    sizes = ([padding] * 2, [1, 1], [1, 1])  # padding, stride and dilation
    return torch.ops.aten.mkldnn_convolution(x.contiguous(), weight.contiguous(), bias, *sizes, 1)


class _QuickBackward(torch.autograd.Function):
    """A convolution of stride 1 with zero padding, dense or depthwise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.groups, ctx.has_bias = padding, groups, bias is not None
        return quick_convolution(x, weight, bias, padding, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous()
        of_x = of_weight = of_bias = None
        if wants_x:
            of_x = input_gradient(grad, weight, ctx.padding, ctx.groups)
        if wants_weight:
            of_weight = weight_gradient(x, grad, weight, ctx.padding, ctx.groups)
        if ctx.has_bias and wants_bias:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def input_gradient(grad: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Gradient of a convolution's input: the output's gradient convolved with the flipped filters.

    Args:
        grad: Gradient of the output, (B, D, H', W').
        weight: (D, C / groups, K, K).
        padding: Zero padding of the forward convolution, at most K - 1.
        groups: 1, or C = D for a depthwise convolution.
    Returns:
        (B, C, H, W).
    """
    flipped = weight.flip(2, 3)
    filters = flipped if groups > 1 else flipped.transpose(0, 1)
    return quick_convolution(grad, filters, None, weight.shape[2] - 1 - padding, groups)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Gradient of a convolution's filters, (D, C / groups, K, K); arguments as in `input_gradient`, x the input."""
    if winograd.is_quick_for_gradient(x, weight, padding, groups):
        return winograd.weight_gradient(x, grad)
    if padding == 0 and groups == 1 and large_filters.is_quick_for_gradient(x, weight):
        return large_filters.weight_gradient(x, grad)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups, [False, True, False]
    )[1]
