"""Loading CUDA kernels through CuPy, each file when it is first needed, and choosing the grids that they run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.probe import INSTALL
from fastmlp.errors import KernelError

if TYPE_CHECKING:
    from fastmlp._typing import Array

THREADS = 256
"""Of every block of every kernel."""
WARPS = THREADS // 32
_FLAT_BLOCKS = 1024
_ROW_BLOCKS = 4096
_GRADIENT_SLABS = 8
WARP_OUTPUTS = 512
"""Up to so many outputs one warp works on a row of the loss; beyond, a block."""


class Kernels:
    """The compiled kernels of one device.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it in tests.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._modules: dict[tuple[str, str], Any] = {}
        self._functions: dict[str, Any] = {}

    def get(self, file: str, name: str, real: str) -> Any:
        """Return a kernel of a file, compiled with all others of the file for the type computed in.

        Parameters
        ----------
        file : str
            Such as ``"layers.cu"``.
        name : str
            With its template arguments, as in `sources.instantiations`.
        real : str
            ``"float"`` or ``"double"``.

        Raises
        ------
        KernelError
            It cannot be compiled, or what was compiled cannot be kept.
        """
        found = self._functions.get(name)
        if found is None:
            key, cuda = (file, real), self._cupy.cuda
            if key not in self._modules:
                self._modules[key] = self._cupy.RawModule(
                    code=sources.expanded(file),
                    options=sources.OPTIONS,
                    name_expressions=sources.instantiations(file, real),
                )
            try:
                found = self._functions[name] = self._modules[key].get_function(name)
            except (cuda.compiler.CompileException, cuda.nvrtc.NVRTCError) as e:
                raise KernelError(
                    f"the kernel {name} of {file} cannot be compiled for this GPU ({_error_in(str(e))}); the run-time "
                    f"compiler must know the GPU and fit CuPy: {INSTALL}",
                    kernel=name,
                ) from e
            except OSError as e:
                raise KernelError(
                    f"the kernel {name} of {file} cannot be compiled, or kept once it is ({e}); set CUPY_CACHE_DIR to "
                    "a folder that can be written and has room",
                    kernel=name,
                ) from e
        return found

    def ready(
        self, file: str, name: str, real: str, grid: tuple[Any, Any], errors: tuple[type[Exception], ...]
    ) -> Callable[[tuple[Any, ...]], None]:
        """Return a function of its arguments that launches a kernel on a grid.

        Parameters
        ----------
        file, name, real
            As for `get`.
        grid : (grid, block)
        errors : tuple of type
            What CuPy raises where CUDA refuses something; a KernelError is made of it.
        """
        try:
            kernel = self.get(file, name, real)
        except errors as e:
            raise refused(name, e) from e

        def launch(args: tuple[Any, ...]) -> None:
            try:
                kernel(*grid, args)
            except errors as e:
                raise refused(name, e) from e

        return launch


def refused(kernel: str, error: Exception) -> KernelError:
    """Return the error of a launch that CUDA refuses."""
    return KernelError(f"the kernel {kernel} does not run on this GPU ({error})", kernel=kernel)


def _error_in(log: str) -> str:
    """Return the line of a compiler's log that tells what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it does not say why")


def flat_grid(size: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block of a kernel whose threads stride over a flat array."""
    return (max(1, min(-(-size // THREADS), _FLAT_BLOCKS)),), (THREADS,)


def row_grid(rows: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block of a kernel with a warp for each row."""
    return (-(-rows // WARPS),), (THREADS,)


def loss_grid(rows: int, outputs: int) -> tuple[tuple[Any, Any], int]:
    """Return grid and block of the loss, and how many warps work on a row."""
    return (row_grid(rows), 1) if outputs <= WARP_OUTPUTS else (((rows,), (256,)), 8)


def tile_grid(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block of a kernel whose threads take four columns each and stride over rows."""
    return (min(-(-rows // 8), _ROW_BLOCKS), -(-columns // 128)), (32, 8)


def column_grid(columns: int, slabs: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block of a kernel with a block for 32 columns of each slab of rows."""
    return (-(-columns // 32), slabs), (32, 8)


def gradient_slabs(rows: int, columns: int, multiprocessors: int) -> int:
    """Return into how many slabs of rows a sum over rows is cut, so that there is work for the whole device."""
    wanted = -(-2 * multiprocessors // -(-columns // 32))
    return max(1, min(wanted, _GRADIENT_SLABS, rows // 64))


def is_wide(columns: int, arrays: Sequence[Array | None]) -> np.bool_:
    """Return whether rows of `columns` numbers can be read and written four at a time, 16 bytes and aligned."""
    whole = columns % 4 == 0
    return np.bool_(whole and all(a is None or a.data.ptr % 16 == 0 for a in arrays))
