"""Texture against the real image: spectrum distance and speckle statistics, on made speckle and on the phantom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mhvae_kit import evaluation, metrics
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError
from mhvae_kit.metrics import perceptual

DISTANCES = ("swd_fov", "spectrum_db_fov", "envelope_snr_log_ratio", "autocorrelation_log_ratio")
RANGE_DB = 40.0


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch, tmp_path):
    """No weights: what LPIPS makes of images is tested elsewhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def disc(size: int = 64) -> np.ndarray:
    row, column = np.mgrid[:size, :size]
    return np.hypot(row - size / 2, column - size / 2) < 0.45 * size


def made_speckle(seed: int = 0, shape: tuple[int, ...] = (2, 64, 64)) -> np.ndarray:
    """Log-compressed speckle with a grain of about 3 px, two tissues, inside a disc; background -1."""
    rng = np.random.default_rng(seed)
    envelope = np.hypot(*ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 0, 0.9, 1.1)))
    envelope[..., 32:] *= 0.5
    level = 20 * np.log10(envelope / np.quantile(envelope, 0.999)) / RANGE_DB * 2 + 0.8
    return np.where(disc(), np.clip(level, -1, 1), -1.0)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Four slices of a phantom patient, ultrasound and fan."""
    data = load_phantom("smoke", splits=["test"], show_progress=False)
    us, fov = (np.moveaxis(data.volume(data.case_ids("test")[0], k), 2, 0)[2:10:2] for k in ("us", "fov"))
    return us / 255 * 2 - 1, fov > 0


@pytest.fixture(params=["made", "phantom"])
def real(request, phantom) -> tuple[np.ndarray, np.ndarray]:
    if request.param == "phantom":
        return phantom
    images = made_speckle()
    return images, np.broadcast_to(disc(), images.shape)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(images, (0, sigma, sigma))


# --- The three distances, on both kinds of images ---


def test_identical_images_have_no_distance(real):
    images, fov = real
    scores = evaluation.extra_scores(images, images, fov)
    assert all((scores[name] == 0).all() for name in DISTANCES)
    assert (scores["envelope_snr"] == scores["envelope_snr_real"]).all()


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_more_damage_means_more_distance_in_every_texture_score(real, damage):
    images, fov = real
    noise = np.random.default_rng(1).normal(0, 1, images.shape)
    mean = {name: [0.0] for name in DISTANCES}
    for strength in (0.4, 0.6, 0.9, 1.4) if damage == "blur" else (0.05, 0.1, 0.2, 0.4):
        bad = blurred(images, strength) if damage == "blur" else images + strength * noise
        scores = evaluation.extra_scores(np.clip(bad, -1, 1), images, fov)
        for name in DISTANCES:
            mean[name].append(float(scores[name].mean()))
    assert {name: mean[name] == sorted(set(mean[name])) for name in DISTANCES} == dict.fromkeys(DISTANCES, True)


def test_what_lies_outside_the_fan_changes_nothing(real):
    images, fov = real
    expected = evaluation.extra_scores(blurred(images, 0.8), images, fov)
    spoilt = evaluation.extra_scores(np.where(fov, blurred(images, 0.8), 0.6), images, fov)
    for name, values in expected.items():
        np.testing.assert_allclose(spoilt[name], values, rtol=1e-6, err_msg=name)


def test_blur_and_noise_are_told_apart_by_the_statistics(real):
    images, fov = real
    noise = np.random.default_rng(2).normal(0, 0.2, images.shape)
    own = evaluation.extra_scores(images, images, fov)
    soft = evaluation.extra_scores(blurred(images, 0.9), images, fov)
    rough = evaluation.extra_scores(np.clip(images + noise, -1, 1), images, fov)
    for name in ("envelope_snr", "autocorrelation_px"):
        assert (soft[name] > own[name]).all() and (rough[name] < own[name]).all()


def test_a_constant_image_has_no_speckle(real):
    images, fov = real
    scores = evaluation.extra_scores(np.full_like(images, -0.3), images, fov)
    assert np.isposinf(scores["envelope_snr"]).all() and np.isposinf(scores["autocorrelation_log_ratio"]).all()
    assert (scores["spectrum_db_fov"] > 20).all() and np.isfinite(scores["spectrum_db_fov"]).all()


def test_the_oracle_is_far_in_texture_and_another_patient_near(phantom):
    """The mean over speckle draws is the ceiling of PSNR and near the floor of texture."""
    images, fov = phantom
    data = load_phantom("smoke", splits=["test"], show_progress=False)
    first, second = data.case_ids("test")
    oracle = np.moveaxis(data.oracle(first), 2, 0)[2:10:2]
    other = np.moveaxis(data.volume(second, "us"), 2, 0)[2:10:2] / 255 * 2 - 1
    far, near = (evaluation.extra_scores(x, images, fov) for x in (oracle, other))
    assert all(far[name].mean() > 2 * near[name].mean() for name in DISTANCES)
    options = {"data_range": 2, "mask": fov}
    assert (metrics.psnr(oracle, images, **options) > metrics.psnr(other, images, **options)).all()


# --- extra_scores ---


def test_the_scores_are_those_of_the_metrics(phantom):
    images, fov = phantom
    made = blurred(images, 0.7)
    scores = evaluation.extra_scores(made, images, fov, dynamic_range_db=50, spacing_mm=1.5)
    options = {"data_range": 2, "mask": fov}
    np.testing.assert_array_equal(scores["swd_fov"], metrics.sliced_wasserstein(made, images, **options))
    snr = [metrics.envelope_snr(x, dynamic_range_db=50, mask=fov, local_sigma_px=2) for x in (made, images)]
    np.testing.assert_allclose(scores["envelope_snr"], snr[0])
    np.testing.assert_allclose(scores["envelope_snr_log_ratio"], np.abs(np.log(snr[0] / snr[1])))
    grain = metrics.local_texture(made, mask=fov, sigma_mm=2)
    width = metrics.autocorrelation_width(grain, spacing_mm=1.0, mask=fov)
    np.testing.assert_allclose(scores["autocorrelation_px"], np.sqrt(width[:, 0] * width[:, 1]))


def test_speckle_is_measured_in_ultrasound_alone(phantom):
    images, fov = phantom
    assert set(evaluation.extra_scores(images, images, fov, target="t2")) == {"swd_fov", "spectrum_db_fov"}


def test_without_weights_there_is_no_lpips_column(phantom):
    images, fov = phantom
    assert not [name for name in evaluation.extra_scores(images, images, fov) if "lpips" in name]


def test_with_weights_lpips_is_computed_inside_the_fan_and_of_the_framed_image(phantom, monkeypatch):
    images, fov = phantom
    calls = []

    def fake(prediction, target, *, data_range, mask=None):
        calls.append((prediction, mask))
        return np.full(len(prediction), 0.5 if mask is None else 0.25)

    monkeypatch.setattr("mhvae_kit.evaluation.extras.lpips_available", lambda: (True, ""))
    monkeypatch.setattr("mhvae_kit.evaluation.extras.lpips", fake)
    scores = evaluation.extra_scores(np.full_like(images, 0.5), images, fov)
    assert (scores["lpips_fov"] == 0.25).all() and (scores["lpips_full"] == 0.5).all()
    assert all((prediction[~fov] == -1).all() for prediction, _ in calls)
    assert images.shape[1] >= perceptual.MIN_SIDE_PX


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.nan}, "prediction holds NaN"),
        ({"images": 1.5}, "prediction lies outside the declared range"),
        ({"targets": -1.0}, "target is constant inside the mask, as a slice of background"),
        ({"fov": False}, "fov is empty"),
    ],
)
def test_unfit_slices_are_refused(change, message):
    images = made_speckle()
    slices = {"images": images, "targets": images, "fov": np.broadcast_to(disc(), images.shape).copy()}
    for name, value in change.items():
        slices[name] = np.full_like(slices[name], value)
    with pytest.raises(InputError, match=message):
        evaluation.extra_scores(**slices)


# --- The functions themselves ---


def test_spectrum_distance_agrees_with_that_of_the_spectra():
    first, second = made_speckle(3), made_speckle(4)
    spectra = [metrics.radial_power_spectrum(x, spacing_mm=1.0, mask=disc())[1] for x in (first, second)]
    floor = (2 / 255) ** 2 / 12
    expected = metrics.spectrum_distance_db(spectra[0] + floor, spectra[1] + floor)
    made = metrics.radial_spectrum_distance_db(first, second, data_range=2, mask=disc())
    np.testing.assert_allclose(made, expected)


def test_spectrum_distance_does_not_depend_on_unit_or_pixel_size():
    first, second = made_speckle(5), made_speckle(6)
    expected = metrics.radial_spectrum_distance_db(first, second, data_range=2, mask=disc())
    eight_bit = [(x + 1) * 127.5 for x in (first, second)]
    options = {"mask": disc(), "spacing_mm": 0.5}
    np.testing.assert_allclose(metrics.radial_spectrum_distance_db(*eight_bit, data_range=255, **options), expected)


def test_power_below_the_step_of_8_bits_weighs_nothing():
    smooth = 0.5 * np.sin(np.arange(64) / 10)[:, None] * np.ones(64)
    dust = smooth + 1e-6 * np.random.default_rng(0).normal(size=smooth.shape)
    assert metrics.radial_spectrum_distance_db(dust, smooth, data_range=2)[0] < 0.01


@settings(max_examples=30)
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_log_ratio_is_symmetric_and_counts_factors(a, b):
    one, other = np.array([a]), np.array([b])
    assert metrics.absolute_log_ratio(one, other) == pytest.approx(metrics.absolute_log_ratio(other, one))
    assert np.exp(metrics.absolute_log_ratio(one, other)[0]) == pytest.approx(max(a / b, b / a))


def test_log_ratio_with_infinity():
    made = metrics.absolute_log_ratio(np.array([np.inf, np.inf, 2.0]), np.array([np.inf, 1.0, 2.0]))
    assert made.tolist() == [0.0, np.inf, 0.0]


def test_speckle_statistics_of_single_images_and_of_a_mixed_batch():
    batch = np.stack([made_speckle(7)[0], np.full((64, 64), 0.2)])
    made = metrics.speckle_statistics(batch, dynamic_range_db=RANGE_DB, sigma_px=3, mask=disc())
    for index, image in enumerate(batch):
        alone = metrics.speckle_statistics(image, dynamic_range_db=RANGE_DB, sigma_px=3, mask=disc())
        assert all(alone[name][0] == pytest.approx(made[name][index]) for name in made)
    assert 1.6 < made["envelope_snr"][0] < 2.4 and 1.2 < made["autocorrelation_px"][0] < 2.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: metrics.radial_spectrum_distance_db(x, np.zeros_like(x), data_range=2), "constant inside the mask"),
        (lambda x: metrics.radial_spectrum_distance_db(x, x, data_range=1), "outside the declared range"),
        (lambda x: metrics.radial_spectrum_distance_db(x, x[:1], data_range=2), "differ in shape"),
        (lambda x: metrics.speckle_statistics(2 * x, dynamic_range_db=40, sigma_px=3), r"not in \[-1, 1\]"),
        (lambda x: metrics.speckle_statistics(x, dynamic_range_db=40, sigma_px=0), "local_sigma_px"),
        (lambda x: metrics.absolute_log_ratio(x[0], x[1][:3]), "positive numbers of one shape"),
        (lambda x: metrics.absolute_log_ratio(np.zeros(2), np.ones(2)), "positive numbers"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(made_speckle(8))
