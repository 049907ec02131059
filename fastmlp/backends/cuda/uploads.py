"""Bringing large arrays to the device through little memory that the system cannot move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.streams import reached

if TYPE_CHECKING:
    from fastmlp._typing import Array

PIECE = 4 * 2**20
"""Bytes that are brought at once.

CuPy's own way copies a whole array into pinned memory, its size rounded up to a power of two, and its pool keeps that
for as long as the process lives; up to so many bytes that does no harm.
"""


class Buffers:
    """Two pinned buffers of a backend, kept from one upload to the next: to pin them takes longer than what they bring.

    Where several threads bring arrays at once, each has two; those of one are kept.
    """

    def __init__(self) -> None:
        self._idle: list[list[NDArray[np.uint8]]] = []

    @contextlib.contextmanager
    def lent(self, cupy: Any, refused: tuple[type[Exception], ...]) -> Iterator[list[NDArray[np.uint8]]]:
        """Lend both for an upload; parameters as of `upload`."""
        try:
            pair = self._idle.pop()
        except IndexError:
            pair = [pinned(cupy, PIECE, refused) for _ in range(2)]
        yield pair
        self._idle[:] = [pair]


def upload(cupy: Any, array: NDArray[Any], refused: tuple[type[Exception], ...], kept: Buffers) -> Array:
    """Return a copy on the device, in C order, of an array of any size in host memory.

    One pinned buffer is filled while the other is read.  It waits for the stream.

    Parameters
    ----------
    cupy : module
    array : array
    refused : tuple of type
        What is raised where no memory can be pinned.
    kept : Buffers
    """
    host = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    there: Array = cupy.empty(host.shape, host.dtype)
    source, target = host.reshape(-1).view(np.uint8), there.reshape(-1).view(np.uint8)
    stream = cupy.cuda.get_current_stream()
    read: list[Any] = [None, None]
    with kept.lent(cupy, refused) as buffers:
        try:
            for number, start in enumerate(range(0, source.size, PIECE)):
                which = number % 2
                if read[which] is not None:
                    read[which].synchronize()  # what was in it is on the device
                piece = buffers[which][: source.size - start]
                piece[...] = source[start : start + PIECE]
                target[start : start + PIECE].set(piece)
                read[which] = reached(cupy, stream)
        finally:
            stream.synchronize()
    return there


def send(target: Array, host: NDArray[Any]) -> None:
    """Copy an array in host memory that neither changes nor goes until the stream has been waited for."""
    target.set(host)


def pinned(cupy: Any, size: int, refused: tuple[type[Exception], ...]) -> NDArray[np.uint8]:
    """Return a new buffer of so many bytes, of none of CuPy's pools, which is freed with the array."""
    cuda = cupy.cuda
    try:
        return np.frombuffer(cuda.PinnedMemoryPointer(cuda.PinnedMemory(size), 0), np.uint8, size)
    except refused:
        return np.empty(size, np.uint8)  # CUDA pins a part of it at a time: slower, and as right
