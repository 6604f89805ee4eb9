"""The figure of a training's schedule."""

from __future__ import annotations

import pandas as pd
import pytest

from mhvae_kit.errors import InputError
from mhvae_kit.figures.schedules import schedule_plot

SCHEDULE = pd.DataFrame(
    {
        "step": range(10),
        "stage": ["reconstruction"] + ["kl_ramp"] * 6 + ["adversarial"] * 3,
        "kl_weight": [i / 10 for i in range(10)],
        "learning_rate": [1e-3] * 10,
    }
)


def test_both_curves_stand_over_all_named_stages():
    figure = schedule_plot(SCHEDULE, data="phantom-test")
    weight, rate = figure.axes
    assert weight.lines[0].get_ydata().tolist() == SCHEDULE["kl_weight"].tolist()
    assert rate.lines[0].get_ydata().tolist() == SCHEDULE["learning_rate"].tolist()
    assert [t.get_text() for t in weight.texts] == ["reconstruction", "kl ramp", "adversarial"]
    assert weight.get_xlim() == (0, 10)
    assert "phantom" in figure.get_suptitle()


@pytest.mark.parametrize("schedule", [SCHEDULE.drop(columns="stage"), SCHEDULE.iloc[:0]])
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(InputError, match="not a schedule"):
        schedule_plot(schedule, data="phantom-test")
