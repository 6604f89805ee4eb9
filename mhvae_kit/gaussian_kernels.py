"""The algebra of `mhvae_kit.gaussian` for large float32 tensors on CPUs, by `mhvae_kit.kernels.gaussians`.

The same functions up to rounding, each in one pass over memory forward and one backward, where torch's operations make
a dozen and keep what they make. `mhvae_kit.gaussian` calls them; its formulas say what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhvae_kit.kernels import RUN, team

VALUES_FROM = 4096  # fewer are as quick in torch, and need nothing compiled


def is_quick_for(*tensors: Tensor) -> bool:
    """Whether the functions of this module can take the tensors, and are quicker than torch's operations."""
    x = tensors[0]
    return (
        x.numel() >= VALUES_FROM
        and x.ndim > 1
        and all(t.shape == x.shape for t in tensors)
        and team.are_plain(*tensors)
        and team.can_run()
    )


def product(power: int, *factors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-std of a product from means and log-stds of its factors in turns, all (B, ...).

    Args:
        power: -2 where precisions add, -1 where inverse standard deviations do.
        factors: mean, log_std, mean, log_std, ...
    """
    return team.applied(_Product, power, *factors)


def divergence(q_mean: Tensor, q_log_std: Tensor, p_mean: Tensor, p_log_std: Tensor) -> Tensor:
    """KL(q || p) of (B, ...), in nats, (B,)."""
    return team.applied(_Nats, "gaussian_divergence", q_mean, q_log_std, p_mean, p_log_std)


def log_ratio(q_mean: Tensor, q_log_std: Tensor, p_mean: Tensor, p_log_std: Tensor, value: Tensor) -> Tensor:
    """log q(value) - log p(value), all (B, ...), in nats, (B,)."""
    return team.applied(_Nats, "gaussian_log_ratio", q_mean, q_log_std, p_mean, p_log_std, value)


def draw(mean: Tensor, log_std: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
    """mean + temperature * std * noise, all (B, ...), the temperature one number or (B,)."""
    return team.applied(_Draw, mean, log_std, noise, temperature)


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit); autograd does not see it, `soft_clamp_gradient` is its gradient."""
    x = x.contiguous()
    y = torch.empty_like(x)
    team.run("soft_clamp", -(-x.numel() // RUN), x, x.new_tensor([limit]), y, x.numel())
    return y


def soft_clamp_gradient(y: Tensor, grads: Sequence[Tensor], limit: float) -> Tensor:
    """Gradient of what was clamped to y (B, C, ...), from those of equal parts of its channels, in their order."""
    out, bound, n = torch.empty_like(y), y.new_tensor([limit]), len(grads)
    for part, grad, made in zip(y.chunk(n, 1), grads, out.chunk(n, 1), strict=True):
        places = _flat((_placed(part), _placed(grad), (made, made.stride(0))))
        team.run("soft_clamp_gradient", _items(part), part[0].numel(), bound, *places)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, power: int, *factors: Tensor) -> tuple[Tensor, Tensor]:
        places = [_placed(t) for t in factors]
        mean, log_std = (x.new_empty(x.shape) for x in factors[:2])
        size = mean[0].numel()
        team.run("gaussian_product", _items(mean), len(places) // 2, power, size, mean, log_std, *_flat(places))
        ctx.save_for_backward(mean, log_std, *(t for t, _ in places))
        ctx.power = power
        return mean, log_std

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_log_std: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_std, *factors = ctx.saved_tensors
        out, size = mean.new_empty(len(factors), *mean.shape), mean[0].numel()
        given = (mean, log_std, of_mean.contiguous(), of_log_std.contiguous(), out)
        places = _flat(_placed(t) for t in factors)
        name = "gaussian_product_gradient"
        team.run(name, _items(mean), len(factors) // 2, ctx.power, size, len(mean), *given, *places)
        return None, *out.unbind()


class _Nats(torch.autograd.Function):
    """A sum over each image of (B, ...) by a kernel, with gradients of all parts by another of the same name."""

    @staticmethod
    def forward(ctx: Any, kernel: str, *parts: Tensor) -> Tensor:
        places = [_placed(t) for t in parts]
        x = parts[0]
        nats = x.new_empty(len(x), _runs(x))
        team.run(kernel, _items(x), x[0].numel(), nats, *_flat(places))
        ctx.save_for_backward(*(t for t, _ in places))
        ctx.kernel = kernel
        return nats.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        x = parts[0]
        out, places = x.new_empty(len(parts), *x.shape), _flat(_placed(t) for t in parts)
        given = (x[0].numel(), len(x), grad.contiguous(), out)
        team.run(f"{ctx.kernel}_gradient", _items(x), *given, *places)
        return None, *out.unbind()


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        drawn, given = mean.new_empty(mean.shape), [_placed(t) for t in (mean, log_std, noise)]
        if isinstance(temperature, Tensor):
            tau = temperature.to(mean.dtype).contiguous()
        else:
            tau = mean.new_full((len(mean),), temperature)
        team.run("gaussian_draw", _items(mean), mean[0].numel(), tau, drawn, *_flat(given))
        ctx.save_for_backward(mean, log_std, noise, drawn, tau)
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_std, _, drawn, tau = ctx.saved_tensors
        by_row = tau.view(-1, *(1 for _ in mean.shape[1:]))
        of_noise = grad * log_std.exp() * by_row if ctx.needs_input_grad[2] else None
        return grad, grad * (drawn - mean), of_noise, None


def _placed(x: Tensor) -> tuple[Tensor, int]:
    """A tensor whose images' values lie together each, and the floats from one image to the next."""
    x = x if x[0].is_contiguous() else x.contiguous()
    return x, x.stride(0)


def _flat(places: Any) -> list[Tensor | int]:
    return [value for place in places for value in place]


def _runs(x: Tensor) -> int:
    return -(-x[0].numel() // RUN)


def _items(x: Tensor) -> int:
    return len(x) * _runs(x)
