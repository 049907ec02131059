"""The Numba backend: runs of training steps, predictions and evaluations as single compiled calls on all cores."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count
from fastmlp.backends.cpu import blas
from fastmlp.backends.cpu.choices import decisions
from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cpu.limits import default_threads, own_cores, physical_cores, shared_out
from fastmlp.backends.cpu.near import reach_of_direct
from fastmlp.backends.cpu.operations import NumbaOperations
from fastmlp.backends.cpu.said import said_if_it_takes_long
from fastmlp.backends.cpu.session import NumbaSession
from fastmlp.backends.cpu.shards import add_up_shards, shards_bytes
from fastmlp.backends.cpu.threads import on_meeting_threads, on_threads, shares_of
from fastmlp.backends.data import DeviceData
from fastmlp.backends.decisions import Decisions
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.backends.registry import Availability
from fastmlp.backends.session import Ahead, Session, StepReport
from fastmlp.formulas.activations import get_activation

if TYPE_CHECKING:
    from fastmlp.backends.base import AddUp
    from fastmlp.backends.data import HostData
    from fastmlp.formulas.optimizers import StepScalars
    from fastmlp.network.plan import Plan, Precision
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Carrier, Group
    from fastmlp.parallel.tree import Share, TreeSum

_log = logging.getLogger("fastmlp")

MOST_THREADS = 4096
"""More than any machine has cores; each has memory of its own."""

_compiled: set[tuple[bool, Precision]] = set()
"""Of the calls that train (True) and that predict, those that are compiled in this process."""
_proven: dict[tuple[bool, Precision], bool] = {}
"""Of these, whether they compute what NumPy does; where one does not, nothing that is compiled is used any more."""


def probe() -> Availability:
    """Tell whether the backend can run here, without importing Numba."""
    for package, name in (("numba", "numba"), ("scipy_openblas32", "scipy-openblas32")):
        if importlib.util.find_spec(package) is None:
            return Availability(False, f"the package {name} is not installed; pip install {name}")
    if importlib.util.find_spec("fastmlp.kernels") is None:
        return Availability(
            False,
            "fastmlp was imported from its source folder, which holds its kernels elsewhere; install it "
            "(pip install . or pip install -e .) and start Python in another folder, or with the option -P",
        )
    return Availability(True)


_here = threading.local()
_NUMPY = NumpyBackend()


class NumbaBackend(NumbaOperations):
    """Runs on the CPU, compiled by Numba, with a BLAS of its own.

    Parameters
    ----------
    threads : int, optional
        How many threads a call may use.  When not given, the smallest of the physical cores that the process may use
        and the limits at the time of the call: ``OMP_NUM_THREADS``, ``NUMBA_NUM_THREADS``, `numba.set_num_threads`,
        `threadpoolctl.threadpool_limits` and what joblib gives its workers.  The same number gives the same bits; other
        numbers agree within rounding.
    products : {'auto', 'rule', 'blas', 'direct', 'packed'}
        How products of layers are computed: by a rule from the processor and the sizes, or ('auto') otherwise where
        steps of a training run were tried and faster so, see `fastmlp.backends.cpu.trial`; or all of them by a BLAS, by
        tiles that read matrices where they lie, or by tiles that read copies of them.  Forms differ by rounding.  Where
        there are no tiles (the processor has no fused multiply-adds, or Numba's JIT is off) all are the BLAS's.

    Raises
    ------
    TypeError, ValueError
        `threads` is no number above 0, or `products` is none of these.
    """

    name: ClassVar[str] = "numba"

    def __init__(self, *, threads: int | None = None, products: str = "auto") -> None:
        super().__init__(Forms(products))
        also = "or None for the physical cores"
        self._threads = None if threads is None else check_count("threads", threads, also=also)
        if self._threads is not None and self._threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, {also}; got {threads!r}")
        from fastmlp.kernels.cpu import blas as kernel_blas

        kernel_blas.bind(*blas.addresses())

    @property
    def options(self) -> dict[str, Any]:
        given: dict[str, Any] = {} if self._threads is None else {"threads": self._threads}
        return given if self.forms.way == "auto" else {**given, "products": self.forms.way}

    @property
    def threads(self) -> int:
        """How many threads a call may use."""
        return min(self._most(), self._threads or default_threads())

    def _most(self) -> int:
        """Return how many threads a call may use where nothing limits them."""
        import numba

        if getattr(numba.config, "DISABLE_JIT", 0):  # threads wait for each other in compiled code only
            return 1
        return self._threads or physical_cores()

    def _shares(self, session: NumbaSession, rows: int) -> tuple[NDArray[np.int64], int]:
        """Return which rows each thread runs forward, and how many of them at once; no bits of tiles depend on it.

        To ask for limits takes longer than one row does.
        """
        from fastmlp.kernels.cpu.predict import RUN

        runs = -(-rows // RUN)
        threads = min(runs, session.chosen.threads_for(rows))
        return shares_of(rows, min(threads, self.threads) if threads > 1 else 1, session.chunk)

    def __repr__(self) -> str:
        return f"NumbaBackend(threads={self.threads})"

    def choices(self) -> dict[str, Any]:
        import numba

        return {
            "backend": self.name,
            "numba": numba.__version__,
            "blas": blas.version(),
            "threads": self.threads,
            "products": self.forms.way,
            **({} if _trusted() else {"computed by": _NUMPY.name}),
        }

    def open(self, plan: Plan) -> NumbaSession:
        return NumbaSession(self, plan, lambda: self.threads if plan.optimizer else self._most(), self.forms)

    def workspace_bytes(self, plan: Plan, data: HostData, share: Share | None) -> int:
        assert plan.optimizer is not None
        if not (plan.spec.compiled and plan.optimizer.compiled):
            return super().workspace_bytes(plan, data, share)
        session = self.open(plan)
        return session.training_bytes() if share is None else shards_bytes(session, self.forms, share, self.threads)

    @contextlib.contextmanager
    def carrying(self, group: Group) -> Iterator[Carrier]:
        own = own_cores()
        with shared_out(group.share(own).count(own)):
            yield group

    def decisions(self, what: str, dtype: np.dtype[Any]) -> Decisions:
        return decisions(what, dtype)

    # --- coarse operations ---

    def prepare(self, session: Session, check: Callable[[], None]) -> None:
        plan = session.plan
        if not _compiles(plan):
            return
        assert isinstance(session, NumbaSession)
        self._compile(session, check)
        if not self._prove(plan):
            return
        dtype = plan.precision.products
        if self.forms.lacks(dtype):
            training, plain = plan.optimizer is not None, NumbaBackend(threads=1, products="rule")
            reach = functools.partial(reach_of_direct, training, plan.precision, plain)
            with said_if_it_takes_long(f"measuring threads and products in {dtype}, about a second"):
                self.forms.measure(dtype, reach, check)
        session.choose_again()

    def _prove(self, plan: Plan) -> bool:
        """Return whether compiled calls may be trusted; see `proof`."""
        kind = plan.optimizer is not None, plan.precision
        if kind in _proven or not _trusted() or getattr(_here, "proving", False):
            return _trusted()
        import numba

        from fastmlp.backends.cpu.proof import prove

        _here.proving = True  # this thread goes on, to show it; others prove it too
        try:
            interpreted = bool(getattr(numba.config, "DISABLE_JIT", 0))
            _proven[kind] = interpreted or prove(*kind, lambda form: NumbaBackend(threads=1, products=form))
        finally:
            _here.proving = False
        return _trusted()

    def _compile(self, session: NumbaSession, check: Callable[[], None]) -> None:
        plan = session.plan
        kind = plan.optimizer is not None, plan.precision
        if kind in _compiled:
            return
        from fastmlp.kernels.cpu.compiling import compile_aside

        # by one thread, before others wait for each other in it; no step is taken
        call = _call_without_steps(session) if plan.optimizer is not None else _call_without_rows(session)
        what, seconds = ("train", "ten to fifteen") if plan.optimizer is not None else ("predict", "about five")
        with said_if_it_takes_long(
            f"compiling the kernels that {what} in {plan.precision.products}, {seconds} seconds"
        ):
            compile_aside(call, check)
        _compiled.add(kind)

    def train_steps(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        order: NDArray[np.intp],
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
    ) -> StepReport:
        plan = session.plan
        if plan.optimizer is None or not self._runs_compiled(session):
            return self._composed().train_steps(session, state, data, order, table, first, totals)
        return self._train(session, state, data, (order, len(order)), table, first, (totals.reshape(1, 3), np.empty(0)))

    def train_epochs(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        orders: NDArray[np.intp],
        table: NDArray[np.float64],
        totals: NDArray[np.float64],
        norms: NDArray[np.float64],
    ) -> StepReport:
        plan = session.plan
        if plan.optimizer is None or not self._runs_compiled(session):
            return self._composed().train_epochs(session, state, data, orders, table, totals, norms)
        return self._train(session, state, data, (orders.reshape(-1), orders.shape[1]), table, 0, (totals, norms))

    def _train(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        order: tuple[NDArray[np.intp], int],
        table: NDArray[np.float64],
        first: int,
        sums: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> StepReport:
        """Train on epochs that follow each other: `order` is their rows, and how many each has."""
        from fastmlp.kernels.cpu.train import train_thread

        assert isinstance(session, NumbaSession)
        if session.ahead.steps and session.chosen.undecided:
            self._try_ways(session, state, data, table)
        done = np.zeros(1, np.int64)
        memory, parts = session.memory, session.chosen.parts
        shared = session.network, session.rule, session.data(data), session.buffers(state), memory
        rows, key = (np.asarray(order[0], np.int64), order[1]), np.uint64(state.key)
        steps = 0
        for threads, count in session.chosen.crew.calls(len(table)):
            arguments = (
                *(parts, *shared, *rows, session.plan.batch, first + steps, table[steps : steps + count]),
                *(key, np.uint64(state.step + steps), *sums, done),
            )
            on_meeting_threads(threads, train_thread, arguments, memory.arrivals)
            steps += int(done[0])
            if done[0] < count:
                break
        state.step += steps
        state.optimizer_step += steps
        return StepReport(steps, steps == len(table))

    def _try_ways(self, session: NumbaSession, state: TrainState, data: DeviceData, table: NDArray[np.float64]) -> None:
        """Try which forms of products are the fastest in these steps, once in a run; see `trial`."""
        from fastmlp.backends.cpu.trial import decide

        ahead, session.ahead = session.ahead, Ahead(0)
        if decide(self, session, state, data, table, ahead):
            session.choose_again()

    def predict(self, session: Session, params: NDArray[Any], x: NDArray[Any], out: NDArray[Any]) -> None:
        if not self._runs_compiled(session):
            self._composed().predict(session, params, x, out)
            return
        from fastmlp.kernels.cpu.predict import predict_thread

        assert isinstance(session, NumbaSession)
        data, (shares, piece) = session.inputs(x), self._shares(session, len(x))
        memories, batch = session.inference_memory(len(shares)), session.chunk
        target, nothing, network = out.reshape(-1), np.empty(0), session.network_of(len(x))

        def work(t: int) -> None:
            predict_thread(t, shares.ravel(), piece, network, data, params, memories[t], batch, target, nothing)

        on_threads(len(shares), work, all_needed=False)

    def bind_predict(
        self, session: Session, params: NDArray[Any], x: NDArray[Any], out: NDArray[Any]
    ) -> Callable[[], object]:
        if not self._runs_compiled(session):
            return self._composed().bind_predict(session, params, x, out)
        from fastmlp.kernels.cpu.predict import predict_thread

        assert isinstance(session, NumbaSession)
        target, nothing = out.reshape(-1), np.empty(0)
        data, memory, batch = session.inputs(x), session.inference_memory(1)[0], session.chunk
        shares, piece = shares_of(len(x), 1, batch)
        given = 0, shares.ravel(), piece, session.network_of(len(x)), data, params, memory, batch, target, nothing
        return functools.partial(predict_thread, *given)

    def evaluate(self, session: Session, params: NDArray[Any], data: DeviceData) -> tuple[float, float, float]:
        if not self._runs_compiled(session):
            return self._composed().evaluate(session, params, data)
        from fastmlp.kernels.cpu.predict import RUN, predict_thread

        assert isinstance(session, NumbaSession)
        rows = len(data.x)
        record = session.data(data)
        shares, piece = self._shares(session, rows)
        memories, parts = session.inference_memory(len(shares)), np.zeros((-(-rows // RUN), 3))
        batch, nothing = session.chunk, np.empty(0, session.plan.precision.products)
        network, sums = session.network_of(rows), parts.reshape(-1)

        def work(t: int) -> None:
            predict_thread(t, shares.ravel(), piece, network, record, params, memories[t], batch, nothing, sums)

        on_threads(len(shares), work, all_needed=False)
        loss, weight, hits = parts.sum(axis=0).tolist()
        return loss, weight, hits

    def loss_and_gradients(
        self, session: Session, params: NDArray[Any], data: DeviceData, inverse_total: float
    ) -> float:
        return self._composed().loss_and_gradients(session, params, data, inverse_total)

    def batch_gradients(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        rows: NDArray[np.intp],
        scalars: StepScalars,
        first_row: int = 0,
    ) -> None:
        self._composed().batch_gradients(session, state, data, rows, scalars, first_row)

    def open_shards(self, session: Session, tree: TreeSum, bounds: Sequence[int]) -> AddUp | None:
        if not self._runs_compiled(session):
            return None
        assert isinstance(session, NumbaSession)
        return add_up_shards(session, self.forms, tree, bounds, self.threads)

    def finish_step(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        self._composed().finish_step(session, state, scalars)

    def apply_gradients(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        self._composed().apply_gradients(session, state, scalars)

    def first_nonfinite(
        self, session: Session, state: TrainState, data: DeviceData, order: NDArray[np.intp], position: int
    ) -> tuple[int, str]:
        return self._composed().first_nonfinite(session, state, data, order, position)

    def _runs_compiled(self, session: Session) -> bool:
        """Make ready for a call; return whether it is a compiled one, or composed of single operations."""
        if not _compiles(session.plan):
            return False
        self.prepare(session, _go_on)
        return _trusted()

    def _composed(self) -> NumpyBackend:
        """Return what composes calls of single operations: this backend, or NumPy's where kernels cannot be trusted."""
        return cast("NumpyBackend", super()) if _trusted() else _NUMPY


@functools.cache
def _say_composed(names: tuple[str, ...]) -> None:
    _log.warning(
        "%s: a function of your own cannot be compiled, so training and prediction run step by step, as on NumPy",
        ", ".join(names),
    )


def _call_without_steps(session: NumbaSession) -> Callable[[], object]:
    """Return the call that trains, as it is made by one thread for no steps."""
    from fastmlp.kernels.cpu import structures
    from fastmlp.kernels.cpu.train import train_thread

    plan = session.plan
    nothing = structures.Buffers(*[session.buffer("none", (0,), plan.precision.weights)] * 5)
    row = DeviceData(np.zeros((1, plan.spec.units[0]), plan.precision.products), np.zeros(1, np.int64), None)
    return functools.partial(
        train_thread,
        *(0, 1, 1, session.network, session.rule, session.data(row), nothing, session.memory),
        *(np.zeros(1, np.int64), 1, plan.batch, 0, np.zeros((0, 6)), np.uint64(0), np.uint64(0)),
        *(np.zeros((1, 3)), np.empty(0), np.zeros(1, np.int64)),
    )


def _call_without_rows(session: NumbaSession) -> Callable[[], object]:
    """Return the call that predicts, as it is made for no rows."""
    from fastmlp.kernels.cpu.predict import predict_thread

    dtype = session.plan.precision.products
    row = session.inputs(np.zeros((1, session.plan.spec.units[0]), dtype))
    memory, (shares, piece) = session.inference_memory(1)[0], shares_of(0, 1, 1)
    given = session.network, row, np.zeros(0, dtype), memory, 1, np.zeros(0, dtype), np.zeros(0)
    return functools.partial(predict_thread, 0, shares.ravel(), piece, *given)


def _trusted() -> bool:
    return all(_proven.values())


def _go_on() -> None:
    """Let what is prepared be prepared to its end."""


def _compiles(plan: Plan) -> bool:
    if plan.compiled or plan.spec.compiled:
        return plan.compiled
    own = [a for a in plan.spec.activations if not get_activation(a).compiled]
    own += [] if plan.spec.loss.compiled else [plan.spec.loss.name]
    _say_composed(tuple(dict.fromkeys(own)))
    return False
