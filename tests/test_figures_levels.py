"""Figures of levels and of the temperature: what is drawn where, on which scale, with which words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from mhvae_kit import figures
from mhvae_kit.errors import InputError
from mhvae_kit.figures import level_curves as curves
from mhvae_kit.figures import levels as grids
from mhvae_kit.figures import temperature as warm
from mhvae_kit.figures.levels import LevelRow
from mhvae_kit.figures.temperature import UncertaintyRow

SIZE = 12
NAMES = ("z3", "z2", "z1")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE))


@pytest.fixture
def fan() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:10, 2:10] = True
    return mask


def words(figure: Figure) -> str:
    """All text of a figure that has content."""
    return "\n".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


def titles(figure: Figure) -> list[str]:
    return [a.get_title() for a in figure.axes if a.get_title()]


def pictures(figure: Figure) -> list:
    return [a.images[0] for a in figure.axes if a.images]


def row(image: np.ndarray, fan: np.ndarray | None = None, **changes) -> LevelRow:
    maps = dict.fromkeys(("z1", "z3", "z2"), image * 0.5)
    given = {"label": "us given t2", "images": {"truth": image}, "levels": maps, "reference": image * 0.4, "fov": fan}
    return LevelRow(**{**given, **changes})


# --- Pictures ---


def test_deviation_maps_go_from_coarse_to_fine_with_all_last(image, fan):
    maps = {"all": image, "z1": image, "z10": image, "z2": image}
    figure = grids.deviation_maps([row(image, fan, levels=maps)], data="phantom")
    assert titles(figure) == ["truth", "z10", "z2", "z1", "all"]
    assert "(phantom data)" in words(figure)


def test_each_row_of_deviations_has_its_own_scale_unless_one_is_given(image, fan):
    rows = [row(image, fan, levels={k: np.full((SIZE, SIZE), s) for k in NAMES}) for s in (0.04, 0.4)]
    ends = [p.get_clim() for p in pictures(grids.deviation_maps(rows, data="phantom")) if p.get_cmap().name != "gray"]
    assert set(ends[:3]) == {(0, 0.05)} and set(ends[3:]) == {(0, 0.4)}
    fixed = grids.deviation_maps(rows, data="phantom", limit=0.3)
    assert {p.get_clim() for p in pictures(fixed) if p.get_cmap().name == "viridis"} == {(0, 0.3)}


def test_maps_are_shown_inside_the_fan_only(image, fan):
    figure = grids.deviation_maps([row(image, fan)], data="phantom")
    shown = pictures(figure)[1].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(shown)), ~fan)


def test_notes_stand_under_their_maps(image, fan):
    figure = grids.deviation_maps([row(image, fan, notes={"z2": "0.123"})], data="phantom")
    below = {a.get_title(): a.get_xlabel() for a in figure.axes if a.get_title()}
    assert below["z2"] == "0.123" and below["z1"] == ""


def test_changes_are_differences_from_the_reference_on_one_diverging_scale(image):
    figure = grids.change_grid([row(image)], data="phantom")
    changes = [p for p in pictures(figure) if p.get_cmap().name == "RdBu_r"]
    assert len(changes) == 3 and {p.get_clim() for p in changes} == {(-0.1, 0.1)}
    np.testing.assert_allclose(changes[0].get_array(), 0.1 * image)


def test_changes_on_their_own_scale_say_it(image):
    maps = {"z2": image * 0.5, "z1": np.clip(image * 0.4 + 0.3, -1, 1)}
    figure = grids.change_grid([row(image, levels=maps, notes={"z1": "size 0.3"})], data="phantom", own_scale=True)
    changes = [p for p in pictures(figure) if p.get_cmap().name == "RdBu_r"]
    assert [p.get_clim()[1] for p in changes] == [0.1, 0.4]
    text = words(figure)
    assert "scale ±0.1" in text and "scale ±0.4\nsize 0.3" in text


def test_traversals_show_each_step_and_how_far_pixels_move(image, fan):
    stack = np.stack([image * s for s in (0.2, 0.5, 0.8)])
    both = {"us": stack, "t2": stack * 0.5}
    figure = grids.traversal_grid({"z1, unit 2": both}, (-2.0, 0.0, 2.0), data="phantom", fov=fan)
    heads = ["-2 std", "as inferred", "+2 std", "moved"]
    assert titles(figure) == [f"{m}: {head}" for m in ("us", "t2") for head in heads]
    us, t2 = (pictures(figure)[i].get_array() for i in (3, 7))
    np.testing.assert_allclose(us[fan], np.abs(0.6 * image)[fan])
    np.testing.assert_allclose(t2[fan], np.abs(0.3 * image)[fan])


@pytest.mark.parametrize(
    ("values", "limit"), [([0.004], 0.01), ([0.06], 0.07), ([0.2], 0.2), ([-0.35], 0.4), ([3.0], 2.0), ([], 0.01)]
)
def test_scales_end_at_round_numbers(values, limit):
    assert grids.round_limit(np.array(values)) == limit


def test_one_bright_pixel_does_not_set_the_scale():
    assert grids.round_limit(np.append(np.full(999, 0.04), 1.0)) == 0.05


def test_rows_that_do_not_fit_are_refused(image):
    other = row(image, levels={"z1": image})
    for figure in (grids.deviation_maps, grids.change_grid):
        with pytest.raises(InputError, match="do not fit together"):
            figure([row(image), other], data="phantom")
        with pytest.raises(InputError, match="do not fit together"):
            figure([], data="phantom")
    with pytest.raises(InputError, match="no reference"):
        grids.change_grid([row(image, reference=None)], data="phantom")
    with pytest.raises(InputError, match="nothing to traverse"):
        grids.traversal_grid({"z1": {"us": np.zeros((2, SIZE, SIZE))}}, (0.0,), data="phantom")


# --- Curves over levels ---


@pytest.fixture
def summary() -> pd.DataFrame:
    parts = []
    for condition in ("us given t2", "t2 given us", "us given nothing"):
        part = pd.DataFrame({"level": NAMES, "centroid_per_mm": [0.1, 0.2, 0.3], "share": [0.2, 0.3, 0.5]})
        part = part.assign(condition=condition, share_low=part["share"] - 0.05, share_high=part["share"] + 0.05)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_a_curve_a_condition_in_the_colour_of_its_target(summary):
    measures = {"centroid_per_mm": "centroid", "share": "share"}
    figure = curves.level_curves(summary, measures, data="phantom", lines={"centroid_per_mm": {"white noise": 0.33}})
    first, second = (a for a in figure.axes if a.get_visible())
    looks = [(line.get_label(), to_hex(line.get_color()), line.get_linestyle()) for line in first.lines[:3]]
    us, t2 = (figures.modality_colour(m).lower() for m in ("us", "t2"))
    assert looks == [("us given t2", us, "-"), ("t2 given us", t2, "-"), ("us given nothing", us, ":")]
    assert [t.get_text() for t in first.get_xticklabels()] == list(NAMES)
    assert "white noise" in words(figure) and len(second.collections) == 3 and not first.collections


def test_levels_that_are_not_there_are_refused(summary):
    with pytest.raises(InputError, match="no entropy"):
        curves.level_curves(summary, {"entropy": "entropy"}, data="phantom")
    with pytest.raises(InputError, match="no levels"):
        curves.level_curves(summary.iloc[:0], {"share": "share"}, data="phantom")


def test_spectra_have_a_dot_at_the_centroid_and_no_curve_for_a_level_that_rests():
    f = np.linspace(0.02, 0.5, 20)
    power = {"z2": 1 / f, "z1": np.ones(20), "z3": np.zeros(20)}
    options = {"data": "phantom", "layout_mm": 20.0, "texture_mm": 6.0}
    figure = curves.change_spectra(f, {"us given t2": power}, {"us given t2": dict.fromkeys(power, 0.25)}, **options)
    lines = figure.axes[0].lines
    assert len(lines) == 4
    dots = [line for line in lines if line.get_marker() == "o"]
    assert [float(np.ravel(d.get_xdata())[0]) for d in dots] == [0.25, 0.25]
    np.testing.assert_allclose([float(np.ravel(d.get_ydata())[0]) for d in dots], [10 * np.log10(4), 0], atol=0.1)
    assert "layout" in words(figure) and "texture" in words(figure)
    with pytest.raises(InputError, match="20 values for each level"):
        curves.change_spectra(f, {"a": {"z1": np.ones(3)}}, {}, **options)


def test_the_kl_is_drawn_per_image_and_per_dimension():
    table = pd.DataFrame({"observed": "us", "level": NAMES, "kl_nats": [10.0, 0.0, 400.0], "n_dims": [10, 100, 1000]})
    figure = curves.kl_curves(table, data="phantom")
    per_image, per_dim = (a.lines[0].get_ydata() for a in figure.axes[:2])
    np.testing.assert_array_equal(per_image, [10, np.nan, 400])
    np.testing.assert_array_equal(per_dim, [1, np.nan, 0.4])


def test_dropped_experts_keep_the_colour_of_their_condition():
    rows = [{"level": "none", "dropped": "nothing", "psnr_fov_db": 30.0}]
    rows += [{"level": k, "dropped": d, "psnr_fov_db": 20.0} for k in NAMES for d in ("this level", "this and finer")]
    figure = curves.dropped_curves(pd.DataFrame(rows).assign(condition="us given us"), data="phantom")
    whole, alone, finer = figure.axes[0].lines
    assert list(whole.get_ydata()) == [30, 30] and list(alone.get_ydata()) == list(finer.get_ydata()) == [20, 20, 20]
    assert alone.get_color() == finer.get_color() == figures.modality_colour("us")
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["nothing dropped", "this level dropped", "this and finer dropped"]


# --- Temperature ---


def test_a_strip_stresses_the_marked_columns(image):
    figure = warm.temperature_strip({"us": [image, image]}, ["τ = 0", "τ = 0.2"], data="phantom", marked={"τ = 0.2"})
    assert [a.title.get_fontweight() for a in figure.axes] == ["normal", "bold"]
    assert {p.get_clim() for p in pictures(figure)} == {(-1, 1)}
    with pytest.raises(InputError, match="do not fit the columns"):
        warm.temperature_strip({"us": [image]}, ["a", "b"], data="phantom")


def test_error_and_spread_share_one_scale(image, fan):
    maps = {"error": np.abs(image), "std": 0.1 * np.abs(image)}
    rows = [UncertaintyRow(label="a", images={"truth": image}, fov=fan, **maps)]
    figure = warm.uncertainty_maps(rows, data="phantom")
    coloured = [p for p in pictures(figure) if p.get_cmap().name == "viridis"]
    assert len(coloured) == 2 and len({p.get_clim() for p in coloured}) == 1
    with pytest.raises(InputError, match="do not fit together"):
        warm.uncertainty_maps([], data="phantom")


def swept() -> pd.DataFrame:
    rows = [("real", np.nan, "contrast_db", 4.0)]
    rows += [("synthetic", tau, m, tau + 1) for tau in (1.0, 0.0) for m in ("contrast_db", "psnr_fov_db")]
    table = pd.DataFrame(rows, columns=["kind", "temperature", "measure", "mean"])
    return table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1)


def test_curves_over_temperature_mark_what_others_chose_and_show_the_real_value():
    measures = {"psnr_fov_db": "PSNR", "contrast_db": "contrast"}
    options = {"data": "phantom", "marks": {0.2: "the paper"}, "measures": measures}
    figure = warm.temperature_curves({"first": swept(), "second": swept()}, **options)
    psnr, contrast = figure.axes[:2]
    made = next(line for line in psnr.lines if line.get_label() == "first")
    assert list(made.get_xdata()) == [0, 1] and list(made.get_ydata()) == [1, 2]
    real = [line for line in contrast.lines if line.get_label() == "real"]
    assert len(real) == 1 and list(real[0].get_ydata()) == [4, 4]
    assert not [line for line in psnr.lines if line.get_label() == "real"]
    assert [line.get_xdata()[0] for line in psnr.lines if line.get_linestyle() == ":"] == [0.2]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["first", "second", "real", "τ = 0.2: the paper"]


def test_reliability_has_the_diagonal_a_colour_a_model_and_a_line_a_setting():
    table = pd.DataFrame({"level": [0.9, 0.5], "covered": [0.6, 0.3]})
    table = table.assign(covered_low=table["covered"] - 0.1, covered_high=table["covered"] + 0.1)
    made = {"gan": {"τ = 1": table, "fitted": table}, "no gan": {"τ = 1": table}}
    diagonal, first, second, other = warm.reliability_curves(made, data="phantom").axes[0].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert list(first.get_xdata()) == [0.5, 0.9] and list(first.get_ydata()) == [0.3, 0.6]
    assert first.get_color() == second.get_color() != other.get_color()
    assert first.get_linestyle() == other.get_linestyle() != second.get_linestyle()
    assert first.get_label() == "gan, τ = 1"
    with pytest.raises(InputError, match="one row a level"):
        warm.reliability_curves({"a": {"b": pd.concat([table, table])}}, data="phantom")


def test_error_is_drawn_over_the_error_that_the_spread_expects():
    table = pd.DataFrame({"expected": [0.1, 0.2], "error": [0.3, 0.4]})
    axes = warm.spread_error_plot({"τ = 1": table}, data="phantom").axes[0]
    assert list(axes.lines[1].get_xdata()) == [0.1, 0.2] and list(axes.lines[1].get_ydata()) == [0.3, 0.4]
    assert axes.get_xlim() == axes.get_ylim()


@pytest.mark.parametrize(
    "call",
    [
        lambda: warm.temperature_curves({}, data="x", marks={}),
        lambda: warm.reliability_curves({}, data="x"),
        lambda: warm.spread_error_plot({}, data="x"),
    ],
)
def test_nothing_to_draw_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_no_figure_without_naming_its_data(image):
    with pytest.raises(InputError, match="what data"):
        grids.deviation_maps([row(image)], data="")
