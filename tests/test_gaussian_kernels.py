"""What the compiled kernels make of Gaussians is what torch's own operations make in float64, gradients too."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mhvae_kit import gaussian_kernels
from mhvae_kit.gaussian import Gaussian, kl_divergence, kl_one_sample, product_of_experts
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks.blocks import soft_clamped_halves

SHAPE = (3, 4, 40, 38)  # more values an image than a thread takes at once, and no multiple of it


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def heads(n: int, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """Means and log-stds of so many Gaussians, stacked along the channels, as networks give them."""
    return [1.5 * noise(shape[0], 2 * shape[1], *shape[2:], seed=i) for i in range(n)]


def gaussians(stacked: list[Tensor]) -> list[Gaussian]:
    return [Gaussian(*head.chunk(2, 1)) for head in stacked]


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    return torch.cat(soft_clamped_halves(x, limit), 1)


def with_gradients(function: Callable[..., list[Tensor]], given: list[Tensor]) -> list[Tensor]:
    """What a function gives, and the gradients of a weighted sum of it."""
    given = [x.detach().clone().requires_grad_() for x in given]
    made = function(*given)
    loss = sum((y * noise(*y.shape, seed=9 + i).to(y.dtype)).sum() for i, y in enumerate(made))
    return [*(y.detach() for y in made), *torch.autograd.grad(loss, given)]


def assert_as_in_float64(function: Callable[..., list[Tensor]], given: list[Tensor]) -> None:
    exact = with_gradients(function, [x.double() for x in given])
    for mine, expected in zip(with_gradients(function, given), exact, strict=True):
        torch.testing.assert_close(mine, expected.float(), rtol=2e-5, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("rule", ["precision", "scale"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_product(rule, n):
    def fused(*stacked: Tensor) -> list[Tensor]:
        prior, *experts = gaussians(list(stacked))
        product = product_of_experts(prior, experts, rule)
        return [product.mean, product.log_std]

    assert_as_in_float64(fused, heads(n + 1))


def test_a_divergence():
    assert_as_in_float64(lambda *stacked: [kl_divergence(*gaussians(list(stacked)))], heads(2))


def test_a_divergence_from_one_draw():
    def estimate(q: Tensor, p: Tensor, value: Tensor) -> list[Tensor]:
        return [kl_one_sample(*gaussians([q, p]), value)]

    assert_as_in_float64(estimate, [*heads(2), noise(*SHAPE, seed=5)])


def test_gradients_of_one_draws_divergence_go_through_the_draw():
    def estimate(q_head: Tensor, p_head: Tensor, by: Tensor) -> list[Tensor]:
        q, p = gaussians([q_head, p_head])
        return [kl_one_sample(q, p, q.sample(by))]

    assert_as_in_float64(estimate, [*heads(2), noise(*SHAPE, seed=5)])


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_draw(temperature):
    def drawn(head: Tensor, by: Tensor) -> list[Tensor]:
        return [gaussians([head])[0].sample(by, temperature)]

    assert_as_in_float64(drawn, [*heads(1), noise(*SHAPE, seed=5)])


def test_a_draw_at_a_temperature_for_each_row():
    by_row = torch.tensor([0.0, 0.3, 1.0])

    def drawn(head: Tensor, by: Tensor) -> list[Tensor]:
        return [gaussians([head])[0].sample(by, by_row.to(by.dtype))]

    assert_as_in_float64(drawn, [*heads(1), noise(*SHAPE, seed=5)])
    (q,), by = gaussians(heads(1)), noise(*SHAPE, seed=5)
    for i, temperature in enumerate(by_row.tolist()):
        assert torch.equal(q.sample(by, by_row)[i], q.sample(by, temperature)[i])


@pytest.mark.parametrize("limit", [0.5, 10.0])
def test_a_soft_clamp(limit):
    assert_as_in_float64(lambda x: [soft_clamp(x, limit)], [3 * noise(*SHAPE)])


def test_halves_of_a_soft_clamp():
    assert_as_in_float64(lambda x: list(soft_clamped_halves(x, 10.0)), [3 * noise(*SHAPE)])


def test_a_half_of_a_soft_clamp_that_nothing_uses_has_no_gradient():
    x = noise(*SHAPE).requires_grad_()
    soft_clamped_halves(x, 10.0)[1].sum().backward()
    assert not x.grad[:, : SHAPE[1] // 2].any() and x.grad[:, SHAPE[1] // 2 :].all()


def test_small_values_keep_their_digits_in_a_soft_clamp():
    x = 1e-4 * noise(*SHAPE)
    torch.testing.assert_close(soft_clamp(x, 10.0), (10 * (x.double() / 10).tanh()).float(), rtol=5e-7, atol=0)


@settings(max_examples=15)
@given(st.permutations(range(3)), st.floats(-9, 9), st.sampled_from(["precision", "scale"]))
def test_the_order_of_experts_does_not_matter(order, spread, rule):
    prior, *experts = gaussians(heads(4))
    experts = [Gaussian(e.mean, e.log_std + spread * i) for i, e in enumerate(experts)]
    one, other = (product_of_experts(prior, e, rule) for e in (experts, [experts[i] for i in order]))
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.log_std, other.log_std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["precision", "scale"])
def test_a_silent_row_is_an_absent_factor_and_passes_no_gradient(rule):
    prior, expert = heads(2)
    expert.requires_grad_()
    speaks = torch.tensor([True, False, True])
    fused = product_of_experts(gaussians([prior])[0], [gaussians([expert])[0].where(speaks)], rule)
    torch.testing.assert_close(torch.cat((fused.mean, fused.log_std), 1)[1], prior[1], rtol=1e-6, atol=1e-6)
    (fused.mean.sum() + fused.log_std.sum()).backward()
    assert not expert.grad[1].any() and expert.grad[0].any()


def test_a_divergence_from_itself_is_nothing():
    q = gaussians(heads(1))[0]
    assert kl_divergence(q, q).abs().max() < 1e-3 * SHAPE[1] * SHAPE[2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_mended(bad):
    x, y = heads(2)
    x[0, 0, 3, 3] = bad
    (p, q), by = gaussians([x, y]), noise(*SHAPE, seed=5)
    assert not product_of_experts(p, [q]).mean[0, 0, 3, 3].isfinite()
    assert not kl_divergence(p, q)[0].isfinite() and kl_divergence(p, q)[1:].isfinite().all()
    assert not p.sample(by)[0, 0, 3, 3].isfinite()
    x[0, 0, 3, 3], x[0, SHAPE[1], 3, 3] = 0.0, math.nan
    assert product_of_experts(p, [q]).log_std[0, 0, 3, 3].isnan() and p.sample(by)[0, 0, 3, 3].isnan()
    assert soft_clamp(x, 10.0)[0, SHAPE[1], 3, 3].isnan()


def test_kernels_are_for_large_float32_tensors_of_one_shape_alone():
    x = noise(*SHAPE)
    assert gaussian_kernels.is_quick_for(x, x)
    assert not gaussian_kernels.is_quick_for(x, x.double()) and not gaussian_kernels.is_quick_for(x, x[:1])
    assert not gaussian_kernels.is_quick_for(x[0, 0, :1]) and not gaussian_kernels.is_quick_for(x.flatten())
    with without_kernels():
        assert not gaussian_kernels.is_quick_for(x)
