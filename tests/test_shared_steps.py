"""How threads share out a training step: by rows or by features, and how they wait for each other."""

import math
import time

import numpy as np
import pytest
from compare import assert_same_bits
from numba_runs import backend, trained

import fastmlp
from fastmlp.backends.cpu import crew
from fastmlp.backends.cpu import session as cpu_session
from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cpu.threads import on_threads
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = [
    pytest.mark.skipif(
        not fastmlp.available_backends()["numba"].available, reason=fastmlp.available_backends()["numba"].reason
    ),
    pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the JIT is off, so there is one thread"),
]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_nobody_passes_a_barrier_before_all_are_there(threads):
    from fastmlp.kernels.cpu.operations import meet
    from fastmlp.kernels.cpu.threads import SIZE

    times, counter, at, wrong = 60, np.zeros(SIZE, np.int64), [0] * threads, []

    def work(t):
        for i in range(times):
            if i % threads == t:  # each is the last one now and then
                time.sleep(1e-3)
            at[t] = i + 1
            meet(threads, 1, counter, i)
            wrong.extend(there for there in at if there not in (i + 1, i + 2))

    on_threads(threads, work)
    assert at == [times] * threads and not wrong


@pytest.mark.parametrize(("threads", "parts"), [(1, 1), (1, 3), (2, 2), (2, 4), (2, 5), (3, 6), (3, 8), (4, 16)])
def test_each_part_is_one_threads_and_who_is_done_takes_others(threads, parts):
    from fastmlp.kernels.cpu.compiling import entry
    from fastmlp.kernels.cpu.operations import meet
    from fastmlp.kernels.cpu.threads import counters, next_part

    @entry
    def next_one(counter, t, threads, parts, passed, whose, last):
        return next_part(counter, t, threads, parts, passed, whose, last)

    times, counter = 40, np.zeros(counters(threads), np.int64)
    taken = [[] for _ in range(times)]

    def work(t):
        for i in range(times):
            part, whose = next_one(counter, t, threads, parts, i, t, -1)
            while part >= 0:
                taken[i].append((part, t, whose))
                if t == i % threads:  # each is the slow one now and then
                    time.sleep(2e-3)
                part, whose = next_one(counter, t, threads, parts, i, whose, part)
            meet(threads, 1, counter, i)

    on_threads(threads, work)
    helped = 0
    for found in taken:
        assert sorted(part for part, _, _ in found) == list(range(parts))
        assert all(part % threads == whose for part, _, whose in found) or threads == 1
        helped += any(whose != t for _, t, whose in found)
    assert helped > times // 4 if parts > threads > 1 else helped == 0


WIDE = {"units": (96, 21, 9, 4), "batch_size": 11, "products": "direct"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": fastmlp.SGD(0.01), "max_norm": None, "dtype": "float32"},
        {"optimizer": fastmlp.SGD(0.01, momentum=0.9), "dropout": 0.0, "products": "direct"},
        {"products": "packed", "batch_size": 70},
        {"products": "blas"},
        WIDE,
        {**WIDE, "dropout": (0.3, 0.2, 0.2)},
        *(
            {"units": (5, 3, 60, 4), "batch_size": 1, "rows": 9, "products": way}
            for way in ("direct", "packed", "blas")
        ),
        {"units": (5, 3, 60, 4), "batch_size": 70, "products": "packed"},
    ],
    ids=[
        *("clip", "sgd", "momentum", "packed", "blas", "features", "gathered features"),
        *("fewer features", "fewer, packed", "fewer, blas", "fewer, more rows"),
    ],
)
@pytest.mark.parametrize("parts", [4, 8])
def test_steps_have_the_same_bits_whoever_takes_their_parts(monkeypatch, options, parts):
    """One thread all of them, as many as there are parts, or fewer that take them from each other."""
    monkeypatch.setattr(Forms, "parts_for", lambda self, batch, most, *_: parts)
    monkeypatch.setattr(crew, "FIRST_SECONDS", 1e9)  # and one thread is never tried,
    monkeypatch.setattr(crew, "_last_alone", -math.inf)  # nor what a session begins with
    wanted = trained(parts, **options)
    for threads in (1, 2, 3):
        for found, one in zip(trained(threads, **options), wanted, strict=True):
            assert_same_bits(found, one)


def session_of(units, batch, optimizer, threads):
    """Return a session that trains by tiles."""
    plan = Plan(make_spec(units), batch, Precision.of(np.dtype("float64")), True, optimizer.without_schedule())
    session = backend(threads, "direct").open(plan)
    session.chosen.fix(session.chosen.forms_in(threads), threads)
    return session


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_how_the_lowest_layer_is_shared_out_does_not_depend_on_how_many_share_it(threads):
    """What a thread fetches from the others is as much for any number of them."""
    for batch, by_features in ((28, True), (29, False)):
        parts = session_of((96, 21, 9, 4), batch, fastmlp.SGD(0.01), threads).memory.parts
        assert (parts.size > 0) == (by_features and threads > 1)


@pytest.mark.parametrize(("level2", "by_features"), [(2 * 20 * 21 * 8, True), (2 * 20 * 21 * 8 - 1, False)])
def test_sums_that_leave_no_room_for_weights_in_a_threads_cache_are_not_shared_out(monkeypatch, level2, by_features):
    """Nor are they many times the memory of the weights, where there are many threads."""
    monkeypatch.setattr(cpu_session, "level2_bytes", lambda: level2)
    parts = session_of((96, 21, 9, 4), 20, fastmlp.SGD(0.01), 2).memory.parts
    assert (parts.size > 0) == by_features


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("options", [{}, {"dropout": (0.3, 0.2, 0.2)}, {"dtype": "float32"}], ids=str)
@pytest.mark.parametrize("optimizer", [fastmlp.SGD(0.01), fastmlp.Adam(1e-2, ema=0.9)], ids=["sgd", "adam"])
def test_many_inputs_and_small_batches_are_shared_out_by_features(threads, options, optimizer):
    # by tiles, whatever was measured here: for the BLAS, rows are gathered
    wide = {"units": (96, 21, 9, 4), "batch_size": 11, "optimizer": optimizer, "products": "direct", **options}
    assert session_of(wide["units"], 11, optimizer, threads).memory.parts.size  # else this tests nothing
    tolerance = {"rtol": 2e-4, "atol": 1e-5} if options.get("dtype") == "float32" else {"rtol": 1e-9, "atol": 1e-12}
    for a, b, c in zip(trained(threads, **wide), trained(1, **wide), trained(threads, **wide), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)
        assert_same_bits(a, c)
