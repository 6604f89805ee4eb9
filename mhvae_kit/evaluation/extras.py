"""The scores of Table 1 beside PSNR and SSIM, what its columns are called, and the mean of each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import BACKGROUND
from mhvae_kit.evaluation.texture import TEXTURE_SIGMA_MM
from mhvae_kit.metrics import (
    absolute_log_ratio,
    as_masks,
    check_textured,
    lpips,
    lpips_available,
    paired_images,
    radial_spectrum_distance_db,
    sliced_wasserstein,
    speckle_statistics,
)

AUTHORS_PROTOCOL = "authors-2025"
# In the name of every column of that protocol, see `authors`.
AUTHORS_MARK = "authors2025"
KEYS = ("row", "observed", "target", "mode", "temperature", "n_samples", "case")


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Args:
        column: Its name in the frames of scores.
        title: What a reader sees, with its unit.
        digits: Decimals.
        better: Which end is good; None for a description that is not ranked.
    """

    column: str
    title: str
    digits: int
    better: Literal["higher", "lower"] | None


METRICS = (
    Metric("psnr_fov_db", "PSNR in fan (dB)", 2, "higher"),
    Metric("ssim_fov", "SSIM in fan", 3, "higher"),
    Metric("lpips_fov", "LPIPS in fan", 3, "lower"),
    Metric("swd_fov", "patch distance in fan (SWD)", 3, "lower"),
    Metric("spectrum_db_fov", "spectrum distance in fan (dB)", 2, "lower"),
    Metric("envelope_snr_log_ratio", "envelope SNR, |ln ratio| to real", 3, "lower"),
    Metric("autocorrelation_log_ratio", "grain width, |ln ratio| to real", 3, "lower"),
    Metric("psnr_full_db", "PSNR full frame (dB)", 2, "higher"),
    Metric("ssim_full", "SSIM full frame", 3, "higher"),
    Metric("lpips_full", "LPIPS full frame", 3, "lower"),
    Metric("l1_fov", "L1 in fan", 4, "lower"),
    Metric("envelope_snr", "envelope SNR", 2, None),
    Metric("autocorrelation_px", "grain width (px)", 2, None),
    Metric("envelope_snr_real", "envelope SNR of the real images", 2, None),
    Metric("autocorrelation_px_real", "grain width of the real images (px)", 2, None),
)


def extra_scores(
    images: np.ndarray,
    targets: np.ndarray,
    fov: np.ndarray,
    *,
    target: str = "us",
    dynamic_range_db: float = 40.0,
    spacing_mm: float = 1.0,
) -> dict[str, np.ndarray]:
    """Scores beside PSNR and SSIM: perceptual distance and texture, one value a slice.

    Args:
        images: Predictions (N, H, W) in [-1, 1]; what lies outside the fan is not looked at.
        targets: Truth, same shape.
        fov: The fan (N, H, W), bool.
        target: The target modality. Speckle is measured for "us" alone.
        dynamic_range_db: Span in dB that -1 to 1 stands for in ultrasound; 40 is the phantom's.
        spacing_mm: Pixel size; speckle is what is finer than a Gaussian of 3 mm.
    Returns:
        By column, (N,): lpips_fov and lpips_full (left out where LPIPS cannot be computed, see `lpips_available`),
        swd_fov, spectrum_db_fov; for ultrasound envelope_snr and autocorrelation_px of the prediction, those of the
        truth under <name>_real, and how far apart the two are, |ln ratio|, under envelope_snr_log_ratio and
        autocorrelation_log_ratio. A constant prediction has no speckle: infinity.
    Raises:
        InputError: Shapes that differ, NaN, values outside [-1, 1], an empty fan, a truth that is constant in the fan
            (a slice of background).
    """
    made, truth = paired_images(images, targets, data_range=2.0)
    masks = as_masks(fov, truth.shape, name="fov")
    check_textured(truth, masks)
    inside = {"data_range": 2.0, "mask": masks}
    scores: dict[str, np.ndarray] = {}
    if lpips_available()[0]:
        framed = np.where(masks, made, BACKGROUND)
        scores["lpips_fov"] = lpips(framed, truth, **inside)
        scores["lpips_full"] = lpips(framed, truth, data_range=2.0)
    scores["swd_fov"] = sliced_wasserstein(made, truth, **inside)
    scores["spectrum_db_fov"] = radial_spectrum_distance_db(made, truth, **inside)
    if target != "us":
        return scores
    settings = {"dynamic_range_db": dynamic_range_db, "sigma_px": TEXTURE_SIGMA_MM / spacing_mm, "mask": masks}
    own, real = speckle_statistics(made, **settings), speckle_statistics(truth, **settings)
    scores |= own
    for name, ratio in (
        ("envelope_snr", "envelope_snr_log_ratio"),
        ("autocorrelation_px", "autocorrelation_log_ratio"),
    ):
        scores[f"{name}_real"] = real[name]
        scores[ratio] = absolute_log_ratio(own[name], real[name])
    return scores


