"""Figures made of images: cases, syntheses with their differences, and latent levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import FOV_COLOUR, LABEL_PT, SMALL_PT, TUMOUR_COLOUR, level_order, new_figure
from mhvae_kit.metrics import ArrayLike, as_images, as_masks, psnr, ssim

_PANEL_INCHES = 1.75
_DIFFERENCE_MAP = "RdBu_r"


@dataclass(frozen=True, kw_only=True)
class SynthesisRow:
    """One slice in a `synthesis_grid`.

    Args:
        label: What the row is, for example "case 61, slice 12".
        inputs: Observed images by title; (H, W) in [-1, 1], as for all images here.
        target_name: Modality of the target.
        target: The truth.
        predictions: Predictions of the target by title, such as "mean" or "temperature 0.7".
        fov: The fan: drawn as an outline, differences and scores are taken inside it. None takes the full frame.
        scores: Text under each prediction; None computes PSNR and SSIM.
    """

    label: str
    inputs: Mapping[str, ArrayLike]
    target_name: str
    target: ArrayLike
    predictions: Mapping[str, ArrayLike]
    fov: ArrayLike | None = None
    scores: Mapping[str, str] | None = field(default=None)


def plane(image: ArrayLike, name: str) -> np.ndarray:
    """One image as float (H, W) in [-1, 1]: uint8 is converted, leading axes of length 1 are dropped.

    Raises:
        InputError: More than one image, or values outside [-1, 1].
    """
    array = image.detach().cpu() if isinstance(image, torch.Tensor) else np.asarray(image)
    eight_bit = str(array.dtype).endswith("uint8")
    stack = as_images(array, name=name)
    if len(stack) != 1:
        raise InputError(explain(f"{name} is not one image", got=f"{len(stack)} images", expected="(H, W)"))
    values = stack[0] / 255.0 * 2.0 - 1.0 if eight_bit else stack[0]
    if np.abs(values).max() > 1 + 1e-6:
        raise InputError(
            explain(f"{name} is not in [-1, 1]", got=f"values from {values.min():.4g} to {values.max():.4g}")
        )
    return values


def _spacing(spacing_mm: float | tuple[float, float]) -> tuple[float, float]:
    """Pixel size (rows, columns) in mm."""
    values = np.broadcast_to(np.asarray(spacing_mm, dtype=float), (2,))
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(explain("spacing_mm is not usable", got=spacing_mm, expected="one or two numbers above 0"))
    return float(values[0]), float(values[1])


def _draw(axes: Axes, image: np.ndarray, spacing: tuple[float, float], **options: object) -> AxesImage:
    """One image with the probe on top and pixels in their true proportions."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes.imshow(image, origin="upper", aspect=spacing[0] / spacing[1], interpolation="nearest", **options)


def _outline(axes: Axes, mask: ArrayLike | None, shape: tuple[int, ...], colour: str, **look: object) -> None:
    """Contour of a mask; nothing for None, an empty mask or one that fills the frame. `look` goes to contour."""
    if mask is None:
        return
    inside = np.squeeze(np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask)) > 0
    if inside.shape != shape:
        raise InputError(explain("a mask does not fit its image", got=inside.shape, expected=shape))
    if inside.any() and not inside.all():
        axes.contour(inside.astype(float), levels=[0.5], colors=[colour], **{"linewidths": 0.8, **look})


