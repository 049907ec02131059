"""Who is measured: fastmlp on each of its backends, and other libraries.  A library is imported when it is its turn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fastmlp.bench import peers
from fastmlp.bench.workloads import Rows, Workload


class Running(NamedTuple):
    """A network that is ready: what can be timed; each comes back when the device is done.

    Attributes
    ----------
    train : callable
        Trains so many epochs.
    predict : callable
        Gives the classes, or values, of many rows.
    row : callable
        Gives that of one row, in the host's memory and back.
    device_memory : callable, optional
        Gives the most bytes of a GPU's memory that were held at a time so far.
    """

    train: Callable[[int], Any]
    predict: Callable[[], Any]
    row: Callable[[], Any]
    device_memory: Callable[[], int] | None = None


class Contender(NamedTuple):
    """Somebody who trains networks.

    Attributes
    ----------
    label : str
    module : str
        What is imported; where it is not installed nothing is measured.
    device : {"cpu", "cuda"}
    make : callable
        Makes the network of a workload, given its spec, rows and a seed.
    compiles : bool
        Whether it compiles each shape anew.
    is_prepared : bool
        Whether what it compiles is kept on disk, and made ready before anything is measured.
    environment : dict
        Variables that its process needs.
    """

    label: str
    module: str
    device: str
    make: Callable[[Workload, Any, Rows, int], Running]
    compiles: bool = False
    is_prepared: bool = False
    environment: Mapping[str, str] = MappingProxyType({})


def own(backend: str, **options: Any) -> Contender:
    """Return the contender that is fastmlp on a backend with its options, through its public face."""

    def make(workload: Workload, spec: Any, rows: Rows, seed: int) -> Running:
        import numpy as np

        from fastmlp.backends.choosing import get_backend
        from fastmlp.engine.learner import Learner
        from fastmlp.model import MLP

        where = get_backend(backend, **options)
        model = MLP.from_learner(Learner.drawn(spec, np.dtype(workload.dtype), where, seed))
        x, y, many = rows.x, rows.y, rows.many
        if device == "cuda":  # an even race: the rows lie on the device before the clock starts, as the peers' do
            x, many = where.asarray(x), where.asarray(many)
        steps: dict[str, Any] = {"batch_size": workload.batch, "optimizer": workload.optimizer_record()}
        one, row = model.predictor(), rows.many[0]

        def train(epochs: int) -> None:
            model.fit(x, y, epochs=epochs, verbose=0, **steps)
            where.synchronize()

        def predict() -> Any:
            answers = model.predict(many)
            where.synchronize()
            return answers

        def device_memory() -> int:
            pool = where.memory_info()  # which gives nothing back by itself
            return int(pool["used"] + pool["kept"])

        return Running(train, predict, lambda: one(row), device_memory if device == "cuda" else None)

    device = "cuda" if backend == "cupy" else "cpu"
    return Contender(f"fastmlp {backend}", "fastmlp.model", device, make, is_prepared=backend != "numpy")


def peer(label: str, module: str, device: str, make: Callable[..., Any], **environment: str) -> Contender:
    """Return the contender that is another library on a device, in one of the ways of `peers`."""

    def made(*given: Any) -> Running:
        train, predict, row = make(*given, device)
        return Running(train, predict, row, peers.DEVICE_MEMORY[module] if device == "cuda" else None)

    return Contender(label, module, device, made, make is peers.torch_compiled, environment=environment)


CACHES = ("NUMBA_CACHE_DIR", "CUPY_CACHE_DIR", "CUDA_CACHE_PATH")
"""Variables that name the folders in which the code is kept that fastmlp compiles."""
GRAPH_STEPS = 16
"""Steps that a CUDA graph of PyTorch holds."""
PEERS = {
    "torch": peer("PyTorch", "torch", "cpu", peers.torch_eager),
    "jax": peer("JAX", "jax", "cpu", peers.jax_scan, JAX_PLATFORMS="cpu"),
    "sklearn": peer("scikit-learn", "sklearn.neural_network", "cpu", peers.scikit_learn),
    "torch-compiled": peer("PyTorch compiled", "torch", "cpu", peers.torch_compiled),
    "torch-gpu": peer("PyTorch (GPU)", "torch", "cuda", peers.torch_eager),
    "torch-gpu-graph": peer("PyTorch CUDA graph (GPU)", "torch", "cuda", peers.torch_graph(GRAPH_STEPS)),
    "jax-gpu": peer("JAX (GPU)", "jax", "cuda", peers.jax_scan),
    "torch-gpu-compiled": peer("PyTorch compiled (GPU)", "torch", "cuda", peers.torch_compiled),
}
"""The other libraries, each way in which they are used."""


def contender(name: str) -> Contender:
    """Return a contender by its name: a peer's, or that of a backend of fastmlp."""
    return PEERS[name] if name in PEERS else own(name)


def entrants(backends: Sequence[str] | None, with_peers: bool, gpu: bool) -> dict[str, str | None]:
    """Return who is to be measured, and for each None, or why it cannot run here.

    Parameters
    ----------
    backends : sequence of str, optional
        Those of fastmlp; None for all.
    with_peers : bool
        Whether others run beside.
    gpu : bool
        Whether there is a GPU.

    Raises
    ------
    ValueError
        There is no such backend.
    """
    from fastmlp.backends.registry import available_backends

    known = available_backends()
    for name in backends or ():
        if name not in known:
            raise ValueError(f"backends must be of {', '.join(known)}; got {name!r}")
    found: dict[str, str | None] = {}
    for name in dict.fromkeys(known if backends is None else backends):
        found[name] = None if known[name].available else known[name].reason
    for name, other in PEERS.items() if with_peers else ():
        found[name] = _missing(other, gpu)
    return found


def _missing(other: Contender, gpu: bool) -> str | None:
    package = other.module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"not installed: pip install {package}"
    return "there is no GPU here: nvidia-smi lists none" if other.device == "cuda" and not gpu else None
