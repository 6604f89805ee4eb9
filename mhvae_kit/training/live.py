"""The curves of a training while it runs, as one picture that is redrawn in a live notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from mhvae_kit.progress import in_live_notebook

SHARE_OF_TIME = 0.03
"""Drawing takes at most this share of the training's time: it runs on the same cores."""
FIRST_AFTER_S = 10.0


class LiveCurves:
    """Loss, L1, KL by level and validation so far, under the progress bar; outside a live notebook it does nothing.

    Args:
        folder: The run, whose metrics.csv and validation.csv are drawn.
        data: Name of the data set, for the title.
        clock: Seconds that only move forward; another one in tests.
    """

    def __init__(self, folder: Path, data: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.data, self._clock = folder, data, clock
        self._due = clock() + FIRST_AFTER_S
        self._image: Any = None
        if in_live_notebook():
            import ipywidgets
            from IPython.display import display

            self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
            display(self._image)

    def update(self) -> None:
        """Draw again when it is time."""
        if self._image is not None and self._clock() >= self._due:
            begun = self._clock()
            self.draw()
            now = self._clock()
            self._due = now + max((now - begun) / SHARE_OF_TIME, FIRST_AFTER_S)

    def draw(self) -> None:
        """Draw now, if there is anything to draw and somewhere to show it."""
        path = self.folder / "metrics.csv"
        if self._image is None or not path.exists():
            return
        from mhvae_kit.figures import loss_curves
        from mhvae_kit.figures.output import png_bytes

        metrics = pd.read_csv(path)
        if metrics.empty:
            return
        scores = self.folder / "validation.csv"
        validation = pd.read_csv(scores) if scores.exists() else None
        figure = loss_curves(metrics, validation=validation, data=self.data, title="Training so far")
        self._image.value = png_bytes(figure, dpi=80)

    def close(self) -> None:
        """Take the picture away: the notebook draws the finished curves where it wants them."""
        if self._image is not None:
            self._image.close()
            self._image = None
