"""From finished cells to the answer: curves, the dose that counts, and which metric foresees the loss of Dice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from mhvae_kit.degradation.cell import cell_folder
from mhvae_kit.degradation.measure import METRICS
from mhvae_kit.degradation.operators import OPERATORS
from mhvae_kit.degradation.plan import BASELINE, POINTS, Condition, plan, plan_digest
from mhvae_kit.errors import InputError, MissingError, explain
from mhvae_kit.evaluation.statistics import holm, sign_flip_p
from mhvae_kit.evaluation.tables import bootstrap_interval
from mhvae_kit.runs import read_results, run_status

N_BOOT = 2000
SCORES = ("dice", "hd95_mm", "assd_mm")


def read_cells(
    preset: str, root: str | Path | None = None, only: str | Iterable[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and image metrics of every cell of a plan.

    Args:
        preset: smoke, demo or paper.
        root: Folder of all runs; None = the default.
        only: As for `plan`.
    Returns:
        Scores: key, name, dose, group, title, run, seed, case, volume_ml, dice, hd95_mm, assd_mm, one row a test
        patient and seed. Metrics: key, name, dose and the columns of `METRICS`, means over training patients, one row
        a cell whose images have a truth.
    Raises:
        MissingError: Cells that are not done; the message names them.
        InputError: Cells that were made by another plan or of other data.
    """
    conditions = plan(preset, only)
    folders = {c.key: cell_folder(c.key, preset, root) for c in conditions}
    absent = [key for key, folder in folders.items() if run_status(folder) != "done"]
    if absent:
        shown = ", ".join(absent[:6]) + (", ..." if len(absent) > 6 else "")
        mend = f"snakemake --cores 2 degradation --config preset={preset}, which makes what is missing"
        raise MissingError(explain(f"{len(absent)} cells of the study are not done: {shown}", mend=mend))
    found = {key: read_results(folder) for key, folder in folders.items()}
    _one_study(found, preset)
    scores = [_scores(c, folders[c.key]) for c in conditions]
    metrics = [_metrics(c, folders[c.key]) for c in conditions]
    return pd.concat(scores, ignore_index=True), pd.DataFrame([m for m in metrics if m])


def _one_study(found: dict[str, dict], preset: str) -> None:
    """Refuse cells of different plans or data."""
    places = {
        "plan": {r["parameters"]["plan"] for r in found.values()} | {plan_digest(preset)},
        "data": {r["dataset"]["digest"] for r in found.values()},
    }
    for what, values in places.items():
        if len(values) > 1:
            got = ", ".join(sorted(v[:12] for v in values))
            raise InputError(explain(f"the cells differ in their {what}", got=got, mend="make them anew"))


def _scores(condition: Condition, folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "patients.csv")
    keys = {"key": condition.key, "name": condition.name, "dose": condition.dose, "group": condition.group}
    return table.assign(**keys, title=condition.title, run=folder.name)


def _metrics(condition: Condition, folder: Path) -> dict[str, object] | None:
    table = pd.read_csv(folder / "images.csv")
    names = [m for m in METRICS if m in table.columns and not table[m].isna().all()]
    if not names:
        return None
    means = {m: float(table[m].mean()) for m in names}  # NaN where a contrast could not be told is left out
    return {"key": condition.key, "name": condition.name, "dose": condition.dose, "group": condition.group, **means}


