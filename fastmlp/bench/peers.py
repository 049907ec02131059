"""How other libraries train and predict: each as its users would who want it fast, with the rows in memory.

A function here makes the network of a workload and returns what `contenders.Running` is made of.  None of them is
imported before it is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from fastmlp.bench.workloads import RATES, Rows, Workload

Made = tuple[Callable[[int], Any], Callable[[], Any], Callable[[], Any]]
"""What trains so many epochs, predicts many rows, and one."""


def torch_device_memory() -> int:
    """Return the most bytes of a GPU that tensors of PyTorch have held at a time."""
    import torch

    return int(torch.cuda.max_memory_allocated())


def jax_device_memory() -> int:
    """Return the most bytes of a GPU that arrays of JAX have held at a time."""
    import jax

    return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])


DEVICE_MEMORY: dict[str, Callable[[], int]] = {"torch": torch_device_memory, "jax": jax_device_memory}


class NoCounterpartError(ValueError):
    """A contender has no counterpart to what a workload asks for; the message says to what."""


def _refuse_what_is_not_plain(who: str, spec: Any) -> None:
    """Refuse a network that the contenders here do not build: a race of two different networks says nothing."""
    softmax = spec.loss.name == "softmax_cross_entropy"
    asked = {
        f"the loss {spec.loss.name}": not softmax,
        "label smoothing": bool(spec.loss.parameters),
        "dropout": any(spec.dropout),
        "l2": bool(spec.l2),
        "max_norm": spec.max_norm is not None,
        "frozen layers": any(spec.frozen),
        f"{spec.activations[-1]} of the outputs": spec.activations[-1] != "identity",
    }
    for what in (name for name, wanted in asked.items() if wanted):
        raise NoCounterpartError(f"the contender {who} has no counterpart to {what} of this network")


def _named(who: str, kinds: dict[str, Any], what: str, name: str) -> Any:
    if name not in kinds:
        raise NoCounterpartError(
            f"the contender {who} has no counterpart to the {what} {name}: it has {', '.join(kinds)}"
        )
    return kinds[name]


# --- PyTorch --------------------------------------------------------------------------------------------------------


def _torch_network(workload: Workload, spec: Any, seed: int, device: str) -> Any:
    import torch
    from torch import nn

    _refuse_what_is_not_plain("PyTorch", spec)
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    kinds = {
        "identity": nn.Identity,
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "mish": nn.Mish,
        "softplus": nn.Softplus,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
    }
    layers: list[Any] = []
    for (i, o), name in zip(itertools.pairwise(spec.units), spec.activations, strict=True):
        layers.append(nn.Linear(i, o))
        if name != "identity":
            layers.append(_named("PyTorch", kinds, "activation", name)())
    return nn.Sequential(*layers).to(device, getattr(torch, workload.dtype))


def _torch_rule(workload: Workload, net: Any, **options: Any) -> Any:
    from torch import optim

    rate, params = RATES[workload.optimizer], list(net.parameters())
    if workload.optimizer in ("sgd", "momentum"):
        momentum = 0.9 if workload.optimizer == "momentum" else 0.0
        return optim.SGD(params, lr=rate, momentum=momentum, fused=True)
    if workload.optimizer == "rmsprop":
        return optim.RMSprop(params, lr=rate, alpha=0.9, **options)
    return {"adam": optim.Adam, "adamw": optim.AdamW}[workload.optimizer](params, lr=rate, fused=True, **options)


def _torch_predictions(net: Any, rows: Rows, device: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    many, row = torch.from_numpy(rows.many).to(device), rows.many[0]

    def predict() -> Any:
        with torch.inference_mode():
            classes = net(many).argmax(dim=1)
        if device == "cuda":
            torch.cuda.synchronize()
        return classes

    def one() -> int:
        with torch.inference_mode():
            return int(net(torch.from_numpy(row[None]).to(device)).argmax(dim=1))

    return predict, one


def _torch_loss(net: Any) -> Callable[[Any, Any], Any]:
    from torch import nn

    loss_of = nn.CrossEntropyLoss()
    return lambda x, labels: loss_of(net(x), labels)


def _torch_epochs(workload: Workload, net: Any, rows: Rows, device: str, loss_of: Callable[..., Any]) -> Any:
    """Return what trains epochs step by step, each batch gathered on the device by a new order of rows."""
    import torch

    rule = _torch_rule(workload, net)
    x, y, batch = torch.from_numpy(rows.x).to(device), torch.from_numpy(rows.y).to(device), workload.batch

    def train(epochs: int) -> float:
        for _ in range(epochs):
            order = torch.randperm(len(x), device=device)
            for start in range(0, len(x), batch):
                taken = order[start : start + batch]
                rule.zero_grad(set_to_none=True)
                loss = loss_of(x[taken], y[taken])
                loss.backward()
                rule.step()
        return float(loss.detach())  # waits for the device

    return train


def torch_eager(workload: Workload, spec: Any, rows: Rows, seed: int, device: str) -> Made:
    """PyTorch, kernel by kernel."""
    net = _torch_network(workload, spec, seed, device)
    return _torch_epochs(workload, net, rows, device, _torch_loss(net)), *_torch_predictions(net, rows, device)


def torch_compiled(workload: Workload, spec: Any, rows: Rows, seed: int, device: str) -> Made:
    """PyTorch with the network and its loss, forward and backward, compiled by ``torch.compile``."""
    import torch

    net = _torch_network(workload, spec, seed, device)
    loss_of = torch.compile(_torch_loss(net), dynamic=False)
    compiled = torch.compile(net, dynamic=False)
    return _torch_epochs(workload, net, rows, device, loss_of), *_torch_predictions(compiled, rows, device)


def torch_step(
    workload: Workload, spec: Any, rows: Rows, seed: int, device: str
) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return a step of PyTorch that finds its rows by a counter on the device, and all that it works on.

    The same on a CPU, where nothing is captured: there `capturable` is not taken.
    """
    import torch

    net = _torch_network(workload, spec, seed, device)
    loss_of, captured = _torch_loss(net), workload.optimizer in ("adam", "adamw", "rmsprop") and device == "cuda"
    rule = _torch_rule(workload, net, **({"capturable": True} if captured else {}))
    x, y = torch.from_numpy(rows.x).to(device), torch.from_numpy(rows.y).to(device)
    order, cursor = torch.randperm(len(x), device=device), torch.zeros((), dtype=torch.int64, device=device)
    within, value = torch.arange(workload.batch, device=device), torch.zeros((), dtype=x.dtype, device=device)

    def step() -> None:
        taken = order[cursor + within]
        rule.zero_grad(set_to_none=True)
        loss = loss_of(x[taken], y[taken])
        loss.backward()
        rule.step()
        value.copy_(loss.detach())
        cursor.add_(workload.batch)

    # a graph keeps nothing alive, so all that a step reads is returned with it
    return step, {"net": net, "order": order, "cursor": cursor, "loss": value, "held": (x, y, within, rule)}


