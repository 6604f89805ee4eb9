"""Getting a figure out: into a notebook with alternative text, or into files together with what was plotted."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.files import atomic_path

DPI = 110


def png_bytes(figure: Figure, *, dpi: int = DPI) -> bytes:
    """The figure as PNG. Figures made alike give the same bytes: no date or library version is written."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _visible_text(figure: Figure) -> str:
    """The figure's own title."""
    title = getattr(figure, "_suptitle", None)
    return title.get_text() if title is not None else ""


def show(figure: Figure, *, alt: str) -> None:
    """Display a figure in a notebook, with alternative text for those who cannot see it.

    Args:
        figure: Any figure, made without pyplot, so that it is not shown twice.
        alt: What the picture shows, in a sentence: the reading, not the list of panels. The word phantom is added
            when it is in the figure's title but not here.
    Raises:
        InputError: `alt` is empty.
    Returns nothing. Outside IPython there is nowhere to show it and nothing happens.
    """
    if not isinstance(alt, str) or not alt.strip():
        raise InputError(explain("the figure has no alternative text", got=repr(alt), expected="a sentence"))
    text = " ".join(alt.split())
    if "phantom" in _visible_text(figure).lower() and "phantom" not in text.lower():
        text += " (phantom data)"
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    picture = base64.b64encode(png_bytes(figure)).decode("ascii")
    display({"image/png": picture, "text/plain": text}, metadata={"image/png": {"alt": text}}, raw=True)


def save(figure: Figure, path: str | Path, *, data: pd.DataFrame | None = None, dpi: int = 150) -> Path:
    """Write a figure as PNG and, beside it, what was plotted as CSV of the same name; each whole or not at all.

    The figure keeps the places that its parts have now: what is added to it later moves nothing.

    Args:
        figure: Any figure.
        path: The PNG file; ".png" is added when there is no ending. Folders are made.
        data: What was plotted, one row a point.
        dpi: Pixels per inch.
    Returns:
        The PNG file's path.
    Raises:
        InputError: Another ending than ".png", or `data` that is not a table.
    """
    path = Path(path)
    path = path.with_name(path.name + ".png") if not path.suffix else path
    if path.suffix.lower() != ".png":
        raise InputError(explain("figures are saved as PNG", got=path.name, expected="a name that ends in .png"))
    if data is not None and not isinstance(data, pd.DataFrame):
        raise InputError(explain("data is not a table", got=type(data).__name__, expected="a pandas DataFrame"))
    if data is not None:
        with atomic_path(path.with_suffix(".csv")) as temporary:
            data.to_csv(temporary, index=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure, dpi=dpi))
    figure.set_layout_engine("none")  # shown next: as it was saved, and without the half of the work that layout is
    return path
