"""Curves of a training run: metrics.csv, validation.csv, TensorBoard files and one live line."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhvae_kit.files import atomic_path
from mhvae_kit.progress import progress


class Table:
    """A CSV file that grows by rows keyed by step; rows past the resumed step and torn lines are dropped."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with open(path, newline="") as file:
                rows = list(csv.reader(file))
            self.columns = rows[0] if rows else []
            whole = [
                r for r in rows[1:] if len(r) == len(self.columns) and r[0].isdigit() and int(r[0]) <= resumed_step
            ]
            with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
                csv.writer(file).writerows([self.columns, *whole] if self.columns else [])

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; the first one fixes the columns, of which "step" is the first."""
        with open(self.path, "a", newline="") as file:
            if not self.columns:
                self.columns = list(row)
                csv.writer(file).writerow(self.columns)
            csv.writer(file).writerow([_format(row[c]) for c in self.columns])


def _format(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


class TrainingLog:
    """Collects the numbers of each step and writes their means every `log_every` steps (first process only).

    Args:
        folder: The run, where metrics.csv, validation.csv and tensorboard/ go.
        first_step: Steps done before; rows of later ones are dropped.
        total: Steps in all.
        log_every: Steps between rows.
        name: What is trained, at the start of the live line; "" leaves it out.
    """

    def __init__(self, folder: Path, *, first_step: int, total: int, log_every: int, name: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed by training

        self.log_every = log_every
        self.metrics = Table(folder / "metrics.csv", first_step)
        self.validation = Table(folder / "validation.csv", first_step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        doing = f"{name} training".strip() + (f" from step {first_step}" if first_step else "")
        self.bar = progress(total=total - first_step, desc=doing, unit="step")
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def step(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Take in one step, counted from 1."""
        for name, value in values.items():
            self.sums[name] += value
        self.count += 1
        self.bar.update(1)
        if step % self.log_every == 0:
            means = {name: value / self.count for name, value in self.sums.items()}
            self.metrics.add({"step": step, "stage": stage, **means})
            for name, value in means.items():
                self.board.add_scalar(f"training/{name}", value, step)
            shown = {"stage": stage, "loss": f"{means['loss']:.3f}"}
            if "kl_nats" in means:
                shown["kl"] = f"{means['kl_nats']:.0f} nats"
            self.bar.set_postfix(**shown)
            self.sums.clear()
            self.count = 0

    def validate(self, step: int, scores: Mapping[str, float]) -> None:
        """Take in validation scores."""
        self.validation.add({"step": step, **scores})
        for name, value in scores.items():
            self.board.add_scalar(f"validation/{name}", value, step)

    def close(self) -> None:
        """Flush everything."""
        self.bar.close()
        self.board.close()
