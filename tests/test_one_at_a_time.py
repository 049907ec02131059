"""Processes that need the same compiled thing wait for the one that compiles it."""

import threading

import one_at_a_time
import pytest
from one_at_a_time import alone, compiling_alone

pytestmark = pytest.mark.skipif(one_at_a_time.fcntl is None, reason="this system has no locks on files of this kind")


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_the_second_waits_until_the_first_is_done_however_it_ends(tmp_path, error):
    order = []

    def come_second():
        with alone(tmp_path / "lock"):
            order.append("second")

    second = threading.Thread(target=come_second)
    try:
        with alone(tmp_path / "lock"):
            second.start()
            second.join(0.2)
            order.append("first")
            if error:
                raise error
    except ZeroDivisionError:
        pass
    second.join(60)
    assert order == ["first", "second"]


def test_who_is_in_may_come_in_again(tmp_path):
    with alone(tmp_path / "lock"), alone(tmp_path / "lock"):
        pass


def test_an_entry_is_compiled_alone_and_what_it_calls_with_it(monkeypatch, tmp_path):
    numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
    if numba.config.DISABLE_JIT:
        pytest.skip("the JIT is off, so nothing is compiled")
    from fastmlp.kernels.cpu import compiling

    taken = []
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(one_at_a_time, "alone", lambda path: taken.append(path) or alone(path))

    @compiling.part
    def double(x):
        return 2 * x

    @compiling.entry
    def four_times(x):
        return double(double(x))

    with compiling_alone(), compiling_alone():  # the workers of a run with several have one already
        assert four_times(2.0) == 8.0
        assert four_times(3.0) == 12.0
    assert {path.name for path in taken} == {"four_times.lock"}
    assert tmp_path in taken[0].parents
