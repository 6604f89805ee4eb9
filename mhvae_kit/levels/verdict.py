"""Does a trained model separate its levels as the paper's story says? The answer is computed, never asserted.

The story: fine levels hold texture (speckle), coarse levels hold layout. Its measurable parts: (1) the finer the level,
the higher the spectral centroid of the change it makes; (2) changes of small wavelength are made by z1; (3) changes of
large wavelength are made by the coarsest level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.tables import bootstrap_interval
from mhvae_kit.levels.measures import band_power, spectral_centroid
from mhvae_kit.levels.tables import ALL

LAYOUT_MM = 20.0  # wavelengths above this are layout: gyri, ventricles, the tumour
TEXTURE_MM = 6.0  # wavelengths below this are texture: what the speckle metrics look at (a 3 mm Gaussian taken away)
INERT_SHARE = 0.01
_MEASURES = ("std", "share", "centroid_per_mm", "layout_share", "texture_share")


def fineness(level: str) -> int:
    """-6 for "z6" ... -1 for "z1": larger is finer."""
    return -int(level[1:])


def patient_levels(table: pd.DataFrame, frequency: np.ndarray) -> pd.DataFrame:
    """What each level does, by patient: the mean over the slices of `redraw_table`.

    Args:
        table: From `redraw_table`.
        frequency: Its frequencies (K,) in cycles/mm.
    Returns:
        A row per condition, case and level, coarse to fine: std (root mean variance of the redraws), share (of the sum
        of all levels' variances), centroid_per_mm, layout_share and texture_share (the same share among changes of
        wavelength above `LAYOUT_MM` and below `TEXTURE_MM`), interaction (the levels' variances added up, over the
        variance with all levels redrawn at once: 1 where levels do not interact).
    """
    needed = {"condition", "case", "level", "std", "power"}
    if not needed <= set(table.columns) or table.empty:
        raise InputError(explain("this is not a table of redraws", expected="what redraw_table returns"))
    rows = []
    for (condition, case), part in table.groupby(["condition", "case"], sort=False):
        groups = dict(list(part.groupby("level", sort=False)))
        whole = groups.pop(ALL, None)
        names = sorted(groups, key=fineness)
        power = np.stack([np.stack(groups[k]["power"]).mean(0) for k in names])
        variance = np.array([float((groups[k]["std"] ** 2).mean()) for k in names])
        joint = float((whole["std"] ** 2).mean()) if whole is not None else np.nan
        shares = {
            "share": _parts(variance),
            "layout_share": _parts(band_power(frequency, power, high=1 / LAYOUT_MM)),
            "texture_share": _parts(band_power(frequency, power, low=1 / TEXTURE_MM)),
        }
        keys = {c: part[c].iloc[0] for c in ("data", "observed", "target") if c in part}
        measures = {"std": np.sqrt(variance), "centroid_per_mm": spectral_centroid(frequency, power), **shares}
        added = variance.sum() / joint if joint > 0 else np.nan
        rows.append(
            pd.DataFrame({"level": names, **measures}).assign(**keys, condition=condition, case=case, interaction=added)
        )
    return pd.concat(rows, ignore_index=True)


def _parts(values: np.ndarray) -> np.ndarray:
    """Each value's share of their sum; NaN where all are 0."""
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), np.nan)


def level_summary(patients: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean over patients of `patient_levels`, with 95 % bootstrap intervals in <measure>_low and <measure>_high."""
    rows = []
    for (condition, level), part in patients.groupby(["condition", "level"], sort=False):
        row: dict[str, Any] = {"condition": condition, "level": level, "n_patients": len(part)}
        for name in _MEASURES:
            values = part[name].to_numpy(dtype=float)
            row[name] = float(values.mean())
            row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(values, seed=seed)
        rows.append(row)
    return pd.DataFrame(rows)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN with fewer than three pairs, or where one side is constant."""
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    known = np.isfinite(one) & np.isfinite(other)
    if known.sum() < 3 or np.ptp(one[known]) == 0 or np.ptp(other[known]) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(one[known]), rankdata(other[known]))[0, 1])


