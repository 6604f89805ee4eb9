"""The depthwise filters of top-down cells, with norm and SiLU before them, are torch's of every size and width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.networks import blocks, fused

SIZES = [(1, 1), (3, 3), (6, 6), (12, 12), (24, 16), (8, 48), (9, 200), (70, 33), (5, 600)]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def depthwise(channels: int, seed: int = 0) -> nn.Conv2d:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(channels, channels, 5, padding=2, groups=channels)


def assert_is_torchs(height: int, width: int, seed: int) -> None:
    """Forward and every gradient, against float64."""
    filters, exact = depthwise(3, seed), depthwise(3, seed).double()
    x = (2 * noise(2, 3, height, width, seed=seed) + 1).requires_grad_()
    wide = x.detach().double().requires_grad_()
    got = fused.norm_silu_depthwise(x, filters)
    expected = exact(F.silu(F.group_norm(wide, 3)))
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    behind = noise(*got.shape, seed=seed + 1)
    mine = torch.autograd.grad(got, [x, *filters.parameters()], behind)
    theirs = torch.autograd.grad(expected, [wide, *exact.parameters()], behind.double())
    for g, e in zip(mine, theirs, strict=True):
        torch.testing.assert_close(g, e.float(), rtol=1e-4, atol=3e-6 * max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_filters_and_gradients_where_vectors_and_runs_end(size):
    assert_is_torchs(*size, seed=3)


@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 99))
def test_filters_and_gradients_of_any_size(height, width, seed):
    if height * width > 1:
        assert_is_torchs(height, width, seed)


@pytest.mark.parametrize("size", [(3, 3), (12, 12), (16, 40)], ids=str)
def test_filter_and_both_norms_in_one_go_are_the_pieces(size):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = blocks.TopDownCell(4, 6)
    x = noise(2, 24, *size)
    ends = (cell.gate.squeeze, cell.gate.excite, cell.project)
    with torch.no_grad():
        expected = fused.norm_silu_gated(fused.norm_silu_depthwise(x, cell.depthwise), *ends)
        got = fused.depthwise_gated_over(x, cell.depthwise, *ends)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_plane_takes_nothing_from_the_one_before_it():
    filters, x = depthwise(6), noise(1, 6, 11, 13)
    alone = [depthwise(6)(F.silu(F.group_norm(x, 6)))[:, c] for c in range(6)]
    got = fused.norm_silu_depthwise(x, filters)
    for c, plane in enumerate(alone):
        torch.testing.assert_close(got[:, c], plane, rtol=1e-5, atol=1e-5)
