"""One progress line for every place the kit runs in: a bar in JupyterLab or a terminal, plain lines elsewhere.

`tqdm.auto` takes a notebook run by papermill for a live one and leaves dead widgets behind, and a bar written to a
log file floods it. So the choice is made here, once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TextIO, TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0
# A front end with a person before it leaves one of these; papermill, nbclient and nbval leave none.
_FRONT_END_VARIABLES = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")


def in_live_notebook() -> bool:
    """Whether this process is a kernel with a live Jupyter front end, so that a widget would be seen and moved.

    MHVAE_HEADLESS=1 (set by the runner) says no whatever else is found.
    """
    if os.environ.get("MHVAE_HEADLESS", "") not in ("", "0"):
        return False
    return _in_kernel() and any(name in os.environ for name in _FRONT_END_VARIABLES)


def _in_kernel() -> bool:
    """Whether this process is a Jupyter kernel of any kind."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class PlainProgress(Generic[Item]):
    """Progress as plain lines, at most one per `SECONDS_BETWEEN_LINES` and one when it closes.

    Args:
        iterable: What to go through; None when `update` is called by hand.
        total: Number of steps; taken from `len(iterable)` when it has one, None when unknown.
        desc: What is going on, at the start of each line.
        unit: What one step is, for the rate.
        file: Where the lines go.
        clock: Seconds that only move forward; another one in tests.
    """

    def __init__(
        self,
        iterable: Iterable[Item] | None = None,
        *,
        total: int | None = None,
        desc: str = "",
        unit: str = "it",
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self.iterable, self.total, self.desc, self.unit, self.n = iterable, total, desc, unit, 0
        self._file, self._clock = file or sys.stdout, clock
        self._begun = self._last = clock()
        self._postfix = ""
        self._closed = False

    def update(self, n: int = 1) -> None:
        """Count `n` more steps."""
        self.n += n
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._write(self.line())

    def set_postfix(self, **values: Any) -> None:
        """Show `name=value` at the end of the coming lines; numbers with three digits."""
        self._postfix = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())

    def close(self) -> None:
        """Write the final line, once."""
        if not self._closed:
            self._closed = True
            self._write(self.line(final=True))

    def line(self, final: bool = False) -> str:
        """What is known now: description, steps of total, rate, time left (or time taken), postfix."""
        seconds = max(self._clock() - self._begun, 1e-9)
        rate = self.n / seconds
        count = f"{self.n}/{self.total}" if self.total else f"{self.n}"
        parts = [
            f"{count} {self.unit}",
            f"{rate:.3g} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s/{self.unit}",
        ]
        if final:
            parts.append(f"{_duration(seconds)} in all")
        elif self.total and rate:
            parts.append(f"{_duration(max(self.total - self.n, 0) / rate)} left")
        if self._postfix:
            parts.append(self._postfix)
        return (f"{self.desc}: " if self.desc else "") + ", ".join(parts)

    def _write(self, line: str) -> None:
        print(line, file=self._file, flush=True)

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __len__(self) -> int:
        return self.total or 0

    def __enter__(self) -> PlainProgress[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(
    iterable: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    disable: bool = False,
) -> Any:
    """Show how far a loop has come, in the form that suits the place: bar or plain lines.

    Args:
        iterable: What to go through, or None to call `update(n)` by hand.
        total: Number of steps, when `iterable` does not know it.
        desc: What is going on.
        unit: What one step is ("step", "case", ...).
        disable: Show nothing, as on every process but the first of several.
    Returns:
        An object to iterate over or use in a `with` block, with update(n), set_postfix(**values) and close().
    """
    if not disable and in_live_notebook():
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar(iterable, total=total, desc=desc, unit=unit)
    terminal = sys.stderr.isatty() and os.environ.get("MHVAE_HEADLESS", "") in ("", "0") and not _in_kernel()
    if disable or terminal:
        from tqdm import tqdm as terminal_bar

        return terminal_bar(iterable, total=total, desc=desc, unit=unit, disable=disable, dynamic_ncols=True)
    # A kernel's stderr is shown as if it were an error; a program's stdout may be data for another program.
    return PlainProgress(iterable, total=total, desc=desc, unit=unit, file=sys.stdout if _in_kernel() else sys.stderr)
