"""Scores of a model, of a constant image and of the oracle, one row a slice, all by the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import (
    BACKGROUND,
    Dataset,
    Temperature,
    check_cases,
    check_modalities,
    check_subsets,
    check_targets,
    predictions,
    read_case,
    scored_slices,
    slices_first,
    subset_name,
)
from mhvae_kit.metrics import as_masks, mae, psnr, ssim_inner, ssim_map

SCORES = ("psnr_fov_db", "ssim_fov", "psnr_full_db", "ssim_full", "l1_fov")
KEYS = ("data", "case", "slice", "observed", "target", "temperature")
CONSTANT = "constant image"
ORACLE = "oracle"

_RANGE = 2.0


def temperature_label(temperature: Temperature) -> float | str:
    """A number as it is; a dict by level as "z1=0.2, z3=0"."""
    if isinstance(temperature, Mapping):
        return ", ".join(f"{level}={temperature[level]:g}" for level in sorted(temperature))
    return float(temperature)


def score_images(images: np.ndarray, target: np.ndarray, fov: np.ndarray) -> dict[str, np.ndarray]:
    """The kit's scores of images in [-1, 1] against their targets, one value a slice.

    Args:
        images: Predictions (N, H, W).
        target: Truth (N, H, W).
        fov: The fan (N, H, W), bool: explicit, never read off the images.
    Returns:
        By column, (N,): PSNR (dB), SSIM and L1 inside the fan; PSNR and SSIM of the full frame, for which predictions
        are set to -1 outside the fan, as every stored image is.
    Raises:
        InputError: See `metrics.psnr` and `metrics.ssim`.
    """
    masks = as_masks(fov, images.shape, name="fov")
    framed = np.where(masks, images, np.float32(BACKGROUND))
    # Inside the fan eroded by the window the map is the same with or without the frame, so one map serves both means.
    maps = ssim_map(framed, target, data_range=_RANGE)
    inner, frame = ssim_inner(masks), ssim_inner(np.ones_like(masks))
    if not inner.any(axis=(1, 2)).all():
        raise InputError(explain("fov is too thin for SSIM", expected="room for an 11 x 11 window in each slice"))
    return {
        "psnr_fov_db": psnr(images, target, data_range=_RANGE, mask=masks),
        "ssim_fov": np.array([m[i].mean() for m, i in zip(maps, inner, strict=True)]),
        "psnr_full_db": psnr(framed, target, data_range=_RANGE),
        "ssim_full": np.array([m[i].mean() for m, i in zip(maps, frame, strict=True)]),
        "l1_fov": mae(images, target, data_range=_RANGE, mask=masks),
    }


def _rows(scores: dict[str, np.ndarray], slices: Iterable[int], **keys: Any) -> pd.DataFrame:
    """One row a slice in the fixed column order."""
    frame = pd.DataFrame({"slice": list(slices), **scores}).assign(**keys)
    return frame[[*KEYS, *SCORES]]


def _table(parts: list[pd.DataFrame], dataset: Dataset, cases: list[str]) -> pd.DataFrame:
    """All rows in one table; attrs say which data they are of and how many slices were left out, and why."""
    if not parts:
        raise InputError(
            explain(
                "there is nothing to score",
                got=f"{len(cases)} cases of {dataset.name} without a slice that the fan fills",
                expected="at least one slice whose fan holds an 11 x 11 window",
            )
        )
    table = pd.concat(parts, ignore_index=True)
    skipped = {"empty": 0, "thin": 0}
    for case in cases:
        _, counts = scored_slices(slices_first(dataset.volume(case, "fov")) > 0)
        skipped = {reason: skipped[reason] + counts[reason] for reason in skipped}
    table.attrs = {
        "data": dataset.name,
        "skipped_empty_slices": skipped["empty"],
        "skipped_thin_slices": skipped["thin"],
    }
    return table


def evaluate(
    model: Any,
    dataset: Dataset,
    *,
    split: str | None = "test",
    observed: Iterable[str | Iterable[str]] | None = None,
    targets: Iterable[str] | None = None,
    temperature: Temperature = 0.0,
    cases: Iterable[str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    allow_training_cases: bool = False,
) -> pd.DataFrame:
    """Score a model on every slice of a split, for every observed subset and target.

    Args:
        model: An MHVAE; each batch is encoded once and decoded for every subset.
        dataset: The data set; its "fov" is the mask.
        split: Whose cases to score; None takes all.
        observed: Subsets as "t2+us" or ("t2", "us"); None takes every non-empty one. A target that is also observed is
            a reconstruction, otherwise a synthesis.
        targets: Modalities to score; None takes all of the model's.
        temperature: One number or one per level; 0 scores the mean.
        cases: Only these cases of the split.
        batch_size: Slices per batch. Changes no score but by rounding.
        seed: Of the noise above temperature 0; each slice has its own, whatever the batch size.
        allow_training_cases: Do not refuse cases that the model's card lists as training cases.
    Returns:
        A row per slice, subset and target: data (the data set's name), case, slice, observed ("t2+us"), target,
        temperature, psnr_fov_db, ssim_fov, psnr_full_db, ssim_full, l1_fov. Images lie in [-1, 1], the data range is
        2; the full-frame columns are of predictions set to -1 outside the fan. Slices whose fan is empty or too thin
        for an 11 x 11 window are left out and counted in attrs["skipped_empty_slices"] and
        attrs["skipped_thin_slices"].
    Raises:
        InputError: Unknown subset, target or case; training cases among them; predictions that are not finite or not in
            [-1, 1]; nothing to score.
    """
    check_subsets(observed, check_modalities(model, dataset))
    label = temperature_label(temperature)
    chosen = check_cases(dataset, split, cases)
    made = predictions(
        model,
        dataset,
        split=split,
        observed=observed,
        targets=targets,
        temperature=temperature,
        cases=chosen,
        batch_size=batch_size,
        seed=seed,
        allow_training_cases=allow_training_cases,
    )
    parts = []
    for p in made:
        keys = {"data": dataset.name, "case": p.case, "observed": subset_name(p.observed), "temperature": label}
        for target, images in p.images.items():
            scores = score_images(images, p.targets[target], p.fov)
            parts.append(_rows(scores, p.slices, target=target, **keys))
    return _table(parts, dataset, chosen)


def fan_mean(dataset: Dataset, modality: str, *, split: str = "train", cases: Iterable[str] | None = None) -> float:
    """Mean of a modality over all fan pixels of the training cases, in [-1, 1]: the best constant image known.

    Raises:
        InputError: The split has no case, a case is not in it, or no pixel lies inside a fan.
    """
    if not dataset.case_ids(split):
        raise InputError(
            explain(
                f"there is no {split} case of {dataset.name} to take a constant from",
                mend="Load that split too, or give the constants yourself",
            )
        )
    total, count = 0.0, 0
    for case in check_cases(dataset, split, cases):
        images, fov = read_case(dataset, case, [modality])
        total += float(images[modality][fov].sum(dtype=np.float64))
        count += int(fov.sum())
    if count == 0:
        raise InputError(explain(f"no fan pixel in the {split} split of {dataset.name}", expected="at least one"))
    return total / count


def references(
    dataset: Dataset,
    *,
    split: str | None = "test",
    targets: Iterable[str] | None = None,
    cases: Iterable[str] | None = None,
    constants: Mapping[str, float] | None = None,
    oracle_target: str | None = "us",
) -> pd.DataFrame:
    """Score what needs no model, in the format of `evaluate`: a constant image below, the oracle above.

    Args:
        dataset: The data set; with an oracle it has `oracle(case)` -> float32 (H, W, D) in [-1, 1], the mean over many
            speckle draws of the same patient.
        split: Whose cases to score.
        targets: Modalities to score; None takes all.
        cases: Only these cases of the split.
        constants: By target, the value of the constant image inside the fan, in [-1, 1]. None computes the mean over
            the fan pixels of the data set's training cases.
        oracle_target: What the oracle predicts; None, or a target that is not scored, leaves the oracle out.
    Returns:
        Rows with observed "constant image" and "oracle", temperature 0.
    Raises:
        InputError: Unknown target or case, a missing or unusable constant, no training case to compute one from.
    """
    wanted = check_targets(targets, list(dataset.modalities))
    chosen = check_cases(dataset, split, cases)
    values = {m: fan_mean(dataset, m) for m in wanted} if constants is None else dict(constants)
    missing = [m for m in wanted if m not in values or not -1.0 <= values[m] <= 1.0]
    if missing:
        raise InputError(
            explain(f"no usable constant for {', '.join(missing)}", got=values, expected="a number in [-1, 1] for each")
        )
    parts = []
    for case in chosen:
        images, fov = read_case(dataset, case, wanted)
        usable, _ = scored_slices(fov)
        if not usable.size:
            continue
        guesses = [(m, CONSTANT, np.full(images[m].shape, values[m], np.float32)) for m in wanted]
        if oracle_target in wanted:
            guesses.append((oracle_target, ORACLE, slices_first(dataset.oracle(case))))
        for target, name, guess in guesses:
            scores = score_images(guess[usable], images[target][usable], fov[usable])
            keys = {"data": dataset.name, "case": case, "observed": name, "temperature": 0.0}
            parts.append(_rows(scores, usable, target=target, **keys))
    return _table(parts, dataset, chosen)
