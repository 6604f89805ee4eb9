"""Executed notebooks as HTML pages that open without a network: pictures inside, equations as MathML, no scripts.

nbconvert's own pages load two scripts from public servers, are blank where a widget was, and lose the alt text of
figures; so only its conversion of cells is used (its "basic" template), in a page of our own.
"""

from __future__ import annotations

import base64
import html
import json
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import write_text
from mhvae_kit.report_style import PAGE_CSS, page
from mhvae_kit.runs import RunInfo, list_runs

if TYPE_CHECKING:
    import nbformat

_WIDGET = "application/vnd.jupyter.widget-view+json"
_DEAD = (_WIDGET, "application/vnd.jupyter.widget-state+json", "application/javascript", "text/markdown+widget")
_IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
_SCRIPT = re.compile(r"<(script|iframe|object|embed)\b.*?(</\1\s*>|/>)|<link\b[^>]*>", re.IGNORECASE | re.DOTALL)
_IMG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([a-zA-Z-]+)\s*=\s*("[^"]*"|'[^']*')""")
_NO_ALT = "No description has been provided for this image"


@dataclass(frozen=True)
class Card:
    """One notebook on the first page of a report.

    Args:
        run: What is known of the run.
        title: The notebook's first heading.
        file: Its page.
        thumbnail: Data URI of its first figure, "" when it has none.
        alt: What that figure shows.
        question: What the notebook asks, from the table under its title, as HTML; "" when it has none.
    """

    run: RunInfo
    title: str
    file: str
    thumbnail: str
    alt: str
    question: str = ""


def newest_runs(root: str | Path | None, preset: str) -> list[Path]:
    """The newest run of each notebook at a preset, in reading order; a finished one before a newer unfinished one.

    Raises:
        MissingError: Nothing has run at that preset.
    """
    chosen: dict[str, RunInfo] = {}
    for info in list_runs(root):
        older = chosen.get(info.notebook)
        better = older is None or info.status == "done" or older.status != "done"
        if better and info.preset == preset and (info.path / f"{info.notebook}.ipynb").is_file():
            chosen[info.notebook] = info
    if not chosen:
        mend = f"run them first: snakemake --cores 2 {preset}"
        raise MissingError(explain(f"no notebook has run at preset {preset}", mend=mend))
    return [chosen[name].path for name in sorted(chosen)]


def write_report(run_dirs: Sequence[str | Path], output: str | Path) -> Path:
    """Write one page a run and an index of them.

    Args:
        run_dirs: Run folders with an executed notebook, in the order of the index.
        output: Folder of the report; pages that are there are replaced.
    Returns:
        The path of index.html.
    Raises:
        InputError: No run is given, or two have the same name.
        MissingError: A folder holds no run or no executed notebook.
    """
    cards = write_pages(run_dirs, output)
    index = Path(output) / "index.html"
    write_text(index, _index(cards))
    return index


def write_pages(run_dirs: Sequence[str | Path], output: str | Path) -> list[Card]:
    """Write the pages of a report without their index; arguments and errors are those of `write_report`."""
    folders = [Path(folder).resolve() for folder in run_dirs]
    if not folders:
        raise InputError(explain("a report needs at least one run"))
    if len({folder.name for folder in folders}) < len(folders):
        raise InputError(explain("a run is named twice", got=", ".join(folder.name for folder in folders)))
    return [_write_page(folder, Path(output)) for folder in folders]


def _write_page(folder: Path, output: Path) -> Card:
    """Write the page of one run; returns its card."""
    info = next((info for info in list_runs(folder.parent) if info.path.name == folder.name), None)
    notebook_file = folder / f"{info.notebook}.ipynb" if info else None
    if info is None or notebook_file is None or not notebook_file.is_file():
        raise MissingError(explain(f"{folder} holds no executed notebook", mend="`mhvae runs` lists what has run"))
    node = _read(notebook_file)
    title = _title(node) or info.notebook
    thumbnail, alt = _first_figure(node)
    body = f'<p class="back"><a href="index.html">All notebooks</a></p>{_facts(info)}{notebook_html(node, folder)}'
    name = f"{folder.name}.html"
    write_text(output / name, page(title, body))
    return Card(info, title, name, thumbnail, alt, _question(node))


def _read(path: Path) -> nbformat.NotebookNode:
    """Read an executed notebook; DataError when it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has no common error of its own
        raise DataError(explain(f"{path} is not a readable notebook", got=str(error).splitlines()[0])) from error


def notebook_html(node: nbformat.NotebookNode, folder: Path | None = None) -> str:
    """The cells of an executed notebook as an HTML fragment that needs nothing from outside.

    Args:
        node: The notebook.
        folder: Where relative image links of its text point from; None = nowhere.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.environment.filters["markdown2html"] = markdown_to_html
    body, _ = exporter.from_notebook_node(_without_dead_outputs(node))
    body = _SCRIPT.sub("", body)
    return _IMG.sub(lambda match: _image(match.group(0), folder), body)


def markdown_to_html(source: str) -> str:
    """Markdown as HTML, equations as MathML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class MathRenderer(IPythonRenderer):
        """nbconvert's renderer, which would leave equations to a script."""

        def block_math(self, body: str) -> str:
            return equation(body, block=True)

        def inline_math(self, body: str) -> str:
            return equation(body)

        def latex_environment(self, name: str, body: str) -> str:
            return equation(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)

    return MarkdownWithMath(renderer=MathRenderer(escape=False)).render(source)


