"""Figures of the degradation study: Dice on real ultrasound by defect and dose, by route, by size and by metric.

The pictures behind the numbers are in `degradation_sheet`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import LABEL_PT, NEUTRAL_COLOUR, SMALL_PT, new_figure, plain_axes

# Okabe and Ito's colours; the markers tell the kinds and routes apart without colour too.
KIND_LOOKS: dict[str, tuple[str, str]] = {
    "texture": ("#0072B2", "o"),
    "intensity": ("#E69F00", "s"),
    "geometry": ("#D55E00", "D"),
    "content": ("#009E73", "^"),
    "model": ("#CC79A7", "v"),
}
"""Colour and marker of each kind of defect."""
_SERIES_LOOKS = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "D"), ("#009E73", "^"), ("#CC79A7", "v"))
_COLUMNS = 5
_LABELLED = 4
_CEILING_COLOUR = "#000000"
_DICE = "Dice on real ultrasound"


def _table(frame: pd.DataFrame, what: str, words: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """The table with its rows counted anew, if it has rows, all its columns, and numbers in `numbers`."""
    missing = [c for c in (*words, *numbers) if c not in frame]
    if missing or frame.empty:
        got = f"no column {', '.join(missing)}" if missing else "an empty table"
        raise InputError(explain(f"the {what} cannot be drawn", got=got, expected=", ".join((*words, *numbers))))
    strange = [c for c in numbers if not np.isfinite(frame[c].to_numpy(dtype=float)).all()]
    if strange:
        raise InputError(
            explain(f"the {what} cannot be drawn", got=f"no number in {', '.join(strange)}", expected="finite numbers")
        )
    return frame.reset_index(drop=True)


def _known_kinds(kinds: pd.Series) -> list[str]:
    """The kinds that occur, in the order of `KIND_LOOKS`."""
    strange = sorted({str(k) for k in kinds} - set(KIND_LOOKS))
    if strange:
        raise InputError(
            explain("unknown kind of defect", got=", ".join(strange), expected="one of " + ", ".join(KIND_LOOKS))
        )
    return [k for k in KIND_LOOKS if k in set(kinds)]


def _unique(frame: pd.DataFrame, columns: list[str], what: str) -> None:
    """Refuse a table that says two things of the same point."""
    twice = frame[frame.duplicated(columns)]
    if len(twice):
        named = ", ".join(str(v) for v in twice.iloc[0][columns])
        raise InputError(explain(f"the {what} have the same point twice", got=named, expected="one row for each"))


def _kind_handles(kinds: Sequence[str], line: str = "") -> list[Line2D]:
    """Entries of a legend, one a kind."""
    looks = {k: KIND_LOOKS[k] for k in kinds}
    return [Line2D([], [], color=c, marker=m, markersize=5, linestyle=line, label=k) for k, (c, m) in looks.items()]


def dose_response(
    curves: pd.DataFrame,
    *,
    data: str,
    ceiling: tuple[float, float, float] | None = None,
    title: str = "Dice by dose of each defect",
) -> Figure:
    """Dice over dose, a small panel a defect, that of the largest loss first; the same axes in all of them.

    The loss that orders the panels is Dice at dose 0 minus Dice at the defect's largest dose.

    Args:
        curves: Columns defect (as in titles), kind (of `KIND_LOOKS`), dose (0 to 1), dice, dice_low, dice_high; one row
            a defect and dose, dose 0 among them. An interval that is not finite is left out.
        data: What was segmented, such as "phantom".
        ceiling: Mean, low and high Dice of training on real ultrasound: dashed, the interval as a band.
        title: Title of the figure.
    Raises:
        InputError: No row, a missing column, an unknown kind, a dose outside 0 to 1 or twice, a defect without dose 0.
    """
    table = _table(curves, "curves", ("defect", "kind", "dice_low", "dice_high"), ("dose", "dice"))
    kinds, parts = _known_kinds(table["kind"]), _by_loss(table)
    columns = min(_COLUMNS, len(parts))
    rows = -(-len(parts) // columns)
    width = max(2.15 * columns + 0.6, 6.0)
    figure = new_figure(width, 1.75 * rows + 1.2, title=title, data=data)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.ravel())
    for k, (panel, part) in enumerate(zip(panels, parts, strict=False)):
        _dose_panel(panel, part, ceiling)
        if k + columns >= len(parts):  # nothing below it
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("dose", fontsize=LABEL_PT)
    for panel in panels[len(parts) :]:
        panel.axis("off")
    panels[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panels[0].set_xlim(-0.08, 1.08)
    figure.supylabel(_DICE, fontsize=LABEL_PT)
    handles = _kind_handles(kinds, "-")
    handles.append(Line2D([], [], color=NEUTRAL_COLOUR, linewidth=1, label="clean synthetic images (dose 0)"))
    if ceiling is not None:
        dashed = {"color": _CEILING_COLOUR, "linewidth": 1, "linestyle": "--"}
        handles.append(Line2D([], [], label="trained on real ultrasound", **dashed))
    options = {"loc": "outside lower center", "fontsize": SMALL_PT, "frameon": False}
    figure.legend(handles=handles, ncols=min(len(handles), int(width / 1.4)), **options)
    return figure


def _by_loss(curves: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each defect by dose; that with the largest loss at its largest dose comes first."""
    if not curves["dose"].between(0, 1).all():
        raise InputError(explain("a dose is not usable", got=sorted(set(curves["dose"])), expected="from 0 to 1"))
    _unique(curves, ["defect", "dose"], "curves")
    parts = [part.sort_values("dose") for _, part in curves.groupby("defect", sort=False)]
    without = [part["defect"].iloc[0] for part in parts if part["dose"].iloc[0] != 0]
    if without:
        raise InputError(explain("a defect has no clean images", got=", ".join(without), expected="a row of dose 0"))
    return sorted(parts, key=lambda part: part["dice"].iloc[-1] - part["dice"].iloc[0])


