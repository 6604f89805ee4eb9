"""Can the spread of a model's samples be trusted, and what does the temperature do to it?

An interval from K samples is tested without assuming any distribution. If the truth were one more draw from the model,
its rank among the K samples would be any of 0 ... K with equal chance 1 / (K + 1). So the interval between the i-th and
the j-th smallest sample holds the truth with chance (j - i) / (K + 1) exactly, and a central interval of level c runs
from position (1 - c) / 2 * (K + 1) to its mirror image. The usual `numpy.quantile` puts the ends elsewhere, and its
"90 %" of 19 samples are held by 81 % of further draws.

Source of the estimator: order statistics of exchangeable draws; the same positions are Weibull's (numpy's
method="weibull").
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import (
    Dataset,
    Temperature,
    check_cases,
    check_targets,
    check_unseen,
    inference,
    read_case,
    scored_slices,
)
from mhvae_kit.evaluation.scoring import temperature_label
from mhvae_kit.evaluation.tables import bootstrap_interval

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
ROWS_AT_ONCE = 16  # samples, of one temperature or several, that are drawn in one pass


# --- Intervals ---


def needed_samples(level: float) -> int:
    """The fewest samples between whose ends an interval of this level fits: 19 for 0.9."""
    _check_level(level)
    return math.ceil(2 / (1 - level) - 1 - 1e-9)


def central_interval(samples: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The interval that holds one more draw of the same kind with chance `level`.

    Args:
        samples: (K, ...), drawn independently; K + 1 a multiple of 2 / (1 - level) makes the chance exact (19, 39 ...
            for 0.9), other K interpolate between two samples.
        level: In (0, 1).
    Returns:
        Lower and upper end, each (...).
    Raises:
        InputError: A level outside (0, 1), or fewer samples than it needs.
    """
    samples = np.asarray(samples)
    if samples.ndim < 1 or len(samples) < needed_samples(level):
        raise InputError(
            explain(
                f"too few samples for an interval of level {level:g}",
                got=len(samples) if samples.ndim else 0,
                expected=f"at least {needed_samples(level)}",
            )
        )
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def _check_level(level: float) -> None:
    if isinstance(level, bool) or not 0 < level < 1:
        raise InputError(explain("the level of an interval must lie between 0 and 1", got=level))


# --- Samples of held-out slices ---


@dataclass(frozen=True)
class SliceSamples:
    """K samples of one slice at one temperature.

    Args:
        case, slice: Which slice.
        temperature: What it was drawn at: a number, or one per level.
        samples: (K, H, W) float32; in [-1, 1] unless likelihood noise was added.
        target: The truth, (H, W) in [-1, 1].
        fov: The fan, (H, W) bool.
    """

    case: str
    slice: int
    temperature: Temperature
    samples: np.ndarray
    target: np.ndarray
    fov: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean of the samples, (H, W)."""
        return self.samples.mean(0)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the samples pixel by pixel, (H, W), unbiased in its square."""
        return self.samples.std(0, ddof=1)

    def with_likelihood_noise(self, scale: float, seed: int = 0) -> SliceSamples:
        """The samples with Laplace noise of scale b in every pixel: the model's own likelihood, not in its images."""
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(explain("the scale of the likelihood must be above 0", got=scale))
        entropy = np.random.SeedSequence([int(seed), zlib.crc32(self.case.encode()), self.slice, 3])
        noise = np.random.default_rng(entropy).laplace(0.0, scale, self.samples.shape)
        return dataclasses.replace(self, samples=(self.samples + noise).astype(np.float32))


