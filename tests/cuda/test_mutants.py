"""The lists that the mutation run goes by are true of the tree."""

import mutants
from mutated import TESTS
from mutation import ROOT, mutants_of


def test_every_survivor_is_a_mutant_of_this_tree():
    assert mutants.reasons().keys() <= {m.name for m in mutants.mutants()}


def test_tests_stand_where_they_are_looked_for():
    assert all((ROOT / test).is_file() for tests in TESTS.values() for test in tests)


def test_no_cuda_code_is_left_out():
    host = ROOT / "fastmlp" / "backends"
    found = {p for p in host.rglob("*.py") if any(part.startswith("cu") for part in p.relative_to(host).parts)}
    found |= {p for ending in ("cu", "cuh") for p in (ROOT / "kernels").rglob(f"*.{ending}")}
    assert len(found) > 10
    assert {p.relative_to(ROOT).as_posix() for p in found if mutants_of(p)} <= TESTS.keys()
