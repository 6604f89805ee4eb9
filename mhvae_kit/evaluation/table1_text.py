"""A Table 1 as CSV, Markdown, styled HTML and LaTeX. Every form names the data, so phantom results say phantom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.extras import METRICS, Metric
from mhvae_kit.evaluation.table1 import PUBLISHED, Table1
from mhvae_kit.files import write_text

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

NOT_AVAILABLE = "n/a"
_LONG_COLUMNS = ("data", "block", "row", "observed", "target", "mode", "temperature", "n_samples", "metric", "title")
_LONG_COLUMNS += ("n_patients", "mean", "low", "high", "difference", "p", "p_holm", "best", "tied", "differs")
BLOCKS = {"method": "methods", "reference": "references, not ranked"}

_PUBLISHED_TITLES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
# Decimals of the paper's table.
_PUBLISHED_DIGITS = {"psnr": 2, "ssim": 1, "lpips": 1}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "τ": r"$\tau$",
    "≈": r"$\approx$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "∞": r"$\infty$",
    "†": r"$^\dagger$",
}


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and the marks that each form shows in its own way."""

    text: str
    best: bool = False
    tied: bool = False
    differs: bool = False

    @property
    def marks(self) -> str:
        """The marks that are signs: ≈ tied with the best, † differs from the reference method."""
        return (" ≈" if self.tied else "") + (" †" if self.differs else "")


def grid(
    table: Table1, metrics: Sequence[str] | None = None
) -> tuple[list[str], list[tuple[str, list[tuple[str, list[Cell]]]]]]:
    """The table as text: column titles, then by block its title and its rows, each a name and its cells.

    Args:
        table: From `assemble`.
        metrics: Columns to show, by name ("psnr_fov_db"); None shows all.
    Raises:
        InputError: A metric that the table does not have.
    """
    shown = _shown(table, metrics)
    published = [m for m in _PUBLISHED_TITLES if m in set(table.published["metric"])]
    units = dict(zip(table.published["metric"], table.published["unit"], strict=True))
    titles = ["mode", *table.descriptions, *(m.title for m in shown)]
    titles += [f"{_PUBLISHED_TITLES[m]} ({units[m]}), {PUBLISHED}" for m in published]
    blocks = []
    for block, name in BLOCKS.items():
        part = table.cells[table.cells["block"] == block]
        rows = [(row, _row(table, part[part["row"] == row], row, shown, published)) for row in part["row"].unique()]
        if rows:
            blocks.append((name, rows))
    return titles, blocks


def _shown(table: Table1, metrics: Sequence[str] | None) -> list[Metric]:
    if metrics is None:
        return list(table.metrics)
    known = {m.column: m for m in table.metrics}
    strangers = [name for name in metrics if name not in known]
    if strangers:
        raise InputError(explain(f"the table has no {', '.join(strangers)}", got=", ".join(known)))
    return [known[name] for name in metrics]


def _row(
    table: Table1, part: pd.DataFrame, row: str, metrics: Sequence[Metric], published: Sequence[str]
) -> list[Cell]:
    """Cells of one method or reference, in the order of the titles."""
    by_metric = {cell.metric: cell for cell in part.itertuples()}
    cells = [Cell(str(part["mode"].iloc[0]))]
    cells += [Cell(str(texts.get(row, ""))) for texts in table.descriptions.values()]
    for metric in metrics:
        cell = by_metric.get(metric.column)
        if cell is None:
            cells.append(Cell(NOT_AVAILABLE))
        else:
            text = _interval(cell.mean, cell.low, cell.high, metric.digits)
            cells.append(Cell(text, bool(cell.best), bool(cell.tied), bool(cell.differs)))
    own = table.published[table.published["row"] == row]
    values = dict(zip(own["metric"], own["value"], strict=True))
    return cells + [Cell(f"{values[m]:.{_PUBLISHED_DIGITS[m]}f}" if m in values else "") for m in published]


def _interval(mean: float, low: float, high: float, digits: int) -> str:
    """A mean with its interval, which a single patient does not have."""
    if math.isnan(low) or math.isnan(high):
        return f"{_number(mean, digits)} [one patient]"
    return f"{_number(mean, digits)} [{_number(low, digits)}, {_number(high, digits)}]"


def _number(value: float, digits: int) -> str:
    return ("∞" if value > 0 else "-∞") if math.isinf(value) else f"{value:.{digits}f}"


def to_csv(table: Table1, path: str | Path) -> None:
    """Write the cells in long form, a line per row and metric, whole or not at all.

    The paper's numbers are lines of their own: block and data say so, and they stand in the column "published" while
    "mean" is empty, so that no average over a column can mix them with the others.
    """
    ours = _long(table)
    theirs = pd.DataFrame(
        {
            "block": "published",
            "data": PUBLISHED,
            "row": table.published["row"],
            "observed": table.published["observed"],
            "target": table.published["target"],
            "metric": table.published["metric"] + "_published",
            "title": table.published["metric"].map(_PUBLISHED_TITLES) + f", {PUBLISHED}",
            "published": table.published["value"],
            "unit": table.published["unit"],
            "source": table.published["source"],
        }
    )
    lines = ours.to_dict("records") + theirs.to_dict("records")
    frame = pd.DataFrame(lines, columns=[*_LONG_COLUMNS, "published", "unit", "source"])
    frame = frame.astype({"n_patients": "Int64", "n_samples": "Int64"})
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def _long(table: Table1) -> pd.DataFrame:
    """The cells in long form, with direction, data and the metric's title in every line."""
    titles = {m.column: m.title for m in METRICS}
    keys = {"data": table.data, "observed": table.observed, "target": table.target}
    return table.cells.assign(title=table.cells["metric"].map(titles), **keys)[[*_LONG_COLUMNS]]


