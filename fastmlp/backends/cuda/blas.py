"""Matrix products by cuBLAS, with the precision chosen for each call; never a switch of the whole process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.errors import KernelError

if TYPE_CHECKING:
    from fastmlp._typing import Array

# cublas_api.h: cublasOperation_t, cublasComputeType_t, cublasGemmAlgo_t
_NOT_TRANSPOSED, _TRANSPOSED = 0, 1
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_DEFAULT_ALGORITHM = -1
CUBLAS = "cuBLAS"
"""What stands for the name of its kernels."""
TF32_EPS = 2.0**-10
"""The distance from 1 to the next larger number of 11 significant bits."""


def rounds_to_tf32() -> bool:
    """Return whether NVIDIA's switch of the process lets cuBLAS round float32 factors, whatever a call asks for."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE", "").strip() == "1"


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

    def __init__(self, cupy: Any, *, tf32: bool = False) -> None:
        self._cupy, self._tf32 = cupy, tf32

    def forward(self, x: Array, w: Array, out: Array) -> None:
        """``out = x @ w``: (N, I), (I, O), (N, O)."""
        (n, i), o = x.shape, w.shape[1]
        self._gemm("x w", _NOT_TRANSPOSED, _NOT_TRANSPOSED, (o, n, i), (w, o), (x, i), (out, o))

    def input_gradient(self, dz: Array, w: Array, dx: Array) -> None:
        """``dx = dz @ w.T``: (N, O), (I, O), (N, I)."""
        (n, o), i = dz.shape, w.shape[0]
        self._gemm("dz w'", _TRANSPOSED, _NOT_TRANSPOSED, (i, n, o), (w, o), (dz, o), (dx, i))

    def weight_gradient(self, x: Array, dz: Array, dw: Array) -> None:
        """``dw = x.T @ dz``: (N, I), (N, O), (I, O)."""
        (n, i), o = x.shape, dz.shape[1]
        self._gemm("x' dz", _NOT_TRANSPOSED, _TRANSPOSED, (o, i, n), (dz, o), (x, i), (dw, o))

    def _gemm(
        self,
        product: str,
        op_a: int,
        op_b: int,
        sizes: tuple[int, int, int],
        a: tuple[Array, int],
        b: tuple[Array, int],
        c: tuple[Array, int],
    ) -> None:
        """``C = op(A) op(B)`` by columns, of `sizes` (m, n, k), each array with its leading dimension."""
        cuda = self._cupy.cuda
        dtype = c[0].dtype
        single = dtype == np.float32
        kind = cuda.runtime.CUDA_R_32F if single else cuda.runtime.CUDA_R_64F
        compute = (_COMPUTE_32F_FAST_TF32 if self._tf32 else _COMPUTE_32F) if single else _COMPUTE_64F
        one, zero = np.ones(1, dtype), np.zeros(1, dtype)
        try:
            cuda.cublas.gemmEx(
                *(cuda.device.get_cublas_handle(), op_a, op_b, *sizes, one.ctypes.data),
                *(a[0].data.ptr, kind, a[1], b[0].data.ptr, kind, b[1], zero.ctypes.data),
                *(c[0].data.ptr, kind, c[1], compute, _DEFAULT_ALGORITHM),
            )
        except cuda.cublas.CUBLASError as e:
            columns, rows, inner = sizes
            raise KernelError(
                f"the product {product}, ({rows}, {inner}) by ({inner}, {columns}) in {dtype}, fails in cuBLAS on this "
                f"GPU ({e}); where it has no memory left for its own work, "
                "cupy.get_default_memory_pool().free_all_blocks() gives it some",
                kernel=CUBLAS,
            ) from e
