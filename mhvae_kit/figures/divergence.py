"""How well a KL divergence is known from draws: one-draw estimates beside the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import LABEL_PT, NEUTRAL_COLOUR, SMALL_PT, new_figure, plain_axes


def kl_estimates(draws: Any, closed: float, *, data: str, title: str = "KL by sampling") -> Figure:
    """One-draw estimates of a KL beside its closed form, and how the error of an average shrinks with the draws.

    Args:
        draws: (N,) estimates from one draw each, in nats, from `gaussian.kl_one_sample`; N at least 1000.
        closed: The KL in closed form, nats.
        data: What the numbers are of.
        title: Title of the figure.
    Raises:
        InputError: Fewer than 1000 estimates, or one that is not finite.
    """
    values = draws.detach().cpu().double().numpy() if isinstance(draws, torch.Tensor) else np.asarray(draws, float)
    if values.ndim != 1 or values.size < 1000 or not np.isfinite(values).all():
        raise InputError(
            explain("these are not estimates to draw", got=f"shape {values.shape}", expected="at least 1000 numbers")
        )
    figure = new_figure(9.0, 3.3, title=title, data=data)
    left, right = figure.subplots(1, 2)
    plain_axes(left)
    low, high = np.quantile(values, (0.001, 0.999))
    left.hist(values, bins=np.linspace(low, high, 61), density=True, color="#9EC9E2", edgecolor="none")
    left.axvline(closed, color="#000000", linewidth=2, label=f"closed form {closed:.3f}")
    left.axvline(values.mean(), color="#D55E00", linewidth=2, linestyle=":", label=f"mean of draws {values.mean():.3f}")
    left.axvline(0, color=NEUTRAL_COLOUR, linewidth=0.8)
    left.set_xlabel("estimate from one draw (nats)", fontsize=LABEL_PT)
    left.set_ylabel("density", fontsize=LABEL_PT)
    left.legend(fontsize=SMALL_PT, loc="upper left")
    _error_over_draws(right, values)
    return figure


def _error_over_draws(axes: Axes, values: np.ndarray) -> None:
    """Spread of averages of n draws, measured over groups of n, on the line that theory gives."""
    plain_axes(axes)
    sizes = [n for n in (1, 3, 10, 30, 100, 300, 1000, 3000) if values.size // n >= 20]
    spread = [values[: values.size // n * n].reshape(-1, n).mean(axis=1).std() for n in sizes]
    axes.loglog(sizes, values.std() / np.sqrt(sizes), color=NEUTRAL_COLOUR, linestyle="--", label="std of one / √n")
    axes.loglog(sizes, spread, "o", color="#0072B2", label="measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("draws in the average (log scale)", fontsize=LABEL_PT)
    axes.set_ylabel("std of the average (nats, log scale)", fontsize=LABEL_PT)
    axes.legend(fontsize=SMALL_PT)
