"""What compiled kernels are made of: their assembly, read line by line.

A loop is what lies between a label and a jump back to it; one that no other loop lies in is an inner one.  A product's
inner loop is one that does nothing with vectors but to load and to multiply and add: `tiles` writes such loops, and
nothing else does.  Only x86-64 (AT&T's syntax) and aarch64 are known.

Run as a program it compiles entries for the processor that Numba is told (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES), keeps
them in Numba's cache, and ends with an error where the lint finds a fault.  Nothing that is compiled is run, so that
processor may be any, and with --aarch64 one of another kind.
"""

from __future__ import annotations

import argparse
import functools
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple


class Told(NamedTuple):
    """What the compiler was told, and what the lint holds it to."""

    arm: bool
    vector_bytes: int
    fma: bool
    sums: int
    """In a whole tile."""


class Loop(NamedTuple):
    first: int
    last: int
    lines: list[str]


LABEL = re.compile(r"^([.\w$]+):")
JUMP = re.compile(r"^(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+(\.L\w+)$")
CALL = re.compile(r"^(?:call\w*|blr?)\s")
ON_THE_STACK = re.compile(r"%[xyz]mm.*\(%rsp\)|\(%rsp\).*%[xyz]mm|\b[qdsv]\d+\b.*\[sp\b")
PACKED = re.compile(r"^vfn?m(?:add|sub)\d+p[sd]\s|^fml[as]\s+v\d+\.(?:4s|2d)")
X86_ARITHMETIC = re.compile(r"^v?(?:add|sub|mul|div|sqrt|min|max|and|andn|or|xor|cmp\w*|blend\w*|round)[ps][sd]\s")
ARM_ARITHMETIC = re.compile(r"^f(?!ml[as]\s+v|mov)\w+\s|^(?:and|orr|eor|bic|bsl|bif|bit)\s+v")


def functions(assembly: str) -> list[list[str]]:
    """Return the instructions and labels of each function, without directives and comments."""
    found: list[list[str]] = []
    for text in assembly.splitlines():
        line = re.sub(r"\s*(?:#(?!\d|-|:)|//).*", "", text).strip().replace("\t", " ")
        label = LABEL.match(line)
        if label and not label[1].startswith(".L"):
            found.append([])
        elif found and line and (label or not line.startswith(".")):
            found[-1].append(line)
    return found


def inner_loops(lines: list[str]) -> list[Loop]:
    """Return the loops of a function that no other loop lies in."""
    places = {match[1]: n for n, line in enumerate(lines) if (match := LABEL.match(line))}
    loops = []
    for n, line in enumerate(lines):
        jump = JUMP.match(line)
        if jump and places.get(jump[1], n) < n:
            loops.append((places[jump[1]], n))
    inner = [(a, b) for a, b in loops if not any((a, b) != (c, d) and a <= c and d <= b for c, d in loops)]
    return [Loop(a, b, [line for line in lines[a : b + 1] if not LABEL.match(line)]) for a, b in inner]


def is_product(loop: Loop) -> bool:
    """Tell whether a loop multiplies and adds vectors, and does nothing else with them."""
    other = [n for n in loop.lines if (X86_ARITHMETIC.match(n) or ARM_ARITHMETIC.match(n)) and not PACKED.match(n)]
    return not other and any(map(PACKED.match, loop.lines))


def too_wide(line: str, told: Told) -> bool:
    """Tell whether an instruction is none that was told of."""
    if told.arm:
        return bool(re.search(r"\bz\d+\.[bhsd]\b", line))  # of SVE
    if told.vector_bytes == 64:
        return False
    if told.vector_bytes == 32:
        return bool(re.search(r"%zmm|%k[0-7]|%[xyz]mm(?:1[6-9]|2\d|3[01])", line))
    return bool(re.search(r"%[yz]mm|^v\w+ .*%xmm", line))


def faults(assembly: str, told: Told, has_products: bool = True) -> list[str]:
    """Return what is wrong with the code of an entry, which may have products; nothing where all is well."""
    found, whole, products = [], 0, 0
    full = "ymm" if told.vector_bytes == 32 else "zmm"
    for lines in functions(assembly):
        found += [f"not told of: {line}" for line in lines if too_wide(line, told)]
        for loop in inner_loops(lines):
            multiplied = sum(1 for line in loop.lines if PACKED.match(line))
            if multiplied and any(map(CALL.match, loop.lines)):
                found.append("a call in a loop of multiply-adds: " + "; ".join(filter(CALL.match, loop.lines)))
            if not is_product(loop):
                continue
            products += 1
            spilled = list(filter(ON_THE_STACK.search, loop.lines))
            if spilled:
                found.append(f"a vector on the stack in a product of {multiplied}: " + "; ".join(spilled))
            widest = told.arm or all(full in line for line in filter(PACKED.match, loop.lines))
            whole += multiplied == told.sums and widest
    if told.fma and has_products and not whole:
        found.append(f"no loop of {told.sums} packed multiply-adds, of {products} products")
    if not told.fma and products:
        found.append(f"{products} loops of multiply-adds, which there are not")
    return found


