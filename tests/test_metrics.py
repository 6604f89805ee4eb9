"""Metrics: known values, agreement with scikit-image and with plain NumPy, properties, and what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mhvae_kit import metrics
from mhvae_kit.errors import InputError

images = hnp.arrays(np.float64, (16, 14), elements=st.floats(-1, 1, width=32))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image and a noisy copy, (3, 40, 36) in [-1, 1]."""
    rng = np.random.default_rng(0)
    target = np.clip(ndimage.gaussian_filter(rng.normal(0, 4, (3, 40, 36)), (0, 2, 2)), -1, 1)
    return np.clip(target + rng.normal(0, 0.1, target.shape), -1, 1), target


def fan(height: int = 96, width: int = 96) -> np.ndarray:
    """A fan-shaped mask with the probe on top."""
    row, column = np.mgrid[:height, :width]
    x, y = column - width / 2, row + 0.2 * height
    radius = np.hypot(x, y)
    return (radius > 0.3 * height) & (radius < 1.15 * height) & (np.abs(np.arctan2(x, y)) < 0.6)


# --- PSNR and L1 ---


def test_psnr_of_a_constant_error_by_hand():
    target = np.zeros((8, 8))
    assert metrics.psnr(target + 0.2, target, data_range=2) == pytest.approx([20.0])
    assert metrics.psnr(target + 0.5, target, data_range=1) == pytest.approx([10 * np.log10(4)])


def test_psnr_counts_only_the_mask():
    target = np.zeros((4, 4))
    prediction = target.copy()
    prediction[0, 0], prediction[3, 3] = 0.2, 1.0
    mask = np.zeros((4, 4), bool)
    mask[0, :2] = True
    assert metrics.psnr(prediction, target, data_range=2, mask=mask) == pytest.approx([10 * np.log10(4 / 0.02)])


def test_psnr_agrees_with_scikit_image(pair):
    expected = [peak_signal_noise_ratio(t, p, data_range=2) for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(metrics.psnr(*pair, data_range=2), expected, rtol=1e-12)


def test_psnr_of_identical_images_is_infinite(pair):
    assert np.isposinf(metrics.psnr(pair[0], pair[0], data_range=2)).all()


def test_psnr_of_8_bit_images_does_not_wrap_round():
    low, high = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    assert metrics.psnr(low, high, data_range=255) == pytest.approx([0.0])
    assert metrics.mae(low, high, data_range=255) == pytest.approx([255.0])


def test_halving_the_data_range_costs_6_decibel():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0, 1, (2, 9, 9))
    difference = metrics.psnr(a, b, data_range=2, low=0) - metrics.psnr(a, b, data_range=1)
    assert difference == pytest.approx([20 * np.log10(2)])


def test_mae_by_hand():
    target = np.zeros((2, 4, 4))
    prediction = np.stack([np.full((4, 4), 0.25), np.full((4, 4), -0.5)])
    np.testing.assert_allclose(metrics.mae(prediction, target, data_range=2), [0.25, 0.5])
    assert metrics.mae(prediction[0], prediction[0], data_range=2) == [0.0]


# --- SSIM ---