def patient_means(slices: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score over the slices of each patient, the unit of all that follows.

    Args:
        slices: A row a slice: the columns of `KEYS`, "slice", and any of the scores.
    Returns:
        A row per patient and keys, with n_slices. Score columns that are empty throughout are left out.
    Raises:
        InputError: Missing keys, a slice twice, or NaN in a score.
    """
    check_keys(slices, [*KEYS, "slice"], "the scores per slice")
    if slices.duplicated([*KEYS, "slice"]).any():
        raise InputError(explain("a slice is scored twice", expected="one row a slice and " + ", ".join(KEYS)))
    columns = score_columns(slices, "the scores per slice")
    groups = slices.groupby(list(KEYS), sort=False, dropna=False)
    means = groups[columns].agg(lambda values: float(np.mean(values.to_numpy(dtype=float))))
    means.insert(0, "n_slices", groups.size())
    return means.reset_index()


def check_keys(frame: pd.DataFrame, keys: Sequence[str], what: str) -> None:
    """Refuse a frame without rows or without these columns, naming them."""
    missing = [k for k in keys if k not in frame.columns]
    if missing or frame.empty:
        raise InputError(
            explain(
                f"{what} cannot be read",
                got="no rows" if not missing else "no column " + ", ".join(missing),
                expected="columns " + ", ".join(keys),
            )
        )


def has_scores(frame: pd.DataFrame, column: str) -> bool:
    """Whether a frame has a column and anything in it."""
    return column in frame.columns and not frame[column].isna().all()


def score_columns(frame: pd.DataFrame, what: str) -> list[str]:
    """The known score columns of a frame that hold anything; one that is empty in part is refused."""
    check_one_protocol(frame.columns)
    columns = [m.column for m in METRICS if has_scores(frame, m.column)]
    for column in columns:
        bad = frame[column].isna()
        if bad.any():
            first = frame.loc[bad.idxmax()]
            raise InputError(
                explain(
                    f"there is NaN in {what}",
                    got=f"{column} of {first['row']}, {first['observed']} to {first['target']}, {first['case']}",
                    expected="a number for each patient, or an empty column",
                    mend="Score that row again",
                )
            )
    if not columns:
        raise InputError(
            explain(f"there is no score in {what}", expected="some of " + ", ".join(m.column for m in METRICS))
        )
    return columns


def check_one_protocol(columns: Sequence[str] | pd.Index) -> str:
    """The protocol that a table's columns belong to: "kit" or "authors-2025".

    Raises:
        InputError: Columns of both.
    """
    known = {m.column for m in METRICS}
    theirs = [c for c in columns if AUTHORS_MARK in str(c)]
    ours = [c for c in columns if c in known]
    if theirs and ours:
        raise InputError(
            explain(
                "scores of two protocols are mixed in one table",
                got=f"{', '.join(theirs)} of {AUTHORS_PROTOCOL} beside {', '.join(ours)} of the kit",
                expected="one protocol a table: they differ in mask, range and SSIM",
                mend="Make a table of each",
            )
        )
    return AUTHORS_PROTOCOL if theirs else "kit"
