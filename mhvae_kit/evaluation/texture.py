"""Does synthetic ultrasound have the texture of the real one: spectra and speckle statistics of both, by slice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mhvae_kit.evaluation.predictions import Dataset, Temperature, predictions
from mhvae_kit.metrics import (
    autocorrelation_width,
    envelope_snr,
    local_texture,
    radial_power_spectrum,
    spectrum_distance_db,
)

# Structure wider than this is anatomy, not speckle; it is smoothed away before the grain is measured.
TEXTURE_SIGMA_MM = 3.0


def texture_of(
    images: np.ndarray,
    fov: np.ndarray,
    *,
    spacing_mm: float | tuple[float, float],
    dynamic_range_db: float,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Texture statistics of log-compressed ultrasound inside the fan.

    Args:
        images: (N, H, W) in [-1, 1].
        fov: (N, H, W) bool.
        spacing_mm: Pixel size, one number or (rows, columns).
        dynamic_range_db: Span in dB that -1 to 1 stands for.
    Returns:
        A table with a row per image: envelope_snr (of the envelope over its local mean), grain_axial_mm and
        grain_lateral_mm (full width at half maximum of the autocorrelation of the local texture), texture_std; then
        frequencies (K,) in cycles/mm and power spectra (N, K) of the local texture.
    """
    row_mm, column_mm = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (2,))
    grain = local_texture(images, mask=fov, sigma_mm=TEXTURE_SIGMA_MM, spacing_mm=spacing_mm)
    frequency, power = radial_power_spectrum(grain, mask=fov, spacing_mm=spacing_mm)
    width = autocorrelation_width(grain, mask=fov, spacing_mm=spacing_mm)
    sigma_px = TEXTURE_SIGMA_MM / float(np.sqrt(row_mm * column_mm))
    table = pd.DataFrame(
        {
            "envelope_snr": envelope_snr(images, mask=fov, dynamic_range_db=dynamic_range_db, local_sigma_px=sigma_px),
            "grain_axial_mm": width[:, 0],
            "grain_lateral_mm": width[:, 1],
            "texture_std": [float(g[m].std()) for g, m in zip(grain, fov, strict=True)],
        }
    )
    return table, frequency, power


def texture(
    model: Any,
    dataset: Dataset,
    *,
    spacing_mm: float | tuple[float, float],
    dynamic_range_db: float,
    observed: str | Iterable[str] = "t2",
    target: str = "us",
    temperatures: Iterable[Temperature] = (0.0, 0.7, 1.0),
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, np.ndarray], np.ndarray]:
    """Compare the texture of synthetic ultrasound with that of the real images of the same slices.

    Args:
        model: An MHVAE.
        dataset: The data set.
        spacing_mm: Pixel size, one number or (rows, columns).
        dynamic_range_db: Span in dB that -1 to 1 stands for.
        observed: The one observed subset, "t2" or "t2+cet1".
        target: The ultrasound modality.
        temperatures: Temperatures to sample at, each with the same noise.
        split: Whose cases to take; None takes all.
        cases: Only these cases of the split.
        slices: Only these slices of each case.
        batch_size: Slices per batch.
        seed: Of the noise, see `predictions`.
    Returns:
        A table with a row per slice and image kind ("real", "temperature 0.7", ...): data, case, slice, kind, the
        columns of `texture_of`, and spectrum_distance_db from the mean real spectrum (what a real slice scores is the
        distance to be reached); then spectra by kind (N, K), and their frequencies (K,) in cycles/mm.
    """
    tables: list[pd.DataFrame] = []
    spectra: dict[str, list[np.ndarray]] = {}
    frequency = np.empty(0)
    subset = observed if isinstance(observed, str) else tuple(observed)
    options = {"split": split, "cases": cases, "slices": slices, "batch_size": batch_size, "seed": seed}
    for index, tau in enumerate(temperatures):
        kind = f"temperature {tau:g}" if isinstance(tau, (int, float)) else f"temperatures {dict(tau)}"
        made = predictions(model, dataset, observed=[subset], targets=[target], temperature=tau, **options)
        for p in made:
            pairs = ([("real", p.targets[target])] if index == 0 else []) + [(kind, p.images[target])]
            for name, images in pairs:
                rows, frequency, power = texture_of(
                    images, p.fov, spacing_mm=spacing_mm, dynamic_range_db=dynamic_range_db
                )
                tables.append(rows.assign(data=dataset.name, case=p.case, slice=p.slices, kind=name))
                spectra.setdefault(name, []).append(power)
    return _finish(tables, {kind: np.concatenate(parts) for kind, parts in spectra.items()}, frequency)


def _finish(
    tables: list[pd.DataFrame], spectra: dict[str, np.ndarray], frequency: np.ndarray
) -> tuple[pd.DataFrame, dict[str, np.ndarray], np.ndarray]:
    """Join the parts and add each slice's distance from the mean real spectrum."""
    table = pd.concat(tables, ignore_index=True)
    real = spectra["real"].mean(axis=0)
    for kind, power in spectra.items():
        table.loc[table["kind"] == kind, "spectrum_distance_db"] = spectrum_distance_db(power, real)
    first = ["data", "kind", "case", "slice"]
    return table[first + [c for c in table.columns if c not in first]], spectra, frequency
