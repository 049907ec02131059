"""The fine operations on CUDA: every one a launch of fastmlp's own kernels, products by cuBLAS.

All work is put on the stream that is current where a call is made, so whoever uses CuPy around it finds it in order.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.base import Backend
from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.blas import Call, CuBlas, GraphBlas, load_cublas
from fastmlp.backends.cuda.capture import one_at_a_time
from fastmlp.backends.cuda.kernels import (
    Kernels,
    column_grid,
    flat_grid,
    is_wide,
    loss_grid,
    refused,
    row_grid,
    tile_grid,
)
from fastmlp.backends.cuda.uploads import PIECE, Buffers, upload
from fastmlp.errors import KernelError
from fastmlp.formulas.activations import IDENTITY, get_activation
from fastmlp.formulas.optimizers import StepScalars
from fastmlp.formulas.random_bits import keep_threshold

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer

_log = logging.getLogger("fastmlp")


class CupyOperations(Backend):
    """What `CupyBackend` adds whole training steps to.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it in tests.
    tf32 : bool
        See `CuBlas`.
    """

    chunk_rows: ClassVar[int] = sys.maxsize

    def __init__(self, cupy: Any, *, tf32: bool = False) -> None:
        self._cupy, self._tf32, self._buffers = cupy, tf32, Buffers()
        # work for longer than the host needs to launch the next, in products as large as memory allows
        self.chunk_bytes = max(64 * 2**20, cupy.cuda.Device().mem_info[1] // 256)
        self._blas, self._kernels = CuBlas(cupy, tf32=tf32), Kernels(cupy)
        library = load_cublas()
        self.graph_blas = None if library is None else GraphBlas(cupy, library)
        """cuBLAS for captured steps, where it can be called there."""
        self.device = int(cupy.cuda.Device().id)
        """The number of the GPU that was current, where it runs."""
        self.waits = False
        """Whether the host waits for each kernel."""
        self.proven: set[str] = set()
        """Names of kernels that compute rightly on this device, in graphs too."""

    def waiting(self) -> CupyOperations:
        """Return the same operations, sharing all, that wait after each launch: a fault is then known by its name."""
        twin = copy(self)
        twin.waits = True
        return twin

    def listing(self, calls: list[Call]) -> CupyOperations:
        """Return operations that append each launch to a list, products by cuBLAS too, and carry out none."""
        twin = copy(self)

        def listed(file: str, name: str, dtype: Any, grid: tuple[Any, Any], args: Sequence[Any]) -> None:
            kernel, real = _filled(name, dtype)
            calls.append(Call(kernel, lambda given: self._kernels.get(file, kernel, real)(*grid, given), tuple(args)))

        twin._launch = listed  # type: ignore[method-assign]
        twin._blas = self._blas.listing(calls)
        twin.graph_blas = None if self.graph_blas is None else self.graph_blas.listing(calls)
        return twin

    def carry_out(self, calls: Sequence[Call], index: int) -> None:
        """Launch a list of a step, as step `index` of its call.

        Raises
        ------
        KernelError
            As of `_launch`.
        """
        number, kernel = np.int32(index), ""
        try:
            for kernel, start, args, places in calls:  # noqa: B007 - the error tells which it was
                if places:
                    changed = list(args)
                    for place in places:
                        changed[place] = number
                    start(tuple(changed))
                else:
                    start(args)
                if self.waits:
                    self.synchronize()
        except self.cuda_errors as e:
            raise refused(kernel, e) from e

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors the device has."""
        return int(self._cupy.cuda.Device(self.device).attributes["MultiProcessorCount"])

    @property
    def cuda_errors(self) -> tuple[type[Exception], ...]:
        """What CuPy raises where CUDA refuses or fails."""
        cuda = self._cupy.cuda
        return cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """The same, and what a launch makes of it."""
        return KernelError, *self.cuda_errors

    def poisoned(self) -> bool:
        """Return whether an earlier fault has left CUDA past use in this process; waits for the device."""
        try:
            with one_at_a_time:  # beside a capture of another thread it would be refused, which looks like a fault
                self._cupy.cuda.runtime.deviceSynchronize()
        except self.cuda_errors:
            return True
        return False

    def _launch(self, file: str, name: str, dtype: Any, grid: tuple[Any, Any], args: Sequence[Any]) -> None:
        """Launch kernel `name` of a file, its template arguments filled in for `dtype`.

        Raises
        ------
        KernelError
            CUDA refuses the launch, or is past use because of an earlier one.
        """
        kernel, real = _filled(name, dtype)
        try:
            self._kernels.get(file, kernel, real)(*grid, tuple(args))
            if self.waits:
                self.synchronize()
        except self.cuda_errors as e:
            raise refused(kernel, e) from e

    def ready(self, file: str, name: str, dtype: Any, grid: tuple[Any, Any]) -> Callable[[tuple[Any, ...]], None]:
        """Return `_launch` of a kernel that is looked up once; it takes the arguments."""
        return self._kernels.ready(file, *_filled(name, dtype), grid, self.cuda_errors)

    def _dense(self, array: Array) -> Array:
        """Return the array with its elements side by side, as kernels read it."""
        return array if array.flags.c_contiguous else self._cupy.ascontiguousarray(array)

    # --- memory ---

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._cupy.empty(shape, dtype)  # CuPy's pool aligns to 512 bytes

    def asarray(self, array: Any) -> Array:
        if isinstance(array, np.ndarray) and array.nbytes > PIECE:
            return upload(self._cupy, array, self.cuda_errors, self._buffers)
        return self._cupy.asarray(array)  # by way of memory of CuPy's own, so `array` may change or go at once

    def fill(self, target: Array, host: NDArray[Any]) -> None:
        """Copy an array in host memory, which may change or go at once, into one on the device.

        CuPy's `set` reads it when the stream comes to that, and keeps nothing alive until then.
        """
        target[...] = self.asarray(host)

    def to_numpy(self, array: Array) -> NDArray[Any]:
        host: NDArray[Any] = array.get()
        return host

    def synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    @contextlib.contextmanager
    def marked(self, name: str) -> Iterator[None]:
        nvtx = self._cupy.cuda.nvtx
        nvtx.RangePush(name)
        try:
            yield
        finally:
            nvtx.RangePop()

    def memory_info(self) -> dict[str, int]:
        """Return bytes of the device: free, total, and of CuPy's pool used, and kept for later."""
        free, total = self._cupy.cuda.Device().mem_info
        pool = self._cupy.get_default_memory_pool()
        return {"free": free, "total": total, "used": pool.used_bytes(), "kept": pool.free_bytes()}

    # --- layers ---

    def gather_rows(self, source: Array, order: Array | slice, out: Array, scratch: Array | None = None) -> None:
        if isinstance(order, slice):
            order = self._cupy.arange(order.start, order.stop, dtype=np.int64)
        columns = math.prod(source.shape[1:])
        own = sources.CTYPES.get(source.dtype.name)
        if own is None:  # half precision and the like: CuPy's own conversion, of all rows
            source, own = source.astype(out.dtype), sources.CTYPES[out.dtype.name]
        source = self._dense(source)
        real = np.dtype(np.float32) if out.dtype.kind != "f" else out.dtype
        name = f"gather_rows<{own}, {sources.CTYPES[out.dtype.name]}>"
        self._launch(
            *("gather.cu", name, real, row_grid(len(out))),
            (source, self._dense(order), out, np.int64(len(out)), np.int64(columns)),
        )

    def dense_forward(self, x: Array, w: Array, b: Array, out: Array) -> None:
        self._blas.forward(self._dense(x), self._dense(w), out)
        self._bias_activation(IDENTITY, self._dense(b), out, None)

    def activate(self, activation: str, z: Array, slope: Array | None, scratch: tuple[Array, Array]) -> None:
        if get_activation(activation).compiled:
            self._bias_activation(activation, None, z, slope)
        else:
            self._on_host(activation, get_activation(activation).function, (z, slope), (z, slope), scratch)

    def dense_activate(
        self, activation: str, x: Array, w: Array, b: Array, z: Array, slope: Array | None, scratch: tuple[Array, Array]
    ) -> None:
        if not get_activation(activation).compiled:
            super().dense_activate(activation, x, w, b, z, slope, scratch)
            return
        self._blas.forward(self._dense(x), self._dense(w), z)
        self._bias_activation(activation, self._dense(b), z, slope)

    def _bias_activation(self, activation: str, b: Array | None, z: Array, slope: Array | None) -> None:
        n, o = z.shape
        code = sources.code_of("activation", activation)
        args = (code, b, z, slope, np.int64(n), np.int64(o), is_wide(o, (b, z, slope)))
        self._launch("layers.cu", "bias_activation<{real}>", z.dtype, tile_grid(n, o), args)

    def activation_backward(self, activation: str, a: Array, slope: Array | None, d: Array, scratch: Array) -> None:
        # with the slope at hand it does not matter whose it is
        code = sources.code_of("activation", activation if slope is None else IDENTITY)
        args = (code, a, slope, d, np.int64(d.size))
        self._launch("layers.cu", "activation_gradient<{real}>", d.dtype, flat_grid(d.size), args)

    def dropout(
        self,
        a: Array,
        slope: Array | None,
        rate: float,
        key: int,
        step: int,
        layer: int,
        scratch: Array,
        first_row: int = 0,
    ) -> None:
        n, o = a.shape
        args = (
            *(a, slope, np.int64(n), np.int64(o), is_wide(o, (a, slope)), np.uint32(keep_threshold(rate))),
            *(a.dtype.type(1 / (1 - rate)), np.uint64(key), np.uint32(step % 2**32), np.int32(layer)),
            np.int64(first_row),
        )
        self._launch("layers.cu", "dropout<{real}>", a.dtype, tile_grid(n, o), args)

    def dense_backward(
        self, x: Array, dz: Array, w: Array, dw: Array | None, db: Array | None, dx: Array | None
    ) -> None:
        x, dz, w = self._dense(x), self._dense(dz), self._dense(w)
        n, o = dz.shape
        if dw is not None:
            self._blas.weight_gradient(x, dz, dw)
        if db is not None:
            args = (dz, db, np.int64(0), np.int64(n), np.int64(o))
            self._launch("layers.cu", "column_sums<{real}>", dz.dtype, column_grid(o), args)
        if dx is not None:
            self._blas.input_gradient(dz, w, dx)

    # --- losses ---

    def loss(
        self,
        loss: Loss,
        outputs: Array,
        targets: Array,
        row_weights: Array | None,
        inverse_total: float,
        d_outputs: Array,
        row_losses: Array,
        scratch: tuple[Array, Array],
    ) -> None:
        if loss.compiled:
            weights = None if row_weights is None else self._dense(row_weights)
            self._loss_rows(loss, outputs, targets, weights, inverse_total, d_outputs, row_losses, None)
            return
        given = (outputs, targets, d_outputs, row_losses)
        self._on_host(loss.name, loss.compute, given, (d_outputs, row_losses), scratch)
        factors = np.full(len(outputs), inverse_total, d_outputs.dtype)
        if row_weights is not None:
            factors *= row_weights.get()
        self.fill(d_outputs, d_outputs.get() * factors[:, None])

    def hits(self, loss: Loss, outputs: Array, targets: Array, out: Array) -> None:
        if loss.compiled:
            self._loss_rows(loss, outputs, targets, None, math.nan, None, None, out)  # no gradient is asked for
        else:
            self._on_host(loss.name, loss.hits, (outputs, targets, out), (out,))

    def _loss_rows(
        self,
        loss: Loss,
        outputs: Array,
        targets: Array,
        weights: Array | None,
        inverse_total: float,
        d_outputs: Array | None,
        row_losses: Array | None,
        row_hits: Array | None,
    ) -> None:
        n, k = outputs.shape
        grid, warps = loss_grid(n, k)
        real = sources.CTYPES[outputs.dtype.name]
        held = "long long" if targets.ndim == 1 else real
        numbers = np.array(loss.parameters, outputs.dtype)
        args = (
            *(sources.code_of("loss", loss.name), self.asarray(numbers) if numbers.size else None),
            *(np.int64(numbers.size), self._dense(outputs), self._dense(targets), weights),
            *(np.float64(inverse_total), None, None, np.int32(0), d_outputs, row_losses, row_hits),
            *(np.int64(n), np.int64(k)),
        )
        self._launch("losses.cu", f"loss_rows<{real}, {held}, {warps}>", outputs.dtype, grid, args)

    def totals(self, row_stats: Array, row_weights: Array | None, out: Array) -> None:
        weights = None if row_weights is None else self._dense(row_weights)
        args = (row_stats[0], row_stats[1], weights, out, np.int64(row_stats.shape[1]))
        self._launch("losses.cu", "totals<{real}>", row_stats.dtype, ((1,), (256,)), args)

    # --- flat arrays ---

    def add(self, target: Array, source: Array) -> None:
        self.add_scaled(target, source, 1.0, source)  # a factor of one rounds nothing, and no scratch is used here

    def add_scaled(self, target: Array, source: Array, factor: float, scratch: Array) -> None:
        args = (target, source, target.dtype.type(factor), np.int64(target.size))
        self._launch("flat.cu", "add_scaled<{real}>", target.dtype, flat_grid(target.size), args)

    def squared_norm(self, array: Array) -> float:
        return math.fsum(self._sums_of_squares([array]).tolist())

    def all_finite(self, arrays: Sequence[Array]) -> bool:
        # a square that overflows is looked into
        return bool(np.isfinite(self._sums_of_squares(arrays)).all())

    def _sums_of_squares(self, arrays: Sequence[Array]) -> NDArray[np.float64]:
        """Return the sums of the squares of parts of some arrays, on the host."""
        grids, start = [flat_grid(array.size) for array in arrays], 0
        partials = self.empty((sum(grid[0] for grid, _ in grids),), np.dtype(np.float64))
        for array, grid in zip(arrays, grids, strict=True):
            args = (array, partials[start:], np.int64(array.size))
            self._launch("flat.cu", "squared_norm<{real}>", array.dtype, grid, args)
            start += grid[0][0]
        found: NDArray[np.float64] = partials.get()
        return found

    def scale(self, array: Array, factor: float) -> None:
        args = (array, array.dtype.type(factor), np.int64(array.size))
        self._launch("flat.cu", "scale<{real}>", array.dtype, flat_grid(array.size), args)

    def update(
        self,
        optimizer: Optimizer,
        p: Array,
        g: Array,
        moments: Sequence[Array],
        decay: float,
        scalars: StepScalars,
        scratch: Array,
    ) -> None:
        kept = 1 - scalars.rate * decay
        if not optimizer.compiled:
            work = np.empty(p.shape, p.dtype)
            arrays = (p, g, *moments)

            def step(p: Any, g: Any, *m: Any) -> None:
                p *= kept
                optimizer.update(p, g, m, scalars, work)

            self._on_host(optimizer.name, step, arrays, arrays)
            return
        mean, square = optimizer.by_role(moments)
        args = (
            sources.code_of("optimizer", optimizer.name),
            *(p, g, mean, square, np.float64(kept)),
            *(self.asarray(rule_numbers(optimizer, 0.0)), self.asarray(np.array(scalars)), np.int64(p.size)),
        )
        self._launch("optimizers.cu", "update<{real}>", p.dtype, flat_grid(p.size), args)

    def max_norm(self, w: Array, limit: float) -> None:
        i, o = w.shape
        args = (w, w.dtype.type(limit), np.int64(i), np.int64(o), None, None, np.int32(0), None)
        self._launch("optimizers.cu", "max_norm<{real}>", w.dtype, column_grid(o), args)

    def average(self, mean: Array, p: Array, decay: float, scratch: Array) -> None:
        args = (mean, p, mean.dtype.type(1 - decay), np.int64(mean.size))
        self._launch("flat.cu", "average<{real}>", mean.dtype, flat_grid(mean.size), args)

    # --- functions of a user's own ---

    def _on_host(
        self,
        name: str,
        function: Callable[..., object],
        given: Sequence[Array | None],
        changed: Sequence[Array | None],
        scratch: Sequence[Array] | None = None,
    ) -> None:
        """Call a function of a user's with NumPy copies of arrays, and bring back those that it changes."""
        _say_host(name)
        copies = {id(a): a.get() for a in given if a is not None}
        arguments: list[Any] = [None if a is None else copies[id(a)] for a in given]
        if scratch is not None:
            arguments.append(tuple(np.empty(s.shape, s.dtype) for s in scratch))
        function(*arguments)
        for array in changed:
            if array is not None:
                self.fill(array, copies[id(array)])


@cache  # NumPy takes microseconds to tell a type's name
def _filled(name: str, dtype: Any) -> tuple[str, str]:
    """Return the name of a kernel with its template arguments, and the C++ type computed in."""
    real = sources.REALS[np.dtype(dtype).name]
    return name.format(real=real), real


def rule_numbers(optimizer: Optimizer, l2: float) -> NDArray[np.float64]:
    """Return what `optimizers.cu` calls a rule: what does not change from step to step."""
    return np.array([*optimizer.constants, optimizer.weight_decay, optimizer.clip_norm or 0.0, l2], np.float64)


@cache
def _say_host(name: str) -> None:
    _log.warning("%s: a function of your own cannot be compiled, so it runs on the host, step by step", name)
