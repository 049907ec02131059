"""A user's own network on every backend from the same numbers: where they part, and whether by rounding or a bug."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp._version import __version__
from fastmlp.arguments import check_count, check_sequence
from fastmlp.backends.base import Backend
from fastmlp.backends.choosing import chosen_backend
from fastmlp.backends.cuda.blas import rounds_to_tf32
from fastmlp.backends.data import HostData
from fastmlp.backends.registry import available_backends
from fastmlp.doctor.reference import DOUBLE, Bounded, Reference, buffers
from fastmlp.engine.batches import batch_of, check_batch_size, inverse_totals
from fastmlp.engine.sessions import SessionPool
from fastmlp.errors import DataError
from fastmlp.floating import in_units_of, quiet
from fastmlp.formulas.losses import MeanSquaredError
from fastmlp.formulas.optimizers import Optimizer, StepScalars, choose_optimizer
from fastmlp.model import MLP
from fastmlp.network.layout import layout_of
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import NetworkSpec
from fastmlp.network.state import TrainState
from fastmlp.network.summary import describe

if TYPE_CHECKING:
    from fastmlp._typing import Array

__all__ = ["Parity", "ParityRow", "parity"]

ROWS = 256
"""Rows that are looked at together, at most; a batch may be larger."""
ROOM = 2.0**20
"""How many times larger a number may be on the way to another: a square that an average takes a thousandth of."""


@dataclass(frozen=True)
class ParityRow:
    """One thing that each backend computed.

    Attributes
    ----------
    step : int or None
        Of training, counted from 1; None for what is computed of the weights as they are.
    layer : int or None
        None for the loss.
    what : str
        Such as ``"activations"`` or ``"gradient of the weights"``.
    off : dict from str to float
        For each backend, the largest difference from the reference in units of what rounding allows.
    drifted : dict from str to float
        For each backend whose steps went on by themselves, the largest difference of a weight as a part of the
        layer's largest weight; rounding grows there.
    """

    step: int | None
    layer: int | None
    what: str
    off: dict[str, float]
    drifted: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        where = "" if self.layer is None else f" of layer {self.layer}"
        return f"the {self.what}{where}" + ("" if self.step is None else f" after step {self.step}")


@dataclass(frozen=True)
class Parity:
    """What `parity` found.

    Attributes
    ----------
    network : str
    dtype : numpy.dtype
    backends : tuple of str
        Those compared.
    skipped : dict from str to str
        Those that cannot run here, and why.
    rows : list of ParityRow
        In the order in which they are computed: activations upwards, the loss, gradients downwards, steps.
    """

    network: str
    dtype: np.dtype[Any]
    backends: tuple[str, ...]
    skipped: dict[str, str]
    rows: list[ParityRow]

    @property
    def agree(self) -> bool:
        """Whether all differences are rounding."""
        return all(self.first(name) is None for name in self.backends)

    def first(self, backend: str) -> ParityRow | None:
        """Return the first row in which a backend parts from the reference by more than rounding; None where none."""
        return next((row for row in self.rows if not row.off[backend] <= 1), None)

    def largest(self, backend: str) -> float:
        """Return the largest difference of a backend in units of what rounding allows."""
        return max(row.off[backend] for row in self.rows)

    def verdict(self, backend: str) -> str:
        """Return in words whether a backend's differences are rounding or a bug, and then what to do."""
        first, drift = self.first(backend), max(row.drifted.get(backend, 0.0) for row in self.rows)
        if first is None:
            text = f"rounding: at most {self.largest(backend):.2g} of what {self.dtype} allows"
            return f"{text}; steps by themselves drift by {drift:.1g} of the weights" if drift else text
        off = f"{'is' if first.layer is None else 'are'} off by {first.off[backend]:.3g} times what rounding allows"
        return (
            f"a bug: {first} {off}, and nothing before. Please report all of this with the output of fastmlp doctor "
            "--markdown, and train on another backend until then"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Return the rows as text: step, layer, what, and a column for each backend."""
        return [
            (
                "" if row.step is None else str(row.step),
                "" if row.layer is None else str(row.layer),
                row.what,
                *(_figure(row, name) for name in self.backends),
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        lines = [f"fastmlp {__version__}, {self.network}: differences in units of what rounding in {self.dtype} allows"]
        cells = [("step", "layer", "what", *self.backends), *self.table()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            lines.append("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        lines += [f"{name}: {self.verdict(name)}" for name in self.backends]
        return "\n".join([*lines, *(f"{name}: not compared, {why}" for name, why in self.skipped.items())])


def _figure(row: ParityRow, backend: str) -> str:
    drifted = row.drifted.get(backend)
    return f"{row.off[backend]:.2g}" + ("" if drifted is None else f" (drift {drifted:.0e})")


@quiet
def parity(
    model: MLP,
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    backends: Sequence[str | Backend] | None = None,
    steps: int = 5,
    batch_size: int | None = None,
    optimizer: Optimizer | str | None = None,
) -> Parity:
    """Compute the same on every backend from the same numbers, and hold each against NumPy in double precision.

    The activations of each layer, the loss, the gradients of each layer and steps of training, dropout and all, are
    compared in units of what rounding allows in the type that the model computes in.  Each step begins at the
    reference's numbers, so that a difference is that of one step.  Steps that go on by themselves run beside it: in
    these rounding grows, and they decide nothing.

    Parameters
    ----------
    model : MLP
        Not changed.
    x, y, sample_weight : array_like
        As for `MLP.fit`; some 256 evenly spaced rows, or as many as the steps take, are used.
    backends : sequence of str or Backend, optional
        None: all that can run here.
    steps : int
        Of training; 0 for none.
    batch_size : int, optional
        Rows a step; as for `MLP.fit`.
    optimizer : Optimizer or str, optional
        None: the model's, with its moments, or ``Adam()``.

    Returns
    -------
    Parity
        Rows with the largest differences, the first that is no rounding, and a verdict for each backend; ``print`` it.

    Raises
    ------
    DataError
        The numbers of this network for these rows are larger than the type can hold.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> model = fastmlp.MLP((3, 5, 2), activation="tanh", seed=0)
    >>> fastmlp.parity(model, np.eye(3), [0, 1, 1], backends=["numpy"]).agree
    True
    """
    if not isinstance(model, MLP):
        raise TypeError(f"parity: model must be a fastmlp.MLP (of an estimator its model_), got {model!r}")
    steps, learner = check_count("steps", steps, 0), model._learner
    data = learner.data(x, y, sample_weight)
    batch = batch_of(check_batch_size(batch_size), len(data))
    chosen = choose_optimizer(optimizer, learner.state.optimizer)
    found, skipped = _runners(model, backends)
    start = learner.state.copied(learner.to_numpy)
    start.begin(chosen, lambda shape, dtype: np.zeros(shape, dtype), np.copy)
    start = _in_type(start, DOUBLE.weights)
    rows = _evenly_spaced(learner.backend, data, max(ROWS, batch, min(steps * batch, len(data))), model.dtype)
    trial = _Trial(model, rows, found, Reference(model.dtype))
    lines = [*trial.answers(start), *trial.training(start, chosen, steps, batch)]
    for runner in found:
        runner.pool.close()
    network = describe(model.spec, model.dtype, "auto", model.seed)
    return Parity(f"MLP({network})", model.dtype, tuple(r.label for r in found), skipped, lines)


class _Runner:
    """A backend that computes what is asked for, from NumPy's arrays to NumPy's arrays in double precision."""

    def __init__(self, label: str, backend: Backend, dtype: np.dtype[Any]) -> None:
        self.label, self.backend, self.dtype = label, backend, dtype
        self.pool = SessionPool(backend)

    def _flat(self, spec: NetworkSpec, arrays: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Array:
        layout = layout_of(spec.units, self.dtype.itemsize)
        flat = np.zeros(layout.size, self.dtype)
        for (w, b), (w_there, b_there) in zip(layout.views(flat), arrays, strict=True):
            w[...], b[...] = w_there, b_there
        return self.backend.copy(flat)

    def outputs(self, spec: NetworkSpec, arrays: Sequence[Any], data: HostData) -> NDArray[Any]:
        """Return the outputs of a network of these weights."""
        with self.pool.use(Plan(spec, len(data), Precision.of(self.dtype))) as session:
            out = self.backend.empty((len(data), spec.units[-1]), self.dtype)
            params = self._flat(spec, arrays)
            self.backend.predict(session, params, self.backend.asarray(data.x), out)
            return self.backend.to_numpy(out).astype(np.float64)

    def gradients(self, spec: NetworkSpec, arrays: Sequence[Any], data: HostData, inverse: float) -> Any:
        """Return the loss and, for each layer, the gradients of its weights and biases."""
        with self.pool.use(Plan(spec, len(data), Precision.of(self.dtype), True)) as session:
            params = self._flat(spec, arrays)
            loss = self.backend.loss_and_gradients(session, params, data.on(self.backend.asarray), inverse)
            grads = np.array(self.backend.to_numpy(session.grads), np.float64)
            return np.array([loss], np.float64), session.plan.layout.views(grads)

    def step(
        self, spec: NetworkSpec, optimizer: Optimizer, before: TrainState, data: HostData, scalars: StepScalars
    ) -> TrainState | None:
        """Return the state after a step on all rows of some data, in double precision; None where it is refused."""
        plan = Plan(spec, len(data), Precision.of(self.dtype), True, optimizer.without_schedule())
        with self.pool.use(plan) as session:
            state = _in_type(before, self.dtype).copied(self.backend.copy)
            order, table = self.backend.asarray(np.arange(len(data))), np.array([scalars], np.float64)
            on = data.on(self.backend.asarray)
            report = self.backend.train_steps(session, state, on, order, table, 0, np.zeros(3))
            after = _in_type(state.copied(lambda a: np.array(self.backend.to_numpy(a))), DOUBLE.weights)
        return after if report.finite else None


class _Trial:
    """All comparisons of one network on some rows."""

    def __init__(self, model: MLP, data: HostData, runners: list[_Runner], reference: Reference) -> None:
        self.spec, self.dtype, self.data = model.spec, model.dtype, data
        self.runners, self.reference = runners, reference

    def answers(self, state: TrainState) -> Iterator[ParityRow]:
        """Yield what is computed of weights as they are: activations, the loss, and gradients downwards."""
        spec, data = self.spec.deterministic(), self.data.window(slice(0, ROWS))
        layers, on = state.layout.views(state.params), data.on(np.asarray)
        scalars = _scalars(data, spec)
        expected = self.reference.batch(spec, state.params, on, scalars)
        numbers = [*expected.activations, *expected.weights.values(), expected.loss]
        self._refuse_what_no_type_holds(n.value for n in numbers)
        for layer in range(spec.layers):
            network = spec if layer + 1 == spec.layers else _below(spec, layer + 1)
            outputs = {r.label: r.outputs(network, layers[: layer + 1], data) for r in self.runners}
            yield self._row(layer, "activations", outputs, expected.activations[layer])
        found = {r.label: r.gradients(spec, layers, data, scalars.inverse_total) for r in self.runners}
        yield self._row(None, "loss", {label: loss for label, (loss, _) in found.items()}, expected.loss)
        for layer in reversed(range(spec.layers)):
            for i, (what, bounded) in enumerate((("weights", expected.weights), ("biases", expected.biases))):
                grads = {label: views[layer][i] for label, (_, views) in found.items()}
                yield self._row(layer, f"gradients of the {what}", grads, bounded[layer])

    def training(self, state: TrainState, optimizer: Optimizer, steps: int, batch: int) -> Iterator[ParityRow]:
        """Yield what steps leave, each from the reference's numbers, on consecutive batches."""
        alone: dict[str, TrainState | None] = {r.label: state for r in self.runners}
        reference_alone = state
        # a schedule may begin at nothing: all steps take its highest rate
        rates = optimizer.schedule.rates(0, max(steps, 1), max(steps, 1), {}).max(keepdims=True)
        for step in range(steps):
            first = step * batch % len(self.data)
            data = self.data.window(slice(first, first + batch))
            scalars = _scalars(data, self.spec, optimizer, rates, state.optimizer_step)
            on = data.on(np.asarray)
            of_step = self.spec, optimizer
            after, allowed = self.reference.step(*of_step, state, on, scalars)
            self._refuse_what_no_type_holds(buffers(after))
            reference_alone, _ = self.reference.step(*of_step, reference_alone, on, scalars)
            found: dict[str, TrainState | None] = {}
            for r in self.runners:
                found[r.label] = r.step(*of_step, state, data, scalars)
                before = alone[r.label]
                alone[r.label] = None if before is None else r.step(*of_step, before, data, scalars)
            for layer in reversed(range(self.spec.layers)):
                off = {label: _apart(there, after, allowed, layer) for label, there in found.items()}
                drifted = {label: _drift(there, reference_alone, layer) for label, there in alone.items()}
                yield ParityRow(step + 1, layer, "weights and moments", off, drifted)
            state = _in_type(_in_type(after, self.dtype), DOUBLE.weights)

    def _row(self, layer: int | None, what: str, found: dict[str, Any], expected: Bounded) -> ParityRow:
        off = {label: _largest(array, expected.value, expected.allowed) for label, array in found.items()}
        return ParityRow(None, layer, what, off)

    def _refuse_what_no_type_holds(self, numbers: Iterable[NDArray[Any]]) -> None:
        most = float(np.finfo(self.dtype).max) / ROOM
        if not all((np.abs(array) < most).all() for array in numbers):
            raise DataError(
                f"parity: this network's numbers for these rows are larger than {self.dtype} holds, or nearly, so that "
                "there is nothing to compare; scale the rows, or take weights from before training went wrong"
            )


def _largest(found: NDArray[Any], expected: NDArray[Any], allowed: NDArray[Any]) -> float:
    return float(in_units_of(allowed, found, expected).max(initial=0.0))


def _apart(found: TrainState | None, expected: TrainState, allowed: list[NDArray[Any]], layer: int) -> float:
    """Return the largest difference of all that training keeps of a layer, in units of what is allowed."""
    if found is None:
        return float("inf")
    worst = 0.0
    for a, b, most in zip(buffers(found), buffers(expected), allowed, strict=True):
        views = (expected.layout.views(flat)[layer] for flat in (a, b, most))
        worst = max(worst, *(_largest(*three) for three in zip(*views, strict=True)))
    return worst


def _drift(found: TrainState | None, expected: TrainState, layer: int) -> float:
    """Return the largest difference of the weights of a layer as a part of the largest of them."""
    if found is None:
        return float("inf")
    (a, _), (b, _) = (state.layout.views(state.params)[layer] for state in (found, expected))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny))


