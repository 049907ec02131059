"""The CUDA source as CuPy is given it: includes expanded, kernels listed by file, codes read from the enums."""

from __future__ import annotations

import functools
import itertools
import re
from importlib import resources
from string import Formatter

import numpy as np

OPTIONS = ("-std=c++17",)
"""What is added to CuPy's own compiler options."""

REALS = {"float32": "float", "float64": "double"}
INTEGERS = {
    "bool": "bool",
    "uint8": "unsigned char",
    "int8": "signed char",
    "uint16": "unsigned short",
    "int16": "short",
    "uint32": "unsigned int",
    "int32": "int",
    "uint64": "unsigned long long",
    "int64": "long long",
}
CTYPES = {**INTEGERS, **REALS}
"""The C++ name of each NumPy type that data may have."""

KERNELS: dict[str, tuple[str, ...]] = {
    "gather.cu": (
        "gather_rows<{any}, {real}>",
        "gather_rows<long long, long long>",
        "gather_batch<{held}, {targets}, {real}>",
    ),
    "layers.cu": (
        "bias_activation<{real}>",
        "bias_activation_dropout<{real}>",
        "dropout<{real}>",
        "activation_gradient<{real}>",
        "column_sums<{real}>",
    ),
    "losses.cu": ("loss_rows<{real}, {targets}, {warps}>", "totals<{real}>", "finish_batch<{real}>", "finish_shards"),
    "products.cu": (
        "product_forward<{real}, {tile}>",
        "product_input_gradient<{real}, {tile}>",
        "product_weight_gradient<{real}, {tile}>",
    ),
    "optimizers.cu": (
        "collect_gradients<{real}>",
        "gradient_norm<{real}>",
        "update_parameters<{real}>",
        "update<{real}>",
        "max_norm<{real}>",
        "average_parameters<{real}>",
        "advance_cursor",
    ),
    "flat.cu": ("add_scaled<{real}>", "scale<{real}>", "average<{real}>", "squared_norm<{real}>"),
}
"""The kernels of each file; `instantiations` fills in what stands in braces."""

_INCLUDE = re.compile(r'^\s*#include\s+"([\w.]+)"')


def read(name: str) -> str:
    """Return a file of `fastmlp.kernels.cuda` as it is."""
    return resources.files("fastmlp.kernels.cuda").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def expanded(name: str) -> str:
    """Return a file with its own includes written in, each once, and ``#line`` so that errors name the real place.

    CuPy keeps compiled code under a key that sees the source but not what it includes; so there is nothing to include.
    """
    seen: set[str] = set()

    def lines_of(file: str) -> list[str]:
        lines = [f'#line 1 "{file}"']
        for number, line in enumerate(read(file).splitlines(), start=1):
            found = _INCLUDE.match(line)
            if line.strip() == "#pragma once":
                lines.append("")
            elif found is None:
                lines.append(line)
            else:
                if found[1] not in seen:
                    seen.add(found[1])
                    lines += lines_of(found[1])
                lines.append(f'#line {number + 1} "{file}"')
        return lines

    return "\n".join(lines_of(name)) + "\n"


@functools.cache
def codes(file: str, enum: str) -> dict[str, int]:
    """Return the names of an enum of the source, in lower case, with their numbers.

    The source is the one place where they are written: a kernel's switch and the host cannot disagree.
    """
    found = re.search(rf"enum {enum} : int \{{([^}}]*)\}}", read(file))
    if found is None:
        raise LookupError(f"{file} has no enum {enum}")
    names = [n.strip().lower() for n in found[1].split(",") if n.strip()]
    return {name: number for number, name in enumerate(names)}


_ENUMS = {
    "activation": ("activations.cuh", "Activation"),
    "loss": ("losses.cu", "Loss"),
    "optimizer": ("optimizers.cu", "Optimizer"),
}


def code_of(kind: str, name: str) -> np.int32:
    """Return the number that an activation, a loss or an optimizer has in the kernels."""
    return np.int32(codes(*_ENUMS[kind])[name])


def instantiations(file: str, real: str) -> tuple[str, ...]:
    """Return every kernel of a file for one type computed in, ``"float"`` or ``"double"``."""
    choices = {
        "real": (real,),
        "any": tuple(CTYPES.values()),
        "held": ("unsigned char", *REALS.values()),
        "targets": ("long long", real),
        "warps": ("1", "8"),
        "tile": ("16", "32", "64"),
    }
    names: list[str] = []
    for template in KERNELS[file]:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field]
        for values in itertools.product(*(choices[field] for field in fields)):
            names.append(template.format(**dict(zip(fields, values, strict=True))))
    return tuple(names)