def patient_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds: one row a cell and patient, the unit of all that follows."""
    keys = ["key", "name", "dose", "group", "title", "run", "case", "volume_ml"]
    return scores.groupby(keys, sort=False, dropna=False)[list(SCORES)].mean().reset_index()


def cell_summary(scores: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean and 95 % interval over patients of each cell, and its difference from the images without its defect.

    These are the clean synthetic images, but for a defect that has a dose 0 of its own (checkpoint age).

    Args:
        scores: From `read_cells`.
        seed: Of the bootstrap.
    Returns:
        One row a cell: key, name, dose, group, title, run, n_patients, n_seeds; each score with <score>_low and
        <score>_high; loss (Dice without the defect minus that of the cell, paired) with loss_low, loss_high; p by sign
        flips and p_holm over all cells that are compared with another; seed_spread, the standard deviation of the mean
        Dice over seeds.
    """
    patients = patient_means(scores)
    dice = {key: part.set_index("case")["dice"] for key, part in patients.groupby("key")}
    own_start = patients[patients["dose"] == 0].drop_duplicates("name").set_index("name")["key"].to_dict()
    rows = []
    for key, part in patients.groupby("key", sort=False):
        part = part.sort_values("case")
        own = scores[scores["key"] == key]
        row = {n: part[n].iloc[0] for n in ("key", "name", "dose", "group", "title", "run")}
        row |= {"n_patients": len(part), "n_seeds": own["seed"].nunique()}
        for name in SCORES:
            low, high = bootstrap_interval(part[name].to_numpy(), seed=seed)
            row |= {name: part[name].mean(), f"{name}_low": low, f"{name}_high": high}
        start = own_start.get(row["name"], BASELINE)
        lost = dice[start].loc[part["case"]].to_numpy() - part["dice"].to_numpy()
        low, high = bootstrap_interval(lost, seed=seed)
        row |= {"loss": lost.mean(), "loss_low": low, "loss_high": high}
        row["p"] = float("nan") if key == start else sign_flip_p(lost, seed=seed)
        row["seed_spread"] = own.groupby("seed")["dice"].mean().std() if row["n_seeds"] > 1 else float("nan")
        rows.append(row)
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def defect_kind(name: str) -> str:
    """Kind of a defect, for colours: texture, intensity, geometry, content, or model."""
    return OPERATORS[name].kind if name in OPERATORS else "model"


def curves(summary: pd.DataFrame) -> pd.DataFrame:
    """Dose-response curves: every defect from dose 0 (the clean synthetic images, or its own) upwards.

    Returns:
        defect, name, kind, dose, dice, dice_low, dice_high, loss, loss_low, loss_high, key.
    """
    clean = summary[summary["key"] == BASELINE]
    parts = []
    for name, part in summary[summary["group"] == "defect"].groupby("name", sort=False):
        start = part.iloc[:0] if (part["dose"] == 0).any() else clean.assign(dose=0.0)
        one = pd.concat([start, part]) if len(start) else part
        parts.append(one.assign(name=name, defect=part["title"].iloc[0], kind=defect_kind(name)).sort_values("dose"))
    columns = [
        "defect",
        "name",
        "kind",
        "dose",
        "dice",
        "dice_low",
        "dice_high",
        "loss",
        "loss_low",
        "loss_high",
        "key",
    ]
    if not parts:
        raise InputError(explain("there is no defect among the cells", expected="at least one"))
    return pd.concat(parts, ignore_index=True)[columns]


def dose_of_loss(scores: pd.DataFrame, name: str, *, points: float = POINTS, seed: int = 0) -> dict[str, float | str]:
    """The dose at which Dice has fallen by so much, between doses along straight lines.

    Args:
        scores: From `read_cells`.
        name: Of the defect.
        points: The fall of Dice.
        seed: Of the bootstrap over patients.
    Returns:
        name; dose, infinity where the curve never falls that far; dose_low and dose_high, percentiles of the resamples
        with the same rule; reached, the share of resamples that fall so far.
    """
    doses, dice = _curve_by_patient(scores, name)
    picks = np.random.default_rng(seed).integers(0, len(dice), (N_BOOT, len(dice)))
    drawn = np.array([_crossing(doses, dice[rows].mean(axis=0), points) for rows in picks])
    low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
    dose = _crossing(doses, dice.mean(axis=0), points)
    reached = float(np.isfinite(drawn).mean())
    return {"name": name, "dose": dose, "dose_low": float(low), "dose_high": float(high), "reached": reached}


