"""A network bound to memory of its own: what a call costs beside the products is made ready once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.network.plan import Plan


class Bound:
    """Works out outputs `out` of inputs `x`, (rows, I), whatever they and the parameters hold by then.

    Both are in host memory.  One thread at a time.

    Parameters
    ----------
    backend : Backend
    plan : Plan
        For prediction.
    params : (size,) array
        Flat parameters on that backend; not copied.
    rows : int
    """

    def __init__(self, backend: Backend, plan: Plan, params: Array, rows: int) -> None:
        dtype = plan.precision.products
        self.plan, self.params, self.rows = plan, params, rows
        self.x = backend.staging((rows, plan.spec.units[0]), dtype)
        self.out = backend.staging((rows, plan.spec.units[-1]), dtype)
        self.session = backend.open(plan)
        self.run = backend.bind_predict(self.session, params, self.x, self.out)

    def fits(self, plan: Plan, params: Array, rows: int) -> bool:
        """Return whether it was bound to just these."""
        return self.plan is plan and self.params is params and self.rows == rows
