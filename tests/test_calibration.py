"""Intervals from finite samples, coverage by patient, the fitted temperature, and the sweep, on known answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.errors import InputError
from mhvae_kit.evaluation import calibration, temperature
from mhvae_kit.evaluation.calibration import SliceSamples, central_interval, coverage_summary, coverage_table

SIZE, DEPTH = 16, 3


def gaussian_slices(
    taus: list[float], k: int = 19, spread: float = 0.2, cases: str = "abcdef", size: int = 60
) -> Iterator[SliceSamples]:
    """Slices whose truth is N(mean, spread) and whose samples are N(mean, tau * spread)."""
    for case in cases:
        rng = np.random.default_rng(ord(case))
        mean = rng.uniform(-0.5, 0.5, (size, size))
        truth = mean + spread * rng.normal(size=(size, size))
        noise = rng.normal(size=(k, size, size))
        for tau in taus:
            yield SliceSamples(case, 0, tau, mean + tau * spread * noise, truth, np.ones((size, size), bool))


# --- Intervals ---


@pytest.mark.parametrize("k", [19, 39])
def test_the_ends_are_order_statistics(k):
    samples = np.random.default_rng(0).permutation(k).astype(float)
    low, high = central_interval(samples, 0.9)
    i = (k + 1) // 20
    assert (low, high) == (pytest.approx(i - 1), pytest.approx(k - i))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(9, 0.8), (19, 0.9), (19, 0.5), (39, 0.95)]))
def test_one_more_draw_is_held_as_often_as_claimed(seed, setting):
    k, level = setting
    draws = np.random.default_rng(seed).standard_cauchy((k + 1, 4000))
    low, high = central_interval(draws[:k], level)
    held = ((low <= draws[k]) & (draws[k] <= high)).mean()
    assert held == pytest.approx(level, abs=5 * np.sqrt(level * (1 - level) / 4000))


def test_usual_quantiles_of_few_samples_hold_too_little():
    draws = np.random.default_rng(0).normal(size=(20, 20_000))
    low, high = np.quantile(draws[:19], (0.05, 0.95), axis=0)
    assert ((low <= draws[19]) & (draws[19] <= high)).mean() < 0.83


def test_too_few_samples_and_unfit_levels_are_refused():
    assert calibration.needed_samples(0.9) == 19 and calibration.needed_samples(0.5) == 3
    with pytest.raises(InputError, match="too few samples.*got 18; expected at least 19"):
        central_interval(np.zeros((18, 2)), 0.9)
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(InputError, match="between 0 and 1"):
            central_interval(np.zeros((99, 2)), level)


# --- Coverage ---


def test_an_honest_model_covers_what_it_claims():
    summary = coverage_summary(coverage_table(gaussian_slices([1.0])))
    np.testing.assert_allclose(summary["covered"], summary["level"], atol=0.01)
    assert (summary["covered_low"] <= summary["covered"]).all() and (summary["n_patients"] == 6).all()


def test_a_model_with_half_the_spread_covers_less():
    """With K large the interval is +-1.645 tau sigma: 2 Phi(0.8224) - 1 = 0.589."""
    row = coverage_summary(coverage_table(gaussian_slices([0.5], k=199, cases="ab"), levels=[0.9])).iloc[0]
    assert row["covered"] == pytest.approx(0.589, abs=0.015)
    assert row["std"] == pytest.approx(0.1, rel=0.02) and row["error"] == pytest.approx(0.2, rel=0.03)
    assert row["width"] == pytest.approx(2 * 1.645 * 0.1, rel=0.03)


def test_nothing_drawn_covers_nothing():
    assert coverage_summary(coverage_table(gaussian_slices([0.0])))["covered"].max() == 0


def test_only_the_fan_counts_and_patients_weigh_alike():
    truth = np.zeros((4, 4))
    samples = np.linspace(-1, 1, 19)[:, None, None] * np.ones((4, 4))
    missed = truth.copy()
    missed[:2] = 5.0
    fov = np.ones((4, 4), bool)
    upper = fov.copy()
    upper[2:] = False
    made = [SliceSamples("a", i, 1.0, samples, truth, fov) for i in range(3)]
    made.append(SliceSamples("b", 0, 1.0, samples, missed, upper))
    table = coverage_table(made, levels=[0.9])
    assert list(table["covered"]) == [1, 1, 1, 0] and list(table["n_pixels"]) == [16, 16, 16, 8]
    summary = coverage_summary(table).iloc[0]
    assert (summary["covered"], summary["n_patients"]) == (0.5, 2)


def test_slices_weigh_by_their_pixels_within_a_patient():
    table = pd.DataFrame({"covered": [1.0, 0.0], "n_pixels": [30, 10], "width": 0.0, "std": 0.0, "error": 0.0})
    table = table.assign(temperature=1.0, level=0.9, case="a", slice=[0, 1])
    assert calibration.coverage_by_patient(table)["covered"].item() == 0.75


def test_no_samples_are_no_table():
    with pytest.raises(InputError, match="no samples"):
        coverage_table([])


# --- The fitted temperature ---


def test_the_fit_finds_the_temperature_that_was_built_in():
    """Samples at 0.4 of the true spread need a temperature of 2.5."""
    table = coverage_table(
        (
            SliceSamples(s.case, s.slice, s.temperature / 0.4, s.samples, s.target, s.fov)
            for s in gaussian_slices([0.4, 0.8, 0.95, 1.05, 1.2])
        ),
        levels=[0.9],
    )
    fit = calibration.fit_temperature(table, 0.9)
    assert fit.reached and fit.tau == pytest.approx(2.5, rel=0.04) and fit.covered == 0.9


def test_a_level_out_of_reach_is_said_to_be():
    fit = calibration.fit_temperature(coverage_table(gaussian_slices([0.1, 0.2, 0.3]), levels=[0.9]))
    assert not fit.reached and fit.tau == 0.3 and fit.covered < 0.5
    always = calibration.fit_temperature(coverage_table(gaussian_slices([2.0, 3.0]), levels=[0.9]))
    assert not always.reached and always.tau == 2.0 and always.covered > 0.9


def test_a_fit_needs_several_numbers():
    with pytest.raises(InputError, match="cannot be fitted"):
        calibration.fit_temperature(coverage_table(gaussian_slices([1.0]), levels=[0.9]))
    with pytest.raises(InputError, match="cannot be fitted"):
        calibration.fit_temperature(coverage_table(gaussian_slices([0.5, 1.0]), levels=[0.5]), level=0.9)


# --- Spread and error ---


def test_the_error_of_an_honest_model_is_its_spread():
    def made() -> Iterator[SliceSamples]:
        rng = np.random.default_rng(0)
        spread = rng.uniform(0.05, 0.5, (80, 80))
        for case in "ab":
            draws = spread * rng.normal(size=(40, 80, 80))
            yield SliceSamples(case, 0, 1.0, draws[1:], draws[0], np.ones((80, 80), bool))

    table = calibration.spread_and_error(made(), n_bins=4)
    np.testing.assert_allclose(table["error"], table["expected"], rtol=0.08)
    assert table["std"].is_monotonic_increasing and table["n_pixels"].sum() == 2 * 80 * 80
    with pytest.raises(InputError, match="one temperature"):
        calibration.spread_and_error(gaussian_slices([0.5, 1.0]))


# --- On a model ---


class TinyDataset:
    """Patients of random texture under a fan, with a bright square as tumour."""

    modalities = ("us", "t2")
    name = "phantom-test"

    def case_ids(self, split: str | None = None) -> list[str]:
        return {"test": ["a", "b"], "validation": ["c"]}.get(split, ["a", "b", "c"])

    def volume(self, case: str, kind: str) -> np.ndarray:
        shape = (SIZE, SIZE, DEPTH)
        if kind == "fov":
            return np.ones(shape, np.uint8)
        tumour = np.zeros(shape, np.uint8)
        tumour[5:11, 5:11] = 1
        if kind == "tumour":
            return tumour
        texture = np.random.default_rng([ord(case), *kind.encode()]).integers(100, 130, shape, dtype=np.uint8)
        return texture + 51 * tumour


@pytest.fixture(scope="module")
def model() -> MHVAE:
    config = MHVAEConfig(image_size=(SIZE, SIZE), levels=3, base_channels=4, max_channels=4, decoder_blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MHVAE(config).eval()


def test_samples_of_all_temperatures_come_from_the_same_noise(model):
    made = list(calibration.draw_samples(model, TinyDataset(), temperatures=[0.0, 1.0], n_samples=3, slices=[1]))
    assert [(s.case, s.slice, s.temperature) for s in made] == [
        ("a", 1, 0.0),
        ("a", 1, 1.0),
        ("b", 1, 0.0),
        ("b", 1, 1.0),
    ]
    assert made[0].samples.shape == (3, SIZE, SIZE)
    assert np.ptp(made[0].samples, axis=0).max() < 1e-5 < made[1].std.max()
    alone = next(calibration.draw_samples(model, TinyDataset(), temperatures=[1.0], n_samples=3, slices=[1]))
    np.testing.assert_allclose(alone.samples, made[1].samples, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 6, 9])
def test_how_many_samples_are_drawn_in_one_pass_changes_none(model, monkeypatch, rows):
    options = {"temperatures": [0.0, 0.5, {"z1": 0.0}, 1.0], "n_samples": 3, "slices": [1], "cases": ["a"]}
    expected = list(calibration.draw_samples(model, TinyDataset(), **options))
    monkeypatch.setattr(calibration, "ROWS_AT_ONCE", rows)
    made = list(calibration.draw_samples(model, TinyDataset(), **options))
    assert [s.temperature for s in made] == options["temperatures"]
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(one.samples, other.samples, atol=1e-5)


def test_likelihood_noise_has_the_scale_asked_for(model):
    options = {"temperatures": [0.0], "n_samples": 50, "slices": [1], "cases": ["a"]}
    plain = next(calibration.draw_samples(model, TinyDataset(), **options))
    noisy = plain.with_likelihood_noise(0.1, seed=1)
    assert np.abs(noisy.samples - plain.samples).mean() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(noisy.samples, plain.with_likelihood_noise(0.1, seed=1).samples)
    assert (noisy.samples != plain.with_likelihood_noise(0.1, seed=2).samples).any()
    with pytest.raises(InputError, match="above 0; got -1.0"):
        plain.with_likelihood_noise(-1.0)


@pytest.mark.parametrize("change", [{"n_samples": 1}, {"temperatures": []}])
def test_samples_that_cannot_be_drawn_are_refused(model, change):
    with pytest.raises(InputError, match="cannot be drawn"):
        next(calibration.draw_samples(model, TinyDataset(), **{"temperatures": [1.0], "n_samples": 3, **change}))


def test_contrast_by_hand():
    image = np.full((40, 40), -0.2)
    tumour = np.zeros((40, 40), bool)
    tumour[15:25, 15:25] = True
    image[tumour] = 0.1
    look = {"spacing_mm": 1.0, "dynamic_range_db": 40.0}
    fan = np.ones((40, 40), bool)
    assert temperature.tumour_contrast_db(image, tumour, fan, **look) == pytest.approx(0.3 / 2 * 40)
    far = image.copy()
    far[:8], far[14, 15] = 1.0, 1.0  # beyond the ring, and on the rim: neither counts
    assert temperature.tumour_contrast_db(far, tumour, fan, **look) == pytest.approx(0.3 / 2 * 40)
    assert np.isnan(temperature.tumour_contrast_db(image, np.zeros_like(tumour), fan, **look))
    small = np.zeros_like(tumour)
    small[20, 20] = True
    assert np.isnan(temperature.tumour_contrast_db(image, small, fan, **look))


def test_the_sweep_measures_real_slices_once_and_samples_at_each_temperature(model):
    options = {"spacing_mm": 1.0, "dynamic_range_db": 40.0, "slices": [1]}
    table = temperature.temperature_sweep(model, TinyDataset(), [0.0, 1.0], **options)
    assert table.groupby("kind").size().to_dict() == {"real": 2, "synthetic": 4}
    real, made = (table[table["kind"] == k] for k in ("real", "synthetic"))
    np.testing.assert_allclose(real["contrast_db"], 51 / 255 * 40, atol=1.0)
    assert real["psnr_fov_db"].isna().all() and made["psnr_fov_db"].notna().all()
    spread = made.set_index("temperature")["spread"]
    assert spread[0.0].max() < 1e-5 < spread[1.0].min()
    summary = temperature.sweep_summary(table)
    psnr = summary[(summary["measure"] == "psnr_fov_db")]
    assert list(psnr["temperature"]) == [0.0, 1.0] and (psnr["n_patients"] == 2).all()


def made_up_sweep(rng: np.random.Generator) -> pd.DataFrame:
    """Eight patients: PSNR falls with τ, contrast does not answer to it, the grain is right at 0.5."""
    rows = []
    for case in range(8):
        rows.append({"kind": "real", "temperature": np.nan, "grain_lateral_mm": 3.0, "contrast_db": 5.0})
        for tau in (0.0, 0.5, 1.0):
            row = {"kind": "synthetic", "temperature": tau, "psnr_fov_db": 20 + case - tau}
            rows.append({**row, "grain_lateral_mm": 4.0 - 2 * tau, "contrast_db": 4 + 1e-3 * rng.normal()})
        for row in rows[-4:]:
            row["case"] = f"case {case}"
    return pd.DataFrame(rows).reindex(columns=["kind", "temperature", "case", *temperature.MEASURES])


def test_each_criterion_has_its_temperature_and_one_that_does_not_answer_is_told():
    best = temperature.best_temperatures(made_up_sweep(np.random.default_rng(0))).set_index("measure")
    assert list(best.index) == ["psnr_fov_db", "grain_lateral_mm", "contrast_db"]  # the others have no values
    assert best["temperature"].loc[["psnr_fov_db", "grain_lateral_mm"]].tolist() == [0.0, 0.5]
    assert best["matters"].tolist() == [True, True, False]
    # Each patient falls by 1 dB from τ 0 to 1, so the interval is a point, whatever the patients differ by.
    assert best.loc["psnr_fov_db", ["low", "high"]].tolist() == pytest.approx([1.0, 1.0])
