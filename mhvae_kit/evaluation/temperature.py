"""What the temperature does to synthetic ultrasound: score, spread, texture and tumour contrast over a range of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.calibration import SliceSamples, draw_samples
from mhvae_kit.evaluation.predictions import Dataset, Temperature, slices_first
from mhvae_kit.evaluation.scoring import temperature_label
from mhvae_kit.evaluation.tables import bootstrap_interval
from mhvae_kit.evaluation.texture import texture_of
from mhvae_kit.metrics import psnr, spectrum_distance_db

MEASURES = ("psnr_fov_db", "spread", "spectrum_distance_db", "envelope_snr", "grain_lateral_mm", "contrast_db")
# The rim of the tumour is mixed with its surroundings; the ring beyond is what a reader compares it with.
RING_MM = (1.0, 6.0)
FEWEST_PIXELS = 20


def tumour_contrast_db(
    image: np.ndarray,
    tumour: np.ndarray,
    fov: np.ndarray,
    *,
    spacing_mm: float | tuple[float, float],
    dynamic_range_db: float,
) -> float:
    """Mean brightness of the tumour minus that of the ring 1 to 6 mm around it, in dB of the display.

    Args:
        image: (H, W) in [-1, 1].
        tumour, fov: (H, W) bool.
        spacing_mm: Pixel size, one number or (rows, columns).
        dynamic_range_db: Span in dB that -1 to 1 stands for.
    Returns:
        dB; NaN where the tumour or its ring has fewer than 20 pixels in the fan.
    """
    inside = tumour & fov
    distance = ndimage.distance_transform_edt(~tumour, sampling=np.broadcast_to(np.asarray(spacing_mm, float), (2,)))
    ring = (distance > RING_MM[0]) & (distance <= RING_MM[1]) & fov
    if not tumour.any() or min(inside.sum(), ring.sum()) < FEWEST_PIXELS:
        return float("nan")
    return float((image[inside].mean() - image[ring].mean()) / 2.0 * dynamic_range_db)


def temperature_sweep(
    model: Any,
    dataset: Dataset,
    temperatures: Sequence[Temperature],
    *,
    spacing_mm: float | tuple[float, float],
    dynamic_range_db: float,
    observed: Iterable[str] = ("t2",),
    target: str = "us",
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure two samples of each slice at each temperature, all from the same noise, and the real slice.

    Args:
        model: An MHVAE.
        dataset: The data set; it has a "tumour" volume.
        temperatures: Numbers, or one per level.
        spacing_mm, dynamic_range_db: See `texture_of`.
        observed, target: From what, to which ultrasound modality.
        split, cases, slices, seed: See `draw_samples`.
    Returns:
        A row per slice and temperature, and one per slice with kind "real" instead of "synthetic": data, kind,
        temperature, case, slice, psnr_fov_db (mean of both samples), spread (standard deviation between samples, root
        mean square inside the fan), envelope_snr, grain_axial_mm, grain_lateral_mm, texture_std (mean of both),
        spectrum_distance_db (from the mean real spectrum), contrast_db (of the tumour; NaN without one).
    """
    rows: list[dict[str, Any]] = []
    spectra: list[np.ndarray] = []
    look = {"spacing_mm": spacing_mm, "dynamic_range_db": dynamic_range_db}
    options = {"observed": observed, "target": target, "split": split, "cases": cases, "slices": slices, "seed": seed}
    seen: set[tuple[str, int]] = set()
    for made in draw_samples(model, dataset, temperatures=temperatures, n_samples=2, **options):
        tumour = slices_first(dataset.volume(made.case, "tumour"))[made.slice] > 0
        parts = [("synthetic", made.samples)]
        if (made.case, made.slice) not in seen:
            seen.add((made.case, made.slice))
            parts.append(("real", made.target[None]))
        for kind, images in parts:
            row, power = _measured(images, made, tumour, look)
            label = temperature_label(made.temperature) if kind == "synthetic" else float("nan")
            rows.append({"data": dataset.name, "kind": kind, "temperature": label, **row})
            spectra.append(power)
    if not rows:
        raise InputError(explain("no slice is left", got=f"slices {slices}", expected="slices that the fan fills"))
    table, power = pd.DataFrame(rows), np.stack(spectra)
    real = power[(table["kind"] == "real").to_numpy()].mean(0)
    return table.assign(spectrum_distance_db=spectrum_distance_db(power, real))


def _measured(
    images: np.ndarray, made: SliceSamples, tumour: np.ndarray, look: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """The measures of one slice, means over its images (n, H, W), and their mean spectrum (K,)."""
    fans = np.broadcast_to(made.fov, images.shape)
    texture, _, power = texture_of(images, fans, **look)
    row: dict[str, Any] = {"case": made.case, "slice": made.slice}
    target = np.broadcast_to(made.target, images.shape)
    synthetic = len(images) > 1
    row["psnr_fov_db"] = psnr(images, target, data_range=2.0, mask=fans).mean() if synthetic else np.nan
    row["spread"] = float(np.sqrt(made.samples[:, made.fov].var(0, ddof=1).mean())) if synthetic else np.nan
    row |= texture.mean().to_dict()
    contrasts = [tumour_contrast_db(x, tumour, made.fov, **look) for x in images]
    return row | {"contrast_db": float(np.mean(contrasts))}, power.mean(0)


def sweep_summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean over patients of every measure, with 95 % bootstrap intervals; slices without a value are left out.

    Returns:
        A row per kind, temperature and measure: n_patients, mean, low, high.
    """
    rows = []
    patients = table.groupby(["kind", "temperature", "case"], dropna=False, sort=False)[list(MEASURES)].mean()
    for (kind, tau), part in patients.groupby(["kind", "temperature"], dropna=False, sort=False):
        for measure in MEASURES:
            values = part[measure].dropna().to_numpy(dtype=float)
            if len(values):
                low, high = bootstrap_interval(values, seed=seed)
                row = {"kind": kind, "temperature": tau, "measure": measure, "n_patients": len(values)}
                rows.append({**row, "mean": float(values.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def best_temperatures(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The temperature of a sweep that each criterion prefers, and whether it makes a difference at all.

    PSNR prefers the highest mean, the spectrum the shortest distance; envelope SNR, grain and tumour contrast prefer
    the mean nearest to that of the real images.

    Args:
        table: From `temperature_sweep`.
        seed: Of the bootstrap.
    Returns:
        A row per criterion that has values: measure, temperature (the preferred one), mean (there), real (mean of the
        real images; NaN for PSNR), low, high (95 % interval over patients of the measure at the preferred minus at
        the least preferred temperature), matters (whether that interval leaves out 0).
    """
    made = table[table["kind"] == "synthetic"].groupby(["temperature", "case"], sort=False)[list(MEASURES)].mean()
    real = table[table["kind"] == "real"].groupby("case", sort=False)[list(MEASURES)].mean().mean()
    rows = []
    for measure in (m for m in MEASURES if m != "spread"):
        values = made[measure].unstack("temperature").dropna()
        if values.empty:
            continue
        means = values.mean()
        signs = {"psnr_fov_db": -means, "spectrum_distance_db": means}
        gap = signs[measure] if measure in signs else (means - real[measure]).abs()
        best, worst = gap.idxmin(), gap.idxmax()
        low, high = bootstrap_interval((values[best] - values[worst]).to_numpy(dtype=float), seed=seed)
        row = {"measure": measure, "temperature": best, "mean": means[best], "real": real[measure]}
        rows.append({**row, "low": low, "high": high, "matters": not low <= 0 <= high})
    return pd.DataFrame(rows)
