"""`MLPClassifier` and `MLPRegressor` beside scikit-learn's: score and time with the same parameters and seeds, in turn.

    python benchmarks/estimators.py            # all, ten minutes or so
    python benchmarks/estimators.py --write    # and a section of RESULTS.md, with its picture
    python benchmarks/estimators.py --tasks "iris;digits" --seeds 2

Both are fitted in turn in one process, seed by seed, after one of each that is not counted; scores are of other rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import unpinned, write_section
from scipy.stats import ttest_rel
from sklearn import datasets, neural_network
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp.bench.tables import markdown_table as table


class Task(NamedTuple):
    """Data to be fitted: what makes (x, y), and the parameters of both estimators."""

    data: Callable[[], tuple[Any, Any]]
    parameters: dict[str, Any]
    kind: str = "MLPClassifier"


def mnist() -> tuple[Any, Any]:
    """Return MNIST's 60,000 and 10,000 digits, float32 in 0..1, which scikit-learn computes in too."""
    (x, y), (x_test, y_test) = fastmlp.datasets.load_mnist()
    return np.concatenate([x, x_test]), np.concatenate([y, y_test])


def wide_table() -> tuple[Any, Any]:
    """Return 100,000 rows of 54 columns in seven classes, the sizes of a well-known forest's."""
    made = {"n_samples": 100_000, "n_features": 54, "n_informative": 20, "n_classes": 7, "random_state": 0}
    x, y = datasets.make_classification(**made)
    return x, y


def houses() -> tuple[Any, Any]:
    """Return 20,000 rows of 8 columns and a value."""
    x, y = datasets.make_friedman1(20_000, n_features=8, noise=1.0, random_state=0)
    return x, y


def shipped(load: Callable[..., Any]) -> Callable[[], tuple[Any, Any]]:
    """Return what loads one of scikit-learn's own tables."""
    return lambda: load(return_X_y=True)


TASKS = {
    "iris, 100 epochs": Task(shipped(datasets.load_iris), {"max_iter": 100, "tol": 0.0, "n_iter_no_change": 1000}),
    "breast cancer": Task(shipped(datasets.load_breast_cancer), {}),
    "digits": Task(shipped(datasets.load_digits), {}),
    "MNIST, 100 units": Task(mnist, {"max_iter": 10}),
    "MNIST, 256-128 units": Task(mnist, {"hidden_layer_sizes": (256, 128), "max_iter": 5}),
    "100,000 x 54": Task(wide_table, {"max_iter": 10}),
    "regression, 20,000 x 8": Task(houses, {"max_iter": 30}, "MLPRegressor"),
}


PICTURE = Path(__file__).parent / "pictures" / "estimators.png"


def draw(lines: list[list[Any]]) -> None:
    """Draw how many times as fast each task is."""
    from matplotlib.figure import Figure

    names, whole, each = ([line[i] for line in lines] for i in (0, -2, -1))
    figure = Figure(figsize=(8, 0.6 * len(lines) + 1.2), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(lines))
    for shift, values, label in ((-0.2, whole, "a fit"), (0.2, each, "an epoch")):
        bars = axes.barh(at + shift, [float(v) for v in values], 0.38, label=label)
        axes.bar_label(bars, values, padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(yticks=at, yticklabels=names, xlabel="times as fast as scikit-learn, equal parameters", xlim=(0, None))
    axes.margins(x=0.08)
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=2)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, seeds: int) -> list[object]:
    """Fit both, seed by seed, and return a line of the table."""
    task = TASKS[name]
    x, y = task.data()
    x, x_test, y, y_test = train_test_split(x, y, test_size=1 / 7, random_state=0)
    scaler = StandardScaler().fit(x) if not name.startswith("MNIST") else None
    x, x_test = (part if scaler is None else scaler.transform(part) for part in (x, x_test))
    scores: dict[str, list[float]] = {"scikit-learn": [], "fastmlp": []}
    times: dict[str, list[float]] = {"scikit-learn": [], "fastmlp": []}
    epochs: dict[str, list[int]] = {"scikit-learn": [], "fastmlp": []}
    for seed in range(-1, seeds):
        for library, module in (("scikit-learn", neural_network), ("fastmlp", fastmlp)):
            estimator = getattr(module, task.kind)(random_state=max(seed, 0), **task.parameters)
            if seed < 0:
                estimator.set_params(max_iter=1).fit(x, y)
                continue
            times[library].append(seconds_of(lambda e=estimator, x=x, y=y: e.fit(x, y)))
            scores[library].append(estimator.score(x_test, y_test))
            epochs[library].append(estimator.n_iter_)
    theirs, ours = scores["scikit-learn"], scores["fastmlp"]
    same = theirs == ours or seeds < 2
    chance = 1.0 if same else ttest_rel(theirs, ours).pvalue
    middle = {library: statistics.median(found) for library, found in times.items()}
    each = {library: middle[library] / statistics.median(epochs[library]) for library in middle}
    return [
        name,
        f"{np.mean(theirs):.4f}",
        f"{np.mean(ours):.4f}",
        f"{chance:.2f}",
        f"{middle['scikit-learn']:.3f}",
        f"{middle['fastmlp']:.3f}",
        f"{middle['scikit-learn'] / middle['fastmlp']:.1f}",
        f"{each['scikit-learn'] / each['fastmlp']:.1f}",
    ]


