"""The product of experts by hand: the numbers of both rules, and what an absent expert is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit.errors import InputError
from mhvae_kit.widgets import ProductOfExpertsExplorer


def test_the_two_rules_give_the_numbers_of_the_page():
    made = ProductOfExpertsExplorer((0.0, 1.0), {"t2": (1.0, 0.5)}, "both")
    results = made.results()
    assert results["precision"] == pytest.approx((0.8, 0.4472), abs=1e-4)  # precisions 1 + 4 = 5; mean 4 / 5
    assert results["scale"] == pytest.approx((2 / 3, 1 / 3), abs=1e-4)  # 1/std 1 + 2 = 3; mean 2 / 3
    assert "0.447" in made.beside.value and "0.333" in made.beside.value
    made.close()


def test_an_absent_expert_is_an_absent_factor(product):
    product.state = {"experts": {"us": {"present": False}}, "rule": "precision"}
    alone = ProductOfExpertsExplorer(experts={"t2": (1.0, 0.5)})
    assert product.results() == alone.results()
    product.state = {"experts": {"t2": {"present": False}}}
    assert product.results() == {"precision": pytest.approx((0.0, 1.0))}
    product.wait()
    assert "prior alone" in product.caption.value
    alone.close()


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=2, max_size=3))
def test_the_order_of_the_experts_is_of_no_account(pairs):
    state: dict[str, Mapping] = {"prior": [0.0, 1.0], "rule": "both"}
    made = ProductOfExpertsExplorer.__new__(ProductOfExpertsExplorer)
    experts = {f"e{i}": {"mean": m, "std": s, "present": True} for i, (m, s) in enumerate(pairs)}
    forward = made.results({**state, "experts": experts})
    backward = made.results({**state, "experts": dict(reversed(experts.items()))})
    for rule, result in forward.items():
        assert result == pytest.approx(backward[rule], abs=1e-4)


def test_a_drag_of_an_experts_mean_ends_at_its_last_value(product):
    for mean in np.linspace(-2, 2, 50):
        product._sliders["t2"][0].value = round(float(mean), 3)
    product.wait(30)
    assert product.state["experts"]["t2"]["mean"] == 2.0
    assert product.image.value == product.picture()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prior": [0.0, 0.0]}, "std of prior"),
        ({"experts": {"t2": {"mean": 9}}}, "mean of t2"),
        ({"experts": {"flair": {"mean": 0.0}}}, "flair"),
        ({"experts": {"t2": {"variance": 1.0}}}, "variance"),
        ({"rule": "mixture"}, "rule"),
    ],
)
def test_a_gaussian_that_cannot_be_is_named(product, changes, named):
    with pytest.raises(InputError, match=named):
        product.state = changes
