"""A few steps on the GPU, for the tools that watch every access: compute-sanitizer and ncu.

compute-sanitizer --tool memcheck python benchmarks/gpu_trial.py small
ncu python benchmarks/gpu_trial.py large
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any
from unittest import mock

import gpu_measure
import numpy as np

import fastmlp
from fastmlp.backends.cuda.memory import Arena
from fastmlp.doctor.captured import launched_one_by_one

PLANTED = "planted"
"""What is asked for instead of networks: a write beyond an array, which a tool must see."""
TRAINED = "trained:"
"""What the last line begins with."""
EVERY_STAGE: dict[str, Any] = {"dropout": 0.2, "l2": 1e-3, "max_norm": 1.0}
NETWORKS = {
    "small": [((37, 130, 21, 5), 32, EVERY_STAGE), ((13, 50, 600), 77, {})],
    "large": [((784, 64, 32, 10), 32, {}), ((784, 1024, 1024, 10), 1024, {})],
}
BEYOND = 'extern "C" __global__ void beyond(float* x) { x[threadIdx.x + 1024] = 1.0f; }'


def apart(arena: Arena, cupy: Any) -> dict[str, Any]:
    """Return the arrays of an arena as allocations of their own: an access beyond one is then none within another."""
    return {name: cupy.empty(shape, dtype) for name, (shape, dtype) in arena.parts.items()}


def main(which: str) -> None:
    """Train as graphs (of small networks), kernel by kernel, and by cuBLAS."""
    cupy = gpu_measure.cupy()
    if which == PLANTED:
        cupy.cuda.set_allocator(None)
        cupy.RawKernel(BEYOND, "beyond")((1,), (32,), (cupy.empty((32,), np.float32),))
        cupy.cuda.Device().synchronize()
        return
    ways = [("captured", launched_one_by_one), ("eager", nullcontext)]
    if which == "small":
        cupy.cuda.set_allocator(None)  # no pool: each array is CUDA's own
        mock.patch.object(Arena, "allocate", apart).start()
        ways.append(("captured", nullcontext))
    count = 0
    for units, batch, network in NETWORKS[which]:
        x, y = gpu_measure.blobs(units, 2 * batch + 3)
        for way, around in ways:
            with around():
                model = fastmlp.MLP(units, backend=fastmlp.get_backend("cupy", way=way), seed=0, **network)
                rule = fastmlp.Adam(clip_norm=0.5, ema=0.9) if network else fastmlp.Adam()
                model.fit(x, y, epochs=1, batch_size=batch, optimizer=rule, verbose=0)
                model.predict(x)
                model.close()
                count += 1
    print(f"{TRAINED} {count} networks")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small")