def draw_samples(
    model: Any,
    dataset: Dataset,
    *,
    temperatures: Sequence[Temperature],
    n_samples: int,
    observed: Iterable[str] = ("t2",),
    target: str = "us",
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    seed: int = 0,
) -> Iterator[SliceSamples]:
    """Draw samples of held-out slices, every temperature from the same noise.

    Args:
        model: An MHVAE.
        dataset: The data set.
        temperatures: Numbers, or one per level.
        n_samples: K, at least 2.
        observed, target: From what, to what.
        split, cases, slices: Which slices.
        seed: Each slice has its own draws, whatever other slices are asked for.
    Yields:
        A `SliceSamples` for each slice and temperature.
    """
    subset, wanted = tuple(observed), check_targets([target], list(model.config.modalities))[0]
    if n_samples < 2 or not temperatures:
        got = f"n_samples={n_samples}, {len(temperatures)} temperatures"
        raise InputError(explain("samples cannot be drawn", got=got, expected="at least 2, at least 1"))
    chosen = check_cases(dataset, split, cases)
    check_unseen(model, chosen)
    only = None if slices is None else {int(k) for k in slices}
    for case in chosen:
        images, fov = read_case(dataset, case, sorted({*subset, wanted}))
        for k in scored_slices(fov)[0]:
            if only is not None and int(k) not in only:
                continue
            entropy = np.random.SeedSequence([int(seed), zlib.crc32(case.encode()), int(k), 2])
            start = int(entropy.generate_state(1, np.uint64)[0])
            given = {m: torch.from_numpy(images[m][k])[None, None] for m in subset or (wanted,)}
            for tau, made in _decoded(model, given, subset, wanted, temperatures, n_samples, start):
                yield SliceSamples(case, int(k), tau, made, images[wanted][k], fov[k])


