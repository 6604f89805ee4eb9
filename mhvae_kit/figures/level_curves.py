"""Curves over the latent levels: how finely each changes an image, how much, its KL, and what dropping it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import (
    LABEL_PT,
    NEUTRAL_COLOUR,
    SMALL_PT,
    level_colours,
    level_order,
    modality_colour,
    new_figure,
    plain_axes,
)

_BAND_COLOUR = "#EFEFEF"


def condition_look(condition: str) -> dict[str, object]:
    """Colour and line of "us given t2": the target's colour; dotted when nothing is observed."""
    target, _, observed = condition.partition(" given ")
    styles = {"nothing": ":", target: "--"}
    style = styles.get(observed, "--" if "+" in observed else "-")
    return {"color": modality_colour(target), "linestyle": style, "label": condition}


def _level_axis(axes: Axes, names: Sequence[str]) -> None:
    """Levels along x, coarse to fine."""
    plain_axes(axes)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL_PT)
    axes.set_xlabel("latent level, coarse to fine", fontsize=LABEL_PT)


def level_curves(
    summary: pd.DataFrame,
    measures: Mapping[str, str],
    *,
    data: str,
    title: str = "What each level changes",
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """A panel for each measure, a curve for each condition over the levels, with intervals where there are some.

    Args:
        summary: Rows with condition, level and each measure (and <measure>_low, <measure>_high).
        measures: Column -> label of its axis.
        data, title: As in every figure.
        lines: By measure, named horizontal lines: {"centroid_per_mm": {"white noise": 0.33}}.
    """
    missing = [c for c in ("condition", "level", *measures) if c not in summary]
    if missing or summary.empty:
        raise InputError(explain("there are no levels to draw", got=f"no {', '.join(missing) or 'rows'}"))
    names = level_order(dict.fromkeys(summary["level"]))
    columns = min(len(measures), 2)
    n_lines = -(-len(measures) // columns)
    figure = new_figure(4.3 * columns, 2.7 * n_lines + 0.9, title=title, data=data)
    axes = figure.subplots(n_lines, columns, squeeze=False).ravel()
    conditions = list(dict.fromkeys(summary["condition"]))
    for panel, (measure, label) in zip(axes, measures.items(), strict=False):
        _level_axis(panel, names)
        for i, condition in enumerate(conditions):
            rows = summary[summary["condition"] == condition].set_index("level").reindex(names)
            # Beside one another, so that intervals of different conditions stay readable.
            x = np.arange(len(names)) + 0.09 * (i - (len(conditions) - 1) / 2)
            look = condition_look(condition)
            panel.plot(x, rows[measure], marker="o", markersize=4, linewidth=1.4, **look)
            if f"{measure}_low" in rows:
                panel.vlines(x, rows[f"{measure}_low"], rows[f"{measure}_high"], color=look["color"], linewidth=1.2)
        for name, value in (lines or {}).get(measure, {}).items():
            panel.axhline(value, color=NEUTRAL_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)))
            panel.annotate(name, (0, value), xytext=(0, 2), textcoords="offset points", fontsize=SMALL_PT - 1)
        panel.set_ylabel(label, fontsize=LABEL_PT)
        panel.set_ylim(bottom=0)
    for spare in axes[len(measures) :]:
        spare.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=SMALL_PT, handlelength=3)
    return figure


def change_spectra(
    frequency: np.ndarray,
    spectra: Mapping[str, Mapping[str, np.ndarray]],
    centroids: Mapping[str, Mapping[str, float]],
    *,
    data: str,
    layout_mm: float,
    texture_mm: float,
    title: str = "Spectrum of the change that each level makes",
) -> Figure:
    """Power over radial frequency, a panel for each condition, a curve for each level; its dot is the centroid.

    Args:
        frequency: (K,) in cycles/mm.
        spectra: By condition and level, power (K,); a level that changes nothing has no curve.
        centroids: By condition and level, cycles/mm.
        data, title: As in every figure.
        layout_mm, texture_mm: Wavelengths above and below which a band is shaded and named.
    """
    if not spectra or any(p.shape != frequency.shape for by_level in spectra.values() for p in by_level.values()):
        raise InputError(
            explain("these are not spectra of changes", expected=f"{len(frequency)} values for each level")
        )
    figure = new_figure(4.3 * len(spectra), 3.9, title=title, data=data)
    axes = figure.subplots(1, len(spectra), squeeze=False, sharey=True)[0]
    for panel, (condition, by_level) in zip(axes, spectra.items(), strict=True):
        plain_axes(panel)
        # From the first measured frequency on: on a logarithmic axis each octave gets as much room as the next.
        bands = (("layout", frequency[0], 1 / layout_mm), ("texture", 1 / texture_mm, frequency[-1]))
        for name, begin, end in bands:
            panel.axvspan(begin, end, color=_BAND_COLOUR, zorder=0, linewidth=0)
            place = {"xycoords": panel.get_xaxis_transform(), "ha": "center", "fontsize": SMALL_PT - 1}
            panel.annotate(name, (np.sqrt(begin * end), 0.01), color=NEUTRAL_COLOUR, **place)
        for level, colour in level_colours(by_level).items():
            _spectrum_curve(panel, frequency, by_level[level], centroids[condition][level], colour)
        panel.set_xscale("log")
        panel.set_xlim(frequency[0], frequency[-1])
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if frequency[0] <= t <= frequency[-1]]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.set_xlabel("radial frequency (cycles/mm)", fontsize=LABEL_PT)
        panel.set_title(condition, fontsize=LABEL_PT)
    axes[0].set_ylabel("power of the change (dB re 1 mm²)", fontsize=LABEL_PT)
    colours = level_colours(dict.fromkeys(k for by_level in spectra.values() for k in by_level))
    lines = [Line2D([], [], color=colour) for colour in colours.values()]
    figure.legend(lines, list(colours), loc="outside lower center", ncols=len(lines), fontsize=SMALL_PT)
    return figure