def equation(latex: str, block: bool = False) -> str:
    """One equation as MathML; its source as code when it cannot be converted, so that nothing gets lost."""
    from latex2mathml.converter import convert

    source = html.unescape(latex).strip()
    try:
        converted = convert(source, display="block" if block else "inline")
    except Exception:  # the converter has no common error; a report must not fail for one formula
        return f"<code>{html.escape(source)}</code>"
    # Screen readers and copying get the source.
    return converted.replace("<math ", f'<math alttext="{html.escape(source, quote=True)}" ', 1)


def _without_dead_outputs(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy whose outputs need no live front end: no widgets, no scripts, no bare descriptions of either."""
    import nbformat

    copy = nbformat.from_dict(json.loads(json.dumps(node)))
    copy.metadata.pop("widgets", None)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _alive(output)) is not None]
    return copy


def _alive(output: Any) -> Any:
    """An output without its dead parts; None when nothing is left to see."""
    data = output.get("data")
    if data is None:
        return output
    was_dead = any(kind in data for kind in _DEAD)
    for kind in _DEAD:
        data.pop(kind, None)
    if was_dead and not set(data) - {"text/plain"}:
        return None
    return output


def _image(tag: str, folder: Path | None) -> str:
    """An <img> with its picture inside and an alt text; one that lies elsewhere is replaced by its alt text."""
    attributes = {name.lower(): value[1:-1] for name, value in _ATTRIBUTE.findall(tag)}
    source, alt = html.unescape(attributes.get("src", "")), html.unescape(attributes.get("alt", "")) or _NO_ALT
    if not source.startswith("data:"):
        path = folder / source if folder is not None and "://" not in source else None
        if path is None or not path.is_file():
            return f'<span class="absent">[image: {html.escape(alt)}]</span>'
        source = _data_uri(mimetypes.guess_type(path.name)[0] or "image/png", path.read_bytes())
    size = "".join(f' {name}="{attributes[name]}"' for name in ("width", "height") if name in attributes)
    return f'<img src="{source}" alt="{html.escape(alt, quote=True)}"{size}>'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _title(node: nbformat.NotebookNode) -> str:
    """The first heading of a notebook, without marks."""
    for cell in node.cells:
        # papermill puts its own heading before a failed notebook
        if cell.cell_type == "markdown" and "papermill-error-cell-tag" not in cell.metadata.get("tags", []):
            found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
            if found:
                return re.sub(r"[*_`$]", "", found.group(1)).strip()
    return ""


def _question(node: nbformat.NotebookNode) -> str:
    """The row "Question" of the table under a notebook's title, as HTML."""
    for cell in node.cells:
        found = re.search(r"^\|\s*\**Question\**\s*\|(.+)\|\s*$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found:
            return markdown_to_html(found.group(1).strip())
    return ""


def _first_figure(node: nbformat.NotebookNode) -> tuple[str, str]:
    """The first picture among the outputs as a data URI, and its alt text; empty when there is none."""
    for cell in node.cells:
        for output in cell.get("outputs", []):
            for kind in _IMAGES:
                content = output.get("data", {}).get(kind)
                if content:
                    text = "".join(content)
                    raw = text.encode() if kind == "image/svg+xml" else base64.b64decode(text)
                    alt = output.get("metadata", {}).get(kind, {}).get("alt") or cell.metadata.get("alt") or _NO_ALT
                    return _data_uri(kind, raw), alt
    return "", ""


def _facts(info: RunInfo) -> str:
    """Status, preset, seed, time and id of a run in one line."""
    facts = [f'<span class="status {info.status}">{info.status}</span>', f"preset {html.escape(info.preset)}"]
    if info.seed is not None:
        facts.append(f"seed {info.seed}")
    if info.seconds is not None:
        facts.append(f"{info.seconds / 60:.1f} min" if info.seconds >= 60 else f"{info.seconds:.0f} s")
    facts.append(f"run {html.escape(info.id)}")
    message = f'<p class="message">{html.escape(info.message)}</p>' if info.message else ""
    return f'<p class="facts">{" · ".join(facts)}</p>{message}'


def _index(cards: Sequence[Card]) -> str:
    """The first page: one card a notebook."""
    items = []
    for card in cards:
        picture = (
            f'<img src="{card.thumbnail}" alt="{html.escape(card.alt, quote=True)}">'
            if card.thumbnail
            else '<span class="absent">no figure</span>'
        )
        heading = f'<h2><a href="{html.escape(card.file)}">{html.escape(card.title)}</a></h2>'
        items.append(
            f'<li class="card"><div class="picture">{picture}</div><div>{heading}{_facts(card.run)}</div></li>'
        )
    done = sum(card.run.status == "done" for card in cards)
    when = max(card.run.time_utc for card in cards)[:16].replace("T", " at ")
    intro = f"<p>{done} of {len(cards)} notebooks done, the last on {html.escape(when)} UTC.</p>"
    return page("mhvae_kit report", f'<h1>mhvae_kit report</h1>{intro}<ul class="cards">{"".join(items)}</ul>')


__all__ = [
    "PAGE_CSS",
    "Card",
    "equation",
    "markdown_to_html",
    "newest_runs",
    "notebook_html",
    "write_pages",
    "write_report",
]
