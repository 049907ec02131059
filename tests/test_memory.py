"""Training and predicting again and again leaves memory where it was."""

import os
import subprocess
import sys
import textwrap

import pytest

MEASURE = """
    import gc, os, sys
    import numpy as np
    import fastmlp

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 100)).astype("float32"), rng.integers(0, 10, 2000)
    model = fastmlp.MLP((100, 64, 10), dropout=0.2, backend=sys.argv[1], seed=0)
    optimizer = fastmlp.Adam(ema=0.99)
    after = {}
    for i in range(100):
        model.fit(x, y, epochs=1, optimizer=optimizer, validation_split=0.1, verbose=0)
        for _ in range(10):
            model.predict(x[: (2000, 1, 77)[i % 3]])
        if i in (2, 99):
            after[i] = resident()
    print(after[99] - after[2])
"""


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_hundred_epochs_and_a_thousand_predictions_leave_memory_where_it_was(process_backend):
    command = [sys.executable, "-P", "-c", textwrap.dedent(MEASURE), process_backend.name]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # whose threads wait for each other on a busy machine
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    # the data of the test alone are 0.8 MB: a leak of a thousandth of what each call touches would show
    assert grown < 2**20, f"resident memory grew by {grown:,} bytes"
