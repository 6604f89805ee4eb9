"""Metrics of training images against the truth."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from mhvae_kit.degradation import degrade
from mhvae_kit.degradation.appearance import RANGE_DB
from mhvae_kit.degradation.build import TrainingPatient
from mhvae_kit.degradation.measure import LARGEST_LOG_RATIO, METRICS, measured
from mhvae_kit.evaluation.extras import METRICS as TABLE_METRICS

CHOSEN = set(METRICS) - {"lpips_fov"}


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    """LPIPS has tests of its own, and takes longest."""
    monkeypatch.setattr("mhvae_kit.evaluation.extras.lpips_available", lambda: (False, ""))


def patient_of(scene, images=None, *, truth=True, case="a") -> TrainingPatient:
    degraded = dataclasses.replace(scene, images=scene.images if images is None else images)
    return TrainingPatient(case, degraded, scene.images if truth else None, scene.labels, {})


def test_identical_images_have_no_error(scene):
    (row,) = measured([patient_of(scene)]).to_dict("records")
    assert row["contrast_error_db"] == 0 and row["psnr_fov_db"] == np.inf and row["ssim_fov"] == pytest.approx(1)
    assert row["swd_fov"] == pytest.approx(0, abs=1e-6)
    assert row["envelope_snr_log_ratio"] == row["autocorrelation_log_ratio"] == 0


def test_blur_is_worse_by_every_metric_of_texture(scene):
    half, full = (
        measured([patient_of(scene, degrade("blur", d, scene, np.random.default_rng(0))[0])]).iloc[0]
        for d in (0.25, 1.0)
    )
    for name in ("ssim_fov", "psnr_fov_db", "spectrum_db_fov", "envelope_snr_log_ratio", "autocorrelation_log_ratio"):
        better = METRICS[name][1]
        assert better * half[name] > better * full[name], name


def test_lost_contrast_is_the_contrast_that_was_there(scene):
    gone = np.where(scene.labels, scene.images - 0.3, scene.images).astype(np.float32)
    row = measured([patient_of(scene, np.clip(gone, -1, 1))]).iloc[0]
    assert row["contrast_error_db"] == pytest.approx(0.3 / 2 * RANGE_DB, abs=1e-3)


def test_contrast_is_taken_at_the_true_place_even_if_the_label_moved(scene):
    moved = dataclasses.replace(scene, labels=np.roll(scene.labels, 20, axis=1))
    patient = TrainingPatient("a", moved, scene.images, scene.labels, {})
    assert measured([patient])["contrast_error_db"].item() == 0


def test_the_slice_is_that_of_the_largest_true_area(scene):
    labels = scene.labels.copy()
    labels[3, :34] = False
    labels[[1, 2, 4]] &= False
    labels[4, 38:42, 40:46] = True
    patient = TrainingPatient("a", scene, scene.images, labels, {})
    assert measured([patient])["slice"].item() == 3


def test_an_image_without_texture_has_the_largest_ratio_and_no_infinity(scene):
    flat = np.where(scene.fov, 0.1, -1.0).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = measured([patient_of(scene, flat)]).iloc[0]
    assert row["envelope_snr_log_ratio"] == LARGEST_LOG_RATIO
    assert row["autocorrelation_log_ratio"] <= LARGEST_LOG_RATIO


def test_patients_without_truth_are_passed_over(scene):
    assert len(measured([patient_of(scene, truth=False)])) == 0
    table = measured([patient_of(scene, truth=False, case="a"), patient_of(scene, case="b")])
    assert table["case"].tolist() == ["b"]


def test_columns_are_the_metrics_and_their_directions_those_of_table_1(scene):
    table = measured([patient_of(scene)])
    assert set(table.columns) == {"case", "slice"} | CHOSEN
    ranked = {m.column: {"higher": 1, "lower": -1}[m.better] for m in TABLE_METRICS if m.better}
    assert {n: way for n, (_, way) in METRICS.items() if n in ranked} == {n: ranked[n] for n in METRICS if n in ranked}
