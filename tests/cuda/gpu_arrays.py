"""Arrays in the memory of a GPU, of CuPy's double and of other libraries, and small models to take them."""

import cupy_double as cp
import numpy as np

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend


class Dlpack:
    """An array of a library that knows DLPack alone, made on that library's own stream."""

    def __init__(self, host, stream=None):
        self.stream = stream or cp.cuda.Stream(non_blocking=True)
        with self.stream:
            self.array = cp.asarray(host)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        with self.array.device, self.stream:
            return self.array.__dlpack__(**options)


class Interface:
    """An array of a library that knows the CUDA array interface alone."""

    def __init__(self, host):
        self.stream = cp.cuda.Stream(non_blocking=True)
        with self.stream:
            self.array = cp.asarray(host)

    @property
    def __cuda_array_interface__(self):
        with self.array.device, self.stream:
            return self.array.__cuda_array_interface__


class HostDlpack:
    """An array in host memory of a library that knows DLPack alone."""

    def __init__(self, host):
        self.host = host

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.host.__dlpack__(**options)


KINDS = {"cupy": cp.asarray, "dlpack": Dlpack, "interface": Interface}


def rows(n=21):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype("f4"), rng.integers(0, 3, n)


def make(way="captured", **options):
    return cupy_backend.CupyBackend(way=way, **options)


def model_on(backend=None, **changes):
    return fastmlp.MLP((6, 7, 3), **({"activation": "tanh", "seed": 0, "backend": backend or make()} | changes))


def train(model, x, y, **changes):
    return model.fit(x, y, **({"epochs": 2, "batch_size": 4, "verbose": 0} | changes))