def record_csv(tables: Sequence[Table1], run_ids: Mapping[str, str], path: str | Path) -> None:
    """Write the cells of several tables into one file to keep, each with the run that it comes from.

    A cell that stands in several tables (a deterministic row is the same in every mode) is written once, with the
    comparison of the first of them. Numbers of the paper are left out: they have a file of their own.

    Args:
        tables: Of the same data.
        run_ids: By title of the row, method or reference.
        path: Written whole or not at all; means and intervals with five digits.
    Raises:
        InputError: The tables are of different data, or a row has no run.
    """
    data = {table.data for table in tables}
    if len(data) != 1:
        raise InputError(explain("the tables are not of the same data", got=", ".join(sorted(data)) or "no table"))
    frame = pd.concat([_long(table) for table in tables], ignore_index=True)
    without = sorted(set(frame["row"]) - set(run_ids))
    if without:
        raise InputError(explain(f"no run is named for {', '.join(without)}", expected="a run id for every row"))
    frame = frame.drop_duplicates(["row", "observed", "target", "mode", "metric"])
    frame.insert(1, "run", frame["row"].map(run_ids))
    frame = frame.astype({"n_patients": "Int64", "n_samples": "Int64"})
    write_text(path, frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))


def patients_to_csv(table: Table1, path: str | Path) -> None:
    """Write the values per patient, with the name of the data in every line, whole or not at all."""
    frame = table.patients.drop(columns="data", errors="ignore")
    frame.insert(0, "data", table.data)
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def to_markdown(table: Table1, metrics: Sequence[str] | None = None) -> str:
    """The table as Markdown, title above and notes below it; bold marks the best mean."""
    titles, blocks = grid(table, metrics)
    lines = [f"**{table.title}**", "", _pipes(["method", *titles]), _pipes(["---"] * (len(titles) + 1))]
    for number, (name, rows) in enumerate(blocks):
        if number:
            lines.append(_pipes([f"*{name}*", *[""] * len(titles)]))
        lines += [_pipes([_plain(row), *(_markdown(cell) for cell in cells)]) for row, cells in rows]
    return "\n".join([*lines, "", *(f"* {note}" for note in table.notes)]) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + c if c in "*_`<" else c for c in text)


def _markdown(cell: Cell) -> str:
    text = _plain(cell.text)
    return (f"**{text}**" if cell.best else text) + cell.marks


def to_styler(table: Table1, metrics: Sequence[str] | None = None) -> Styler:
    """The table for a notebook: a pandas Styler with caption, bold best means, and the notes below the title."""
    titles, blocks = grid(table, metrics)
    index = pd.MultiIndex.from_tuples([(name, row) for name, rows in blocks for row, _ in rows])
    cells = [cells for _, rows in blocks for _, cells in rows]
    text = pd.DataFrame([[c.text + c.marks for c in row] for row in cells], index=index, columns=titles)
    bold = pd.DataFrame([["font-weight: bold" if c.best else "" for c in row] for row in cells], index, titles)
    rules = [
        {"selector": "caption", "props": "text-align: left; font-weight: bold"},
        {"selector": "td, th", "props": "text-align: left; white-space: nowrap"},
        {"selector": "th.col_heading", "props": "white-space: normal"},
    ]
    # A fixed name instead of a random one: the same table gives the same bytes.
    style = text.style.set_uuid("table1").format(escape="html").format_index(escape="html", axis=0)
    style = style.format_index(escape="html", axis=1).apply(lambda _: bold, axis=None).set_table_styles(rules)
    return style.set_caption(_escape_html(table.title))


def notes_to_html(table: Table1) -> str:
    """The notes as an HTML list, to stand below `to_styler`."""
    return "<ul>" + "".join(f"<li>{_escape_html(note)}</li>" for note in table.notes) + "</ul>"


def _escape_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_latex(table: Table1, metrics: Sequence[str] | None = None, *, label: str = "tab:table1") -> str:
    """The table as a LaTeX float; the document needs the packages booktabs and graphicx."""
    titles, blocks = grid(table, metrics)
    width = len(titles) + 1
    lines = [
        "% \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex(table.title)}.}}",
        f"\\label{{{label}}}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * width}}}",
        "\\toprule",
        " & ".join(latex(t) for t in ["method", *titles]) + " \\\\",
        "\\midrule",
    ]
    for number, (name, rows) in enumerate(blocks):
        if number:
            lines += ["\\midrule", f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{latex(name)}}}}} \\\\"]
        # A row that begins with "[" would be read as the length of the line break before it.
        lines += ["{}" + " & ".join([latex(row), *(_latex_cell(c) for c in cells)]) + " \\\\" for row, cells in rows]
    lines += ["\\bottomrule", "\\end{tabular}}"]
    lines += [f"\\par\\raggedright\\footnotesize {latex(' '.join(table.notes))}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = latex(cell.text)
    return (f"\\textbf{{{text}}}" if cell.best else text) + latex(cell.marks)


def latex(text: str) -> str:
    """Text with every character that LaTeX would read as a command replaced."""
    return "".join(_LATEX.get(character, character) for character in text)
