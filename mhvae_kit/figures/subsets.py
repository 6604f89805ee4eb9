"""Figures over all subsets of inputs: who has what, scores, pictures, and what one more input brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import _draw, _outline, _scale_bar, _spacing, plane
from mhvae_kit.figures.style import (
    FOV_COLOUR,
    LABEL_PT,
    NEUTRAL_COLOUR,
    SMALL_PT,
    modality_colour,
    new_figure,
    plain_axes,
)
from mhvae_kit.metrics import ArrayLike

_ABSENT_COLOUR = "#E3E3E3"
_KIND_COLOURS = {"synthesis": "#D55E00", "target added": "#0072B2", "reconstruction": "#009E73"}


def presence_grid(present: pd.DataFrame, *, data: str, title: str = "Which patient has which image") -> Figure:
    """A cell for each patient (column) and image (row), coloured where the patient has it.

    Args:
        present: Bool, a row per patient, a column per modality.
        data: What the patients are of, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No patient or no image.
    """
    if present.empty:
        raise InputError(explain("there is no patient to show", got=f"a table of shape {present.shape}"))
    names = list(present.columns)
    figure = new_figure(9.0, 0.32 * len(names) + 1.1, title=title, data=data)
    axes = figure.subplots()
    colours = ListedColormap([_ABSENT_COLOUR, *(modality_colour(m) for m in names)])
    codes = np.stack([present[m].to_numpy(dtype=int) * (i + 1) for i, m in enumerate(names)])
    axes.pcolormesh(codes, cmap=colours, vmin=0, vmax=len(names), edgecolors="white", linewidth=1.0)
    axes.invert_yaxis()
    labels = [f"{m} ({int(present[m].sum())} of {len(present)})" for m in names]
    axes.set_yticks(np.arange(len(names)) + 0.5, labels, fontsize=LABEL_PT)
    ticks = np.arange(0, len(present), max(1, len(present) // 10))
    axes.set_xticks(ticks + 0.5, [str(k) for k in ticks])
    axes.set_xlabel("training patient (grey: missing)", fontsize=LABEL_PT)
    axes.tick_params(labelsize=SMALL_PT, length=0)
    axes.spines[:].set_visible(False)
    return figure


def _inputs(axes: Axes, subsets: Sequence[str], names: Sequence[str], *, along: str) -> None:
    """A dot for each input of each subset, grey where it is absent, subsets along "x" or "y"."""
    for i, subset in enumerate(subsets):
        for j, name in enumerate(names):
            colour = modality_colour(name) if name in subset.split("+") else _ABSENT_COLOUR
            axes.plot(*((i, j) if along == "x" else (j, i)), "o", color=colour, markersize=7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def subset_table(table: pd.DataFrame, *, data: str, unit: str, title: str = "Every subset of inputs") -> Figure:
    """A score for each subset of inputs (row) and target (column), as colour and number; frames mark observed targets.

    Args:
        table: Indexed by observed subset ("t2+us"), a column per target.
        data: What was scored, such as "phantom".
        unit: Of the numbers, such as "PSNR in fan (dB)".
        title: Title of the figure.
    Raises:
        InputError: The table is empty, or a number is not finite.
    """
    values = table.to_numpy(dtype=float)
    if not values.size or not np.isfinite(values).all():
        raise InputError(
            explain("the scores cannot be drawn", got=f"a table of shape {values.shape}", expected="numbers")
        )
    names, subsets = list(table.columns), list(table.index)
    figure = new_figure(1.2 * len(names) + 3.2, 0.34 * len(subsets) + 1.3, title=title, data=data)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(names) * 0.4, len(names)))
    _inputs(left, subsets, names, along="y")
    left.set_xticks(range(len(names)), names, fontsize=SMALL_PT, rotation=45)
    left.set_yticks([])
    left.set_xlim(-0.6, len(names) - 0.4)
    left.set_title("inputs", fontsize=LABEL_PT)
    picture = right.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    middle = (values.min() + values.max()) / 2
    for i, subset in enumerate(subsets):
        for j, target in enumerate(names):
            colour = "black" if values[i, j] > middle else "white"
            right.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=SMALL_PT, color=colour)
            if target in subset.split("+"):
                box = {"fill": False, "edgecolor": "white", "linewidth": 1.2}
                right.add_patch(Rectangle((j - 0.46, i - 0.42), 0.92, 0.84, **box))
    right.set_xticks(range(len(names)), names, fontsize=SMALL_PT)
    right.set_title("target (framed: observed)", fontsize=LABEL_PT)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    bar = figure.colorbar(picture, ax=right, pad=0.02, aspect=30)
    bar.set_label(unit, fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)
    return figure


def subset_pictures(
    images: Mapping[str, Mapping[str, ArrayLike]],
    truth: Mapping[str, ArrayLike],
    *,
    data: str,
    fov: ArrayLike | None = None,
    spacing_mm: float | tuple[float, float] = 1.0,
    title: str = "One slice from every subset of inputs",
) -> Figure:
    """A column per subset of inputs, marked by dots above it, a row per target; the truth comes first.

    Args:
        images: By observed subset ("t2+us") and target, (H, W) in [-1, 1].
        truth: By target, the true image.
        data: What the images are of, such as "phantom".
        fov: The fan, outlined.
        spacing_mm: Pixel size, one number or (rows, columns).
        title: Title of the figure.
    Raises:
        InputError: No subset, or a subset without one of the targets.
    """
    names, subsets = list(truth), list(images)
    lacking = [s for s in subsets if set(names) - set(images[s])]
    if not subsets or not names or lacking:
        raise InputError(
            explain(
                "the pictures are not complete", got=f"{lacking or 'no subset'}", expected=f"{names} of each subset"
            )
        )
    spacing, side = _spacing(spacing_mm), 0.95
    figure = new_figure(side * (len(subsets) + 1) + 0.8, side * (len(names) + 1) + 0.6, title=title, data=data)
    grid = figure.add_gridspec(len(names) + 1, len(subsets) + 1, height_ratios=[0.75, *([1.0] * len(names))])
    dots = figure.add_subplot(grid[0, 1:])
    _inputs(dots, subsets, names, along="x")
    dots.set_xlim(-0.5, len(subsets) - 0.5)
    dots.set_ylim(len(names) - 0.4, -0.6)
    dots.set_xticks([])
    dots.set_yticks(range(len(names)), names, fontsize=SMALL_PT)
    for i, target in enumerate(names):
        columns = {"truth": truth[target], **{s: images[s][target] for s in subsets}}
        for j, (column, image) in enumerate(columns.items()):
            axes = figure.add_subplot(grid[i + 1, j])
            pixels = plane(image, f"{target} from {column}")
            _draw(axes, pixels, spacing, cmap="gray", vmin=-1, vmax=1)
            _outline(axes, fov, pixels.shape, FOV_COLOUR)
            if j == 0:
                axes.set_ylabel(target, fontsize=LABEL_PT)
                if i == 0:
                    axes.set_title("truth", fontsize=LABEL_PT)
                    _scale_bar(axes, pixels.shape, spacing)
            if target in column.split("+"):
                axes.spines[:].set_visible(True)
                axes.spines[:].set(color=modality_colour(target), linewidth=1.6)
    return figure


def gain_intervals(
    groups: pd.DataFrame, single: pd.DataFrame, *, data: str, unit: str, title: str = "What one more input brings"
) -> Figure:
    """Mean gain of a further input with its interval, by kind and number of inputs; small dots are single additions.

    Args:
        groups: kind, n_inputs, gain, gain_low, gain_high, from `evaluation.mean_gains`.
        single: The same for single additions.
        data: What was scored, such as "phantom".
        unit: Of the gain, such as "PSNR in fan (dB)".
        title: Title of the figure.
    Raises:
        InputError: No group.
    """
    if groups.empty:
        raise InputError(explain("there is no gain to draw", got="an empty table"))
    ordered = groups.sort_values(["kind", "n_inputs"], key=lambda c: c.map(_place) if c.name == "kind" else c)
    figure = new_figure(8.0, 0.42 * len(ordered) + 1.3, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    axes.axvline(0.0, color=NEUTRAL_COLOUR, linewidth=1.0)
    for y, row in enumerate(ordered.itertuples()):
        colour = _KIND_COLOURS.get(row.kind, NEUTRAL_COLOUR)
        own = single[(single["kind"] == row.kind) & (single["n_inputs"] == row.n_inputs)]["gain"]
        axes.plot(own, np.full(len(own), y), "|", color=colour, alpha=0.5, markersize=12)
        if np.isfinite([row.gain_low, row.gain_high]).all():
            axes.plot([row.gain_low, row.gain_high], [y, y], color=colour, linewidth=3.0, alpha=0.6)
        axes.plot([row.gain], [y], "o", color=colour, markersize=7)
    labels = [f"{r.kind}, {r.n_inputs} to {r.n_inputs + 1} inputs" for r in ordered.itertuples()]
    axes.set_yticks(range(len(ordered)), labels, fontsize=SMALL_PT)
    axes.invert_yaxis()
    axes.set_xlabel(f"gain in {unit} (right of 0: the input helps)", fontsize=LABEL_PT)
    return figure


def _place(kind: str) -> int:
    """Order of the kinds in a figure."""
    return list(_KIND_COLOURS).index(kind) if kind in _KIND_COLOURS else len(_KIND_COLOURS)
