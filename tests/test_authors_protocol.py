"""Protocol "authors-2025": by hand, against scikit-image, how it differs from the kit's, and that it stays apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_evaluation import FakeDataset, FakeModel

from mhvae_kit import evaluation, metrics
from mhvae_kit.errors import InputError
from mhvae_kit.evaluation.authors import PROTOCOL


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two 8-bit slices (2, 24, 20) with a background of zeros, and a noisy copy."""
    rng = np.random.default_rng(0)
    truth = np.zeros((2, 24, 20))
    truth[:, 6:18, 5:15] = rng.integers(40, 200, (2, 12, 10))
    made = np.where(truth > 0, np.clip(truth + rng.integers(-30, 30, truth.shape), 0, 255), 0)
    return made, truth


def rows_ssim(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean over rows of a one-dimensional SSIM with a 7 pixel box window and sample covariances."""
    span, scores = truth.max() - truth.min(), []
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    for a, b in zip(made, truth, strict=True):
        for start in range(len(a) - 6):
            x, y = a[start : start + 7], b[start : start + 7]
            (var_x, shared), (_, var_y) = np.cov(x, y)
            top = (2 * x.mean() * y.mean() + c1) * (2 * shared + c2)
            scores.append(top / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(scores))


def test_ssim_is_that_of_single_rows(pair):
    made = evaluation.authors_scores(*pair)["ssim_authors2025"]
    np.testing.assert_allclose(made, [rows_ssim(a, b) for a, b in zip(*pair, strict=True)])


def test_shuffling_the_rows_changes_nothing(pair):
    order = np.random.default_rng(1).permutation(24)
    shuffled = evaluation.authors_scores(*(x[:, order] for x in pair))
    for name, values in evaluation.authors_scores(*pair).items():
        np.testing.assert_allclose(shuffled[name], values, err_msg=name)


def test_scores_are_those_of_the_script(pair):
    scores = evaluation.authors_scores(*pair)
    for index, (made, truth) in enumerate(zip(*pair, strict=True)):
        span = truth.max() - truth.min()
        assert scores["l1_authors2025"][index] == pytest.approx(np.abs(made - truth).mean())
        assert scores["psnr_authors2025_db"][index] == pytest.approx(
            peak_signal_noise_ratio(truth, made, data_range=span)
        )
        assert scores["ssim_authors2025"][index] == pytest.approx(
            structural_similarity(truth, made, data_range=span, channel_axis=0)
        )


def test_the_range_is_that_of_the_true_slice(pair):
    """A slice twice as dark, with errors twice as small, scores the same here and 6 dB more by the kit."""
    made, truth = (2 * (x // 2) for x in pair)
    both = [evaluation.authors_scores(*x)["psnr_authors2025_db"] for x in ((made, truth), (made / 2, truth / 2))]
    np.testing.assert_allclose(both[0], both[1])
    kit = [metrics.psnr(*x, data_range=255) for x in ((made, truth), (made / 2, truth / 2))]
    np.testing.assert_allclose(kit[1] - kit[0], 20 * np.log10(2))


def test_the_background_counts_and_raises_the_scores(pair):
    inside = pair[1] > 0
    scores = evaluation.authors_scores(*pair)
    assert (scores["l1_authors2025"] < metrics.mae(*pair, data_range=255, mask=inside)).all()
    padded = evaluation.authors_scores(*(np.pad(x, ((0, 0), (8, 8), (8, 8))) for x in pair))
    assert (padded["ssim_authors2025"] > scores["ssim_authors2025"]).all()
    assert (padded["psnr_authors2025_db"] > scores["psnr_authors2025_db"]).all()


def test_identical_slices():
    image = np.arange(480.0).reshape(1, 24, 20) % 256
    scores = evaluation.authors_scores(image, image)
    assert scores["l1_authors2025"] == 0 and np.isposinf(scores["psnr_authors2025_db"]).all()
    assert scores["ssim_authors2025"] == pytest.approx(1)


def test_storing_rounds_down_to_8_bits_and_blackens_the_background():
    fov = np.ones((1, 2, 3), bool)
    fov[0, 1, 2] = False
    images = np.array([[[-1.0, 1.0, 0.0], [0.5, 1 / 255, 0.9]]])
    assert evaluation.stored_as_8_bit(images, fov).tolist() == [[[0, 255, 127], [191, 128, 0]]]


def test_storing_gives_8_bit_images_back():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    network = grey.astype(np.float32) / 255 * 2 - 1
    np.testing.assert_array_equal(evaluation.stored_as_8_bit(network), grey)


def test_lpips_joins_in_where_it_can_be_computed(pair, monkeypatch):
    monkeypatch.setattr("mhvae_kit.evaluation.authors.lpips_available", lambda: (True, ""))
    monkeypatch.setattr("mhvae_kit.evaluation.authors.lpips", lambda a, b, data_range: np.full(len(a), data_range))
    assert evaluation.authors_scores(*pair)["lpips_authors2025"].tolist() == [255, 255]


def _spoilt(value: float) -> np.ndarray:
    image = np.full((2, 24, 20), 90.0)
    image[0, :5] = 10
    image[1] = value
    return image


@pytest.mark.parametrize(
    ("made", "truth", "message"),
    [
        (_spoilt(0), _spoilt(0), r"all background.*image 1 of 2.*keep targets.sum\(axis=\(1, 2\)\) > 0"),
        (_spoilt(7), _spoilt(7), "a true slice is constant.*image 1"),
        (_spoilt(np.nan), _spoilt(50), "prediction holds NaN"),
        (_spoilt(300), _spoilt(50), "prediction lies outside the declared range"),
        (np.zeros((1, 24, 20)), np.linspace(0, 1, 480).reshape(1, 24, 20), "scores 8-bit images.*stored_as_8_bit"),
        (np.zeros((1, 24, 20)), np.linspace(-1, 1, 480).reshape(1, 24, 20), "target lies outside"),
        (np.zeros((1, 2, 24, 20)), np.zeros((1, 2, 24, 20)), "not an image"),
        (np.zeros((1, 24, 6)), np.full((1, 24, 6), 9.0), "shorter than the SSIM window"),
    ],
)
def test_unfit_slices_are_refused(made, truth, message):
    with pytest.raises(InputError, match=message):
        evaluation.authors_scores(made, truth)


# --- Models ---


def test_a_model_is_scored_slice_by_slice():
    dataset = FakeDataset()
    table = evaluation.evaluate_authors(FakeModel(), dataset, observed=["t2"], targets=["us"])
    assert list(table.columns[:7]) == ["data", "case", "slice", "observed", "target", "temperature", "protocol"]
    assert set(table["protocol"]) == {PROTOCOL} and set(table["temperature"]) == {0.7} and len(table) == 11
    assert not set(evaluation.SCORES) & set(table.columns)
    clean = evaluation.evaluate_authors(FakeModel(), dataset, observed=["t2"], targets=["us"], temperature=0.0)
    row = clean.query("case == 'b' and slice == 2").iloc[0]
    truth, made = (dataset.volume("b", m)[..., 2].astype(float) for m in ("us", "t2"))
    assert row["l1_authors2025"] == pytest.approx(np.abs(made - truth).mean())
    assert row["ssim_authors2025"] == pytest.approx(rows_ssim(made, truth))


def test_empty_true_slices_are_left_out():
    dataset = FakeDataset()
    volume = dataset.volume

    def emptied(case: str, kind: str) -> np.ndarray:
        made = volume(case, kind)
        if kind == "us" and case == "b":
            made[..., 2] = 0
        return made

    dataset.volume = emptied
    table = evaluation.evaluate_authors(FakeModel(), dataset, observed=["t2"], targets=["us"])
    assert not ((table["case"] == "b") & (table["slice"] == 2)).any() and len(table) == 10


def test_the_summary_is_a_plain_mean_over_slices():
    table = evaluation.evaluate_authors(FakeModel(), FakeDataset(), observed=["t2"])
    summary = evaluation.authors_summary(table)
    own = table[table["target"] == "us"]
    row = summary[summary["target"] == "us"].iloc[0]
    assert row["n_slices"] == 11 and row["l1_authors2025"] == pytest.approx(own["l1_authors2025"].mean())
    assert list(summary["data"].unique()) == ["phantom-test"] and set(summary["protocol"]) == {PROTOCOL}


# --- Never mixed ---


def test_tables_of_one_protocol_are_told_apart():
    assert evaluation.check_one_protocol(["case", *evaluation.SCORES]) == "kit"
    assert evaluation.check_one_protocol(["case", *evaluation.AUTHORS_SCORES]) == PROTOCOL


@pytest.mark.parametrize("column", ["psnr_fov_db", "ssim_full", "swd_fov", "lpips_fov", "envelope_snr"])
def test_a_table_of_both_protocols_is_refused(column):
    mixed = pd.DataFrame({"case": ["a"], "psnr_authors2025_db": [20.0], column: [1.0]})
    with pytest.raises(
        InputError, match="two protocols are mixed.*psnr_authors2025_db of authors-2025 beside " + column
    ):
        evaluation.check_one_protocol(mixed.columns)


def test_the_summary_refuses_scores_of_the_kit():
    with pytest.raises(InputError, match="no score of authors-2025"):
        evaluation.authors_summary(evaluation.evaluate(FakeModel(), FakeDataset()))
