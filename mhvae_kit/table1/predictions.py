"""What a row predicts: every direction it has, in every mode that a stochastic row has to be shown in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mhvae_kit.evaluation import Prediction, all_subsets, fan_mean, predictions
from mhvae_kit.evaluation.predictions import Dataset as CaseVolumes
from mhvae_kit.evaluation.predictions import Subset, check_cases, read_case, scored_slices, slices_first
from mhvae_kit.evaluation.table1 import MODES
from mhvae_kit.table1.rows import MODALITIES

DETERMINISTIC, MEAN_PATH, ONE_SAMPLE, MEAN_OF_K = MODES
TRAIN, TEST = "train", "test"
BATCH_SIZE = 16
ORACLE_TARGET = "us"


class Dataset(CaseVolumes, Protocol):
    """A data set whose slices have one spacing."""

    spacing_mm: float


@dataclass(frozen=True)
class Mode:
    """How images were made.

    Args:
        name: One of `evaluation.table1.MODES`.
        temperature: Factor on the noise.
        n_samples: How many samples were averaged; 0 where none was drawn.
    """

    name: str
    temperature: float
    n_samples: int


@dataclass(frozen=True)
class Shown:
    """One batch of one line of the table.

    Args:
        row: Its name in the column "row".
        mode: How it was made.
        prediction: The images.
    """

    row: str
    mode: Mode
    prediction: Prediction


def directions_of(model: Any) -> dict[Subset, list[str]]:
    """Targets by observed subset: all that a model can make, synthesis and reconstruction."""
    names = sorted(model.config.modalities)
    if not hasattr(model, "directions"):
        return dict.fromkeys(all_subsets(names), names)
    found: dict[Subset, list[str]] = {}
    for observed, target in model.directions:
        found.setdefault(tuple(sorted(observed)), []).append(target)
    return found


def model_predictions(
    row: str, model: Any, dataset: Dataset, *, temperature: float | None, n_samples: int, seed: int
) -> Iterator[Shown]:
    """All of a model's predictions on the test patients.

    Every direction is shown on the mean path, or as the one image of a model without randomness. Samples are drawn for
    synthesis alone: those of reconstructions would take as long again, and no table shows them.

    Args:
        row: Its name.
        model: A `Translator` or an MHVAE.
        dataset: With a split "test".
        temperature: Of the samples; None for a model without randomness.
        n_samples: K of the mean of K. The one sample is the first of them.
        seed: Of the first sample; the others have the seeds after it.
    Raises:
        InputError: Training patients among the test patients; predictions that are not finite.
    """
    for observed, targets in directions_of(model).items():
        options = {"split": TEST, "observed": [observed], "targets": targets, "batch_size": BATCH_SIZE}
        name = DETERMINISTIC if temperature is None else MEAN_PATH
        for made in predictions(model, dataset, temperature=0.0, **options):
            yield Shown(row, Mode(name, 0.0, 0), made)
        synthetic = [m for m in targets if m not in observed]
        if temperature is None or not synthetic:
            continue
        options |= {"targets": synthetic}
        seeds = range(seed, seed + n_samples)
        drawn = [predictions(model, dataset, temperature=temperature, seed=s, **options) for s in seeds]
        for samples in zip(*drawn, strict=True):
            yield Shown(row, Mode(ONE_SAMPLE, temperature, 1), samples[0])
            yield Shown(row, Mode(MEAN_OF_K, temperature, n_samples), mean_of(samples))


def mean_of(samples: tuple[Prediction, ...]) -> Prediction:
    """The pixel-wise mean of several samples of the same slices."""
    images = {m: np.mean([s.images[m] for s in samples], axis=0, dtype=np.float32) for m in samples[0].images}
    return replace(samples[0], images=images)


def reference_predictions(dataset: Dataset) -> Iterator[Shown]:
    """What needs no training: the other image itself, a constant image, and the oracle.

    The latter two depend on no input; their own name stands in its place.

    Args:
        dataset: With splits "train" and "test"; the constant is the mean of the target over the fans of the training
            patients. Where it has `oracle(case)`, that is the mean over many speckle draws of the same patient.
    """
    constants = {m: fan_mean(dataset, m, split=TRAIN) for m in MODALITIES}
    for case in check_cases(dataset, TEST, None):
        images, fov = read_case(dataset, case, MODALITIES)
        usable, _ = scored_slices(fov)
        if not usable.size:
            continue
        given = {m: x[usable] for m, x in images.items()}
        guesses = [("copy", source, target, given[source]) for source, target in (MODALITIES, MODALITIES[::-1])]
        guesses += [("constant", "constant", m, np.full(x.shape, constants[m], np.float32)) for m, x in given.items()]
        if hasattr(dataset, "oracle"):
            guesses.append(("oracle", "oracle", ORACLE_TARGET, slices_first(dataset.oracle(case))[usable]))
        slices = tuple(int(k) for k in usable)
        for row, observed, target, made in guesses:
            prediction = Prediction(case, slices, (observed,), {target: made}, {target: given[target]}, fov[usable])
            yield Shown(row, Mode(DETERMINISTIC, 0.0, 0), prediction)