def latencies() -> list[list[object]]:
    """Return how long `predict_proba` of one row takes, in microseconds."""
    lines = []
    for name, (x, y) in {"digits": datasets.load_digits(return_X_y=True)}.items():
        fitted = [module.MLPClassifier(max_iter=5).fit(x, y) for module in (neural_network, fastmlp)]
        found: list[list[float]] = [[], []]
        for _ in range(15):
            for i, estimator in enumerate(fitted):
                work = estimator.predict_proba
                found[i].append(seconds_of(lambda work=work, x=x: [work(x[:1]) for _ in range(100)]) / 100)
        theirs, ours = (statistics.median(f) * 1e6 for f in found)
        lines.append(
            [f"predict_proba of one row, {name}", f"{theirs:.0f} us", f"{ours:.0f} us", f"{theirs / ours:.1f}"]
        )
    return lines


def searches() -> list[object]:
    """Return how long a search over 24 candidates and 5 folds of the digits takes with two workers."""
    x, y = datasets.load_digits(return_X_y=True)
    candidates = {
        "hidden_layer_sizes": [(50,), (100,), (50, 50)],
        "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
        "learning_rate_init": [1e-3, 1e-2],
    }
    found = []
    for module in (neural_network, fastmlp):
        search = GridSearchCV(module.MLPClassifier(max_iter=30, random_state=0), candidates, cv=5, n_jobs=2)
        found.append((seconds_of(lambda search=search: search.fit(x / 16, y)), search.best_score_))
    (theirs, their_score), (ours, our_score) = found
    scores = f" (scores {their_score:.4f}, {our_score:.4f})"
    return [f"search, 24 x 5, digits{scores}", f"{theirs:.1f} s", f"{ours:.1f} s", f"{theirs / ours:.1f}"]


def main() -> None:
    """Compare, print, and write."""
    unpinned()
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=";".join(TASKS), help="names, or beginnings of names, with ; between them")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    wanted = options.tasks.split(";")
    lines = []
    for name in TASKS:
        if any(name.startswith(start) for start in wanted):
            lines.append(compare(name, options.seeds))
            print(*lines[-1], sep=" | ", flush=True)
    head = ["task", "score, scikit-learn", "score, fastmlp", "p", "seconds", "seconds", "times as fast", "an epoch"]
    text = table(head, lines)
    if wanted == list(TASKS):
        warnings.filterwarnings("ignore")
        text += "\n\n" + table(["", "scikit-learn", "fastmlp", "times as fast"], [*latencies(), searches()])
    print(text)
    if options.write:
        draw(lines)
        text += f"\n\n![How many times as fast]({PICTURE.parent.name}/{PICTURE.name})"
        said = f"Equal parameters, {options.seeds} seeds, in turn; p of a paired t-test of scores; medians of times."
        write_section("Estimators beside scikit-learn's", f"{said}\n\n{text}")


if __name__ == "__main__":
    main()
