"""The emulator notices what a GPU would punish: each mistake is planted in a small kernel and must be named."""

import functools

import emulator
import numpy as np
import pytest
from emulator import EmulatorError, Module, needs_emulator

pytestmark = [needs_emulator, pytest.mark.cuda_host]

REVERSE = """
__global__ void reverse(float* a) {
  __shared__ float held[64];
  held[threadIdx.x] = a[64LL * blockIdx.x + threadIdx.x];
  __syncthreads();
  a[64LL * blockIdx.x + threadIdx.x] = held[63 - threadIdx.x];
}
"""


def launch(source, *args, name="reverse", grid=(2,), block=(64,), seed=0, **options):
    return Module(source, [name]).launch(name, grid, block, args, seed=seed, **options)


@pytest.mark.parametrize("seed", range(3))
def test_threads_exchange_through_shared_memory_and_bytes_are_counted(seed):
    a = np.arange(128, dtype=np.float32)
    traffic = launch(REVERSE, a, seed=seed)
    assert a.tolist() == [*range(63, -1, -1), *range(127, 63, -1)]
    assert traffic == (512, 512)


def test_bytes_that_are_read_twice_are_counted_once():
    again = REVERSE.replace("+ threadIdx.x];", "+ threadIdx.x] + a[64LL * blockIdx.x];", 1)
    assert launch(again, np.zeros(128, np.float32)) == (512, 512)


PLANTED = {
    "a barrier is missing": ("  __syncthreads();\n", "", "race on shared memory: .* by thread .* by thread"),
    "what all read, the last of them to come past a barrier writes": (
        "  __syncthreads();\n",
        "  __syncthreads();\n  if (held[0] + float(threadIdx.x) == 62) held[0] = 1;\n",
        "race on shared memory: .* by thread .* by thread",
    ),
    "a barrier that some threads pass by": (
        "  __syncthreads();\n",
        "  if (threadIdx.x < 32) __syncthreads(); else __syncthreads();\n".replace("; else", ";\n  else"),
        "wait at different barriers",
    ),
    "a barrier that some threads never reach": (
        "  __syncthreads();\n",
        "  if (threadIdx.x < 32) __syncthreads();\n  else __shfl_xor_sync(0xffffffffu, 1, 1), __syncthreads();\n",
        "wait at different barriers",
    ),
    "an index too large": (
        "held[63 - threadIdx.x]",
        "a[64LL * blockIdx.x + threadIdx.x + 64]",
        "read outside the arrays",
    ),
    "an index from one shared array into the next": (
        "  __syncthreads();\n",
        "  __syncthreads();\n  __shared__ float more[64];\n  more[threadIdx.x] = held[threadIdx.x + 1];\n",
        r"an index beyond the end of its array \(line \d+, block \d,0,0 thread 63",
    ),
    "one more than a thread's own array has": (
        "  __syncthreads();\n",
        "  __syncthreads();\n  float own[4];\n  for (int i = 0; i <= int(a[0]) + 4; ++i) own[i] = a[i];\n"
        "  if (threadIdx.x == 0) held[0] = own[3];\n  __syncthreads();\n",
        "an index beyond the end of its array",
    ),
    "all blocks write one place": (
        "a[64LL * blockIdx.x + threadIdx.x] = held",
        "a[threadIdx.x] = held",
        "race on global",
    ),
    "a lane that has ended": (
        "  __syncthreads();\n",
        "  if (threadIdx.x % 32 == 5) return;\n  __shfl_xor_sync(0xffffffffu, 1, 1);\n",
        "lanes that have ended",
    ),
    "a lane outside its mask": (
        "  __syncthreads();\n",
        "  __shfl_xor_sync(0xffu, 1, 1);\n  __syncthreads();\n",
        "not in its own mask",
    ),
    "lanes at different shuffles": (
        "  __syncthreads();\n",
        "  if (threadIdx.x % 2) __shfl_xor_sync(~0u, 1, 1);\n  else __shfl_xor_sync(~0u, 1, 1);\n  __syncthreads();\n",
        "lanes of a warp wait at different calls",
    ),
    "a barrier in the middle of a warp's shuffle": (
        "  __syncthreads();\n",
        "  __syncthreads();\n  if (threadIdx.x == 0) __syncthreads();\n  else __shfl_xor_sync(~0u, 1, 1);\n",
        "deadlock .* at __syncthreads",
    ),
}


