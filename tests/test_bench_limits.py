"""What `fastmlp bench` takes for the best of a machine: copies, and the launch of a kernel."""

import inspect
import threading

import cupy_double
import numpy as np
import pytest
from emulator import needs_emulator

from fastmlp.bench import limits, measures

EFFORT = measures.QUICK._replace(samples=1, seconds=0.0)


def test_a_copy_is_that_of_one_thread_or_of_all_and_a_call_of_numpys_holds_enough_of_it(monkeypatch):
    """Of copies that take a microsecond, threads would measure how they take turns in Python's code."""
    called = []

    def copyto(target, source):
        called.append((threading.get_ident(), target.size))
        target[...] = source

    def once(work, effort):
        work()
        return [1.0]

    monkeypatch.setattr(limits, "COPIED", {"cpu": (1 << 14, 1 << 18)})
    monkeypatch.setattr(limits, "SIDE", {"cpu": 4})
    monkeypatch.setattr("fastmlp.backends.cpu.limits.default_threads", lambda: 3)
    monkeypatch.setattr(limits, "_samples", once)
    monkeypatch.setattr(np, "copyto", copyto)
    found = limits.measure("cpu", "float32", EFFORT)["copies"]
    assert [size for size, _ in found] == [1 << 14, 1 << 18]
    assert len(called) == 2 * (1 + 3)
    assert all(2 * copied >= limits.WORK >= 1 << 25 for _, copied in called)
    for (_, (alone, all_threads)), copied in zip(found, called[::4], strict=True):
        assert alone == 2 * copied[1]  # in the one second that it is said to have taken
        assert all_threads == pytest.approx(3 * alone, rel=0.01)


def test_a_copy_reaches_all_that_it_is_to_write():
    work = limits._copying(1000, 3)
    work()
    windows = inspect.getclosurevars(work).nonlocals["windows"]
    assert windows.shape == (3, 1000) and windows.all()


@needs_emulator
def test_a_launch_is_that_of_a_kernel_that_does_nothing():
    work = limits.launching(cupy_double)
    cupy_double.launches.clear()
    work()
    cupy_double.cuda.get_current_stream().synchronize()
    assert cupy_double.launches == [("nothing", (0, 0))]
