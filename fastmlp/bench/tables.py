"""What was measured in words: figures with their units, a row for each contender, and who is faster than whom."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastmlp.bench.limits import best_of
from fastmlp.bench.measures import LEAST, MEASURES, TIMED
from fastmlp.bench.results import Case, Results, against
from fastmlp.bench.verdicts import CHANCE, FACTOR, FEW, NONE, SLOWER, summarize
from fastmlp.bench.workloads import SCALES, Workload

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_BYTES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
LIMITED = ("train", "predict")
"""Measures beside which stands the fraction of the machine's limit."""
NOTHING = "–"  # noqa: RUF001 - a dash
RULE = (
    f"Figures are medians of samples of {1e3 * LEAST:g} ms or more, of training {1e3 * SCALES['cpu'].trained:g} ms, on "
    f"a GPU {1e3 * SCALES['cuda'].trained:g} ms, ± half of the distance between the quartiles. One is said to "
    f"take so many times as long as another where the medians differ by {FACTOR - 1:.0%} or more and a Mann-Whitney "
    f"test over the samples of all rounds gives p < {CHANCE:g}."
)


def figure(value: float, unit: str = "s") -> str:
    """Return seconds or bytes with three digits and a unit that suits them."""
    steps = _TIMES if unit == "s" else _BYTES
    scale, name = next((step for step in steps if value >= 0.9995 * step[0]), steps[-1])
    return f"{_digits(value / scale)} {name}"


def _digits(number: float) -> str:
    if number == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(number) * 1.0005)))
    return f"{number:.{decimals}f}"


def rate(value: float, unit: str) -> str:
    """Return operations or bytes a second, in billions."""
    return f"{_digits(value / 1e9)} G{unit}/s"


def share(part: float) -> str:
    """Return a fraction in percent."""
    return f"{part:.0%}" if part >= 0.0995 else f"{part:.1%}"


class Cell(NamedTuple):
    """A figure of a table.

    Attributes
    ----------
    text : str
    value : float, optional
        By which rows are sorted; None where there is none.
    about : str
        Half of the distance between the quartiles, in percent of the median.
    said : str
        What else is to be known: the quartiles, or which limit it is.
    best : bool
        Whether it is the fastest, or no difference to that was seen.
    """

    text: str
    value: float | None = None
    about: str = ""
    said: str = ""
    best: bool = False

    @property
    def whole(self) -> str:
        """The figure with its spread."""
        return f"{self.text} ±{self.about}" if self.about else self.text


def measured(results: Results) -> list[str]:
    """Return the measures that anybody has samples of, and those that take many."""
    return [name for name in MEASURES if name in TIMED or any(case.samples(name) for case in results.cases)]


def header(results: Results) -> list[str]:
    """Return the titles of the columns of `row`."""
    titles = ["contender"]
    for name in measured(results):
        title = MEASURES[name].title
        titles += [title, "of the limit"] if name in LIMITED else [title]
    return titles


def row(results: Results, case: Case) -> list[Cell]:
    """Return the figures of a case, under the titles of `header`."""
    cells = [Cell(case.label)]
    for name in measured(results):
        cells.append(_cell(results, case, name))
        if name in LIMITED:
            part = results.share(case, name)
            cells.append(Cell(share(part[0]), part[0], said=f"the limit is {part[1]}") if part else Cell(NOTHING))
    return cells


def _cell(results: Results, case: Case, name: str) -> Cell:
    summary, measure = case.summary(name), MEASURES[name]
    if summary is None:
        return Cell(NOTHING)
    low, high = (figure(value, measure.unit) for value in (summary.low, summary.high))
    best = name in TIMED and _behind(results, case, name) in (None, NONE)
    about = f"{(summary.high - summary.low) / 2 / summary.median:.0%}" if name in TIMED else ""
    said = f"{low} to {high}, {summary.samples} samples"
    return Cell(figure(summary.median, measure.unit), summary.median, about, said, best)


def _behind(results: Results, case: Case, measure: str) -> str | None:
    """Return the verdict on a case against the fastest: None of that itself, and where there are no samples."""
    fastest = results.fastest(case.workload, measure)
    verdict = None if fastest is None or fastest is case else against(fastest, case, measure, FACTOR)
    return None if verdict is None else verdict.word


def sentences(results: Results, workload: Workload) -> list[str]:
    """Return for each timed measure who is the fastest, how many times as long others take, and who does not differ."""
    said = []
    for measure in TIMED:
        fastest = results.fastest(workload, measure)
        others = [c for c in results.of(workload) if c is not fastest and c.samples(measure)]
        if fastest is None or not others:
            continue
        best = summarize(fastest.samples(measure)).median
        slower: list[str] = []
        same: list[str] = []
        few: list[str] = []
        for case in sorted(others, key=lambda c: summarize(c.samples(measure)).median):
            verdict = against(fastest, case, measure, FACTOR)
            assert verdict is not None
            if verdict.word == SLOWER:
                slower.append(f"{case.label} {_digits(verdict.ratio)} times")
            else:
                (few if verdict.word == FEW else same).append(case.label)
        parts = [f"{MEASURES[measure].title}: {fastest.label} takes {figure(best)}"]
        parts += [f"{', '.join(slower)} as long"] if slower else []
        parts += [f"no difference seen to {', '.join(same)}"] if same else []
        parts += [f"too few samples to tell from {', '.join(few)}"] if few else []
        said.append("; ".join(parts))
    return said


