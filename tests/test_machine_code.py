"""The machine code of products, for each kind of processor, whatever this one is: compiled, read and not run.

`.ci/instruction_sets` reads that of whole training steps too, and runs it.
"""

import os
import platform
import subprocess
import sys

import machine_code
import pytest

numba = pytest.importorskip("numba")
if numba.config.DISABLE_JIT:
    pytest.skip("the JIT is off, and nothing is compiled", allow_module_level=True)
if platform.machine().lower() not in ("x86_64", "amd64"):
    pytest.skip(
        "it takes a compiler for x86-64, and one for aarch64, which is in that for x86-64", allow_module_level=True
    )

AVX2 = "+sse4.2,+avx,+avx2,+fma"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
PROCESSORS = {
    "AVX-512": ["skylake-avx512", AVX512],
    "AVX-512, AMD": ["znver4", AVX512],
    "AVX2": ["haswell", AVX2],
    "AVX2, AMD": ["znver3", AVX2],
    "no AVX": ["nehalem", ""],
    "aarch64": ["cortex-a72", "+neon,+fp-armv8", "--aarch64"],
}


def lint(tmp_path, processor, *program):
    name, features, *options = PROCESSORS[processor]
    told = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-P", *program, "products", "--types", "float32", *options]
    return subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)


@pytest.mark.other_processors
@pytest.mark.parametrize("processor", PROCESSORS)
def test_products_are_packed_multiply_adds_in_registers(processor, tmp_path):
    done = lint(tmp_path, processor, machine_code.__file__)
    assert done.returncode == 0, done.stdout + done.stderr


LOOP = """
fastmlp_product:
        .cfi_startproc
.LBB0_1:                                # a loop around it
        movq    %rax, %rbx
        .p2align 4
.LBB0_2:
        vmovups (%rdx), %ymm13
        vbroadcastss    (%rcx,%r8,4), %ymm14
        vfmadd231ps     %ymm13, %ymm14, %ymm11
        vfmadd231ps     %ymm14, %ymm12, %ymm10
        incq    %rsi
        jne     .LBB0_2
        callq   *%rax
        jmp     .LBB0_1
"""
HASWELL, NEHALEM = machine_code.Told(False, 32, True, 2), machine_code.Told(False, 16, False, 2)


def with_line(line, after="vmovups (%rdx), %ymm13"):
    return LOOP.replace(after, f"{after}\n        {line}")


def test_a_loop_without_faults_has_none():
    assert machine_code.faults(LOOP, HASWELL) == []
    assert machine_code.faults(LOOP.replace("231ps", "231pd"), HASWELL) == []


@pytest.mark.parametrize(
    ("assembly", "told", "fault"),
    [
        (with_line("callq *%rbx"), HASWELL, "a call in a loop of multiply-adds: callq"),
        (with_line("callq sinf@PLT"), HASWELL, "a call in a loop of multiply-adds: callq"),
        (with_line("vmovups 64(%rsp), %ymm1"), HASWELL, "a vector on the stack in a product of 2: vmovups"),
        (with_line("vmovaps %ymm1, -32(%rsp)"), HASWELL, "a vector on the stack in a product of 2: vmovaps"),
        (LOOP.replace("231ps", "231ss"), HASWELL, "no loop of 2 packed multiply-adds"),
        (LOOP.replace("ymm", "xmm"), HASWELL, "no loop of 2 packed multiply-adds"),
        (LOOP.replace("vfmadd231ps", "vmulps"), HASWELL, "no loop of 2 packed multiply-adds"),
        (with_line("vaddps %zmm1, %zmm2, %zmm3"), HASWELL, "not told of: vaddps"),
        (with_line("vaddps %xmm1, %xmm2, %xmm17"), HASWELL, "not told of: vaddps"),
        (LOOP.replace("ymm", "xmm"), NEHALEM, "not told of: vbroadcastss"),
    ],
)
def test_each_fault_is_found(assembly, told, fault):
    assert any(found.startswith(fault) for found in machine_code.faults(assembly, told))


ARM = """
fastmlp_product:
.LBB0_2:
        ldp     q8, q9, [x1]
        fmla    v31.4s, v10.4s, v11.s[0]
        fmla    v30.4s, v9.4s, v11.4s
        b.ne    .LBB0_2
        ret
"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[x1]", "[x1]", None),
        ("[x1]", "[sp, #32]", "a vector on the stack"),
        ("[x1]", "[x1]\n        bl expf", "a call"),
        ("fmla    v30.4s, v9.4s, v11.4s", "fmadd s1, s2, s3, s4", "no loop of 2 packed multiply-adds"),
        ("[x1]", "[x1]\n        fmla z0.s, p0/m, z1.s, z2.s", "not told of"),
    ],
)
def test_each_fault_is_found_on_aarch64(old, new, fault):
    found = machine_code.faults(ARM.replace(old, new), machine_code.Told(True, 16, True, 2))
    assert [f for f in found if f.startswith(fault)] if fault else found == []


def test_what_is_kept_is_found_with_its_types(kernels_in_the_cache):
    found = {entry.__name__ for entry, types in machine_code.kept() if "float32" in str(types)}
    assert {"train_thread", "predict_thread"} <= found


def test_that_nothing_is_kept_is_told(tmp_path):
    told = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-P", machine_code.__file__, "kept"]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout.startswith("0 entries"), done.stdout + done.stderr


@pytest.mark.other_processors
def test_a_spill_planted_in_the_tiles_is_found(tmp_path):
    """With more sums than there are registers, the compiler keeps some on the stack."""
    code = f"""
from fastmlp.kernels.cpu import vectors
vectors.REGISTERS = 32
import runpy
runpy.run_path({machine_code.__file__!r}, run_name="__main__")
"""
    done = lint(tmp_path, "AVX2", "-c", code)
    assert done.returncode == 1 and "a vector on the stack in a product of 24" in done.stdout, done.stdout + done.stderr