def _dose_panel(axes: Axes, part: pd.DataFrame, ceiling: tuple[float, float, float] | None) -> None:
    """One defect: its line with intervals, clean images as a line, the ceiling dashed."""
    colour, marker = KIND_LOOKS[part["kind"].iloc[0]]
    plain_axes(axes)
    axes.axhline(part["dice"].iloc[0], color=NEUTRAL_COLOUR, linewidth=0.9, zorder=1.5)
    if ceiling is not None:
        axes.axhline(ceiling[0], color=_CEILING_COLOUR, linewidth=0.9, linestyle="--", zorder=1.5)
        if np.isfinite(ceiling[1:]).all():
            axes.axhspan(*ceiling[1:], color=_CEILING_COLOUR, alpha=0.07, linewidth=0)
    axes.vlines(part["dose"], part["dice_low"], part["dice_high"], color=colour, linewidth=2.2, alpha=0.5)
    axes.plot(part["dose"], part["dice"], color=colour, marker=marker, markersize=4.5, linewidth=1.5)
    axes.set_title(textwrap.fill(part["defect"].iloc[0], 26), fontsize=LABEL_PT)


def route_intervals(routes: pd.DataFrame, *, data: str, title: str = "Dice by route to the training images") -> Figure:
    """Dice of each route with its interval, under the heading of its group; the value stands on the right.

    Groups keep the order of the table, the best route of each stands first.

    Args:
        routes: Columns route (as in titles), group, dice, dice_low, dice_high; one row a route.
        data: What was segmented, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No row, a missing column, Dice that is no number, a route twice.
    """
    table = _table(routes, "routes", ("route", "group", "dice_low", "dice_high"), ("dice",))
    _unique(table, ["group", "route"], "routes")
    groups = list(dict.fromkeys(table["group"]))
    figure = new_figure(8.0, 0.235 * (len(table) + 1.4 * len(groups)) + 1.0, title=title, data=data)
    axes, labels, headings, place = figure.subplots(), {}, [], 0.0
    plain_axes(axes)
    for k, group in enumerate(groups):
        colour, marker = _SERIES_LOOKS[k % len(_SERIES_LOOKS)]
        headings.append(len(labels))
        labels[place] = str(group)
        for row in table[table["group"] == group].sort_values("dice", ascending=False).itertuples():
            place += 1
            labels[place] = str(row.route)
            axes.hlines(place, row.dice_low, row.dice_high, color=colour, linewidth=2.2, alpha=0.5)
            axes.plot([row.dice], [place], marker=marker, color=colour, markersize=5)
            options = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": SMALL_PT}
            axes.text(1.01, place, f"{row.dice:.3f}", **options)
        place += 1.4
    axes.set_yticks(list(labels), list(labels.values()), fontsize=LABEL_PT)
    for k in headings:
        axes.yaxis.get_majorticklabels()[k].set_fontweight("bold")
        axes.yaxis.get_major_ticks()[k].gridline.set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.7, -0.7)
    axes.set_xlabel(_DICE, fontsize=LABEL_PT)
    return figure


