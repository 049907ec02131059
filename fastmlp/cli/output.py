"""What the command line writes and prints about models and machines: predictions, scores, the environment."""

from __future__ import annotations

import csv
import io
import itertools
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp._version import __version__
from fastmlp.backends.registry import available_backends, choose_backend
from fastmlp.engine.metrics import Metrics
from fastmlp.files.atomic import atomic_writer
from fastmlp.formulas.losses import Loss, Quantile
from fastmlp.model import MLP

PACKAGES = ("numpy", "scipy", "numba", "scipy-openblas32", "safetensors", "scikit-learn", "matplotlib")
D2 = "d2_pinball_score"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def write_predictions(path: str, model: MLP, predicted: NDArray[Any], chances: NDArray[Any] | None) -> None:
    """Write predictions, with classes by name where the model knows names, in one piece.

    Parameters
    ----------
    path : str
        ``.csv``: a column ``prediction`` (several outputs: ``prediction_NAME``; several quantiles:
        ``prediction_QUANTILE``, after ``TARGET_`` where there are several targets), then with probabilities
        ``probability_NAME``.  ``.npz``: arrays ``prediction`` and ``probability``.  ``.npy``: one array, the
        probabilities where there are any.
    predicted : (n,) or (n, K) array
    chances : (n, K) array, optional
        Probabilities.
    """
    names, kind = model.class_names, path.lower().rpartition(".")[2]
    if names is not None and predicted.ndim == 1 and predicted.dtype.kind == "i":
        predicted = np.array(names)[predicted]
    with atomic_writer(path) as file:
        if kind == "npy":
            np.save(file, predicted if chances is None else chances, allow_pickle=False)
        elif kind == "npz":
            arrays: dict[str, Any] = {"prediction": predicted}
            arrays |= {} if chances is None else {"probability": chances}
            np.savez(file, **arrays)  # older releases of NumPy would write allow_pickle as one more array
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            outputs = _outputs_of(model.spec.loss, predicted.shape[1]) if predicted.ndim == 2 else []
            header = [f"prediction_{name}" for name in names or outputs] if outputs else ["prediction"]
            columns = [predicted] if predicted.ndim == 1 else list(predicted.T)
            if chances is not None:
                columns += list(chances.T)
                # a single sigmoid output gives the chance of the second class
                of = (names or ("0", "1"))[1:] if chances.shape[1] == 1 else names or outputs
                of = of or tuple(map(str, range(chances.shape[1])))
                header += [f"probability_{name}" for name in of]
            writer.writerow(header)
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
            text.detach()


def _outputs_of(loss: Loss, count: int) -> list[str]:
    """Return the names of several outputs."""
    if not isinstance(loss, Quantile) or loss.outputs_per_target == 1:
        return [str(i) for i in range(count)]
    targets = count // loss.outputs_per_target
    return [f"{target}_{q:g}" if targets > 1 else f"{q:g}" for target in range(targets) for q in loss.parameters]


