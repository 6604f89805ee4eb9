"""Rows of image panels: as PNG bytes by Pillow in a few milliseconds, and as a matplotlib figure for the static cell.

Both are drawn from the same `Panel`s, so that what a reader without a kernel sees is what the widget showed.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mhvae_kit.figures.style import LABEL_PT, SMALL_PT, new_figure

Kind = Literal["grey", "difference", "deviation"]
# Anatomy is grey; a signed difference diverges round white; a deviation runs dark to light. All three are read
# alike by colour-blind readers.
_MAPS: dict[Kind, str] = {"grey": "gray", "difference": "RdBu_r", "deviation": "viridis"}
PANEL_PX = 192
_GAP_PX, _TITLE_PX, _BAR_PX, _FOOT_PX, _TEXT_PX = 10, 20, 26, 22, 13
_PAPER, _INK, _EMPTY = (255, 255, 255), (29, 39, 51), (240, 242, 244)


@dataclass(frozen=True)
class Panel:
    """One image of a row.

    Args:
        title: Short text above it.
        values: (H, W) floats; NaN is left blank; None leaves the panel empty, with `title` saying why.
        kind: "grey" (-1 to 1), "difference" (-limit to limit) or "deviation" (0 to limit).
        limit: End of the colour scale, in intensities of [-1, 1]; what lies beyond takes the end colour.
    """

    title: str
    values: np.ndarray | None
    kind: Kind = "grey"
    limit: float = 1.0

    @property
    def range(self) -> tuple[float, float]:
        """Values of the first and the last colour."""
        return (0.0, self.limit) if self.kind == "deviation" else (-self.limit, self.limit)


@dataclass(frozen=True)
class Picture:
    """What an explorer shows for one state.

    Args:
        png: The image file.
        size: Width and height in pixels.
        caption: One line under the picture, plain text.
        alt: What the picture shows, in a sentence, for those who cannot see it.
        beside: HTML beside the picture, "" for none.
    """

    png: bytes
    size: tuple[int, int]
    caption: str
    alt: str
    beside: str = ""


def round_limit(values: np.ndarray) -> float:
    """End of a colour scale for these values: the first of 0.01, 0.02, 0.05, ... 2 that holds 99.5 % of the finite."""
    finite = values[np.isfinite(values)]
    reach = float(np.quantile(np.abs(finite), 0.995)) if finite.size else 0.0
    return next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if reach <= step), 2.0)


@functools.cache
def _colours(kind: Kind) -> np.ndarray:
    """(256, 3) uint8 colours of a kind of panel."""
    return (matplotlib.colormaps[_MAPS[kind]](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of all pictures: matplotlib's own, which has Greek letters and arrows and is there on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _TEXT_PX)


def coloured(panel: Panel) -> np.ndarray:
    """The panel's pixels as uint8 (H, W, 3)."""
    low, high = panel.range
    blank = np.isnan(panel.values)
    index = np.clip((np.where(blank, low, panel.values) - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    return np.where(blank[..., None], np.uint8(_EMPTY), _colours(panel.kind)[index])


def panel_size(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Width and height of a panel on the screen: whole multiples of square pixels, true proportions for others."""
    rows, columns = spacing_mm
    zoom = max(1, PANEL_PX // max(shape))
    return round(shape[1] * zoom * max(1, columns / rows)), round(shape[0] * zoom * max(1, rows / columns))


def strip(
    panels: Sequence[Panel],
    footer: str,
    *,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    record: Mapping[str, Any] | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """Draw panels side by side.

    Args:
        panels: At least one; those with values are of the same (H, W).
        footer: The line under them: what data, which slice, which settings.
        shape: (H, W) of the panels.
        spacing_mm: Pixel size (rows, columns).
        record: Kept in the PNG as JSON under the name mhvae_kit, so that a saved picture says how it was made.
    Returns:
        The PNG file and its width and height, which depend on number and kind of the panels alone.
    """
    width, height = panel_size(shape, spacing_mm)
    bar = _BAR_PX if any(panel.kind != "grey" for panel in panels) else 0
    size = (len(panels) * (width + _GAP_PX) + _GAP_PX, _TITLE_PX + height + bar + _FOOT_PX)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, panel in enumerate(panels):
        left = _GAP_PX + i * (width + _GAP_PX)
        draw.text((left, 3), _fitting(panel.title, width), fill=_INK, font=_font())
        if panel.values is None:
            draw.rectangle((left, _TITLE_PX, left + width - 1, _TITLE_PX + height - 1), fill=_EMPTY)
            continue
        picture = Image.fromarray(coloured(panel)).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(picture, (left, _TITLE_PX))
        if panel.kind != "grey":
            _bar(canvas, draw, panel, left, _TITLE_PX + height, width)
    draw.text((_GAP_PX, size[1] - _FOOT_PX + 2), _fitting(footer, size[0] - 2 * _GAP_PX), fill=_INK, font=_font())
    return to_png(canvas, record), size


def _fitting(text: str, width: int) -> str:
    """The text, cut with an ellipsis where it would not fit."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, width: int) -> None:
    """The colours of a panel with the values of both ends, under it."""
    ramp = np.broadcast_to(_colours(panel.kind)[None], (6, 256, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(ramp)).resize((width, 6)), (left, top + 3))
    low, high = (f"{value:g}" for value in panel.range)
    draw.text((left, top + 9), low, fill=_INK, font=_font())
    draw.text((left + width - _font().getlength(high), top + 9), high, fill=_INK, font=_font())


def to_png(canvas: Image.Image, record: Mapping[str, Any] | None = None) -> bytes:
    """The picture as a PNG file, lightly compressed: a slider waits for it."""
    info = PngInfo()
    if record is not None:
        info.add_text("mhvae_kit", json.dumps(record, sort_keys=True))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=1, pnginfo=info)
    return buffer.getvalue()


def panel_figure(
    rows: Mapping[str, Sequence[Panel]],
    *,
    data: str,
    title: str,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
) -> Figure:
    """The same panels as a matplotlib figure, a row for each state.

    Args:
        rows: By row title, the panels of one state; all rows have equally many.
        data: What the images are of, such as "phantom-demo".
        title: Title of the figure.
        spacing_mm: Pixel size (rows, columns).
    """
    n_columns = max(len(panels) for panels in rows.values())
    shape = next(p.values.shape for panels in rows.values() for p in panels if p.values is not None)
    tall = 1.75 * min(max(shape[0] * spacing_mm[0] / (shape[1] * spacing_mm[1]), 0.4), 2.5)
    size = (max(n_columns * 1.95 + 0.6, 4.2), len(rows) * (tall + 0.35) + 0.5)
    figure = new_figure(*size, title=title, data=data)
    for axes_row, (name, panels) in zip(
        figure.subplots(len(rows), n_columns, squeeze=False), rows.items(), strict=True
    ):
        for axes, panel in zip(axes_row, panels, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_title(panel.title, fontsize=LABEL_PT)
            if panel.values is None:
                continue
            low, high = panel.range
            options = {"cmap": _MAPS[panel.kind], "vmin": low, "vmax": high, "interpolation": "nearest"}
            drawn = axes.imshow(panel.values, aspect=spacing_mm[0] / spacing_mm[1], **options)
            if panel.kind != "grey":
                bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02, ticks=[low, high])
                bar.ax.tick_params(labelsize=SMALL_PT - 1)
        axes_row[0].set_ylabel(name, fontsize=LABEL_PT)
    return figure