def _plain_ssim_map(a: np.ndarray, b: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM at every pixel whose 11 x 11 window is inside the image, by explicit sums over the windows."""
    ticks = np.arange(-5, 6)
    window = np.exp(-(ticks[:, None] ** 2 + ticks[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    views = [np.lib.stride_tricks.sliding_window_view(x, (11, 11)) for x in (a, b)]
    mean_a, mean_b = ((v * window).sum((-1, -2)) for v in views)
    centred_a, centred_b = (v - m[..., None, None] for v, m in zip(views, (mean_a, mean_b), strict=True))
    var_a, var_b = (centred_a**2 * window).sum((-1, -2)), (centred_b**2 * window).sum((-1, -2))
    shared = (centred_a * centred_b * window).sum((-1, -2))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * shared + c2)
    return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def test_ssim_agrees_with_plain_numpy(pair):
    expected = [_plain_ssim_map(p, t, 2.0).mean() for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(metrics.ssim(*pair, data_range=2), expected, rtol=1e-10)


def test_ssim_agrees_with_scikit_image_slice_by_slice(pair):
    options = {"data_range": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [structural_similarity(p, t, **options) for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(metrics.ssim(*pair, data_range=2), expected, rtol=1e-12)


def test_masked_ssim_is_the_mean_of_whole_windows_inside_the_mask(pair):
    mask = np.zeros((40, 36), bool)
    mask[4:30, 3:25] = True
    expected = [_plain_ssim_map(p[4:30, 3:25], t[4:30, 3:25], 2.0).mean() for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(metrics.ssim(*pair, data_range=2, mask=mask), expected, rtol=1e-10)


def test_masked_ssim_does_not_see_what_is_outside_the_mask(pair):
    mask = fan(40, 36)
    other = np.where(mask, pair[0], -1.0)
    before = metrics.ssim(*pair, data_range=2, mask=mask)
    np.testing.assert_allclose(metrics.ssim(other, pair[1], data_range=2, mask=mask), before, rtol=1e-12)


def test_ssim_of_two_constants_by_hand():
    a, b, c1 = 0.5, -0.25, 0.02**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.ssim(np.full((12, 12), a), np.full((12, 12), b), data_range=2) == pytest.approx([expected])


def test_background_inflates_the_full_frame_scores(pair):
    mask = np.zeros((40, 36), bool)
    mask[10:30, 8:28] = True
    prediction, target = (np.where(mask, x, -1.0) for x in pair)
    for score in (metrics.psnr, metrics.ssim):
        inside, full = score(prediction, target, data_range=2, mask=mask), score(prediction, target, data_range=2)
        assert (full > inside).all()


# --- Properties ---


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim])
@pytest.mark.parametrize("damage", ["noise", "blur"])
def test_more_damage_means_a_lower_score(pair, score, damage):
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, pair[1].shape)
    strengths = [0.05, 0.1, 0.2, 0.4] if damage == "noise" else [0.5, 1, 2, 4]
    scores = []
    for s in strengths:
        bad = pair[0] + s * noise if damage == "noise" else ndimage.gaussian_filter(pair[0], (0, s, s))
        scores.append(score(np.clip(bad, -1, 1), pair[0], data_range=2))
    assert all((a > b).all() for a, b in itertools.pairwise(scores))


@settings(max_examples=40)
@given(images, images)
def test_scores_are_symmetric_and_bounded(a, b):
    np.testing.assert_allclose(metrics.psnr(a, b, data_range=2), metrics.psnr(b, a, data_range=2))
    np.testing.assert_allclose(metrics.ssim(a, b, data_range=2), metrics.ssim(b, a, data_range=2), atol=1e-9)
    assert -1 - 1e-9 <= metrics.ssim(a, b, data_range=2)[0] <= 1 + 1e-9
    assert 0 <= metrics.mae(a, b, data_range=2)[0] <= 2
    assert metrics.psnr(a, b, data_range=2)[0] >= -1e-9


@settings(max_examples=20)
@given(images)
def test_an_image_is_identical_to_itself(a):
    assert metrics.ssim(a, a, data_range=2)[0] == pytest.approx(1.0)
    assert metrics.mae(a, a, data_range=2)[0] == 0.0


@settings(max_examples=20)
@given(images, images, st.sampled_from([2.0, 10.0, 127.5]))
def test_scores_do_not_depend_on_the_scale_of_images_and_range_together(a, b, factor):
    one = [score((a + 1), (b + 1), data_range=2, low=0) for score in (metrics.psnr, metrics.ssim)]
    other = [score((a + 1) * factor, (b + 1) * factor, data_range=2 * factor) for score in (metrics.psnr, metrics.ssim)]
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.mae])
def test_tensors_batches_and_single_images_give_the_same_values(pair, score):
    expected = score(*pair, data_range=2)
    assert expected.shape == (3,) and expected.dtype == np.float64
    tensors = [torch.from_numpy(x)[:, None].requires_grad_() for x in pair]
    np.testing.assert_allclose(score(*tensors, data_range=2), expected)
    single = [score(p, t, data_range=2) for p, t in zip(*pair, strict=True)]
    np.testing.assert_allclose(np.concatenate(single), expected)


def test_bfloat16_tensors_are_read_without_loss():
    image = torch.linspace(-1, 1, 144, dtype=torch.bfloat16).reshape(1, 1, 12, 12)
    assert metrics.mae(image, image.float(), data_range=2) == [0.0]


def test_inputs_are_left_as_they_are(pair):
    kept = [x.copy() for x in pair]
    metrics.ssim(*pair, data_range=2, mask=np.ones((40, 36), bool))
    metrics.radial_power_spectrum(pair[0], spacing_mm=1.0)
    assert all((x == k).all() for x, k in zip(pair, kept, strict=True))


# --- What is refused ---


def _with(value: float) -> np.ndarray:
    image = np.zeros((12, 12))
    image[3, 4] = value
    return image


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.mae])
@pytest.mark.parametrize(
    ("prediction", "target", "data_range", "message"),
    [
        (_with(np.nan), _with(0), 2, "prediction holds NaN"),
        (_with(0), _with(np.inf), 2, "target holds NaN"),
        (_with(1.5), _with(0), 2, "prediction lies outside the declared range"),
        (_with(0), _with(-1), 1, "target lies outside the declared range"),
        (_with(0), _with(255), 2, "target lies outside the declared range"),
        (np.zeros((12, 13)), _with(0), 2, "differ in shape"),
        (np.zeros((2, 3, 12, 12)), np.zeros((2, 3, 12, 12)), 2, "not an image"),
        (np.zeros((1, 1, 1, 12, 12)), np.zeros((1, 1, 1, 12, 12)), 2, "slice by slice"),
        (np.zeros((0, 12, 12)), np.zeros((0, 12, 12)), 2, "not an image"),
        (_with(0), _with(0), 0, "data_range is not usable"),
        (_with(0), _with(0), "2", "data_range is not a number"),
        (np.zeros((12, 12), complex), _with(0), 2, "real numbers"),
    ],
)
def test_unfit_images_are_refused(score, prediction, target, data_range, message):
    with pytest.raises(InputError, match=message):
        score(prediction, target, data_range=data_range)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.mae])
def test_the_data_range_has_no_default(score):
    with pytest.raises(TypeError, match="data_range"):
        score(_with(0), _with(0))


def test_rounding_at_the_ends_of_the_range_is_let_through():
    assert metrics.mae(_with(1 + 1e-7), _with(1), data_range=2)[0] < 1e-8


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((12, 12)), "mask is empty"),
        (np.stack([np.ones((12, 12)), np.zeros((12, 12))]), "mask is empty.*image 1"),
        (np.ones((11, 12)), "does not fit"),
        (np.full((12, 12), 255), "not a mask"),
        (np.full((12, 12), 0.5), "not a mask"),
    ],
)
def test_unfit_masks_are_refused(mask, message):
    pictures = np.zeros((2, 12, 12))
    with pytest.raises(InputError, match=message):
        metrics.psnr(pictures, pictures, data_range=2, mask=mask)


def test_ssim_refuses_a_mask_or_an_image_smaller_than_its_window():
    mask = np.zeros((12, 12), bool)
    mask[:10] = True
    with pytest.raises(InputError, match="too thin"):
        metrics.ssim(_with(0), _with(0), data_range=2, mask=mask)
    with pytest.raises(InputError, match="smaller than the SSIM window"):
        metrics.ssim(np.zeros((10, 12)), np.zeros((10, 12)), data_range=2)


# --- Speckle ---


def _compressed(envelope: np.ndarray, dynamic_range_db: float = 60.0) -> np.ndarray:
    """Log compression to [-1, 1]."""
    return np.clip(20 * np.log10(envelope / envelope.max()) / dynamic_range_db * 2 + 1, -1, 1)


def test_envelope_is_recovered_from_its_log_compression():
    envelope = np.array([[1.0, 0.5], [0.1, 0.01]])
    np.testing.assert_allclose(metrics.linear_envelope(_compressed(envelope), dynamic_range_db=60)[0], envelope)


def test_rayleigh_speckle_has_an_snr_of_1_91():
    image = _compressed(np.random.default_rng(3).rayleigh(1, (4, 96, 96)))
    expected = np.sqrt(np.pi / (4 - np.pi))
    np.testing.assert_allclose(metrics.envelope_snr(image, dynamic_range_db=60), expected, rtol=0.04)
    np.testing.assert_allclose(metrics.envelope_snr(image, dynamic_range_db=60, mask=fan()), expected, rtol=0.05)


def test_local_envelope_snr_is_blind_to_slow_brightness():
    rayleigh = np.random.default_rng(4).rayleigh(1, (96, 96))
    image = _compressed(rayleigh * np.linspace(0.2, 1, 96))
    plain = metrics.envelope_snr(image, dynamic_range_db=60)[0]
    local = metrics.envelope_snr(image, dynamic_range_db=60, local_sigma_px=5)[0]
    assert plain < 1.7 < local == pytest.approx(1.91, rel=0.05)


def test_blur_raises_the_envelope_snr_step_by_step():
    image = _compressed(np.random.default_rng(5).rayleigh(1, (96, 96)))
    scores = [metrics.envelope_snr(ndimage.gaussian_filter(image, s), dynamic_range_db=60)[0] for s in (0, 0.5, 1, 2)]
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]


def test_envelope_snr_of_a_constant_image_is_infinite():
    assert np.isposinf(metrics.envelope_snr(np.full((9, 9), 0.3), dynamic_range_db=40)).all()


@pytest.mark.parametrize("mask", [None, fan()])
def test_white_noise_has_a_flat_spectrum_of_its_variance(mask):
    noise = np.random.default_rng(6).normal(0.5, 0.2, (30, 96, 96))
    frequency, power = metrics.radial_power_spectrum(noise, spacing_mm=(0.5, 0.5), mask=mask)
    expected = 0.2**2 * 0.5 * 0.5
    assert power.shape == (30, len(frequency)) and frequency[-1] == pytest.approx(1.0, rel=0.02)
    np.testing.assert_allclose(power.mean(axis=0)[3:], expected, rtol=0.2)
    assert power.mean() == pytest.approx(expected, rel=0.02)


def test_a_wave_stands_at_its_own_frequency():
    row = np.arange(96) * 0.5
    wave = np.sin(2 * np.pi * 0.25 * row)[:, None] * np.ones(96)
    frequency, power = metrics.radial_power_spectrum(wave, spacing_mm=0.5)
    assert frequency[power[0].argmax()] == pytest.approx(0.25, abs=0.5 / 48)


def test_the_fan_edge_does_not_show_in_the_spectrum():
    noise = np.random.default_rng(7).normal(0, 0.2, (96, 96))
    inside = metrics.radial_power_spectrum(noise, spacing_mm=1.0, mask=fan())[1]
    framed = metrics.radial_power_spectrum(np.where(fan(), noise, -1), spacing_mm=1.0, mask=fan())[1]
    np.testing.assert_array_equal(inside, framed)
    shifted = metrics.radial_power_spectrum(noise + 5, spacing_mm=1.0, mask=fan())[1]
    np.testing.assert_allclose(shifted, inside, rtol=1e-6)


def test_spectrum_agrees_with_plain_sums_over_rings():
    rng = np.random.default_rng(8)
    image, height, width = rng.normal(0, 1, (12, 16)), 12, 16
    _, power = metrics.radial_power_spectrum(image, spacing_mm=1.0, n_bins=5)
    distance = ndimage.distance_transform_edt(np.pad(np.ones_like(image), 1))[1:-1, 1:-1]
    window = np.sin(np.pi / 2 * np.minimum(distance / (distance.max() / 2), 1)) ** 2
    flat = window * (image - (window * image).sum() / window.sum())
    sums = np.zeros(5)
    counts = np.zeros(5)
    rows, columns = np.mgrid[:height, :width]
    for u, v in itertools.product(range(height), range(width)):
        fu, fv = (u if u <= height // 2 else u - height) / height, (v if v <= width // 2 else v - width) / width
        k = round(np.hypot(fu, fv) / 0.1)
        if 1 <= k <= 5:
            wave = np.exp(-2j * np.pi * (u * rows / height + v * columns / width))
            sums[k - 1] += abs((flat * wave).sum()) ** 2 / (window**2).sum()
            counts[k - 1] += 1
    np.testing.assert_allclose(power[0], sums / counts, rtol=1e-9)


def test_spectrum_distance_by_hand():
    power = np.array([1.0, 4.0, 2.0])
    assert metrics.spectrum_distance_db(power, power) == 0
    assert metrics.spectrum_distance_db(power, 10 * power) == pytest.approx(10)
    np.testing.assert_allclose(metrics.spectrum_distance_db(np.stack([power, power * 100]), power), [0, 20])


@settings(max_examples=30)
@given(*[hnp.arrays(np.float64, 5, elements=st.floats(1e-6, 1e6)) for _ in range(3)])
def test_spectrum_distance_is_a_metric(a, b, c):
    distance = metrics.spectrum_distance_db
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9


def test_blur_moves_the_spectrum_away_step_by_step():
    noise = np.random.default_rng(9).normal(0, 0.2, (4, 64, 64))
    spectra = [
        metrics.radial_power_spectrum(ndimage.gaussian_filter(noise, (0, s, s)), spacing_mm=1.0)[1]
        for s in (0, 0.4, 0.6, 0.9)
    ]
    distances = [metrics.spectrum_distance_db(spectra[0], s).mean() for s in spectra]
    assert distances[0] == 0 and distances == sorted(distances)


@pytest.mark.parametrize("mask", [None, fan()])
def test_grain_of_white_noise_is_one_pixel(mask):
    noise = np.random.default_rng(10).normal(0, 0.2, (6, 96, 96))
    width = metrics.autocorrelation_width(noise, spacing_mm=(1.0, 0.5), mask=mask)
    np.testing.assert_allclose(width.mean(axis=0), [1.0, 0.5], rtol=0.05)


def test_grain_of_smoothed_noise_by_hand():
    noise = np.random.default_rng(11).normal(0, 1, (8, 96, 96))
    smooth = ndimage.gaussian_filter(noise, (0, 1.0, 2.0))
    width = metrics.autocorrelation_width(smooth, spacing_mm=0.5, mask=fan())
    expected = 4 * np.sqrt(np.log(2)) * 0.5 * np.array([1.0, 2.0])
    np.testing.assert_allclose(width.mean(axis=0), expected, rtol=0.07)


def test_local_texture_keeps_grain_and_drops_anatomy():
    rng = np.random.default_rng(12)
    grain = rng.normal(0, 0.1, (96, 96))
    slope = np.linspace(-0.5, 0.5, 96)[:, None]
    texture = metrics.local_texture(grain + slope, mask=fan(), sigma_mm=3.0, spacing_mm=1.0)[0]
    assert (texture[~fan()] == 0).all()
    assert np.corrcoef(texture[fan()], grain[fan()])[0, 1] > 0.95
    assert np.abs(metrics.local_texture(np.full((96, 96), 0.4), mask=fan())).max() < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.linear_envelope(np.full((4, 4), 2.0), dynamic_range_db=60), r"not in \[-1, 1\]"),
        (lambda: metrics.envelope_snr(np.zeros((4, 4)), dynamic_range_db=0), "dynamic_range_db"),
        (lambda: metrics.radial_power_spectrum(np.zeros((9, 9)), spacing_mm=1), "constant"),
        (lambda: metrics.radial_power_spectrum(np.eye(9), spacing_mm=-1), "spacing_mm"),
        (lambda: metrics.radial_power_spectrum(np.eye(9), spacing_mm=1, n_bins=50), "too narrow"),
        (lambda: metrics.radial_power_spectrum(np.eye(9), spacing_mm=1, mask=np.zeros((9, 9))), "mask is empty"),
        (lambda: metrics.autocorrelation_width(np.ones((9, 9)), spacing_mm=1), "constant"),
        (lambda: metrics.local_texture(np.eye(9), sigma_mm=0), "sigma_mm"),
        (lambda: metrics.spectrum_distance_db(np.ones(3), np.ones(4)), "differ in length"),
        (lambda: metrics.spectrum_distance_db(np.ones(3), np.zeros(3)), "not a power spectrum"),
        (lambda: metrics.envelope_snr(np.full((4, 4), np.nan), dynamic_range_db=60), "NaN"),
    ],
)
def test_unfit_speckle_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
