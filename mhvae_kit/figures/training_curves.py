"""Training curves with the stages shaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import (
    LABEL_PT,
    NEUTRAL_COLOUR,
    SMALL_PT,
    STAGE_COLOURS,
    level_colours,
    modality_colour,
    new_figure,
    plain_axes,
)

# A curve with more points than this is drawn pale, under its running median.
_MANY_POINTS = 200
# More validation curves than this are shown as one mean for each target.
_MANY_CURVES = 12
# One line style for each observed subset; the colour is the target's.
_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_TERMS = {"adversarial": "#D55E00", "discriminator": "#0072B2"}


@dataclass(frozen=True)
class _Curve:
    """One curve of a panel."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: Any = NEUTRAL_COLOUR
    style: Any = "-"

    def draw(self, axes: Axes) -> None:
        """Draw it; a long curve becomes pale under its running median."""
        values = self.values
        if len(values) > _MANY_POINTS:
            axes.plot(self.steps, values, color=self.colour, linewidth=0.6, alpha=0.2)
            window = max(len(values) // 50, 3)
            values = pd.Series(values).rolling(window, center=True, min_periods=1).median().to_numpy()
        marker = "o" if len(values) == 1 else None
        options = {"color": self.colour, "linestyle": self.style, "label": self.label}
        axes.plot(self.steps, values, linewidth=1.4, marker=marker, markersize=3, **options)


def _curve(table: pd.DataFrame, column: str, label: str, **look: Any) -> list[_Curve]:
    """The column as a curve, without steps that lack a value; none if it has no value at all."""
    known = table[column].notna() if column in table else pd.Series(dtype=bool)
    if not known.any():
        return []
    return [_Curve(label, table["step"][known].to_numpy(), table[column][known].to_numpy(dtype=float), **look)]


def _synthesis(table: pd.DataFrame, prefix: str, suffix: str = "") -> list[_Curve]:
    """Columns "<prefix><subset>_to_<target><suffix>" or "<prefix><target><suffix>"."""
    names = [c for c in table.columns if c.startswith(prefix) and c.endswith(suffix)]
    found = []
    for column in names:
        subset, arrow, target = column[len(prefix) : len(column) - len(suffix)].rpartition("_to_")
        found.append((column, "+".join(sorted(subset.split("+"))), arrow, target))
    subsets = sorted({subset for _, subset, _, _ in found}, key=lambda s: (s.count("+"), s))
    curves = []
    for column, subset, arrow, target in sorted(found, key=lambda f: (f[3], subsets.index(f[1]))):
        style = _STYLES[subsets.index(subset) % len(_STYLES)]
        label = f"{subset} → {target}" if arrow else target
        curves += _curve(table, column, label, colour=modality_colour(target), style=style)
    return curves


def _panels(metrics: pd.DataFrame, validation: pd.DataFrame | None) -> list[tuple[str, list[_Curve]]]:
    """What there is to draw, panel by panel."""
    levels = level_colours(c[3:] for c in metrics.columns if c.startswith("kl_z") and c[4:].isdigit())
    kl = [curve for name, colour in levels.items() for curve in _curve(metrics, f"kl_{name}", name, colour=colour)]
    total = _curve(metrics, "kl_nats", "all", colour="#000000", style="--")
    # A term that is exactly 0 has not begun: the log writes 0 before its stage.
    begun = metrics.assign(**{c: metrics[c].mask(metrics[c] == 0) for c in _TERMS if c in metrics})
    rate = "learning_rate" if "learning_rate" in metrics else "lr"
    error = _synthesis(metrics, "l1_") or _curve(metrics, "l1", "all")
    panels = [
        ("loss", _curve(metrics, "loss", "loss")),
        ("L1, full frame", error),
        ("KL by level (nats per image)", [*kl, *total]),
        ("adversarial terms", [c for name, colour in _TERMS.items() for c in _curve(begun, name, name, colour=colour)]),
        ("learning rate", _curve(metrics, rate, rate)),
    ]
    if validation is not None:
        name, scores = _readable(validation.drop(columns="psnr_mean_db", errors="ignore"))
        panels.insert(2, (name, _synthesis(scores, "psnr_", "_db")))
    return [(name, curves) for name, curves in panels if curves]


def _readable(scores: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Title and scores of the validation panel: too many to tell apart become one mean a target."""
    paths = [c[len("psnr_") : -len("_db")].rpartition("_to_") for c in scores.columns if c.startswith("psnr_")]
    if len(paths) <= _MANY_CURVES:
        return "validation PSNR in fan (dB)", scores
    means = {"step": scores["step"]}
    for target in dict.fromkeys(t for _, _, t in paths):
        made = [f"psnr_{s}_to_{target}_db" for s, _, t in paths if t == target and target not in s.split("+")]
        means[f"psnr_{target}_db"] = scores[made].mean(axis=1)
    return "validation PSNR in fan (dB),\nmean over inputs without the target", pd.DataFrame(means)


def _stages(metrics: pd.DataFrame) -> list[tuple[str, float, float]]:
    """(stage, first step, last step) of each run of equal stages; each ends where the next begins."""
    if "stage" not in metrics:
        return []
    change = (metrics["stage"] != metrics["stage"].shift()).cumsum()
    parts = [(str(g["stage"].iloc[0]), float(g["step"].iloc[0])) for _, g in metrics.groupby(change, sort=True)]
    ends = [start for _, start in parts[1:]] + [float(metrics["step"].iloc[-1])]
    return [(name, start, end) for (name, start), end in zip(parts, ends, strict=True)]


def _scale(curves: list[_Curve]) -> str:
    """Logarithmic for positive values over more than a factor of ten, linear otherwise."""
    values = np.concatenate([c.values for c in curves])
    values = values[np.isfinite(values)]
    return "log" if values.size and values.min() > 0 and values.max() > 10 * values.min() else "linear"


def loss_curves(
    metrics: pd.DataFrame, *, data: str, validation: pd.DataFrame | None = None, title: str = "Training"
) -> Figure:
    """Training curves over steps: loss, L1, KL by level, adversarial terms and learning rate; the stages are shaded.

    Args:
        metrics: A run's metrics.csv: step, stage, and any of loss, l1_<subset>_to_<target> or l1_<target>, kl_z1 ...
            and kl_nats (nats), adversarial, discriminator, learning_rate. A column without a value makes no panel.
        data: What the model is trained on, such as "phantom".
        validation: A run's validation.csv: step, psnr_<subset>_to_<target>_db; one more panel. With more than twelve
            of them it has the mean by target over the subsets without it.
        title: Title of the figure.
    Raises:
        InputError: No step column, no rows, or nothing to draw.
    """
    metrics = metrics.sort_values("step", kind="stable") if "step" in metrics else metrics.iloc[:0]
    panels = _panels(metrics, validation) if len(metrics) else []
    if not panels:
        raise InputError(
            explain(
                "there are no training curves to draw",
                got=f"{len(metrics)} rows with columns {', '.join(map(str, metrics.columns)) or 'none'}",
                expected="step and at least one measured column",
            )
        )
    stages = _stages(metrics)
    shades = {name: STAGE_COLOURS[i % len(STAGE_COLOURS)] for i, name in enumerate(dict.fromkeys(s[0] for s in stages))}
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = new_figure(3.9 * columns, 2.9 * lines + 0.5, title=title, data=data)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (name, curves) in zip(axes, panels, strict=False):
        for stage, start, end in stages:
            panel.axvspan(start, end, color=shades[stage], zorder=0, linewidth=0)
        _draw_panel(panel, name, curves)
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    if shades:
        patches = [Patch(facecolor=c, edgecolor="#BBBBBB", label=n.replace("_", " ")) for n, c in shades.items()]
        options = {"title": "stage", "title_fontsize": SMALL_PT, "fontsize": SMALL_PT, "ncols": len(patches)}
        figure.legend(handles=patches, loc="outside lower center", **options)
    return figure


def _draw_panel(axes: Axes, name: str, curves: list[_Curve]) -> None:
    """All curves of a panel, with its legend above it so that it hides nothing."""
    plain_axes(axes)
    for curve in curves:
        curve.draw(axes)
    axes.set_yscale(_scale(curves))
    axes.set_xlabel("step", fontsize=LABEL_PT)
    axes.set_ylabel(name, fontsize=LABEL_PT)
    if len(curves) > 1:
        columns = 4 if max(len(c.label) for c in curves) < 6 else 3 if len(curves) > 4 else 2
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
        axes.legend(fontsize=SMALL_PT - 1, ncols=columns, handlelength=2.5, columnspacing=1.0, **place)
