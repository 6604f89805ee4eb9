"""Figures of a product of experts: one-dimensional factors, two dimensions, and one level of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import StrMethodFormatter

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import plane
from mhvae_kit.figures.style import (
    LABEL_PT,
    NEUTRAL_COLOUR,
    PRIOR_STYLE,
    RULE_COLOURS,
    RULE_NAMES,
    RULE_STYLES,
    SMALL_PT,
    factor_looks,
    modality_label,
    new_figure,
    plain_axes,
)
from mhvae_kit.gaussian import FusionRule, Gaussian, product_of_experts


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What is multiplied at one level: the prior and one expert for each observed modality, all of one shape.

    Args:
        prior: p(z_l | z_{l+1}).
        experts: By modality; an absent modality is an absent key.
    """

    prior: Gaussian
    experts: Mapping[str, Gaussian]

    def product(self, rule: FusionRule = "precision") -> Gaussian:
        """The posterior, by the given rule."""
        return product_of_experts(self.prior, list(self.experts.values()), rule)

    def only(self, *names: str) -> Factors:
        """The same prior with these experts alone.

        Raises:
            InputError: One of them is not there.
        """
        absent = [n for n in names if n not in self.experts]
        if absent:
            raise InputError(explain(f"no expert of {', '.join(absent)}", expected=", ".join(self.experts) or "none"))
        return Factors(prior=self.prior, experts={n: self.experts[n] for n in names})

    def at(self, *index: int) -> Factors:
        """A part of every factor, by the same index; a single element keeps the shape (1, 1)."""

        def part(g: Gaussian) -> Gaussian:
            mean, log_std = g.mean[index], g.log_std[index]
            return Gaussian(mean, log_std) if mean.ndim else Gaussian(mean.reshape(1, 1), log_std.reshape(1, 1))

        return Factors(prior=part(self.prior), experts={n: part(g) for n, g in self.experts.items()})

    def named(self) -> dict[str, Gaussian]:
        """All factors by name, the prior first."""
        return {"prior": self.prior, **self.experts}


