"""The double of CuPy, its handles, its late work and its memory: what a device would do and CUDA says of it."""

import ctypes
import threading

import cupy_double as cp
import numpy as np
import pytest
from emulator import needs_emulator

FILL = 'extern "C" __global__ void __launch_bounds__(64) fill(float* out, float value) { out[threadIdx.x] = value; }'


@pytest.fixture
def fill():
    return cp.RawModule(code=FILL, name_expressions=["fill"]).get_function("fill")


@pytest.fixture
def stream():
    return cp.cuda.Stream(non_blocking=True)


def test_handles_of_cublas_are_of_one_thread_and_one_device():
    library, handle = cp.CublasLibrary(), ctypes.c_void_p()
    library.cublasCreate_v2(ctypes.byref(handle))
    assert library.cublasSetStream_v2(handle, ctypes.c_void_p(0)) == 0
    with cp.cuda.Device(1):
        assert library.cublasSetStream_v2(handle, ctypes.c_void_p(0)) == library.NOT_INITIALIZED
    own, found = cp.cuda.device.get_cublas_handle(), []

    def elsewhere():
        for call in (
            lambda: library.cublasSetStream_v2(handle, ctypes.c_void_p(0)),
            lambda: cp.cuda.cublas.gemmEx(own, *range(4), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 68, -1),
        ):
            try:
                call()
            except (cp.CudaError, cp.CUBLASError) as e:
                found.append(str(e))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(found) == 2
    assert "a handle of cuBLAS in two threads" in found[0]
    assert "the handle of another thread, or of another device" in found[1]
    found = cp.cuda.device.get_cublas_handle()
    with cp.cuda.Device(1):
        assert cp.cuda.device.get_cublas_handle() != found


@needs_emulator
def test_late_work_is_done_when_somebody_waits_for_it_and_in_order(fill, stream):
    for seed in range(6):
        with cp.late(seed), stream:
            a = cp.empty((64,), np.float32)
            for value in range(3):
                fill((1,), (64,), (a, np.float32(value)))
            assert (a.get() == 2).all()
    with cp.late(0), stream:
        a = cp.empty((64,), np.float32)
        fill((1,), (64,), (a, np.float32(1)))
        view, other = a._view, cp.cuda.Stream(non_blocking=True)
        other.synchronize()
        assert (view != 1).all()
        other.wait_event(stream.record())
        other.synchronize()
        assert (view == 1).all()


def test_late_copies_from_the_host_read_what_stands_there_then(stream):
    with cp.late(0), stream:
        a, host = cp.empty((4,), np.float32), np.ones(4, np.float32)
        a.set(host)
        host[...] = 2
        assert a.get().tolist() == [2] * 4
        a.set(host)
        del host
        assert np.isnan(a.get()).all()
        there = cp.asarray(host := np.ones(4, np.float32))
        host[...] = 2
        assert there.get().tolist() == [1] * 4


def test_memory_that_is_freed_is_spoilt_and_goes_to_the_next_on_its_stream(stream):
    with stream:
        a = cp.asarray(np.ones(3000, np.float32))
        view, where = a._view, a.data.ptr
        del a
        other = cp.empty((10,), np.float32)
        assert np.isnan(view).all()
        assert other.data.ptr != where
    assert cp.empty((3000,), np.float32).data.ptr != where
    with stream:
        assert cp.empty((3000,), np.float32).data.ptr == where


def test_memory_that_another_stream_is_still_reading_must_be_waited_for_before_it_is_used_again(stream):
    with stream:
        a = cp.asarray(np.ones(3000, np.float32))
        event = stream.record()
    reader = cp.cuda.Stream(non_blocking=True)
    with reader:
        reader.wait_event(event)
        copy = a.copy()
        kept = a._view
        del a
    with stream:
        again = cp.empty((3000,), np.float32)
        assert again._view.ctypes.data == kept.ctypes.data
        with pytest.raises(cp.CudaError, match="two streams that nothing orders"):
            again[...] = 0
        stream.wait_event(reader.record())
        again[...] = 0
    del copy
