"""Progress: which form is chosen where, and that plain lines never flood."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from mhvae_kit.progress import PlainProgress, in_live_notebook, progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(total: int, seconds_per_step: float, **options: object) -> list[str]:
    clock, file = Clock(), io.StringIO()
    with PlainProgress(total=total, desc="training", unit="step", file=file, clock=clock, **options) as bar:
        for _ in range(total):
            clock.now += seconds_per_step
            bar.set_postfix(loss=0.12345, stage="kl_ramp")
            bar.update()
    return file.getvalue().splitlines()


def test_a_long_loop_writes_at_most_one_line_per_five_seconds_and_a_final_one():
    lines = plain(total=10_000, seconds_per_step=0.01)  # 100 seconds
    assert 15 <= len(lines) <= 21


def test_a_short_loop_writes_its_final_line_only():
    assert len(plain(total=100, seconds_per_step=0.01)) == 1


def test_a_line_has_description_count_rate_time_left_and_postfix():
    assert plain(total=20, seconds_per_step=2.0)[0] == (
        "training: 3/20 step, 2 s/step, 34 s left, loss=0.123, stage=kl_ramp"
    )


def test_the_final_line_has_the_whole_time():
    assert plain(total=100, seconds_per_step=2.0)[-1] == (
        "training: 100/100 step, 2 s/step, 3 min 20 s in all, loss=0.123, stage=kl_ramp"
    )


def test_a_loop_over_an_iterable_gives_its_items_and_counts_them(capsys):
    bar = PlainProgress([5, 6, 7], desc="cases", file=sys.stdout)
    assert list(bar) == [5, 6, 7]
    assert bar.n == len(bar) == 3
    assert capsys.readouterr().out.startswith("cases: 3/3 it")


def test_closing_twice_writes_one_line():
    file = io.StringIO()
    bar = PlainProgress(total=1, file=file)
    bar.close()
    bar.close()
    assert len(file.getvalue().splitlines()) == 1


def test_a_loop_left_by_an_error_still_closes():
    file = io.StringIO()
    with pytest.raises(KeyError), PlainProgress(total=2, file=file):
        raise KeyError
    assert "0/2" in file.getvalue()


def test_output_to_a_file_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress(total=3), PlainProgress)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.delenv("MHVAE_HEADLESS", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(total=3) as bar:
        assert isinstance(bar, tqdm)


def test_headless_wins_over_a_terminal(monkeypatch):
    monkeypatch.setenv("MHVAE_HEADLESS", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress(total=3), PlainProgress)


def test_disabled_shows_nothing(capsys):
    for _ in progress(range(3), disable=True):
        pass
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.fixture
def in_kernel(monkeypatch):
    """Make this process look like a kernel without any front end."""
    for name in ("MHVAE_HEADLESS", "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_kernel_without_a_front_end_is_not_live_and_writes_lines_to_stdout(in_kernel, capsys):
    assert not in_live_notebook()
    list(progress([1, 2]))
    assert "2/2" in capsys.readouterr().out


def test_a_kernel_of_jupyterlab_is_live(in_kernel, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/00_quickstart.ipynb")
    assert in_live_notebook()


def test_headless_wins_over_a_front_end(in_kernel, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/00_quickstart.ipynb")
    monkeypatch.setenv("MHVAE_HEADLESS", "1")
    assert not in_live_notebook()
