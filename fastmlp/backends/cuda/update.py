"""The end of a step whose gradients come from elsewhere, such as other ranks: the kernels of a training step, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmlp.backends.cuda.launches import StepLaunches
from fastmlp.backends.cuda.memory import Arena, chunk_table, flat_gradients, update_parts
from fastmlp.backends.cuda.operations import rule_numbers
from fastmlp.formulas.optimizers import StepScalars

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState


class Update(StepLaunches):
    """Clips, updates, limits and averages on the device, which tells the host nothing: no step waits for it.

    Parameters
    ----------
    operations : CupyOperations
    plan : Plan
        Of which all is compiled.
    grads : (size,) float
        Of all parameters, in their layout, L2 included.
    """

    def __init__(self, operations: CupyOperations, plan: Plan, grads: Array) -> None:
        assert plan.optimizer is not None, "the session was made for prediction"
        self._operations, self._plan, self._optimizer = operations, plan, plan.optimizer
        self.gradients = flat_gradients(plan)
        self._chunks_on_host = chunk_table(plan, self.gradients)
        arena = Arena(update_parts(len(self._chunks_on_host), 1))
        self.memory = arena.allocate(operations._cupy) | {"grads": grads}
        for name in ("cursor", "frozen"):
            self.memory[name][...] = 0
        operations.fill(self.memory["chunks"], self._chunks_on_host)
        operations.fill(self.memory["rule"], rule_numbers(self._optimizer, plan.spec.l2))

    def run(self, state: TrainState, scalars: StepScalars) -> None:
        """Take the rest of a step; see `Backend.apply_gradients`."""
        self._params, self._average = state.params, state.average
        self._moments = self._optimizer.by_role(state.moments)
        # L2 is there already; and whoever asks has looked whether the batch weighs anything
        now = scalars._replace(l2_share=0.0, inverse_total=1.0)
        self._operations.fill(self.memory["table"], np.array([now]))
        self._apply_gradients(0, self._plan.layout.views(state.params))
