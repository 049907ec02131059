"""Networks of every kind on every backend that runs here, for some seconds: they differ by rounding alone.

Two seconds of it are part of every run of the tests, thirty networks at least, and twenty seconds of `.ci/run`;
``pytest tests/fuzz/test_random_networks.py --fuzz 1800 -s`` goes on for half an hour, and shows how many there were.
"""

import time

import fastmlp
from fastmlp.doctor.random_networks import random_network

FEWEST = 30
"""Networks of a run, however slow the machine is."""


def test_random_networks_differ_by_rounding_alone(request):
    end, seed, worst = time.monotonic() + request.config.getoption("--fuzz"), 0, 0.0
    while seed < FEWEST or time.monotonic() < end:
        drawn = random_network(seed)
        found = fastmlp.parity(*drawn[:4], steps=3, optimizer=drawn.optimizer)
        assert found.agree, f"seed {seed}, {drawn.optimizer}:\n{found}"
        worst = max(worst, *map(found.largest, found.backends))
        seed += 1
    print(f"{seed} networks; at worst {worst:.2g} of what rounding allows")