def size_cliff(scores: pd.DataFrame, *, data: str, title: str = "Dice by size of the lesion") -> Figure:
    """Dice of every patient over the volume of the lesion; a line a route joins the medians of both halves by size.

    Args:
        scores: Columns route (as in titles), case, volume_ml (millilitres, above 0), dice; one row a route and case.
        data: What was segmented, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No row, a missing column, more routes than can be told apart, a volume of 0 or less, a case twice.
    """
    table = _table(scores, "scores", ("route", "case"), ("volume_ml", "dice"))
    _unique(table, ["route", "case"], "scores")
    names = list(dict.fromkeys(table["route"]))
    if len(names) > len(_SERIES_LOOKS):
        raise InputError(explain("too many routes to tell apart", got=len(names), expected=f"{len(_SERIES_LOOKS)}"))
    if not (table["volume_ml"] > 0).all():
        raise InputError(explain("a lesion has no volume", got=table["volume_ml"].min(), expected="above 0 ml"))
    figure = new_figure(8.6, 4.4, title=title, data=data)
    axes, middle = figure.subplots(), table.drop_duplicates("case")["volume_ml"].median()
    plain_axes(axes)
    for name, (colour, marker) in zip(names, _SERIES_LOOKS, strict=False):
        part = table[table["route"] == name]
        look = {"color": colour, "marker": marker}
        axes.plot(part["volume_ml"], part["dice"], linestyle="", markersize=5, alpha=0.55, markeredgewidth=0, **look)
        halves = part.groupby(part["volume_ml"] > middle)[["volume_ml", "dice"]].median()
        axes.plot(halves["volume_ml"], halves["dice"], markersize=9, markeredgecolor="white", label=name, **look)
    axes.axvline(middle, color=NEUTRAL_COLOUR, linewidth=0.9, linestyle=":")
    axes.set_xscale("log")
    _plain_ticks(axes)
    axes.set_xlabel("volume of the lesion (ml; dotted: median; large marks: medians of each half)", fontsize=LABEL_PT)
    axes.set_ylabel(_DICE, fontsize=LABEL_PT)
    figure.legend(loc="outside right center", fontsize=SMALL_PT, frameon=False)
    return figure


