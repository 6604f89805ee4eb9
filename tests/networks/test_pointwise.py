"""1x1 convolutions with filters of every image: products in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhvae_kit.kernels import team
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import pointwise
from mhvae_kit.networks.blocks import TopDownCell
from mhvae_kit.networks.convolution import Conv2d


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(
    batch=st.integers(1, 3),
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 6).map(lambda n: 4 * n),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    with_bias=st.booleans(),
)
def test_any_size_will_do(batch, n_in, n_out, height, width, with_bias):
    x, filters = noise(batch, n_in, height, width), noise(batch, n_out, n_in, seed=2)
    bias = noise(n_out, seed=3) if with_bias else None
    exact = torch.einsum("bdc,bchw->bdhw", filters.double(), x.double())
    exact = exact if bias is None else exact + bias.double()[:, None, None]
    made = pointwise.product(x, filters, bias)
    torch.testing.assert_close(made, exact.float(), rtol=1e-5, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("n_in", [100, 400, 1600])
def test_many_channels_are_taken_in_shorter_runs(n_in):
    x, filters = noise(1, n_in, 20, 33), noise(1, 8, n_in, seed=2)
    exact = torch.einsum("bdc,bchw->bdhw", filters.double(), x.double())
    made = pointwise.product(x, filters, None)
    torch.testing.assert_close(made, exact.float(), rtol=1e-5, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_and_the_batch_change_no_bit(threads):
    x, filters, before = noise(3, 10, 40, 30), noise(3, 8, 10, seed=2), torch.get_num_threads()
    expected = pointwise.product(x, filters, None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(pointwise.product(x, filters, None), expected)
        assert torch.equal(pointwise.product(x[1:2], filters[1:2], None)[0], expected[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("learning", [True, False])
def test_top_down_cells_go_this_way_where_it_is_quicker(monkeypatch, learning):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = TopDownCell(12, 6)
    x, taken, real = noise(2, 12, 96, 96), [], pointwise.product
    monkeypatch.setattr(pointwise, "product", lambda *a: taken.append(1) or real(*a))
    with torch.set_grad_enabled(learning):
        y = cell(x)
        assert taken
        with without_kernels():
            torch.testing.assert_close(cell(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lanes", "size", "n_in", "n_out", "is_quick"),
    [
        (8, 96, 72, 12, True),
        (8, 48, 72, 12, False),
        (8, 96, 48, 12, False),
        (16, 12, 72, 12, True),
        (16, 8, 72, 12, False),
        (16, 96, 8, 32, True),
        (16, 96, 8, 8, False),
        (16, 96, 72, 10, False),
    ],
)
def test_where_it_is_quicker_depends_on_sizes_and_the_processors_vectors(
    monkeypatch, lanes, size, n_in, n_out, is_quick
):
    monkeypatch.setattr(team, "lanes", lambda: lanes)
    assert pointwise.is_quick_for(torch.zeros(1, n_in, size, size), torch.zeros(1, n_out, n_in)) == is_quick
    with without_kernels():
        assert not pointwise.is_quick_for(torch.zeros(1, n_in, size, size), torch.zeros(1, n_out, n_in))


@pytest.mark.parametrize("learning", [True, False])
def test_a_convolution_of_the_model_goes_this_way_without_gradients(monkeypatch, learning):
    layer, x, taken, real = Conv2d(32, 16, 1), noise(2, 32, 24, 24), [], pointwise.product
    monkeypatch.setattr(team, "lanes", lambda: 16)
    monkeypatch.setattr(pointwise, "product", lambda *a: taken.append(1) or real(*a))
    with torch.set_grad_enabled(learning):
        made = layer(x)
        assert bool(taken) is not learning
        with without_kernels():
            torch.testing.assert_close(made, layer(x), rtol=1e-5, atol=1e-5)