@functools.cache
def planted():
    """Compile all of them at once, numbered."""
    sources = []
    for number, (old, new, _) in enumerate(PLANTED.values()):
        assert REVERSE.count(old) == 1
        sources.append(REVERSE.replace(old, new).replace("reverse", f"reverse{number}"))
    return Module("".join(sources), [f"reverse{number}" for number in range(len(PLANTED))])


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_mistakes_are_named(what, seed):
    name = f"reverse{list(PLANTED).index(what)}"
    with pytest.raises(EmulatorError, match=PLANTED[what][2]):
        planted().launch(name, (2,), (64,), [np.zeros(128, np.float32)], seed=seed)


def test_shared_memory_that_is_too_small_is_noticed():
    with pytest.raises(EmulatorError, match="beyond the end of its array"):
        launch(REVERSE.replace("held[64]", "held[60]"), np.zeros(128, np.float32))


def test_shared_memory_is_not_zero_when_a_block_begins():
    a = np.zeros(128, np.float32)
    launch(REVERSE.replace("  held[", "  if (gridDim.x > 2) held[", 1), a)
    assert np.isnan(a).all()


def test_arrays_that_may_only_be_read_are_not_written():
    a = np.zeros(128, np.float32)
    a.flags.writeable = False
    with pytest.raises(EmulatorError, match="may only be read"):
        launch(REVERSE, a)


def test_wide_accesses_must_be_aligned_where_a_cpu_would_not_care():
    source = """
    struct __align__(16) Wide { unsigned int words[4]; };
    __global__ void copy(const float* from, float* to) { *(Wide*)to = *(const Wide*)from; }
    """
    whole, to = np.arange(8, dtype=np.float32), np.zeros(4, np.float32)
    start = -whole.ctypes.data % 16 // 4
    assert launch(source, whole[start : start + 4], to, name="copy", grid=(1,), block=(1,)) == (16, 16)
    with pytest.raises(EmulatorError, match="misaligned 16-byte read"):
        launch(source, whole[start + 1 : start + 5], to, name="copy", grid=(1,), block=(1,))


def test_wide_accesses_stay_one_access_on_their_way_through_a_variable():
    source = """
    struct __align__(16) Wide { unsigned int words[4]; };
    __global__ void copy(const float* from, float* to, int count) {
      Wide held{};
      if (count > 3) held = *reinterpret_cast<const Wide*>(from);
      for (int i = 0; i < 4; ++i) to[i] = reinterpret_cast<float*>(&held)[i];
    }
    """
    whole, to = np.arange(8, dtype=np.float32), np.zeros(4, np.float32)
    start = -whole.ctypes.data % 16 // 4
    with pytest.raises(EmulatorError, match="misaligned 16-byte read"):
        launch(source, whole[start + 1 : start + 5], to, np.int32(4), name="copy", grid=(1,), block=(1,))


def test_sums_over_a_warp_are_seen_as_on_a_gpu():
    source = """
    __global__ void sum(double* out) {
      double v = threadIdx.x;
      for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
      out[threadIdx.x] = v;
    }
    """
    out = np.zeros(64)
    launch(source, out, name="sum", grid=(1,), seed=4)
    assert out.tolist() == [496.0] * 32 + [1520.0] * 32


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None,), None, ""),
        ((np.zeros(128),), TypeError, "an array of float64 for float32"),
        ((1,), TypeError, "a pointer needs an array, got int"),
        ((np.zeros((128, 2), np.float32)[:, 0],), ValueError, "not contiguous"),
        ((), TypeError, "takes 1 arguments"),
    ],
)
def test_arguments_must_be_what_the_kernel_takes(args, error, message):
    if error is None:
        with pytest.raises(EmulatorError, match="outside the arrays"):
            launch(REVERSE, *args)
        return
    with pytest.raises(error, match=message):
        launch(REVERSE, *args)


def test_scalars_have_the_size_that_the_kernel_reads():
    source = "__global__ void fill(float* out, float value, int count, bool on) { if (on) out[count - 1] = value; }"
    module, out = Module(source, ["fill"]), np.zeros(3, np.float32)
    assert module.signature("fill") == ["float32*", "float32", "int32", "bool"]
    module.launch("fill", (1,), (1,), [out, np.float32(2.5), np.int32(3), True])
    assert out.tolist() == [0, 0, 2.5]
    for wrong in ([out, 2.5, np.int32(3), True], [out, np.float32(2.5), 3, True]):  # CuPy hands eight bytes over
        with pytest.raises(TypeError, match="64 for a parameter of type"):
            module.launch("fill", (1,), (1,), wrong)


