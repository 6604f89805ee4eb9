"""From scores to the answer: costs against the right start, doses, rank correlations, and what is said of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from mhvae_kit.degradation import analysis, verdict
from mhvae_kit.degradation.plan import BASELINE, HYPOTHESES, TRIVIAL, UPPER_BOUND
from mhvae_kit.errors import InputError

CASES = [f"phantom-test-{i:03d}" for i in range(10)]
NONE = float("nan")


def cell(name: str, dose: float, dice: float, group: str = "defect", seeds: tuple[int, ...] = (0, 1)) -> pd.DataFrame:
    """A cell in which every patient has about the same Dice; patients differ by 0.02 and seeds by 0.001."""
    key = name if np.isnan(dose) else f"{name}-{round(100 * dose):03d}"
    rows = [
        {"case": case, "seed": seed, "dice": dice + 0.002 * i + 0.001 * seed, "hd95_mm": 4.0, "assd_mm": 1.0}
        for seed in seeds
        for i, case in enumerate(CASES)
    ]
    about = {"key": key, "name": name, "dose": dose, "group": group, "title": name, "run": f"demo-{key}"}
    return pd.DataFrame(rows).assign(**about, volume_ml=5.0)


@pytest.fixture
def scores() -> pd.DataFrame:
    return pd.concat(
        [
            cell(UPPER_BOUND, NONE, 0.85, "route"),
            cell(TRIVIAL, NONE, 0.45, "route"),
            cell(BASELINE, NONE, 0.80, "route"),
            cell("blur", 0.5, 0.78),
            cell("blur", 1.0, 0.70),
            cell("gain", 0.5, 0.80),
            cell("gain", 1.0, 0.81),
            cell("age", 0.0, 0.60),
            cell("age", 0.5, 0.52),
        ],
        ignore_index=True,
    )


def test_a_cost_is_measured_from_the_images_without_the_defect(scores):
    loss = analysis.cell_summary(scores).set_index("key")["loss"]
    assert loss["blur-100"] == pytest.approx(0.10) and loss["gain-100"] == pytest.approx(-0.01)
    assert loss[BASELINE] == 0 and loss[UPPER_BOUND] == pytest.approx(-0.05)
    # Age has a dose 0 of its own, of another training than the clean images.
    assert loss["age-000"] == 0 and loss["age-050"] == pytest.approx(0.08)


def test_only_cells_that_are_compared_have_a_p(scores):
    table = analysis.cell_summary(scores).set_index("key")
    assert table.loc[[BASELINE, "age-000"], ["p", "p_holm"]].isna().all(axis=None)
    # All ten patients lose the same: of 1024 flips two are as extreme; seven cells are compared.
    assert table.loc["blur-100", "p"] == pytest.approx(2 / 1024)
    assert table.loc["blur-100", "p_holm"] == pytest.approx(7 * 2 / 1024)


def test_means_are_over_seeds_first_and_patients_next(scores):
    row = analysis.cell_summary(scores).set_index("key").loc["blur-050"]
    assert row["dice"] == pytest.approx(0.78 + 0.009 + 0.0005)
    assert (row["n_patients"], row["n_seeds"]) == (10, 2)
    assert row["seed_spread"] == pytest.approx(np.std([0.0, 0.001], ddof=1))
    assert row["dice_low"] < row["dice"] < row["dice_high"]


def test_curves_start_from_the_clean_images_or_from_their_own(scores):
    curves = analysis.curves(analysis.cell_summary(scores))
    start = curves[curves["dose"] == 0].set_index("name")["key"]
    assert start.to_dict() == {"blur": BASELINE, "gain": BASELINE, "age": "age-000"}
    assert curves[curves["name"] == "blur"]["dose"].tolist() == [0.0, 0.5, 1.0]


def test_curves_need_a_defect(scores):
    with pytest.raises(InputError, match="no defect among the cells"):
        analysis.curves(analysis.cell_summary(scores[scores["group"] == "route"]))


def test_the_dose_of_a_loss_lies_on_the_line_between_doses(scores):
    found = analysis.dose_of_loss(scores, "blur")
    # 2 points at dose 0.5, 10 at dose 1: five points are three eighths of the way.
    assert found["dose"] == pytest.approx(0.5 + 0.5 * 3 / 8)
    assert found["dose_low"] <= found["dose"] <= found["dose_high"] and found["reached"] == 1.0


def test_a_curve_that_never_falls_has_no_such_dose(scores):
    found = analysis.dose_of_loss(scores, "gain")
    assert found["dose"] == np.inf and found["reached"] == 0.0


def joined(scores: pd.DataFrame, psnr: list[float]) -> pd.DataFrame:
    summary = analysis.cell_summary(scores)
    kept = summary[(summary["group"] == "defect") | (summary["key"] == BASELINE)]
    metrics = kept[["key", "name", "dose", "group"]].assign(psnr_fov_db=psnr)
    return analysis.joined(summary, metrics.assign(contrast_error_db=[-p for p in psnr]))


def test_correlations_are_spearman_signed_by_what_is_good(scores):
    cells = joined(scores, [18.0, 17.0, 12.0, 19.0, 13.0, 15.0, 10.0])
    table = analysis.metric_correlations(cells).set_index("column")
    expected = spearmanr(cells["psnr_fov_db"], cells["dice"]).statistic
    assert table.loc["psnr_fov_db", "rho"] == pytest.approx(expected)
    assert table.loc["contrast_error_db", "rho"] == pytest.approx(expected)  # minus, of the negated values
    assert (table["rho_low"] <= table["rho"]).all() and (table["rho"] <= table["rho_high"]).all()
    # Within blur the order is right, within gain one of three pairs is; age has two points and does not count.
    assert table.loc["psnr_fov_db", "n_within"] == 2


def correlation(metric: str, column: str, rho: float, low: float, high: float) -> dict[str, object]:
    return {"metric": metric, "column": column, "rho": rho, "rho_low": low, "rho_high": high}


def test_the_answer_counts_defects_and_names_the_best_metric(scores):
    summary = analysis.cell_summary(scores)
    rows = [
        correlation("contrast", "contrast_error_db", 0.6, 0.2, 0.8),
        correlation("PSNR", "psnr_fov_db", 0.1, -0.2, 0.4),
    ]
    first, second = verdict.answer(summary, pd.DataFrame(rows))
    assert first.startswith(
        "Of 3 defects of phantom images, 2 cost at least 5 points of Dice at their worst tried dose"
    )
    assert "most of all blur (10.0 points, 10.0 to 10.0); 1 surely cost less (gain)." in first
    assert second == (
        "contrast foresees the Dice best, with a rank correlation of 0.60 (0.20 to 0.80); 1 of 2 metrics exclude 0, "
        "and PSNR has 0.10 (-0.20 to 0.40)."
    )


@pytest.mark.parametrize(
    ("low", "high", "reach"), [(-0.1, 0.5, "does not exclude 0"), (-0.6, -0.1, "is the wrong way")]
)
def test_no_metric_is_an_answer(scores, low, high, reach):
    rows = pd.DataFrame([correlation("PSNR", "psnr_fov_db", (low + high) / 2, low, high)])
    _, second = verdict.answer(analysis.cell_summary(scores), rows)
    assert second.startswith("None of 1 image metrics foresees the Dice: the best, PSNR,") and reach in second


def judged(scores: pd.DataFrame, correlations: pd.DataFrame) -> dict[str, str]:
    patients = analysis.patient_means(scores)
    table = verdict.hypotheses(analysis.cell_summary(scores), patients, correlations)
    assert list(table["hypothesis"]) == [name for name, _ in HYPOTHESES]
    return dict(zip(table["hypothesis"], table["verdict"], strict=True))


@pytest.mark.parametrize(
    ("dice", "expected"), [((0.6, 0.6, 0.3, 0.2, 0.7), "holds"), ((0.6, 0.79, 0.3, 0.2, 0.7), "refuted")]
)
def test_the_first_hypothesis_needs_every_defect_of_place_and_content(scores, dice, expected):
    more = [cell(name, 1.0, value) for name, value in zip(verdict.PLACE_AND_CONTENT, dice, strict=True)]
    rows = pd.DataFrame([correlation("PSNR", "psnr_fov_db", 0.0, -0.1, 0.1)])
    assert judged(pd.concat([scores, *more]), rows)["H1"] == expected


def test_hypotheses_whose_cells_were_not_run_say_so(scores):
    rows = pd.DataFrame([correlation("PSNR", "psnr_fov_db", 0.0, -0.1, 0.1)])
    became = judged(scores, rows)
    assert became == {"H1": "not run", "H2": "not run", "H3": "not run", "H4": "holds", "H5": "not run"}


@pytest.mark.parametrize(
    ("contrast", "psnr", "expected"),
    [((0.6, 0.9), (0.0, 0.5), "holds"), ((0.0, 0.4), (0.5, 0.9), "refuted"), ((0.0, 0.6), (0.5, 0.9), "undecided")],
)
def test_one_metric_is_better_only_where_intervals_lie_apart(scores, contrast, psnr, expected):
    rows = [
        correlation("contrast", "contrast_error_db", np.mean(contrast), *contrast),
        correlation("PSNR", "psnr_fov_db", np.mean(psnr), *psnr),
    ]
    assert judged(scores, pd.DataFrame(rows))["H3"] == expected


@pytest.mark.parametrize(("dice", "expected"), [(0.7, "holds"), (0.9, "refuted")])
def test_labels_cost_more_only_where_both_kinds_do(scores, dice, expected):
    more = [cell(f"labels-{kind}-4mm", NONE, dice, "route") for kind in ("affine", "deformed")]
    rows = pd.DataFrame([correlation("PSNR", "psnr_fov_db", 0.0, -0.1, 0.1)])
    assert judged(pd.concat([scores, *more]), rows)["H5"] == expected
