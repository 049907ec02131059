"""What limits the threads of other libraries limits those of the Numba backend, unless it is told a number."""

import os
import subprocess
import sys

import pytest

HEAD = """
import numpy as np, fastmlp
from fastmlp.backends.cpu import limits
limits.physical_cores = lambda: 2  # on a machine of one core too
auto, told = fastmlp.get_backend("numba"), fastmlp.get_backend("numba", threads=2)
"""
WITHIN = """
from threadpoolctl import ThreadpoolController, threadpool_limits
with threadpool_limits(2):
    several = auto.threads
with threadpool_limits(1):
    print(several, auto.threads, told.threads)
"""
OPENMP = """
import threadpoolctl
before = auto.threads  # before there is any OpenMP in the process
import sklearn.utils
assert threadpoolctl.ThreadpoolController().select(user_api="openmp").lib_controllers
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    within = auto.threads
print(before, within, auto.threads, told.threads)
"""
NUMBA = """
import numba
before = auto.threads
numba.set_num_threads(1)
print(before, auto.threads, told.threads)
"""
WORKER = """
from joblib import Parallel, delayed
def count():
    import fastmlp
    from fastmlp.backends.cpu import limits
    limits.physical_cores = lambda: 2
    return fastmlp.get_backend("numba").threads
from joblib import parallel_backend
with parallel_backend("loky", inner_max_num_threads=1):
    print(auto.threads, *Parallel(2)(delayed(count)() for _ in range(2)))
"""
FIT = """
from threadpoolctl import threadpool_limits
from fastmlp.backends.cpu import session
made = []
class Seen(session.Choices):
    def __init__(self, plan, chunk, most, forms):
        made.append(most)
        super().__init__(plan, chunk, most, forms)
session.Choices = Seen
m = fastmlp.MLP((4, 8, 2), backend=auto, seed=0)
x, y = np.zeros((50, 4)), np.zeros(50, int)
def fit(threads):
    with threadpool_limits(threads):
        m.fit(x, y, epochs=1, verbose=0)
        made.append(";")
for threads in (2, 2, 1, 1, 2):
    fit(threads)
print(*made)
"""
SAY = "print(auto.threads, told.threads)"


ENVIRONMENT = """
import os
seen = []
for value in ("", "0", "-1", "many", "8", "2,1", "1"):  # the last one is a limit
    os.environ["OMP_NUM_THREADS"] = value
    seen += [auto.threads, told.threads]
del os.environ["OMP_NUM_THREADS"]
print(*seen)
"""
IN_TURN = {
    OPENMP: "2 1 2 2",  # the first: until then there has been no OpenMP
    WITHIN: "2 1 2",
    ENVIRONMENT: "2 2 " * 6 + "1 2",
    NUMBA: "2 1 2",  # the last: its limit stays
}
"""What is done in a process, and what it then prints."""


def printed(code, **variables):
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    given = {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", **variables}
    command = [sys.executable, "-P", "-c", HEAD + code]
    done = subprocess.run(command, env={**clean, **given}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_variable_of_the_environment_is_a_limit(name):
    assert printed(SAY, **{name: "1"}) == "1 2"


def test_limits_hold_while_they_are_set_and_what_is_none_limits_nothing():
    """Of OpenMP, also where that was loaded later, of thread pools, of a variable, and of Numba, in one process."""
    assert printed("".join(IN_TURN)).splitlines() == list(IN_TURN.values())


@pytest.mark.thorough  # by default an estimator's do, in estimators/test_tools
def test_workers_of_joblib_keep_to_their_share():
    assert printed(WORKER) == "2 1 1"


def test_a_fit_takes_the_limit_of_its_time_and_not_that_of_the_fit_before(kernels_in_the_cache):
    assert printed(FIT) == "2 ; ; 1 ; ; ;"