def _plain_ticks(axes: Axes) -> None:
    """Volumes as 0.5, 1, 2, 3, 5: a logarithmic axis without powers of ten."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def metric_forest(
    correlations: pd.DataFrame, *, data: str, title: str = "Which metric of the training images foresees Dice"
) -> Figure:
    """Rank correlation of each metric with Dice, the strongest first; grey where the interval holds 0.

    Args:
        correlations: Columns metric (as in titles), rho, rho_low, rho_high (Spearman's, over all cells) and rho_within
            (mean within a defect; NaN leaves it out); one row a metric.
        data: What was measured, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No row, a missing column, a correlation that is no number, a metric twice.
    """
    table = _table(correlations, "correlations", ("metric", "rho_within"), ("rho", "rho_low", "rho_high"))
    _unique(table, ["metric"], "correlations")
    table = table.sort_values("rho", key=lambda rho: -rho.abs(), kind="stable")
    figure = new_figure(7.6, 0.4 * len(table) + 1.7, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    axes.axvline(0.0, color=NEUTRAL_COLOUR, linewidth=1.2)
    for y, row in enumerate(table.itertuples()):
        colour = _FOREST["with 0 in it"] if row.rho_low <= 0 <= row.rho_high else _FOREST["without 0"]
        axes.hlines(y, row.rho_low, row.rho_high, color=colour, linewidth=2.6, alpha=0.6)
        axes.plot([row.rho], [y], marker="o", color=colour, markersize=7)
        if np.isfinite(row.rho_within):
            axes.plot([row.rho_within], [y + 0.28], **_HOLLOW)
    axes.set_yticks(range(len(table)), list(table["metric"]), fontsize=LABEL_PT)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1", "-0.5", "0", "0.5", "1"])
    axes.set_xlabel("Spearman's rank correlation with Dice on real ultrasound", fontsize=LABEL_PT)
    handles = [
        Line2D([], [], marker="o", color=colour, linewidth=2.6, label=f"all cells, interval {words}")
        for words, colour in _FOREST.items()
    ]
    handles.append(Line2D([], [], label="mean within a defect", **_HOLLOW))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=SMALL_PT, frameon=False)
    return figure


_FOREST = {"without 0": "#0072B2", "with 0 in it": "#8A8A8A"}
_HOLLOW = {"marker": "o", "color": "black", "markerfacecolor": "white", "markersize": 5, "linestyle": ""}


def metric_scatter(
    cells: pd.DataFrame, *, metric: str, label: str, data: str, title: str = "Dice against a metric of training images"
) -> Figure:
    """Each cell as a dot, Dice over the metric, coloured by kind and larger with dose; the four worst defects named.

    Args:
        cells: Columns defect (as in titles), kind (of `KIND_LOOKS`; any at dose 0), dose (0 to 1), dice, dice_low,
            dice_high, and the metric. Rows of dose 0 are the clean images; rows without the metric are left out.
        metric: The column on the x axis.
        label: Of the x axis, with the unit.
        data: What was segmented, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No row with the metric, a missing column, an unknown kind.
    """
    table = _table(cells, "cells", ("defect", "kind", "dice_low", "dice_high", metric), ("dose", "dice"))
    table = table[np.isfinite(table[metric].to_numpy(dtype=float))]
    if table.empty:
        raise InputError(explain("no cell has the metric", got=metric, expected="a finite number in one row at least"))
    degraded, clean = table[table["dose"] > 0], table[table["dose"] == 0].drop_duplicates([metric, "dice"])
    kinds = _known_kinds(degraded["kind"])
    figure = new_figure(8.4, 4.8, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    drawn = pd.concat([degraded, clean])
    axes.vlines(drawn[metric], drawn["dice_low"], drawn["dice_high"], color="#9A9A9A", linewidth=0.8, alpha=0.6)
    for kind in kinds:
        part, (colour, marker) = degraded[degraded["kind"] == kind], KIND_LOOKS[kind]
        look = {"color": colour, "marker": marker, "edgecolor": "white", "linewidth": 0.5}
        axes.scatter(part[metric], part["dice"], s=_dot_area(part["dose"]), zorder=3, **look)
    axes.plot(clean[metric], clean["dice"], "*", color="black", markersize=13, markeredgecolor="white", zorder=4)
    axes.set_xlabel(label, fontsize=LABEL_PT)
    axes.set_ylabel(_DICE, fontsize=LABEL_PT)
    handles = _kind_handles(kinds)
    for dose in sorted(set(degraded["dose"])):
        look = {"marker": "o", "color": NEUTRAL_COLOUR, "markerfacecolor": "white", "linestyle": ""}
        handles.append(Line2D([], [], markersize=_dot_area(dose) ** 0.5, label=f"dose {dose:g}", **look))
    if len(clean):
        handles.append(Line2D([], [], marker="*", color="black", markersize=11, linestyle="", label="clean images"))
    figure.legend(handles=handles, loc="outside right center", fontsize=SMALL_PT, frameon=False)
    _name_worst(figure, axes, degraded, metric)  # last, as it needs the final places
    return figure


def _dot_area(dose: pd.Series | float) -> pd.Series | float:
    """Area of a dot in square points."""
    return 16.0 + 64.0 * dose


def _name_worst(figure: Figure, axes: Axes, degraded: pd.DataFrame, metric: str) -> None:
    """Names of the defects with the lowest Dice beside their worst cell, each where it covers least."""
    worst = degraded.sort_values("dice").drop_duplicates("defect").head(_LABELLED)
    axes.margins(x=0.06, y=0.1)
    figure.draw_without_rendering()
    ends = degraded[["dice_low", "dice_high"]].to_numpy(dtype=float)
    ends = np.where(np.isfinite(ends), ends, degraded[["dice"]].to_numpy(dtype=float))
    places = [[axes.transData.transform((x, y)) for y in pair] for x, pair in zip(degraded[metric], ends, strict=True)]
    taken = [Bbox(pair).padded(4) for pair in places]
    for row in worst.to_dict("records"):
        tried = [_named(axes, row["defect"], (row[metric], row["dice"]), offset) for offset in _OFFSETS]
        boxes = [_words_box(name) for name in tried]
        inside = [axes.bbox.x0 < b.x0 and b.x1 < axes.bbox.x1 and axes.bbox.y0 < b.y0 for b in boxes]
        covered = [b.count_overlaps(taken) + 100 * (not within) for b, within in zip(boxes, inside, strict=True)]
        best = int(np.argmin(covered))
        taken += [boxes[best].padded(2)] * 10  # a name on a name is worse than a name on a dot
        for k, name in enumerate(tried):
            if k != best:
                name.remove()


_OFFSETS = [
    (s * x, y) for x, y in ((10, 0), (10, -14), (10, 14), (0, -26), (16, -30), (16, 30), (45, 0)) for s in (1, -1)
]


def _named(axes: Axes, words: str, place: tuple[float, float], offset: tuple[float, float]) -> Annotation:
    """A name some points away from its dot, with a thin line between them."""
    side = "left" if offset[0] > 0 else "right" if offset[0] < 0 else "center"
    line = {"arrowstyle": "-", "color": NEUTRAL_COLOUR, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    look = {"ha": side, "va": "center", "fontsize": SMALL_PT, "zorder": 5, "arrowprops": line}
    return axes.annotate(words, place, offset, textcoords="offset points", **look)


def _words_box(name: Annotation) -> Bbox:
    """Where the words stand, in pixels, without the line to the dot."""
    name.get_window_extent()  # puts the words in their place
    return Text.get_window_extent(name)
