"""The algebra of diagonal Gaussians, against hand values, torch.distributions and numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from mhvae_kit import Gaussian, kl_divergence, product_of_experts
from mhvae_kit.errors import InputError
from mhvae_kit.gaussian import kl_one_sample

FINITE = st.floats(-3, 3)


def gaussian(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[math.log(std)]], dtype=torch.float64))


def random_gaussian(seed: int, shape: tuple[int, ...] = (4, 3, 2, 2)) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(torch.randn(shape, generator=generator), 0.5 * torch.randn(shape, generator=generator))


def test_product_with_one_expert_by_hand():
    # precisions 1 and 4 add to 5: std 1 / sqrt(5) = 0.4472; mean (4 * 1) / 5
    product = product_of_experts(gaussian(0, 1), [gaussian(1, 0.5)])
    assert product.std.item() == pytest.approx(0.4472, abs=1e-4)
    assert product.mean.item() == pytest.approx(0.8)


def test_scale_rule_by_hand():
    # inverse stds 1 and 2 add to 3: std 1 / 3; mean (2 * 1) / 3
    product = product_of_experts(gaussian(0, 1), [gaussian(1, 0.5)], rule="scale")
    assert product.std.item() == pytest.approx(1 / 3)
    assert product.mean.item() == pytest.approx(2 / 3)


def test_product_is_the_normalised_product_of_densities():
    factors = [gaussian(0.3, 1.0), gaussian(-0.4, 0.7), gaussian(1.1, 0.4)]
    x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    density = torch.stack([g.log_prob(x[None])[0] for g in factors]).sum(0).exp()
    density /= torch.trapezoid(density, x)
    mean = torch.trapezoid(x * density, x)
    variance = torch.trapezoid((x - mean) ** 2 * density, x)
    product = product_of_experts(factors[0], factors[1:])
    assert product.mean.item() == pytest.approx(mean.item(), abs=1e-6)
    assert product.variance.item() == pytest.approx(variance.item(), abs=1e-6)


def test_no_expert_leaves_the_prior():
    prior = random_gaussian(0)
    assert product_of_experts(prior, []) is prior


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), rule=st.sampled_from(["precision", "scale"]), order=st.permutations([1, 2, 3]))
def test_order_of_experts_does_not_matter(seed, rule, order):
    prior, experts = random_gaussian(seed), {i: random_gaussian(seed + i) for i in (1, 2, 3)}
    straight = product_of_experts(prior, [experts[i] for i in (1, 2, 3)], rule)
    permuted = product_of_experts(prior, [experts[i] for i in order], rule)
    torch.testing.assert_close(straight.mean, permuted.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(straight.log_std, permuted.log_std, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_an_expert_never_widens(seed):
    prior, expert = random_gaussian(seed), random_gaussian(seed + 1)
    product = product_of_experts(prior, [expert])
    assert (product.log_std <= torch.minimum(prior.log_std, expert.log_std) + 1e-6).all()


def test_a_very_wide_expert_says_nothing():
    prior = random_gaussian(3)
    wide = Gaussian(torch.full_like(prior.mean, 5.0), torch.full_like(prior.mean, 10.0))
    product = product_of_experts(prior, [wide])
    torch.testing.assert_close(product.mean, prior.mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["precision", "scale"])
def test_a_silent_row_is_an_absent_factor_and_passes_no_gradient(rule):
    prior = Gaussian(torch.tensor([[0.5], [0.5]]), torch.tensor([[0.1], [0.1]]))
    mean, log_std = (torch.tensor([[v], [v]], requires_grad=True) for v in (2.0, -1.0))
    fused = product_of_experts(prior, [Gaussian(mean, log_std).where(torch.tensor([True, False]))], rule)
    assert fused.mean[1].item() == 0.5 and fused.log_std[1].item() == pytest.approx(0.1)
    assert fused.mean[0].item() > 1.0
    (fused.mean.sum() + fused.log_std.sum()).backward()
    for leaf in (mean, log_std):
        assert leaf.grad[0].item() != 0 and leaf.grad[1].item() == 0


def test_fusion_is_float32_for_half_precision_heads():
    prior = random_gaussian(0)
    half = Gaussian(prior.mean.bfloat16(), prior.log_std.bfloat16())
    assert product_of_experts(prior, [half]).mean.dtype == torch.float32


def test_mismatched_expert_is_named():
    with pytest.raises(InputError, match="expert 1 does not fit the prior"):
        product_of_experts(random_gaussian(0), [random_gaussian(1), random_gaussian(2, (4, 3, 1, 2))])


def test_unknown_rule_is_refused():
    with pytest.raises(InputError, match="unknown fusion rule"):
        product_of_experts(gaussian(0, 1), [], rule="variance")


def test_mean_and_log_std_must_agree_in_shape():
    with pytest.raises(InputError, match="differ in shape"):
        Gaussian(torch.zeros(2), torch.zeros(3))


@settings(deadline=None, max_examples=30)
@given(q_mean=FINITE, q_log_std=FINITE, p_mean=FINITE, p_log_std=FINITE)
def test_kl_agrees_with_torch_distributions(q_mean, q_log_std, p_mean, p_log_std):
    q, p = gaussian(q_mean, math.exp(q_log_std)), gaussian(p_mean, math.exp(p_log_std))
    expected = torch_kl(Normal(q.mean, q.std), Normal(p.mean, p.std)).item()
    assert kl_divergence(q, p).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_kl_of_equal_gaussians_is_zero():
    q = random_gaussian(5)
    assert (kl_divergence(q, q) == 0).all()


def test_kl_sums_over_all_but_the_batch():
    assert kl_divergence(random_gaussian(0), random_gaussian(1)).shape == (4,)


def test_one_sample_kl_has_the_closed_form_as_its_mean():
    q, p = random_gaussian(0, (1, 3)), random_gaussian(1, (1, 3))
    generator = torch.Generator().manual_seed(0)
    draws = [kl_one_sample(q, p, q.sample(torch.randn(1, 3, generator=generator))) for _ in range(4000)]
    estimates = torch.cat(draws)
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - kl_divergence(q, p)[0]) < 4 * error
    assert estimates.std() > 0


def test_temperature_scales_the_spread_and_zero_is_the_mean():
    q = random_gaussian(2)
    noise = torch.ones_like(q.mean)
    torch.testing.assert_close(q.sample(noise, 0.5), q.mean + 0.5 * q.std)
    assert q.sample(noise, 0) is q.mean


def test_chunks_are_equal_parts_of_the_batch():
    q = random_gaussian(2)
    parts = q.chunk(2)
    assert torch.equal(torch.cat([p.mean for p in parts]), q.mean)
    assert torch.equal(torch.cat([p.log_std for p in parts]), q.log_std)


def test_a_draw_at_a_temperature_for_each_row():
    q, noise = Gaussian(torch.zeros(2, 3), torch.zeros(2, 3)), torch.ones(2, 3)
    assert torch.equal(q.sample(noise, torch.tensor([0.0, 0.5])), torch.tensor([[0.0] * 3, [0.5] * 3]))


def test_one_that_is_repeated_stands_behind_itself():
    q = random_gaussian(0)
    twice = q.repeated(2)
    assert q.repeated(1) is q
    assert torch.equal(twice.mean, torch.cat((q.mean, q.mean))) and torch.equal(twice.log_std[: len(q.mean)], q.log_std)
