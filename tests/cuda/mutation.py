"""Small changes that a programmer makes by mistake, applied at every place of the CUDA code where they fit.

Kernels are changed by patterns, host code by its syntax tree.  A change is a span of a file and what stands there
instead; `mutants.py` runs the tests on each.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutated import TESTS

ROOT = Path(__file__).parent.parent.parent

# kind: (pattern, replacement), within a line
KERNELS = {
    "a barrier dropped": (r"__syncthreads\(\);", ";"),
    "a bound one too large": (r"(?<=[\w)]) < (?=\w)(?!\w+ \?)", " <= "),  # min(a, b) is the same either way
    "a comparison the other way": (r" > (?=\w)", " < "),
    "at least becomes more than": (r" >= ", " > "),
    "a sum started anew": (r" \+= ", " = "),
    "minus becomes plus": (r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    "plus becomes minus": (r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    "times becomes plus": (r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    "strides swapped": (r"(?<=row \* )o\b", "n"),
    "wide whatever the rows": (r"\bwide, count\)", "true, count)"),
    "and becomes or": (r" && ", " || "),
    "zero becomes one": (r"T\(0\)", "T(1)"),
    "thread axes swapped": (r"threadIdx\.x\b", "threadIdx.y"),
    "a way out dropped": (r"if \([^;{}]*\) return;", ";"),
    "a way on dropped": (r"if \([^;{}]*\) continue;", ";"),
    "block axes swapped": (r"blockIdx\.x\b", "blockIdx.y"),
    "a 32-bit product": (r"\(long long\)(?=blockIdx|gridDim|THREADS|CHUNK_NUMBERS)", ""),
    "a 32-bit index": (r"\blong long (?=(?:row|column|at|i|j|quad|source_row) =)", "int "),
    "a null pointer not looked for": (r"\w+ != nullptr", "true"),
    "a step of another row": (r"\+ index\b", "+ index + 1"),
    "a lane left out of the mask": (r"0xffffffffu", "0x7fffffffu"),
    "a store dropped": (r"^ +[\w.]+\[[^=;]*\] [+*]?= [^;]*;$", ";"),
    "summed in single precision": (r"\bdouble (?=\w+ = 0)", "float "),
    "always one side": (r"(?<=\bif \()[^;{}]*(?=\)(?: \w| \{|$))", "true"),
    "never that side": (r"(?<=\bif \()[^;{}]*(?=\)(?: \w| \{|$))", "false"),
    "a loop that goes round once": (r"(?<=; )(\w+) < (\w+); \1 \+= [^;{}]*(?=\) [\w{]|\)$)", r"\1 < \2; \1 += \2"),
    "a first slab too late": (r"(?<=s = )1(?=; s <)", "2"),
}

FAMILIES = {
    "size": ("always one side", "never that side", "a loop that goes round once", "a first slab too late"),
    "history": ("what is remembered stays as it was", "a part of a key left out"),
    "two at once": ("shared by all that live",),
    "tolerance": ("a thousand times as much",),
    "options": ("an option more", "an option left out"),
}
"""The kinds that a draw by place alone has too few of: branches that a size decides, what ran before, another session
that lives, how far numbers may be off, options.  All others are called mechanical."""
DRAWS = ("all", "mechanical", "named")
"""What a sample is drawn from: every family, or one side of that line alone."""

_SWAPPED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
_SMALLER = {"int64": "int32", "uint64": "uint32", "float64": "float32", "int32": "int16", "uint32": "int32"}


class Mutant(NamedTuple):
    """The kind of change, its file, the line it begins in (from 1), its span in the text, and what replaces it."""

    kind: str
    file: Path
    line: int
    start: int
    stop: int
    text: str

    def applied(self) -> str:
        whole = self.file.read_text()
        return whole[: self.start] + self.text + whole[self.stop :]

    @property
    def path(self) -> str:
        """Where the file stands in the repository."""
        return self.file.relative_to(ROOT).as_posix()

    @property
    def name(self) -> str:
        """Path, kind, and line before and after: stays the same while other lines come and go."""
        return f"{self.path}: {self.change}"

    @property
    def change(self) -> str:
        """Kind, and line before and after."""
        before, after = self.file.read_text(), self.applied()
        begin = before.rfind("\n", 0, self.start) + 1
        ends = before.find("\n", self.stop), after.find("\n", self.start + len(self.text))
        lines = (" ".join(text[begin:end].split()) for text, end in zip((before, after), ends, strict=True))
        return f"{self.kind}: " + "  ->  ".join(lines)


def mutants() -> list[Mutant]:
    """Return all of them, in the order of files and lines."""
    return [m for path in TESTS for m in mutants_of(ROOT / path)]


def mutants_of(file: Path) -> list[Mutant]:
    """Return those of one file, in the order of lines."""
    return list((_of_host if file.suffix == ".py" else _of_kernels)(file))


def family(mutant: Mutant) -> str:
    """Return what a mutant's kind belongs to, and which half of the code it is in."""
    found = next((name for name, kinds in FAMILIES.items() if mutant.kind in kinds), "mechanical")
    return f"{found}, {'host' if mutant.file.suffix == '.py' else 'kernels'}"


