"""Paired tests: p values by hand and against SciPy, Holm against its definition, ties, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mhvae_kit.errors import InputError
from mhvae_kit.evaluation import best_and_tied, compare_with, holm, sign_flip_p
from mhvae_kit.evaluation.statistics import MAX_EXACT, smallest_p

differences = st.lists(st.integers(-50, 50), min_size=1, max_size=8)


def test_p_value_by_hand():
    # Of the 8 sign patterns of 1, 2, 3 the sums are 6, 4, 2, 0, 0, -2, -4, -6.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([1, 2, -3]) == 1


@settings(max_examples=40)
@given(differences)
def test_p_value_counts_every_pattern_of_signs(values):
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in _signs(len(values))]
    assert sign_flip_p(values) == pytest.approx(np.mean([s >= abs(sum(values)) for s in sums]))


def _signs(count: int) -> itertools.product:
    return itertools.product((1, -1), repeat=count)


def test_p_value_agrees_with_scipy():
    values = np.random.default_rng(0).normal(0.4, 1, 9)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)


@settings(max_examples=40)
@given(differences, st.floats(0.01, 100))
def test_p_value_does_not_depend_on_order_direction_or_unit(values, unit):
    expected = sign_flip_p(values)
    assert sign_flip_p(values[::-1]) == expected
    assert sign_flip_p([-v for v in values]) == expected
    assert sign_flip_p([v * unit for v in values]) == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_the_smallest_p_value_is_that_of_differences_of_one_sign(count):
    assert sign_flip_p(np.arange(1, count + 1)) == pytest.approx(smallest_p(count))


def test_no_difference_at_all_has_a_p_value_of_one():
    assert sign_flip_p(np.zeros(10)) == 1


def test_many_patients_are_tested_by_drawn_patterns():
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 1, MAX_EXACT + 6)
    p = sign_flip_p(values)
    assert p == sign_flip_p(values) != sign_flip_p(values, seed=1)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert 0 < sign_flip_p(np.ones(40)) < 1e-3


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 1.0], [[1.0, 2.0]]])
def test_differences_that_cannot_be_tested_are_refused(values):
    with pytest.raises(InputError, match="one finite difference per patient"):
        sign_flip_p(values)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1; none may be smaller than the one before.
    np.testing.assert_allclose(holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])


@settings(max_examples=40)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_holm_is_closed_bonferroni_testing(hundredths):
    """Corrected, a hypothesis has the largest Bonferroni p value of all the sets of hypotheses it belongs to."""
    p, everyone = np.array(hundredths) / 100, range(len(hundredths))
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(everyone, size)]
    expected = [max(min(1.0, len(s) * p[list(s)].min()) for s in sets if i in s) for i in everyone]
    np.testing.assert_allclose(holm(p), expected)


def test_holm_leaves_out_what_was_not_tested():
    np.testing.assert_allclose(holm([np.nan, 0.01, 0.04]), [np.nan, 0.02, 0.04])
    assert np.isnan(holm([np.nan])).all() and holm([]).shape == (0,)


@pytest.fixture
def values() -> pd.DataFrame:
    """Ten patients; "near" cannot be told from "good", "bad" can."""
    rng = np.random.default_rng(2)
    patient = rng.normal(20, 3, 10)
    gaps = {"good": 0.0, "near": rng.normal(0, 0.5, 10), "bad": -1 + rng.normal(0, 0.1, 10)}
    return pd.DataFrame({name: patient + gap for name, gap in gaps.items()})


def test_methods_are_compared_patient_by_patient(values):
    table = compare_with(values, "good")
    assert table.loc["bad", "difference"] == pytest.approx((values["bad"] - values["good"]).mean())
    assert table.loc["bad", "p"] == 2 / 1024 and table.loc["bad", "p_holm"] == 4 / 1024
    assert table.loc["near", "p_holm"] > 0.05
    assert table.loc["good"].isna().all()
    # The patients differ far more than the methods, so that unpaired the difference would drown.
    assert stats.ttest_ind(values["bad"], values["good"]).pvalue > 0.3


def test_a_method_with_an_infinite_value_is_not_tested(values):
    values.loc[3, "near"] = np.inf
    table = compare_with(values, "good")
    assert table.loc["near"].isna().all() and table.loc["bad", "p_holm"] == 2 / 1024


def test_best_and_tied_methods(values):
    assert best_and_tied(values[["good", "bad"]], "higher") == ("good", [])
    best, tied = best_and_tied(values, "higher")
    assert {best, *tied} == {"good", "near"}
    assert best_and_tied(values, "lower") == ("bad", [])


def test_with_two_patients_everything_is_tied(values):
    best, tied = best_and_tied(values.iloc[:2], "higher")
    assert {best, *tied} == set(values.columns)


def test_nothing_is_best_among_methods_without_a_mean():
    assert best_and_tied(pd.DataFrame({"a": [np.nan, 1.0]}), "lower") == (None, [])


def test_unknown_method_or_direction_is_refused(values):
    with pytest.raises(InputError, match="MHVAE is not among the methods; got good, near, bad"):
        compare_with(values, "MHVAE")
    with pytest.raises(InputError, match='"higher" or "lower"'):
        best_and_tied(values, "up")
