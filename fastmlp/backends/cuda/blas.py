"""Matrix products by cuBLAS, with the precision chosen for each call; never a switch of the whole process."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import KernelError

if TYPE_CHECKING:
    from fastmlp._typing import Array

_log = logging.getLogger("fastmlp")

# cublas_api.h: cublasOperation_t, cublasComputeType_t, cublasGemmAlgo_t
_NOT_TRANSPOSED, _TRANSPOSED = 0, 1
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_ALGORITHM = -1
CUBLAS = "cuBLAS"
"""What stands for the name of its kernels."""
GRAPH_CUBLAS = "cuBLAS in a graph"
"""The same, where it is called by a handle of our own."""
_NUMBERS: dict[bool, NDArray[Any]] = {True: np.array([1, 0], np.float32), False: np.array([1, 0], np.float64)}
_FACTORS = {single: (a.ctypes.data, a.ctypes.data + a.itemsize) for single, a in _NUMBERS.items()}
"""Where one and zero lie, by whether they are float32: cuBLAS reads them there."""
TF32_EPS = 2.0**-10
"""The distance from 1 to the next larger number of 11 significant bits."""


def rounds_to_tf32() -> bool:
    """Return whether NVIDIA's switch of the process lets cuBLAS round float32 factors, whatever a call asks for."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE", "").strip() == "1"


class Call(NamedTuple):
    """A launch with its arguments: of a kernel, or of cuBLAS.

    Attributes
    ----------
    kernel : str
    start : callable
        Takes the arguments, and launches.
    args : tuple
    places : tuple of int
        Which of the arguments are the number of the step.
    """

    kernel: str
    start: Callable[[tuple[Any, ...]], object]
    args: tuple[Any, ...]
    places: tuple[int, ...] = ()


class CuBlas:
    """The three products of a layer on row-major arrays.

    cuBLAS sees columns first: what lies in memory as C (M, N) by rows is to it the matrix C' (N, M).  So C = A B is
    asked for as C' = B' A', and each leading dimension is the number of columns here.  Each raises KernelError where
    cuBLAS refuses it.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it in tests.
    tf32 : bool
        Let float32 products round their factors to 11 bits and run on tensor cores.
    """

    name: ClassVar[str] = CUBLAS

    def __init__(self, cupy: Any, *, tf32: bool = False) -> None:
        self._cupy, self._tf32 = cupy, tf32
        self._call: Callable[[Callable[[], None]], None] = _at_once
        self._listed_for: Self | None = None

    def listing(self, calls: list[Call]) -> Self:
        """Return the same products, which append themselves to a list instead of being carried out."""
        twin = copy(self)
        twin._call = lambda product: calls.append(Call(self.name, lambda _: product(), ()))
        twin._listed_for = self
        return twin

    def forward(self, x: Array, w: Array, out: Array) -> None:
        """``out = x @ w``: (N, I), (I, O), (N, O)."""
        (n, i), o = x.shape, w.shape[1]
        self._gemm("x w", self._args(_NOT_TRANSPOSED, _NOT_TRANSPOSED, (o, n, i), (w, o), (x, i), (out, o)))

    def input_gradient(self, dz: Array, w: Array, dx: Array) -> None:
        """``dx = dz @ w.T``: (N, O), (I, O), (N, I)."""
        (n, o), i = dz.shape, w.shape[0]
        self._gemm("dz w'", self._args(_TRANSPOSED, _NOT_TRANSPOSED, (i, n, o), (w, o), (dz, o), (dx, i)))

    def weight_gradient(self, x: Array, dz: Array, dw: Array) -> None:
        """``dw = x.T @ dz``: (N, I), (N, O), (I, O)."""
        (n, i), o = x.shape, dz.shape[1]
        self._gemm("x' dz", self._args(_NOT_TRANSPOSED, _TRANSPOSED, (o, i, n), (dz, o), (x, i), (dw, o)))

    def ready_forward(self, rows: int, w: Array) -> Callable[[Array, Array], None]:
        """Return ``out = x @ w`` as a function of x (rows, I) and out, which is carried out at once."""
        i, o = w.shape
        # x and out are filled in at each call
        args = self._args(_NOT_TRANSPOSED, _NOT_TRANSPOSED, (o, rows, i), (w, o), (w, i), (w, o))
        before, between, after = args[:9], args[10:13], args[14:]

        def product(x: Array, out: Array) -> None:
            self._multiply("x w", (*before, x.data.ptr, *between, out.data.ptr, *after))

        return product

    def _gemm(self, product: str, args: tuple[Any, ...]) -> None:
        """Multiply by what `_args` has returned, or list that."""
        # a list that leads back to itself would keep the memory of its step until the garbage is collected
        owner = self._listed_for or self
        self._call(lambda: owner._multiply(product, args))

    def _args(
        self,
        op_a: int,
        op_b: int,
        sizes: tuple[int, int, int],
        a: tuple[Array, int],
        b: tuple[Array, int],
        c: tuple[Array, int],
    ) -> tuple[Any, ...]:
        """Return what cuBLAS is given, behind its handle, of ``C = op(A) op(B)`` by columns.

        Of `sizes` (m, n, k), each array with its leading dimension.
        """
        runtime = self._cupy.cuda.runtime
        single = c[0].dtype == np.float32
        kind = runtime.CUDA_R_32F if single else runtime.CUDA_R_64F
        compute = (_COMPUTE_32F_FAST_TF32 if self._tf32 else _COMPUTE_32F) if single else _COMPUTE_64F
        one, zero = _FACTORS[single]
        return (
            *(op_a, op_b, *sizes, one, a[0].data.ptr, kind, a[1], b[0].data.ptr, kind, b[1]),
            *(zero, c[0].data.ptr, kind, c[1], compute, _DEFAULT_ALGORITHM),
        )

    def _multiply(self, product: str, args: tuple[Any, ...]) -> None:
        try:
            self._gemm_ex(args)
        except self._cupy.cuda.cublas.CUBLASError as e:
            columns, rows, inner = args[2:5]
            dtype = "float64" if args[7] == self._cupy.cuda.runtime.CUDA_R_64F else "float32"
            raise KernelError(
                f"the product {product}, ({rows}, {inner}) by ({inner}, {columns}) in {dtype}, fails in cuBLAS on "
                f"this GPU ({e}); where it has no memory left for its own work, "
                "cupy.get_default_memory_pool().free_all_blocks() gives it some",
                kernel=self.name,
            ) from e

    def _gemm_ex(self, args: tuple[Any, ...]) -> None:
        cuda = self._cupy.cuda
        cuda.cublas.gemmEx(cuda.device.get_cublas_handle(), *args)


