"""From scores per slice to a table: patient means, bootstrap intervals over patients, paired differences.

Slices of one patient are not independent, so the patient is the unit: slices are averaged first, and intervals are
drawn over patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.scoring import SCORES

GROUP = ("data", "observed", "target", "temperature")

# Column title and decimals of each score in a printed table.
TITLES = {
    "psnr_fov_db": ("PSNR in fan (dB)", 1),
    "ssim_fov": ("SSIM in fan", 3),
    "psnr_full_db": ("PSNR full frame (dB)", 1),
    "ssim_full": ("SSIM full frame", 3),
    "l1_fov": ("L1 in fan", 3),
}


def _need(table: pd.DataFrame, columns: Sequence[str], made_by: str) -> None:
    """Refuse a table without rows or without these columns."""
    missing = [c for c in columns if c not in table.columns]
    if missing or table.empty:
        raise InputError(
            explain(
                "this is not a table of scores",
                got="no rows" if not missing else "no column " + ", ".join(missing),
                expected=f"what {made_by} returns",
            )
        )


def _scores(table: pd.DataFrame) -> list[str]:
    """The score columns a table has, in the fixed order."""
    return [c for c in SCORES if c in table.columns]


def _with_attrs(table: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """Carry the notes about the data and the skipped slices over to a derived table."""
    table.attrs = dict(source.attrs)
    return table


def _exact_mean(values: pd.Series) -> float:
    """Plain mean; NaN is not passed over in silence as pandas would, and infinity stays infinity."""
    return float(np.mean(values.to_numpy(dtype=float)))


def per_patient(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over the slices of each patient.

    Args:
        scores: From `evaluate` or `references`, or several such tables concatenated.
    Returns:
        A row per data, observed, target, temperature and case, with n_slices and the mean of every score. PSNR is the
        mean of the slices' PSNR in dB, not the PSNR of their mean error.
    """
    _need(scores, [*GROUP, "case", "slice"], "evaluate")
    if scores.duplicated([*GROUP, "case", "slice"]).any():
        raise InputError(
            explain(
                "a slice is scored twice",
                got=int(scores.duplicated([*GROUP, "case", "slice"]).sum()),
                expected="one row per data, observed, target, temperature, case and slice",
                mend="Summarise different models one by one",
            )
        )
    groups = scores.groupby([*GROUP, "case"], sort=False)
    means = groups[_scores(scores)].agg(_exact_mean)
    means.insert(0, "n_slices", groups.size())
    return _with_attrs(means.reset_index(), scores)


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, n_boot: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values.

    Args:
        values: (n,), one per patient.
        seed: Of the local generator: the same values give the same interval, and tables with as many patients are
            resampled alike.
        n_boot: Number of resamples.
        level: Covered share.
    Returns:
        Lower and upper end; NaN both when there is a single value, which says nothing about the spread.
    """
    values = np.asarray(values, dtype=float)
    if n_boot < 1 or not 0 < level < 1:
        raise InputError(
            explain(
                "bootstrap settings are not usable", got=f"n_boot={n_boot}, level={level}", expected=">= 1, in (0, 1)"
            )
        )
    if values.size < 2:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, values.size, (int(n_boot), values.size))
    means = values[picks].mean(axis=1)
    # Without interpolation, since infinity (a perfect image) has no neighbour to interpolate with.
    low, high = (
        np.quantile(means, (1 - level) / 2, method="lower"),
        np.quantile(means, (1 + level) / 2, method="higher"),
    )
    return float(low), float(high)


def _interval_row(table: pd.DataFrame, columns: Sequence[str], seed: int, n_boot: int) -> dict[str, float]:
    """Mean and interval of each column of one group of patients, sorted by case so that row order changes nothing."""
    table = table.sort_values("case")
    row: dict[str, float] = {"n_patients": len(table)}
    if "n_slices" in table:
        row["n_slices"] = int(table["n_slices"].sum())
    for column in columns:
        values = table[column].to_numpy(dtype=float)
        row[column] = float(values.mean())
        row[f"{column}_low"], row[f"{column}_high"] = bootstrap_interval(values, seed=seed, n_boot=n_boot)
    return row


def summary(scores: pd.DataFrame, *, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Mean over patients with a 95 % bootstrap interval over patients.

    Args:
        scores: Rows per slice (`evaluate`, `references`, or both concatenated) or per patient (`per_patient`).
        seed: Of the bootstrap's local generator.
        n_boot: Number of resamples.
    Returns:
        A row per data, observed, target and temperature: n_patients, n_slices, and for each score its mean, and its
        interval in <score>_low and <score>_high (NaN with one patient).
    """
    patients = per_patient(scores) if "slice" in scores.columns else scores
    _need(patients, [*GROUP, "case", "n_slices"], "evaluate or per_patient")
    columns = _scores(patients)
    rows = [
        {**dict(zip(GROUP, keys, strict=True)), **_interval_row(group, columns, seed, n_boot)}
        for keys, group in patients.groupby(list(GROUP), sort=False)
    ]
    return _with_attrs(pd.DataFrame(rows), scores)


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    by: Sequence[str] = ("observed", "target"),
    seed: int = 0,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Paired difference, first minus second, of the same patients and slices.

    Args:
        first: Rows per slice, from `evaluate` or `references`.
        second: Rows per slice of the same cases and slices: another model, subset, temperature or reference.
        by: What must be equal in a pair beside case and slice. For two models ("observed", "target"); for two subsets
            of one model, each table filtered to one of them, ("target",).
        seed: Of the bootstrap's local generator.
        n_boot: Number of resamples.
    Returns:
        A row per group in `by`: data, n_patients, n_slices, and for each score the mean over patients of the
        difference as <score>, with its 95 % bootstrap interval in <score>_low and <score>_high.
    Raises:
        InputError: Different data sets, tables that do not pair one to one, or slices that only one of them has.
    """
    keys = [*by, "case", "slice"]
    for table in (first, second):
        _need(table, ["data", *keys], "evaluate")
        if table.duplicated(keys).any():
            raise InputError(
                explain(
                    "the rows do not pair one to one",
                    got=f"several rows for the same {', '.join(keys)}",
                    mend="Filter both tables to one temperature and, unless it is in `by`, one observed subset",
                )
            )
    names = sorted({*first["data"], *second["data"]})
    if len(names) > 1:
        raise InputError(
            explain("scores of different data cannot be paired", got=", ".join(names), expected="one data set")
        )
    columns = [c for c in _scores(first) if c in second.columns]
    left, right = (t.set_index(keys)[columns].sort_index() for t in (first, second))
    if not left.index.equals(right.index):
        alone = left.index.symmetric_difference(right.index)
        raise InputError(
            explain(
                "the tables do not hold the same slices",
                got=f"{len(alone)} rows in one only, for example {', '.join(map(str, alone[0]))}",
                expected=f"the same {', '.join(keys)} in both",
            )
        )
    slices = (left - right).reset_index()
    groups = slices.groupby([*by, "case"], sort=False)
    patients = groups[columns].agg(_exact_mean)
    patients.insert(0, "n_slices", groups.size())
    rows = []
    for values, group in patients.reset_index().groupby(list(by), sort=False):
        rows.append(
            {"data": names[0], **dict(zip(by, values, strict=True)), **_interval_row(group, columns, seed, n_boot)}
        )
    return pd.DataFrame(rows)


def format_table(table: pd.DataFrame, *, scores: Sequence[str] | None = None) -> pd.DataFrame:
    """A summary as text, ready to print: "23.1 [22.7, 23.5]" for mean and 95 % interval over patients.

    Args:
        table: From `summary` or `compare`.
        scores: Columns to show; None shows all there are.
    Returns:
        Strings, with the data set's name in the first column; a single patient shows "23.1 [one patient]".
    """
    shown = [c for c in SCORES if c in table.columns] if scores is None else list(scores)
    _need(table, ["data", "n_patients", *[f"{c}{end}" for c in shown for end in ("", "_low", "_high")]], "summary")
    text = {c: table[c].map(_plain).to_list() for c in (*GROUP, "n_patients") if c in table.columns}
    for column in shown:
        title, digits = TITLES.get(column, (column, 3))
        cells = zip(table[column], table[f"{column}_low"], table[f"{column}_high"], strict=True)
        text[title] = [_cell(mean, low, high, digits) for mean, low, high in cells]
    return pd.DataFrame(text).rename(columns={"n_patients": "patients"})


def _plain(value: object) -> str:
    """A number without trailing zeros, anything else as it prints."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else str(value)


def _cell(mean: float, low: float, high: float, digits: int) -> str:
    """One mean with its interval."""
    if np.isnan(low) or np.isnan(high):
        return f"{mean:.{digits}f} [one patient]"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
