"""Figures of a product of experts and of a sampled KL: what is drawn, with which numbers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from mhvae_kit import Gaussian, figures
from mhvae_kit.errors import InputError
from mhvae_kit.figures.experts import fused_std


def gaussian(mean, std) -> Gaussian:
    mean, std = (torch.as_tensor(v, dtype=torch.float32).reshape(1, -1) for v in (mean, std))
    return Gaussian(mean, std.log())


@pytest.fixture
def factors() -> figures.Factors:
    return figures.Factors(prior=gaussian(0.0, 1.0), experts={"t2": gaussian(1.0, 0.5), "us": gaussian(-1.0, 0.7)})


@pytest.fixture
def maps() -> figures.Factors:
    generator = torch.Generator().manual_seed(0)

    def one() -> Gaussian:
        mean, log_std = torch.randn(2, 3, 6, 8, generator=generator)
        return Gaussian(mean, log_std)

    return figures.Factors(prior=one(), experts={"t2": one(), "us": one()})


def words(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(Text))


def bars(axes) -> list[tuple[float, float, str]]:
    """Left end, length and colour of every bar of a panel."""
    return [(p.get_x(), p.get_width(), to_hex(p.get_facecolor()).upper()) for p in axes.patches]


# --- factors and their table ---


def test_a_product_has_the_hand_computed_numbers(factors):
    table = figures.product_table({"both": factors}, ("precision", "scale")).set_index("factor")
    # 1 + 1/0.25 + 1/0.49 = 7.0408, and 1 + 2 + 1/0.7 = 4.4286 for the inverse standard deviations
    assert table.loc["product", "precision"] == pytest.approx(7.0408, abs=1e-3)
    assert table.loc["product", "mean"] == pytest.approx(0.2783, abs=1e-3)
    assert table.loc["released rule", "std"] == pytest.approx(1 / 4.4286, abs=1e-4)
    assert list(table.index) == ["prior", "t2", "us", "product", "released rule"]


def test_an_absent_modality_is_an_absent_factor(factors):
    assert set(factors.only("t2").named()) == {"prior", "t2"}
    assert factors.only().product() is factors.prior
    with pytest.raises(InputError, match="no expert of flair; expected t2, us"):
        factors.only("flair")


def test_a_part_of_maps_is_the_part_of_every_factor(maps):
    channel, element = maps.at(1), maps.at(1, 2, 3)
    assert channel.prior.mean.shape == (6, 8)
    assert element.experts["us"].std.shape == (1, 1)
    assert element.experts["us"].std.item() == maps.experts["us"].std[1, 2, 3].item()
    assert element.product().mean.item() == pytest.approx(maps.product().mean[1, 2, 3].item(), abs=1e-6)


# --- one dimension ---


def test_the_bars_of_the_factors_end_where_the_bar_of_the_product_ends(factors):
    figure = figures.product_panels({"both": factors, "t2": factors.only("t2")}, data="hand-set")
    for axes, expected in ((figure.axes[2], 1 + 4 + 1 / 0.49), (figure.axes[3], 5.0)):
        *stack, product = bars(axes)
        left, length, _ = stack[-1]
        assert left + length == pytest.approx(expected, rel=1e-5) == product[1]
        assert product[2] == "#000000"
    assert bars(figure.axes[2])[1][2] == figures.MODALITY_COLOURS["t2"]


def test_the_released_rule_has_more_precision_than_was_put_in(factors):
    figure = figures.product_panels({"t2": factors.only("t2")}, data="hand-set", rules=("precision", "scale"))
    lengths = [length for _, length, _ in bars(figure.axes[1])]
    assert lengths == pytest.approx([1, 4, 5, 9], rel=1e-5)
    assert "product: 0.80 ± 0.447" in words(figure) and "released rule: 0.67 ± 0.333" in words(figure)


def test_the_drawn_product_is_the_normalised_product_of_the_drawn_factors(factors):
    figure = figures.product_panels({"both": factors}, data="hand-set", limits=(-6, 6))
    *drawn, product = [line.get_ydata() for line in figure.axes[0].lines]
    x = figure.axes[0].lines[0].get_xdata()
    by_hand = np.prod(drawn, axis=0)
    by_hand /= by_hand.sum() * (x[1] - x[0])
    np.testing.assert_allclose(product, by_hand, atol=1e-3)


def test_panels_share_their_scales_and_curves_differ_without_colour(factors):
    states = {"a": factors, "b": factors.only("us"), "c": factors.only()}
    figure = figures.product_panels(states, data="hand-set")
    upper = [a for a in figure.axes if a.get_xlabel() == "z" and a.get_visible()]
    assert len(upper) == 3 and len({a.get_xlim() for a in upper}) == len({a.get_ylim() for a in upper}) == 1
    styles = [line.get_linestyle() for line in upper[0].lines[:3]]
    assert len(set(styles)) == 3
    assert upper[1].lines[1].get_linestyle() == styles[2], "us looks alike in all panels"


def test_dots_from_a_grid_are_drawn_where_they_are(factors):
    x = np.array([-1.0, 0.0, 1.0])
    figure = figures.product_panels({"t2": factors.only("t2")}, data="hand-set", dots={"t2": (x, x**2)})
    dots = figure.axes[0].lines[-1]
    assert dots.get_label() == "grid" and list(dots.get_ydata()) == [1, 0, 1]


def test_a_very_wide_factor_does_not_decide_the_axis(factors):
    wide = figures.Factors(prior=factors.prior, experts={"t2": gaussian(0.0, 50.0)})
    low, high = figures.product_panels({"wide": wide}, data="hand-set").axes[0].get_xlim()
    assert (low, high) == pytest.approx((-3.2, 3.2), abs=0.05)


@pytest.mark.parametrize("rules", [(), ("variance",)])
def test_unknown_rules_are_refused(factors, rules):
    with pytest.raises(InputError, match="there is no product to draw"):
        figures.product_panels({"a": factors}, data="hand-set", rules=rules)


def test_nothing_and_maps_are_refused(maps):
    with pytest.raises(InputError, match="0 states"):
        figures.product_panels({}, data="hand-set")
    with pytest.raises(InputError, match=r"prior of a does not have 1 element; got shape \(3, 6, 8\)"):
        figures.product_panels({"a": maps}, data="hand-set")


# --- two dimensions ---


def test_ellipses_stand_at_the_mean_with_one_and_two_standard_deviations():
    factors = figures.Factors(prior=gaussian([0, 0], [1, 1]), experts={"t2": gaussian([1, 0], [0.5, 1])})
    figure = figures.product_ellipses({"T2": factors}, data="hand-set")
    outlines = figure.axes[0].patches[-2:]
    assert [p.center for p in outlines] == [pytest.approx((0.8, 0.0), abs=1e-6)] * 2
    sizes = [(p.width / 2, p.height / 2) for p in outlines]
    assert sizes[0] == pytest.approx((5**-0.5, 2**-0.5)) and sizes[1] == pytest.approx((2 * 5**-0.5, 2 * 2**-0.5))
    assert "σ of product 0.45, 0.71" in words(figure)


def test_ellipses_need_two_elements(factors):
    with pytest.raises(InputError, match="does not have 2 elements"):
        figures.product_ellipses({"a": factors}, data="hand-set")


# --- rules ---


def test_one_expert_under_both_rules_by_hand():
    exact, released = fused_std(1.0, np.array([0.5, 10.0]))
    assert exact == pytest.approx([0.4472, 0.9950], abs=1e-4) and released == pytest.approx([0.3333, 0.9091], abs=1e-4)
    text = words(figures.rule_curves(1.0, 0.5, data="hand-set"))
    assert "0.447" in text and "0.333" in text


def test_a_width_of_zero_is_refused():
    with pytest.raises(InputError, match="above 0"):
        figures.rule_curves(1.0, 0.0, data="hand-set")


# --- one level ---


def test_maps_share_one_centred_and_one_logarithmic_scale(maps):
    image = np.linspace(-1, 1, 12 * 16).reshape(12, 16)
    figure = figures.level_factors(maps.at(0), {"t2": image, "us": -image}, data="phantom", mark=(2, 3))
    means, widths = (
        [i for a in figure.axes for i in a.images if i.get_cmap().name == name] for name in ("RdBu_r", "cividis")
    )
    assert len(means) == len(widths) == 4
    assert len({i.get_clim() for i in means}) == len({i.get_clim() for i in widths}) == 1
    assert sum(means[0].get_clim()) == 0
    np.testing.assert_allclose(means[3].get_array(), maps.at(0).product().mean.numpy(), atol=1e-6)
    assert "phantom data" in figure.get_suptitle() and "product" in words(figure)


def test_the_cross_is_at_the_same_place_on_maps_and_images(maps):
    image = np.zeros((12, 16))
    figure = figures.level_factors(maps.at(0), {"t2": image}, data="phantom", mark=(2, 3))
    places = {a.get_title(): a.lines[0].get_xydata()[0] for a in figure.axes if a.lines}
    # The centre of row 2 of 6 is at 5/12 of the height, which is 4.5 in rows of 12.
    assert places["prior"] == pytest.approx([3, 2]) and places["expert T2"] == pytest.approx([3, 2])
    first = next(a for a in figure.axes if a.images and a.images[0].get_array().shape == (12, 16))
    assert first.lines[0].get_xydata()[0] == pytest.approx([6.5, 4.5])


def test_a_level_that_is_no_map_is_refused(maps, factors):
    with pytest.raises(InputError, match="not maps of a level"):
        figures.level_factors(factors.at(0), {}, data="phantom")
    with pytest.raises(InputError, match="at most two images"):
        figures.level_factors(maps.at(0), {n: np.zeros((4, 4)) for n in "abc"}, data="phantom")


# --- KL ---


def test_estimates_stand_beside_the_closed_form_and_the_error_falls_with_the_root():
    draws = torch.randn(4000, generator=torch.Generator().manual_seed(0)) + 2
    figure = figures.kl_estimates(draws, 2.0, data="hand-set")
    assert "closed form 2.000" in words(figure)
    line, dots = figure.axes[1].lines
    assert list(line.get_xdata()) == [1, 3, 10, 30, 100]
    np.testing.assert_allclose(dots.get_ydata(), line.get_xdata() ** -0.5, rtol=0.3)


@pytest.mark.parametrize("draws", [np.zeros(10), np.zeros((2, 2000)), np.full(2000, np.nan)])
def test_what_are_no_estimates_is_refused(draws):
    with pytest.raises(InputError, match="not estimates"):
        figures.kl_estimates(draws, 1.0, data="hand-set")


def test_every_figure_names_its_data_and_can_be_drawn(factors, maps):
    two = figures.Factors(prior=gaussian([0, 0], [1, 1]), experts={})
    made = [
        figures.product_panels({"a": factors}, data="hand-set"),
        figures.product_ellipses({"a": two}, data="hand-set"),
        figures.rule_curves(1.0, 0.5, data="hand-set"),
        figures.level_factors(maps.at(0), {}, data="hand-set"),
        figures.kl_estimates(np.linspace(0, 1, 1000), 0.5, data="hand-set"),
    ]
    for figure in made:
        assert "hand-set data" in figure.get_suptitle()
        assert figures.png_bytes(figure)[:4] == b"\x89PNG"
