"""Operations, training and prediction of the Numba backend against NumPy, in both types; for `instruction_sets`.

Without pytest: that collects for longer than all of this takes on an emulated processor.
"""

import math
import platform
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
import test_composition
import test_products
from compare import assert_same_bits
from fastmlp.kernels.cpu import products, vectors
from numba_runs import trained
from scenarios import SCENARIOS

from fastmlp import get_backend
from fastmlp.backends.cpu import calibration, crew
from fastmlp.backends.cpu.forms import Forms
from fastmlp.doctor.selftest import compare_with_numpy

began = time.perf_counter()
for name in ("float32", "float64"):  # products go by the rule: there is nothing to be measured on an emulated processor
    calibration._tables[np.dtype(name)] = None
    calibration._settled.add(np.dtype(name))


def say(what: str) -> None:
    """Print what was found, with the seconds so far."""
    print(f"{time.perf_counter() - began:.0f} s: {what}", flush=True)


say(f"{platform.machine()}, vectors of {vectors.VECTOR_BYTES} bytes, forms {products.available_forms()}")
if platform.machine() == "aarch64":  # elsewhere the tests have done so; here it is the first time that networks are run
    say(compare_with_numpy("numba"))

backend, count = get_backend("numba"), 0
with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # of an infinite weight, which some are about
    for dtype in ("float32", "float64"):
        for scenario in SCENARIOS:
            for operation in test_composition.COARSE:
                # compiled whole, against the operations one by one; and these against NumPy in double precision
                test_composition.test_overrides_do_what_the_composition_does(backend, operation, scenario, dtype)
                test_composition.test_composition_agrees_with_numpy_in_double_precision(
                    backend, operation, scenario, dtype
                )
                count += 2
say(f"{count} comparisons of operations, steps and predictions")

test_products.ROWS, test_products.COLUMNS, test_products.DEPTHS = (1, 2, 7, 9, 25), (1, 3, 5, 17, 33, 53), (1, 15, 40)
for form in ("blas", "direct", "packed") if len(products.available_forms()) > 1 else ("auto",):
    for dtype in ("float32", "float64"):
        test_products.check_products(dtype, form)
say("products at the edges of a tile")

Forms.parts_for = lambda *_: 5
crew.FIRST_SECONDS = math.inf  # else one thread might be tried, and go on
crew._last_alone = -math.inf
alone = trained(1)
for threads in (2, 3, 5):
    for found, wanted in zip(trained(threads), alone, strict=True):
        assert_same_bits(found, wanted)
say("steps in five parts that one thread takes, as many as there are parts, or fewer from each other")
