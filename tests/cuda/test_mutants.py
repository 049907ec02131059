"""The lists that the mutation run goes by, and that of branches, are true of the tree."""

from collections import Counter
from pathlib import Path

import mutants
from mutated import TESTS
from mutation import FAMILIES, ROOT, family, mutants_of, sample


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


def test_a_sample_has_every_family_of_either_half():
    found = Counter(map(family, sample(60, 0)))
    assert {name.split(",")[0] for name in found} == {*FAMILIES, "mechanical"}
    assert found["size, kernels"] >= 5 <= found["size, host"]
    assert {kind for kinds in FAMILIES.values() for kind in kinds} <= {m.kind for m in mutants.mutants()}


def test_a_sample_of_some_families_is_what_a_larger_one_has_of_them():
    for families, mechanical in (("mechanical", True), ("named", False)):
        found = sample(12, 0, families)
        assert found == [m for m in sample(60, 0) if family(m).startswith("mechanical") == mechanical][:12]


def test_every_branch_of_the_list_is_there_and_has_its_tests():
    lines = (Path(__file__).parent / "branches.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(lines) > 100
    for branch, tests in zip(lines[::2], lines[1::2], strict=True):
        file, code = branch.split(": ", 1)
        assert code in (ROOT / file).read_text(), branch
        for test in tests.strip().split(", "):
            where, name = test.split("::")
            assert f"\ndef {name}" in (Path(__file__).parent / where).read_text(), test
