"""How threads share out the rows that they run forward: whose turn it is, and what becomes of those who are held up."""

import _thread
import gc
import signal
import time
from collections import Counter

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cpu.threads import LEAST_PIECE, on_threads, shares_of
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available or numba.config.DISABLE_JIT,
    reason="without compiled kernels there is one thread",
)


@pytest.mark.parametrize("chunk", [16, 50, 288])
@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [0, 1, 16, 17, 250, 4096, 10_001])
def test_every_row_is_in_one_piece_of_one_share(rows, threads, chunk):
    from fastmlp.kernels.cpu.predict import FIRST, LINE, RUN, STOP, TAKEN

    threads = max(1, min(threads, -(-rows // RUN)))
    shares, piece = shares_of(rows, threads, chunk)
    assert shares.shape == (threads, LINE) and not shares[:, TAKEN:].any()
    assert shares[:, FIRST].tolist() == [0, *shares[:-1, STOP].tolist()] and shares[-1, STOP] == rows
    sizes = shares[:, STOP] - shares[:, FIRST]
    assert sizes.max() - sizes.min() <= 2 * RUN
    if threads == 1:
        assert piece == chunk
        return
    assert not (shares[:, FIRST] % RUN).any() and piece % RUN == 0  # no run is two threads'
    assert 0 < piece <= chunk
    assert piece >= min(LEAST_PIECE, chunk // RUN * RUN)


@pytest.mark.parametrize("who", [(0,), (2,), (1, 2), (0, 1)])
def test_what_a_thread_raises_is_raised_once_all_have_ended(who):
    ended = []

    def work(t):
        if t in who:
            time.sleep(0.02 * (t == 0))  # the others' come before it, and its own counts
            raise ValueError(t)
        time.sleep(0.01 * t)
        ended.append(t)

    with pytest.raises(ValueError, match=f"^[{''.join(map(str, who))}]$") as error:
        on_threads(4, work)
    assert ended == [t for t in range(4) if t not in who]
    assert 0 not in who or error.value.args == (0,)


def test_a_wait_that_is_interrupted_ends_and_waits_for_all(default_signals):
    """Wherever the interrupt comes: between a thread's end and the note of it, too."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    gc.disable()  # what is called at a collection, by hypothesis for one, cannot raise an interrupt: it would be lost
    try:
        for round_ in range(1000):
            ended = []
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5 + round_ % 60 * 2e-6)
                try:
                    on_threads(3, lambda t, ended=ended: ended.append(t))
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert interrupts > 30


def test_a_thread_that_cannot_be_started_is_left_out_where_others_do_its_work(prediction, monkeypatch):
    model, x, *_ = prediction
    monkeypatch.setattr(Forms, "threads_for", lambda self, rows, most, *more: most)
    expected, start = outputs(model, x), _thread.start_new_thread

    def refused(*given):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refused)
    assert_same_bits(outputs(model, x), expected)
    with pytest.raises(RuntimeError, match="can't start"):
        on_threads(2, print)
    second = {1: refused, 2: start}
    monkeypatch.setattr(_thread, "start_new_thread", lambda run, given: second[given[0]](run, given))
    assert_same_bits(outputs(model, x), expected)


@pytest.mark.parametrize(("units", "batch", "rows"), [((784, 1024, 1024, 10), 4096, 144), ((784, 1024, 10), 50, 50)])
def test_a_packed_block_of_rows_is_predicted_at_once_or_all_that_there_are(units, batch, rows):
    from fastmlp.kernels.cpu.products import MANY_ROWS

    plan = Plan(make_spec(units), batch, Precision.of(np.dtype("f4")))
    assert fastmlp.get_backend("numba").open(plan).chunk == rows and MANY_ROWS == 144


@pytest.fixture
def prediction():
    """A network, rows for it, and what takes part in predicting them as one of so many threads."""
    from fastmlp.kernels.cpu.predict import predict_thread

    model = fastmlp.MLP((7, 5, 3), backend=fastmlp.get_backend("numba", threads=3), seed=0)
    x = np.random.default_rng(0).normal(size=(1000, 7)).astype(model.dtype)
    session = model.backend.open(Plan(model.spec, 64, Precision.of(np.dtype(model.dtype))))
    out, counted = np.full((1000, 3), np.nan, x.dtype), Counter()

    def take_part(t, shares, piece):
        given = session.network, session.inputs(x), model._learner.state.params, session.inference_memory(1)[0]
        out[...] = np.nan
        predict_thread(t, shares.ravel(), piece, *given, session.chunk, out.reshape(-1), np.empty(0))
        counted[t] += int(np.isfinite(out[:, 0]).sum())

    return model, x, out, counted, take_part, session.chunk


@pytest.mark.parametrize("t", [0, 1, 2])
def test_one_thread_takes_what_others_do_not_come_to_and_nothing_twice(prediction, t):
    model, x, out, counted, take_part, chunk = prediction
    shares, piece = shares_of(len(x), 3, chunk)
    take_part(t, shares, piece)
    assert_same_bits(out, outputs(model, x))
    for late in {0, 1, 2} - {t}:
        take_part(late, shares, piece)
    assert counted == {t: 1000, **dict.fromkeys({0, 1, 2} - {t}, 0)}


def test_a_thread_begins_with_its_own_share(prediction):
    from fastmlp.kernels.cpu.predict import TAKEN

    _, _, out, _, take_part, chunk = prediction
    shares, piece = shares_of(1000, 3, chunk)
    shares[0, TAKEN] = shares[2, TAKEN] = 10**6  # of the others' nothing is left
    take_part(1, shares, piece)
    first, stop = shares[1, :2]
    assert np.isfinite(out[first:stop]).all() and np.isfinite(out[:, 0]).sum() == stop - first


def test_one_thread_may_be_asked_again(prediction):
    model, x, out, counted, take_part, chunk = prediction
    shares, piece = shares_of(len(x), 1, chunk)
    for _ in range(2):
        take_part(0, shares, piece)
    assert counted == {0: 2000}
    assert_same_bits(out, outputs(model, x))


def outputs(model, x):
    return model._learner.inference.outputs(model.spec, model._learner.state.params, x)


@pytest.mark.parametrize("batch_size", [16, 50, 1000])
def test_no_bits_depend_on_the_threads_or_on_how_many_rows_they_take_at_once(monkeypatch, batch_size):
    monkeypatch.setattr(Forms, "threads_for", lambda self, rows, most, *more: most)  # however little there is to do
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1003, 70)), rng.integers(0, 3, 1003)
    found = []
    for threads in (1, 2, 5):
        model = fastmlp.MLP((70, 60, 3), backend=fastmlp.get_backend("numba", threads=threads), seed=0)
        found.append((model.predict_proba(x, batch_size=batch_size).tobytes(), model.evaluate(x, y)))
    assert found == found[:1] * 3
