"""The CuPy backend: training on an NVIDIA GPU, by fastmlp's own CUDA kernels and cuBLAS."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends import Availability
from fastmlp.backends.base import Rows, StepReport
from fastmlp.backends.cuda_probe import cuda_availability
from fastmlp.backends.cuda_products import BlasProducts, OwnProducts
from fastmlp.backends.cupy_operations import CupyOperations
from fastmlp.backends.cupy_step import TrainingStep
from fastmlp.session import Session

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.plan import Plan
    from fastmlp.state import TrainState

_log = logging.getLogger("fastmlp")

CAPTURED_BELOW = 2e9
"""Floating point operations of a step: up to here launches are expected to cost more than cuBLAS gains."""
WAYS = ("auto", "captured", "eager")


def probe() -> Availability:
    """Tell whether the backend can run here and, if not, why and the cure."""
    return cuda_availability()


def import_cupy() -> Any:
    """Import CuPy, which takes a quarter of a second, when a backend is made and not before."""
    import cupy

    return cupy


class CupyBackend(CupyOperations):
    """Runs on the GPU that is current where it is made.

    Parameters
    ----------
    tf32 : bool
        Let float32 products of cuBLAS round their factors to 11 bits, on tensor cores: faster, and about three decimal
        digits are left.
    way : str
        How training steps run: ``"captured"``, as CUDA graphs of fastmlp's own kernels, which suits small steps;
        ``"eager"``, kernel by kernel with products by cuBLAS; or ``"auto"``, captured where a step has less than
        2e9 floating point operations.

    Raises
    ------
    ValueError, TypeError
        An option is not one of these, or the two contradict each other.
    """

    name: ClassVar[str] = "cupy"

    def __init__(self, *, tf32: bool = False, way: str = "auto") -> None:
        if not isinstance(tf32, bool):
            raise TypeError(f"tf32 must be True or False, got {tf32!r}")
        if way not in WAYS:
            raise ValueError(f"way must be one of {', '.join(WAYS)}; got {way!r}")
        if tf32 and way == "captured":
            raise ValueError("tf32=True is for cuBLAS, which captured steps do not use; choose way='eager' or 'auto'")
        super().__init__(import_cupy(), tf32=tf32)
        self._way = way

    def __repr__(self) -> str:
        return f"CupyBackend(tf32={self._tf32}, way={self._way!r})"

    def choices(self) -> dict[str, Any]:
        return {"backend": self.name, "cupy": self._cupy.__version__, "tf32": self._tf32, "way": self._way}

    def open(self, plan: Plan) -> Session:
        return CupySession(self, plan)

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors the device has."""
        return int(self._cupy.cuda.Device().attributes["MultiProcessorCount"])

    def runs_captured(self, plan: Plan) -> bool:
        """Return whether the steps of a plan run as graphs."""
        units = plan.spec.units
        operations = 6.0 * plan.batch * sum(i * o for i, o in pairwise(units))
        chosen = self._way == "captured" or (self._way == "auto" and not self._tf32 and operations < CAPTURED_BELOW)
        _log.info("cupy: steps of %.3g operations run %s", operations, "captured" if chosen else "eagerly")
        return chosen

    def train_steps(
        self,
        session: Session,
        state: TrainState,
        data: Rows,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
    ) -> StepReport:
        plan = session.plan
        assert plan.optimizer is not None, "the session was made for prediction"
        if not (plan.spec.compiled and plan.optimizer.compiled):
            return super().train_steps(session, state, data, order, table, first, totals)
        assert isinstance(session, CupySession)
        done, finite, report = session.training(state, data).run(order, table, first, state.step)
        for sums in report:
            totals += sums
        state.step += done
        state.optimizer_step += done
        return StepReport(done, finite)


class CupySession(Session):
    """A session that also keeps its training steps, with their memory and graphs, from call to call."""

    def __init__(self, backend: CupyBackend, plan: Plan) -> None:
        super().__init__(backend, plan)
        self._cupy_backend = backend
        self._training: TrainingStep | None = None

    def training(self, state: TrainState, data: Rows) -> TrainingStep:
        """Return the steps that train these buffers on this data; made anew for others."""
        if self._training is None or not self._training.fits(state, data):
            self._training = None  # its memory is free before more is taken
            backend = self._cupy_backend
            captured = backend.runs_captured(self.plan)
            products = (OwnProducts if captured else BlasProducts)(backend, backend.multiprocessors)
            self._training = TrainingStep(backend, products, self.plan, state, data, captured=captured)
        return self._training
