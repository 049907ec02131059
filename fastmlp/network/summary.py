"""A network in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.arguments import check_callable
from fastmlp.formulas.activations import IDENTITY
from fastmlp.network.spec import NetworkSpec

if TYPE_CHECKING:
    from fastmlp.formulas.losses import Loss


def print_summary(print_fn: Callable[[str], object], lines: Iterator[str]) -> None:
    """Give lines to a function one by one; TypeError where it is none."""
    check_callable("print_fn", print_fn, "a function that takes a line, such as print")
    for line in lines:
        print_fn(line)


def describe(spec: NetworkSpec, dtype: np.dtype[Any], backend: str, seed: int) -> str:
    """Return the arguments of `MLP` that make such a network, those left at their defaults left out."""
    hidden = set(spec.activations[:-1])
    plain = spec.activations[-1] == IDENTITY and len(hidden) == 1
    shown = {
        "activation": hidden.pop() if plain else spec.activations,
        "loss": _loss(spec),
        "dropout": spec.dropout if any(spec.dropout) else None,
        "l2": spec.l2 or None,
        "max_norm": spec.max_norm,
        "initializer": spec.initializer,
        "backend": backend,
        "dtype": dtype.name,
        "seed": seed,
    }
    return f"{spec.units}, {', '.join(f'{k}={v!r}' for k, v in shown.items() if v is not None)}"


def _loss(spec: NetworkSpec) -> Loss | str:
    """Return the name of the loss, or the record where it has parameters of its own."""
    return spec.loss.name if spec.loss == type(spec.loss)() else spec.loss


def summary_lines(spec: NetworkSpec, dtype: np.dtype[Any], backend: str, inputs: str) -> Iterator[str]:
    """Yield a table of the layers, the counts of parameters, the inputs, and what training keeps in memory."""
    row = "{:<6} {:>8} {:>8}  {:<12} {:>8} {:>12}  {}"
    yield row.format("layer", "inputs", "units", "activation", "dropout", "parameters", "").rstrip()
    training = 0
    for layer, (i, o) in enumerate(zip(spec.units[:-1], spec.units[1:], strict=True)):
        note = "frozen" if spec.frozen[layer] else ""
        training += 0 if spec.frozen[layer] else (i + 1) * o
        rate = f"{spec.dropout[layer]:g}" if spec.dropout[layer] else "-"
        yield row.format(layer, i, o, spec.activations[layer], rate, f"{(i + 1) * o:,}", note).rstrip()
    yield f"parameters {spec.parameters:,}, of which {training:,} train"
    yield inputs
    yield f"loss {_loss(spec)}, l2 {spec.l2:g}, max_norm {spec.max_norm}"
    # every layer's input and activation is kept until its gradient is taken: that is backpropagation's price
    kept = dtype.itemsize * (spec.units[0] + 2 * sum(spec.units[1:]))
    yield f"backend {backend}, {dtype.name}; a training step keeps {kept:,} bytes a row"
