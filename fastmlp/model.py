"""`MLP`, the face that users meet: what may be asked, said and checked; a `Learner` does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_count, check_dtype, check_flag, check_seed
from fastmlp.backends.choosing import chosen_backend
from fastmlp.described import Described
from fastmlp.engine import batches, runs
from fastmlp.engine.callbacks import check_callbacks
from fastmlp.engine.checkpoints import save_model
from fastmlp.engine.checks import check_snapshot, check_weights
from fastmlp.engine.learner import Learner
from fastmlp.engine.metrics import check_metrics
from fastmlp.engine.together import place
from fastmlp.formulas.names import explains_keywords
from fastmlp.formulas.optimizers import choose_optimizer
from fastmlp.network.spec import make_spec
from fastmlp.network.summary import describe, print_summary, summary_lines
from fastmlp.parallel.choosing import grouped

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.engine.history import History
    from fastmlp.engine.loop import Callback
    from fastmlp.engine.metrics import Metrics
    from fastmlp.engine.predictor import Predictor
    from fastmlp.engine.row_weights import ClassWeight
    from fastmlp.formulas.initializers import Initializer
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.parallel.choosing import Ranks


@explains_keywords(__init__="network", fit="fit", resume="fit", evaluate="ask", predict="ask", predict_proba="ask")
class MLP(Described):
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
        None: LeCun (normal) for selu, Glorot (uniform) for the others.  Biases start at 0.
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
        spec = make_spec(units, activation, loss, dropout, l2, max_norm, initializer)
        kind, key = check_dtype(dtype), check_seed(seed)
        where, choice = chosen_backend(backend)
        self._learner = Learner.drawn(spec, kind, where, key)
        self._learner.choice = choice

    @classmethod
    def from_learner(cls, learner: Learner) -> MLP:
        """Return the face of a learner that is there already, such as one from a file."""
        model = cls.__new__(cls)
        model._learner = learner
        return model

    def __repr__(self) -> str:
        return f"MLP({describe(self.spec, self.dtype, self.backend.name, self.seed)})"

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Print the layers, their shapes and numbers of parameters, and what training keeps in memory, line by line."""
        print_summary(print_fn, summary_lines(self.spec, self.dtype, self.backend.name, self._learner.rules.describe()))

    # --- training ---

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int,
        batch_size: int | None = None,
        optimizer: Optimizer | str | None = None,
        sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None,
        validation_data: tuple[ArrayLike, ...] | None = None,
        validation_split: float = 0.0,
        metrics: Metrics = (),
        callbacks: Sequence[Callback] = (),
        shuffle: bool = True,
        verbose: int = 1,
        parallel: Ranks | None = None,
    ) -> History:
        """Train; called again, go on from where the model stands.

        The moments of the optimizer are kept where it is equal to the last one, and begin anew where it is another.
        Ctrl-C ends training after the step at hand with the warning `TrainingInterrupted`; the model stays usable.

        Parameters
        ----------
        x : (n, I) array_like
            Finite inputs of any real type, or a data frame with its names; of SciPy's sparse ones a few batches at a
            time are made dense.  Where the first fit gets uint8 above 1, all inputs of any type are divided by 255 from
            then on.  On the ``"cupy"`` backend arrays of its GPU (of CuPy, DLPack, ``__cuda_array_interface__``) are
            not copied, here as everywhere; y and weights are, to check.
        y : (n,) or (n, K) array_like
            Labels, or one-hot rows, probabilities or values, as the loss asks for.
        epochs : int
            How often to go through the data, at least 1.
        batch_size : int, optional
            Rows a step, the last of an epoch maybe fewer.  None: a 32nd of those that train, from 8 to 128.
        optimizer : Optimizer or str, optional
            A record, such as ``Adam(1e-3)``, or a name.  None: that of the last call, at first ``Adam()``.
        sample_weight : (n,) array_like, optional
            Weights of the rows, not negative; a batch's loss is ``sum(w_i l_i) / sum(w_i)``, one of weight 0 no step.
        class_weight : mapping from class, sequence of one a class, or "balanced", optional
            Factors of the weights of the rows trained on, whose figures have them; those of validation never do.
        validation_data : (x, y) or (x, y, sample_weight), optional
            Evaluated after each epoch, by the weights given here alone.
        validation_split : float
            In [0, 1): instead, hold out this part of the rows with their `sample_weight`, drawn by the seed and the
            same of each class; for the last rows, as of a series in time, use validation_data.
        metrics : sequence of str or callable, or mapping from name to these
            More figures of each epoch, on the training and the validation data: names of scorers or functions of
            `sklearn.metrics`, given predictions or probabilities as they need, or callables ``f(y, predict(x))``.
        callbacks : sequence of Callback
        shuffle : bool
            Take the rows in a new order each epoch.
        verbose : {0, 1, 2}
            Nothing; a progress bar and a line an epoch; a line an epoch.
        parallel : fastmlp.parallel.mpi() or mpi4py.MPI.COMM_WORLD, optional
            The processes that train together; each calls this alike, with all rows (a memory map is read where needed).
            On the ``"cupy"`` backend each has a GPU of its own, to which the model moves where others have its.

        Returns
        -------
        History

        Raises
        ------
        DataError, ValueError, TypeError
            An argument does not make sense; nothing has changed then.
        BackendUnavailable
            Processes need mpi4py, and on GPUs NCCL, which is not there.
        ParallelError
            A process has other settings, data or weights than others, has failed, or does not answer.
        NonFiniteLossError
            The loss of a step was not finite, the model is as it was before it; or a weight, it is as before the call.
        """
        learner, rows = self._learner, (x, y, sample_weight)
        with grouped(parallel) as group:
            place(learner, group)
            epochs, batch_size = check_count("epochs", epochs), batches.check_batch_size(batch_size)
            chosen, shuffle = choose_optimizer(optimizer, learner.state.optimizer), check_flag("shuffle", shuffle)
            data, validation = runs.take(learner, rows, class_weight, validation_data, validation_split)
            more = runs.Extras(check_metrics(metrics, self.spec), check_callbacks(callbacks, verbose), self, group)
            wanted = runs.Wanted(epochs, batch_size, chosen, shuffle, float(validation_split))
            return runs.begin(learner, data, validation, wanted, more)

    def resume(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None,
        validation_data: tuple[ArrayLike, ...] | None = None,
        metrics: Metrics = (),
        callbacks: Sequence[Callback] = (),
        verbose: int = 1,
        parallel: Ranks | None = None,
    ) -> History:
        """Go on with the run of the checkpoint that this model was loaded from, to the same bits.

        A run that `EarlyStopping` had ended takes no more steps; where it kept the best epoch's weights, the model goes
        back to them, also after the last epoch.  One that a `TimeLimit` or Ctrl-C had ended goes on.

        Parameters
        ----------
        x, y, sample_weight, class_weight, validation_data, metrics, callbacks
            The same as `fit` was given, but for how long callbacks wait; all else is in the checkpoint.
        verbose, parallel
            As for `fit`; another number of processes, or none but this one, goes on to the same bits.

        Returns
        -------
        History
            Of the whole run.

        Raises
        ------
        RuntimeError
            The model was not loaded from a checkpoint, or has changed since; or the run has come to its last epoch, and
            has no better weights to go back to.
        ValueError
            The data, callbacks or metrics are not those of the checkpoint.
        """
        learner, rows = self._learner, (x, y, sample_weight)
        with grouped(parallel) as group:
            place(learner, group)
            paused, at = runs.paused_run(learner)
            data, validation = runs.take(learner, rows, class_weight, validation_data, at.validation_split, at.drawn)
            more = runs.Extras(check_metrics(metrics, self.spec), check_callbacks(callbacks, verbose), self, group)
            return runs.go_on(learner, paused, at, data, validation, more)

    # --- asking ---

    def evaluate(
        self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, *, metrics: Metrics = ()
    ) -> dict[str, float]:
        """Return the figures of the model on some data; parameters as for `fit`.

        Returns
        -------
        dict
            ``loss`` (weighted mean over the rows, no dropout, no L2), ``accuracy`` where it has one, and the metrics.
        """
        data = self._learner.data(x, y, sample_weight, later=True)
        return self._learner.figures(data, check_metrics(metrics, self.spec))

    def predict(self, x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return what the network predicts.

        Parameters
        ----------
        x : (n, I) array_like
            Inputs, as for `fit`; for some on a GPU, whose values nobody looks at, the result is there too, CuPy's.
        batch_size : int, optional
            Rows worked on at once; chosen by size when not given.

        Returns
        -------
        (n,) or (n, K) array
            Classes (int64) for losses over classes; 0 or 1 (int64) for sigmoid cross-entropy; rates for Poisson;
            values for the others.  (n,) where there is one output.
        """
        return self._learner.answer(self.spec.loss.predict, x, batch_size)

    def predict_proba(self, x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return probabilities, (n, classes), or (n, 1) for one sigmoid output; ValueError where the loss has none."""
        loss = self.spec.loss
        loss.probabilities(np.zeros((0, self.spec.units[-1]), self.dtype))  # refuses before the work, not after it
        return self._learner.answer(loss.probabilities, x, batch_size)

    def predictor(self) -> Predictor:
        """Return a function that predicts one example at a time, at the least cost a call.

        ``predictor(x)`` for x (I,) is ``model.predict(x[None])[0]``, ``predictor.outputs(x)`` the outputs, (K,).  It
        holds a copy of the weights.
        """
        return self._learner.predictor()

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
        return self._learner.loss_and_gradients(self._learner.data(x, y, sample_weight))

    # --- weights ---

    def get_weights(self) -> list[NDArray[Any]]:
        """Return copies of the weights that predict, the moving average if there is one: [W1 (I, O), b1 (O,), ...]."""
        return self._learner.weights()

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set the weights and biases, and their moving average if there is one; the optimizer's moments stay.

        Parameters
        ----------
        weights : sequence of array_like
            [W1 (I, O), b1 (O,), W2, ...]; ValueError, and nothing has changed, for other shapes or what is not finite.
        """
        flat = check_weights(self._learner.state.layout, self.dtype, weights, backend=self.backend)
        self._learner.set_parameters(flat, flat)

    def freeze(self, *layers: int) -> None:
        """Let layers, from 0 (inputs) or -1 (outputs), keep their numbers; ValueError for no such one, or none."""
        if not layers:
            raise ValueError("freeze needs the numbers of layers, such as freeze(0); to let all train use unfreeze()")
        self._learner.freeze(layers, True)

    def unfreeze(self, *layers: int) -> None:
        """Let these layers train, or all where none is named; counted, and refused, as by `freeze`."""
        self._learner.freeze(layers or range(self.spec.layers), False)

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, and of their average if there is one, by the names they have in files."""
        return self._learner.snapshot()

    def restore_snapshot(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the parameters, and their average if there is one, from a `snapshot`; ValueError for another's."""
        state, dtype = self._learner.state, self.dtype
        self._learner.set_parameters(*check_snapshot(state, dtype, arrays, backend=self.backend))

    # --- files and places ---

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network and the weights that predict to a safetensors file, in one piece.

        Raises
        ------
        ValueError
            The loss or an initializer is of a class of your own: a file cannot hold code.  Of an activation or a loss
            that was registered it holds the name, and `fastmlp.load` needs it registered again in another process.  Or
            a weight is not finite.
        OSError
            The file cannot be written; one that was there is as it was.
        """
        save_model(self._learner, path)

    def to(self, backend: str | Backend) -> MLP:
        """Move the model, moments and all, to another backend; returns the model."""
        self._learner.move(*chosen_backend(backend))
        return self

    def memory_estimate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        batch_size: int | None = None,
        optimizer: Optimizer | str | None = None,
        sample_weight: ArrayLike | None = None,
        parallel: Ranks | None = None,
    ) -> dict[str, int]:
        """Return how many bytes `fit` would take where the model runs, beside what is there already.

        Nothing is allocated.  Prediction and validation, in chunks, take a little more, and the first fit on a GPU uses
        copies of the parameters, where there is room.  Parameters as for `fit`.

        Returns
        -------
        dict
            ``parameters``, with the optimizer's moments and an average of the weights; ``data``, the copy on a GPU;
            ``order``, of the rows of an epoch; ``workspace``, what a training step works in; ``total``.
        """
        data, size = self._learner.data(x, y, sample_weight), batches.check_batch_size(batch_size)
        with grouped(parallel) as group:
            return runs.memory_estimate(self._learner, data, size, optimizer, group)

    def close(self) -> None:
        """Let go of the memory that is kept between calls; the model stays usable, and what it needs is made again."""
        self._learner.sessions.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._learner.__getstate__()

    def __setstate__(self, values: dict[str, Any]) -> None:
        self._learner = Learner.__new__(Learner)
        self._learner.__setstate__(values)
