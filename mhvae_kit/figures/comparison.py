"""Figures of a comparison of methods: the same slices by all of them, what each costs, and error against texture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import (
    _DIFFERENCE_MAP,
    _draw,
    _grey_bar,
    _grid,
    _outline,
    _scale_bar,
    _spacing,
    plane,
)
from mhvae_kit.figures.style import FOV_COLOUR, LABEL_PT, NEUTRAL_COLOUR, SMALL_PT, new_figure, plain_axes
from mhvae_kit.metrics import ArrayLike, psnr

_METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F3C8D")


@dataclass(frozen=True, kw_only=True)
class ComparedSlice:
    """One slice that several methods made; images are (H, W), uint8 or in [-1, 1].

    Args:
        label: What it is, for example "test-003, slice 12".
        source: The observed image.
        target: The truth.
        predictions: By method, in the order of the columns.
        fov: The fan; errors and PSNR are taken inside it.
    """

    label: str
    source: ArrayLike
    target: ArrayLike
    predictions: Mapping[str, ArrayLike]
    fov: ArrayLike


def method_grid(
    slices: Sequence[ComparedSlice],
    *,
    data: str,
    source_name: str,
    target_name: str,
    spacing_mm: float | tuple[float, float] = 1.0,
    difference_limit: float = 0.5,
    title: str = "The same slices by every method",
) -> Figure:
    """Two lines of panels a slice: input, target and the image of every method, and below each its difference.

    Args:
        slices: With the same methods each.
        data: What the images are of, such as "phantom".
        source_name, target_name: The modalities.
        spacing_mm: Pixel size, one number or (rows, columns).
        difference_limit: Differences (method minus target) are shown from -limit to limit.
        title: Title of the figure.
    Raises:
        InputError: No slice, or slices with different methods.
    """
    names = list(slices[0].predictions) if slices else []
    if not names or any(list(s.predictions) != names for s in slices):
        raise InputError(
            explain("the slices do not have the same methods", got=f"{len(slices)} slices", expected="one list of all")
        )
    spacing, shape = _spacing(spacing_mm), plane(slices[0].target, "target").shape
    size = (2 * len(slices), 2 + len(names))
    figure, axes = _grid(*size, shape, spacing, title=title, data=data, room=0.2)
    grey = {"cmap": "gray", "vmin": -1, "vmax": 1}
    picture = coloured = None
    for k, one in enumerate(slices):
        above, below = axes[2 * k], axes[2 * k + 1]
        target = plane(one.target, f"target of {one.label}")
        fan = np.squeeze(np.asarray(one.fov)) > 0
        for panel, image in zip(above, (plane(one.source, "source"), target), strict=False):
            picture = _draw(panel, image, spacing, **grey)
            _outline(panel, fan, shape, FOV_COLOUR)
        above[0].set_ylabel(one.label, fontsize=LABEL_PT)
        below[0].axis("off")
        below[1].axis("off")
        for j, name in enumerate(names, start=2):
            image = plane(one.predictions[name], name)
            _draw(above[j], image, spacing, **grey)
            _outline(above[j], fan, shape, FOV_COLOUR)
            error = np.where(fan, image - target, 0.0)
            coloured = _draw(
                below[j], error, spacing, cmap=_DIFFERENCE_MAP, vmin=-difference_limit, vmax=difference_limit
            )
            below[j].set_xlabel(f"{psnr(image, target, data_range=2.0, mask=fan)[0]:.1f} dB in fan", fontsize=SMALL_PT)
    for j, name in enumerate((f"input: {source_name}", f"target: {target_name}", *names)):
        axes[0, j].set_title(name, fontsize=LABEL_PT)
    _scale_bar(axes[0, 0], shape, spacing)
    bar = figure.colorbar(coloured, ax=list(axes.ravel()), shrink=0.6, pad=0.01, aspect=12 * len(axes), extend="both")
    bar.set_label("method - target", fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)
    _grey_bar(figure, picture, axes)
    return figure


def cost_panels(costs: pd.DataFrame, *, data: str, title: str = "What each method costs") -> Figure:
    """Unique parameters, multiply-accumulates, time per slice and training time as bars, one line a method.

    Args:
        costs: Indexed by method: parameters, macs, ms_per_slice, training_seconds.
        data: What the methods were trained on, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No row, or a column is missing.
    """
    panels = {
        "parameters": ("parameters (million)", 1e6),
        "macs": ("GMAC per slice", 1e9),
        "ms_per_slice": ("ms per slice", 1.0),
        "training_seconds": ("training (min)", 60.0),
    }
    missing = [name for name in panels if name not in costs]
    if missing or costs.empty:
        raise InputError(explain("costs cannot be drawn", got=f"{len(costs)} rows", expected=", ".join(panels)))
    figure = new_figure(11.5, 0.36 * len(costs) + 1.3, title=title, data=data)
    axes = figure.subplots(1, len(panels), sharey=True)
    place = np.arange(len(costs))[::-1]
    for panel, (name, (label, unit)) in zip(axes, panels.items(), strict=True):
        values = costs[name].to_numpy(dtype=float) / unit
        plain_axes(panel)
        panel.barh(place, values, color=NEUTRAL_COLOUR, height=0.6)
        for y, value in zip(place, values, strict=True):
            panel.text(value, y, f" {value:,.0f}" if value >= 100 else f" {value:.3g}", va="center", fontsize=SMALL_PT)
        panel.set_xlabel(label, fontsize=LABEL_PT)
        panel.set_xlim(0, 1.3 * max(values.max(), 1e-9))
    axes[0].set_yticks(place, list(costs.index), fontsize=LABEL_PT)
    return figure


def error_against_texture(
    points: pd.DataFrame, *, data: str, error: str, texture: str, title: str = "Error against texture"
) -> Figure:
    """Each method and mode as a dot: fidelity to the right, likeness of the texture upwards.

    Args:
        points: Columns method, mode, and the two metrics.
        data: What was scored, such as "phantom".
        error: Column on the x axis, higher is better (PSNR in dB).
        texture: Column on the y axis, lower is better; the axis points down.
        title: Title of the figure.
    Raises:
        InputError: No finite point, or a column is missing.
    """
    missing = [name for name in ("method", "mode", error, texture) if name not in points]
    if missing or points.empty:
        raise InputError(explain("there are no points to draw", got=", ".join(points), expected=", ".join(missing)))
    kept = points[np.isfinite(points[[error, texture]].to_numpy(dtype=float)).all(axis=1)]
    if kept.empty:
        raise InputError(explain("no method has both values", expected=f"finite {error} and {texture}"))
    figure = new_figure(7.4, 4.6, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    markers = dict(zip(dict.fromkeys(kept["mode"]), "osD^v", strict=False))
    colours = dict(zip(dict.fromkeys(kept["method"]), _METHOD_COLOURS, strict=False))
    for (method, mode), part in kept.groupby(["method", "mode"], sort=False):
        look = {"color": colours.get(method, NEUTRAL_COLOUR), "marker": markers.get(mode, "o"), "linestyle": ""}
        axes.plot(part[error], part[texture], markersize=7, label=f"{method}, {mode}", **look)
    axes.invert_yaxis()
    axes.set_xlabel(f"{error} (right is better)", fontsize=LABEL_PT)
    axes.set_ylabel(f"{texture} (up is better)", fontsize=LABEL_PT)
    axes.legend(fontsize=SMALL_PT, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
