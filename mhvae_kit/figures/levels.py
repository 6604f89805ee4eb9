"""Pictures of single latent levels: what moves when one is redrawn, swapped, left to its prior or traversed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import plane
from mhvae_kit.figures.style import (
    FOV_COLOUR,
    LABEL_PT,
    SMALL_PT,
    level_order,
    new_figure,
)
from mhvae_kit.metrics import ArrayLike

PANEL_INCHES = 1.3
GREY = {"cmap": "gray", "vmin": -1, "vmax": 1}
CHANGE_MAP, SPREAD_MAP = "RdBu_r", "viridis"
_LIMITS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


@dataclass(frozen=True, kw_only=True)
class LevelRow:
    """One row of `deviation_maps` or `change_grid`.

    Args:
        label: What the row is: "US given T2".
        images: By column title, grey images (H, W) in [-1, 1] left of the levels.
        levels: By level (or "all"), a map (H, W): a deviation, or an image that a level's change has led to.
        reference: What changes are counted from, (H, W); needed by `change_grid`.
        fov: The fan (H, W); maps are shown inside it. None: everywhere.
        notes: By level, text under its map.
    """

    label: str
    images: Mapping[str, ArrayLike]
    levels: Mapping[str, ArrayLike]
    reference: ArrayLike | None = None
    fov: np.ndarray | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def draw_panel(
    axes: Axes, image: np.ndarray, *, fov: np.ndarray | None = None, spacing_mm: float = 1.0, **options: object
) -> AxesImage:
    """One image without ticks, with the fan's outline; `options` go to imshow."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    row, column = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (2,))
    picture = axes.imshow(image, origin="upper", aspect=row / column, interpolation="nearest", **options)
    if fov is not None and fov.any() and not fov.all():
        axes.contour(np.asarray(fov, float), levels=[0.5], colors=[FOV_COLOUR], linewidths=0.7)
    return picture


def round_limit(values: np.ndarray) -> float:
    """End of a colour scale: the first round number that holds 98 % of the absolute values; 2 at most."""
    reach = float(np.quantile(np.abs(values), 0.98)) if values.size else 0.0
    return next((step for step in _LIMITS if reach <= step), 2.0)


def ordered_levels(names: Sequence[str]) -> list[str]:
    """Levels from coarse to fine, then whatever is no level ("all")."""
    levels = level_order([n for n in names if n[:1] == "z"])
    return levels + [n for n in names if n not in levels]


def _columns(rows: Sequence[LevelRow]) -> tuple[list[str], list[str]]:
    """Titles of the image columns and of the level columns, which all rows must share."""
    makeup = {(tuple(r.images), tuple(ordered_levels(list(r.levels)))) for r in rows}
    if len(makeup) != 1 or not next(iter(makeup))[1]:
        raise InputError(
            explain(
                "the rows of a level figure do not fit together",
                got=f"columns {sorted(makeup)}",
                expected="at least one row, with the same images and levels in each",
            )
        )
    images, levels = next(iter(makeup))
    return list(images), list(levels)


def _grid(lines: int, columns: int, height: float, *, title: str, data: str) -> tuple[Figure, np.ndarray]:
    """A figure of small panels."""
    figure = new_figure(columns * (PANEL_INCHES + 0.06) + 1.2, lines * height + 0.7, title=title, data=data)
    return figure, figure.subplots(lines, columns, squeeze=False)


def add_bar(figure: Figure, axes: Sequence[Axes], low: float, high: float, colours: str, label: str) -> None:
    """A colour bar beside some panels; its arrows say that what lies beyond takes the end colours."""
    picture = ScalarMappable(Normalize(low, high), colours)
    options = {"shrink": 0.85 if len(axes) < 12 else 0.4, "pad": 0.01, "aspect": 14}
    extend = "both" if low < 0 else "max"
    bar = figure.colorbar(picture, ax=list(axes), ticks=np.linspace(low, high, 3), extend=extend, **options)
    bar.set_label(label, fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)


def _inside(values: np.ndarray, fov: np.ndarray | None) -> np.ndarray:
    """The map inside the fan, nothing outside."""
    return values if fov is None else np.where(fov, values, np.nan)


def deviation_maps(
    rows: Sequence[LevelRow],
    *,
    data: str,
    spacing_mm: float = 1.0,
    title: str = "Standard deviation when one level is redrawn",
    limit: float | None = None,
) -> Figure:
    """Grey images, then a map of the standard deviation for each level, coarse to fine.

    Args:
        rows: What to show.
        data, spacing_mm, title: As in every figure.
        limit: End of the colour scale; None gives each row a scale and a bar of its own.
    Raises:
        InputError: No row, or rows with different columns.
    """
    titles, names = _columns(rows)
    figure, axes = _grid(len(rows), len(titles) + len(names), PANEL_INCHES + 0.35, title=title, data=data)
    for i, (row, panels) in enumerate(zip(rows, axes, strict=True)):
        for name, panel in zip(titles, panels, strict=False):
            draw_panel(panel, plane(row.images[name], name), fov=row.fov, spacing_mm=spacing_mm, **GREY)
        maps = {k: _inside(np.asarray(row.levels[k], dtype=float), row.fov) for k in names}
        end = limit or round_limit(np.concatenate([m[np.isfinite(m)] for m in maps.values()]))
        for name, panel in zip(names, panels[len(titles) :], strict=True):
            draw_panel(panel, maps[name], spacing_mm=spacing_mm, cmap=SPREAD_MAP, vmin=0, vmax=end)
            panel.set_xlabel(row.notes.get(name, ""), fontsize=SMALL_PT)
        panels[0].set_ylabel(row.label, fontsize=LABEL_PT)
        if limit is None:
            add_bar(figure, panels, 0.0, end, SPREAD_MAP, "std")
        if i == 0:
            for name, panel in zip([*titles, *names], panels, strict=True):
                panel.set_title(name, fontsize=LABEL_PT)
    if limit is not None:
        add_bar(figure, axes.ravel(), 0.0, limit, SPREAD_MAP, "std")
    return figure


