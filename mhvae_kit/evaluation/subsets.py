"""What one more input brings: paired gains over patients for every subset of inputs and every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import subset_name
from mhvae_kit.evaluation.tables import bootstrap_interval, per_patient

Kind = Literal["synthesis", "target added", "reconstruction"]


def kind_of(target: str, observed: Sequence[str], added: str) -> Kind:
    """What a gain is of: a target that is never observed, one that is the added input, or one observed before."""
    if target in observed:
        return "reconstruction"
    return "target added" if target == added else "synthesis"


def input_gains(scores: pd.DataFrame, *, score: str = "psnr_fov_db") -> pd.DataFrame:
    """The gain of every further input, patient by patient: score with it minus score without it.

    Args:
        scores: From `evaluate`, of one model and one temperature.
        score: Column to compare; higher is better.
    Returns:
        A row per target, observed subset, added input and case: target, observed ("t2+us"), added, kind (see
        `kind_of`), n_inputs (before the addition), case, gain (in the score's unit).
    Raises:
        InputError: Several temperatures or data sets, no such score, or no two subsets that differ by one input.
    """
    if score not in scores:
        raise InputError(explain("no such score", got=repr(score), expected="a column of evaluate"))
    for column in ("data", "temperature"):
        if scores[column].nunique() != 1:
            raise InputError(
                explain(
                    f"gains need one {column}", got=", ".join(map(str, scores[column].unique())), mend="filter first"
                )
            )
    means = per_patient(scores).pivot(index="case", columns=["target", "observed"], values=score)
    parts = []
    for target, table in means.T.groupby(level="target", sort=False):
        by_subset = table.droplevel("target").T
        names = sorted({m for observed in by_subset for m in observed.split("+")})
        pairs = [(s, m) for s in by_subset for m in names if m not in s.split("+")]
        for observed, added in pairs:
            before = observed.split("+")
            fuller = subset_name([*before, added])
            if fuller not in by_subset:
                continue
            gain = (by_subset[fuller] - by_subset[observed]).rename("gain").reset_index()
            keys = {"target": target, "observed": observed, "added": added, "kind": kind_of(str(target), before, added)}
            parts.append(gain.assign(n_inputs=len(before), **keys))
    if not parts:
        raise InputError(explain("no two subsets differ by one input", got=f"{means.shape[1]} subset-target pairs"))
    columns = ["target", "observed", "added", "kind", "n_inputs", "case", "gain"]
    return pd.concat(parts, ignore_index=True)[columns]


def mean_gains(gains: pd.DataFrame, by: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Mean gain over patients with its 95 % bootstrap interval, for groups of additions.

    Args:
        gains: From `input_gains`.
        by: Columns that make the groups. A patient's gains within a group are averaged first.
        seed: Of the bootstrap.
    Returns:
        A row per group: its columns, gain, gain_low, gain_high, n_additions (target, subset and input), n_losing (how
        many of them lose on the mean over patients) and n_patients.
    """
    addition = ["target", "observed", "added"]
    rows = []
    for values, group in gains.groupby(list(by), sort=False):
        patients = group.groupby("case")["gain"].mean().sort_index().to_numpy()
        low, high = bootstrap_interval(patients, seed=seed)
        single = group.groupby(addition)["gain"].mean()
        counts = {"n_additions": len(single), "n_losing": int((single < 0).sum()), "n_patients": len(patients)}
        numbers = {"gain": float(patients.mean()), "gain_low": low, "gain_high": high}
        rows.append({**dict(zip(by, values, strict=True)), **numbers, **counts})
    return pd.DataFrame(rows)


def gain_sentences(gains: pd.DataFrame, *, unit: str = "dB") -> list[str]:
    """What the numbers say about "more inputs never hurt on average", one sentence per kind of gain.

    Each tells the mean over all additions of its kind, whether that mean is below 0 for some number of inputs, how many
    single additions lose, and the worst of them. They are put together from the table and claim nothing beyond it.

    Args:
        gains: From `input_gains`.
        unit: Unit of the gain.
    """
    sentences = []
    for kind, group in gains.groupby("kind", sort=False):
        steps = mean_gains(group, ["n_inputs"]).sort_values("n_inputs")
        hurting = steps[steps["gain"] < 0]
        worst = group.groupby(["target", "observed", "added"])["gain"].mean()
        target, observed, added = worst.idxmin()
        n_losing = int((worst < 0).sum())
        verdict = "more inputs do not hurt on average"
        if len(hurting):
            where = ", ".join(
                f"{r.n_inputs} to {r.n_inputs + 1} inputs {r.gain:+.2f} {unit}" for r in hurting.itertuples()
            )
            verdict = f"more inputs do hurt on average at {where}"
        mean = group.groupby("case")["gain"].mean().mean()
        sentences.append(
            f"{kind}: {verdict}; mean gain {mean:+.2f} {unit} over {len(worst)} additions, of which {n_losing} lose; "
            f"{'worst' if n_losing else 'smallest'}: {added} beside {observed} for {target}, {worst.min():+.2f} {unit}"
        )
    return sentences
