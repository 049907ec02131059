"""The house: which files import which, how high it is, and how large its rooms may be.  Type hints are counted."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastmlp

PACKAGE = Path(fastmlp.__file__).parent
ROOT = Path(__file__).parent.parent
FLOORS = 10
LINES = 450
PUBLIC_METHODS = 15
MODULES_AT_THE_TOP = 16


def modules():
    """Return the files of the package by their dotted names, kernels left out: they import nothing from it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "kernels":
            found[".".join(("fastmlp", *parts)).removesuffix(".__init__")] = path
    return found


def imports():
    """Return for each file those that it imports: at its head, inside functions, and for type hints alone."""
    files = modules()
    graph = {}
    for name, path in files.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= inner & set(files) or {node.module}
        graph[name] = (targets & set(files)) - {name}
    return graph


def heights(graph):
    """Return for each node the length of the longest way down from it; ValueError names a circle."""
    found = {}

    def height(node, above):
        if node in above:
            raise ValueError(" -> ".join([*above[above.index(node) :], node]))
        if node not in found:
            found[node] = 1 + max((height(below, [*above, node]) for below in graph[node]), default=0)
        return found[node]

    for node in graph:
        height(node, [])
    return found


def test_no_file_is_part_of_a_circle():
    graph = imports()
    assert len(graph) > 80
    graph.pop("fastmlp")  # the list of public names imports everything, and nothing may import it
    heights(graph)


def test_a_circle_is_found_and_named():
    with pytest.raises(ValueError, match="b -> c -> b"):
        heights({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_nothing_imports_the_list_of_public_names():
    assert [name for name, targets in imports().items() if "fastmlp" in targets] == []


def test_the_house_has_at_most_ten_floors():
    rooms = {}
    for name, targets in imports().items():
        if name not in ("fastmlp", "fastmlp.__main__"):  # its sign and its door
            room, *others = (".".join(n.split(".")[:2]) for n in (name, *targets))
            rooms.setdefault(room, set()).update({other for other in others if other != room})
    assert 5 < max(heights(rooms).values()) <= FLOORS
    assert len([path for path in PACKAGE.glob("*.py")]) <= MODULES_AT_THE_TOP


def python_files():
    """Return every file of the repository that somebody writes, but the kernels and what quotes lines of code."""
    return [path for folder in ("fastmlp", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_fits_a_few_screens(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


def test_no_class_has_more_than_fifteen_public_methods():
    faces = {"MLP", "Operations", "Backend", "NumpyBackend", "NumbaOperations", "NumbaBackend", "CupyOperations"}
    faces |= {"CupyBackend"}  # these implement the operations of a backend
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in faces:
                methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"}
                assert len(methods) <= PUBLIC_METHODS, f"{path}: {node.name} has {len(methods)}: {sorted(methods)}"


def test_what_is_left_out_by_default_is_run_before_a_change_lands():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    marks = {line.partition(":")[0] for line in options["markers"]}
    stages = "".join((ROOT / ".ci" / name).read_text("utf-8") for name in ("run", "instruction_sets"))
    asked_for = {mark for found in re.findall(r'-m ("[^"]+"|\w+)', stages) for mark in re.findall(r"\w+", found)}
    assert marks - asked_for == {"planted_bugs"}  # which takes minutes


@pytest.fixture
def copied(tmp_path):
    """A copy of the package, with its kernels where an installation has them."""
    pytest.importorskip("importlinter", reason="import-linter is not installed; pip install 'fastmlp[dev]'")
    shutil.copytree(PACKAGE, tmp_path / "fastmlp", ignore=shutil.ignore_patterns("__pycache__", "mnist-idx"))
    if not (tmp_path / "fastmlp" / "kernels").exists():  # the installation edits in place
        shutil.copytree(ROOT / "kernels", tmp_path / "fastmlp" / "kernels")
    return tmp_path


def lint(folder):
    """Run import-linter on the package in a folder."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_import_goes_down(copied):
    done = lint(copied)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("formulas/records.py", "from fastmlp.model import MLP", "the floors of the house BROKEN"),
        ("engine/progress.py", "from fastmlp.engine.learner import Learner", "engine BROKEN"),
        ("engine/loop.py", "import numba", "no library of one BROKEN"),
        ("network/spec.py", "from fastmlp.backends.cpu import blas", "no library of one BROKEN"),
        ("attic.py", "", "the floors of the house BROKEN"),
    ],
)
def test_a_planted_import_upwards_is_told(copied, file, line, contract):
    planted = copied / "fastmlp" / file
    before = planted.read_text(encoding="utf-8") if planted.exists() else ""
    planted.write_text(f"{before}\n\ndef planted():\n    {line or 'pass'}\n", encoding="utf-8")
    done = lint(copied)
    assert done.returncode == 1
    assert contract in done.stdout