def _vector(gaussian: Gaussian, size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of a Gaussian with `size` elements, as float64 vectors."""
    if gaussian.mean.numel() != size:
        problem = f"{name} does not have {size} element" + ("s" if size > 1 else "")
        raise InputError(explain(problem, got=f"shape {tuple(gaussian.mean.shape)}"))
    flat = (t.detach().cpu().double().reshape(-1).numpy() for t in (gaussian.mean, gaussian.std))
    mean, std = flat
    return mean, std


def _check(states: Mapping[str, Factors], rules: Sequence[FusionRule]) -> None:
    """Something to draw, by known rules."""
    unknown = [r for r in rules if r not in RULE_NAMES]
    if not states or not rules or unknown:
        raise InputError(
            explain(
                "there is no product to draw",
                got=f"{len(states)} states, rules {tuple(rules)}",
                expected=f"at least one state, rules among {tuple(RULE_NAMES)}",
            )
        )


def product_table(states: Mapping[str, Factors], rules: Sequence[FusionRule] = ("precision",)) -> pd.DataFrame:
    """Every factor and every product as numbers, one row for each element of each.

    Args:
        states: By title, factors of any shape.
        rules: Which products to add.
    Returns:
        Columns state, factor, element (0, 1, ... in the order of the flattened Gaussian), mean, std, precision.
    """
    _check(states, rules)
    rows = []
    for title, factors in states.items():
        everything = factors.named() | {RULE_NAMES[rule]: factors.product(rule) for rule in rules}
        for name, gaussian in everything.items():
            mean, std = _vector(gaussian, gaussian.mean.numel(), name)
            rows += [(title, name, i, m, s, s**-2) for i, (m, s) in enumerate(zip(mean, std, strict=True))]
    return pd.DataFrame(rows, columns=["state", "factor", "element", "mean", "std", "precision"])


def _density(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def product_panels(
    states: Mapping[str, Factors],
    *,
    data: str,
    rules: Sequence[FusionRule] = ("precision",),
    dots: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    limits: tuple[float, float] | None = None,
    title: str = "Product of experts",
) -> Figure:
    """One-dimensional factors and their product, a panel for each state, over bars of their precisions.

    The upper bar stacks the precisions of the factors, the lower one is the precision of the product: for a product of
    Gaussians the two are equally long. All panels share their axes.

    Args:
        states: By title, factors of one element each.
        data: What the numbers are of, such as "hand-set" or "phantom".
        rules: Which products to draw: "precision" (exact), "scale" (the authors' released rule).
        dots: By title, (x, density) drawn as dots, for example a product made on a grid.
        limits: Ends of the axis of z; None = all factors that are not far wider than the product.
        title: Title of the figure.
    Raises:
        InputError: Nothing to draw, an unknown rule, or factors of more than one element.
    """
    _check(states, rules)
    numbers = {
        t: {n: tuple(v[0] for v in _vector(g, 1, f"{n} of {t}")) for n, g in f.named().items()}
        for t, f in states.items()
    }
    fused = {t: {r: tuple(v[0] for v in _vector(f.product(r), 1, r)) for r in rules} for t, f in states.items()}
    columns = min(len(states), 2)
    lines = -(-len(states) // columns)
    height = 1.95 + 0.5 + 0.2 * len(rules)
    figure = new_figure(4.2 * columns + 0.6, height * lines + 0.8, title=title, data=data)
    ratios = [4.2, 1 + 0.55 * len(rules)] * lines
    axes = figure.subplots(2 * lines, columns, squeeze=False, gridspec_kw={"height_ratios": ratios})
    x = np.linspace(*(limits or _limits(numbers, fused)), 801)
    looks = factor_looks(dict.fromkeys(n for factors in states.values() for n in factors.experts))
    longest = max(std**-2 for state in fused.values() for _, std in state.values())
    for i, name in enumerate(states):
        row, column = divmod(i, columns)
        upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
        _draw_densities(upper, x, numbers[name], fused[name], looks, (dots or {}).get(name))
        upper.set_title(name, fontsize=LABEL_PT)
        _draw_precisions(lower, numbers[name], fused[name], looks, longest)
        if column == 0:
            upper.set_ylabel("density", fontsize=LABEL_PT)
    _finish_panels(figure, axes, len(states), columns)
    return figure


def _limits(numbers: Mapping[str, Any], fused: Mapping[str, Any]) -> tuple[float, float]:
    """Where there is something to see: 3.2 standard deviations round all factors that are not nearly flat here."""
    narrow = min(std for state in fused.values() for _, std in state.values())
    pairs = [p for state in (*numbers.values(), *fused.values()) for p in state.values() if p[1] < 6 * narrow]
    return min(m - 3.2 * s for m, s in pairs), max(m + 3.2 * s for m, s in pairs)


def _draw_densities(
    axes: Axes,
    x: np.ndarray,
    factors: Mapping[str, tuple[float, float]],
    fused: Mapping[FusionRule, tuple[float, float]],
    looks: Mapping[str, dict[str, Any]],
    dots: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """The curves of one state, each with its numbers in a legend of the panel."""
    plain_axes(axes)
    for name, (mean, std) in factors.items():
        label = f"{modality_label(name)}: {mean:.2f} ± {std:.3f}"
        axes.plot(x, _density(x, mean, std), linewidth=1.6, label=label, **looks[name])
    for rule, (mean, std) in fused.items():
        curve = _density(x, mean, std)
        if rule == "precision":
            axes.fill_between(x, curve, color="#000000", alpha=0.10, linewidth=0)
        look = {"color": RULE_COLOURS[rule], "linestyle": RULE_STYLES[rule]}
        axes.plot(x, curve, linewidth=2.4, label=f"{RULE_NAMES[rule]}: {mean:.2f} ± {std:.3f}", zorder=3, **look)
    if dots is not None:
        axes.plot(*dots, "o", color="white", markeredgecolor="#000000", markersize=4.5, zorder=4, label="grid")
    axes.set_xlim(x[0], x[-1])
    axes.set_xlabel("z", fontsize=LABEL_PT, labelpad=0)
    axes.legend(fontsize=SMALL_PT - 1, loc="upper center", ncols=2, framealpha=0.85, handlelength=2.4, borderpad=0.3)


def _draw_precisions(
    axes: Axes,
    factors: Mapping[str, tuple[float, float]],
    fused: Mapping[FusionRule, tuple[float, float]],
    looks: Mapping[str, dict[str, Any]],
    longest: float,
) -> None:
    """Stacked precisions of the factors above the precision of each product; `longest` is the longest bar of all."""
    left = 0.0
    for name, (_, std) in factors.items():
        axes.barh(0, std**-2, left=left, color=looks[name]["color"], edgecolor="white", height=0.75)
        if std**-2 > 0.09 * longest:
            look = {"color": "white", "ha": "center", "va": "center", "fontsize": SMALL_PT}
            axes.text(left + std**-2 / 2, 0, f"{std**-2:.2f}", **look)
        left += std**-2
    axes.annotate(f"{left:.2f}", (left, 0), xytext=(3, 0), textcoords="offset points", va="center", fontsize=SMALL_PT)
    for i, (rule, (_, std)) in enumerate(fused.items(), start=1):
        axes.barh(i, std**-2, color=RULE_COLOURS[rule], height=0.75)
        place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": SMALL_PT}
        axes.annotate(f"{std**-2:.2f}", (std**-2, i), **place)
    axes.set_yticks(range(1 + len(fused)), ["factors", *(RULE_NAMES[r] for r in fused)], fontsize=SMALL_PT)
    axes.set_ylim(len(fused) + 0.5, -0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=SMALL_PT)
    axes.set_xlabel("precision 1/σ²", fontsize=LABEL_PT, labelpad=0)


def _finish_panels(figure: Figure, axes: np.ndarray, n: int, columns: int) -> None:
    """One scale for all densities and one for all bars; spare panels hidden."""
    shown = [(axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns]) for i in range(n)]
    top = max(line.get_ydata().max() for upper, _ in shown for line in upper.lines)
    longest = max(lower.dataLim.x1 for _, lower in shown)
    legend_rows = max(-(-len(upper.get_legend().get_texts()) // 2) for upper, _ in shown)
    for upper, lower in shown:
        upper.set_ylim(0, (1.12 + 0.15 * legend_rows) * top)  # the legend stands above the curves
        lower.set_xlim(0, 1.14 * longest)
    for spare in range(n, axes.shape[0] // 2 * columns):
        for part in (0, 1):
            axes[2 * (spare // columns) + part, spare % columns].set_visible(False)


def product_ellipses(
    states: Mapping[str, Factors], *, data: str, limit: float = 3.0, title: str = "Product of experts in two dimensions"
) -> Figure:
    """Two-dimensional factors and their product, a panel for each state: ellipses at one and two standard deviations.

    Args:
        states: By title, factors of two elements each (the axes are independent, so no ellipse is tilted).
        data: What the numbers are of.
        limit: The axes run from -limit to limit.
        title: Title of the figure.
    Raises:
        InputError: Nothing to draw, or factors that do not have two elements.
    """
    _check(states, ("precision",))
    columns = min(len(states), 4)
    lines = -(-len(states) // columns)
    figure = new_figure(2.4 * columns + 0.4, 2.9 * lines + 0.8, title=title, data=data)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    looks = factor_looks(dict.fromkeys(n for factors in states.values() for n in factors.experts))
    for panel, (name, factors) in zip(axes.ravel(), states.items(), strict=False):
        plain_axes(panel)
        for factor, gaussian in factors.named().items():
            look = looks[factor]
            mean, std = _vector(gaussian, 2, f"{factor} of {name}")
            _ellipses(panel, mean, std, edgecolor=look["color"], linestyle=look["linestyle"], linewidth=1.5)
        mean, std = _vector(factors.product(), 2, name)
        _ellipses(panel, mean, std, edgecolor="#000000", linewidth=2.2, fill="#000000")
        panel.set(xlim=(-limit, limit), ylim=(-limit, limit), box_aspect=1)
        panel.set_title(f"{name}\nσ of product {std[0]:.2f}, {std[1]:.2f}", fontsize=LABEL_PT)
        panel.set_xlabel("first component of z", fontsize=LABEL_PT)
    for spare in axes.ravel()[len(states) :]:
        spare.set_visible(False)
    for panel in axes[:, 0]:
        panel.set_ylabel("second component of z", fontsize=LABEL_PT)
    named = {modality_label(n): look for n, look in looks.items()}
    lines_shown = [axes[0, 0].plot([], [], label=n, linewidth=1.5, **look)[0] for n, look in named.items()]
    lines_shown += axes[0, 0].plot([], [], color="#000000", linewidth=2.2, label="product (1σ and 2σ)")
    figure.legend(handles=lines_shown, loc="outside lower center", ncols=len(lines_shown), fontsize=SMALL_PT)
    return figure


def _ellipses(axes: Axes, mean: np.ndarray, std: np.ndarray, *, fill: str | None = None, **look: Any) -> None:
    """Outlines at one and two standard deviations; the inner one tinted when `fill` is a colour."""
    if fill is not None:
        axes.add_patch(Ellipse(mean, *(2 * std), facecolor=fill, alpha=0.15, linewidth=0))
    for k in (1, 2):
        axes.add_patch(Ellipse(mean, *(2 * k * std), fill=False, alpha=1.0 if k == 1 else 0.55, **look))


def rule_curves(prior_std: float, expert_std: float, *, data: str, title: str = "One expert, two rules") -> Figure:
    """Width of the fused Gaussian over the width of the one expert, by the exact rule and the released one.

    Args:
        prior_std: Standard deviation of the prior.
        expert_std: The expert that is marked, with the two numbers.
        data: What the numbers are of.
        title: Title of the figure.
    Raises:
        InputError: A width that is not above 0.
    """
    if not (prior_std > 0 and expert_std > 0):
        raise InputError(explain("a standard deviation must be above 0", got=f"{prior_std} and {expert_std}"))
    figure = new_figure(5.6, 3.5, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    widths = np.geomspace(0.05, 20, 200) * prior_std
    for rule, curve in zip(RULE_NAMES, fused_std(prior_std, widths), strict=True):
        look = {"color": RULE_COLOURS[rule], "linestyle": RULE_STYLES[rule], "linewidth": 2.0}
        axes.plot(widths, curve, label=RULE_NAMES[rule], **look)
    for rule, value in zip(RULE_NAMES, fused_std(prior_std, expert_std), strict=True):
        axes.plot(expert_std, value, "o", color=RULE_COLOURS[rule], markersize=6)
        above = rule == "precision"
        place = {"xytext": (-6, 5) if above else (6, -5), "textcoords": "offset points", "fontsize": LABEL_PT}
        align = {"ha": "right", "va": "bottom"} if above else {"ha": "left", "va": "top"}
        axes.annotate(f"{value:.3f}", (expert_std, value), color=RULE_COLOURS[rule], **place, **align)
    axes.axhline(prior_std, color=NEUTRAL_COLOUR, linestyle=PRIOR_STYLE, linewidth=1.2, label="prior")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("σ of the expert (log scale)", fontsize=LABEL_PT)
    axes.set_ylabel("σ after fusion", fontsize=LABEL_PT)
    axes.set_ylim(0, 1.12 * prior_std)
    axes.legend(fontsize=SMALL_PT, loc="lower right")
    return figure


def fused_std(prior_std: float, expert_std: Any) -> tuple[Any, Any]:
    """Width after fusing a prior with one expert: (exact product, released rule)."""
    return (prior_std**-2 + np.asarray(expert_std) ** -2.0) ** -0.5, 1 / (1 / prior_std + 1 / np.asarray(expert_std))


def level_factors(
    factors: Factors,
    images: Mapping[str, Any],
    *,
    data: str,
    mark: tuple[int, int] | None = None,
    title: str = "Factors of one level",
) -> Figure:
    """One channel of one level as maps: mean and standard deviation of the prior, each expert and the product.

    Args:
        factors: Maps (H, W). The means share one scale, centred on zero; the widths share a logarithmic one.
        images: By title, at most two images (h, w) in [-1, 1], shown on the left.
        data: What the images are of, such as "phantom".
        mark: (row, column) of an element that gets a cross, on the images at the same place.
        title: Title of the figure: say which level and channel.
    Raises:
        InputError: Factors that are no maps, more than two images, or images out of range.
    """
    if factors.prior.mean.ndim != 2 or len(images) > 2:
        got = f"shape {tuple(factors.prior.mean.shape)} and {len(images)} images"
        raise InputError(explain("these are not maps of a level", got=got, expected="(H, W) and at most two images"))
    columns = factors.named() | {"product": factors.product()}
    means = {n: g.mean.detach().cpu().numpy() for n, g in columns.items()}
    widths = {n: g.std.detach().cpu().numpy() for n, g in columns.items()}
    figure = new_figure(1.75 * (1 + len(columns)) + 1.0, 4.3, title=title, data=data)
    axes = figure.subplots(2, 1 + len(columns))
    for panel in axes.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel, (name, image) in zip(axes[:, 0], images.items(), strict=False):
        panel.imshow(plane(image, name), cmap="gray", vmin=-1, vmax=1)
        panel.set_title(name, fontsize=LABEL_PT)
        _cross(panel, mark, factors.prior.mean.shape, np.shape(np.squeeze(image)))
    limit = float(np.quantile([np.abs(m).max() for m in means.values()], 0.5))
    ends = [float(np.quantile(np.stack(list(widths.values())), q)) for q in (0.005, 0.995)]
    looks = ({"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}, {"cmap": "cividis", "norm": LogNorm(*ends)})
    for row, (maps, look, label) in enumerate(zip((means, widths), looks, ("mean", "σ (log scale)"), strict=True)):
        for panel, (name, values) in zip(axes[row, 1:], maps.items(), strict=True):
            picture = panel.imshow(values, interpolation="nearest", **look)
            expert = f"expert {modality_label(name)}" if name in factors.experts else name
            panel.set_title(expert if row == 0 else "", fontsize=LABEL_PT)
            _cross(panel, mark, values.shape, values.shape)
        bar = figure.colorbar(picture, ax=list(axes[row, 1:]), shrink=0.85, pad=0.01, extend="both")
        bar.set_label(label, fontsize=SMALL_PT)
        bar.formatter = StrMethodFormatter("{x:g}")
        bar.ax.tick_params(labelsize=SMALL_PT)
    for panel in axes[len(images) :, 0]:
        panel.set_visible(False)
    return figure


def _cross(axes: Axes, mark: tuple[int, int] | None, grid: Sequence[int], shape: Sequence[int]) -> None:
    """A cross at an element of `grid`, drawn on a picture of another size that shows the same field."""
    if mark is not None:
        row, column = ((m + 0.5) * n / g - 0.5 for m, n, g in zip(mark, shape[-2:], grid[-2:], strict=True))
        axes.plot(column, row, "x", color="white", markersize=9, markeredgewidth=3.5)
        axes.plot(column, row, "x", color="#D55E00", markersize=8, markeredgewidth=1.6)