def compile_for_aarch64() -> None:
    """Let this process compile for aarch64, whatever it runs on; before Numba is imported."""
    import llvmlite.binding

    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    platform.machine = lambda: "aarch64"
    llvmlite.binding.get_process_triple = lambda: triple
    llvmlite.binding.get_default_triple = lambda: triple


def told() -> Told:
    """Return what the kernels of this process are compiled for."""
    from fastmlp.kernels.cpu import tiles, vectors

    arm = platform.machine() in ("aarch64", "arm64")
    return Told(arm, vectors.VECTOR_BYTES, vectors.HAS_FMA, tiles.ROWS * tiles.VECTORS)


def products(dtype: str) -> list[functools.partial[Any]]:
    """Return calls that are products and little else: one with a transpose, whose tiles are others, and one without."""
    import numpy as np
    from fastmlp.kernels.cpu import operations

    one = np.zeros((1, 1), dtype)  # forward is the same as the gradient of the inputs, with more around it
    return [functools.partial(f, 0, 0, one, one, one) for f in (operations.weight_gradient, operations.input_gradient)]


def whole_runs(dtype: str) -> list[functools.partial[Any]]:
    """Return the calls that train and that predict in a type, for no rows."""
    import numpy as np

    from fastmlp import MLP, SGD, get_backend
    from fastmlp.backends.cpu import backend
    from fastmlp.network.plan import Plan, Precision

    spec, precision = MLP((2, 2, 2), backend="numpy").spec, Precision.of(np.dtype(dtype))
    numba = get_backend("numba")
    return [
        backend._call_without_steps(numba.open(Plan(spec, 1, precision, True, SGD(0.1).without_schedule()))),
        backend._call_without_rows(numba.open(Plan(spec, 1, precision))),
    ]


def kept() -> list[tuple[Any, Any]]:
    """Return each entry in Numba's cache with the types it was compiled for, whatever the processor."""
    from fastmlp.kernels.cpu import forward, layers, operations, predict, products, random, train

    modules = operations, predict, train, products, forward, layers, random  # the last four have shared functions
    entries = [f for module in modules for f in vars(module).values() if hasattr(f, "inspect_asm")]
    entries = list(dict.fromkeys(entries))  # one module has those of another, too
    entries = [f for f in entries if f.py_func.__module__.startswith("fastmlp.") and hasattr(f._cache, "_cache_file")]
    signatures = [(f, sorted(_types_kept(f._cache._cache_file), key=str)) for f in entries]
    return [(entry, signature) for entry, found in signatures for signature in found]


def _types_kept(files: Any) -> set[Any]:
    """Return the types that an entry's code is kept for: each file begins with its key, and that with them."""
    name = Path(files._path_of("")).name.split(".")[:-2]
    found = map(files._read, map(str, Path(files._cache_path).glob(".".join([*name, "*", "nbc"]))))
    return {key[0] for key, _ in filter(None, found)}


def assembly_of(entry: Any, signature: Any) -> str:
    """Return the machine code of an entry, compiled for these types, and not run, and that of what it calls."""
    entry.compile(signature)
    found, waiting = {}, [(entry, entry.signatures[-1])]
    while waiting:
        function, types = waiting.pop()
        found[function] = function.inspect_asm(types)
        needs = function.overloads[types].library.needs
        called = [(getattr(sys.modules[needed.module], needed.name), needed.arguments) for needed in needs]
        waiting += [(other, types) for other, types in called if other not in found]
    return "\n".join(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = {"products": "a layer's products", "runs": "what trains and predicts", "kept": "what is kept for others"}
    parser.add_argument("what", choices=ways, help=", ".join(f"{way}: {what}" for way, what in ways.items()))
    parser.add_argument("--aarch64", action="store_true", help="compile for aarch64")
    parser.add_argument("--types", nargs="+", default=["float32", "float64"], help="of products and runs")
    options = parser.parse_args()
    if options.aarch64:
        compile_for_aarch64()
    import numba

    from fastmlp import get_backend

    get_backend("numba")  # its BLAS is linked to
    if options.what == "kept":
        chosen = kept()
    else:
        calls = [c for t in options.types for c in (products if options.what == "products" else whole_runs)(t)]
        chosen = [(call.func, tuple(map(numba.typeof, call.args))) for call in calls]
    wrong, began = not chosen, time.perf_counter()
    for entry, signature in chosen:
        found = faults(assembly_of(entry, signature), told(), options.what != "kept")
        if found:
            print(f"{entry.__name__}{signature}:", *found[:20], sep="\n  ")
            wrong = True
    print(f"{len(chosen)} entries in {time.perf_counter() - began:.0f} s, {told()}: {'wrong' if wrong else 'right'}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
