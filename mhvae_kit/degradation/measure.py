"""How far training images are from the real ones: every metric of the kit, on slices for which the truth exists."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mhvae_kit.degradation.appearance import RANGE_DB
from mhvae_kit.degradation.build import TrainingPatient
from mhvae_kit.evaluation.extras import extra_scores
from mhvae_kit.evaluation.scoring import score_images
from mhvae_kit.evaluation.temperature import tumour_contrast_db

METRICS: dict[str, tuple[str, int]] = {
    "psnr_fov_db": ("PSNR in fan (dB)", 1),
    "ssim_fov": ("SSIM in fan", 1),
    "lpips_fov": ("LPIPS in fan", -1),
    "swd_fov": ("patch distance (SWD)", -1),
    "spectrum_db_fov": ("spectrum distance (dB)", -1),
    "envelope_snr_log_ratio": ("envelope SNR, |ln ratio|", -1),
    "autocorrelation_log_ratio": ("grain width, |ln ratio|", -1),
    "contrast_error_db": ("tumour contrast, error (dB)", -1),
}
"""Column -> (title, +1 where more is better and -1 where less is)."""
LARGEST_LOG_RATIO = 3.0
"""In place of infinity, which an image without any texture has."""


def measured(patients: list[TrainingPatient]) -> pd.DataFrame:
    """Metrics of the slice through the middle of each patient's tumour.

    Args:
        patients: Those with a truth; others are passed over.
    Returns:
        One row a patient: case, slice and the columns of `METRICS` that can be computed; no rows without any truth.
        The contrast is that of the true label's place, so that an image off its label shows.
    """
    rows = []
    for patient in patients:
        if patient.truth is None or not patient.true_labels.any():
            continue
        k = int(np.argmax(patient.true_labels.sum(axis=(1, 2))))
        made, truth, fov = (a[k : k + 1] for a in (patient.scene.images, patient.truth, patient.scene.fov))
        scores = score_images(made, truth, fov)
        scores |= extra_scores(made, truth, fov, target="us", spacing_mm=patient.scene.spacing_mm)
        options = {"spacing_mm": patient.scene.spacing_mm, "dynamic_range_db": RANGE_DB}
        contrast = [tumour_contrast_db(a[0], patient.true_labels[k], fov[0], **options) for a in (made, truth)]
        row = {name: float(scores[name][0]) for name in METRICS if name in scores}
        row["contrast_error_db"] = abs(contrast[0] - contrast[1])
        for name in ("envelope_snr_log_ratio", "autocorrelation_log_ratio"):
            row[name] = min(row[name], LARGEST_LOG_RATIO)
        rows.append({"case": patient.case, "slice": k, **row})
    return pd.DataFrame(rows)
