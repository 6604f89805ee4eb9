"""Paired tests over patients: an exact sign-flip test of the mean difference, with Holm's correction.

Why sign flips and not Wilcoxon's signed ranks, which the paper used: the tables show means, and flipping the signs of
the patients' differences tests exactly the mean that is shown, in its own unit, without ranks and without asking for a
normal distribution. With few patients every pattern of signs can be counted, so the p value is exact, ties and zeros
included. Both tests have the same smallest p value, 2 / 2^n: 0.002 with ten patients, 0.5 with two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from mhvae_kit.errors import InputError, explain

LEVEL = 0.05
# Up to so many patients all 2^n patterns of signs are counted; beyond, patterns are drawn.
MAX_EXACT = 14
N_DRAWS = 20_000


def smallest_p(n_patients: int) -> float:
    """The smallest p value that a sign-flip test of n patients can give: 2 / 2^n, at most 1."""
    return min(1.0, 2.0 / 2.0 ** int(n_patients))


def sign_flip_p(differences: Sequence[float] | np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p value of the mean paired difference being as far from 0 as it is, were the signs up to chance.

    Args:
        differences: (n,), one per patient.
        seed: Of the local generator, used only beyond 14 patients, where 20 000 patterns of signs are drawn.
    Returns:
        Share of sign patterns whose mean is at least as far from 0. With drawn patterns the observed one is counted
        too, so that p is never 0.
    Raises:
        InputError: No difference, or one that is NaN or infinite.
    Source:
        R. A. Fisher, The design of experiments, 1935, section 21; B. Phipson and G. K. Smyth, Permutation p-values
        should never be zero, 2010.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(
            explain(
                "a paired test needs one finite difference per patient",
                got=f"{int((~np.isfinite(values)).sum())} that are not finite among {values.size}",
                mend="Leave out the patients or the metric that have none",
            )
        )
    count = values.size
    # Sums that differ by rounding alone are equal.
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if count <= MAX_EXACT:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * patterns) @ values) >= observed).mean())
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (N_DRAWS, count))
    return float((1 + (np.abs(signs @ values) >= observed).sum()) / (1 + N_DRAWS))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p values corrected for their number: the smallest times n, the next times n - 1, and so on, never falling.

    Written out, as the one library that has it collects garbage at every call, which takes longer than a whole table.

    Args:
        p_values: (n,). NaN stands for "not tested": it stays and does not count.
    Returns:
        (n,), at most 1.
    Source:
        S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    corrected = np.full(values.shape, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def compare_with(values: pd.DataFrame, against: str, *, seed: int = 0) -> pd.DataFrame:
    """Test every column against one of them, patient by patient.

    Args:
        values: A row per patient, a column per method; one metric.
        against: The column all others are compared with.
        seed: See `sign_flip_p`.
    Returns:
        Indexed by method: difference (its mean minus that of `against`), p, and p_holm, corrected for the number of
        methods compared. NaN for `against` itself and for methods with a value that is missing or infinite.
    Raises:
        InputError: `against` is not a column.
    """
    if against not in values.columns:
        raise InputError(
            explain(f"{against} is not among the methods", got=", ".join(map(str, values.columns)), expected=against)
        )
    rows = {}
    for name in values.columns:
        with np.errstate(invalid="ignore"):  # infinity minus infinity is "no difference known", which is NaN
            gaps = values[name].to_numpy(dtype=float) - values[against].to_numpy(dtype=float)
        tested = name != against and bool(np.isfinite(gaps).all())
        rows[name] = {
            "difference": float(gaps.mean()) if tested else np.nan,
            "p": sign_flip_p(gaps, seed=seed) if tested else np.nan,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def best_and_tied(
    values: pd.DataFrame, better: Literal["higher", "lower"], *, level: float = LEVEL, seed: int = 0
) -> tuple[str | None, list[str]]:
    """The method with the best mean, and those that the patients do not tell from it.

    Args:
        values: A row per patient, a column per method; one metric.
        better: Which end is the good one.
        level: A method is tied when its p value against the best one, by Holm, is at least this.
        seed: See `sign_flip_p`.
    Returns:
        The best method, None when none has a mean; the tied ones in the order of the columns. Being tied means no
        evidence of a difference, not evidence of none: with few patients almost everything is tied.
    Raises:
        InputError: `better` is neither "higher" nor "lower".
    """
    if better not in ("higher", "lower"):
        raise InputError(explain("better is not usable", got=repr(better), expected='"higher" or "lower"'))
    means = values.mean(axis=0, skipna=False).dropna()
    if means.empty:
        return None, []
    best = str(means.idxmax() if better == "higher" else means.idxmin())
    tests = compare_with(values[means.index], best, seed=seed)
    return best, [str(name) for name in tests.index[tests["p_holm"] >= level]]
