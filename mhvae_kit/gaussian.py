"""Diagonal Gaussians, their product and their divergence: the algebra that every latent level uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mhvae_kit import gaussian_kernels
from mhvae_kit.errors import InputError, explain

FusionRule = Literal["precision", "scale"]


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian N(mean, exp(log_std)^2), one independent component per element.

    Args:
        mean: Any shape, usually (B, C, H, W), or (B, D) at the coarsest level.
        log_std: Natural logarithm of the standard deviation, same shape as `mean`.
    """

    mean: Tensor
    log_std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.log_std.shape:
            raise InputError(
                explain(
                    "a Gaussian's mean and log_std differ in shape",
                    got=f"{tuple(self.mean.shape)} and {tuple(self.log_std.shape)}",
                    expected="one shape for both",
                )
            )

    @classmethod
    def standard(cls, shape: Sequence[int], like: Tensor) -> Gaussian:
        """N(0, 1) of the given shape, on the device of `like`, always float32."""
        zeros = torch.zeros(tuple(shape), device=like.device, dtype=torch.float32)
        return cls(zeros, zeros)

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return self.log_std.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, the square of `std`."""
        return (2 * self.log_std).exp()

    @property
    def precision(self) -> Tensor:
        """1 / variance."""
        return (-2 * self.log_std).exp()

    def sample(self, noise: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """mean + temperature * std * noise: reparametrised, with standard-normal `noise` given by the caller.

        `temperature` is one number, or a tensor (B,) of one for each row of the batch.
        """
        if not isinstance(temperature, Tensor) and temperature == 0:
            return self.mean
        if gaussian_kernels.is_quick_for(self.mean, self.log_std, noise):
            return gaussian_kernels.draw(self.mean, self.log_std, noise, temperature)
        if isinstance(temperature, Tensor):
            temperature = temperature.view(-1, *(1 for _ in self.mean.shape[1:]))
        return self.mean + temperature * self.std * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value` in nats, per element (not summed)."""
        return (
            -0.5 * ((value - self.mean) * (-self.log_std).exp()).square() - self.log_std - 0.5 * math.log(2 * math.pi)
        )

    def chunk(self, chunks: int) -> list[Gaussian]:
        """Split along the batch axis into `chunks` equal parts (views)."""
        pairs = zip(self.mean.chunk(chunks), self.log_std.chunk(chunks), strict=True)
        return [Gaussian(mean, log_std) for mean, log_std in pairs]

    def repeated(self, times: int) -> Gaussian:
        """So many of it along the batch axis."""
        if times == 1:
            return self
        ones = [1] * (self.mean.ndim - 1)
        return Gaussian(*(part.repeat(times, *ones) for part in (self.mean, self.log_std)))

    def where(self, speaks: Tensor) -> Gaussian:
        """This Gaussian in the rows where `speaks` holds, and one of infinite width in the others.

        The latter has precision 0: as a factor of a product it is as good as absent, and no gradient passes it.

        Args:
            speaks: Bool (B,), one entry a row of the batch.
        """
        rows = speaks.view(-1, *(1 for _ in self.mean.shape[1:]))
        zero, infinite = self.mean.new_zeros(()), self.log_std.new_full((), math.inf)
        return Gaussian(torch.where(rows, self.mean, zero), torch.where(rows, self.log_std, infinite))


def product_of_experts(prior: Gaussian, experts: Sequence[Gaussian], rule: FusionRule = "precision") -> Gaussian:
    """Fuse the prior with one expert per observed modality into the posterior of one level.

    With `rule="precision"` this is the exact product of Gaussian densities: precisions (1 / variance) add and the
    mean is the precision-weighted mean, so the result is never wider than the prior. With `rule="scale"` the
    inverse standard deviations add and their sum's reciprocal is taken as the standard deviation: no product of
    densities, but what the released weights were trained with.

    Args:
        prior: p(z_l | z_{l+1}); mean and log_std (B, C, H, W), or (B, D) at the coarsest level.
        experts: One Gaussian per observed modality, of the same shape, in any order. Empty: the prior is returned.
        rule: "precision" (exact) or "scale" (the authors' released code).
    Returns:
        q(z_l | observed, z_{l+1}), same shape, float32.
    Raises:
        InputError: An expert differs in shape from the prior, or the rule is unknown.
    Source:
        Dorent et al., MICCAI 2023, section 2 (product of experts with covariances);
        ReubenDo/MHVAE:network/mhvae.py, compute_full (the "scale" rule). See docs/decisions/0001.
    """
    if rule not in ("precision", "scale"):
        raise InputError(explain("unknown fusion rule", got=repr(rule), expected="'precision' or 'scale'"))
    for position, expert in enumerate(experts):
        if expert.mean.shape != prior.mean.shape:
            raise InputError(
                explain(
                    f"expert {position} does not fit the prior",
                    got=f"shape {tuple(expert.mean.shape)}",
                    expected=f"{tuple(prior.mean.shape)}",
                    mend="give every expert on the prior's grid",
                )
            )
    if not experts:
        return prior
    power = -2 if rule == "precision" else -1
    parts = [part for g in (prior, *experts) for part in (g.mean, g.log_std)]
    if gaussian_kernels.is_quick_for(*parts):
        return Gaussian(*gaussian_kernels.product(power, *parts))
    factors = [Gaussian(g.mean.float(), g.log_std.float()) for g in (prior, *experts)]
    weights = [(power * g.log_std).exp() for g in factors]
    total = torch.stack(weights).sum(0) if len(weights) > 3 else sum(weights[1:], weights[0])
    mean = (
        sum((w * g.mean for w, g in zip(weights[1:], factors[1:], strict=True)), weights[0] * factors[0].mean) / total
    )
    return Gaussian(mean, total.log() / power)


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in closed form, summed over everything but the batch.

    Args:
        q: Usually the posterior, (B, ...).
        p: Usually the prior, same shape.
    Returns:
        Nats, shape (B,), float32; 0 where q equals p.
    """
    parts = (q.mean, q.log_std, p.mean, p.log_std)
    if gaussian_kernels.is_quick_for(*parts):
        return gaussian_kernels.divergence(*parts)
    q_mean, q_log_std, p_mean, p_log_std = (t.float() for t in parts)
    log_ratio = q_log_std - p_log_std
    distance = (q_mean - p_mean) * (-p_log_std).exp()
    per_element = 0.5 * ((2 * log_ratio).exp() + distance.square() - 1) - log_ratio
    return per_element.flatten(1).sum(1)


def kl_one_sample(q: Gaussian, p: Gaussian, value: Tensor) -> Tensor:
    """The one-sample estimate log q(z) - log p(z) at a drawn z: same mean as the closed form, more variance.

    Args:
        q: The Gaussian that `value` was drawn from, (B, ...).
        p: The reference, same shape.
        value: The drawn z, same shape.
    Returns:
        Nats, shape (B,), float32; may be negative for a single draw.
    Source:
        ReubenDo/MHVAE:network/mhvae.py, forward (its training objective).
    """
    parts = (q.mean, q.log_std, p.mean, p.log_std, value)
    if gaussian_kernels.is_quick_for(*parts):
        return gaussian_kernels.log_ratio(*parts)
    difference = q.log_prob(value.float()) - p.log_prob(value.float())
    return difference.flatten(1).sum(1)
