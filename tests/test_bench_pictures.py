"""The roofline of `fastmlp bench`: its names cover no marker and no other name, whatever was measured."""

from dataclasses import replace

import numpy as np
import pytest
from bench_runs import SMALL, made

from fastmlp.bench import labels, pictures
from fastmlp.bench.costs import Cost
from fastmlp.bench.limits import best_of
from fastmlp.bench.workloads import FIRST, WORKLOADS, sweep
from fastmlp.plots.pictures import panels

MACHINES = {
    "server": {"product": [180e9], "copies": [[1 << 18, [150e9]], [1 << 27, [18e9]]], "launch": [0.0]},
    "flat": {"product": [20e9], "copies": [[1 << 18, [31e9]], [1 << 27, [30e9]]], "launch": [0.0]},
}
WHO = ("numpy", "numba", "torch", "jax", "sklearn", "torch-compiled")
SETS = {
    "one": [WORKLOADS["viblo"]],
    "first": [WORKLOADS[name] for name in FIRST],
    "all": list(WORKLOADS.values()),
    "far apart": [replace(SMALL, name="a network with a long name.safetensors", batch=1), WORKLOADS["big"]],
    **{what: sweep(WORKLOADS["viblo"], what, 16) for what in ("batch", "width", "depth", "threads")},
}


def drawn(which, machine, most=0.95):
    """Draw a roofline of times that are drawn by chance, up to so many times what the machine can do."""
    swept = which if which in ("batch", "width", "depth", "threads") else None
    found = made(dict.fromkeys(WHO, 1.0), SETS[which], swept)
    found.limits = {"cpu float32": [MACHINES[machine]]}
    rng, limits = np.random.default_rng(len(which)), best_of([MACHINES[machine]])
    for case in found.cases:
        share = rng.uniform(0.02, most)
        for measure, rows in (("train", 1), ("predict", case.many)):
            cost = case.cost(measure)
            seconds = limits.least_seconds(Cost(cost.operations * rows, cost.bytes * rows))[0] / rows / share
            case.rounds[0][measure] = case.rounds[1][measure] = [seconds]
    return pictures.roofline(found, "cpu float32")


def covered(ax):
    """Return the names of an axes that cover a marker or another name, or are not all inside."""
    there, frame = labels.boxes(ax), ax.get_window_extent().padded(1)
    names = {text.get_text(): text.get_window_extent() for text in ax.texts}
    inside = {name: frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for name, box in names.items()}
    return [name for name, box in names.items() if box.count_overlaps(there) != 1 or not inside[name]]


BY_DEFAULT = ("first", "all")
CASES = [pytest.param(which, "server", marks=() if which in BY_DEFAULT else pytest.mark.thorough) for which in SETS]
CASES += [("first", "flat"), pytest.param("batch", "flat", marks=pytest.mark.thorough)]


@pytest.mark.parametrize(("which", "machine"), CASES)
def test_no_name_covers_anything(which, machine):
    axes = drawn(which, machine)
    for dpi in (72, 150):  # of an SVG, and of a PNG
        axes[0].figure.set_dpi(dpi)
        axes[0].figure.draw_without_rendering()
        for ax in axes:
            assert covered(ax) == []
            assert len(ax.texts) >= 4


def test_what_is_faster_than_the_machine_is_covered_by_nothing_either():
    axes = drawn("first", "server", most=3.0)
    axes[0].figure.draw_without_rendering()
    assert [covered(ax) for ax in axes] == [[], []]


def test_a_legend_names_those_alone_whom_the_picture_shows():
    found = made({"numba": 1.0, "torch": 1.0, "cupy": 1.0}, [SMALL])
    for case in found.cases:
        case.device = "cuda" if case.contender == "cupy" else "cpu"
    found.limits = {"cpu float32": [MACHINES["flat"]], "cuda float32": [MACHINES["server"]]}
    for key, count in (("cpu float32", 2), ("cuda float32", 1)):
        (legend,) = pictures.roofline(found, key)[0].figure.legends
        assert len(legend.get_texts()) == count


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [
        (70, 120, ["70", "80", "90", "100"]),
        (40, 1500, ["50", "100", "200", "500", "1000"]),
        (1, 5000, ["1", "10", "100", "1000"]),
    ],
)
def test_numbers_along_an_axis_are_as_many_as_it_needs(low, high, named):
    (ax,) = panels(1, 1, width=5, height=2)
    ax.set(xscale="log", xlim=(low, high))
    pictures._plain_ticks(ax)
    ax.figure.draw_without_rendering()
    shown = [t.get_text() for t, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True) if low <= at <= high]
    assert [text for text in shown if text in named] == named and "" not in shown


def test_a_name_that_covers_a_marker_is_seen():
    (ax, _) = drawn("one", "server")
    x, y = next(line for line in ax.lines if line.get_marker() == "o").get_xydata()[0]
    ax.text(x, y, "here")
    ax.text(*ax.texts[0].get_position(), "there", transform=ax.texts[0].get_transform(), rotation=90, va="top")
    assert {"here", "there", "viblo"} <= set(covered(ax))


def test_every_workload_is_named_above_its_place():
    step, _ = drawn("first", "server")
    cases = made({"numpy": 1.0}, SETS["first"]).cases
    at = {case.workload.name: case.cost("train").intensity for case in cases}
    named = " ".join(text.get_text() for text in step.texts).partition(" products")[0].replace("… ", "")
    assert named.split() == sorted(at, key=lambda name: at[name])
    lead = next(line for line in step.lines if line.get_zorder() == 0)
    assert lead.get_xdata()[0] == pytest.approx(min(at.values()))


def test_positions_are_apart_in_order_within_limits_and_move_as_little_as_can_be():
    found = labels.spread([1.0, 1.0, 1.0, 9.0], 2.0, 0.0, 10.0)
    np.testing.assert_allclose(found, [0.0, 2.0, 4.0, 9.0])
    np.testing.assert_allclose(labels.spread([5.0, 5.0], 2.0, 0.0, 10.0), [4.0, 6.0])
    np.testing.assert_allclose(labels.spread([9.9, 9.9], 2.0, 0.0, 10.0), [8.0, 10.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        given = np.sort(rng.uniform(0, 10, 5))
        found = labels.spread(given, 2.0, 0.0, 10.0)
        assert found[0] >= -1e-9 and found[-1] <= 10 + 1e-9 and (np.diff(found) >= 2.0 - 1e-9).all()
        # no grid of other positions that are allowed is nearer
        moved = found[None] + rng.normal(0, 0.3, (2000, 5))
        allowed = (moved[:, 0] >= 0) & (moved[:, -1] <= 10) & (np.diff(moved, axis=1) >= 2.0).all(axis=1)
        assert (((moved[allowed] - given) ** 2).sum(1) >= ((found - given) ** 2).sum() - 1e-6).all()


def test_more_names_than_there_is_room_for_are_drawn_together():
    many = [replace(SMALL, name=f"w{i}", units=(4 + i**2, 3 + i**2, 2), batch=1 + i) for i in range(60)]
    found = made({"numpy": 1e-3}, many)
    (step, prediction) = pictures.roofline(found, "cpu float32")
    assert [covered(ax) for ax in (step, prediction)] == [[], []]
    named = [text for ax in (step, prediction) for text in ax.texts if text.get_rotation()]
    assert any("…" in text.get_text() for text in named) and 10 < len(named) < 120


def test_a_long_name_is_cut():
    assert labels.short("a" * 24) == "a" * 24
    assert labels.short("a" * 25) == "a" * 23 + "…"