@pytest.mark.parametrize(
    ("grid", "block"), [((0,), (64,)), ((1, 65536), (64,)), ((1, 1, 65536), (64,)), ((1,), (1025,)), ((1,), (1, 1, 65))]
)
def test_sizes_that_cuda_refuses_are_refused(grid, block):
    with pytest.raises(ValueError, match="CUDA has no"):
        launch(REVERSE, np.zeros(128, np.float32), grid=grid, block=block)


def test_source_that_does_not_compile_is_an_error_with_its_line():
    with pytest.raises(EmulatorError, match=r"error: .*half"):
        Module("__global__ void f(half* a) {}", ["f"])


HALVES = "template <class T> __global__ void halves(T* a) { a[0] *= T(0.5); a[2] = a[1] * T(2); a[4] = a[3]; }"


def halves(dtype):
    """Return half of the smallest normal number, twice a subnormal one, and a copy of that."""
    info, kernel = np.finfo(dtype), f"halves<{'float' if dtype is np.float32 else 'double'}>"
    a = np.array([info.tiny, info.smallest_subnormal, 1, info.smallest_subnormal, 1], dtype)
    launch(HALVES, a, name=kernel, grid=(1,), block=(1,))
    return a[[0, 2, 4]]


def test_subnormal_float32_numbers_are_zero_where_anything_is_computed():
    assert halves(np.float32).tolist() == [0, 0, np.finfo(np.float32).smallest_subnormal]
    assert np.finfo(np.float32).tiny / np.float32(2) > 0  # the host computes as before


def test_subnormal_float64_numbers_are_kept():
    info = np.finfo(np.float64)
    assert halves(np.float64).tolist() == [info.tiny / 2, 2 * info.smallest_subnormal, info.smallest_subnormal]


def test_a_subnormal_float32_is_zero_when_it_is_made_a_float64_or_of_one():
    source = "__global__ void convert(double* to, float* from) { to[0] = from[0]; from[1] = float(to[1]); }"
    to, small = np.array([1, 1e-40]), np.array([1e-40, 1], np.float32)
    launch(source, to, small, name="convert", grid=(1,), block=(1,))
    assert to[0] == small[1] == 0


SUMS = """
template <class T> __global__ void sums(T* out, const T* x, const T* y, int count) {
  T sum = 0;
  for (int i = 0; i < count; ++i) sum += x[i] * y[i];
  T product = x[0] * y[0];
  out[0] = sum;
  out[1] = product - x[2];
  out[2] = x[0] * y[0];
}
"""


@pytest.mark.skipif(not emulator.missing() and not emulator.fuses(), reason="this processor has no fused multiply-add")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_and_the_sum_that_it_goes_into_are_rounded_once(dtype):
    """(1 + e)^2 - (1 + 2e) is e^2, which is lost where the square is rounded first."""
    e = dtype(np.finfo(dtype).eps)
    x, y, out = np.array([1 + e, 1, 1 + 2 * e], dtype), np.array([1 + e, -1 - 2 * e, 0], dtype), np.zeros(3, dtype)
    kernel = f"sums<{'float' if dtype is np.float32 else 'double'}>"
    launch(SUMS, out, x[::-1].copy(), y[::-1].copy(), np.int32(3), name=kernel, grid=(1,), block=(1,))
    assert out[0] == e * e  # -(1 + 2e), then the square is added
    launch(SUMS, out, x, y, np.int32(3), name=kernel, grid=(1,), block=(1,))
    assert out.tolist() == [0, e * e, 1 + 2 * e]  # the square by itself is rounded


def test_a_processor_without_fused_multiply_adds_runs_kernels_as_they_are_written(monkeypatch):
    monkeypatch.setattr(emulator, "fuses", lambda: False)
    e = np.float32(np.finfo(np.float32).eps)
    x, out = np.array([1 + e, 1, 1 + 2 * e], np.float32), np.zeros(3, np.float32)
    launch(SUMS, out, x, x, np.int32(1), name="sums<float>", grid=(1,), block=(1,))
    assert out.tolist() == [1 + 2 * e, 0, 1 + 2 * e]
