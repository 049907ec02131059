"""Part 1 of `gpu_day`, whether it is right."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from gpu_measure import HERE, NETWORKS, Found, blobs, cupy, failing, median_ms

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import nccl
from fastmlp.backends.cuda.blas import CuBlas
from fastmlp.bench.tables import markdown_table as table
from fastmlp.errors import BackendUnavailable
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.threads import Threads


def environment(dry: bool) -> Found:
    """Tell what this machine is."""
    names = ("numpy", "numba", "scipy", "cupy-cuda13x", "cupy-cuda12x", "torch", "jax", "scikit-learn", "safetensors")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found: Found = {"python": platform.python_version(), "versions": versions, "fastmlp": fastmlp.__version__}
    smi = "nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit --format=csv"
    if shutil.which("nvidia-smi"):
        found["gpu"] = subprocess.run(smi.split(), capture_output=True, text=True, check=False).stdout.strip()
    available = cupy_backend.probe()
    found["available"] = f"{available.available}: {available.reason}"
    found["cpus"] = os.cpu_count()
    found["text"] = "\n".join(f"{k}: {v}" for k, v in found.items())
    return found


def ceilings(dry: bool) -> Found:
    """Measure what the device can do at most: copies, products in four precisions, launches."""
    cp = cupy()
    size, side = (1 << 12, 64) if dry else (1 << 30, 8192)
    found: Found = {"copy, GB/s": 2 * size / 1e6 / _copy_ms(cp.empty((size,), "u1"), cp.empty((size,), "u1"))}
    rng = np.random.default_rng(0)
    x, w = (cp.asarray(rng.normal(size=(side, side)).astype("f4")) for _ in range(2))
    out, flops = cp.empty((side, side), np.dtype("f4")), 2.0 * side**3
    for name, blas in (("SGEMM", CuBlas(cp)), ("TF32", CuBlas(cp, tf32=True))):
        found[f"{name}, TFLOP/s"] = flops / median_ms(lambda blas=blas: blas.forward(x, w, out)) / 1e9
    if not dry:
        double, halves = x.astype("f8"), (x.astype("f4").view("u4") >> 16).astype("u2")
        result = cp.empty((side, side), "f8")
        found["DGEMM, TFLOP/s"] = flops / median_ms(lambda: CuBlas(cp).forward(double, double, result)) / 1e9
        one, zero, cuda = np.ones(1, "f4"), np.zeros(1, "f4"), cp.cuda

        def bf16() -> None:  # cudaDataType 14, cublasComputeType_t 68
            cuda.cublas.gemmEx(
                *(cuda.device.get_cublas_handle(), 0, 0, side, side, side, one.ctypes.data),
                *(
                    halves.data.ptr,
                    14,
                    side,
                    halves.data.ptr,
                    14,
                    side,
                    zero.ctypes.data,
                    out.data.ptr,
                    0,
                    side,
                    68,
                    -1,
                ),
            )

        found["bf16, TFLOP/s"] = flops / median_ms(bf16) / 1e9
    where = fastmlp.get_backend("cupy", way="eager")
    small = cp.empty((32,), np.dtype("f4"))
    found["a launch, us"] = median_ms(lambda: where.scale(small, 1.0)) * 1e3
    began = time.perf_counter()
    for _ in range(2000):
        where.scale(small, 1.0)
    found["a launch, host us"] = (time.perf_counter() - began) / 2000 * 1e6
    where.synchronize()
    found["text"] = "; ".join(f"{k} {v:.4g}" for k, v in found.items())
    return found


def _copy_ms(a: Any, b: Any) -> float:
    return median_ms(lambda: b.__setitem__(Ellipsis, a))


def selftest(dry: bool) -> Found:
    """``fastmlp selftest``, its kernels not yet compiled where nothing has been run before."""
    from fastmlp.doctor import selftest as own

    if dry:
        return {"text": own.STAGES["captured, and cuBLAS"]("cupy")}
    outcomes = [dataclasses.asdict(o) for o in own.run_all("cupy")]
    lines = [
        f"{'passed' if o['passed'] else 'FAILED'} {o['seconds']:.1f} s {o['stage']}: {o['text']}" for o in outcomes
    ]
    failed = [o["stage"] for o in outcomes if not o["passed"]]
    return failing({"outcomes": outcomes, "text": "\n".join(lines)}, ", ".join(failed))


selftest_warm = selftest  # once more, with all kernels in CuPy's cache


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Collect what is logged and warned of meanwhile."""
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keeping()
    log = logging.getLogger("fastmlp")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield lines
        finally:
            log.setLevel(level)
            log.removeHandler(handler)
            lines += [f"{w.category.__name__}: {w.message}" for w in caught]