class GraphBlas(CuBlas):
    """The same products, by handles of our own, which may be called while a stream is captured.

    CuPy forbids its own there, since it sets the stream of its handle at each call.  cuBLAS itself asks for two things
    (its documentation, "CUDA Graphs Support"): the stream is set beforehand, and the memory that it works in is given,
    for it may allocate none then.  They are in full precision: TF32 within graphs was never seen on a device.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it in tests.
    library : object
        cuBLAS, as `load_cublas` returns it.
    """

    name: ClassVar[str] = GRAPH_CUBLAS

    def __init__(self, cupy: Any, library: Any) -> None:
        super().__init__(cupy)
        self._library = library

    def bind(self, places: list[tuple[Any, Array]]) -> None:
        """Let this thread's products run on these streams, each with its own memory to work in, from now on.

        Parameters
        ----------
        places : list of (cupy.cuda.Stream, array of bytes)
            The memory must live as long as any graph that is captured meanwhile.

        Raises
        ------
        KernelError
            cuBLAS refuses it.
        """
        try:
            self._bind(places)
        except self._cupy.cuda.cublas.CUBLASError as e:
            raise KernelError(f"cuBLAS cannot be made ready for captured steps ({e})", kernel=self.name) from e

    def _bind(self, places: list[tuple[Any, Array]]) -> None:
        made = _handles.made.setdefault(self._cupy.cuda.Device().id, [])
        _handles.by_stream = {}
        while len(made) < len(places):
            handle = ctypes.c_void_p()
            self._check(self._library.cublasCreate_v2(ctypes.byref(handle)))
            made.append(handle)
        for handle, (stream, memory) in zip(made, places, strict=False):
            # a new stream takes away the memory of the one before
            self._check(self._library.cublasSetStream_v2(handle, ctypes.c_void_p(stream.ptr)))
            where, size = ctypes.c_void_p(memory.data.ptr), ctypes.c_size_t(memory.nbytes)
            self._check(self._library.cublasSetWorkspace_v2(handle, where, size))
            _handles.by_stream[stream.ptr] = handle

    def _gemm_ex(self, args: tuple[Any, ...]) -> None:
        op_a, op_b, m, n, k, one, a, kind_a, lda, b, kind_b, ldb, zero, c, kind_c, ldc, compute, algorithm = args
        pointer = ctypes.c_void_p
        handle = _handles.by_stream[self._cupy.cuda.get_current_stream().ptr]
        status = self._library.cublasGemmEx(
            *(handle, op_a, op_b, m, n, k, pointer(one), pointer(a), kind_a, lda, pointer(b), kind_b, ldb),
            *(pointer(zero), pointer(c), kind_c, ldc, compute, algorithm),
        )
        self._check(status)

    def _check(self, status: int) -> None:
        if status:
            raise self._cupy.cuda.cublas.CUBLASError(status)


class _Handles(threading.local):
    """Of one thread, since cuBLAS lets no two use one at a time: those of each device, and on which stream they are."""

    def __init__(self) -> None:
        self.made: dict[int, list[ctypes.c_void_p]] = {}
        self.by_stream: dict[int, ctypes.c_void_p] = {}


_handles = _Handles()
"""Of all backends: what they call runs on streams that were bound just before."""


@cache
def load_cublas() -> Any:
    """Return the library that CuPy's products run in, for what CuPy does not pass on; None where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as e:  # of many kinds, as with all that looks for libraries: captured steps do without it
        _log.info("cupy: captured steps multiply by fastmlp's own kernels alone, since cuBLAS is not found (%s)", e)
        return None


def _at_once(product: Callable[[], None]) -> None:
    product()
