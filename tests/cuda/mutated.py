"""The files that `mutants.py` breaks: every kernel, and all that the host does for a GPU and with arrays on one."""

OPERATIONS = ("tests/test_operations.py", "tests/test_operations_training.py")
STEP = "tests/cuda/test_training_step.py"
LINT, PRODUCTS, KERNELS, COSTS = (f"tests/cuda/test_{name}.py" for name in ("lint", "products", "kernels", "costs"))
FIRST_FIT, WAITS = (f"tests/cuda/test_{name}.py" for name in ("first_fit", "waits"))
ARRAYS = tuple(f"tests/cuda/test_arrays{name}.py" for name in ("", "_and_streams", "_refused"))
UPLOADS, WAYS, LIBRARIES = (f"tests/cuda/test_{n}.py" for n in ("uploads", "measured_ways", "libraries_that_fail"))
COMPILE = "tests/cuda/test_compile.py"
LATE = "tests/cuda/test_late_work.py"
CAPTURES = "tests/cuda/test_double_captures.py"
IN_GRAPHS = "tests/cuda/test_captured_products.py"
MEASURED = "tests/cuda/test_chosen_as_measured.py"
KEPT = "tests/cuda/test_kept_graphs.py"
BRANCHES = "tests/cuda/test_branches.py"
MEMORY, OWNS = "tests/cuda/test_memory_on_device.py", "tests/cuda/test_captured_owns.py"
RANKS = tuple(
    f"tests/cuda/test_{name}.py"
    for name in ("nccl_captured", "nccl_captured_faults", "nccl", "nccl_faults", "double_nccl")
)
READY = "tests/cuda/test_ready_predictions.py"
SHARED = "tests/test_composition.py"
FITS = tuple(f"tests/test_{name}.py" for name in ("model", "model_refusals", "training", "predictor"))

# path from the repository's root: the tests that look at that file, those that fail first in front
TESTS = {
    "kernels/cuda/gather.cu": (LINT, OPERATIONS[0], KERNELS, STEP, SHARED, COSTS, BRANCHES),
    "kernels/cuda/layers.cu": (LINT, KERNELS, *OPERATIONS, STEP, SHARED, COSTS, BRANCHES),
    "kernels/cuda/losses.cu": (LINT, OPERATIONS[1], KERNELS, STEP, SHARED, COSTS, BRANCHES, RANKS[0]),
    "kernels/cuda/optimizers.cu": (LINT, KERNELS, OPERATIONS[1], STEP, SHARED, COSTS, BRANCHES, RANKS[0]),
    "kernels/cuda/flat.cu": (LINT, OPERATIONS[1], KERNELS, SHARED),
    "kernels/cuda/products.cu": (LINT, PRODUCTS, STEP, COSTS, BRANCHES),
    "kernels/cuda/philox.cuh": (LINT, OPERATIONS[0], PRODUCTS, STEP),
    "kernels/cuda/activations.cuh": (LINT, OPERATIONS[0], PRODUCTS, STEP),
    "kernels/cuda/step.cuh": (LINT, STEP, SHARED),
    "kernels/cuda/common.cuh": (LINT, COMPILE, KERNELS, *OPERATIONS, PRODUCTS, STEP, SHARED),
    "fastmlp/backends/cuda/choice.py": (FIRST_FIT, WAYS, LIBRARIES, OWNS, MEMORY, WAITS, BRANCHES),
    "fastmlp/backends/cuda/capture.py": (UPLOADS, CAPTURES, STEP, LATE),
    "fastmlp/backends/cuda/uploads.py": (UPLOADS, READY, LATE, MEMORY),
    "fastmlp/backends/cuda/memory.py": (MEMORY, KEPT, STEP, FIRST_FIT, *ARRAYS, COSTS, SHARED, BRANCHES),
    "fastmlp/backends/cuda/launches.py": (STEP, OWNS, LATE, FIRST_FIT, IN_GRAPHS, KERNELS, COSTS, SHARED, BRANCHES),
    "fastmlp/backends/cuda/step.py": (
        STEP,
        KEPT,
        OWNS,
        LATE,
        WAITS,
        FIRST_FIT,
        WAYS,
        UPLOADS,
        KERNELS,
        COSTS,
        RANKS[1],
        SHARED,
        BRANCHES,
    ),
    "fastmlp/streams.py": (UPLOADS, RANKS[2]),
    "fastmlp/floating.py": (FIRST_FIT, "tests/test_shared_parts.py", "tests/test_seterr.py", "tests/test_parity.py"),
    "fastmlp/backends/foreign.py": (*ARRAYS, "tests/test_shared_parts.py"),
    "fastmlp/backends/cuda/products.py": (
        MEASURED,
        IN_GRAPHS,
        STEP,
        KERNELS,
        PRODUCTS,
        FIRST_FIT,
        COSTS,
        SHARED,
        BRANCHES,
    ),
    "fastmlp/backends/cuda/blas.py": (READY, IN_GRAPHS, OPERATIONS[0], MEMORY, LIBRARIES, STEP, SHARED),
    "fastmlp/backends/cuda/kernels.py": (
        READY,
        PRODUCTS,
        KERNELS,
        LIBRARIES,
        ARRAYS[1],
        *OPERATIONS,
        STEP,
        SHARED,
        BRANCHES,
    ),
    "fastmlp/backends/cuda/sources.py": (COMPILE, STEP, OPERATIONS[0], SHARED, BRANCHES),
    "fastmlp/backends/cuda/nccl.py": RANKS,
    "fastmlp/backends/cuda/shards.py": RANKS,
    "fastmlp/backends/cuda/update.py": (*RANKS, SHARED),
    "fastmlp/backends/cuda/probe.py": ("tests/cuda/test_probe.py",),
    "fastmlp/backends/cuda/tested.py": ("tests/test_selftest.py",),
    "fastmlp/backends/cuda/backend.py": (
        READY,
        *ARRAYS,
        *RANKS,
        FIRST_FIT,
        WAYS,
        WAITS,
        MEMORY,
        OWNS,
        STEP,
        SHARED,
        *FITS,
        BRANCHES,
    ),
    "fastmlp/backends/cuda/predictions.py": (READY, ARRAYS[0], ARRAYS[1], SHARED),
    "fastmlp/backends/cuda/forward.py": (READY, ARRAYS[0], COSTS, SHARED),
    "fastmlp/backends/cuda/kept.py": (WAYS, "tests/test_selftest.py"),
    "fastmlp/backends/cuda/trial.py": (WAYS,),
    "fastmlp/backends/cuda/operations.py": (
        *OPERATIONS,
        STEP,
        UPLOADS,
        CAPTURES,
        *ARRAYS,
        FIRST_FIT,
        MEMORY,
        SHARED,
        *FITS,
        BRANCHES,
    ),
}
