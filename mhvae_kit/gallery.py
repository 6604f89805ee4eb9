"""The executed notebooks as a gallery: a static site that opens from the disk, a picture and a question for each.

A gallery is for readers, a report for whoever ran the notebooks: the pages are the report's (no scripts, no network,
alt texts kept, dead widgets dropped), only finished runs are shown, and the first page asks what each one answers.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mhvae_kit.errors import MissingError, explain
from mhvae_kit.files import write_text
from mhvae_kit.report import Card, newest_runs, write_pages
from mhvae_kit.report_style import page
from mhvae_kit.runs import run_status

THUMBNAIL_PX = (560, 360)
_INTRO = (
    "What each notebook asks and one of its figures. Sliders and buttons need Jupyter; here each is followed by a "
    "figure of the same states. Everything that is called phantom was made by a program: no patient is shown."
)
_GRID = "grid-template-columns:repeat(auto-fill,minmax(17rem,1fr))"
_PICTURE = "width:100%;height:11rem;max-height:none;object-fit:contain"


def finished_runs(root: str | Path | None, preset: str) -> list[Path]:
    """The newest finished run of each notebook at a preset, in reading order.

    Raises:
        MissingError: None has finished at that preset.
    """
    done = [folder for folder in newest_runs(root, preset) if run_status(folder) == "done"]
    if not done:
        mend = f"`mhvae runs` says why; run them again: snakemake --cores 2 {preset}"
        raise MissingError(explain(f"no notebook has finished at preset {preset}", mend=mend))
    return done


def write_gallery(run_dirs: Sequence[str | Path], output: str | Path) -> Path:
    """Write one page a run and a first page of thumbnails.

    Args:
        run_dirs: Run folders with an executed notebook, in the order of the gallery; see `finished_runs`.
        output: Folder of the gallery; pages that are there are replaced.
    Returns:
        The path of index.html.
    Raises:
        InputError: No run is given, or two have the same name.
        MissingError: A folder holds no run or no executed notebook.
    """
    cards = write_pages(run_dirs, output)
    index = Path(output) / "index.html"
    items = "".join(_item(card) for card in cards)
    body = f'<h1>mhvae_kit gallery</h1><p>{_INTRO}</p><ul class="cards" style="{_GRID}">{items}</ul>'
    write_text(index, page("mhvae_kit gallery", body))
    return index


def _item(card: Card) -> str:
    """One notebook: its figure, its title and its question."""
    if card.thumbnail:
        alt = html.escape(card.alt, quote=True)
        picture = f'<img src="{thumbnail(card.thumbnail)}" alt="{alt}" style="{_PICTURE}">'
    else:
        picture = '<span class="absent">no figure</span>'
    heading = f'<h2><a href="{html.escape(card.file, quote=True)}">{html.escape(card.title)}</a></h2>'
    return (
        '<li class="card" style="grid-template-columns:1fr;align-content:start">'
        f'<div class="picture">{picture}</div><div>{heading}{card.question}'
        f'<p class="facts">preset {html.escape(card.run.preset)}</p></div></li>'
    )


def thumbnail(data_uri: str) -> str:
    """A data URI's picture made small enough for a first page of many; vector graphics stay as they are."""
    head, _, content = data_uri.partition(",")
    if "svg" in head:
        return data_uri
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    picture.thumbnail(THUMBNAIL_PX)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
