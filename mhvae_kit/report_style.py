"""How a report looks: one page frame and one style sheet, both inside every page."""

from __future__ import annotations

import html
from functools import cache

PAGE_CSS = """
:root { --ink: #1d2733; --soft: #5a6775; --line: #d9dfe5; --paper: #ffffff; --ground: #f5f7f9; --link: #0b5cad; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem; background: var(--paper); min-height: 100vh; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus, p a { text-decoration: underline; }
.anchor-link { display: none; }
img { max-width: 100%; height: auto; }
math[display="block"] { margin: 1rem 0; }
code, pre { font: .86rem/1.5 ui-monospace, "DejaVu Sans Mono", Consolas, monospace; }
pre { margin: 0; overflow-x: auto; white-space: pre; }
.facts, .back, .message { color: var(--soft); font-size: .9rem; }
.message { color: #9a2a1d; }
.status { font-weight: 600; }
.status.done { color: #1b7a3d; }
.status.running { color: var(--link); }
.status.failed, .status.killed, .status.timeout { color: #9a2a1d; }
.absent { color: var(--soft); font-style: italic; }
.cards { list-style: none; padding: 0; display: grid; gap: 1rem; }
.card { display: grid; grid-template-columns: 14rem 1fr; gap: 1.25rem; padding: 1rem; align-items: center;
  border: 1px solid var(--line); border-radius: 6px; }
.card h2 { margin: 0 0 .3rem; }
.card .picture { text-align: center; }
.card .picture img { max-height: 9rem; }
.cell { margin: .9rem 0; }
.input_area, .input_area .highlight { background: var(--ground); border-radius: 4px; }
.input_area pre { padding: .6rem .8rem; }
.output_area { margin: .5rem 0; overflow-x: auto; }
.output_text pre, .output_stream pre { padding: .2rem .8rem; white-space: pre-wrap; }
.output_stderr { background: #fdf1ef; }
.prompt { display: none; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.text_cell_render th, .text_cell_render td { text-align: left; vertical-align: top; }
blockquote { margin: .8rem 0; padding: .1rem 1rem; border-left: 3px solid var(--line); color: var(--soft); }
.ansi-red-fg, .ansi-red-intense-fg { color: #9a2a1d; }
.ansi-green-fg, .ansi-green-intense-fg { color: #1b7a3d; }
.ansi-blue-fg, .ansi-blue-intense-fg, .ansi-cyan-fg { color: var(--link); }
.ansi-bold { font-weight: 600; }
@media (max-width: 40rem) { .card { grid-template-columns: 1fr; } main { padding: 1rem; } }
@media print { body, main { background: none; } .back { display: none; } }
"""


@cache
def _code_css() -> str:
    """Colours of highlighted code."""
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(style="friendly", nobackground=True).get_style_defs(".highlight")


def page(title: str, body: str) -> str:
    """A whole HTML page round a body, with all its style inside."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{PAGE_CSS}{_code_css()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
