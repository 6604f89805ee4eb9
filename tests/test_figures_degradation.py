"""Figures of the degradation study: what is drawn equals the table, in the order that is told, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from mhvae_kit.errors import InputError
from mhvae_kit.figures.degradation import (
    KIND_LOOKS,
    dose_response,
    metric_forest,
    metric_scatter,
    route_intervals,
    size_cliff,
)
from mhvae_kit.figures.degradation_sheet import SEGMENTED_COLOUR, DefectRow, DoseCell, surgeon_sheet
from mhvae_kit.figures.output import png_bytes
from mhvae_kit.figures.style import TUMOUR_COLOUR

DICE = {"blur": (0.8, 0.75, 0.7), "rigid misplacement": (0.8, 0.6, 0.3), "no adversarial term": (0.8, 0.65)}
KINDS = {"blur": "texture", "rigid misplacement": "geometry", "no adversarial term": "model"}


def curves() -> pd.DataFrame:
    rows = []
    for defect, dice in DICE.items():
        for dose, value in zip((0, 0.5, 1) if len(dice) == 3 else (0, 1), dice, strict=True):
            rows.append({"defect": defect, "kind": KINDS[defect], "dose": dose, "dice": value, "psnr": 20 + 10 * value})
    return pd.DataFrame(rows).assign(dice_low=lambda t: t["dice"] - 0.1, dice_high=lambda t: t["dice"] + 0.05)


def segments(axes) -> np.ndarray:
    """Ends of all intervals, (n, 2 ends, 2)."""
    return np.concatenate([np.asarray(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments")])


def legend_words(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_doses_are_drawn_as_in_the_table_and_the_largest_loss_comes_first():
    shuffled = curves().sample(frac=1, random_state=3)
    figure = dose_response(shuffled, data="phantom", ceiling=(0.85, 0.8, 0.9))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["rigid misplacement", "no adversarial term", "blur"]
    assert "phantom" in figure._suptitle.get_text()
    for axes in panels:
        clean, ceiling, line = axes.lines
        np.testing.assert_allclose(line.get_ydata(), DICE[axes.get_title()])
        assert set(clean.get_ydata()) == {0.8} and set(ceiling.get_ydata()) == {0.85}
        assert ceiling.get_linestyle() == "--" and clean.get_linestyle() == "-"
        assert line.get_color() == KIND_LOOKS[KINDS[axes.get_title()]][0]
        ends = segments(axes)[:, :, 1]
        np.testing.assert_allclose(ends, np.stack([line.get_ydata() - 0.1, line.get_ydata() + 0.05], 1))
    assert list(panels[1].lines[2].get_xdata()) == [0, 1]
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert legend_words(figure)[:3] == ["texture", "geometry", "model"]


def test_seventeen_defects_leave_no_empty_frames_and_tick_labels_below_each_column():
    many = pd.concat([curves().iloc[:3].assign(defect=f"defect {k}") for k in range(17)])
    figure = dose_response(many, data="phantom")
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == 17 and [a.get_xlabel() for a in shown] == [""] * 12 + ["dose"] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="dice_low"), "no column dice_low"),
        (lambda t: t.iloc[:0], "an empty table"),
        (lambda t: t.assign(kind="colour"), "unknown kind of defect; got colour"),
        (lambda t: t.assign(dose=t["dose"] * 2), "a dose is not usable"),
        (lambda t: t[t["dose"] > 0], "no clean images; got blur"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "the same point twice; got blur, 0"),
        (lambda t: t.assign(dice=np.nan), "no number in dice"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dose_response(change(curves()), data="phantom")


def routes() -> pd.DataFrame:
    table = {"route": list("abcd"), "group": ["model", "real", "model", "real"], "dice": [0.4, 0.7, 0.6, 0.9]}
    return pd.DataFrame(table).assign(dice_low=lambda t: t["dice"] - 0.1, dice_high=lambda t: t["dice"] + 0.02)


def test_routes_stand_under_their_group_with_the_best_first():
    axes = route_intervals(routes(), data="phantom").axes[0]
    ticks = dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    assert list(ticks) == ["model", "c", "a", "real", "d", "b"] and axes.yaxis_inverted()
    assert [t.get_text() for t in axes.get_yticklabels() if t.get_fontweight() == "bold"] == ["model", "real"]
    drawn = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines}
    assert drawn == {ticks[r]: d for r, d in zip(routes()["route"], routes()["dice"], strict=True)}
    ends = {segment[0, 1]: tuple(segment[:, 0]) for segment in segments(axes)}
    assert ends[ticks["d"]] == pytest.approx((0.8, 0.92))
    assert [text.get_text() for text in axes.texts] == ["0.600", "0.400", "0.900", "0.700"]


def test_a_route_given_twice_is_refused():
    with pytest.raises(InputError, match="the routes have the same point twice; got model, a"):
        route_intervals(pd.concat([routes(), routes().iloc[:1]]), data="phantom")
    with pytest.raises(InputError, match="no column group"):
        route_intervals(routes().drop(columns="group"), data="phantom")


def sizes(names: tuple[str, ...] = ("real", "synthetic")) -> pd.DataFrame:
    rows = [
        {"route": name, "case": case, "volume_ml": volume, "dice": 0.9 - 0.1 * k - 0.3 / volume}
        for k, name in enumerate(names)
        for case, volume in zip("abcd", (1.0, 2.0, 8.0, 20.0), strict=True)
    ]
    return pd.DataFrame(rows)


def test_every_patient_has_a_mark_and_the_line_joins_the_medians_of_the_halves():
    figure = size_cliff(sizes(), data="phantom")
    axes = figure.axes[0]
    dots, line = axes.lines[0], axes.lines[1]
    first = sizes().iloc[:4]
    np.testing.assert_allclose(dots.get_xydata(), first[["volume_ml", "dice"]])
    np.testing.assert_allclose(line.get_xdata(), [1.5, 14.0])
    np.testing.assert_allclose(line.get_ydata(), [first["dice"][:2].median(), first["dice"][2:].median()])
    assert axes.get_xscale() == "log" and legend_words(figure) == ["real", "synthetic"]
    assert axes.lines[0].get_marker() != axes.lines[2].get_marker()


def test_lesions_without_volume_and_too_many_routes_are_refused():
    with pytest.raises(InputError, match="a lesion has no volume; got 0"):
        size_cliff(sizes().assign(volume_ml=0.0), data="phantom")
    with pytest.raises(InputError, match="too many routes to tell apart; got 6"):
        size_cliff(sizes(tuple("uvwxyz")), data="phantom")
    with pytest.raises(InputError, match="the scores have the same point twice"):
        size_cliff(pd.concat([sizes(), sizes()]), data="phantom")


def test_metrics_are_ordered_by_strength_and_those_whose_interval_holds_0_are_grey():
    table = {"metric": ["weak", "strong"], "rho": [0.1, -0.8], "rho_low": [-0.2, -0.9], "rho_high": [0.4, -0.6]}
    figure = metric_forest(pd.DataFrame(table).assign(rho_within=[np.nan, -0.5]), data="phantom")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["strong", "weak"]
    zero, strong, within, weak = axes.lines  # no hollow dot where there is no mean within a defect
    assert set(zero.get_xdata()) == {0.0}
    assert [float(line.get_xdata()[0]) for line in (strong, within, weak)] == [-0.8, -0.5, 0.1]
    assert within.get_markerfacecolor() == "white" and strong.get_color() != weak.get_color()
    np.testing.assert_allclose(segments(axes)[:, :, 0], [[-0.9, -0.6], [-0.2, 0.4]])
    with pytest.raises(InputError, match="no column rho_within"):
        metric_forest(pd.DataFrame(table), data="phantom")


def test_cells_are_drawn_by_kind_and_the_clean_images_as_one_star():
    figure = metric_scatter(curves(), metric="psnr", label="PSNR (dB)", data="phantom")
    axes, table = figure.axes[0], curves()
    dots = [c for c in axes.collections if not hasattr(c, "get_segments")]
    texture = table[(table["kind"] == "texture") & (table["dose"] > 0)]
    np.testing.assert_allclose(dots[0].get_offsets(), texture[["psnr", "dice"]])
    assert to_hex(dots[0].get_facecolor()[0]).upper() == KIND_LOOKS["texture"][0]
    assert dots[0].get_sizes()[1] > dots[0].get_sizes()[0]
    (star,) = axes.lines
    assert star.get_marker() == "*" and star.get_xydata().tolist() == [[28.0, 0.8]]
    assert len(segments(axes)) == 5 + 1  # an interval for each degraded cell and for the clean images


def test_the_four_worst_defects_are_named_at_their_worst_cell_without_overlap():
    rows = [{"defect": f"defect number {k}", "kind": "content", "dose": 1.0, "dice": 0.3 + 0.001 * k} for k in range(9)]
    table = pd.DataFrame(rows).assign(psnr=20.0, dice_low=0.2, dice_high=np.nan)
    milder = table.assign(dose=0.5, dice=table["dice"] + 0.1, psnr=25.0)
    figure = metric_scatter(pd.concat([table, milder]), metric="psnr", label="PSNR (dB)", data="phantom")
    names = {text.get_text(): text for text in figure.axes[0].texts}
    assert sorted(names) == [f"defect number {k}" for k in range(4)]
    assert {name: text.xy[1] for name, text in names.items()} == dict(table[["defect", "dice"]].values[:4])
    boxes = [super(type(text), text).get_window_extent() for text in names.values()]  # of the words, not of the line
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_cells_without_the_metric_are_left_out_or_refused():
    table = curves()
    table.loc[table["defect"] == "blur", "psnr"] = np.nan
    figure = metric_scatter(table, metric="psnr", label="PSNR (dB)", data="phantom")
    assert "texture" not in legend_words(figure)
    clean = metric_scatter(table[table["dose"] == 0], metric="psnr", label="PSNR (dB)", data="phantom")
    assert legend_words(clean) == ["clean images"]
    with pytest.raises(InputError, match="no column lpips"):
        metric_scatter(table, metric="lpips", label="LPIPS", data="phantom")
    with pytest.raises(InputError, match="no cell has the metric; got psnr"):
        metric_scatter(table.assign(psnr=np.nan), metric="psnr", label="PSNR (dB)", data="phantom")


def square(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((24, 32), bool)
    mask[start:stop, start:stop] = True
    return mask


def cell(dose: float, found: np.ndarray | None = None) -> DoseCell:
    rng = np.random.default_rng(int(10 * dose))
    return DoseCell(
        dose=dose,
        training_image=rng.uniform(-1, 1, (24, 32)),
        training_label=square(4, 10),
        real_image=np.linspace(-1, 1, 24 * 32).reshape(24, 32),
        true_mask=square(6, 14),
        predicted_mask=square(8, 16) if found is None else found,
        dice=0.75,
    )


def outlines(axes) -> dict[str, tuple[float, float]]:
    """Smallest and largest column of each outline, by colour."""
    return {
        to_hex(c.get_edgecolor()[0]).upper(): (c.get_paths()[0].vertices[:, 0].min(), c.get_paths()[0].vertices.max())
        for c in axes.collections
    }


def test_each_dose_shows_its_training_image_and_the_same_slice_with_both_outlines():
    row = DefectRow(label="blur", cells=(cell(1.0), cell(0.0)))
    figure = surgeon_sheet([row], data="phantom", spacing_mm=(0.5, 1.0))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["dose 0 (clean)\ntraining image", "dose 0 (clean)\nreal ultrasound"]
    assert titles[2:] == ["dose 1\ntraining image", "dose 1\nreal ultrasound"]
    pictures = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    for picture, expected in zip(pictures[::2], (cell(0.0), cell(1.0)), strict=True):
        np.testing.assert_allclose(picture, expected.training_image, atol=1e-6)
    np.testing.assert_array_equal(pictures[1], pictures[3])
    assert outlines(figure.axes[2]) == {TUMOUR_COLOUR: (3.5, 9.5)}
    assert outlines(figure.axes[3]) == {TUMOUR_COLOUR: (5.5, 13.5), SEGMENTED_COLOUR: (7.5, 15.5)}
    assert figure.axes[3].get_xlabel() == "Dice 0.75" and figure.axes[0].get_ylabel() == "blur"
    assert figure.axes[0].get_aspect() == 0.5  # rows half as far apart as columns
    bar = figure.axes[0].lines[0].get_xdata()
    assert bar[1] - bar[0] == pytest.approx(10)  # 10 mm of 1 mm


def test_a_dose_that_a_row_lacks_stays_empty_and_finding_nothing_is_told():
    full = DefectRow(label="blur", cells=(cell(0.0), cell(0.5), cell(1.0)))
    short = DefectRow(label="no adversarial term", cells=(cell(0.0), cell(1.0, np.zeros((24, 32)))))
    figure = surgeon_sheet([short, full], data="phantom")
    drawn = [bool(axes.images) for axes in figure.axes]
    assert drawn == [True, True, False, False, True, True] + [True] * 6
    assert figure.axes[5].get_xlabel() == "Dice 0.75, nothing found here"
    assert set(outlines(figure.axes[5])) == {TUMOUR_COLOUR}
    assert png_bytes(figure, dpi=40).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((), "there is no defect to show"),
        ((cell(0.5), cell(0.5)), "blur has a dose twice"),
        ((cell(0.0), replace(cell(1.0), real_image=np.zeros((24, 32)))), "real slice of blur differs between doses"),
        ((replace(cell(0.0), training_image=np.zeros((8, 8))),), "images in one figure differ in size"),
        ((replace(cell(0.0), training_image=np.full((24, 32), 3.0)),), r"training image of blur is not in \[-1, 1\]"),
        ((replace(cell(0.0), true_mask=np.ones((8, 8))),), "a mask does not fit its image"),
    ],
)
def test_sheets_that_cannot_be_drawn_are_refused(cells, message):
    with pytest.raises(InputError, match=message):
        surgeon_sheet([DefectRow(label="blur", cells=cells)], data="phantom")


def test_every_figure_says_what_data_it_shows():
    with pytest.raises(InputError, match="does not say what data"):
        surgeon_sheet([DefectRow(label="blur", cells=(cell(0.0),))], data="")
    with pytest.raises(InputError, match="does not say what data"):
        route_intervals(routes(), data="")
