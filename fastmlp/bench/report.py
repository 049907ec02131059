"""A page about a run that needs nothing but a browser: tables that a click sorts, pictures, and how to repeat it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from fastmlp.bench import tables
from fastmlp.bench.measures import MEASURES
from fastmlp.bench.pictures import pictures
from fastmlp.bench.results import NAME, Results
from fastmlp.bench.tables import Cell
from fastmlp.files.atomic import atomic_writer
from fastmlp.plots.pictures import MissingMatplotlibError, save_both

_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --faint: #666; --line: #ddd; --soft: #f5f5f3; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); margin: 2.5rem auto;
       max-width: 78rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
p, ul { margin: .4rem 0; } .faint { color: var(--faint); } code, pre { font-family: ui-monospace, "DejaVu Sans Mono",
       monospace; font-size: .9em; } pre { background: var(--soft); padding: .7rem 1rem; overflow-x: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .32rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, table.words td, table.words th { text-align: left; }
table.words td { white-space: normal; vertical-align: top; }
thead th { background: var(--soft); position: sticky; top: 0; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit; }
th button::after { content: " \\2195"; color: #aaa; } th[aria-sort=ascending] button::after { content: " \\2191";
       color: inherit; } th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
td.best { font-weight: 700; } td small { color: var(--faint);
       font-weight: 400; padding-left: .4em; } tbody tr:hover { background: var(--soft); }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: var(--faint); }
@media print { th button::after { content: ""; } }
"""
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const th = button.parentElement, table = th.closest("table"), body = table.tBodies[0];
  const column = [...th.parentElement.children].indexOf(th);
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of th.parentElement.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const order = isNaN(x) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  });
  body.append(...rows);
});
"""


def write(results: Results, folder: Path) -> list[Path]:
    """Write the results, the pictures and the page into a folder, which is made where it is not there.

    Returns
    -------
    list of Path
        The files; no pictures where matplotlib is not installed, which the page says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / NAME]
    results.write(files[0])
    drawn: list[tuple[str, str]] = []
    missing = None
    try:
        for name, title, axes in pictures(results):
            saved = save_both(axes, folder / name)
            files += [saved.png, saved.svg]
            drawn.append((title, saved.svg.read_text(encoding="utf-8")))
    except MissingMatplotlibError as e:
        missing = str(e)
    files.append(folder / "report.html")
    with atomic_writer(files[-1]) as file:
        file.write(page(results, drawn, missing).encode())
    return files


def page(results: Results, drawn: Sequence[tuple[str, str]], missing: str | None = None) -> str:
    """Return the page as HTML, with nothing in it that is somewhere else.

    Parameters
    ----------
    results : Results
    drawn : sequence of (str, str)
        Pictures: what each shows, and its SVG.
    missing : str, optional
        Why there are none.
    """
    text = io.StringIO()
    kinds = ", ".join(dict.fromkeys(results.machine.get(k, "") for k in ("processor",)))
    title = "Benchmarks of fastmlp" + (f": a sweep over {results.sweep}" if results.sweep else "")
    text.write(f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n')
    text.write('<meta name="viewport" content="width=device-width, initial-scale=1">\n')
    text.write(f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n")
    text.write(
        f'<p class="faint">{escape(kinds)}; {escape(results.made)}; {results.rounds} rounds, seed {results.seed}</p>\n'
    )
    for block in tables.blocks(results):
        text.write(f'<h2>{escape(block.title)}</h2>\n<p class="faint">{escape(block.about)}</p>\n')
        if block.rows:
            _table(text, block.head, block.rows)
        _list(text, block.sentences)
    text.write(f'<p class="faint">{escape(tables.RULE)} Bold is the fastest, and whoever does not differ from it. ')
    text.write("Point at a figure to see its quartiles, at a fraction to see which limit it is of.</p>\n")
    if said := [*results.failures, *results.notes]:
        text.write("<h2>Not measured, and what else is to be known</h2>\n")
        _list(text, said)
    _pictures(text, drawn, missing)
    head, lines = tables.limits_table(results)
    if lines:
        text.write("<h2>Limits of this machine</h2>\n<p>Measured in the same run; a fraction above is of the larger ")
        text.write("of two times: that of the products, and that of the bytes which have to move.</p>\n")
        _words(text, [tuple(line) for line in lines], head)
    text.write("<h2>What was measured</h2>\n")
    _words(text, [(m.title, m.meaning) for m in MEASURES.values()])
    text.write("<h2>Where</h2>\n")
    _words(text, tables.about(results))
    text.write(f"<h2>How to repeat it</h2>\n<pre>{escape(results.command)}</pre>\n")
    text.write(f"<p>All samples are in <code>{NAME}</code> beside this page. Two of these are compared by</p>\n")
    text.write(f"<pre>fastmlp bench --compare OLD/{NAME} NEW/{NAME} --fail-slower 5%</pre>\n")
    text.write(f"<script>{_SCRIPT}</script>\n</body></html>\n")
    return text.getvalue()


def _list(text: io.StringIO, lines: Sequence[str]) -> None:
    if lines:
        text.write("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>\n")


def _table(text: io.StringIO, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    text.write('<div class="wide"><table class="sortable"><thead><tr>')
    text.write("".join(f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in head))
    text.write("</tr></thead><tbody>\n")
    for cells in rows:
        text.write("<tr>" + "".join(_cell(i, cell) for i, cell in enumerate(cells)) + "</tr>\n")
    text.write("</tbody></table></div>\n")


def _cell(column: int, cell: Cell) -> str:
    value = None if cell.value is None else f"{cell.value:.17g}"
    value = escape(cell.text) if value is None and column == 0 else value
    sorted_by = "" if value is None else f' data-value="{value}"'
    spread = f' title="{escape(cell.said)}"' if cell.said else ""
    about = f"<small>±{escape(cell.about)}</small>" if cell.about else ""
    best = ' class="best"' if cell.best else ""
    return f"<td{sorted_by}{spread}{best}>{escape(cell.text)}{about}</td>"


def _words(text: io.StringIO, rows: Sequence[tuple[str, ...]], head: Sequence[str] = ()) -> None:
    text.write('<div class="wide"><table class="words">')
    if head:
        text.write("<thead><tr>" + "".join(f"<th>{escape(title)}</th>" for title in head) + "</tr></thead>")
    text.write("<tbody>\n")
    for line in rows:
        text.write("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>\n")
    text.write("</tbody></table></div>\n")


def _pictures(text: io.StringIO, drawn: Sequence[tuple[str, str]], missing: str | None) -> None:
    text.write("<h2>Pictures</h2>\n")
    if missing is not None:
        text.write(f"<p>None: {escape(missing)}</p>\n")
    for i, (title, svg) in enumerate(drawn):
        inner = svg[svg.index("<svg") :]
        inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.S)
        # names inside of several pictures on one page must differ
        inner = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>p{i}-", inner)
        text.write(f"<figure>{inner}<figcaption>{escape(title)}</figcaption></figure>\n")
