"""7x7 convolutions of few channels and the gradient of their filters: torch's in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from other_vectors import passed_with_other_width
from torch import Tensor
from torch.nn import functional as F

from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import large_filters
from mhvae_kit.networks.blocks import ImageHead
from mhvae_kit.networks.convolution import Conv2d


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient_in_float64(x: Tensor, grad: Tensor) -> Tensor:
    weight = torch.zeros(grad.shape[1], x.shape[1], 7, 7, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x.double(), weight), weight, grad.double())[0]


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    n_in=st.integers(1, 9),
    n_out=st.sampled_from([1, 4, 8, 12]),
    height=st.integers(1, 5).map(lambda n: 4 * n),
    width=st.integers(48, 110),
    with_bias=st.booleans(),
)
def test_any_size_that_it_admits_will_do(batch, n_in, n_out, height, width, with_bias):
    x, weight = noise(batch, n_in, height + 6, width + 6), noise(n_out, n_in, 7, 7, seed=2)
    bias = noise(n_out, seed=3) if with_bias else None
    assert large_filters.is_quick_for(x, weight)
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double()).float()
    torch.testing.assert_close(large_filters.convolution(x, weight, bias), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("height", [1, 5, 18])
def test_channels_side_by_side_need_no_multiple_of_rows(height):
    x, weight = noise(2, 3, height + 6, 60), noise(4, 3, 7, 7, seed=2)
    exact = F.conv2d(x.double(), weight.double()).float()
    torch.testing.assert_close(large_filters.convolution(x, weight, None), exact, rtol=1e-5, atol=1e-4)


@settings(max_examples=30)
@given(
    batch=st.integers(1, 3),
    n_in=st.integers(1, 5),
    n_out=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 4).map(lambda n: 16 * n),
)
def test_the_gradient_of_any_filters_is_that_of_torch(batch, n_in, n_out, height, width):
    x, grad = noise(batch, n_in, height + 6, width + 6), noise(batch, n_out, height, width, seed=2)
    exact, made = gradient_in_float64(x, grad), large_filters.weight_gradient(x, grad)
    torch.testing.assert_close(made, exact.float(), rtol=1e-5, atol=1e-6 * float(exact.abs().max() + height * width))


def test_what_it_does_not_admit():
    filters = noise(4, 3, 7, 7)
    assert large_filters.is_quick_for(noise(1, 3, 20, 54), filters)
    assert not large_filters.is_quick_for(noise(1, 3, 20, 53), filters)  # narrower than the widest vectors
    assert not large_filters.is_quick_for(noise(1, 3, 20, 54), noise(6, 3, 7, 7))
    assert not large_filters.is_quick_for(noise(1, 3, 21, 54), noise(1, 3, 7, 7))  # 15 rows
    assert not large_filters.is_quick_for(noise(1, 3, 20, 54), noise(4, 3, 5, 5))
    assert not large_filters.is_quick_for(noise(1, 16, 20, 54), noise(4, 16, 7, 7))
    assert not large_filters.is_quick_for(noise(1, 3, 20, 54).double(), filters.double())
    assert large_filters.is_quick_for_gradient(noise(1, 3, 9, 38), filters)
    assert not large_filters.is_quick_for_gradient(noise(1, 3, 9, 40), filters)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_and_the_batch_change_no_bit(threads):
    x, weight, grad = noise(3, 4, 26, 70), noise(4, 4, 7, 7, seed=2), noise(3, 4, 20, 64, seed=3)
    expected, of_weight = large_filters.convolution(x, weight, None), large_filters.weight_gradient(x, grad)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(large_filters.convolution(x, weight, None), expected)
        assert torch.equal(large_filters.convolution(x[1:2], weight, None)[0], expected[1])
        assert torch.equal(large_filters.weight_gradient(x, grad), of_weight)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("n_out", "rows"), [(4, (7, 14)), (1, (4, 16))])
def test_what_is_no_number_stays_none(n_out, rows):
    x, weight = noise(1, 2, 26, 70), noise(n_out, 2, 7, 7, seed=2)
    x[0, 1, 13, 30] = torch.nan
    missing = torch.zeros(20, 64, dtype=torch.bool)
    missing[slice(*rows), 24:31] = True  # of a single channel, the four rows that are computed together
    for channel in large_filters.convolution(x, weight, None)[0]:
        assert torch.equal(channel.isnan(), missing)


@pytest.mark.parametrize(("n_out", "mode"), [(4, "reflect"), (1, "reflect"), (4, "zeros")])
def test_convolutions_go_this_way_forward_and_backward(monkeypatch, n_out, mode):
    taken, forward, backward = [], large_filters.convolution, large_filters.weight_gradient
    monkeypatch.setattr(large_filters, "convolution", lambda *a: taken.append("forward") or forward(*a))
    monkeypatch.setattr(large_filters, "weight_gradient", lambda *a: taken.append("backward") or backward(*a))
    convolution = Conv2d(4, n_out, 7, padding=3, padding_mode=mode)
    with torch.no_grad():
        for seed, parameter in enumerate(convolution.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed))

    def all_gradients() -> list[Tensor]:
        x = noise(2, 4, 20, 64).requires_grad_()
        y = convolution(x)
        return [y, *torch.autograd.grad((y * noise(*y.shape, seed=5)).sum(), (x, *convolution.parameters()))]

    made = all_gradients()
    assert taken == ["forward", "forward", *(["backward"] if mode == "reflect" else [])]
    with without_kernels():
        for mine, of_torch in zip(made, all_gradients(), strict=True):
            torch.testing.assert_close(mine, of_torch, rtol=1e-4, atol=2e-5 * float(of_torch.detach().abs().max()))


def test_an_image_head_goes_this_way_without_gradients(monkeypatch):
    taken, real = [], large_filters.convolution
    monkeypatch.setattr(large_filters, "convolution", lambda *a: taken.append(1) or real(*a))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = ImageHead(8, 1)
    x = noise(2, 8, 48, 64)
    with torch.no_grad():
        y = head(x)
        assert len(taken) == 2
        with without_kernels():
            torch.testing.assert_close(head(x), y, rtol=1e-4, atol=1e-5)


def test_vectors_of_the_other_width_compute_the_same_here_and_in_other_kernels_for_float32(tmp_path):
    names = ("test_fused.py", "test_depthwise.py", "test_upsampling.py", "../test_normals.py")
    files = [__file__, *(str(Path(__file__).parent / name) for name in names)]
    heads = "admits_will or filters_is_that or threads_and or (residual and (float64 or any_size))"
    chosen = f"{heads} or filters_and_gradients or size_and_its or of_any_number"
    assert "25 passed" in passed_with_other_width(files, chosen, tmp_path)