def sample(size: int, seed: int, families: str = "all") -> list[Mutant]:
    """Return as many, from each family of either half in turn, drawn by the hash of what they say.

    So an edit elsewhere leaves the draw of all others as it is.  Where a file stands is no part of that: it may move.
    Of which families, one of `DRAWS` says.
    """

    seen: Counter[str] = Counter()

    def drawn(mutant: Mutant) -> str:
        change = mutant.change
        seen[change] += 1
        return hashlib.sha256(f"{seed} {seen[change]} {change}".encode()).hexdigest()

    found: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants(), key=drawn):
        name = family(mutant)
        if families == "all" or (families == "mechanical") == name.startswith("mechanical"):
            found.setdefault(name, []).append(mutant)
    turns = itertools.zip_longest(*(found[name] for name in sorted(found)))
    return [mutant for turn in turns for mutant in turn if mutant is not None][:size]


def _of_kernels(file: Path) -> Iterator[Mutant]:
    at = 0
    for number, line in enumerate(file.read_text().splitlines(keepends=True), start=1):
        code = line.split("  //")[0].rstrip("\n")
        if not re.match(r"\s*(//|#|template|static_assert)", line):
            for kind, (pattern, replacement) in KERNELS.items():
                for place in re.finditer(pattern, code):
                    yield Mutant(kind, file, number, at + place.start(), at + place.end(), place.expand(replacement))
        at += len(line)


def _of_host(file: Path) -> Iterator[Mutant]:
    text = file.read_text()
    begins = [0]
    for line in text.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return begins[node.lineno - 1] + node.col_offset, begins[node.end_lineno - 1] + node.end_col_offset

    def source(node: ast.AST) -> str:
        start, stop = span(node)
        return text[start:stop]

    tree = ast.parse(text)
    made = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    first = {id(node) for function in made for node in ast.walk(function)}  # there is nothing to remember yet
    for node in _walk(tree):
        for kind, part, instead in _changes(node, source):
            if kind == "what is remembered stays as it was" and id(node) in first:
                continue
            start, stop = span(part)
            yield Mutant(kind, file, part.lineno, start, stop, instead)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield nodes that do something: no imports, messages, types, logging, nor what every subclass defines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom, ast.Raise, ast.JoinedStr, ast.Assert)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Expr) and (isinstance(child.value, ast.Constant) or "_log" in ast.unparse(child)):
            continue
        if isinstance(child, ast.arguments) or child is getattr(node, "annotation", None):
            continue
        if child is getattr(node, "returns", None) or child in getattr(node, "decorator_list", ()):
            continue
        yield child
        yield from _walk(child)


