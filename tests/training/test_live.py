"""Live curves: drawn in a live notebook only, not too often, and from what the run has written."""

from __future__ import annotations

import itertools

import IPython.display
import pandas as pd
import pytest

from mhvae_kit.training import live


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def front_end(monkeypatch):
    """A front end that shows what it is given."""
    shown = []
    monkeypatch.setattr(live, "in_live_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    return shown


def write_metrics(folder, rows: int) -> None:
    steps = range(10, 10 * rows + 10, 10)
    frame = {
        "step": steps,
        "stage": "reconstruction",
        "loss": [1.0 / s for s in steps],
        "kl_z1": [5.0 * s for s in steps],
    }
    pd.DataFrame(frame).to_csv(folder / "metrics.csv", index=False)


def test_nothing_is_made_without_a_front_end(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "in_live_notebook", lambda: False)
    write_metrics(tmp_path, 3)
    curves = live.LiveCurves(tmp_path, "phantom-smoke")
    curves.draw()
    assert curves._image is None


def test_a_picture_is_shown_and_changes_with_the_run(tmp_path, front_end):
    curves = live.LiveCurves(tmp_path, "phantom-smoke")
    write_metrics(tmp_path, 3)
    curves.draw()
    first = front_end[0].value
    write_metrics(tmp_path, 9)
    curves.draw()
    assert bytes(first[:4]) == b"\x89PNG" and front_end[0].value != first
    curves.close()


def test_it_draws_when_due_and_not_before(tmp_path, front_end, monkeypatch):
    clock, drawn = Clock(), []
    curves = live.LiveCurves(tmp_path, "phantom-smoke", clock=clock)

    def slow_draw() -> None:
        drawn.append(clock.now)
        clock.now += 3.0

    monkeypatch.setattr(curves, "draw", slow_draw)
    while clock.now < 300:
        curves.update()
        clock.now += 1.0
    gaps = [b - a for a, b in itertools.pairwise(drawn)]
    assert drawn[0] == live.FIRST_AFTER_S and min(gaps) >= 3.0 / live.SHARE_OF_TIME
    curves.close()
