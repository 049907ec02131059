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
    r"\bint\((?:[^()]|\([^()]*\))*(?<!sizeof\(T\)) \* ": "a product is not made narrow",
    r"\bint\((?:n|i|o|k|c|rows|columns|batch|stride|ld\w*|at|count|size)\)": "a size is not made narrow",
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


# --- beyond 2^31 ------------------------------------------------------------------------------------------------------

CAST = r"\((?:unsigned )?long long\)"
FACTOR = rf"(?:{CAST})?(?:[A-Za-z_][\w.]*|0x[\dA-F]+u?|\d+(?:ll)?)\b(?!\()"
DECLARED = r"\b((?:unsigned )?long long|unsigned int|int|T|S|Y|float|double)\b[ *&]*(?:__restrict__ )?"
DECLARED += r"(\w+(?:, (?!(?:const|unsigned|long|int|bool|T|S|Y|float|double)\b)\w+)*)"
LARGE = 2**31 + 11
"""What every size, and all that counts up to one, is taken for."""


def value(factor, types):
    """Return how many bits a factor has and what it may be at most: a constant, the number of a thread, or a size."""
    name = re.sub(CAST, "", factor).split(".")[0]
    if factor.endswith("ll") or factor.startswith("(") or types.get(name, "int").endswith(("long long", "float")):
        return 64, LARGE
    is_small = name in ("threadIdx", "j", "k", "slice") or re.fullmatch(r"[A-Z][A-Z_\d]*|\d+", name)
    return 32, 1024 if is_small else LARGE


def overflowing(text):
    """Return the products of a source that leave 32 bits before they are part of an address, function by function."""
    found = []
    for function in re.sub(r"//.*", "", text).split("\n}\n"):
        types = {}
        for kind, names in re.findall(DECLARED, function):
            for name in names.split(", "):
                types.setdefault(name, "float" if kind in ("T", "S", "Y", "double") else kind)
        for left, right in re.findall(rf"(?<![\w.)*])({FACTOR}) \* ({FACTOR})", function):
            (bits, a), (more, b) = value(left, types), value(right, types)
            if max(bits, more) == 32 and a * b >= 2**31:
                found.append(f"{left} * {right}")
    return found


KERNEL_FILES = sorted(p.name for p in resources.files("fastmlp.kernels.cuda").iterdir() if ".cu" in p.name)


@pytest.mark.parametrize("file", KERNEL_FILES)
def test_no_product_of_an_address_leaves_its_bits_at_sizes_beyond_32(file):
    text = sources.read(file)
    assert overflowing(text) == []
    narrowed = text.replace("(long long)", "").replace("256ll", "256").replace("long long", "int")
    expected = file in ("gather.cu", "layers.cu", "losses.cu", "products.cu", "optimizers.cu", "flat.cu")
    assert bool(overflowing(narrowed)) == expected  # it would be seen


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("int at = int(row * o + column);", "a product is not made narrow"),
        ("T* p = z + int((row0 + 1) * stride);", "a product is not made narrow"),
        ("f(int(n));", "a size is not made narrow"),
    ],
)
def test_what_is_made_narrow_by_name_is_found(line, rule):
    assert [why for pattern, why in FORBIDDEN.items() if re.search(pattern, line)] == [rule]


NARROW = """
__global__ void __launch_bounds__(64) add_one(float* a_no, long long n, long long o) {
  long long row = (long long)blockIdx.x * 8 + threadIdx.y;
  if (row < n) a_no[row * o + threadIdx.x] += 1.0f;
}
"""


@needs_emulator
@pytest.mark.cuda_host
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
