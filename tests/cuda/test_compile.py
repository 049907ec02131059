"""Every CUDA kernel compiles for every GPU, as a user's CuPy compiles it, within its budget of registers and memory."""

import re
from importlib import resources

import pytest
from nvrtc import ARCHITECTURES, SHARED_MEMORY, compile_for, cupy_options, instructions_of, needs_nvrtc

from fastmlp.backends.cuda import sources
from fastmlp.formulas.activations import activation_names, get_activation
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS

REGISTERS = {"float": 80, "double": 128}
"""A thread, at most.  Blocks have 256 threads and a multiprocessor 65,536 registers: three and two blocks fit."""
PRODUCT_REGISTERS = {"float": 128, "double": 184}
"""Of products, which hold what they multiply in registers: two blocks fit, and one."""

# the oldest, which has the fewest instructions, in every run; all of them with --whole-ladder
architectures = [
    pytest.param(a, marks=[] if a == 75 else pytest.mark.whole_ladder, id=f"sm_{a}") for a in ARCHITECTURES
]


def files():
    return sorted(p.name for p in resources.files("fastmlp.kernels.cuda").iterdir() if p.name.endswith(".cu"))


def test_every_file_and_every_kernel_of_it_is_listed():
    assert sorted(sources.KERNELS) == files()
    for file, templates in sources.KERNELS.items():
        found = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", sources.read(file))
        assert list(dict.fromkeys(t.split("<")[0] for t in templates)) == found


@needs_nvrtc
@pytest.mark.parametrize("architecture", architectures)
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("file", files())
def test_kernels_compile_without_spilling(architecture, real, file):
    names = sources.instantiations(file, real)
    found = compile_for(architecture, sources.expanded(file), names, file)
    assert set(found) == set(names)
    for name, usage in found.items():
        assert usage.spilled == 0, f"{name} on sm_{architecture}: {usage}"
        assert usage.shared <= SHARED_MEMORY, f"{name} on sm_{architecture}: {usage}"
        budget = REGISTERS
        if file == "products.cu":  # two blocks of a configuration fit into the 64 KiB that the smallest device has
            budget = PRODUCT_REGISTERS
            assert usage.shared <= 32 * 1024, f"{name} on sm_{architecture}: {usage}"
        assert usage.registers <= budget[real], f"{name} on sm_{architecture}: {usage}"


@needs_nvrtc
@pytest.mark.parametrize(("real", "loads"), [("float", 1), ("double", 2)])
def test_four_numbers_side_by_side_are_moved_at_once_where_they_are_aligned(real, loads):
    probe = """
    extern "C" __global__ void probe(const REAL* from, REAL* to, bool wide, int count) {
      store_four(to, load_four(from, wide, count), wide, count);
    }
    """
    source = sources.expanded("layers.cu") + probe.replace("REAL", real)
    own = instructions_of(75, source, ["probe"]).split(".entry probe")[1]
    assert re.findall(r"(ld|st)\.global(?:\.nc)?\.v4\.\w32", own) == ["ld"] * loads + ["st"] * loads


@needs_nvrtc
def test_the_options_are_those_of_cupy_and_ours():
    options = {option for option in cupy_options() if not option.startswith("-I")}
    # CuPy's: subnormal floats are zero on a GPU, whatever we ask for
    assert options == {"-std=c++17", "-ftz=true", "--device-as-default-execution-space"}


@needs_nvrtc
def test_errors_name_file_and_line_of_the_source():
    from cupy.cuda.compiler import CompileException

    source = sources.expanded("flat.cu").replace("target[i] += factor", "target[i] += faktor")
    line = (
        sources.read("flat.cu")
        .splitlines()
        .index("  for (long long i = first_element(); i < n; i += grid_stride()) target[i] += factor * source[i];")
    )
    with pytest.raises(CompileException, match=rf'flat\.cu\({line + 1}\): error: identifier "faktor" is undefined'):
        compile_for(75, source, ["add_scaled<float>"])


@pytest.mark.parametrize("file", files())
def test_expanded_sources_include_nothing(file):
    source = sources.expanded(file)
    assert "#include" not in source
    assert source.count('#line 1 "common.cuh"') == 1
    assert sources.expanded(file) is source


@pytest.mark.parametrize("file", files())
def test_every_line_of_an_expanded_source_has_the_number_that_it_has_in_its_file(file):
    where, number = "", 0
    for line in sources.expanded(file).splitlines():
        if place := re.fullmatch(r'#line (\d+) "(.*)"', line):
            number, where = int(place[1]), place[2]
        else:
            written = sources.read(where).splitlines()[number - 1]
            assert line == ("" if written == "#pragma once" else written), f"{where}:{number}"
            number += 1
    assert (where, number) == (file, len(sources.read(file).splitlines()) + 1)


def test_codes_in_the_source_are_those_of_fastmlp():
    assert set(sources.codes("activations.cuh", "Activation")) == {
        name for name in activation_names() if get_activation(name).compiled
    }
    assert set(sources.codes("losses.cu", "Loss")) == set(LOSSES.names())
    assert set(sources.codes("optimizers.cu", "Optimizer")) == set(OPTIMIZERS.names())
    with pytest.raises(LookupError, match=r"losses\.cu has no enum Nothing"):
        sources.codes("losses.cu", "Nothing")