def extra_figures(model: MLP) -> Metrics:
    """Return the metrics to show beside the loss where there is no accuracy: R2.

    Of quantiles D2, the mean of scikit-learn's `d2_pinball_score` over them, and for each the share of the targets that
    are below what is predicted, which is the quantile itself where that is right.
    """
    loss = model.spec.loss
    if not isinstance(loss, Quantile):
        return () if loss.has_accuracy else ("r2_score",)
    levels = loss.parameters * (model.spec.units[-1] // loss.outputs_per_target)

    def columns(y: NDArray[Any], found: NDArray[Any]) -> list[tuple[float, NDArray[Any], NDArray[Any]]]:
        return list(zip(levels, y.reshape(len(y), -1).T, found.reshape(len(found), -1).T, strict=True))

    def d2(y: NDArray[Any], found: NDArray[Any]) -> float:
        from sklearn.metrics import d2_pinball_score

        return float(np.mean([d2_pinball_score(t, z, alpha=q) for q, t, z in columns(y, found)]))

    def below(level: float) -> Callable[[NDArray[Any], NDArray[Any]], float]:
        return lambda y, found: float(np.mean([(t < z).mean() for q, t, z in columns(y, found) if q == level]))

    return {D2: d2, **{f"below_{q:g}": below(q) for q in loss.parameters}}


def class_scores(model: MLP, x: NDArray[Any], y: NDArray[Any]) -> list[tuple[str, ...]]:
    """Return a row of text for each class: name, precision, recall, F1, and how many rows there are of it."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted, true = model.predict(x), y
    if predicted.ndim == 1 and true.ndim == 2:
        true = true.argmax(axis=1) if model.spec.loss.takes_labels else true[:, 0]
    if true.dtype.kind == "f":
        true = (true > 0.5).astype(np.int64)
    count = model.spec.units[-1] if predicted.ndim == 2 else max(model.spec.units[-1], 2)
    labels = list(range(count))
    scores = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0.0)
    names = model.class_names or [str(label) for label in labels]
    return [
        (name, f"{p:.4f}", f"{r:.4f}", f"{f:.4f}", f"{int(n):,}")
        for name, p, r, f, n in zip(names, *scores, strict=True)
    ]


def environment() -> dict[str, list[tuple[str, str]]]:
    """Return, under a title each, names and what is to be said about them."""
    found = {"versions": _versions(), "threads": _threads(), "backends": _backends()}
    return {**found, **_products()} if available_backends()["numba"].available else found


def _products() -> dict[str, list[tuple[str, str]]]:
    """Return, for each type, what was measured of products on this machine: the fastest form of each shape."""
    from fastmlp.backends.cpu import calibration, forms
    from fastmlp.kernels.cpu import codes

    found = {}
    for dtype in map(np.dtype, ("float32", "float64")):
        table = calibration.known(dtype)
        rows = [] if table else [("not measured", "there is no choice here, or no folder to keep it in")]
        if forms.Forms().lacks(dtype):
            rows = [("not measured yet", "fastmlp warmup does it; until then products go by a rule")]
        for product, form in itertools.product(range(len(codes.PRODUCTS)), codes.FORMS):
            shapes = [m for m in (table.measured if table else []) if m.product == product]
            fastest = [m for m in shapes if m.seconds[codes.FORMS.index(form)] == min(m.seconds)]
            if shapes:
                sizes = " ".join(f"{m.rows}x{m.inputs}x{m.outputs}" for m in sorted(fastest))
                count = f"fastest in {len(fastest)} of {len(shapes)}"
                rows.append((f"{codes.PRODUCTS[product]}, {form}", f"{count}: {sizes}" if fastest else count))
        found[f"products, {dtype} (rows x inputs x outputs)"] = rows
    return found


def _versions() -> list[tuple[str, str]]:
    rows = [("fastmlp", __version__), ("python", f"{platform.python_version()}, {platform.platform()}")]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            cure = ': pip install "fastmlp[plot]"' if name == "matplotlib" else ""
            rows.append((name, f"not installed{cure}"))
    cupy = [d for d in ("cupy", "cupy-cuda12x", "cupy-cuda13x") if _installed(d)]
    rows.append(("cupy", f"{metadata.version(cupy[0])} ({cupy[0]})" if cupy else "not installed"))
    return rows


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _threads() -> list[tuple[str, str]]:
    import scipy.linalg  # noqa: F401 - loads SciPy's own BLAS
    import threadpoolctl

    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    rows = [("processors", f"{usable} usable of {os.cpu_count()}")]
    # NumPy and SciPy each bring a library of their own
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            kind = " ".join(str(pool[k]) for k in ("internal_api", "version", "architecture") if pool.get(k))
            whose = [name for name in ("NumPy", "SciPy") if f"{name.lower()}.libs" in pool["filepath"].lower()]
            count = pool["num_threads"]
            name = f"BLAS of {whose[0]}" if whose else "BLAS"
            rows.append((name, f"{kind}, {count} thread{'s' * (count != 1)}"))
    return rows + [(name, os.environ[name]) for name in THREAD_VARIABLES if name in os.environ]


def _backends() -> list[tuple[str, str]]:
    rows = []
    for name, found in available_backends().items():
        state = "can run" if found.available else "cannot run"
        rows.append((name, f"{state}: {found.reason}" if found.reason else state))
    chosen, why = choose_backend()
    return [*rows, ("auto", f"is {chosen} ({why})")]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, its columns in line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        # columns of numbers line up on the right; the others, the first and those without a title, on the left
        cells = [
            cell.rjust(width) if i and header[i] else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
