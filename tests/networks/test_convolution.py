"""The quick convolution gives what `nn.Conv2d` gives, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mhvae_kit.networks.convolution import Conv2d

CASES = {
    "dense 3x3": ((3, 4, 9, 10), {"out_channels": 6, "kernel_size": 3, "padding": 1}),
    "dense 7x7, reflected": (
        (2, 3, 9, 10),
        {"out_channels": 1, "kernel_size": 7, "padding": 3, "padding_mode": "reflect"},
    ),
    "dense 3x3, pairs of images": ((4, 4, 7, 6), {"out_channels": 3, "kernel_size": 3, "padding": 1}),
    "dense 7x7, pixels as channels": ((2, 3, 9, 16), {"out_channels": 4, "kernel_size": 7, "padding": 3}),
    "dense 3x3, many channels": ((4, 20, 6, 6), {"out_channels": 17, "kernel_size": 3, "padding": 1}),
    "dense 3x3, a single image of few values": ((1, 20, 6, 7), {"out_channels": 17, "kernel_size": 3, "padding": 1}),
    "dense 3x3, no bias": ((2, 4, 6, 6), {"out_channels": 4, "kernel_size": 3, "padding": 1, "bias": False}),
    "depthwise 5x5": ((5, 6, 8, 7), {"out_channels": 6, "kernel_size": 5, "padding": 2, "groups": 6}),
    "depthwise 5x5, small map": ((2, 4, 3, 3), {"out_channels": 4, "kernel_size": 5, "padding": 2, "groups": 4}),
    "depthwise 5x5, many channels": ((3, 20, 6, 7), {"out_channels": 20, "kernel_size": 5, "padding": 2, "groups": 20}),
    "depthwise 3x3": ((2, 4, 6, 5), {"out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 4}),
    "1x1": ((3, 5, 6, 7), {"out_channels": 2, "kernel_size": 1}),
    "1x1, no bias": ((3, 5, 6, 7), {"out_channels": 2, "kernel_size": 1, "bias": False}),
    "strided": ((2, 3, 8, 8), {"out_channels": 4, "kernel_size": 3, "padding": 1, "stride": 2}),
    "grouped": ((2, 4, 6, 6), {"out_channels": 8, "kernel_size": 3, "padding": 1, "groups": 2}),
}


def both(name: str) -> tuple[torch.Tensor, Conv2d, nn.Conv2d]:
    """Input, the quick convolution, and torch's own in float64 with the same parameters."""
    shape, options = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    quick = Conv2d(shape[1], **options)
    with torch.no_grad():
        for parameter in quick.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    plain = nn.Conv2d(shape[1], **options).double()
    plain.load_state_dict(quick.state_dict())
    return torch.randn(shape, generator=generator), quick, plain


@pytest.mark.parametrize("name", CASES)
def test_output_is_that_of_torch(name):
    x, quick, plain = both(name)
    torch.testing.assert_close(quick(x), plain(x.double()).float(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), plain(x.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_torch(name):
    x, quick, plain = both(name)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    weights = torch.randn(quick(x).shape, generator=torch.Generator().manual_seed(1))
    (quick(a) * weights).sum().backward()
    (plain(b) * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad.float(), rtol=1e-5, atol=1e-4)
    for got, expected in zip(quick.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad.float(), rtol=1e-5, atol=1e-4)


def test_frozen_filters_get_no_gradient_and_pass_one_on():
    x, quick, _ = both("dense 3x3")
    quick.requires_grad_(False)
    x.requires_grad_()
    quick(x).sum().backward()
    assert x.grad is not None and quick.weight.grad is None and quick.bias.grad is None


def test_autocast_is_left_to_torch():
    x, quick, _ = both("dense 3x3")
    with torch.autocast("cpu", torch.bfloat16):
        assert quick(x).dtype == torch.bfloat16