def _below(spec: NetworkSpec, layers: int) -> NetworkSpec:
    """Return the lowest layers of a network, as one of their own."""
    return replace(
        spec,
        units=spec.units[: layers + 1],
        activations=spec.activations[:layers],
        loss=MeanSquaredError(),
        dropout=spec.dropout[:layers],
        frozen=spec.frozen[:layers],
    )


def _scalars(
    data: HostData,
    spec: NetworkSpec,
    optimizer: Optimizer | None = None,
    rates: NDArray[np.float64] | None = None,
    first: int = 0,
) -> StepScalars:
    """Return the numbers of a step on all rows of some data."""
    inverse = inverse_totals(data.weights, np.arange(len(data)), len(data), 0, 1)
    shares = spec.l2_share(inverse)
    if optimizer is None or rates is None:
        share = float(np.asarray(shares).reshape(-1)[0])
        return StepScalars(1.0, inverse_total=float(inverse[0]), l2_share=share)
    return StepScalars(*optimizer.table(rates, first, inverse, shares)[0].tolist())


def _in_type(state: TrainState, dtype: np.dtype[Any]) -> TrainState:
    """Return a state of NumPy's arrays in another type, whose layout has other gaps."""
    layout = layout_of(state.layout.units, dtype.itemsize)

    def moved(flat: NDArray[Any]) -> NDArray[Any]:
        there = np.zeros(layout.size, dtype)
        for pair, new in zip(state.layout.views(flat), layout.views(there), strict=True):
            for a, b in zip(pair, new, strict=True):
                b[...] = a
        return there

    return replace(state.copied(moved), layout=layout)