def _changes(node: ast.AST, source) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield (kind, what is replaced, by what) of one node."""
    match node:
        case ast.FunctionDef() if found := re.search(r"self\.(_\w+)\.get\(\(?(\w+(?:, \w+)*)\)?\)", source(node)):
            place = rf"(self\.{found[1]}(?:\.get\(\(?|\[)[^\])]*)"
            for part in found[2].split(", ") if f"self.{found[1]}[" in source(node) else ():
                yield "a part of a key left out", node, re.sub(rf"{place}\b{part}\b", r"\g<1>0", source(node))
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="wait_event" | "record" | "synchronize"))):
            yield "an event dropped", node, "pass"
        case ast.Expr(value=ast.Call()):
            yield "a call dropped", node, "pass"
        case ast.Assign(targets=[*_, ast.Subscript(value=ast.Attribute(attr="_graphs"))]):
            freed = "self.memory = {n: self._cupy.empty(a.shape, a.dtype) for n, a in self.memory.items()}"
            yield "arrays freed after capture", node, f"{source(node)}; {freed}"
            yield "an assignment dropped", node, "pass"
        case ast.Assign(targets=[ast.Subscript()]) | ast.AugAssign():
            yield "an assignment dropped", node, "pass"
        case ast.Assign(targets=[ast.Tuple() | ast.Attribute()]) if not isinstance(node.value, ast.Lambda):
            if all(isinstance(t, ast.Attribute) for t in getattr(node.targets[0], "elts", node.targets)):
                yield "what is remembered stays as it was", node, "pass"
        case ast.AnnAssign(target=ast.Attribute(attr=name), value=ast.Dict() | ast.List() | ast.Call() as value):
            kept = f"type(self).__dict__.get('_all{name}')"
            made = f"(setattr(type(self), '_all{name}', {source(value)}), type(self)._all{name})[1]"
            yield "shared by all that live", value, f"({kept} if '_all{name}' in type(self).__dict__ else {made})"
        case ast.With(items=[ast.withitem(optional_vars=None) as item]):
            yield "a context not entered", item.context_expr, "contextlib.nullcontext()"
        case ast.BoolOp(values=values):
            for i, value in enumerate(values):
                kept = [source(v) for v in values if v is not value]
                word = " and " if isinstance(node.op, ast.And) else " or "
                yield "a part of a condition left out", node, f"({word.join(kept)})" if i or kept else "True"
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "a condition turned round", test, f"(not ({source(test)}))"
            yield "always one side", test, "True"
            yield "never that side", test, "False"
        case ast.Compare(ops=[op]) if type(op) in _SWAPPED:
            changed = f"{source(node.left)} {_SWAPPED[type(op)]} {source(node.comparators[0])}"
            yield "a bound one off", node, changed
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() as op]):
            sign = "!=" if isinstance(op, ast.Eq) else "=="
            yield "equal becomes unequal", node, f"{source(node.left)} {sign} {source(node.comparators[0])}"
        case ast.UnaryOp(op=ast.USub(), operand=ast.BinOp(left=ast.UnaryOp(), op=ast.FloorDiv()) as division):
            rounded = f"({source(division.left.operand)} // {source(division.right)})"
            yield "rounded down", node, rounded
        case ast.BinOp(op=ast.Add() | ast.Sub() as op):
            sign = "-" if isinstance(op, ast.Add) else "+"
            yield "plus and minus exchanged", node, f"{source(node.left)} {sign} {source(node.right)}"
        case ast.BinOp(op=ast.Mult()):
            yield "times becomes plus", node, f"({source(node.left)} + {source(node.right)})"
        case ast.Constant(value=float(value)) if value:
            yield "a thousand times as much", node, repr(value * 1000)
        case ast.Constant(value=str(value)) if value.startswith("-std"):
            yield "an option more", node, f"{source(node)}, '-prec-div=false'"
            yield "an option more", node, f"{source(node)}, '--use_fast_math'"
        case ast.Call(keywords=[ast.keyword(value=ast.Constant()) as option]) if len(node.args) == 0:
            yield "an option left out", option, ""
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield "a number one off", node, str(value + 1)
        case ast.Attribute(value=ast.Name(id="np"), attr=kind) if kind in _SMALLER:
            yield "another size of number", node, f"np.{_SMALLER[kind]}"
        case ast.Call(func=ast.Name(id="min" | "max")):
            pass  # which do not care about the order
        case ast.Name(id="min" | "max"):
            yield "the other extreme", node, "max" if node.id == "min" else "min"
        case ast.Slice(upper=ast.AST() as upper):
            yield "a part becomes the whole", upper, "None"
        case ast.Tuple(elts=parts) | ast.Call(args=parts) if not isinstance(getattr(node, "ctx", None), ast.Store):
            for a, b in itertools.pairwise(parts):
                if type(a) is type(b) and isinstance(a, (ast.Name, ast.Attribute, ast.Call)) and source(a) != source(b):
                    both = ast.Tuple([a, b], lineno=a.lineno, col_offset=a.col_offset)
                    both.end_lineno, both.end_col_offset = b.end_lineno, b.end_col_offset
                    yield "neighbours exchanged", both, f"{source(b)}, {source(a)}"
