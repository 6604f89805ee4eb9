"""3x3 convolutions with fewer multiplications: those of a direct sum in float64, gradients too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from other_vectors import passed_with_other_width
from torch import Tensor
from torch.nn import functional as F

from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import winograd
from mhvae_kit.networks.convolution import Conv2d

SHAPES = {  # batch, channels in, channels out, height, width
    "rows of whole vectors": (1, 16, 12, 48, 96),
    "rows longer than the tiles taken at once": (1, 8, 8, 4, 400),
    "rows shorter than a vector": (3, 8, 8, 34, 10),
    "tiles that end within a row": (2, 10, 16, 26, 22),
    "tiles of several images": (5, 24, 32, 14, 12),
    "many channels": (1, 64, 96, 24, 24),
    "outputs in several parts": (1, 8, 256, 24, 24),
}
LARGE_SHAPES = {  # of tiles of 4 x 4 pixels
    "rows of whole vectors": (1, 16, 12, 48, 192),
    "rows longer than the tiles taken at once": (1, 8, 8, 4, 800),
    "rows of a single tile": (2, 8, 8, 36, 4),
    "rows shorter than a vector": (3, 8, 8, 36, 12),
    "tiles that end within a row": (2, 10, 16, 28, 80),
    "tiles of several images": (5, 24, 32, 16, 12),
    "many channels": (1, 64, 96, 96, 96),
    "channels that are no multiple of those taken at once": (1, 14, 8, 8, 40),
    "outputs in several parts": (1, 8, 256, 24, 24),
}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def direct_gradient(x: Tensor, grad: Tensor) -> Tensor:
    weight = x.new_zeros(grad.shape[1], x.shape[1], 3, 3, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, grad)[0]


def assert_close(got: Tensor, exact: Tensor, error: float = 2e-6) -> None:
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=error * float(exact.abs().max()))


def case(batch: int, n_in: int, n_out: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A map, filters, a bias, and the convolution without the bias in float64."""
    x, weight, bias = noise(batch, n_in, height, width), noise(n_out, n_in, 3, 3, seed=2), noise(n_out, seed=3)
    return x, weight, bias, F.conv2d(x.double(), weight.double(), padding=1)


def assert_is_direct_sum(x: Tensor, weight: Tensor, bias: Tensor, exact: Tensor, error: float = 2e-6) -> None:
    assert_close(winograd.convolution(x, weight, bias), exact + bias.double()[:, None, None], error)
    assert_close(winograd.convolution(x, weight, None), exact, error)


@pytest.fixture
def large_tiles(monkeypatch):
    monkeypatch.setattr(winograd, "has_large_tiles", lambda x: True)


@pytest.mark.parametrize("name", SHAPES)
def test_a_convolution_and_the_gradient_of_its_filters_are_direct_sums(name):
    x, weight, bias, exact = case(*SHAPES[name])
    assert_is_direct_sum(x, weight, bias, exact)
    grad = noise(*exact.shape, seed=4)
    assert_close(winograd.weight_gradient(x, grad), direct_gradient(x.double(), grad.double()))


@pytest.mark.parametrize("name", LARGE_SHAPES)
def test_a_convolution_by_large_tiles_is_a_direct_sum(name, large_tiles):
    assert_is_direct_sum(*case(*LARGE_SHAPES[name]), error=6e-6)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    n_in=st.integers(2, 9).map(lambda n: 2 * n),
    n_out=st.integers(1, 10).map(lambda n: 4 * n),
    height=st.integers(1, 8).map(lambda n: 4 * n),
    width=st.integers(1, 30).map(lambda n: 4 * n),
)
def test_large_tiles_take_any_size_that_four_divides(batch, n_in, n_out, height, width):
    x, weight, _, exact = case(batch, n_in, n_out, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "has_large_tiles", lambda x: True)
        assert_close(winograd.convolution(x, weight, None), exact, error=6e-6)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    n_in=st.integers(1, 9).map(lambda n: 2 * n),
    n_out=st.integers(1, 10).map(lambda n: 4 * n),
    height=st.integers(1, 12).map(lambda n: 2 * n),
    width=st.integers(1, 40).map(lambda n: 2 * n),
)
def test_any_even_size_will_do(batch, n_in, n_out, height, width):
    x, weight, _, exact = case(batch, n_in, n_out, height, width)
    assert_close(winograd.convolution(x, weight, None), exact)
    grad = noise(*exact.shape, seed=4)
    assert_close(winograd.weight_gradient(x, grad), direct_gradient(x.double(), grad.double()))


@pytest.mark.parametrize(
    ("channels", "size", "error"),
    # A direct sum has 2.2e-7 or, where vectors are of 8 values and sums longer, up to 6e-7.
    [(64, 48, 3e-7), (128, 24, 4e-7), (16, 192, 6e-7), (64, 96, 9e-7)],
)
def test_errors_are_about_those_of_a_direct_sum(channels, size, error):
    x, weight = noise(1, channels, size, size), noise(channels, channels, 3, 3, seed=2)
    assert winograd.has_large_tiles(x) == (size >= 96)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    mean = exact.square().mean().sqrt()
    assert (winograd.convolution(x, weight, None) - exact).square().mean().sqrt() <= error * mean
    assert (F.conv2d(x, weight, padding=1) - exact).square().mean().sqrt() <= 7e-7 * mean


