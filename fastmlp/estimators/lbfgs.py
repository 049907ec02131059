"""L-BFGS over all rows at once: SciPy's, on the flat parameters of a learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.sparse import SparseRows
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
    n = len(data)
    most = data.x.at_once(1) if isinstance(data.x, SparseRows) else n
    parts = [slice(first, min(first + most, n)) for first in range(0, n, most)]
    spec = learner.spec.deterministic()
    if len(parts) > 1:
        spec = replace(spec, l2=0.0)  # not once for each of them
    plan = Plan(spec, min(most, n), Precision.of(learner.dtype), True)
    total = float(n) if data.weights is None else float(data.weights.sum(dtype=np.float64))
    # the gaps of the flat buffer hold zeros and have no gradient: they are left out, so that sums are as they would be
    inside = np.zeros(layout.size, np.bool_)
    for pair, frozen in zip(layout.views(inside), learner.spec.frozen, strict=True):
        for view in pair:
            view[...] = not frozen
    weights = int(inside[: layout.weights_size].sum())
    flat = learner.to_numpy(state.params).copy()
    kept = np.where(inside, 0, flat)[: layout.weights_size].astype(np.float64)
    norm_of_frozen = float(kept @ kept)

    penalty = alpha / gradient / total

    with learner.exclusive(), learner.sessions.use(plan) as session:
        whole = data.window(parts[0]).on(backend.asarray) if len(parts) == 1 else None

        def loss_of(part: slice) -> float:
            there = data.window(part).on(backend.asarray) if whole is None else whole
            return backend.loss_and_gradients(session, state.params, there, 1 / total)

        def loss_and_gradient(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            flat[inside] = x
            state.params[...] = backend.asarray(flat)
            norm = float(x[:weights] @ x[:weights]) + norm_of_frozen
            loss, grads = 0.0, np.zeros(len(x))
            for part in parts:
                loss += loss_of(part)
                grads += backend.to_numpy(session.grads)[inside]
            if spec.l2:
                loss -= 0.5 * penalty * norm
            else:
                grads[:weights] += penalty * x[:weights]
            return value * loss + constant + 0.5 * alpha * norm / total, gradient * grads

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
