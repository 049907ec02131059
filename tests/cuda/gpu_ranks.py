"""Ranks on GPUs of CuPy's double: small runs of them, and what they leave."""

import cupy_double as cp
from blobs import blobs

import fastmlp
from fastmlp.backends.cuda import choice, nccl
from fastmlp.backends.cuda.backend import CupyBackend
from fastmlp.parallel import in_threads

X, Y = blobs(rows=21)
SHORT = {"epochs": 2, "batch_size": 8, "verbose": 0}
ALL = (
    {"dropout": (0.1, 0.3), "l2": 0.01, "max_norm": 1.5},
    {"optimizer": fastmlp.Adam(clip_norm=0.3, ema=0.9)},
)
"""A network, and options of its fit, that leave out no stage of a step."""
EAGER = {**ALL[0], "way": "eager"}, ALL[1]
"""The same, kernel by kernel with cuBLAS."""


def unproven(monkeypatch):
    """Let steps be captured without a proof, which takes longer than they do and has tests of its own."""
    monkeypatch.setattr(choice, "prove", lambda *_: "")


def network(way="auto", **made):
    return fastmlp.MLP((6, 5, 3), **{"backend": CupyBackend(way=way), "activation": "tanh", "seed": 1, **made})


def fitted(group, made=None, x=X, y=Y, **options):
    """Return what a run leaves: weights and history, without the time that it took."""
    model = network(**(made or {}))
    history = model.fit(x, y, **{**SHORT, **options}, parallel=group).history
    return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}


def by_ranks(ranks, made=None, options=None, **group):
    return in_threads(lambda group: fitted(group, made, **(options or {})), ranks, **group)


def same_runs(found, expected):
    return found[1] == expected[1] and all(
        got.tobytes() == wanted.tobytes() for got, wanted in zip(found[0], expected[0], strict=True)
    )


def on_its_gpu(work, ranks, **options):
    """Call a function with the carrier of each rank, on a stream of its own, as a run does."""

    def call(group):
        with cp.cuda.Device(group.rank), cp.cuda.Stream(non_blocking=True), nccl.carried(group, cp) as carrier:
            return work(carrier)

    return in_threads(call, ranks, **options)
