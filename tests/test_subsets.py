"""What one more input brings: gains by hand, their means and words, and the figures over all subsets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from mhvae_kit.errors import InputError
from mhvae_kit.evaluation import all_subsets, gain_sentences, input_gains, mean_gains, subset_name
from mhvae_kit.figures import subsets as plots
from mhvae_kit.figures.style import MODALITY_COLOURS

NAMES = ("us", "t2", "flair")
SUBSETS = [subset_name(s) for s in all_subsets(NAMES)]


def score_table(value) -> pd.DataFrame:
    """Two patients with two slices; `value` of (case, observed set, target) is the score of both slices, +1 and -1."""
    rows = [
        {"data": "phantom-x", "temperature": 0.0, "case": c, "slice": k, "observed": o, "target": t}
        | {"psnr_fov_db": value(c, set(o.split("+")), t) + (1 if k else -1)}
        for c in ("a", "b")
        for o in SUBSETS
        for t in NAMES
        for k in (0, 1)
    ]
    return pd.DataFrame(rows)


def additive(case: str, observed: set[str], target: str) -> float:
    """20 dB, 10 more for the target itself, 1 more for T2; patient b gains twice as much by T2."""
    return 20.0 + 10.0 * (target in observed) + (2.0 if case == "b" else 1.0) * ("t2" in observed)


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


def test_every_addition_of_every_patient_has_a_gain():
    gains = input_gains(score_table(additive))
    pairs = gains.drop_duplicates(["target", "observed", "added"])
    # three images: from each single one two additions, from each pair one, for three targets
    assert len(pairs) == (3 * 2 + 3 * 1) * 3
    assert len(gains) == 2 * len(pairs)
    assert pairs["kind"].value_counts().to_dict() == {"synthesis": 6, "target added": 9, "reconstruction": 12}


def test_gains_are_paired_differences_by_patient():
    gains = input_gains(score_table(additive)).set_index(["target", "observed", "added", "case"])
    assert gains.loc[("us", "flair", "t2", "b"), "gain"] == pytest.approx(2.0)
    assert gains.loc[("us", "flair+t2", "us", "a"), "gain"] == pytest.approx(10.0)
    assert gains.loc[("us", "us", "flair", "a"), ["gain", "kind", "n_inputs"]].tolist() == [0.0, "reconstruction", 1]


def test_mean_gains_average_a_patient_first_and_count_what_loses():
    gains = input_gains(score_table(lambda c, o, t: 20 - 3.0 * ("flair" in o) + additive(c, o, t)))
    found = mean_gains(gains, ["kind"]).set_index("kind")
    us = gains[(gains["kind"] == "synthesis") & (gains["target"] == "us")]
    assert set(us["added"]) == {"t2", "flair"}
    one = mean_gains(us, ["target"]).iloc[0]
    assert one["gain"] == pytest.approx((1.5 - 3.0) / 2)
    assert (one["n_additions"], one["n_losing"], one["n_patients"]) == (2, 1, 2)
    assert one["gain_low"] == pytest.approx(-1.0) and one["gain_high"] == pytest.approx(-0.5)
    assert found["n_additions"].sum() == 27


def test_the_sentences_say_so_when_inputs_hurt_and_when_not():
    good = gain_sentences(input_gains(score_table(additive)))
    assert len(good) == 3 and all("do not hurt on average" in s for s in good)
    synthesis = next(s for s in good if s.startswith("synthesis"))
    assert "6 additions, of which 0 lose; smallest:" in synthesis
    bad = gain_sentences(input_gains(score_table(lambda c, o, t: additive(c, o, t) - 4.0 * (len(o) - 1))))
    synthesis = next(s for s in bad if s.startswith("synthesis"))
    assert "do hurt on average at 1 to 2 inputs -3." in synthesis
    assert "6 additions, of which 6 lose; worst:" in synthesis
    assert "-4.00 dB" in synthesis


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(temperature=np.arange(len(t)) % 2), "gains need one temperature"),
        (lambda t: pd.concat([t, t.assign(data="other")]), "gains need one data"),
        (lambda t: t[t["observed"] == "t2"], "no two subsets differ by one input"),
        (lambda t: t.drop(columns="psnr_fov_db"), "no such score.*psnr_fov_db"),
    ],
)
def test_scores_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        input_gains(change(score_table(additive)))


def test_presence_grid_counts_and_names_the_data():
    present = pd.DataFrame({"us": [True, False, True], "t2": [True, True, True]}, index=["a", "b", "c"])
    figure = plots.presence_grid(present, data="phantom-x")
    assert {"us (2 of 3)", "t2 (3 of 3)"} <= set(words(figure).split("\n"))
    assert "phantom-x" in words(figure)
    codes = figure.axes[0].collections[0].get_array().reshape(2, 3)
    assert codes.tolist() == [[1, 0, 1], [2, 2, 2]]


def test_subset_table_shows_every_number_and_frames_observed_targets():
    table = pd.DataFrame(np.arange(21.0).reshape(7, 3) + 10, index=SUBSETS, columns=list(NAMES))
    figure = plots.subset_table(table, data="phantom-x", unit="dB")
    shown = words(figure).split("\n")
    assert all(f"{v:.1f}" in shown for v in table.to_numpy().ravel())
    dots, cells = figure.axes[:2]
    assert len(cells.patches) == sum(t in o.split("+") for o in SUBSETS for t in NAMES) == 12
    coloured = [line for line in dots.lines if to_hex(line.get_color()) == MODALITY_COLOURS["t2"].lower()]
    assert len(coloured) == sum("t2" in o.split("+") for o in SUBSETS) == 4


def test_subset_pictures_have_the_truth_first_and_all_pictures():
    image = np.random.default_rng(0).uniform(-1, 1, (8, 8))
    made = {o: dict.fromkeys(NAMES, image * 0.5) for o in SUBSETS}
    fov = np.zeros((8, 8), bool)
    fov[2:6, 2:6] = True
    figure = plots.subset_pictures(made, dict.fromkeys(NAMES, image), data="phantom-x", fov=fov)
    pictures = [a.images[0].get_array() for a in figure.axes if a.images]
    assert len(pictures) == 3 * (1 + 7)
    assert [bool(np.allclose(p, image)) for p in pictures] == 3 * [True, *([False] * 7)]
    assert all(a.images[0].get_clim() == (-1, 1) for a in figure.axes if a.images)


def test_gain_intervals_have_a_line_a_group_in_order():
    gains = input_gains(score_table(additive))
    groups = mean_gains(gains, ["kind", "n_inputs"])
    single = mean_gains(gains, ["kind", "n_inputs", "target", "observed", "added"])
    axes = plots.gain_intervals(groups, single, data="phantom-x", unit="PSNR in fan (dB)").axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0] == "synthesis, 1 to 2 inputs" and labels[-1] == "reconstruction, 2 to 3 inputs"
    drawn = sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "|")
    assert drawn == len(single) == 27


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.presence_grid(pd.DataFrame(), data="phantom"), "no patient to show"),
        (lambda: plots.subset_table(pd.DataFrame({"us": [np.nan]}), data="phantom", unit="dB"), "cannot be drawn"),
        (lambda: plots.subset_pictures({"t2": {}}, {"us": np.zeros((4, 4))}, data="phantom"), "not complete.*t2"),
        (lambda: plots.gain_intervals(pd.DataFrame(), pd.DataFrame(), data="phantom", unit="dB"), "no gain to draw"),
    ],
)
def test_figures_refuse_what_they_cannot_draw(draw, message):
    with pytest.raises(InputError, match=message):
        draw()
