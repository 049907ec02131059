"""The CuPy backend: training on an NVIDIA GPU, by fastmlp's own CUDA kernels and cuBLAS."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_flag
from fastmlp.backends.cuda.choice import choose_way, make_step, surely_eager
from fastmlp.backends.cuda.kept import kept_path, machine
from fastmlp.backends.cuda.memory import arena_on, check_fit, data_bytes, steps_bytes
from fastmlp.backends.cuda.nccl import carried, own_gpu
from fastmlp.backends.cuda.predictions import CupyPredictions, ForwardSession
from fastmlp.backends.cuda.probe import cuda_availability
from fastmlp.backends.cuda.products import BlasProducts, CapturedProducts, StepProducts
from fastmlp.backends.cuda.shards import CapturedShares, shared_bytes
from fastmlp.backends.cuda.tested import selftest_passed as selftest_passed
from fastmlp.backends.cuda.update import Update
from fastmlp.backends.decisions import Decisions
from fastmlp.backends.foreign import lies_on_gpu, speaks_dlpack
from fastmlp.backends.registry import Availability
from fastmlp.backends.session import Ahead, Session, StepReport
from fastmlp.errors import DataError
from fastmlp.streams import reached

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import SharedSteps
    from fastmlp.backends.cuda.step import TrainingStep
    from fastmlp.backends.data import DeviceData, HostData
    from fastmlp.formulas.optimizers import StepScalars
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Carrier, Group
    from fastmlp.parallel.tree import Share

_UPLOAD = 256 * 2**20
"""Bytes, at most, of an array in host memory that are brought to the device at once, where it can be cut."""
TF32_FROM = 80
"""Compute capability from which tensor cores multiply TF32."""
WAYS = ("auto", "captured", "eager")


def probe() -> Availability:
    """Tell whether the backend can run here and, if not, why and the cure."""
    return cuda_availability()


def import_cupy() -> Any:
    """Import CuPy, which takes a quarter of a second, when a backend is made and not before."""
    import cupy

    return cupy


class CupyBackend(CupyPredictions):
    """Runs on the GPU that is current where it is made.

    Parameters
    ----------
    tf32 : bool
        Let float32 products of cuBLAS round their factors to 11 bits, on tensor cores: faster, and about three decimal
        digits are left.  It is asked for with each product; no switch of the process is touched.  Steps run eagerly
        then: captured ones are in full precision, cuBLAS within them too.
    way : str
        How training steps run: ``"captured"``, as CUDA graphs of fastmlp's own kernels, which suits small steps;
        ``"eager"``, kernel by kernel with products by cuBLAS; or ``"auto"``, the faster of the two: tried on the steps
        of the first run of a network and batch size that is long enough for it, logged, and kept for this GPU and in
        checkpoints; until then, and for several ranks, by the number of operations (of a shard).

    Raises
    ------
    ValueError, TypeError
        An option is not one of these, the two contradict each other, or the GPU cannot do it.
    """

    name: ClassVar[str] = "cupy"

    def __init__(self, *, tf32: bool = False, way: str = "auto") -> None:
        tf32 = check_flag("tf32", tf32)
        if way not in WAYS:
            raise ValueError(f"way must be one of {', '.join(WAYS)}; got {way!r}")
        if tf32 and way == "captured":
            raise ValueError(
                "tf32=True is for steps that run eagerly: in captured ones all products are in full precision; choose "
                "way='eager' or 'auto', or leave tf32 out"
            )
        super().__init__(import_cupy(), tf32=tf32)
        cuda = self._cupy.cuda
        capability = int(cuda.Device().compute_capability)
        if tf32 and capability < TF32_FROM:
            raise ValueError(
                f"tf32=True needs a GPU of compute capability {TF32_FROM / 10} (Ampere, 2020) or newer, whose "
                f"tensor cores know it; this one has {capability / 10}: leave tf32 out"
            )
        self._way = way
        self._ways: dict[Plan, str] = {}
        self._foreign: set[object] = set()  # a mark for each array of another library that is in use

    def __repr__(self) -> str:
        return f"CupyBackend(tf32={self._tf32}, way={self._way!r})"

    @property
    def options(self) -> dict[str, Any]:
        given = {"tf32": self._tf32, "way": self._way}
        return {name: value for name, value in given.items() if value not in (False, "auto")}

    def choices(self) -> dict[str, Any]:
        return {"backend": self.name, "cupy": self._cupy.__version__, "tf32": self._tf32, "way": self._way}

    # --- arrays and streams of others ---

    def take(self, array: Any, argument: str) -> Array | None:
        if not lies_on_gpu(array):
            return None
        whose = f"{type(array).__module__}.{type(array).__name__}"
        own: Array = array
        if not isinstance(array, self._cupy.ndarray):
            number = array.__dlpack_device__()[1] if speaks_dlpack(array) else None
            if number is None or number == self.device:
                try:
                    with self.placed():
                        # by DLPack its owner makes our stream wait; the other protocol makes the host wait
                        own = self._cupy.asarray(array) if number is None else self._cupy.from_dlpack(array)
                    mark = object()
                    self._foreign.add(mark)
                    weakref.finalize(own, self._foreign.discard, mark)
                except (BufferError, RuntimeError, TypeError, ValueError) as e:
                    raise DataError(f"{argument} cannot be taken as it lies on the GPU, a {whose}: {e}") from e
        else:
            number = None
        number = own.device.id if number is None else number
        if number != self.device:
            raise DataError(
                f"{argument} lies on GPU {number}, a {whose}, and the model is on GPU {self.device}; copy it there, or "
                f"make a backend within `with cupy.cuda.Device({number})`, by fastmlp.get_backend('cupy', way='auto'), "
                "and move the model to it"
            )
        return own

    def to_numpy(self, array: Array) -> NDArray[Any]:
        with self.placed():
            return super().to_numpy(array)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with self.placed():
            caller = self._cupy.cuda.get_current_stream()
            if caller.ptr == self._stream.ptr:
                yield
                return
            self._stream.wait_event(reached(self._cupy, caller))
            try:
                with self._stream:
                    yield
            except BaseException:
                with contextlib.suppress(*self.cuda_errors):
                    self._hand_back(caller)
                raise
            self._hand_back(caller)

    def _hand_back(self, caller: Any) -> None:
        """Let the caller's stream go on after ours; and wait for ours where nobody knows who else does."""
        caller.wait_event(reached(self._cupy, self._stream))
        if self._foreign:
            # their owner writes them, or gives their memory away, on a stream of its own that we cannot make wait
            self._stream.synchronize()

    def placed(self) -> contextlib.AbstractContextManager[object]:
        device: contextlib.AbstractContextManager[object] = self._cupy.cuda.Device(self.device)
        return device

    def rows_at_once(self, row_bytes: int) -> int:
        memory = self.memory_info()
        return max(min(_UPLOAD, (memory["free"] + memory["kept"]) // 4) // max(row_bytes, 1), 1)

    # --- several ranks ---

    def of_rank(self, group: Group) -> Self:
        if not group.gpu_each:
            return self
        number = own_gpu(group, self._cupy, self.device)
        if number == self.device:
            return self
        with self._cupy.cuda.Device(number):
            return type(self)(tf32=self._tf32, way=self._way)

    def carrying(self, group: Group) -> contextlib.AbstractContextManager[Carrier]:
        return carried(group, self._cupy)

    # --- memory ---

    def _ways_of(self, plan: Plan) -> list[StepProducts]:
        """Return the products with which the steps of a plan may run, as far as is known."""
        way = "eager" if self._tf32 else self._ways.get(plan, self._way)
        if way == "auto" and surely_eager(plan):
            way = "eager"
        own = CapturedProducts(self, self.multiprocessors, plan)
        blas = BlasProducts(self, self.multiprocessors)
        ways: dict[str, list[StepProducts]] = {"captured": [own], "eager": [blas], "auto": [own, blas]}
        return ways[way]

    def memory_info(self) -> dict[str, int]:
        with self.placed():
            return super().memory_info()

    def memory_estimate(self, plan: Plan, data: HostData, share: Share | None = None) -> dict[str, int]:
        # two orders, because the next is made while one is worked through; the step has its own copy
        found = super().memory_estimate(plan, data, share)
        return {**found, "data": data_bytes(plan, data), "order": 16 * len(data)}

    def workspace_bytes(self, plan: Plan, data: HostData, share: Share | None) -> int:
        if share is not None:
            return max(needs(plan) for needs in self._shared_ways(plan, data, share))
        if not _compiled(plan):
            return super().workspace_bytes(plan, data, share)
        return max(steps_bytes(plan, products, data) for products in self._ways_of(plan))

    def _shared_ways(self, plan: Plan, data: HostData, share: Share) -> list[Callable[[Plan], int]]:
        """Return functions of a plan: what steps of several ranks take in the ways in which they may run."""
        composed = functools.partial(self._composed_bytes, data=data, share=share)
        if not _compiled(plan) or self._shared_wish() == "eager":
            return [composed]
        captured = functools.partial(shared_bytes, self, data=data, share=share)
        return [captured] if self._way == "captured" else [captured, composed]

    def _composed_bytes(self, plan: Plan, data: HostData, share: Share) -> int:
        return super().workspace_bytes(plan, data, share)

    def check_memory(self, plan: Plan, data: HostData, more: int, share: Share | None = None) -> None:
        if share is not None:
            check_fit(plan, self._shared_ways(plan, data, share), data, more, self.memory_info())
        elif _compiled(plan):

            def needs(plan: Plan, products: StepProducts) -> int:
                return arena_on(plan, products, data).nbytes

            ways = [functools.partial(needs, products=products) for products in self._ways_of(plan)]
            check_fit(plan, ways, data, more, self.memory_info())

    def open(self, plan: Plan) -> Session:
        return CupySession(self, plan)

    def decisions(self, what: str, dtype: np.dtype[Any]) -> Decisions:
        return Decisions(kept_path(f"{what}-{dtype}", self._here), self._here)

    @functools.cached_property
    def _here(self) -> dict[str, Any]:
        """For what decisions hold."""
        with self.placed():
            return machine(self._cupy)

    def way_of(self, plan: Plan, state: TrainState, data: DeviceData, resumed: str | None) -> tuple[str, bool]:
        """Return the way that the steps of a plan run, and whether it is settled; see `choose_way`.

        Parameters
        ----------
        plan : Plan
        state : TrainState
            Not changed.
        data : DeviceData
        resumed : str, optional
            The way of the run that goes on, which is taken where the choice is left to the backend.
        """
        if self._way == "eager" or self._tf32:
            return "eager", True
        wanted = resumed or "auto" if self._way == "auto" else self._way
        found, settled = self._ways.get(plan), True
        if found is None or (resumed is not None and found != wanted):
            found, settled = choose_way(self, plan, state, data, wanted)
            if settled:
                self._ways[plan] = found
        return found, settled

    def try_ways(
        self, session: CupySession, state: TrainState, data: DeviceData, table: NDArray[np.float64], ahead: Ahead
    ) -> str | None:
        """Return the faster way where a trial of steps, or one that was kept, tells it; see `trial`."""
        from fastmlp.backends.cuda.trial import decide

        found = decide(self, session, state, data, table, ahead)
        if found is not None:
            self._ways[session.plan] = found
        return found

    def train_steps(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
    ) -> StepReport:
        plan = session.plan
        if plan.optimizer is None or not _compiled(plan):
            return super().train_steps(session, state, data, order, table, first, totals)
        assert isinstance(session, CupySession)
        session.settle(state, data, table)
        step = session.training(state, data)
        done, finite, report = step.run(order, table, first, state.step, session.meanwhile)
        for sums in report:
            totals += sums
        state.step += done
        state.optimizer_step += done
        return StepReport(done, finite)

    def _shared_wish(self) -> str | None:
        """Return the way that steps of several ranks have to run, None where that is open."""
        return "eager" if self._tf32 else None if self._way == "auto" else self._way

    def open_shared(self, session: Session, carrier: Carrier, share: Share) -> SharedSteps | None:
        if not isinstance(session, CupySession) or not _compiled(session.plan):
            return None
        wish = self._shared_wish() or session.resumed
        session.shared_way = "eager" if wish == "eager" else None
        if wish == "eager":
            return None
        shares = CapturedShares(self, session.plan, carrier, share, wish)

        def steps(
            state: TrainState,
            data: DeviceData,
            order: Array,
            table: NDArray[np.float64],
            first: int,
            totals: NDArray[np.float64],
        ) -> StepReport | None:
            report = shares.run(state, data, order, table, first, totals, session.meanwhile)
            session.shared_way = shares.way
            return report

        return steps

    def apply_gradients(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        if isinstance(session, CupySession) and _compiled(session.plan):
            session.update.run(state, scalars)
        else:
            super().apply_gradients(session, state, scalars)


def _compiled(plan: Plan) -> bool:
    """Return whether all that a plan does is in kernels."""
    assert plan.optimizer is not None, "the session was made for prediction"
    return plan.spec.compiled and plan.optimizer.compiled


class CupySession(ForwardSession):
    """A session that also keeps its training steps, with their memory and graphs; those on much data for one run."""

    call_seconds = 0.05

    def __init__(self, backend: CupyBackend, plan: Plan) -> None:
        super().__init__(backend, plan)
        self._cupy_backend = backend
        self._training: TrainingStep | None = None
        self._way: str | None = None
        self._settled = False
        """Whether its way stays as it is."""
        self.resumed: str | None = None
        """The way of the run that goes on."""
        self.shared_way: str | None = None
        """The way that the steps of its run of several ranks have."""

    def choices(self) -> dict[str, Any]:
        choices = self._cupy_backend.choices()
        return {**choices, "way": self._way or self.resumed or choices["way"]}

    def shared_choices(self) -> dict[str, Any]:
        choices = self._cupy_backend.choices()
        return {**choices, "way": self.shared_way or self.resumed or choices["way"]}

    def adopt(self, choices: Mapping[str, Any]) -> None:
        own = self._cupy_backend.choices()
        alike = all(choices.get(name) == own[name] for name in ("backend", "tf32"))
        if alike and own["way"] == "auto" and choices.get("way") in ("captured", "eager"):
            self.resumed, self._way, self._training = choices["way"], None, None

    @property
    def way(self) -> str:
        """The way that its steps run."""
        assert self._way is not None, "it is chosen by the first steps"
        return self._way

    def fix(self, way: str) -> None:
        """Let its steps run in this way from now on, and no other any more."""
        if way != self._way:
            self._training = None  # whose graphs, or lists of launches, are of no use any more
        self._way, self._settled = way, True

    def settle(self, state: TrainState, data: DeviceData, table: NDArray[np.float64]) -> None:
        """Try the ways of steps at the first ones of a run, if that is left open; the table tells of them."""
        ahead, self.ahead = self.ahead, Ahead(0)
        if self._way is None:
            self._choose(state, data)
        if ahead.steps and not self._settled:
            found = self._cupy_backend.try_ways(self, state, data, table, ahead)
            if found is not None:
                self.fix(found)

    def _choose(self, state: TrainState, data: DeviceData) -> None:
        self._way, self._settled = self._cupy_backend.way_of(self.plan, state, data, self.resumed)

    @cached_property
    def update(self) -> Update:
        """The end of a step, from the gradients in ``grads``."""
        return Update(self._cupy_backend, self.plan, self.grads)

    def training(self, state: TrainState, data: DeviceData) -> TrainingStep:
        """Return the steps that train these buffers on this data; made anew for others, where they have to be."""
        step = self._training
        if step is not None and step.trains(state) and not step.reads(data) and step.can_read(data):
            step.read(data)
        if step is None or not step.fits(state, data):
            step = self._training = None  # its memory is free before more is taken
            if self._way is None:
                self._choose(state, data)
            captured = self._way == "captured"
            step = self._training = make_step(self._cupy_backend, self.plan, state, data, captured=captured)
        return step

    def release(self) -> None:
        if self._training is not None and not self._training.let_go():
            self._training = None
