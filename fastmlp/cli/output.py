"""What the command line writes and prints about models: predictions and scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.engine.metrics import Metrics
from fastmlp.files.atomic import atomic_writer
from fastmlp.formulas.losses import Loss, Quantile
from fastmlp.model import MLP

D2 = "d2_pinball_score"


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