def proof(dry: bool) -> Found:
    """Fit four networks for the first time, in both types, with and without dropout: proof, choice, numbers."""
    rows, found, bad = [], [], 0
    cases = list(itertools.product(NETWORKS.items(), ("float32", "float64"), (0.0, 0.2)))
    for (name, (units, batch, network)), dtype, rate in cases[8:9] if dry else cases:
        x, y = blobs(units, batch * (1 if dry else 18) + 5)
        began = time.perf_counter()
        with noted() as lines:
            weights = {}
            for way in ("auto", "captured", "eager"):
                where = fastmlp.get_backend("cupy", way=way)
                weights[way] = first_steps(where, units, batch, dtype, rate, network, x, y)
                if way == "auto":
                    seconds = time.perf_counter() - began
            weights["numpy"] = first_steps("numpy", units, batch, dtype, rate, network, x, y)
        scale = max(float(np.abs(w).max()) for w in weights["numpy"])
        off = {
            way: max(float(np.abs(a - b).max()) for a, b in zip(w, weights["numpy"], strict=True)) / scale
            for way, w in weights.items()
        }
        wrong = not all(v < (2e-3 if dtype == "float32" else 1e-9) for v in off.values())
        wrong |= any("Warning" in line for line in lines)
        bad += wrong
        found.append(
            {"network": name, "dtype": dtype, "dropout": rate, "off": off, "said": lines, "first fit": seconds}
        )
        rows.append(
            [name, dtype, rate, f"{off['captured']:.1e}", f"{off['eager']:.1e}", f"{seconds:.2f}", " / ".join(lines)]
        )
    head = ["network, batch", "type", "dropout", "captured off", "eager off", "first fit, s", "said"]
    text = table(head, rows)
    return failing({"cases": found, "text": text}, f"{bad} cases differ" if bad else "")


def first_steps(
    where: Any, units: Any, batch: int, dtype: str, rate: float, network: Any, x: Any, y: Any
) -> list[np.ndarray]:
    """Train an epoch with Adam, its epsilon so large that rounding stays rounding; return the weights."""
    model = fastmlp.MLP(units, backend=where, dtype=dtype, dropout=rate, seed=0, **network)
    model.fit(x, y, epochs=1, batch_size=batch, optimizer=fastmlp.Adam(1e-3, epsilon=0.1), verbose=0)
    weights = [np.array(w, np.float64) for w in model.get_weights()]
    model.close()
    return weights


def ranks(dry: bool) -> Found:
    """Train by several ranks: by NCCL on the GPUs that there are, and by threads that share one; their bits agree."""
    made: dict[str, Any] = {"activation": "gelu", "dropout": (0.1, 0.2), "l2": 1e-3, "seed": 0}
    x, y = blobs((6, 3) if dry else (784, 10), 21 if dry else 2000)
    options = {"optimizer": fastmlp.Adam(clip_norm=0.5, ema=0.9), "epochs": 2, "batch_size": 8 if dry else 128}

    def fitted(group: Any, way: str) -> bytes:
        where = fastmlp.get_backend("cupy", way=way)  # each rank has its own, as a process would
        model = fastmlp.MLP((6, 5, 3) if dry else (784, 256, 10), backend=where, **made)
        model.fit(x, y, **options, verbose=0, parallel=group)
        return b"".join(w.tobytes() for w in model.get_weights())

    ways = {way: functools.partial(fitted, way=way) for way in ("eager", "captured")}
    expected, found, lines = {way: run(Alone(8)) for way, run in ways.items()}, {}, []
    for count, (way, run) in itertools.product((2, 3), ways.items()):
        found[f"{count} threads on a GPU, {way}"] = [w == expected[way] for w in in_threads(run, count)]
    try:
        version = nccl.import_nccl().get_version()
    except BackendUnavailable as error:
        lines.append(str(error))
    else:
        lines.append(f"NCCL {version}")
        with mock.patch.object(Threads, "gpu_each", True):
            counts = range(1, min(int(cupy().cuda.runtime.getDeviceCount()), 8) + 1)
            for count, (way, run) in itertools.product(counts, ways.items()):
                same = [w == expected[way] for w in in_threads(run, count, timeout=20)]
                found[f"{count} ranks by NCCL, {way}"] = same
    lines += [f"{name}: {'the same bits' if all(same) else 'other bits'}" for name, same in found.items()]
    bad = [name for name, same in found.items() if not all(same)]
    return failing({"same": found, "text": "\n".join(lines)}, ", ".join(bad))


SUITE_SECONDS = int(os.environ.get("GPU_SUITE_SECONDS", "220"))
"""After which the tests are interrupted; less than the stage has."""


def suite(dry: bool) -> Found:
    """Run the tests that all backends share, on the device."""
    if dry:
        chosen = ["tests/test_operations.py", "-k", "cupy and dense_forward"]
    else:
        chosen = ["tests", "-k", "cupy", "--whole-ladder"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short", "--maxprocesses=12", *chosen]
    command += ["-p", "no:cacheprovider"] + (
        ["-p", "no:benchmark"] if importlib.util.find_spec("pytest_benchmark") else []
    )
    with subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as tests:
        # what has failed so far is said when pytest is interrupted, and lost when it is killed
        timer = threading.Timer(SUITE_SECONDS, lambda: tests.send_signal(signal.SIGINT))
        timer.start()
        output = tests.communicate()[0]
        timer.cancel()
    print(output)
    lines = output.strip().splitlines()
    failed = [line for line in lines if re.match(r"(FAILED|ERROR)", line)]
    found: Found = {"text": "\n".join([lines[-1], *failed[:40]]), "failures": failed}
    return failing(found, f"code {tests.returncode}" if tests.returncode else "")