def _evenly_spaced(backend: Backend, data: HostData, most: int, dtype: np.dtype[Any]) -> HostData:
    """Return some rows of the data on the host; values in the type that a model computes in, for the reference too."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).astype(np.intp))
    with backend.working():
        picked = data.taken(rows, backend.picked)
        x = picked.x if isinstance(picked.x, np.ndarray) else backend.to_numpy(picked.x)

    def rounded(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array.astype(dtype) if array.dtype.kind == "f" else array)

    return HostData(rounded(x), rounded(picked.y), None if picked.weights is None else rounded(picked.weights))


def _coarser(backend: Backend, dtype: np.dtype[Any]) -> str:
    """Return why a backend is not held to the rounding of a type, and the cure; nothing where it is."""
    if backend.name != "cupy" or dtype != np.float32:
        return ""
    if rounds_to_tf32():
        return "rounds float32 to 11 bits, as NVIDIA_TF32_OVERRIDE=1 has it; unset NVIDIA_TF32_OVERRIDE"
    if backend.options.get("tf32"):
        return "rounds float32 to 11 bits, as tf32=True has it; give the backend without it"
    return ""


def _runners(model: MLP, backends: Sequence[str | Backend] | None) -> tuple[list[_Runner], dict[str, str]]:
    """Return those that compute, the model's own backend with its options, and why others cannot."""
    if isinstance(backends, (str, Backend)):
        raise TypeError(f"backends must be a sequence of names or backends, got {backends!r}; write [{backends!r}]")
    skipped: dict[str, str] = {}
    if backends is not None:
        chosen = check_sequence("backends", backends, "a sequence of names or backends")
        for number, given in enumerate(chosen):
            if not isinstance(given, (str, Backend)):
                raise TypeError(f"backends must hold names or backends, got {given!r} in place {number}")
    else:
        found = available_backends()
        skipped = {name: state.reason for name, state in found.items() if not state.available}
        chosen = [name for name, state in found.items() if state.available]
    if not chosen:
        raise ValueError(f"backends must name one at least, got {backends!r}")
    runners: dict[str, _Runner] = {}
    for given in chosen:
        backend = model.backend if given == model.backend.name else chosen_backend(given)[0]
        if coarser := _coarser(backend, model.dtype):
            if backends is not None:
                raise ValueError(f"backends: {backend.name} {coarser}")
            skipped[backend.name] = coarser
            continue
        options = ", ".join(f"{name}={value}" for name, value in backend.options.items())
        label = f"{backend.name} ({options})" if options else backend.name
        runners[label] = _Runner(label, backend, model.dtype)
    return list(runners.values()), skipped
