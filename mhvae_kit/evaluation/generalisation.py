"""Does a model hold on data of another kind? Its scores on two splits, beside what is possible on each.

A split may be harder or easier in itself: noisier MR, another probe. So a score is also given above the constant image
(what needs no model) and below the oracle (what only the speckle hides) of the same patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import Dataset, Temperature
from mhvae_kit.evaluation.scoring import CONSTANT, ORACLE, evaluate, fan_mean, references
from mhvae_kit.evaluation.tables import bootstrap_interval, per_patient

SCORE = "psnr_fov_db"
MEASURES = {SCORE: "PSNR in fan (dB)", "gain_db": "above constant (dB)", "behind_db": "behind oracle (dB)"}


def generalisation(
    model: Any,
    dataset: Dataset,
    *,
    splits: Sequence[str] = ("test", "ood"),
    observed: Iterable[str | Iterable[str]] = ("t2",),
    targets: Iterable[str] = ("us",),
    temperature: Temperature = 0.0,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Score a model on several splits, a row a patient.

    Args:
        model: An MHVAE or another method.
        dataset: The data set with these splits and "train" loaded; the constant images are means of the latter.
        splits: The first is what the others are compared with.
        observed, targets: What is decoded from what.
        temperature, seed: Of the samples.
        **options: batch_size of `evaluate`.
    Returns:
        data, split, case, observed, target, temperature, psnr_fov_db, gain_db (above the constant image of the same
        slices) and behind_db (below the oracle; NaN where the data set has none for the target).
    Raises:
        InputError: See `evaluate` and `references`.
    """
    wanted = list(targets)
    constants = {m: fan_mean(dataset, m) for m in wanted}
    parts = []
    for split in splits:
        chosen = {"split": split, "targets": wanted}
        scores = evaluate(model, dataset, observed=observed, temperature=temperature, seed=seed, **chosen, **options)
        base = per_patient(references(dataset, constants=constants, **chosen))
        mine = per_patient(scores).set_index(["case", "target"])
        for name, column, sign in ((CONSTANT, "gain_db", 1), (ORACLE, "behind_db", -1)):
            bound = base[base["observed"] == name].set_index(["case", "target"])[SCORE]
            mine[column] = sign * (mine[SCORE] - bound.reindex(mine.index))
        parts.append(mine.reset_index().assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    return table[["data", "split", "case", "observed", "target", "temperature", *MEASURES]]


def generalisation_summary(table: pd.DataFrame, *, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Mean and 95 % interval over patients for each split, and the change from the first split to each other.

    Args:
        table: From `generalisation`.
        seed, n_boot: Of the bootstrap.
    Returns:
        A row per observed, target and split, then per change ("test -> ood"): n_patients, and of each measure the mean,
        <measure>_low and <measure>_high. The patients of two splits are different people, so they are drawn
        independently.
    Raises:
        InputError: The table has no rows.
    """
    if table.empty:
        raise InputError(explain("there is nothing to summarise", expected="what generalisation returns"))
    rows = []
    for keys, part in table.groupby(["data", "observed", "target", "temperature"], sort=False):
        named = dict(zip(("data", "observed", "target", "temperature"), keys, strict=True))
        splits = dict(list(part.groupby("split", sort=False)))
        first = next(iter(splits))
        for split, rest in splits.items():
            row = {**named, "split": split, "n_patients": len(rest)}
            for m in MEASURES:
                values = rest[m].to_numpy(float)
                row[m] = float(values.mean())
                row[f"{m}_low"], row[f"{m}_high"] = bootstrap_interval(values, seed=seed, n_boot=n_boot)
            rows.append(row)
        for split, rest in list(splits.items())[1:]:
            row = {**named, "split": f"{first} -> {split}", "n_patients": len(rest) + len(splits[first])}
            for m in MEASURES:
                pair = (splits[first][m].to_numpy(float), rest[m].to_numpy(float))
                row[m] = float(pair[1].mean() - pair[0].mean())
                row[f"{m}_low"], row[f"{m}_high"] = _change_interval(*pair, seed=seed, n_boot=n_boot)
            rows.append(row)
    return pd.DataFrame(rows)


def _change_interval(before: np.ndarray, after: np.ndarray, *, seed: int, n_boot: int) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two means of different patients; NaN with one patient in either."""
    if min(len(before), len(after)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [v[rng.integers(0, len(v), (n_boot, len(v)))].mean(axis=1) for v in (after, before)]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return float(low), float(high)


def generalisation_text(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary to print: "20.8 (20.6 to 21.0)" in each cell, titled with units and the data's name."""
    shown = summary[["data", "observed", "target", "split"]].copy()
    for m, title in MEASURES.items():
        cells = zip(summary[m], summary[f"{m}_low"], summary[f"{m}_high"], strict=True)
        shown[title] = [
            "-" if np.isnan(v) else f"{v:.2f}" + ("" if np.isnan(low) else f" ({low:.2f} to {high:.2f})")
            for v, low, high in cells
        ]
    return shown.assign(patients=summary["n_patients"])