def _spectrum_curve(axes: Axes, frequency: np.ndarray, power: np.ndarray, centroid: float, colour: object) -> None:
    """One level's curve with a dot at its centroid."""
    if not (power > 0).all():
        return
    decibel = 10 * np.log10(power)
    axes.plot(frequency, decibel, color=colour, linewidth=1.5)
    height = np.interp(centroid, frequency, decibel)
    axes.plot(centroid, height, "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8)


def kl_curves(table: pd.DataFrame, *, data: str, title: str = "KL by level and observed subset") -> Figure:
    """KL by level in nats, per image and per latent dimension, a curve for each observed subset; logarithmic.

    Args:
        table: observed, level, kl_nats, n_dims: one row for each level and subset.
        data, title: As in every figure.
    """
    names = level_order(dict.fromkeys(table["level"]))
    figure = new_figure(8.6, 3.3, title=title, data=data)
    panels = figure.subplots(1, 2)
    for panel, label in zip(panels, ("KL per image (nats)", "KL per latent dimension (nats)"), strict=True):
        _level_axis(panel, names)
        panel.set_yscale("log")
        panel.set_ylabel(label, fontsize=LABEL_PT)
    for observed, rows in table.groupby("observed", sort=False):
        rows = rows.set_index("level").reindex(names)
        several = "+" in observed
        look = {"color": "#000000" if several else modality_colour(observed), "label": f"observed: {observed}"}
        look |= {"linestyle": "--" if several else "-", "marker": "o", "markersize": 4}
        for panel, values in zip(panels, (rows["kl_nats"], rows["kl_nats"] / rows["n_dims"]), strict=True):
            panel.plot(range(len(names)), values.where(values > 0), **look)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=SMALL_PT, handlelength=3)
    return figure


def dropped_curves(
    table: pd.DataFrame, *, data: str, title: str = "Experts dropped at one level, or from it downwards"
) -> Figure:
    """PSNR over the level whose experts are dropped, a panel for each condition; the dashed line drops nothing.

    Args:
        table: condition, level, dropped ("nothing", "this level", "this and finer"), psnr_fov_db: means.
        data, title: As in every figure.
    """
    conditions = list(dict.fromkeys(table["condition"]))
    names = level_order(dict.fromkeys(k for k in table["level"] if k[:1] == "z"))
    figure = new_figure(3.4 * len(conditions) + 0.4, 3.3, title=title, data=data)
    axes = figure.subplots(1, len(conditions), squeeze=False)[0]
    looks = {"this level": ("o", "-"), "this and finer": ("s", ":")}
    for panel, condition in zip(axes, conditions, strict=True):
        _level_axis(panel, names)
        rows = table[table["condition"] == condition]
        whole = rows.loc[rows["dropped"] == "nothing", "psnr_fov_db"]
        panel.axhline(whole.iloc[0], color=NEUTRAL_COLOUR, linewidth=1, linestyle="--")
        for dropped, (marker, style) in looks.items():
            values = rows[rows["dropped"] == dropped].set_index("level")["psnr_fov_db"].reindex(names)
            look = {"color": condition_look(condition)["color"], "marker": marker, "linestyle": style}
            panel.plot(range(len(names)), values, markersize=4, **look)
        panel.set_title(condition, fontsize=LABEL_PT)
    axes[0].set_ylabel("PSNR in fan (dB)", fontsize=LABEL_PT)
    looks = {"nothing": (None, "--"), **looks}
    proxies = [Line2D([], [], color=NEUTRAL_COLOUR, marker=m, linestyle=s, markersize=4) for m, s in looks.values()]
    labels = [f"{dropped} dropped" for dropped in looks]
    figure.legend(proxies, labels, loc="outside lower center", ncols=len(labels), fontsize=SMALL_PT, handlelength=3)
    return figure
