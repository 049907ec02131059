"""`MLP`, the face that users meet."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp import files
from fastmlp.arguments import (
    check_callbacks,
    check_count,
    check_dtype,
    check_metrics,
    check_seed,
    resolve_backend,
)
from fastmlp.backends.exchange import host_array
from fastmlp.batching import HostData, check_data, check_inputs, split_rows
from fastmlp.errors import DataError, ReproducibilityWarning
from fastmlp.history import History
from fastmlp.inference import Inference
from fastmlp.optimizers import OPTIMIZERS, Adam, Optimizer
from fastmlp.plan import Plan
from fastmlp.predictor import Predictor
from fastmlp.session import SessionPool
from fastmlp.spec import NetworkSpec, make_spec
from fastmlp.state import Layout, TrainState, initial_parameters
from fastmlp.summary import describe, summary_lines
from fastmlp.training import Progress, Training

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.callbacks import Callback
    from fastmlp.initializers import Initializer
    from fastmlp.losses import Loss
    from fastmlp.training import Metric


class MLP:
    """A multi-layer perceptron: made, trained, asked and saved.

    Parameters
    ----------
    units : sequence of int
        From input to output, such as ``(784, 100, 10)``.
    activation : str or sequence of str
        One name for all hidden layers, or one for each layer; the last is then that of the outputs, which only
        regression may choose.  See `fastmlp.activation_names`.
    loss : str or Loss
        A name or a record such as ``SoftmaxCrossEntropy(label_smoothing=0.1)``.  See `fastmlp.loss_names`.
    dropout : float or sequence of float
        One rate for all hidden layers, or (input, hidden 1, ...).
    l2 : float
        The loss grows by ``0.5 * l2 * ||W||^2``, biases excluded.
    max_norm : float, optional
        After each step the weights into each unit are scaled down to this 2-norm.
    initializer : str or Initializer, optional
        None: He for rectifiers, LeCun for selu, Glorot for the others.  Biases start at 0.
    backend : str or Backend
        ``"auto"``, a name, or what `fastmlp.get_backend` returned.
    dtype : {"float32", "float64"}
        In which the network computes.
    seed : int, optional
        In 0..2**64-1: the initial weights, the order of rows and dropout follow from it.  Drawn, and kept as `seed`,
        when not given.

    Raises
    ------
    ValueError, TypeError
        An argument does not make sense; the message names it, what was got and what was expected.
    BackendUnavailable
        The backend asked for by name cannot run here.

    Examples
    --------
    >>> import fastmlp
    >>> (x, y), (x_test, y_test) = fastmlp.datasets.load_mnist()
    >>> model = fastmlp.MLP((784, 128, 10), seed=0)
    >>> history = model.fit(x, y, epochs=5, verbose=0)
    >>> model.evaluate(x_test, y_test)["accuracy"] > 0.97
    True
    """

    def __init__(
        self,
        units: Sequence[int],
        *,
        activation: str | Sequence[str] = "relu",
        loss: str | Loss = "softmax_cross_entropy",
        dropout: float | Sequence[float] = 0.0,
        l2: float = 0.0,
        max_norm: float | None = None,
        initializer: str | Initializer | None = None,
        backend: str | Backend = "auto",
        dtype: str | type | np.dtype[Any] = "float32",
        seed: int | None = None,
    ) -> None:
        spec = make_spec(
            units,
            activation=activation,
            loss=loss,
            dropout=dropout,
            l2=l2,
            max_norm=max_norm,
            initializer=initializer,
        )
        kind, key, where = check_dtype(dtype), check_seed(seed), resolve_backend(backend)
        layout = Layout(spec.units, kind.itemsize)
        with where.working():
            params = where.copy(initial_parameters(spec, layout, kind, key))
        self._setup(spec, kind, where, TrainState(layout, params, key))

    def _setup(self, spec: NetworkSpec, dtype: np.dtype[Any], backend: Backend, state: TrainState) -> None:
        self._spec, self._dtype, self._state = spec, dtype, state
        self._settle(backend)
        self._training = threading.Lock()
        self._class_names: tuple[str, ...] | None = None
        self._feature_names: tuple[str, ...] | None = None
        self._checkpoint: tuple[str, dict[str, Any], dict[str, NDArray[Any]]] | None = None

    def _settle(self, backend: Backend) -> None:
        """Work on this backend from now on."""
        self._backend, self._pool = backend, SessionPool(backend)
        self._inference = Inference(self._pool, self._dtype)

    # --- what it is ---

    @property
    def spec(self) -> NetworkSpec:
        """What the network is."""
        return self._spec

    @property
    def backend(self) -> Backend:
        """Where it runs."""
        return self._backend

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which type it computes."""
        return self._dtype

    @property
    def seed(self) -> int:
        """The 64-bit seed that was given or drawn."""
        return self._state.key

    @property
    def steps(self) -> int:
        """Training steps done so far."""
        return self._state.step

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, which saved files keep; one an output, or two for a single sigmoid output."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._class_names = _names("class_names", names, max(self._spec.units[-1], 2))

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The names of the inputs, which saved files keep; the command line picks columns of a table by them."""
        return self._feature_names

    @feature_names.setter
    def feature_names(self, names: Sequence[str] | None) -> None:
        self._feature_names = _names("feature_names", names, self._spec.units[0])

    def __repr__(self) -> str:
        return f"MLP({describe(self._spec, self._dtype, self._backend.name, self.seed)})"

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Print the layers with their shapes and numbers of parameters, and what training keeps in memory.

        Parameters
        ----------
        print_fn : callable
            Called with each line.
        """
        for line in summary_lines(self._spec, self._dtype, self._backend.name):
            print_fn(line)

    # --- training ---

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int,
        batch_size: int = 128,
        optimizer: Optimizer | str | None = None,
        sample_weight: ArrayLike | None = None,
        class_weight: Mapping[int, float] | str | None = None,
        validation_data: tuple[ArrayLike, ...] | None = None,
        validation_split: float = 0.0,
        metrics: Sequence[str | Metric] | Mapping[str, Metric] = (),
        callbacks: Sequence[Callback] = (),
        shuffle: bool = True,
        verbose: int = 1,
    ) -> History:
        """Train; called again, go on from where the model stands.

        The moments of the optimizer are kept where it is equal to the last one, and begin anew where it is another.
        Ctrl-C ends training after the step at hand with the warning `TrainingInterrupted`; the model stays usable.

        Parameters
        ----------
        x : (n, I) array_like
            Inputs; uint8 is divided by 255, batch by batch, other real types are converted.  Not changed, not kept.  On
            the ``"cupy"`` backend arrays of its GPU, CuPy's or any that know DLPack or ``__cuda_array_interface__``,
            are taken without a copy, here as everywhere; of y and of weights a copy is checked on the host.
        y : (n,) or (n, K) array_like
            Labels, or one-hot rows, probabilities or values, as the loss asks for.
        epochs : int
            How often to go through the data, at least 1.
        batch_size : int
            Rows a step; the last batch of an epoch may be shorter.
        optimizer : Optimizer or str, optional
            A record, such as ``Adam(1e-3)``, or a name.  None: that of the last call, at first ``Adam()``.
        sample_weight : (n,) array_like, optional
            Weights of the rows, not negative; a batch's loss is ``sum(w_i l_i) / sum(w_i)``.
        class_weight : dict or "balanced", optional
            Factors of the row weights by class.
        validation_data : (x, y) or (x, y, sample_weight), optional
            Evaluated after each epoch.
        validation_split : float
            In [0, 1): instead, hold out this last part of the rows.
        metrics : sequence of str or callable, or mapping from name to callable
            More figures, computed after each epoch on the training and the validation data by ``f(y, predict(x))``:
            names of functions of `sklearn.metrics`, such as ``"balanced_accuracy_score"``, or callables.
        callbacks : sequence of Callback
        shuffle : bool
            Take the rows in a new order each epoch.
        verbose : {0, 1, 2}
            Nothing; a progress bar and a line an epoch; a line an epoch.

        Returns
        -------
        History

        Raises
        ------
        DataError, ValueError, TypeError
            An argument does not make sense; nothing has changed then.
        NonFiniteLossError
            The loss of a step was not finite; the model is as it was before that step.
        """
        epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
        chosen = self._choose_optimizer(optimizer)
        data = self._check(x, y, sample_weight, class_weight)
        data, validation = self._validation(data, validation_data, validation_split)
        batch_size = min(batch_size, len(data))
        with self._exclusive():
            # all that can fail on the arguments is done before the state changes
            progress = Progress(
                epochs,
                batch_size,
                len(data),
                bool(shuffle),
                float(validation_split),
                horizon=epochs * -(-len(data) // batch_size),
                schedule_start=self._state.optimizer_step if self._state.optimizer == chosen else 0,
            )
            run = Training(
                self,
                data,
                validation,
                progress,
                metrics=check_metrics(metrics),
                callbacks=check_callbacks(callbacks, verbose),
            )
            run.check_memory(chosen)
            self._checkpoint = None
            before = replace(self._state)
            self._state.begin(chosen, self._backend)
            try:
                return run.run()
            except BaseException:
                if run.steps_done == 0:
                    self._state = before
                raise

    def resume(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        class_weight: Mapping[int, float] | str | None = None,
        validation_data: tuple[ArrayLike, ...] | None = None,
        metrics: Sequence[str | Metric] | Mapping[str, Metric] = (),
        callbacks: Sequence[Callback] = (),
        verbose: int = 1,
    ) -> History:
        """Go on with the run of the checkpoint that this model was loaded from, to the same bits.

        Parameters
        ----------
        x, y, sample_weight, class_weight, validation_data, metrics, callbacks
            The same as `fit` was given; epochs, batch size, optimizer, order and validation split are in the
            checkpoint.
        verbose : {0, 1, 2}

        Returns
        -------
        History
            Of the whole run.

        Raises
        ------
        RuntimeError
            The model was not loaded from a checkpoint, or has changed since.
        ValueError
            The data, callbacks or metrics are not those of the checkpoint.
        """
        if self._checkpoint is None:
            raise RuntimeError(
                "resume: this model was not just loaded from a checkpoint; load one with fastmlp.load, or use fit"
            )
        path, header, tensors = self._checkpoint
        progress = Progress(**header["progress"])
        if progress.epoch >= progress.epochs:
            raise RuntimeError(
                f"resume: the run of {path} was finished after {progress.epochs} epochs; use fit to go on"
            )
        data = self._check(x, y, sample_weight, class_weight)
        data, validation = self._validation(data, validation_data, progress.validation_split)
        if data.fingerprint(self._backend) != header["data"]:
            raise DataError(f"resume: x, y and the weights are not those that the checkpoint {path} was trained on")
        with self._exclusive():
            run = Training(
                self,
                data,
                validation,
                progress,
                history=History(header["history"]),
                metrics=check_metrics(metrics),
                callbacks=check_callbacks(callbacks, verbose),
            )
            run.restore_callbacks(path, header, tensors)
            assert self._state.optimizer is not None
            run.check_memory(self._state.optimizer)
            self._checkpoint = None
            here = run.adopt(header["platform"])
            if here != header["platform"]:
                changed = [k for k in {**here, **header["platform"]} if here.get(k) != header["platform"].get(k)]
                was = ", ".join(f"{k} {header['platform'].get(k)!r}, now {here.get(k)!r}" for k in sorted(changed))
                warnings.warn(
                    f"the checkpoint was made under other choices ({was}), so the run need not go on to the same bits",
                    ReproducibilityWarning,
                    stacklevel=2,
                )
            return run.run()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let only one thread train or move the model; a second one is told so instead of waiting."""
        if not self._training.acquire(blocking=False):
            raise RuntimeError(
                "this model is being trained already (in another thread, or by the fit whose callback this is); "
                "wait for it, or train a copy.deepcopy of the model"
            )
        try:
            with self._backend.working():
                yield
        finally:
            self._training.release()

    def _choose_optimizer(self, optimizer: Optimizer | str | None) -> Optimizer:
        if optimizer is None:
            return self._state.optimizer or Adam()
        return OPTIMIZERS.record(optimizer)

    def _check(
        self,
        x: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        class_weight: Mapping[int, float] | str | None = None,
        suffix: str = "",
    ) -> HostData:
        return check_data(
            self._spec, self._dtype, x, y, sample_weight, class_weight, backend=self._backend, suffix=suffix
        )

    def _validation(
        self, data: HostData, validation_data: tuple[ArrayLike, ...] | None, split: float
    ) -> tuple[HostData, HostData | None]:
        train, held_out = split_rows(data, split)
        if validation_data is None:
            return train, held_out
        if held_out is not None:
            raise ValueError("give either validation_data or validation_split, not both")
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise ValueError("validation_data must be (x, y) or (x, y, sample_weight)")
        weights = validation_data[2] if len(validation_data) == 3 else None
        x, y = validation_data[:2]
        return train, self._check(x, y, weights, suffix=" of validation_data")

    # --- asking ---

    def evaluate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        metrics: Sequence[str | Metric] | Mapping[str, Metric] = (),
    ) -> dict[str, float]:
        """Return the figures of the model on some data.

        Parameters
        ----------
        x, y, sample_weight, metrics
            As for `fit`.

        Returns
        -------
        dict
            ``loss`` (weighted mean over the rows, without dropout and without L2), ``accuracy`` where the loss has
            one, and the metrics.
        """
        return self._figures(self._check(x, y, sample_weight), check_metrics(metrics))

    def predict(self, x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return what the network predicts.

        Parameters
        ----------
        x : (n, I) array_like
            Inputs, as for `fit`; for some on a GPU the result is there too, an array of CuPy.
        batch_size : int, optional
            Rows worked on at once; chosen by size when not given.

        Returns
        -------
        (n,) or (n, K) array
            Classes (int64) for losses over classes; 0 or 1 (int64) for sigmoid cross-entropy; rates for Poisson;
            values for the others.  (n,) where there is one output.
        """
        return self._answer(self._spec.loss.predict, x, batch_size)

    def predict_proba(self, x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return probabilities: (n, classes), or (n, 1) for one sigmoid output; parameters as for `predict`.

        Raises
        ------
        ValueError
            The loss has no probabilities (regression, hinge).
        """
        loss = self._spec.loss
        loss.probabilities(np.zeros((0, self._spec.units[-1]), self._dtype))  # refuses before the work, not after it
        return self._answer(loss.probabilities, x, batch_size)

    def _answer(self, turn: Callable[[Array], Array], x: ArrayLike, batch_size: int | None) -> Array:
        rows = check_inputs(x, self._spec.units[0], self._backend)
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size)
        outputs = self._inference.outputs(self._spec, self._state.evaluated, rows, batch_size)
        with self._backend.placed():
            return turn(outputs)

    def predictor(self) -> Predictor:
        """Return a function that predicts one example at a time, at the least cost a call.

        It holds a copy of the weights: training that goes on does not change what it predicts.

        Returns
        -------
        Predictor
            ``predictor(x)`` for x (I,) is ``model.predict(x[None])[0]``; ``predictor.outputs(x)`` the outputs, (K,).
        """
        with self._backend.working():
            return Predictor(self._backend, self._spec, self._dtype, self._state.evaluated)

    def loss_and_gradients(
        self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, list[Array]]:
        """Return the loss of all rows as one batch, L2 included and dropout left out, and its gradients.

        They are those of the weights that train (not of their moving average), frozen layers included.

        Returns
        -------
        (loss, [dW1, db1, dW2, ...])
            A float, and arrays shaped like those of `get_weights`; on the GPU where x is.
        """
        return self._inference.loss_and_gradients(self._spec, self._state.params, self._check(x, y, sample_weight))

    def _figures(self, data: HostData, metrics: Mapping[str, Metric]) -> dict[str, float]:
        """Return loss, accuracy where there is one, and metrics, of checked data."""
        figures = self._inference.evaluate(self._spec, self._state.evaluated, data)
        return {**figures, **self._metric_values(data, metrics)}

    def _metric_values(self, data: HostData, metrics: Mapping[str, Metric]) -> dict[str, float]:
        return self._inference.metric_values(self._spec, self._state.evaluated, data, metrics)

    # --- weights ---

    def get_weights(self) -> list[NDArray[Any]]:
        """Return copies of the weights that predict, the moving average if there is one: [W1 (I, O), b1 (O,), ...]."""
        flat = self._numpy(self._state.evaluated)
        return [array.copy() for pair in self._state.layout.views(flat) for array in pair]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set the weights and biases, and their moving average if there is one; the optimizer's moments stay.

        Parameters
        ----------
        weights : sequence of array_like
            [W1 (I, O), b1 (O,), W2, ...].

        Raises
        ------
        ValueError
            There are too many or too few, or one has another shape or is not finite; nothing has changed then.
        """
        flat = np.zeros(self._state.layout.size, self._dtype)
        targets = [array for pair in self._state.layout.views(flat) for array in pair]
        given = [self._host(w) for w in weights]
        if [w.shape for w in given] != [t.shape for t in targets]:
            raise ValueError(
                f"weights must be arrays of the shapes {[t.shape for t in targets]} (W1, b1, W2, ...), "
                f"got {[w.shape for w in given]}"
            )
        for i, (target, value) in enumerate(zip(targets, given, strict=True)):
            if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
                raise ValueError(f"weights: {'Wb'[i % 2]}{i // 2 + 1} must hold finite real numbers")
            target[...] = value
        with self._backend.working():
            self._state.params[...] = self._backend.asarray(flat)
            if self._state.average is not None:
                self._state.average[...] = self._state.params
        self._checkpoint = None

    def _host(self, array: ArrayLike) -> NDArray[Any]:
        there = self._backend.take(array, "weights")
        return host_array(array) if there is None else self._backend.to_numpy(there)

    def _numpy(self, array: Array) -> NDArray[Any]:
        """Return an array of the model's own as NumPy's."""
        with self._backend.working():
            return self._backend.to_numpy(array)

    def freeze(self, *layers: int) -> None:
        """Let these layers, counted from 0 at the input and from -1 at the output, keep their weights and biases.

        Raises
        ------
        ValueError
            There is no such layer, or none is named.
        """
        if not layers:
            raise ValueError("freeze needs the numbers of layers, such as freeze(0); to let all train use unfreeze()")
        self._set_frozen(layers, True)

    def unfreeze(self, *layers: int) -> None:
        """Let these layers train, or all where none is named; counted as for `freeze`.

        Raises
        ------
        ValueError
            There is no such layer.
        """
        self._set_frozen(layers or range(self._spec.layers), False)

    def _set_frozen(self, layers: Sequence[int], value: bool) -> None:
        frozen = list(self._spec.frozen)
        for layer in layers:
            if isinstance(layer, bool) or not hasattr(layer, "__index__"):
                raise TypeError(f"layers must be integers, got {layer!r}")
            if not -len(frozen) <= layer < len(frozen):
                raise ValueError(f"there is no layer {layer}; the network has {len(frozen)}, 0..{len(frozen) - 1}")
            frozen[layer] = value
        self._spec = replace(self._spec, frozen=tuple(frozen))

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, and of their average if there is one, by the names they have in files."""
        named = self._state.named(self._numpy)
        return {name: array.copy() for name, array in named.items()}

    def restore_snapshot(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the parameters, and their average if there is one, from a `snapshot`."""
        state = self._state
        with self._backend.working():
            state.params[...] = self._backend.asarray(state.layout.flat(arrays, "", self._dtype))
            if state.average is not None:
                state.average[...] = self._backend.asarray(state.layout.flat(arrays, "average.", self._dtype))

    # --- files and places ---

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network and the weights that predict to a safetensors file, in one piece.

        Raises
        ------
        ValueError
            A loss or an activation is your own: a file cannot hold code.
        OSError
            The file cannot be written; one that was there is as it was.
        """
        header, _ = self._contents()
        arrays = self._state.layout.named(self._numpy(self._state.evaluated))
        files.write(path, {**header, "kind": "model"}, arrays)

    def _contents(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return the description of the model and all its numbers, as a checkpoint holds them."""
        header = {
            "spec": self._spec.to_json(),
            "dtype": self._dtype.name,
            "class_names": self._class_names,
            "feature_names": self._feature_names,
            "key": self._state.key,
            "step": self._state.step,
        }
        return header, self._state.named(self._numpy, moments=True)

    def to(self, backend: str | Backend) -> MLP:
        """Move the model, moments and all, to another backend; returns the model."""
        where = resolve_backend(backend)
        with self._exclusive():
            self._pool.close()
            there = self._state.copied(self._backend.to_numpy)
            with where.working():
                self._state = there.copied(where.copy)
            self._settle(where)
        return self

    def memory_estimate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        batch_size: int = 128,
        optimizer: Optimizer | str | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> dict[str, int]:
        """Return how many bytes `fit` would take where the model runs, beside what is there already.

        Nothing is allocated.  What prediction and validation take comes on top, and is small: they work in chunks.  The
        first fit on a GPU uses copies of the parameters too, where there is room.

        Parameters
        ----------
        x, y, batch_size, optimizer, sample_weight
            As for `fit`.

        Returns
        -------
        dict
            ``parameters``, with the optimizer's moments and an average of the weights; ``data``, the copy on a GPU;
            ``order``, of the rows of an epoch; ``workspace``, what a training step works in; ``total``.
        """
        data = self._check(x, y, sample_weight)
        rows = min(check_count("batch_size", batch_size), len(data))
        chosen = self._choose_optimizer(optimizer).without_schedule()
        found = self._backend.memory_estimate(Plan(self._spec, rows, self._dtype, True, chosen), data)
        return {**found, "total": sum(found.values())}

    def close(self) -> None:
        """Let go of the memory (and, in compiled backends, the threads) that is kept between calls.

        The model stays usable: what is needed is made again.
        """
        self._pool.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "spec": self._spec,
            "dtype": self._dtype.name,
            "backend": self._backend,
            "class_names": self._class_names,
            "feature_names": self._feature_names,
            "state": self._state.copied(self._numpy),
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        backend: Backend = values["backend"]
        with backend.working():
            state = values["state"].copied(backend.copy)
        self._setup(values["spec"], np.dtype(values["dtype"]), backend, state)
        self._class_names, self._feature_names = values["class_names"], values["feature_names"]


def _names(argument: str, names: Sequence[str] | None, expected: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(names) != expected:
        raise ValueError(f"{argument} needs {expected} names, got {names!r}")
    return tuple(str(name) for name in names)