class Block(NamedTuple):
    """A table with what it is about, and what follows from it."""

    title: str
    about: str
    head: list[str]
    rows: list[list[Cell]]
    sentences: list[str]


def blocks(results: Results) -> list[Block]:
    """Return the tables of a run: one for each workload; of a sweep one for each measure that grows."""
    if results.sweep is not None:
        about = f"from {results.workloads[0].describe()} to {results.workloads[-1].describe()}"
        return [_growth(results, measure, about) for measure in LIMITED]
    found = []
    for workload in results.workloads:
        rows = [row(results, case) for case in results.of(workload) if case.rounds]
        found.append(Block(workload.name, workload.describe(), header(results), rows, sentences(results, workload)))
    return found


def _growth(results: Results, measure: str, about: str) -> Block:
    assert results.sweep is not None
    labels = list(dict.fromkeys(case.label for case in results.cases if case.rounds))
    rows = []
    for workload in results.workloads:
        cells = {case.label: _cell(results, case, measure) for case in results.of(workload)}
        swept = Cell(str(workload.swept), float(workload.swept or 0))
        rows.append([swept, *(cells.get(label, Cell(NOTHING)) for label in labels)])
    said = crossings(results) if measure == "train" else []
    return Block(MEASURES[measure].title, about, [results.sweep, *labels], rows, said)


def crossings(results: Results) -> list[str]:
    """Return where in a sweep the fastest in training changes, in words."""
    if results.sweep is None:
        return []
    said: list[str] = []
    before = None
    for workload in results.workloads:
        fastest = results.fastest(workload, "train")
        if fastest is None:
            continue
        previous = next((case for case in results.of(workload) if case.contender == before), None)
        if previous is None or not previous.samples("train") or _behind(results, previous, "train") == SLOWER:
            said.append(f"from {results.sweep} {workload.swept} on: {fastest.label} trains the fastest")
            before = fastest.contender
    return said


def limits_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of what the machine can do."""
    rows = []
    for key, found in results.limits.items():
        limits = best_of(found)
        rows.append([key, "product of large matrices", rate(limits.product, "FLOP")])
        for size, speed in limits.copies:
            rows.append([key, f"copy within {figure(size, 'B')}", rate(speed, "B")])
        if limits.launch:
            rows.append([key, "launch of a kernel", figure(limits.launch)])
    return ["device and type", "limit", "the best that was measured"], rows


def about(results: Results) -> list[tuple[str, str]]:
    """Return what the figures depend on, by name."""
    version = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    rows = [*results.machine.items(), ("versions", version)]
    rows += [("commit", results.commit)] if results.commit else []
    return [*rows, ("rounds", str(results.rounds)), ("seed", str(results.seed)), ("made", results.made)]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(results: Results) -> str:
    """Return all as Markdown, for an issue or a page."""
    parts = []
    for block in blocks(results):
        rows = [[f"**{cell.whole}**" if cell.best else cell.whole for cell in cells] for cells in block.rows]
        parts += [f"### {block.title}: {block.about}", markdown_table(block.head, rows) if rows else ""]
        parts.append("\n".join(f"- {said}" for said in block.sentences))
    parts += ["\n".join(f"- {said}" for said in (*results.failures, *results.notes))]
    head, lines = limits_table(results)
    parts += [markdown_table(head, lines) if lines else "", RULE]
    parts += ["\n".join(f"- {name}: {value}" for name, value in about(results)), f"`{results.command}`"]
    return "\n\n".join(part for part in parts if part)


def rendered(results: Results) -> list[RenderableType]:
    """Return all as tables and lines for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table_of(head: Sequence[str], rows: Sequence[Sequence[Text | str]], words: int = 1) -> Table:
        table = Table(box=box.SIMPLE)
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i < words else "right")
        for line in rows:
            table.add_row(*line)
        return table

    parts: list[RenderableType] = []
    for block in blocks(results):
        rows = [[Text(cell.whole, style="bold" if cell.best else "") for cell in cells] for cells in block.rows]
        parts += [Text(f"{block.title}: {block.about}"), table_of(block.head, rows)]
        parts += [Text(f"  {said}") for said in block.sentences]
    parts += [Text(""), *(Text(said) for said in (*results.failures, *results.notes))]
    head, lines = limits_table(results)
    parts += [Text("\nlimits of this machine"), table_of(head, lines, 2)] if lines else []
    return [*parts, Text(RULE)]


def command_line(words: Sequence[str]) -> str:
    """Return what repeats a run, as it is typed."""
    return shlex.join(["fastmlp", "bench", *words])
