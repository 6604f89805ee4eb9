"""Instance norm with SiLU, and a gated projection, give what torch's own pieces give, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mhvae_kit.networks.blocks import SqueezeExcitation
from mhvae_kit.networks.convolution import Conv2d
from mhvae_kit.networks.normalisation import norm_silu

SHAPES = {"several images": (3, 4, 6, 7), "one channel": (2, 1, 8, 8), "one image": (1, 5, 3, 9)}


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SHAPES)
def test_norm_silu_and_its_gradient_are_those_of_torch(name):
    x, weights = 3 * noise(*SHAPES[name]) + 2, noise(*SHAPES[name], seed=2)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    got, exact = norm_silu(a), F.silu(F.instance_norm(b))
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-5)
    (got * weights).sum().backward()
    (exact * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad.float(), rtol=1e-4, atol=1e-5)


def test_norm_silu_leaves_its_input_and_takes_other_layouts():
    x = noise(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    given = x.requires_grad_()
    norm_silu(given).sum().backward()
    assert torch.equal(given.detach(), before)
    plain = before.contiguous().requires_grad_()
    norm_silu(plain).sum().backward()
    torch.testing.assert_close(given.grad, plain.grad)


def test_norm_silu_keeps_its_input_alone_for_the_backward_pass():
    x, kept = noise(2, 4, 16, 16).requires_grad_(), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_silu(x)
    assert [t.data_ptr() for t in kept if t.numel() == x.numel()] == [x.data_ptr()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_projection_is_gate_then_projection(bias, layout):
    generator = torch.Generator().manual_seed(0)
    gate, projection = SqueezeExcitation(6), Conv2d(6, 3, 1, bias=bias)
    with torch.no_grad():
        for parameter in (*gate.parameters(), *projection.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    plain = nn.Conv2d(6, 3, 1, bias=bias).double()
    plain.load_state_dict(projection.state_dict())
    x = noise(4, 6, 5, 7).contiguous(memory_format=layout)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    got = gate.projected(a, projection)
    exact = plain(b * gate.factor(x).detach().double()[:, :, None, None])
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(gate.projected(x, projection), exact.float(), rtol=1e-5, atol=1e-5)
    weights = noise(*got.shape, seed=3)
    through_gate = torch.autograd.grad((projection(gate(a)) * weights).sum(), [a, *projection.parameters()])
    fused = torch.autograd.grad((got * weights).sum(), [a, *projection.parameters()])
    for mine, torchs in zip(fused, through_gate, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)