def _scale_bar(axes: Axes, shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
    """A bar of 10 mm (or 1 mm on small images) at the lower left of a panel."""
    length_mm = 10.0 if shape[1] * spacing[1] > 25 else 1.0
    length, left, row = length_mm / spacing[1], 0.04 * shape[1], 0.95 * shape[0]
    axes.plot([left, left + length], [row, row], color="white", linewidth=2, solid_capstyle="butt")
    axes.text(left, row - 0.02 * shape[0], f"{length_mm:g} mm", color="white", fontsize=SMALL_PT - 1, va="bottom")


def _grid(
    rows: int, columns: int, shape: tuple[int, ...], spacing: tuple[float, float], *, title: str, data: str, room: float
) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns panels in the images' proportions; `room` inches of text per row."""
    tall = _PANEL_INCHES * min(max(shape[0] * spacing[0] / (shape[1] * spacing[1]), 0.4), 2.5)
    width = max(columns * (_PANEL_INCHES + 0.08) + 1.0, 4.2)
    figure = new_figure(width, max(rows * (tall + room) + 0.6, 2.4), title=title, data=data)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _grey_bar(figure: Figure, picture: AxesImage, axes: np.ndarray) -> None:
    """The bar of the grey scale, the same for all grey panels of the kit."""
    bar = figure.colorbar(
        picture, ax=list(axes.ravel()), shrink=0.85, pad=0.01, aspect=18 * axes.shape[0], ticks=[-1, 0, 1]
    )
    bar.set_label("intensity", fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)


def case_grid(
    images: Mapping[str, Mapping[str, ArrayLike]],
    *,
    data: str,
    fov: Mapping[str, ArrayLike] | None = None,
    tumour: Mapping[str, ArrayLike] | None = None,
    spacing_mm: float | tuple[float, float] = 1.0,
    title: str = "Cases",
) -> Figure:
    """Images side by side: a row per case or slice, a column per modality, one grey scale from -1 to 1.

    Args:
        images: By row title, then by column title, one image (H, W) in [-1, 1] or uint8. A column that a row lacks
            stays empty.
        data: What the images are of, such as "phantom".
        fov: By row title, the fan, outlined in blue.
        tumour: By row title, the tumour, outlined in yellow.
        spacing_mm: Pixel size, one number or (rows, columns).
        title: Title of the figure.
    Raises:
        InputError: No image, images that differ in size or are not in [-1, 1], masks that do not fit.
    """
    columns = list(dict.fromkeys(c for row in images.values() for c in row))
    if not columns:
        raise InputError(explain("there is no image to show", expected="at least one row with one image"))
    planes = {(r, c): plane(x, f"{c} of {r}") for r, row in images.items() for c, x in row.items()}
    shape, spacing = _one_shape(planes), _spacing(spacing_mm)
    figure, axes = _grid(len(images), len(columns), shape, spacing, title=title, data=data, room=0.15)
    picture = None
    for i, row in enumerate(images):
        for j, column in enumerate(columns):
            if (row, column) not in planes:
                axes[i, j].axis("off")
                continue
            picture = _draw(axes[i, j], planes[row, column], spacing, cmap="gray", vmin=-1, vmax=1)
            _outline(axes[i, j], (fov or {}).get(row), shape, FOV_COLOUR)
            _outline(axes[i, j], (tumour or {}).get(row), shape, TUMOUR_COLOUR)
        axes[i, 0].set_ylabel(row, fontsize=LABEL_PT)
    for j, column in enumerate(columns):
        axes[0, j].set_title(column, fontsize=LABEL_PT)
    _scale_bar(axes[0, 0], shape, spacing)
    _grey_bar(figure, picture, axes)
    return figure


def _one_shape(planes: Mapping[tuple[str, str], np.ndarray]) -> tuple[int, ...]:
    """The size all images share."""
    shapes = {p.shape for p in planes.values()}
    if len(shapes) != 1:
        raise InputError(explain("images in one figure differ in size", got=sorted(shapes), expected="one size"))
    return shapes.pop()


def level_strip(
    images: Mapping[str, ArrayLike] | Mapping[str, Mapping[str, ArrayLike]],
    *,
    data: str,
    spacing_mm: float | tuple[float, float] = 1.0,
    title: str = "Latent levels, coarse to fine",
) -> Figure:
    """One image per latent level, coarsest (z7) on the left, finest (z1) on the right.

    Args:
        images: By level, or by row title and then by level; (H, W) in [-1, 1].
        data: What the images are of, such as "phantom".
        spacing_mm: Pixel size, one number or (rows, columns).
        title: Title of the figure: say what was done at each level.
    """
    nested = all(isinstance(v, Mapping) for v in images.values())
    rows: Mapping[str, Mapping[str, ArrayLike]] = images if nested else {"": images}  # type: ignore[assignment]
    order = level_order(dict.fromkeys(level for row in rows.values() for level in row))
    ordered = {name: {level: row[level] for level in order if level in row} for name, row in rows.items()}
    return case_grid(ordered, data=data, spacing_mm=spacing_mm, title=title)


def synthesis_grid(
    rows: Sequence[SynthesisRow],
    *,
    data: str,
    spacing_mm: float | tuple[float, float] = 1.0,
    difference_limit: float = 0.5,
    title: str = "Synthesis",
) -> Figure:
    """Inputs, target, and each prediction with its difference from the target; scores stand under the predictions.

    Args:
        rows: Slices, all with the same number of inputs and predictions.
        data: What the images are of, such as "phantom".
        spacing_mm: Pixel size, one number or (rows, columns).
        difference_limit: Differences (prediction minus target) are shown from -limit to limit: fixed, so that figures
            can be compared; what lies beyond takes the end colours.
        title: Title of the figure.
    Raises:
        InputError: No row, rows of different make-up, images that differ in size or are not in [-1, 1].
    """
    makeup = {(len(r.inputs), len(r.predictions)) for r in rows}
    if len(makeup) != 1 or min(next(iter(makeup))) < 1:
        raise InputError(
            explain(
                "the rows of a synthesis grid do not fit together",
                got=f"(inputs, predictions) per row: {sorted(makeup)}",
                expected="at least one row, and as many inputs and predictions in each",
            )
        )
    if not difference_limit > 0:
        raise InputError(explain("difference_limit must be above 0", got=difference_limit))
    spacing = _spacing(spacing_mm)
    n_inputs, n_predictions = next(iter(makeup))
    shape = plane(rows[0].target, "target").shape
    size = (len(rows), n_inputs + 1 + 2 * n_predictions)
    figure, axes = _grid(*size, shape, spacing, title=title, data=data, room=0.5)
    for row, panels in zip(rows, axes, strict=True):
        grey, coloured = _synthesis_row(row, panels, shape, spacing, difference_limit)
    _scale_bar(axes[0, 0], shape, spacing)
    bar = figure.colorbar(coloured, ax=list(axes.ravel()), shrink=0.85, pad=0.01, aspect=18 * len(rows), extend="both")
    bar.set_label("prediction - target", fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)
    _grey_bar(figure, grey, axes)
    return figure


def _synthesis_row(
    row: SynthesisRow, panels: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, float], limit: float
) -> tuple[AxesImage, AxesImage]:
    """Draw one row; returns a grey and a difference image for the bars."""
    target = plane(row.target, f"target of {row.label}")
    shown = [(f"input: {name}", plane(x, name)) for name, x in row.inputs.items()]
    shown.append((f"target: {row.target_name}", target))
    guesses = {name: plane(x, name) for name, x in row.predictions.items()}
    if any(x.shape != shape for _, x in shown) or any(x.shape != shape for x in guesses.values()):
        raise InputError(explain(f"images of {row.label} differ in size", expected=f"{shape} for all"))
    fan = np.ones(shape, bool) if row.fov is None else as_masks(row.fov, (1, *shape), name="fov")[0]
    grey = {"cmap": "gray", "vmin": -1, "vmax": 1}
    for (name, image), axes in zip(shown, panels, strict=False):
        picture = _draw(axes, image, spacing, **grey)
        axes.set_title(name, fontsize=LABEL_PT)
        _outline(axes, row.fov, shape, FOV_COLOUR)
    for k, (name, image) in enumerate(guesses.items()):
        first, second = panels[len(shown) + 2 * k : len(shown) + 2 * k + 2]
        _draw(first, image, spacing, **grey)
        _outline(first, row.fov, shape, FOV_COLOUR)
        first.set_title(name, fontsize=LABEL_PT)
        text = _score_text(image, target, fan, row.fov is not None) if row.scores is None else row.scores.get(name, "")
        first.set_xlabel(text, fontsize=SMALL_PT)
        error = np.where(fan, image - target, 0.0)
        coloured = _draw(second, error, spacing, cmap=_DIFFERENCE_MAP, vmin=-limit, vmax=limit)
        second.set_title("difference", fontsize=LABEL_PT)
    panels[0].set_ylabel(row.label, fontsize=LABEL_PT)
    return picture, coloured


def _score_text(image: np.ndarray, target: np.ndarray, fan: np.ndarray, masked: bool) -> str:
    """PSNR and SSIM of a panel, saying where they were taken."""
    decibel = psnr(image, target, data_range=2.0, mask=fan)[0]
    similarity = ssim(image, target, data_range=2.0, mask=fan)[0]
    return f"PSNR {decibel:.1f} dB\nSSIM {similarity:.3f}" + (" in fan" if masked else "")
