"""Arrays on their way to the device: none changes or goes while it is read, and little memory is pinned."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows, train

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda import uploads

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]


PIECE = uploads.PIECE


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Bring 1 KiB at once, and count from nothing."""
    monkeypatch.setattr(uploads, "PIECE", 1024)
    monkeypatch.setattr("fastmlp.backends.cuda.operations.PIECE", 1024)
    cp.pinned.clear()
    cp.pooled.clear()


# --- pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, 257, 512, 513, 1000, 5000])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i8", ">f4", "?"])
def test_an_array_of_any_size_and_type_arrives_whole(size, dtype):
    host = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, size).astype(dtype)
    found = make("eager").asarray(host)
    assert found.dtype == host.dtype.newbyteorder("=")
    assert_same_bits(found.get(), host.astype(found.dtype))


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::2], lambda a: a[:, 3:], np.asfortranarray])
def test_an_array_in_any_layout_arrives_whole(view):
    host = view(np.arange(4000, dtype=np.float32).reshape(50, 80))
    assert make("eager").asarray(host).get().tolist() == host.tolist()


def test_large_arrays_pin_two_pieces_once_which_go_with_the_backend():
    backend = make("eager")
    for _ in range(3):
        backend.asarray(np.zeros(10_000, np.float32))
    assert (cp.pinned["peak"], cp.pinned["used"]) == (2 * 1024, 2 * 1024)
    assert not cp.pooled
    backend.asarray(np.zeros(200, np.float32))
    assert cp.pooled == {1024}  # rounded up, and little enough
    del backend
    gc.collect()
    assert cp.pinned["used"] == 0


def test_uploads_of_several_threads_at_once_have_pieces_of_their_own(monkeypatch):
    backend, hosts = make("eager"), [np.arange(3000.0) + n for n in range(3)]
    meeting, reached = threading.Barrier(3, timeout=60), uploads.reached

    def together(*args):
        meeting.wait()
        return reached(*args)

    monkeypatch.setattr(uploads, "reached", together)

    def bring(host):
        with cp.cuda.Stream(non_blocking=True):
            return backend.asarray(host).get()

    with ThreadPoolExecutor(3) as pool:
        for found, host in zip(pool.map(bring, hosts), hosts, strict=True):
            assert_same_bits(found, host)
    gc.collect()
    assert (cp.pinned["peak"], cp.pinned["used"]) == (3 * 2 * 1024, 2 * 1024)


def test_pieces_of_an_upload_that_failed_are_not_used_again(monkeypatch):
    backend = make("eager")
    with monkeypatch.context() as patch:

        def refused(self):
            raise cp.CudaError("planted")

        patch.setattr(cp.cuda.Event, "synchronize", refused)
        with pytest.raises(cp.CudaError, match="planted"):
            backend.asarray(np.zeros(10_000, np.float32))
    gc.collect()
    assert cp.pinned["used"] == 0
    assert not backend.asarray(np.zeros(10_000, np.float32)).get().any()


def test_no_more_than_eight_megabytes_are_pinned(monkeypatch):
    monkeypatch.setattr(uploads, "PIECE", PIECE)
    monkeypatch.setattr("fastmlp.backends.cuda.operations.PIECE", PIECE)
    make("eager").asarray(np.zeros(PIECE // 2, np.float32))
    assert 0 < cp.pinned["peak"] <= 8 * 2**20


def test_events_that_only_order_take_no_time(timed_events):
    make("eager").asarray(np.zeros(1000, np.float32))
    assert timed_events == [False] * 4


@pytest.mark.parametrize("way", ["captured", "eager"])
def test_streams_wait_for_events_that_take_no_time(way, timed_events):
    x, y = rows()
    model = model_on(make(way))
    with cp.cuda.Stream(non_blocking=True):
        train(model, x, y)
        model.predict(x)
    assert len(timed_events) > 4
    assert not any(timed_events)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_neither_training_nor_evaluation_nor_prediction_pins_a_data_set(layout):
    x, y = rows(400)
    model = model_on()
    train(model, layout(x), y, epochs=1, batch_size=100, validation_data=(layout(x), y))
    model.evaluate(x, y)
    model.predict(x)
    model.loss_and_gradients(x, y)
    assert cp.pinned["peak"] == 2 * 1024
    assert max(cp.pooled) <= 1024


def test_where_no_memory_can_be_pinned_arrays_arrive_all_the_same(monkeypatch):
    def refused(size, flags=0):
        raise cp.CudaError("cudaErrorMemoryAllocation: planted")

    monkeypatch.setattr(cp.cuda, "PinnedMemory", refused)
    host = np.arange(3000.0)
    assert make("eager").asarray(host).get().tolist() == host.tolist()


def test_a_piece_is_not_filled_again_before_it_is_on_the_device(monkeypatch):
    monkeypatch.setattr(cp.cuda.Event, "synchronize", lambda self: None)
    with pytest.raises(cp.CudaError, match="a host array was changed before the copy"):
        make("eager").asarray(np.arange(3000.0))


# --- small arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["freed", "changed"])
def test_what_is_filled_from_may_change_or_go_at_once(change):
    backend, stream = make("eager"), cp.cuda.Stream(non_blocking=True)
    with stream:
        target, host = cp.empty((5,), np.float32), np.arange(5, dtype=np.float32)
        backend.fill(target, host)
        if change == "changed":
            host[...] = 7
        del host
        stream.synchronize()
        assert target.get().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", ["captured", "eager"])
def test_a_fit_sets_nothing_from_a_temporary_array(way):
    x, y = rows()
    train(model_on(make(way)), x, y)  # the double looks at every array that is read later


def test_functions_of_a_users_own_bring_nothing_back_from_a_temporary_array():
    fastmlp.register_activation("cube_again", lambda z: (z**3, 3 * z**2))
    fastmlp.register_loss("fourth_again", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    x, _ = rows()
    train(model_on(activation="cube_again", loss="fourth_again"), x / 4, x[:, :3])


def test_cupys_set_is_called_where_pieces_are_sent_alone():
    files = list(Path(cupy_backend.__file__).parent.glob("*.py"))
    assert len(files) > 10
    assert [f.name for f in files if ".set(" in f.read_text()] == ["uploads.py"]


# --- the collector --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_while_a_stream_is_captured(enabled, monkeypatch):
    learn, captured = cupy_step.TrainingStep._learn, []

    def with_garbage(self, index, n, views, **options):
        if not self._stream.is_capturing():
            held = [cp.empty((4,), np.float32)]
            held.append(held)  # that only the collector can free
            self.garbage = held
        else:
            captured.append(index)
            self.garbage = None
            for _ in range(3000):  # more than its threshold
                a = []
                a.append(a)
        learn(self, index, n, views, **options)

    monkeypatch.setattr(cupy_step.TrainingStep, "_learn", with_garbage)
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        train(model_on(make("captured")), *rows())
        assert captured and gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_the_collector_works_again_after_a_capture_that_is_refused(monkeypatch):
    def refused(self, mode=None):
        raise cp.CudaError("cudaErrorNotSupported: planted")

    monkeypatch.setattr(cp.Stream, "begin_capture", refused)
    with pytest.warns(RuntimeWarning, match="planted"):
        train(model_on(make("captured")), *rows())
    assert gc.isenabled()