@pytest.mark.parametrize(
    ("channels", "height", "width", "is_large"),
    [
        (16, 96, 96, True),
        (16, 192, 192, True),
        (16, 98, 96, False),
        (16, 96, 98, False),
        (16, 48, 48, False),
        (256, 96, 96, False),
        (16, 1536, 8, False),
    ],
)
def test_large_tiles_are_taken_by_the_size_of_an_image(channels, height, width, is_large):
    assert all(winograd.has_large_tiles(torch.zeros(b, channels, height, width)) == is_large for b in (1, 3))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    x, weight, grad = noise(2, 8, 34, 26), noise(256, 8, 3, 3, seed=2), noise(2, 256, 34, 26, seed=4)
    expected, before = (
        (winograd.convolution(x, weight, None), winograd.weight_gradient(x, grad)),
        torch.get_num_threads(),
    )
    try:
        torch.set_num_threads(threads)
        assert torch.equal(winograd.convolution(x, weight, None), expected[0])
        assert torch.equal(winograd.weight_gradient(x, grad), expected[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit_of_large_tiles(threads, large_tiles):
    x, weight, before = noise(2, 8, 36, 48), noise(256, 8, 3, 3, seed=2), torch.get_num_threads()
    expected = winograd.convolution(x, weight, None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(winograd.convolution(x, weight, None), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [24, 26, 96])
def test_an_image_is_convolved_alike_alone_and_in_a_batch(size):
    x, weight = noise(5, 8, size, size), noise(8, 8, 3, 3, seed=2)
    together = winograd.convolution(x, weight, None)
    assert all(torch.equal(winograd.convolution(x[i : i + 1], weight, None)[0], together[i]) for i in range(5))


def test_what_is_not_a_number_stays_so_where_a_direct_sum_has_it_and_reaches_no_other_image():
    x, weight = noise(2, 8, 24, 24), noise(8, 8, 3, 3, seed=2)
    x[0, 3, 7, 9] = torch.nan
    y = winograd.convolution(x, weight, None)
    assert y.isnan()[F.conv2d(x, weight, padding=1).isnan()].all() and not y[1].isnan().any()
    assert winograd.weight_gradient(x, noise(2, 8, 24, 24, seed=4))[:, 3].isnan().all()


@pytest.mark.parametrize("size", [12, 26, 96])
def test_what_lies_around_a_map_in_memory_is_not_used(size):
    x, grad = noise(4, 8, size, size), noise(4, 8, size, size, seed=4)
    x[[0, 3]] = grad[[0, 3]] = torch.nan
    assert not winograd.convolution(x[1:3], noise(8, 8, 3, 3, seed=2), None).isnan().any()
    assert not winograd.weight_gradient(x[1:3], grad[1:3]).isnan().any()


def test_by_large_tiles_what_is_not_a_number_reaches_no_tile_that_does_not_see_it(large_tiles):
    x, weight = noise(2, 8, 24, 24), noise(8, 8, 3, 3, seed=2)
    x[0, 3, 7, 9] = torch.nan
    y = winograd.convolution(x, weight, None)
    assert y.isnan()[F.conv2d(x, weight, padding=1).isnan()].all() and not y[1].isnan().any()
    assert not y[0, :, 12:].isnan().any() and not y[0, :, :, 16:].isnan().any()


def test_other_layouts_are_taken():
    x, weight, grad = noise(2, 8, 24, 24), noise(8, 8, 3, 3, seed=2), noise(2, 8, 24, 24, seed=4)
    as_last = [t.contiguous(memory_format=torch.channels_last) for t in (x, weight, grad)]
    assert torch.equal(winograd.convolution(*as_last[:2], None), winograd.convolution(x, weight, None))
    assert torch.equal(winograd.weight_gradient(as_last[0], as_last[2]), winograd.weight_gradient(x, grad))


@pytest.mark.parametrize(
    ("change", "is_quick"),
    [
        ({}, True),
        ({"height": 25}, False),
        ({"width": 25}, False),
        ({"height": 8, "width": 8}, False),
        ({"height": 12, "width": 12}, False),
        ({"height": 12, "width": 12, "batch": 4}, True),
        ({"n_in": 4}, False),
        ({"n_out": 10}, False),
        ({"kernel": 5, "padding": 2}, False),
        ({"padding": 0}, False),
        ({"stride": 2}, False),
        ({"padding_mode": "reflect"}, False),
    ],
)
@pytest.mark.parametrize("learning", [True, False])
def test_convolutions_of_the_model_go_this_way_where_it_is_quicker(monkeypatch, change, is_quick, learning):
    given_size = {"batch": 1, "n_in": 8, "n_out": 8, "height": 24, "width": 24, "kernel": 3, "padding": 1, **change}
    batch, n_in, n_out, height, width, kernel, padding = (given_size.pop(k) for k in list(given_size)[:7])
    layer = Conv2d(n_in, n_out, kernel, padding=padding, **given_size)
    x, taken, real = noise(batch, n_in, height, width), [], winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda *a: taken.append(1) or real(*a))
    with torch.set_grad_enabled(learning):
        y = layer(x)
        assert bool(taken) == is_quick
        with without_kernels():
            torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)
    assert len(taken) == is_quick


def test_vectors_of_the_other_width_compute_the_same(tmp_path):
    tests = "direct_sum or any_even_size or any_size or threads or about"
    assert "29 passed" in passed_with_other_width([__file__], tests, tmp_path)
