"""The sentences of the study, put together from its tables alone: the answer, and what became of each hypothesis."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mhvae_kit.degradation.plan import BASELINE, HYPOTHESES, POINTS, TRIVIAL, UPPER_BOUND
from mhvae_kit.evaluation.tables import bootstrap_interval

PLACE_AND_CONTENT = ("rigid", "elastic", "contrast-lost", "border-blurred", "border-shifted")
TOLERATED = ("blur", "speckle-size", "quantisation")
HALF = 0.5


def answer(summary: pd.DataFrame, correlations: pd.DataFrame) -> tuple[str, str]:
    """The two sentences: which defect hurts, and which metric foresees it, "none" among the answers.

    Args:
        summary: From `analysis.cell_summary`.
        correlations: From `analysis.metric_correlations`.
    """
    defects = summary[(summary["group"] == "defect") & (summary["dose"] > 0)]
    worst = defects.loc[defects.groupby("name")["loss"].idxmax()].sort_values("loss", ascending=False)
    hurting = worst[worst["loss_low"] >= POINTS]
    harmless = worst[worst["loss_high"] < POINTS]
    first = (
        f"Of {len(worst)} defects of phantom images, {len(hurting)} cost at least {100 * POINTS:.0f} points of Dice at "
        f"their worst tried dose with all of the 95 % interval, most of all {_told(worst.iloc[0])}; "
        f"{len(harmless)} surely cost less"
    )
    first += f" ({', '.join(harmless['title'])})." if len(harmless) else "."
    telling = correlations[correlations["rho_low"] > 0]
    if telling.empty:
        best = correlations.iloc[0]
        reach = "does not exclude 0" if best["rho_high"] >= 0 else "is the wrong way round"
        second = (
            f"None of {len(correlations)} image metrics foresees the Dice: the best, {best['metric']}, has a rank "
            f"correlation of {_interval(best, 'rho')}, which {reach}."
        )
    else:
        best = telling.iloc[0]
        second = (
            f"{best['metric']} foresees the Dice best, with a rank correlation of {_interval(best, 'rho')}; "
            f"{len(telling)} of {len(correlations)} metrics exclude 0"
        )
        psnr = correlations[correlations["column"] == "psnr_fov_db"]
        second += f", and PSNR has {_interval(psnr.iloc[0], 'rho')}." if len(psnr) else "."
    return first, second


def _told(row: pd.Series) -> str:
    return (
        f"{row['title']} ({100 * row['loss']:.1f} points, {100 * row['loss_low']:.1f} to {100 * row['loss_high']:.1f})"
    )


def _interval(row: pd.Series, name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def hypotheses(
    summary: pd.DataFrame, patients: pd.DataFrame, correlations: pd.DataFrame, *, seed: int = 0
) -> pd.DataFrame:
    """What became of each hypothesis of the plan.

    Args:
        summary: From `analysis.cell_summary`.
        patients: From `analysis.patient_means`.
        correlations: From `analysis.metric_correlations`.
        seed: Of the bootstrap.
    Returns:
        hypothesis, claim, verdict ("holds", "refuted", "undecided" or "not run") and the figures it rests on.
    """
    checks = {
        "H1": lambda: _each_loses(summary, PLACE_AND_CONTENT, 1.0, at_least=True),
        "H2": lambda: _each_loses(summary, TOLERATED, HALF, at_least=False),
        "H3": lambda: _better_prophet(correlations),
        "H4": lambda: _between(patients, seed),
        "H5": lambda: _labels_cost_more(patients, seed),
    }
    rows = []
    for name, claim in HYPOTHESES:
        try:
            verdict, figures = checks[name]()
        except LookupError:  # a cell that this study did not run
            verdict, figures = "not run", ""
        rows.append({"hypothesis": name, "claim": claim, "verdict": verdict, "figures": figures})
    return pd.DataFrame(rows)


def _each_loses(summary: pd.DataFrame, names: tuple[str, ...], dose: float, *, at_least: bool) -> tuple[str, str]:
    parts = [summary[(summary["name"] == n) & np.isclose(summary["dose"].astype(float), dose)].iloc[0] for n in names]
    sure = [(p["loss_low"] >= POINTS) if at_least else (p["loss_high"] < POINTS) for p in parts]
    against = [(p["loss_high"] < POINTS) if at_least else (p["loss_low"] >= POINTS) for p in parts]
    verdict = "holds" if all(sure) else "refuted" if any(against) else "undecided"
    return verdict, "; ".join(_told(p) for p in parts)


def _better_prophet(correlations: pd.DataFrame) -> tuple[str, str]:
    rows = correlations.set_index("column")
    contrast, psnr = rows.loc["contrast_error_db"], rows.loc["psnr_fov_db"]
    figures = f"contrast {_interval(contrast, 'rho')}, PSNR {_interval(psnr, 'rho')}"
    if contrast["rho_low"] > psnr["rho_high"]:
        return "holds", figures
    return ("refuted" if contrast["rho_high"] < psnr["rho_low"] else "undecided"), figures


def _difference(patients: pd.DataFrame, more: str, less: str, seed: int) -> tuple[float, float, float]:
    """Mean and interval over patients of Dice of one cell minus another."""
    by_case = patients[patients["key"].isin([more, less])].pivot(index="case", columns="key", values="dice")
    gap = (by_case[more] - by_case[less]).to_numpy()
    return float(gap.mean()), *bootstrap_interval(gap, seed=seed)


def _between(patients: pd.DataFrame, seed: int) -> tuple[str, str]:
    above = _difference(patients, BASELINE, TRIVIAL, seed)
    below = _difference(patients, UPPER_BOUND, BASELINE, seed)
    figures = f"above T2 taken as ultrasound by {_gap(above)}, below real ultrasound by {_gap(below)}"
    if above[1] > 0 and below[1] > 0:
        return "holds", figures
    return ("refuted" if above[2] < 0 or below[2] < 0 else "undecided"), figures


def _labels_cost_more(patients: pd.DataFrame, seed: int) -> tuple[str, str]:
    gaps = [_difference(patients, BASELINE, f"labels-{kind}-4mm", seed) for kind in ("affine", "deformed")]
    figures = f"synthetic above affine by {_gap(gaps[0])}, above affine and deformation by {_gap(gaps[1])}"
    if all(g[1] > 0 for g in gaps):
        return "holds", figures
    return ("refuted" if any(g[2] < 0 for g in gaps) else "undecided"), figures


def _gap(gap: tuple[float, float, float]) -> str:
    return f"{100 * gap[0]:.1f} points ({100 * gap[1]:.1f} to {100 * gap[2]:.1f})"
