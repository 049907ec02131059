"""The double of CuPy is honest (all of it exists in the installed CuPy) and strict (what CUDA punishes is an error)."""

import ast
import inspect
import re
import types
from pathlib import Path

import cupy_double as cp
import cupy_streams
import emulator
import numpy as np
import pytest
from emulator import needs_emulator

from fastmlp.backends.cuda import backend

FILL = 'extern "C" __global__ void __launch_bounds__(64) fill(float* out, float value) { out[threadIdx.x] = value; }'
COPY = "__global__ void copy(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }"


@pytest.fixture
def fill():
    return cp.RawModule(code=FILL, name_expressions=["fill"]).get_function("fill")


@pytest.fixture
def stream():
    stream = cp.cuda.Stream(non_blocking=True)
    yield stream
    if stream.is_capturing():
        cupy_streams._capturing.remove(stream)


# --- honesty --------------------------------------------------------------------------------------------------------


def parameters_of(function):
    """Return the names of the parameters: from the signature or, of compiled functions, from the docstring."""
    try:
        return [p for p in inspect.signature(function).parameters if p != "self"]
    except (TypeError, ValueError):
        found = re.match(r"[\w.]+\((.*?)\)", (function.__doc__ or "").replace("\n", " "))
        if found is None:
            return None
        names = [re.sub(r"=.*", "", part).split()[-1].strip("*/") for part in found[1].split(",") if part.strip(" */")]
        return [n for n in names if n != "self"]


def public(namespace):
    return {k: v for k, v in vars(namespace).items() if not k.startswith("_")}


AGAIN = {"CudaError", "Device", "Stream", "Event", "Graph", "PinnedMemory", "PinnedMemoryPointer", "CompileException"}
AGAIN |= {
    "NVRTCError",
    "CUBLASError",
    "get_current_stream",
    "cuda.cublas",
    "CublasLibrary",
    "cublas_library",
    "Use",
    "late",
}
"""Tests' own, or under cuda. again; and cuBLAS needs its library to be imported."""