def new_epoch(made: dict[str, Any]) -> None:
    """Draw a new order of rows, into the memory that a graph reads."""
    import torch

    made["cursor"].zero_()
    torch.randperm(len(made["order"]), out=made["order"])


def torch_graph(steps_a_graph: int) -> Callable[..., Made]:
    """Return PyTorch with so many steps captured into a CUDA graph, and one more for what is left of an epoch."""

    def make(workload: Workload, spec: Any, rows: Rows, seed: int, device: str) -> Made:
        import torch

        step, made = torch_step(workload, spec, rows, seed, device)

        def captured(count: int) -> Any:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(count):
                    step()
            return graph

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # PyTorch asks for some steps on another stream before a capture
            for _ in range(3):
                new_epoch(made)
                step()
        torch.cuda.current_stream().wait_stream(side)
        graphs = {count: captured(count) for count in {steps_a_graph, 1}}

        def train(epochs: int) -> float:
            for _ in range(epochs):
                new_epoch(made)  # which also keeps alive what the graphs read
                for _ in range(rows.steps // steps_a_graph):
                    graphs[steps_a_graph].replay()
                for _ in range(rows.steps % steps_a_graph):
                    graphs[1].replay()
            return float(made["loss"])

        return train, *_torch_predictions(made["net"], rows, device)

    return make


# --- JAX ------------------------------------------------------------------------------------------------------------


def jax_scan(workload: Workload, spec: Any, rows: Rows, seed: int, device: str) -> Made:
    """JAX: an epoch is one compiled scan; products in the full precision of the type."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    _refuse_what_is_not_plain("JAX", spec)
    if device == "cuda" and jax.default_backend() != "gpu":
        raise NoCounterpartError("this JAX sees no GPU: pip install 'jax[cuda13]'")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_x64", workload.dtype == "float64")
    kinds = {
        "identity": lambda z: z,
        "relu": jax.nn.relu,
        "leaky_relu": jax.nn.leaky_relu,
        "elu": jax.nn.elu,
        "selu": jax.nn.selu,
        "gelu": lambda z: jax.nn.gelu(z, approximate=False),
        "silu": jax.nn.silu,
        "mish": jax.nn.mish,
        "softplus": jax.nn.softplus,
        "sigmoid": jax.nn.sigmoid,
        "tanh": jnp.tanh,
        "sin": jnp.sin,
        "cos": jnp.cos,
    }
    functions = [_named("JAX", kinds, "activation", name) for name in spec.activations]
    update = _named("JAX", _JAX_RULES, "optimizer", workload.optimizer)
    kind, rng = np.dtype(workload.dtype), np.random.default_rng(seed)
    pairs = itertools.pairwise(spec.units)
    scaled = [(rng.standard_normal((i, o)) * np.sqrt(2 / i)).astype(kind) for i, o in pairs]
    params = [(jnp.asarray(w), jnp.zeros(w.shape[1], kind)) for w in scaled]
    x, y, many, row = jnp.asarray(rows.x), jnp.asarray(rows.y), jnp.asarray(rows.many), rows.many[0]
    rate, batch, steps = RATES[workload.optimizer], workload.batch, rows.steps

    def outputs(params: Any, taken: Any) -> Any:
        for (w, b), function in zip(params, functions, strict=True):
            taken = function(taken @ w + b)
        return taken

    def loss(params: Any, taken: Any, labels: Any) -> Any:
        chances = jax.nn.log_softmax(outputs(params, taken))
        return -jnp.mean(jnp.take_along_axis(chances, labels[:, None], 1))

    def step(carry: Any, taken: Any) -> Any:
        params, m, v, t = carry
        value, grads = jax.value_and_grad(loss)(params, x[taken], y[taken])
        return update(jax, jnp, params, grads, m, v, t + 1, rate), value

    def scan(carry: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(x))[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, carry, order)

    epoch, zeros = jax.jit(scan), jax.tree.map(jnp.zeros_like, params)
    state, keys = [(params, zeros, zeros, jnp.zeros((), kind))], itertools.count()
    root = jax.random.key(seed)

    def train(epochs: int) -> None:
        for _ in range(epochs):
            state[0], losses = epoch(state[0], jax.random.fold_in(root, next(keys)))
        losses.block_until_ready()

    classes = jax.jit(lambda params, taken: outputs(params, taken).argmax(axis=1))
    return (
        train,
        lambda: classes(state[0][0], many).block_until_ready(),
        lambda: int(classes(state[0][0], row[None])[0]),
    )


def _jax_sgd(jax: Any, jnp: Any, params: Any, grads: Any, m: Any, v: Any, t: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, params, grads), m, v, t


def _jax_momentum(jax: Any, jnp: Any, params: Any, grads: Any, m: Any, v: Any, t: Any, rate: float) -> Any:
    m = jax.tree.map(lambda m, g: 0.9 * m + g, m, grads)
    return jax.tree.map(lambda p, m: p - rate * m, params, m), m, v, t


def _jax_adam(jax: Any, jnp: Any, params: Any, grads: Any, m: Any, v: Any, t: Any, rate: float) -> Any:
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    return jax.tree.map(lambda p, m, v: p - rate * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), params, m, v), m, v, t


_JAX_RULES = {"sgd": _jax_sgd, "momentum": _jax_momentum, "adam": _jax_adam}


# --- scikit-learn ---------------------------------------------------------------------------------------------------


def scikit_learn(workload: Workload, spec: Any, rows: Rows, seed: int, device: str) -> Made:
    """scikit-learn's MLPClassifier; an epoch is a ``partial_fit``."""
    import warnings

    import numpy as np
    from sklearn.neural_network import MLPClassifier

    _refuse_what_is_not_plain("scikit-learn", spec)
    warnings.filterwarnings("ignore")
    kinds = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}
    hidden = {_named("scikit-learn", kinds, "activation", name) for name in spec.activations[:-1]} or {"identity"}
    if len(hidden) > 1:
        raise NoCounterpartError("the contender scikit-learn has no counterpart to several activations in one network")
    rules = {"sgd": ("sgd", 0.0), "momentum": ("sgd", 0.9), "adam": ("adam", 0.0)}
    solver, momentum = _named("scikit-learn", rules, "optimizer", workload.optimizer)
    net = MLPClassifier(
        spec.units[1:-1],
        activation=hidden.pop(),
        solver=solver,
        momentum=momentum,
        nesterovs_momentum=False,
        learning_rate_init=RATES[workload.optimizer],
        batch_size=workload.batch,
        alpha=0.0,
        random_state=seed,
    )
    classes = np.arange(spec.units[-1])

    def train(epochs: int) -> None:
        for _ in range(epochs):
            net.partial_fit(rows.x, rows.y, classes=classes)

    return train, lambda: net.predict(rows.many), lambda: net.predict(rows.many[:1])
