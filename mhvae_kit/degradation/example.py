"""The kept example of each cell, for the figure that shows what a network learnt from and what it then finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mhvae_kit.degradation.cell import cell_folder
from mhvae_kit.degradation.plan import BASELINE
from mhvae_kit.errors import DataError, explain
from mhvae_kit.figures import DefectRow, DoseCell

ARRAYS = ("training_image", "training_label", "real_image", "true_mask", "predicted_mask")


def read_example(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that a cell kept of one training slice and one real slice, (H, W) each.

    Raises:
        DataError: The file is missing, damaged or lacks an array.
    """
    path = folder / "example.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError) as error:
        mend = "delete the cell's folder and make it again"
        raise DataError(explain(f"{path} cannot be read", got=str(error), mend=mend)) from error


def dose_rows(names: Sequence[str], summary: pd.DataFrame, root: str | Path, preset: str) -> list[DefectRow]:
    """What a figure shows of some defects: the clean images, then each dose.

    Args:
        names: Of the defects, in order.
        summary: From `analysis.cell_summary`.
        root: Folder of all runs.
        preset: smoke, demo or paper.
    """
    rows = []
    for name in names:
        own = summary[summary["name"] == name].sort_values("dose")
        start = own.iloc[:0] if (own["dose"] == 0).any() else summary[summary["key"] == BASELINE].assign(dose=0.0)
        cells = [
            DoseCell(dose=float(r.dose), dice=float(r.dice), **read_example(cell_folder(r.key, preset, root)))
            for r in [*start.itertuples(), *own.itertuples()]
        ]
        rows.append(DefectRow(label=own["title"].iloc[0], cells=tuple(cells)))
    return rows