def pairs():
    """Yield (path, ours, CuPy's) of everything that the double offers."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    ours = {k: v for k, v in public(cp).items() if getattr(v, "__module__", "").startswith("cupy_")}
    for name, value in (*ours.items(), *((f"cuda.{k}", v) for k, v in public(cp.cuda).items())):
        if name in AGAIN:
            continue
        real = cupy
        for part in name.split("."):
            real = getattr(real, part)
        yield name, value, real
        if isinstance(value, (type, types.SimpleNamespace)):
            for member, function in public(value).items():
                yield f"{name}.{member}", function, getattr(real, member)


def test_every_name_and_parameter_of_the_double_exists_in_cupy():
    checked = 0
    for path, ours, real in pairs():  # a name that is not there is an AttributeError in `pairs`
        if not isinstance(ours, types.FunctionType):
            continue
        theirs = parameters_of(real)
        if not theirs or "args" in theirs:
            continue
        for name, parameter in inspect.signature(ours).parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                assert name in theirs, f"{path} has no parameter {name}; it has {theirs}"
                checked += 1
    assert checked > 30


def test_everything_that_the_backend_uses_exists_in_cupy_and_in_the_double():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    used = set()
    for file in Path(backend.__file__).parent.glob("*.py"):
        if file.name == "probe.py":  # asks the installed CuPy what it is
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            found = re.fullmatch(r"(?:self\._)?(?:cupy|cuda)\.(\w+(?:\.\w+)*)", ast.unparse(node))
            if isinstance(node, ast.Attribute) and found:
                used.add(("cuda." if "cupy" not in ast.unparse(node) else "") + found[1])
    assert {"cuda.cublas.gemmEx", "RawModule", "empty"} <= used
    for path in used:
        ours, real = cp, cupy
        for part in path.split("."):
            ours = getattr(ours, part)
            real = None if real is None or part == "cublas" else getattr(real, part)


def test_the_types_of_numbers_are_those_that_cupy_has():
    known = pytest.importorskip("cupy._core._dtype", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    for letter in np.typecodes["All"]:
        if letter != "V":  # records, which the backend has none of
            kind = np.dtype(letter)
            try:
                known.get_dtype_with_itemsize(kind, True)
            except ValueError as refused:
                with pytest.raises(ValueError, match=re.escape(str(refused))):
                    cp.empty((1,), kind)
            else:
                assert cp.empty((1,), kind).dtype == kind
    with pytest.raises(ValueError, match="Unsupported dtype float"):
        cp.asarray(np.ones(2, np.longdouble))


# --- strictness -----------------------------------------------------------------------------------------------------


@needs_emulator
def test_an_array_used_on_two_streams_needs_an_event(fill, stream):
    with stream:
        a = cp.empty((64,), np.float32)
        fill((1,), (64,), (a, np.float32(1)))
    with pytest.raises(cp.CudaError, match="two streams that nothing orders"):
        fill((1,), (64,), (a, np.float32(2)))
    with pytest.raises(cp.CudaError, match="two streams"):
        a.get()
    cp.cuda.get_current_stream().wait_event(stream.record())
    fill((1,), (64,), (a, np.float32(2)))
    assert (a.get() == 2).all()


@needs_emulator
def test_reading_on_two_streams_needs_no_event_but_writing_after_it_does(stream):
    copy = cp.RawModule(code=COPY, name_expressions=["copy"]).get_function("copy")
    source = cp.asarray(np.ones(64, np.float32))
    cp.cuda.get_current_stream().synchronize()
    first, second = cp.empty((64,), np.float32), cp.empty((64,), np.float32)
    copy((1,), (64,), (first, source))
    with stream:
        copy((1,), (64,), (second, source))
    with pytest.raises(cp.CudaError, match="two streams"):
        source[...] = 0
    stream.synchronize()
    source[...] = 0


@needs_emulator
def test_a_stream_that_is_gone_is_forgotten_once_the_host_has_waited_and_no_sooner(fill, stream):
    a, gone = cp.empty((64,), np.float32), cp.cuda.Stream(non_blocking=True)
    with gone:
        fill((1,), (64,), (a, np.float32(3)))
    number = gone._number
    del gone
    cp.cuda.Stream(non_blocking=True).synchronize()  # which is another one's
    with pytest.raises(cp.CudaError, match="two streams"), stream:
        a[...] = 0
    cp.cuda.runtime.deviceSynchronize()
    with stream:
        a[...] = 0
    assert number not in cupy_streams._host and number not in stream._clock


@needs_emulator
def test_a_graph_replays_and_keeps_nothing_alive(fill, stream):
    a = cp.empty((64,), np.float32)
    with stream:
        stream.begin_capture()
        fill((1,), (64,), (a, np.float32(3)))
        graph = stream.end_capture()
        assert np.isnan(a.get()).all()  # capturing runs nothing
        graph.launch()
        assert (a.get() == 3).all()
        del a
        with pytest.raises(cp.CudaError, match="freed"):
            graph.launch()


FORBIDDEN = {
    "synchronisation": lambda a, stream: stream.synchronize(),
    "synchronisation of another stream": lambda a, stream: cp.Stream.null.synchronize(),
    "a copy to the host": lambda a, stream: a.get(),
    "a copy from the host": lambda a, stream: a.set(np.zeros(64, np.float32)),
    "an allocation": lambda a, stream: cp.empty((3,), np.float32),
    "loading a module": lambda a, stream: cp.RawModule(code=COPY, name_expressions=["copy"]).get_function("copy"),
    "work on the legacy default stream": lambda a, stream: a.__setitem__(..., 0),
    "an event of before": lambda a, stream: stream.wait_event(cp.Stream.null.record()),
}


@needs_emulator
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cuda_forbids_in_a_capture_is_an_error_and_spoils_it(what, stream):
    a = cp.empty((64,), np.float32)
    cp.RawModule(code=COPY, name_expressions=["copy"])
    stream.begin_capture()
    with pytest.raises(cp.CudaError, match="Unsupported"):
        FORBIDDEN[what](a, stream)
    with pytest.raises(cp.CudaError, match="Invalidated"):
        stream.end_capture()
    assert not stream.is_capturing()


def test_only_a_non_blocking_stream_is_captured(stream):
    for other in (cp.Stream.null, cp.cuda.Stream()):
        with pytest.raises(cp.CudaError):
            other.begin_capture()


@needs_emulator
@pytest.mark.parametrize(
    ("grid", "block", "args", "error", "message"),
    [
        ((0,), (64,), None, ValueError, "no grid"),
        ((1, 65536), (64,), None, ValueError, "no grid"),
        ((1,), (65,), None, cp.CudaError, "launch bounds 64"),
        ((1,), (64,), (1.0,), TypeError, "takes 2 arguments"),
        ((1,), (64,), ("a", 1.0), TypeError, "float64 for a parameter of type float32"),
        ((1,), (64,), (np.zeros(64, np.float32), np.float32(1)), TypeError, "a NumPy array"),
    ],
)
def test_launches_are_checked(fill, grid, block, args, error, message):
    a = cp.empty((64,), np.float32)
    args = (a, np.float32(1)) if args is None else tuple(a if isinstance(v, str) else v for v in args)
    with pytest.raises(error, match=message):
        fill(grid, block, args)


def test_arrays_are_not_numpy_arrays():
    a = cp.asarray(np.ones(3, np.float32))
    for wrong in (lambda: np.asarray(a), lambda: np.ones(3) + a, lambda: a.__setitem__(..., np.ones(3))):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        getattr(cp, "logsumexp")  # noqa: B009
    with pytest.raises(TypeError, match="only views"):
        a[np.array([0, 1])]


@pytest.mark.parametrize(
    ("sizes", "lds", "message"),
    [((3, 2, 4), (2, 4, 3), "leading dimension 2"), ((3, 2, 4), (9, 4, 3), "reaches beyond its array")],
)
def test_products_by_cublas_check_their_leading_dimensions(sizes, lds, message):
    a, b, c = (cp.asarray(np.zeros(n, np.float32)) for n in (12, 8, 6))
    one = np.ones(1, np.float32)
    args = (a.data.ptr, 0, lds[0], b.data.ptr, 0, lds[1], one.ctypes.data, c.data.ptr, 0, lds[2], 68, -1)
    with pytest.raises(cp.CudaError, match=message):
        cp.cuda.cublas.gemmEx(cp.cuda.device.get_cublas_handle(), 0, 0, *sizes, one.ctypes.data, *args)


# --- devices, other libraries, time, faults ---------------------------------------------------------------------------


@needs_emulator
def test_arrays_and_streams_of_another_device_are_refused(fill, stream):
    with cp.cuda.Device(1):
        a = cp.empty((64,), np.float32)
        assert a.device == cp.cuda.Device(1) == cp.cuda.Device()
        with pytest.raises(RuntimeError, match="not created on device 1"), stream:
            pass
        with pytest.raises(cp.CudaError, match="fill was loaded on another device"):
            fill((1,), (64,), (a, np.float32(1)))
    with pytest.raises(cp.CudaError, match="array of another device"):
        fill((1,), (64,), (a, np.float32(1)))
    with pytest.raises(cp.CudaError, match="invalid device ordinal"), cp.cuda.Device(cp.DEVICES):
        pass


def test_what_is_handed_over_is_the_same_memory_and_ordered(stream):
    with stream:
        a = cp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
        interface = types.SimpleNamespace(__cuda_array_interface__=a.T.__cuda_array_interface__)
        with pytest.raises(TypeError, match="only arrays of a device"):
            cp.from_dlpack(np.ones(3))
    cp.counts.clear()
    b = types.SimpleNamespace(__dlpack__=None, __dlpack_device__=a.__dlpack_device__)
    b.__dlpack__ = lambda **options: _on(stream, lambda: a.__dlpack__(**options))
    taken = cp.from_dlpack(b)
    assert not cp.counts
    assert taken.data.ptr == a.data.ptr
    assert taken.get().tolist() == a.get().tolist()
    turned = cp.asarray(interface)
    assert cp.counts["synchronisations"] >= 1
    assert turned.get().tolist() == a.get().T.tolist()


def _on(stream, function):
    with stream:
        return function()


@needs_emulator
def test_events_tell_the_time_of_what_was_queued_between_them_once_waited_for(fill, stream, monkeypatch):
    for kind, time in {"launch": 0.25, "replay": 0.125}.items():
        monkeypatch.setitem(cp.milliseconds, kind, time)
    a = cp.empty((64,), np.float32)
    begin, end = cp.cuda.Event(), cp.cuda.Event()
    with stream:
        fill((1,), (64,), (a, np.float32(1)))
        stream.begin_capture()
        fill((1,), (64,), (a, np.float32(1)))
        graph = stream.end_capture()
        begin.record()
        fill((1,), (64,), (a, np.float32(1)))
        graph.launch()
        end.record()
    with pytest.raises(cp.CudaError, match="NotReady"):
        cp.cuda.get_elapsed_time(begin, end)
    end.synchronize()
    assert cp.cuda.get_elapsed_time(begin, end) == 0.375
    with pytest.raises(cp.CudaError, match="never recorded"):
        cp.cuda.get_elapsed_time(begin, cp.cuda.Event())
    untimed = cp.cuda.Event(disable_timing=True)
    untimed.record()
    with pytest.raises(cp.CudaError, match="without a time"):
        cp.cuda.get_elapsed_time(begin, untimed)


@needs_emulator
def test_a_fault_shows_at_whatever_comes_next_and_stays(fill, monkeypatch, request):
    monkeypatch.setitem(cp.faults, "fill", None)
    request.addfinalizer(cp.poison.clear)
    a = cp.empty((64,), np.float32)
    fill((1,), (64,), (a, np.float32(1)))  # nobody notices yet
    calls = (cp.Stream.null.synchronize, a.get, cp.cuda.runtime.deviceSynchronize, lambda: a.__setitem__(..., 0))
    for next_call in calls:
        with pytest.raises(cp.CudaError, match=r"IllegalAddress.*fill"):
            next_call()


def test_arithmetic_is_that_of_numpy_on_arrays_of_the_device_alone():
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    a = cp.asarray(host)
    for function in (
        lambda v: 1 / (1 + np.exp(-v)),
        lambda v: (v - v.max(axis=1, keepdims=True)).sum(axis=1),
        lambda v: v.T.argmax(axis=1),
        lambda v: ((v > 2) == (v * 2 > 3)).mean(),
        lambda v: (3 - v).astype(np.int64) + v.astype(np.int64),
    ):
        found, expected = function(a).get(), function(host)
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()
    assert np.where(a == 0, 7, a).get().tolist() == np.where(host == 0, 7, host).tolist()
    a /= 2
    a *= a
    assert a.get().tolist() == ((host / 2) ** 2).tolist()
    for wrong in (
        lambda: a + host,
        lambda: np.where(host > 0, a, a),
        lambda: a.__imul__(host),
        lambda: np.add.reduce(a),
    ):
        with pytest.raises(TypeError):
            wrong()


@needs_emulator
def test_traffic_and_launches_are_counted(fill):
    cp.launches.clear()
    fill((1,), (64,), (cp.empty((64,), np.float32), np.float32(1)))
    assert cp.launches == [("fill", emulator.Traffic(0, 256))]


@pytest.mark.parametrize("what", ["freed", "changed"])
def test_a_host_array_must_stay_as_it_is_until_the_copy_from_it_is_done(what, stream):
    host = np.ones(4, np.float32)
    with stream:
        a = cp.empty((4,), np.float32)
        a.set(host)
        stream.synchronize()
        host[...] = 2  # it has been read
        a.set(host)
    if what == "changed":
        host[...] = 3
    else:
        del host
    with pytest.raises(cp.CudaError, match=f"a host array was {what} before the copy from it was done"):
        stream.synchronize()


def test_cublas_in_a_capture_is_refused_by_cupy_itself(stream):
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            cp.cuda.cublas.gemmEx(
                cp.cuda.device.get_cublas_handle(), *range(4), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 68, -1
            )
        stream.end_capture()


def test_freed_memory_spoils_a_capture(stream):
    a = cp.empty((4,), np.float32)
    with stream:
        stream.begin_capture()
        del a
        with pytest.raises(cp.CudaError, match=r"CaptureInvalidated: memory of another was freed"):
            stream.end_capture()
