"""Figures made of numbers: scores with intervals, spectra and envelope histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import (
    LABEL_PT,
    NEUTRAL_COLOUR,
    SMALL_PT,
    modality_colour,
    new_figure,
    plain_axes,
)

# Observed subsets have no colour of their own, so spectra and histograms take these in order; real data is black.
_SERIES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_SCORE_LABELS = {
    "psnr_fov_db": "PSNR in fan (dB)",
    "ssim_fov": "SSIM in fan",
    "psnr_full_db": "PSNR full frame (dB)",
    "ssim_full": "SSIM full frame",
    "l1_fov": "L1 in fan",
}


def score_intervals(
    summary: pd.DataFrame,
    *,
    data: str,
    score: str = "psnr_fov_db",
    references: Sequence[str] = ("constant image", "oracle"),
    title: str = "Scores by observed subset",
) -> Figure:
    """Mean and 95 % interval over patients, a dot for each observed subset, a panel for each target.

    Args:
        summary: From `evaluation.summary`: observed, target, n_patients, <score>, <score>_low, <score>_high; with a
            temperature column of several values, the temperature joins the subset's name.
        data: What was scored, such as "phantom".
        score: The column to draw.
        references: Values of `observed` that are drawn as vertical lines instead of dots, where present.
        title: Title of the figure.
    Raises:
        InputError: Columns that are missing, or only references to draw.
    """
    ends = [f"{score}_low", f"{score}_high"]
    missing = [c for c in ("observed", "target", "n_patients", score, *ends) if c not in summary]
    dots = summary[~summary["observed"].isin(references)] if not missing else summary.iloc[:0]
    if missing or dots.empty:
        raise InputError(
            explain(
                "there are no scores to draw",
                got=f"no column {', '.join(missing)}" if missing else "no observed subset",
                expected="what evaluation.summary returns",
            )
        )
    several = "temperature" in dots and dots["temperature"].nunique() > 1
    names = dots["observed"] + (", temperature " + dots["temperature"].map(str) if several else "")
    dots = dots.assign(row=names)
    order = list(dict.fromkeys(dots["row"]))
    targets = list(dict.fromkeys(dots["target"]))
    patients = "/".join(str(n) for n in sorted(set(dots["n_patients"])))
    figure = new_figure(
        3.6 * len(targets) + 1.2, 0.42 * len(order) + 1.7, title=f"{title}, n = {patients} patients", data=data
    )
    axes = figure.subplots(1, len(targets), squeeze=False, sharey=True)[0]
    stacked = max((summary["observed"].isin(references) & (summary["target"] == t)).sum() for t in targets)
    for panel, target in zip(axes, targets, strict=True):
        _score_panel(panel, dots[dots["target"] == target], order, score, modality_colour(target))
        lines = summary[summary["observed"].isin(references) & (summary["target"] == target)]
        _reference_lines(panel, dict(zip(lines["observed"], lines[score], strict=True)))
        panel.set_xlabel(_SCORE_LABELS.get(score, score), fontsize=LABEL_PT)
        panel.set_title(f"target: {target}", fontsize=LABEL_PT, pad=6 + 9 * stacked)
    axes[0].set_yticks(range(len(order)), order, fontsize=SMALL_PT)
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    axes[0].set_ylabel("observed", fontsize=LABEL_PT)
    return figure


def _score_panel(axes: Axes, dots: pd.DataFrame, order: Sequence[str], score: str, colour: str) -> None:
    """Dots with intervals of one target; the value stands beside the dot. An infinite score is written."""
    plain_axes(axes)
    for _, row in dots.iterrows():
        height, mean = order.index(row["row"]), row[score]
        if not np.isfinite(mean):
            axes.text(0.5, height, f"{mean}", transform=axes.get_yaxis_transform(), fontsize=SMALL_PT, ha="center")
            continue
        low, high = row[f"{score}_low"], row[f"{score}_high"]
        if np.isfinite(low) and np.isfinite(high):
            axes.plot([low, high], [height, height], color=colour, linewidth=2)
        axes.plot(mean, height, "o", color=colour, markersize=6)
        digits = 1 if score.endswith("_db") else 3
        axes.annotate(
            f"{mean:.{digits}f}",
            (mean, height),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL_PT - 1,
        )
    axes.margins(x=0.12)


def _reference_lines(axes: Axes, values: Mapping[str, float]) -> None:
    """Dashed vertical lines with their names above the panel."""
    for i, (name, value) in enumerate(values.items()):
        if np.isfinite(value):
            axes.axvline(value, color=NEUTRAL_COLOUR, linewidth=1, linestyle="--")
            # Each name stands a line higher than the last, since two references may be near one another.
            axes.annotate(
                name,
                (value, 1.0),
                xycoords=axes.get_xaxis_transform(),
                xytext=(0, 2 + 9 * i),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL_PT - 1,
                color=NEUTRAL_COLOUR,
            )


def spectrum_plot(
    frequency: np.ndarray,
    spectra: Mapping[str, np.ndarray],
    *,
    data: str,
    title: str = "Radial power spectrum of the texture",
) -> Figure:
    """Power over radial frequency, one curve a kind of image, the first (the real one) in black.

    Args:
        frequency: (K,) in cycles/mm, from `metrics.radial_power_spectrum`.
        spectra: By label, power (K,) or (N, K); of N images the mean is drawn, with the 10th to 90th percentile shaded.
        data: What the images are of, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: No spectrum, lengths that differ, or power that is not above 0.
    """
    stacks = {label: np.atleast_2d(np.asarray(power, dtype=float)) for label, power in spectra.items()}
    wrong = [k for k, p in stacks.items() if p.shape[-1] != len(frequency) or not (np.isfinite(p) & (p > 0)).all()]
    if wrong or not stacks:
        raise InputError(
            explain(
                "these are not power spectra",
                got=", ".join(wrong) or "none",
                expected=f"{len(frequency)} values above 0",
            )
        )
    figure = new_figure(6.2, 3.8, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    for i, (label, power) in enumerate(stacks.items()):
        colour = _SERIES[i % len(_SERIES)]
        if len(power) > 1:
            low, high = np.percentile(power, (10, 90), axis=0)
            axes.fill_between(frequency, 10 * np.log10(low), 10 * np.log10(high), color=colour, alpha=0.15, linewidth=0)
        axes.plot(frequency, 10 * np.log10(power.mean(axis=0)), color=colour, label=f"{label} (n = {len(power)})")
    axes.set_xlabel("radial frequency (cycles/mm)", fontsize=LABEL_PT)
    axes.set_ylabel("power (dB re 1 mm²)", fontsize=LABEL_PT)
    axes.set_xlim(left=0)
    axes.legend(fontsize=SMALL_PT)
    return figure


def envelope_histogram(
    envelopes: Mapping[str, np.ndarray],
    *,
    data: str,
    rayleigh: bool = True,
    limit: float = 4.0,
    title: str = "Envelope statistics",
) -> Figure:
    """Densities of the linear envelope, each divided by its own root mean square, beside the Rayleigh density.

    Args:
        envelopes: By label, envelope values of any shape (take them inside the fan), 0 or above. The first label, the
            real one, is black.
        data: What the images are of, such as "phantom".
        rayleigh: Draw the density of fully developed speckle, 2 x exp(-x^2).
        limit: Right end of the axis.
        title: Title of the figure.
    Raises:
        InputError: Nothing to draw, NaN, negative values or zeros only.
    """
    values = {label: np.asarray(e, dtype=float).ravel() for label, e in envelopes.items()}
    wrong = [k for k, v in values.items() if not v.size or not np.isfinite(v).all() or v.min() < 0 or v.max() == 0]
    if wrong or not values:
        raise InputError(explain("these are not envelopes", got=", ".join(wrong) or "none", expected="values above 0"))
    figure = new_figure(6.2, 3.8, title=title, data=data)
    axes = figure.subplots()
    plain_axes(axes)
    edges = np.linspace(0.0, limit, 61)
    centres = (edges[1:] + edges[:-1]) / 2
    for i, (label, sample) in enumerate(values.items()):
        counts, _ = np.histogram(sample / np.sqrt((sample**2).mean()), bins=edges)
        snr = sample.mean() / sample.std() if sample.std() > 0 else np.inf
        text = f"{label} (SNR {snr:.2f}, n = {sample.size})"
        axes.step(
            centres, counts / sample.size / np.diff(edges), where="mid", color=_SERIES[i % len(_SERIES)], label=text
        )
    if rayleigh:
        grid = np.linspace(0.0, limit, 200)
        text = "Rayleigh (SNR 1.91)"
        axes.plot(grid, 2 * grid * np.exp(-(grid**2)), color=NEUTRAL_COLOUR, linestyle="--", label=text)
    axes.set_xlabel("envelope / root mean square", fontsize=LABEL_PT)
    axes.set_ylabel("density", fontsize=LABEL_PT)
    axes.set_xlim(0, limit)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=SMALL_PT)
    return figure
