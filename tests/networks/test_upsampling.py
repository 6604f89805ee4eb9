"""Doubling a map is torch's bilinear interpolation, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mhvae_kit.kernels import team
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks.blocks import UpConvolution
from mhvae_kit.networks.upsampling import doubled


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_torch(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@given(height=st.integers(1, 40), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_any_size_and_its_gradient_are_those_of_torch_in_float64(height, width, seed):
    x = noise(2, 3, height, width, seed=seed).requires_grad_()
    exact = x.detach().double().requires_grad_()
    got, expected = doubled(x), by_torch(exact)
    behind = noise(*got.shape, seed=seed + 1)
    torch.testing.assert_close(got, expected.float(), rtol=1e-6, atol=1e-6)
    of_x, of_exact = torch.autograd.grad(got, x, behind)[0], torch.autograd.grad(expected, exact, behind.double())[0]
    torch.testing.assert_close(of_x, of_exact.float(), rtol=1e-5, atol=3e-6)


def test_four_pixels_by_hand():
    x = torch.tensor([[[[0.0, 4.0], [8.0, 16.0]]]])
    expected = [[0, 1, 3, 4], [2, 3.25, 5.75, 7], [6, 7.75, 11.25, 13], [8, 10, 14, 16]]
    assert torch.equal(doubled(x)[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("stored", [torch.channels_last, torch.contiguous_format])
def test_an_upward_convolution_takes_maps_however_they_are_stored(stored, monkeypatch):
    ran, real = [], team.run
    monkeypatch.setattr(team, "run", lambda name, *a: ran.append(name) or real(name, *a))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        up = UpConvolution(4, 6)
    x = noise(2, 4, 9, 12).contiguous(memory_format=stored)
    with torch.no_grad():
        got = up(x)
        assert "doubled" in ran
        with without_kernels():
            torch.testing.assert_close(got, up(x), rtol=1e-5, atol=1e-5)


def test_a_gradient_that_is_expanded_is_taken():
    x = noise(2, 3, 5, 6).requires_grad_()
    doubled(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))


def test_other_precisions_are_left_to_torch():
    x = noise(1, 2, 5, 6).double()
    assert torch.equal(doubled(x), by_torch(x))
