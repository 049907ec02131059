"""L-BFGS over all rows at once: SciPy's, on the flat parameters of a learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.network.plan import Plan, Precision

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData
    from fastmlp.engine.learner import Learner


class Found(NamedTuple):
    """What came of it.

    Attributes
    ----------
    iterations : int
    loss : float
    problem : str
        Why it did not converge; empty where it did.
    """

    iterations: int
    loss: float
    problem: str


def minimize(
    learner: Learner,
    data: HostData,
    alpha: float,
    value: float,
    gradient: float,
    constant: float,
    asked: Mapping[str, Any],
    verbose: bool,
) -> Found:
    """Minimise ``value loss + constant + alpha / 2 ||W||^2 / rows``; the learner's parameters are overwritten.

    Parameters
    ----------
    learner : Learner
        Its spec has ``alpha / gradient`` as L2, over the rows.
    data : HostData
    alpha : float
    value, gradient : float
        What the learner's loss, and its gradient, are multiplied by.
    constant : float
    asked : mapping
        SciPy's options: ``maxiter``, ``maxfun``, ``gtol``.
    verbose : bool
        Print a line an iteration.
    """
    from scipy.optimize import minimize as scipy_minimize

    backend, state, layout = learner.backend, learner.state, learner.state.layout
    plan = Plan(learner.spec.deterministic(), len(data), Precision.of(learner.dtype), True)
    total = float(len(data)) if data.weights is None else float(data.weights.sum(dtype=np.float64))
    # the gaps of the flat buffer hold zeros and have no gradient: they are left out, so that sums are as they would be
    inside = np.zeros(layout.size, np.bool_)
    for pair in layout.views(inside):
        for view in pair:
            view[...] = True
    weights = int(inside[: layout.weights_size].sum())
    flat = np.zeros(layout.size, learner.dtype)

    with learner.exclusive(), learner.sessions.use(plan) as session:
        there = data.on(backend.asarray)

        def loss_and_gradient(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            flat[inside] = x
            state.params[...] = backend.asarray(flat)
            loss = backend.loss_and_gradients(session, state.params, there, 1 / total)
            norm = float(x[:weights] @ x[:weights])
            own = loss - 0.5 * alpha / gradient / total * norm
            grads = backend.to_numpy(session.grads)[inside].astype(np.float64)
            return value * own + constant + 0.5 * alpha * norm / total, gradient * grads

        def tell(intermediate_result: Any) -> None:
            print(f"loss = {intermediate_result.fun:.8f}")

        start = backend.to_numpy(state.params)[inside].astype(np.float64)
        more = {"callback": tell} if verbose else {}
        found = scipy_minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=dict(asked), **more)
        flat[inside] = found.x
        state.params[...] = backend.asarray(flat)
        learner.paused = None
        if state.average is not None:
            state.average, state.optimizer = None, None
    problem = ""
    if found.status:
        problem = (
            f"lbfgs failed to converge after {found.nit} iteration(s) (status={found.status}):\n{found.message}\n\n"
            "Increase the number of iterations to improve the convergence "
            f"(max_iter={asked['maxiter']}).\nYou might also want to scale the data."
        )
    return Found(int(found.nit), float(found.fun), problem)