def _decoded(
    model: Any,
    given: dict[str, torch.Tensor],
    subset: tuple[str, ...],
    target: str,
    temperatures: Sequence[Temperature],
    n: int,
    seed: int,
) -> Iterator[tuple[Temperature, np.ndarray]]:
    """(K, H, W) at each temperature, from one encoding and one set of draws."""
    with inference(model) as device:
        encoding = model.encode({m: x.to(device) for m, x in given.items()})
        draws = model.draw_noise(n, torch.Generator().manual_seed(seed))
        draws = {level: z.to(device) for level, z in draws.items()}
        at_once = max(1, ROWS_AT_ONCE // n)
        for first in range(0, len(temperatures), at_once):
            some = temperatures[first : first + at_once]
            noise = {level: torch.cat([z] * len(some)) for level, z in draws.items()}
            each = [tau for tau in some for _ in range(n)]
            made = model.decode_subsets(encoding, [subset] * len(each), each, targets=[target], noise=noise)
            images = torch.cat([one.images[target][:, 0] for one in made]).float().cpu().numpy()
            yield from zip(some, images.reshape(len(some), n, *images.shape[1:]), strict=True)


# --- Coverage ---


def coverage_table(made: Iterable[SliceSamples], levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """How often the truth lies inside the central interval, pixel by pixel inside the fan.

    Args:
        made: From `draw_samples`.
        levels: Nominal levels in (0, 1).
    Returns:
        A row per slice, temperature and level: case, slice, temperature (a label for temperatures by level), level,
        n_samples, n_pixels, covered (share of the fan's pixels), width (mean length of the interval), std (root mean
        variance of the samples), error (root mean square error of their mean).
    """
    rows = []
    for s in made:
        truth = s.target[s.fov]
        drawn = s.samples[:, s.fov]
        std = float(np.sqrt(drawn.var(0, ddof=1).mean()))
        error = float(np.sqrt(((drawn.mean(0) - truth) ** 2).mean()))
        keys = {"case": s.case, "slice": s.slice, "temperature": temperature_label(s.temperature)}
        keys |= {"n_samples": len(drawn), "n_pixels": truth.size, "std": std, "error": error}
        for level in levels:
            low, high = central_interval(drawn, level)
            covered = float(((low <= truth) & (truth <= high)).mean())
            rows.append({**keys, "level": float(level), "covered": covered, "width": float((high - low).mean())})
    if not rows:
        raise InputError(explain("there are no samples to test"))
    return pd.DataFrame(rows)


def coverage_by_patient(table: pd.DataFrame) -> pd.DataFrame:
    """Coverage of each patient's pixels: slices weighted by their number of pixels in the fan."""
    keys = ["temperature", "level", "case"]
    weighted = table.assign(weight=table["covered"] * table["n_pixels"])
    groups = weighted.groupby(keys, sort=False)
    summed = groups[["weight", "n_pixels"]].sum()
    means = groups[["width", "std", "error"]].mean()
    return means.assign(covered=summed["weight"] / summed["n_pixels"], n_pixels=summed["n_pixels"]).reset_index()


def coverage_summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean coverage over patients with a 95 % bootstrap interval over patients, by temperature and level.

    Pixels of one image resemble one another, so thousands of them are no thousands of tests: the patient is the unit.
    """
    rows = []
    for (tau, level), part in coverage_by_patient(table).groupby(["temperature", "level"], sort=False):
        values = part.sort_values("case")["covered"].to_numpy()
        low, high = bootstrap_interval(values, seed=seed)
        row = {"temperature": tau, "level": level, "n_patients": len(part), "covered": float(values.mean())}
        row |= {"covered_low": low, "covered_high": high}
        rows.append(row | {k: float(part[k].mean()) for k in ("width", "std", "error")})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature whose intervals cover as much as they say.

    Args:
        tau: The temperature; where the level is not reached, the one that comes nearest.
        level: The level that was fitted.
        covered: Coverage at `tau`, read off the line between the temperatures that were tried.
        reached: Whether coverage reaches the level at all between the temperatures tried.
    """

    tau: float
    level: float
    covered: float
    reached: bool


def fit_temperature(table: pd.DataFrame, level: float = 0.9) -> FittedTemperature:
    """The one temperature at which the central interval of a level covers that share, mean over patients.

    Args:
        table: From `coverage_table` on validation patients, at several temperatures that are numbers.
        level: One of the table's levels.
    Returns:
        The lowest temperature at which the line through the tried temperatures crosses the level.
    """
    rows = coverage_summary(table)
    rows = rows[np.isclose(rows["level"], level)]
    if len(rows) < 2 or not all(isinstance(t, float) for t in rows["temperature"]):
        raise InputError(
            explain(
                "a temperature cannot be fitted",
                got=f"{len(rows)} temperatures at level {level:g}",
                expected="coverage at two or more temperatures that are numbers",
            )
        )
    rows = rows.sort_values("temperature")
    tau, covered = rows["temperature"].to_numpy(float), rows["covered"].to_numpy()
    short = covered - level
    crossings = np.flatnonzero((short[:-1] < 0) & (short[1:] >= 0))
    if not len(crossings):
        nearest = int(np.abs(short).argmin())
        return FittedTemperature(float(tau[nearest]), level, float(covered[nearest]), bool(short[nearest] == 0))
    i = int(crossings[0])
    part = short[i] / (short[i] - short[i + 1])
    return FittedTemperature(float(tau[i] + part * (tau[i + 1] - tau[i])), level, level, True)


def spread_and_error(made: Iterable[SliceSamples], n_bins: int = 8) -> pd.DataFrame:
    """Is the model more often wrong where it is less sure? Pixels in bins of equal number, by the samples' spread.

    Args:
        made: From `draw_samples`, all at one temperature.
        n_bins: Number of bins.
    Returns:
        A row per bin, from sure to unsure: n_pixels; std (root mean variance of the samples); error (root mean square
        error of their mean); expected (the error if the truth were one more draw: std * sqrt(1 + 1 / K)).
    """
    made = list(made)
    if not made or len({temperature_label(s.temperature) for s in made}) > 1:
        raise InputError(explain("samples at one temperature are needed", got=f"{len(made)} slices"))
    variance = np.concatenate([s.samples[:, s.fov].var(0, ddof=1) for s in made])
    square = np.concatenate([(s.mean - s.target)[s.fov] ** 2 for s in made])
    parts = np.array_split(np.argsort(variance, kind="stable"), n_bins)
    std = np.sqrt([variance[p].mean() for p in parts])
    table = pd.DataFrame({"n_pixels": [len(p) for p in parts], "std": std})
    table["error"] = np.sqrt([square[p].mean() for p in parts])
    return table.assign(expected=std * math.sqrt(1 + 1 / len(made[0].samples)))