def _curve_by_patient(scores: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Doses (K,) from 0 up, and Dice (P, K) by patient."""
    patients = patient_means(scores)
    own = patients[patients["name"] == name]
    if not (own["dose"] == 0).any():
        own = pd.concat([patients[patients["key"] == BASELINE].assign(dose=0.0), own])
    table = own.pivot(index="case", columns="dose", values="dice").sort_index(axis=1)
    return table.columns.to_numpy(dtype=float), table.to_numpy()


def _crossing(doses: np.ndarray, dice: np.ndarray, points: float) -> float:
    """First dose at which a curve lies `points` below its start; infinity if it never does."""
    lost = dice[0] - dice
    below = np.flatnonzero(lost >= points)
    if not below.size:
        return float("inf")
    k = int(below[0])
    share = (points - lost[k - 1]) / (lost[k] - lost[k - 1])
    return float(doses[k - 1] + share * (doses[k] - doses[k - 1]))


def joined(summary: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Cells of defects with the metrics of their images: what a metric has to foresee, and the clean images.

    Returns:
        key, defect, name, kind, dose, dice, dice_low, dice_high, loss and the metrics; the clean images have name
        `BASELINE`, kind "clean" and dose 0.
    """
    kept = summary[(summary["group"] == "defect") | (summary["key"] == BASELINE)]
    columns = ["key", "name", "dose", "title", "dice", "dice_low", "dice_high", "loss"]
    table = kept[columns].merge(metrics.drop(columns=["name", "dose", "group"]), on="key")
    clean = table["key"] == BASELINE
    kinds = ["clean" if c else defect_kind(n) for c, n in zip(clean, table["name"], strict=True)]
    return table.assign(kind=kinds, dose=table["dose"].fillna(0.0)).rename(columns={"title": "defect"})


def metric_correlations(cells: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How well each metric of the training images ranks the Dice of the networks.

    Args:
        cells: From `joined`.
        seed: Of the bootstrap.
    Returns:
        One row a metric: column, metric (title), n_cells, rho, signed so that 1 is a perfect prophet whichever end is
        good; rho_low, rho_high, 95 % over defects drawn with replacement, all doses of a defect together; rho_within,
        mean over the defects with at least three points of the rank correlation within the defect, and n_within.
    """
    rng = np.random.default_rng(seed)
    defects = sorted(set(cells.loc[cells["kind"] != "clean", "name"]))
    draws = [rng.choice(len(defects), len(defects)) for _ in range(N_BOOT)]
    rows = []
    for column, (title, sign) in METRICS.items():
        if column not in cells or cells[column].isna().any():
            continue
        own = {d: cells[cells["name"] == d] for d in defects}
        clean = cells[cells["kind"] == "clean"]
        rho = _rho(cells[column], cells["dice"], sign)
        resampled = [_rho_of([clean, *(own[defects[k]] for k in draw)], column, sign) for draw in draws]
        low, high = np.nanquantile(resampled, (0.025, 0.975))
        within = [_within(own[d], clean, column, sign) for d in defects]
        within = [w for w in within if np.isfinite(w)]
        row = {"column": column, "metric": title, "n_cells": len(cells), "rho": rho}
        row |= {"rho_low": float(low), "rho_high": float(high)}
        rows.append(row | {"rho_within": np.mean(within) if within else np.nan, "n_within": len(within)})
    return pd.DataFrame(rows).sort_values("rho", ascending=False, ignore_index=True)


def _rho(metric: pd.Series, dice: pd.Series, sign: int) -> float:
    if metric.nunique() < 2 or dice.nunique() < 2:
        return float("nan")
    return float(sign * spearmanr(metric, dice).statistic)


def _rho_of(parts: list[pd.DataFrame], column: str, sign: int) -> float:
    table = pd.concat([p[[column, "dice"]] for p in parts])
    return _rho(table[column], table["dice"], sign)


def _within(own: pd.DataFrame, clean: pd.DataFrame, column: str, sign: int) -> float:
    points = own if (own["dose"] == 0).any() else pd.concat([clean, own])
    return _rho(points[column], points["dice"], sign) if len(points) > 2 else float("nan")


def mixed_models(cells: pd.DataFrame) -> pd.DataFrame:
    """A mixed model of Dice on each metric's rank, the defect as random intercept.

    Ranks, as metrics have units and tails of their own; scaled from 0 (worst) to 1 (best), so that the slope is the
    Dice between the worst and the best images by that metric.

    Args:
        cells: From `joined`; the clean images are a group of their own.
    Returns:
        One row a metric: column, metric, slope, slope_low, slope_high, p, and converged.
    Source:
        statsmodels MixedLM, restricted maximum likelihood.
    """
    import warnings

    import statsmodels.formula.api as smf

    rows = []
    for column, (title, sign) in METRICS.items():
        if column not in cells or cells[column].isna().any() or cells[column].nunique() < 3:
            continue
        rank = rankdata(sign * cells[column])
        table = cells[["dice", "name"]].assign(quality=(rank - 1) / (len(rank) - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of each variance at its border; `converged` tells
            fit = smf.mixedlm("dice ~ quality", table, groups=table["name"]).fit(reml=True)
        low, high = fit.conf_int().loc["quality"]
        row = {"column": column, "metric": title, "slope": fit.params["quality"]}
        row |= {"slope_low": low, "slope_high": high, "p": fit.pvalues["quality"], "converged": bool(fit.converged)}
        rows.append(row)
    return pd.DataFrame(rows)
