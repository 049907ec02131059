"""What reads like a mistake in a CUDA kernel.

Two more rules are the emulator's: a product of two 32-bit numbers one of which is an index of a thread or a block does
not compile, nor does a number that loses bits in silence.
"""

import re
from importlib import resources

import pytest
from emulator import EmulatorError, Module, needs_emulator

from fastmlp.backends.cuda import sources

FORBIDDEN = {
    r"\bvolatile\b|__threadfence|cooperative_groups|\batomic\w*\(": "blocks and warps do not talk to each other",
    r"mma\.h|\bwmma\b|cp\.async|__pipeline": "no header or instruction that a user's CuPy may not have",
    r"\b__(?:expf|logf|sinf|cosf|powf|fdividef)\(": "no approximate functions",
    r"\bint (?:n|i|o|k|c|rows|columns|stride|ld\w*|row|column|at)\b(?=[,)])": "sizes are long long",
    r"\bint \w+ = [^;]*;[^;]*< (?:m|n|i|o|k|c|count|last|chunk\[STOP\]);": "what counts up to a size is a long long",
}


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=list(FORBIDDEN.values()))
@pytest.mark.parametrize(
    "file", sorted(p.name for p in resources.files("fastmlp.kernels.cuda").iterdir() if ".cu" in p.name)
)
def test_sources_hold_nothing_that_is_forbidden(file, pattern):
    for number, line in enumerate(sources.read(file).splitlines(), start=1):
        assert not re.search(pattern, line.split("//")[0]), f"{file}:{number}: {line.strip()}; {FORBIDDEN[pattern]}"


def test_kernels_say_how_many_threads_they_are_launched_with():
    for file in sources.KERNELS:
        for bounds, name in re.findall(
            r"__global__\s+void\s+(__launch_bounds__\([^)]*\))?\s*(\w+)\(", sources.read(file)
        ):
            assert bounds or name == "advance_cursor", f"{file}: {name}"


NARROW = """
__global__ void __launch_bounds__(64) add_one(float* a_no, long long n, long long o) {
  long long row = (long long)blockIdx.x * 8 + threadIdx.y;
  if (row < n) a_no[row * o + threadIdx.x] += 1.0f;
}
"""


@needs_emulator
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(long long)blockIdx.x * 8", "blockIdx.x * 8", "a 32-bit product of an index"),
        ("(long long)blockIdx.x * 8", "8 * blockIdx.x", "a 32-bit product of an index"),
        ("(long long)blockIdx.x * 8", "blockIdx.x * blockDim.y", "deleted"),
        ("long long row", "int row", "may change value"),
    ],
)
def test_what_may_overflow_or_lose_bits_does_not_compile(old, new, message):
    Module(NARROW, ["add_one"])
    assert old in NARROW
    with pytest.raises(EmulatorError, match=message):
        Module(NARROW.replace(old, new), ["add_one"])