def separation(patients: pd.DataFrame) -> pd.DataFrame:
    """The three parts of the story as numbers, a row per condition.

    Args:
        patients: From `patient_levels`.
    Returns:
        condition, n_patients, n_levels; rank_correlation between fineness and centroid (of the mean over patients) and
        rank_correlation_lowest (of one patient); reversed (pairs of neighbours, "z6>z5", where the finer one changes
        coarser things); finest, coarsest and their centroids; texture_share of the finest, texture_leads (in how many
        patients it has the largest), texture_level (who has most on average) and its share; the same for layout;
        inert (levels with less than 1 % of the variance); interaction.
    """
    rows = []
    for condition, part in patients.groupby("condition", sort=False):
        mean = part.groupby("level")[list(_MEASURES)].mean()
        names = sorted(mean.index, key=fineness)
        mean = mean.loc[names]
        order = [fineness(k) for k in names]
        centroid = mean["centroid_per_mm"]
        cases = [c.sort_values("level") for _, c in part.groupby("case")]
        each = [rank_correlation(c["level"].map(fineness), c["centroid_per_mm"]) for c in cases]
        wrong = [f"{a}>{b}" for a, b in pairwise(names) if centroid[b] < centroid[a]]
        row = {
            "condition": condition,
            "n_patients": part["case"].nunique(),
            "n_levels": len(names),
            "rank_correlation": rank_correlation(order, centroid),
            "rank_correlation_lowest": float(np.min(each)),
            "reversed": ", ".join(wrong),
            "interaction": float(part.groupby("case")["interaction"].first().mean()),
            "inert": ", ".join(k for k in names if mean["share"][k] < INERT_SHARE),
        }
        for end, level, band in (("finest", names[-1], "texture"), ("coarsest", names[0], "layout")):
            shares = mean[f"{band}_share"]
            top = shares.idxmax() if shares.notna().any() else level
            row |= {end: level, f"{end}_centroid_per_mm": centroid[level], f"{end}_share": mean["share"][level]}
            row |= {f"{band}_share": shares[level], f"{band}_level": top, f"{band}_level_share": shares[top]}
            row[f"{band}_leads"] = sum(_leads(c, level, f"{band}_share") for c in cases)
        rows.append(row)
    return pd.DataFrame(rows)


def _leads(patient: pd.DataFrame, level: str, measure: str) -> bool:
    """Whether a level has the largest share in one patient."""
    shares = patient.set_index("level")[measure]
    return bool(shares.notna().all() and shares.idxmax() == level)


def verdict(row: pd.Series | dict[str, Any]) -> str:
    """What a row of `separation` says, in words that follow from its numbers alone."""
    return f"{row['condition']}: {'. '.join(verdict_parts(row))}."


def verdict_parts(row: pd.Series | dict[str, Any]) -> list[str]:
    """The verdict in parts: the order of the levels, the texture, the layout and, if there are any, idle levels."""
    rho = row["rank_correlation"]
    if not row["reversed"] and not np.isnan(rho):
        order = f"every finer level changes finer things (rank correlation {rho:.2f})"
    elif rho >= 0.8:
        order = f"finer levels change finer things, but not throughout (rank correlation {rho:.2f}; {_wrong(row)})"
    elif rho >= 0.5:
        order = f"finer levels change finer things only in part (rank correlation {rho:.2f}; {_wrong(row)})"
    else:
        order = f"the order of the levels does not show (rank correlation {rho:.2f}; {_wrong(row)})"
    texture = _owner(row, "texture", row["finest"], f"changes under {TEXTURE_MM:g} mm")
    layout = _owner(row, "layout", row["coarsest"], f"changes over {LAYOUT_MM:g} mm")
    idle = f"Next to nothing (under {INERT_SHARE:.0%} of the variance) comes from {row['inert']}"
    return [order, texture, layout, *([idle] if row["inert"] else [])]


def _wrong(row: pd.Series | dict[str, Any]) -> str:
    """The neighbours in the wrong order, in words."""
    pairs = [pair.split(">") for pair in row["reversed"].split(", ") if pair]
    return ", ".join(f"{b} changes coarser things than {a}" for a, b in pairs) or "no pair of neighbours stands out"


def _owner(row: pd.Series | dict[str, Any], band: str, level: str, what: str) -> str:
    """Whether a level owns its band: "z1 is the texture: it makes 96 % of the changes under 6 mm"."""
    share, top, top_share = row[f"{band}_share"], row[f"{band}_level"], row[f"{band}_level_share"]
    if np.isnan(share):
        return f"Nothing is drawn in the {band} ({what})"
    leads = f"{level} leads in {row[f'{band}_leads']} of {row['n_patients']} patients"
    if top == level and share > 0.5:
        return f"{level} is the {band}: it makes {share:.0%} of the {what} ({leads})"
    if top == level:
        return f"{level} is the largest part of the {band}, {share:.0%} of the {what}, but not most of it ({leads})"
    return f"{level} is not the {band}: it makes {share:.0%} of the {what}, while {top} makes {top_share:.0%} ({leads})"