def change_grid(
    rows: Sequence[LevelRow],
    *,
    data: str,
    spacing_mm: float = 1.0,
    title: str = "One level changed",
    own_scale: bool = False,
) -> Figure:
    """Two lines a row: the image that each level's change leads to, and below it the difference from the reference.

    Args:
        rows: With `reference`; `images` stand left of the levels, in the upper line.
        data, spacing_mm, title: As in every figure.
        own_scale: Give each difference a scale of its own, whose end is written under it; else all share one.
    """
    titles, names = _columns(rows)
    if any(r.reference is None for r in rows):
        raise InputError(explain("a row has no reference to count changes from"))
    changes = [
        {k: _inside(plane(r.levels[k], k) - plane(r.reference, "reference"), r.fov) for k in names} for r in rows
    ]
    shared = round_limit(np.concatenate([c[np.isfinite(c)] for row in changes for c in row.values()]))
    height = PANEL_INCHES + 0.25
    figure, axes = _grid(2 * len(rows), len(titles) + len(names), height, title=title, data=data)
    for i, (row, change) in enumerate(zip(rows, changes, strict=True)):
        upper, lower = axes[2 * i], axes[2 * i + 1]
        for name, panel, below in zip(titles, upper, lower, strict=False):
            draw_panel(panel, plane(row.images[name], name), fov=row.fov, spacing_mm=spacing_mm, **GREY)
            below.axis("off")
        for name, panel, below in zip(names, upper[len(titles) :], lower[len(titles) :], strict=True):
            draw_panel(panel, plane(row.levels[name], name), fov=row.fov, spacing_mm=spacing_mm, **GREY)
            end = round_limit(change[name][np.isfinite(change[name])]) if own_scale else shared
            draw_panel(below, change[name], spacing_mm=spacing_mm, cmap=CHANGE_MAP, vmin=-end, vmax=end)
            scale = [f"scale ±{end:g}"] if own_scale else []
            below.set_xlabel("\n".join([*scale, row.notes.get(name, "")]).strip(), fontsize=SMALL_PT)
        upper[0].set_ylabel(row.label, fontsize=LABEL_PT)
        lower[len(titles)].set_ylabel("change", fontsize=LABEL_PT)
        for name, panel in zip([*titles, *names], upper, strict=True):
            panel.set_title(name, fontsize=LABEL_PT)
    if own_scale:
        add_bar(figure, axes.ravel(), -1.0, 1.0, CHANGE_MAP, "change / end of the panel's scale")
    else:
        add_bar(figure, axes.ravel(), -shared, shared, CHANGE_MAP, "change of intensity")
    return figure


def traversal_grid(
    images: Mapping[str, Mapping[str, np.ndarray]],
    steps: Sequence[float],
    *,
    data: str,
    fov: np.ndarray | None = None,
    spacing_mm: float = 1.0,
    title: str = "Traversals",
) -> Figure:
    """A row for each unit; for each target the image at each step, then how far each pixel moves over all steps.

    Args:
        images: By row title and target, (len(steps), H, W) in [-1, 1]; the same targets in each row.
        steps: Offsets in standard deviations of the prior.
        data, spacing_mm, title: As in every figure.
        fov: The fan (H, W).
    """
    targets = {tuple(by_target) for by_target in images.values()}
    lengths = {len(x) for by_target in images.values() for x in by_target.values()}
    if len(targets) != 1 or lengths != {len(steps)}:
        raise InputError(explain("there is nothing to traverse", got=f"{len(images)} rows for {len(steps)} steps"))
    names = next(iter(targets))
    moved = {(k, m): _inside(np.ptp(x, axis=0), fov) for k, by in images.items() for m, x in by.items()}
    limit = round_limit(np.concatenate([m[np.isfinite(m)] for m in moved.values()]))
    width = len(steps) + 1
    figure, axes = _grid(len(images), width * len(names), PANEL_INCHES + 0.1, title=title, data=data)
    for (label, by_target), line in zip(images.items(), axes, strict=True):
        for i, (target, stack) in enumerate(by_target.items()):
            panels = line[i * width : (i + 1) * width]
            for image, panel in zip(stack, panels, strict=False):
                draw_panel(panel, plane(image, label), fov=fov, spacing_mm=spacing_mm, **GREY)
            shown = {"cmap": SPREAD_MAP, "vmin": 0, "vmax": limit}
            draw_panel(panels[-1], moved[label, target], spacing_mm=spacing_mm, **shown)
        line[0].set_ylabel(label, fontsize=LABEL_PT)
    heads = [*[f"{s:+g} std" if s else "as inferred" for s in steps], "moved"]
    for i, panel in enumerate(axes[0]):
        panel.set_title(f"{names[i // width]}: {heads[i % width]}", fontsize=LABEL_PT)
    add_bar(figure, axes.ravel(), 0.0, limit, SPREAD_MAP, "largest minus smallest intensity")
    return figure
