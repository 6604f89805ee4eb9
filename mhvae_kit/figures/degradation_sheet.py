"""Pictures of the degradation study: what a network was trained on at each dose, and what it then finds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import _PANEL_INCHES, _draw, _one_shape, _outline, _scale_bar, _spacing, plane
from mhvae_kit.figures.style import LABEL_PT, SMALL_PT, TUMOUR_COLOUR, new_figure
from mhvae_kit.metrics import ArrayLike

SEGMENTED_COLOUR, SEGMENTED_LINE = "#FF5CF4", (0, (5, 4))
"""Dashed, so that the true border shows where both agree."""
_GAP = 0.12
"""Between the pairs of two doses, as a share of a panel's width."""


@dataclass(frozen=True, kw_only=True)
class DoseCell:
    """One defect at one dose; images (H, W) in [-1, 1] or uint8, masks (H, W).

    Args:
        dose: From 0 (clean) to 1 (full).
        training_image: A slice that the network was trained on.
        training_label: The label it came with.
        real_image: A slice of real ultrasound of a test patient: the same at all doses of a row.
        true_mask: The lesion in it.
        predicted_mask: What the network found in it.
        dice: Written under the real slice; of one patient or the mean of all, the same for all cells of a figure.
    """

    dose: float
    training_image: ArrayLike
    training_label: ArrayLike
    real_image: ArrayLike
    true_mask: ArrayLike
    predicted_mask: ArrayLike
    dice: float


@dataclass(frozen=True, kw_only=True)
class DefectRow:
    """One defect at its doses.

    Args:
        label: As in titles.
        cells: One a dose, in any order.
    """

    label: str
    cells: tuple[DoseCell, ...]


def surgeon_sheet(
    rows: Sequence[DefectRow],
    *,
    data: str,
    spacing_mm: float | tuple[float, float] = 1.0,
    title: str = "Training images with a defect, and the segmentation they lead to",
) -> Figure:
    """A row a defect; for each dose a training image with its label, and the same real slice with what was found in it.

    Columns are all doses that occur, from the lowest; a dose that a row lacks stays empty.

    Args:
        rows: Defects.
        data: What the images are of, such as "phantom".
        spacing_mm: Pixel size, one number or (rows, columns).
        title: Title of the figure.
    Raises:
        InputError: No row or cell, a dose twice, images that differ in size or are not in [-1, 1], masks that do not
            fit, a real slice that is not the same at all doses of a row.
    """
    doses = sorted({cell.dose for row in rows for cell in row.cells})
    if not doses:
        raise InputError(explain("there is no defect to show", expected="at least one row with one dose"))
    spacing, shape = _spacing(spacing_mm), _checked_shape(rows)
    figure, axes = _pairs(len(rows), len(doses), shape[0] * spacing[0] / (shape[1] * spacing[1]), title, data)
    for row, panels in zip(rows, axes, strict=True):
        cells = {cell.dose: cell for cell in row.cells}
        for k, dose in enumerate(doses):
            pair = panels[2 * k], panels[2 * k + 1]
            _empty(pair) if dose not in cells else _draw_pair(pair, cells[dose], shape, spacing)
        panels[0].set_ylabel(textwrap.fill(row.label, 22), fontsize=LABEL_PT)
    for k, dose in enumerate(doses):
        head = f"dose {dose:g}" + (" (clean)" if dose == 0 else "")
        axes[0, 2 * k].set_title(f"{head}\ntraining image", fontsize=LABEL_PT)
        axes[0, 2 * k + 1].set_title(f"{head}\nreal ultrasound", fontsize=LABEL_PT)
    _scale_bar(next(panel for panel in axes.ravel() if panel.images), shape, spacing)
    handles = [
        Line2D([], [], color=TUMOUR_COLOUR, label="label of the training image; true border in real ultrasound"),
        Line2D([], [], color=SEGMENTED_COLOUR, linestyle=SEGMENTED_LINE, label="segmented"),
    ]
    dark = {"facecolor": "#333333", "labelcolor": "white", "framealpha": 1.0}
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=SMALL_PT, **dark)
    return figure


def _checked_shape(rows: Sequence[DefectRow]) -> tuple[int, ...]:
    """The size that all images share; refuses doses given twice and real slices that are not the same."""
    planes = {}
    for number, row in enumerate(rows):
        given = [cell.dose for cell in row.cells]
        if len(given) != len(set(given)):
            raise InputError(explain(f"{row.label} has a dose twice", got=given, expected="one cell for each"))
        for cell in row.cells:
            planes[f"{number} training", str(cell.dose)] = plane(cell.training_image, f"training image of {row.label}")
            planes[f"{number} real", str(cell.dose)] = plane(cell.real_image, f"real image of {row.label}")
        first = planes[f"{number} real", str(given[0])] if given else None
        if any(not np.array_equal(planes[f"{number} real", str(dose)], first) for dose in given):
            raise InputError(
                explain(f"the real slice of {row.label} differs between doses", expected="the same slice at all doses")
            )
    return _one_shape(planes)


def _pairs(rows: int, doses: int, tall: float, title: str, data: str) -> tuple[Figure, np.ndarray]:
    """Panels (rows, 2 x doses) with a gap between the pairs; `tall` is the height of an image over its width."""
    width = doses * (2 + _GAP) * (_PANEL_INCHES + 0.06) + 0.5
    height = rows * (_PANEL_INCHES * min(max(tall, 0.4), 2.5) + 0.3) + 1.3
    figure = new_figure(max(width, 6.0), height, title=title, data=data)
    ratios = [1.0, 1.0, _GAP] * doses
    grid = figure.add_gridspec(rows, 3 * doses - 1, width_ratios=ratios[:-1])
    places = [c for c in range(3 * doses - 1) if c % 3 != 2]
    axes = [[figure.add_subplot(grid[r, c]) for c in places] for r in range(rows)]
    return figure, np.array(axes, dtype=object).reshape(rows, 2 * doses)


def _empty(pair: tuple[Axes, Axes]) -> None:
    """Panels of a dose that is not there: the titles above and the label beside them stay."""
    for axes in pair:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)


def _draw_pair(pair: tuple[Axes, Axes], cell: DoseCell, shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
    """The training image with its label, and the real slice with both outlines and Dice."""
    first, second = pair
    grey = {"cmap": "gray", "vmin": -1, "vmax": 1}
    _draw(first, plane(cell.training_image, "training image"), spacing, **grey)
    _outline(first, cell.training_label, shape, TUMOUR_COLOUR)
    _draw(second, plane(cell.real_image, "real image"), spacing, **grey)
    _outline(second, cell.true_mask, shape, TUMOUR_COLOUR)
    _outline(second, cell.predicted_mask, shape, SEGMENTED_COLOUR, linestyles=[SEGMENTED_LINE], linewidths=1.1)
    found = "" if np.any(np.asarray(cell.predicted_mask)) else ", nothing found here"
    second.set_xlabel(f"Dice {cell.dice:.2f}{found}", fontsize=SMALL_PT)
