"""The CuPy backend: training on an NVIDIA GPU, by fastmlp's own CUDA kernels and cuBLAS."""

from __future__ import annotations

from typing import Any, ClassVar

from fastmlp.backends import Availability
from fastmlp.backends.cuda_probe import cuda_availability
from fastmlp.backends.cupy_operations import CupyOperations


def probe() -> Availability:
    """Tell whether the backend can run here and, if not, why and the cure."""
    return cuda_availability()


def import_cupy() -> Any:
    """Import CuPy, which takes a quarter of a second, when a backend is made and not before."""
    import cupy

    return cupy


class CupyBackend(CupyOperations):
    """Runs on the GPU that is current where it is made.

    Parameters
    ----------
    tf32 : bool
        Let float32 products round their factors to 11 bits, on tensor cores: faster, and about three decimal digits
        are left.
    """

    name: ClassVar[str] = "cupy"

    def __init__(self, *, tf32: bool = False) -> None:
        if not isinstance(tf32, bool):
            raise TypeError(f"tf32 must be True or False, got {tf32!r}")
        super().__init__(import_cupy(), tf32=tf32)

    def __repr__(self) -> str:
        return f"CupyBackend(tf32={self._tf32})"

    def choices(self) -> dict[str, Any]:
        return {"backend": self.name, "cupy": self._cupy.__version__, "tf32": self._tf32}
