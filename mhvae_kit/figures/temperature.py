"""Figures of the temperature: what it does to score, spread and texture, and whether the spread can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import plane
from mhvae_kit.figures.levels import GREY, PANEL_INCHES, SPREAD_MAP, add_bar, draw_panel, round_limit
from mhvae_kit.figures.style import LABEL_PT, NEUTRAL_COLOUR, SMALL_PT, new_figure, plain_axes
from mhvae_kit.metrics import ArrayLike

# Models have no colour of their own; with the markers they are told apart in grey, too.
_SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
_STYLES = ("-", ":", "-.", (0, (1, 3)))
_MARK = {"color": NEUTRAL_COLOUR, "linewidth": 0.9, "linestyle": ":"}
MEASURE_LABELS = {
    "psnr_fov_db": "PSNR in fan (dB)",
    "spread": "spread between samples (std)",
    "spectrum_distance_db": "distance from the real spectrum (dB)",
    "envelope_snr": "envelope SNR",
    "grain_lateral_mm": "grain, lateral (mm)",
    "contrast_db": "tumour contrast (dB)",
}


@dataclass(frozen=True, kw_only=True)
class UncertaintyRow:
    """One slice in `uncertainty_maps`; all images (H, W).

    Args:
        label: What the row is.
        images: By title, grey images in [-1, 1]: truth, mean of the samples.
        error: Absolute error of the mean.
        std: Standard deviation of the samples.
        fov: The fan.
    """

    label: str
    images: Mapping[str, ArrayLike]
    error: np.ndarray
    std: np.ndarray
    fov: np.ndarray


def temperature_strip(
    rows: Mapping[str, Sequence[np.ndarray]],
    titles: Sequence[str],
    *,
    data: str,
    fov: np.ndarray | None = None,
    spacing_mm: float = 1.0,
    title: str = "One draw at rising temperature",
    marked: Sequence[str] = (),
) -> Figure:
    """Grey images side by side, a row for each direction or setting; columns in `marked` have a bold title.

    Args:
        rows: By row title, as many images (H, W) in [-1, 1] as there are titles.
        titles: Of the columns.
        data: What the images are of.
        fov: The fan, drawn as an outline.
        spacing_mm, title: As in every figure.
        marked: Titles to stress.
    """
    if not rows or any(len(images) != len(titles) for images in rows.values()):
        raise InputError(
            explain("the rows do not fit the columns", got={k: len(v) for k, v in rows.items()}, expected=len(titles))
        )
    size = (len(titles) * (PANEL_INCHES + 0.06) + 1.0, len(rows) * (PANEL_INCHES + 0.12) + 0.7)
    figure = new_figure(*size, title=title, data=data)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for (label, images), panels in zip(rows.items(), axes, strict=True):
        for image, panel in zip(images, panels, strict=True):
            draw_panel(panel, plane(image, label), fov=fov, spacing_mm=spacing_mm, **GREY)
        panels[0].set_ylabel(label, fontsize=LABEL_PT)
    for name, panel in zip(titles, axes[0], strict=True):
        panel.set_title(name, fontsize=LABEL_PT, fontweight="bold" if name in marked else "normal")
    return figure


def uncertainty_maps(
    rows: Sequence[UncertaintyRow], *, data: str, spacing_mm: float = 1.0, title: str = "Spread and error"
) -> Figure:
    """Grey images, then the absolute error of the mean and the samples' deviation on one scale, inside the fan.

    Raises:
        InputError: No row, or rows with different images.
    """
    if not rows or len({tuple(r.images) for r in rows}) != 1:
        raise InputError(explain("the rows of an uncertainty figure do not fit together", got=f"{len(rows)} rows"))
    titles = list(rows[0].images)
    names = [*titles, "error of the mean", "deviation of the samples"]
    limit = round_limit(np.concatenate([r.error[r.fov] for r in rows]))
    size = (len(names) * (PANEL_INCHES + 0.3) + 1.4, len(rows) * (PANEL_INCHES + 0.3) + 0.7)
    figure = new_figure(*size, title=title, data=data)
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for row, panels in zip(rows, axes, strict=True):
        for name, panel in zip(titles, panels, strict=False):
            draw_panel(panel, plane(row.images[name], name), fov=row.fov, spacing_mm=spacing_mm, **GREY)
        for values, panel in zip((row.error, row.std), panels[len(titles) :], strict=True):
            shown = np.where(row.fov, values, np.nan)
            draw_panel(panel, shown, spacing_mm=spacing_mm, cmap=SPREAD_MAP, vmin=0, vmax=limit)
        panels[0].set_ylabel(row.label, fontsize=LABEL_PT)
    for name, panel in zip(names, axes[0], strict=True):
        panel.set_title(name, fontsize=LABEL_PT)
    add_bar(figure, axes.ravel(), 0.0, limit, SPREAD_MAP, "intensity")
    return figure


def temperature_curves(
    summaries: Mapping[str, pd.DataFrame],
    *,
    data: str,
    marks: Mapping[float, str],
    title: str = "What the temperature does",
    measures: Mapping[str, str] = MEASURE_LABELS,
) -> Figure:
    """A panel for each measure over τ, a curve for each model with its interval; the real images are a dashed line.

    Args:
        summaries: By model, from `evaluation.temperature.sweep_summary`.
        data: What the images are of.
        marks: Temperatures with a vertical line, and who chose them; the legend says both.
        title: Title of the figure.
        measures: Measure -> label of its axis.
    """
    if not summaries or any(s.empty for s in summaries.values()):
        raise InputError(explain("there is no temperature to draw", got=f"{len(summaries)} models"))
    columns = min(len(measures), 3)
    lines = -(-len(measures) // columns)
    figure = new_figure(3.5 * columns, 2.6 * lines + 1.0, title=title, data=data)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (measure, label) in zip(axes, measures.items(), strict=False):
        plain_axes(panel)
        _marks(panel, marks)
        for (name, summary), (colour, marker) in zip(summaries.items(), _SERIES, strict=False):
            _temperature_curve(panel, summary[summary["measure"] == measure], name, colour, marker)
        panel.set_ylabel(label, fontsize=LABEL_PT)
        panel.set_xlabel("temperature τ", fontsize=LABEL_PT)
    for spare in axes[len(measures) :]:
        spare.set_visible(False)
    entries: dict[str, object] = {}
    for panel in axes:
        entries |= {n: h for h, n in zip(*panel.get_legend_handles_labels(), strict=True) if n not in entries}
    for tau, chosen_by in marks.items():
        entries[f"τ = {tau:g}: {chosen_by}"] = Line2D([], [], **_MARK)
    options = {"ncols": min(len(entries), 6), "fontsize": SMALL_PT, "handlelength": 3}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", **options)
    return figure


def _temperature_curve(axes: Axes, rows: pd.DataFrame, name: str, colour: str, marker: str) -> None:
    """One measure of one model; real images as a dashed line, drawn once."""
    made = rows[rows["kind"] == "synthetic"].sort_values("temperature")
    real = rows[rows["kind"] == "real"]
    axes.plot(made["temperature"], made["mean"], color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=name)
    axes.fill_between(
        made["temperature"].astype(float), made["low"], made["high"], color=colour, alpha=0.15, linewidth=0
    )
    if len(real) and "real" not in axes.get_legend_handles_labels()[1]:
        axes.axhline(real["mean"].iloc[0], color="#000000", linewidth=1.2, linestyle="--", label="real")


def _marks(axes: Axes, marks: Mapping[float, str]) -> None:
    """Vertical lines at chosen temperatures, with the temperature on top; the legend says who chose it."""
    for tau in marks:
        axes.axvline(tau, **_MARK)
        place = {"xycoords": axes.get_xaxis_transform(), "xytext": (0, 2), "textcoords": "offset points"}
        axes.annotate(f"{tau:g}", (tau, 1.0), ha="center", fontsize=SMALL_PT - 1, color=NEUTRAL_COLOUR, **place)


def reliability_curves(
    summaries: Mapping[str, Mapping[str, pd.DataFrame]],
    *,
    data: str,
    title: str = "Do intervals hold what they say?",
) -> Figure:
    """Share of true pixels inside the interval over the share it claims; on the diagonal the claim is true.

    Args:
        summaries: By model (a colour each) and setting (a marker and a line each), from
            `evaluation.calibration.coverage_summary` at one temperature.
        data, title: As in every figure.
    """
    tables = [table for settings in summaries.values() for table in settings.values()]
    if not tables or any(t.empty or t["level"].duplicated().any() for t in tables):
        raise InputError(explain("reliability needs one row a level", got=f"{len(tables)} settings"))
    figure = new_figure(7.2, 3.9, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    axes.plot([0, 1], [0, 1], color=NEUTRAL_COLOUR, linewidth=1, linestyle="--", label="as claimed")
    for (model, settings), (colour, _) in zip(summaries.items(), _SERIES, strict=False):
        for (setting, rows), (_, marker), style in zip(settings.items(), _SERIES, _STYLES, strict=False):
            rows = rows.sort_values("level")
            look = {"color": colour, "marker": marker, "linestyle": style, "label": f"{model}, {setting}"}
            axes.plot(rows["level"], rows["covered"], markersize=4, linewidth=1.4, **look)
            axes.vlines(rows["level"], rows["covered_low"], rows["covered_high"], color=colour, linewidth=1.2)
    axes.set_xlim(0.45, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of true pixels that the interval claims", fontsize=LABEL_PT)
    axes.set_ylabel("share that it holds", fontsize=LABEL_PT)
    figure.legend(loc="outside right center", fontsize=SMALL_PT, handlelength=3)
    return figure


def spread_error_plot(
    tables: Mapping[str, pd.DataFrame], *, data: str, title: str = "Is the model less sure where it is wrong?"
) -> Figure:
    """Error of the mean over the spread of the samples, by bins of pixels; on the diagonal both are equal.

    Args:
        tables: By setting, from `evaluation.calibration.spread_and_error`.
        data, title: As in every figure.
    """
    if not tables or any(t.empty for t in tables.values()):
        raise InputError(explain("there are no bins to draw", got=f"{len(tables)} settings"))
    figure = new_figure(6.6, 3.9, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    reach = max(max(t["expected"].max(), t["error"].max()) for t in tables.values()) * 1.05
    axes.plot([0, reach], [0, reach], color=NEUTRAL_COLOUR, linewidth=1, linestyle="--", label="error = spread")
    for (name, table), (colour, marker) in zip(tables.items(), _SERIES, strict=False):
        axes.plot(table["expected"], table["error"], color=colour, marker=marker, markersize=4, label=name)
    axes.set_xlim(0, reach)
    axes.set_ylim(0, reach)
    axes.set_xlabel("error expected from the spread", fontsize=LABEL_PT)
    axes.set_ylabel("error of the mean (root mean square)", fontsize=LABEL_PT)
    figure.legend(loc="outside right center", fontsize=SMALL_PT)
    return figure
