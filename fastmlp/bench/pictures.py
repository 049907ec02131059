"""Pictures of a run: measurements under the machine's roof, times side by side, and how they grow in a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmlp.bench.costs import Cost
from fastmlp.bench.labels import Place, columns, place, short
from fastmlp.bench.limits import Limits, best_of
from fastmlp.bench.measures import MEASURES, TIMED
from fastmlp.bench.results import Case, Results
from fastmlp.plots.pictures import line_style, panels, plain_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pictures(results: Results) -> Iterator[tuple[str, str, list[Axes]]]:
    """Give each picture of a run: its name, what it shows, and its axes.

    Raises
    ------
    MissingMatplotlibError
        matplotlib is not installed.
    """
    if results.sweep is not None:
        yield f"sweep-{results.sweep}", f"How times grow with {results.sweep}", sweep(results)
    else:
        yield "times", "Medians, and the quartiles around them", times(results)
    for key in results.limits:
        axes = roofline(results, key)
        if axes:
            yield f"roofline-{key.replace(' ', '-')}", f"Every measurement under the roof of the machine: {key}", axes


def roofline(results: Results, key: str) -> list[Axes]:
    """Draw operations a second over operations a byte, of steps and of predictions, below what the machine can do.

    Parameters
    ----------
    results : Results
    key : str
        Device and type, such as ``"cpu float32"``.

    Returns
    -------
    list of Axes
        None where nothing was measured there.
    """
    found = {measure: _points(results, key, measure) for measure in ("train", "predict")}
    if not all(found.values()):
        return []
    limits, labels = best_of(results.limits[key]), _labels(results)
    axes = panels(1, 2, width=4.8, height=4.2)
    whole = [point for points in found.values() for point in points]
    ridges = [limits.product / rate for rate in (limits.copies[0][1], limits.memory)]
    intensities = [p.cost.intensity for p in whole]
    left, right = min(*intensities, *ridges) / 4, max(*intensities, *ridges) * 3
    for ax, (measure, points) in zip(axes, found.items(), strict=True):
        rates = [p.cost.operations / p.seconds / 1e9 for p in points]
        low, high = min(rates) / 2, max(limits.product / 1e9, *rates)
        ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
        ax.set(xlabel="operations a byte", ylabel="GFLOP/s", title=MEASURES[measure].title)
        plain_frame(ax)
        _roof(ax, limits, left, right)
        for label in labels:
            own = [(p.cost.intensity, rate) for p, rate in zip(points, rates, strict=True) if p.case.label == label]
            look = {**line_style(labels.index(label)), "linestyle": "none"}
            if own:  # who runs on another device has no place in this picture
                ax.plot([at for at, _ in own], [rate for _, rate in own], label=label, **look)
        _plain_ticks(ax)
    _legend(axes)
    columns(axes, [partial(_named, points, right / left) for points in found.values()])
    for ax in axes:
        place(ax, _names_of_roofs(ax, limits, left, right))
    return axes


def _roof(ax: Axes, limits: Limits, left: float, right: float) -> None:
    """Draw what products and copies allow."""
    x, top = np.geomspace(left, right, 200), limits.product
    for bandwidth, dashes in ((limits.copies[0][1], "--"), (limits.memory, "-")):
        ax.plot(x, np.minimum(top, bandwidth * x) / 1e9, color="black", linestyle=dashes, linewidth=1)


def _names_of_roofs(ax: Axes, limits: Limits, left: float, right: float) -> list[tuple[str, list[Place]]]:
    """Return the names of the lines of `_roof`, each with places along its line."""
    low, top = ax.get_ylim()[0] * 1e9, limits.product
    flat = np.geomspace(right, max(left, top / limits.memory), 30)
    found = [(f"products, {top / 1e9:.0f} GFLOP/s", [Place(x, top / 1e9, "right", "bottom") for x in flat])]
    for name, rate in (("memory", limits.memory), ("near cache", limits.copies[0][1])):
        at = np.geomspace(max(left, low / rate), max(left, top / rate), 32)[1:-1]
        slope = [float(x) for x in at[np.argsort(np.abs(np.arange(len(at)) - len(at) // 2), kind="stable")]]
        above = [Place(x, rate * x / 1e9, "right", "bottom") for x in slope]
        below = [Place(x, rate * x / 1e9, "left", "top", rows) for rows in (0, 1, 2) for x in slope]
        found.append((f"{name}, {rate / 1e9:.0f} GB/s", above + below))
    near = top / limits.copies[0][1]
    found[-1][1].extend(Place(float(x), top / 1e9, "left", "bottom") for x in np.geomspace(left, max(left, near), 10))
    return found


class _Point(NamedTuple):
    case: Case
    cost: Cost
    seconds: float


def _named(points: Sequence[_Point], span: float, share: float) -> list[tuple[float, str]]:
    """Return where workloads lie, with their names; of those too close to each other the first and the last.

    Parameters
    ----------
    points : sequence of _Point
    span : float
        How many times the left end of the axis its right end is.
    share : float
        Of the length of the axis, within which places are one.
    """
    apart, found = span**share, list[tuple[float, list[str]]]()
    for point in sorted(points, key=lambda p: p.cost.intensity):
        workload = point.case.workload
        name = workload.name if workload.swept is None else workload.name.rpartition(", ")[2]
        if not found or point.cost.intensity > found[-1][0] * apart:
            found.append((point.cost.intensity, []))
        found[-1][1].extend([] if name in found[-1][1] else [name])
    several = "{} … {}".format
    return [(at, several(short(names[0]), short(names[-1])) if len(names) > 1 else names[0]) for at, names in found]


def _points(results: Results, key: str, measure: str) -> list[_Point]:
    """Return what the cases of a device and type cost and take: a step, or the prediction of many rows."""
    found = []
    for case in results.cases:
        times = case.many if measure == "predict" else 1
        cost, summary = case.cost(measure), case.summary(measure)
        if f"{case.device} {case.workload.dtype}" == key and cost is not None and summary is not None:
            found.append(_Point(case, Cost(cost.operations * times, cost.bytes * times), summary.median * times))
    return found


def _labels(results: Results) -> list[str]:
    """Return those who have measured anything, in the order of their marks."""
    return list(dict.fromkeys(case.label for case in results.cases if case.rounds))


def _plain_ticks(ax: Axes) -> None:
    """Write plain numbers along logarithmic axes: 1, 10, 100; where they span little 1, 2, 5; or 1, 2, 3 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() == "log":
            decades = np.log10(high / low)
            within = (1.0,) if decades >= 2.5 else (1.0, 2.0, 5.0) if decades >= 0.7 else tuple(range(1, 10))
            axis.set_major_locator(LogLocator(10, within))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _legend(axes: Sequence[Axes]) -> None:
    """Say below all axes who is who."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    columns = min(4, len(found))
    look = {"frameon": False, "fontsize": "small", "ncols": columns}
    axes[0].figure.legend(list(found.values()), list(found), loc="outside lower center", **look)


def times(results: Results) -> list[Axes]:
    """Draw for each timed measure the medians of all contenders, workload by workload, with their quartiles."""
    workloads, labels = results.workloads, _labels(results)
    rows = len(labels) * len(workloads)
    axes = panels(1, len(TIMED), width=3.5, height=1.0 + 0.16 * rows + 0.2 * len(workloads))
    for ax, measure in zip(axes, TIMED, strict=True):
        for j, label in enumerate(labels):
            found = [
                (i + 0.8 * (j + 0.5) / len(labels) - 0.4, summary)
                for i, workload in enumerate(workloads)
                for case in results.of(workload)
                if case.label == label and (summary := case.summary(measure)) is not None
            ]
            look = {**line_style(j), "linestyle": "none", "elinewidth": 1, "label": label}
            medians = np.array([s.median for _, s in found]) * 1e6
            around = np.array([[s.median - s.low for _, s in found], [s.high - s.median for _, s in found]]) * 1e6
            if found:
                ax.errorbar(medians, [y for y, _ in found], xerr=around, **look)
        ax.set(xscale="log", xlabel="us", title=MEASURES[measure].title, ylim=(len(workloads) - 0.5, -0.5))
        ax.set_yticks(range(len(workloads)), [w.name if ax is axes[0] else "" for w in workloads])
        ax.tick_params(axis="y", length=0)
        plain_frame(ax)
        ax.grid(False, axis="y")
        for i in range(1, len(workloads)):
            ax.axhline(i - 0.5, color="0.85", linewidth=1)
        _plain_ticks(ax)
    _legend(axes)
    return axes


def sweep(results: Results) -> list[Axes]:
    """Draw how a training step, and the prediction of a row, grow over what a sweep changes."""
    axes = panels(1, 2, width=4.4, height=3.6)
    values = [float(workload.swept or 0) for workload in results.workloads]
    for ax, measure in zip(axes, ("train", "predict"), strict=True):
        for i, label in enumerate(_labels(results)):
            found = [
                (float(case.workload.swept or 0), summary)
                for case in results.cases
                if case.label == label and (summary := case.summary(measure)) is not None
            ]
            if found:
                at, look = [value for value, _ in found], line_style(i)
                ax.plot(at, [s.median * 1e6 for _, s in found], label=label, **look)
                low, high = ([getattr(s, side) * 1e6 for _, s in found] for side in ("low", "high"))
                ax.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log", xlabel=results.sweep, ylabel="us", title=MEASURES[measure].title)
        plain_frame(ax)
        _plain_ticks(ax)
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set_xticks([], minor=True)
    _legend(axes)
    return axes
