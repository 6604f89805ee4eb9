"""Whether MR lies on the ultrasound: a checkerboard of the two, and the edges of one on the other, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.images import _draw, _spacing
from mhvae_kit.figures.style import LABEL_PT, MODALITY_COLOURS, SMALL_PT, new_figure

SQUARES = 6
EDGE_SHARE = 0.12
"""Share of the fan's pixels that count as edges: the steepest ones."""


@dataclass(frozen=True, kw_only=True)
class RegistrationRow:
    """One MR image against the reference in one slice; all images (H, W), any range.

    Attributes:
        reference: Ultrasound.
        before, after: MR on its grid without and with the transform.
        fov: The fan.
        similarity: Mutual information before and after.
        method: How the transform was found.
    """

    reference: np.ndarray
    before: np.ndarray
    after: np.ndarray
    fov: np.ndarray
    similarity: tuple[float, float]
    method: str


def registration_grid(
    rows: Mapping[str, RegistrationRow],
    *,
    data: str,
    spacing_mm: float | tuple[float, float] = 1.0,
    title: str = "Registration",
) -> Figure:
    """A row an MR image: checkerboard before and after, then MR edges on the ultrasound before and after.

    A registration is good when lines run on across the squares, and when MR edges lie on bright ultrasound lines.

    Args:
        rows: By MR name.
        data: What the images are of, such as "phantom".
        spacing_mm: Pixel size, one number or (rows, columns).
        title: Title of the figure, for example the case.
    Raises:
        InputError: No row, or images of different sizes.
    """
    if not rows:
        raise InputError(explain("there is no registration to show", expected="at least one row"))
    shapes = {np.shape(x) for r in rows.values() for x in (r.reference, r.before, r.after, r.fov)}
    if len(shapes) != 1:
        raise InputError(explain("images in one figure differ in size", got=sorted(shapes), expected="one size"))
    spacing = _spacing(spacing_mm)
    figure = new_figure(9.2, 2.5 * len(rows) + 0.7, title=title, data=data)
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for (name, row), panels in zip(rows.items(), axes, strict=True):
        inside = np.asarray(row.fov) > 0
        reference = _scaled(row.reference, inside)
        for panel, moving, when, score in zip(
            (0, 1), (row.before, row.after), ("before", "after"), row.similarity, strict=True
        ):
            _draw(
                panels[panel], _checkerboard(reference, _scaled(moving, inside)), spacing, cmap="gray", vmin=0, vmax=1
            )
            _draw(panels[panel + 2], _overlay(reference, moving, inside), spacing)
            panels[panel].set_title(f"squares, {when}", fontsize=LABEL_PT)
            panels[panel + 2].set_title(f"edges, {when}", fontsize=LABEL_PT)
            panels[panel].set_xlabel(f"mutual information {score:.3f}", fontsize=SMALL_PT)
        panels[0].set_ylabel(f"{name} ({row.method})", fontsize=LABEL_PT)
    return figure


def _scaled(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values inside the fan to 0..1 between their 1st and 99th percentile, 0 outside."""
    values = np.asarray(image, dtype=float)
    if not inside.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[inside], [1, 99])
    return np.where(inside, np.clip((values - low) / max(high - low, 1e-9), 0, 1), 0.0)


def _checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squares of one image and the other in turn."""
    rows, columns = (np.arange(n) * SQUARES // n for n in first.shape)
    return np.where((rows[:, None] + columns[None, :]) % 2 == 0, first, second)


def _overlay(reference: np.ndarray, moving: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The reference in grey with the steepest places of the other image in colour, (H, W, 3)."""
    from scipy.ndimage import binary_erosion, gaussian_gradient_magnitude

    steep = gaussian_gradient_magnitude(np.asarray(moving, dtype=float), 1.5)
    within = binary_erosion(inside, iterations=4)
    edges = within & (steep > np.quantile(steep[within], 1 - EDGE_SHARE)) if within.any() else within
    colour = np.array([int(MODALITY_COLOURS["t2"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(edges[..., None], 0.65 * colour + 0.35 * reference[..., None], reference[..., None])
