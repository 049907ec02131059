"""What is brought to a GPU machine without registries: all that it lacks, and nothing that it has."""

from pathlib import Path

import pytest


@pytest.fixture
def gpu_wheels(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import gpu_wheels

    return gpu_wheels


def test_what_a_machine_has_is_read_as_pip_lists_it(gpu_wheels):
    text = """
        numpy==2.5.2
        Typing_Extensions==4.15.0   # a comment
        torch @ file:///wheels/torch-2.11.0.whl
        scikit.learn
        -e git+https://example.org/x.git#egg=x
        """
    assert gpu_wheels.there(text) == {"numpy", "typing-extensions", "torch", "scikit-learn"}


def test_what_is_missing_is_all_that_pip_would_install_and_the_machine_has_not(gpu_wheels):
    named = [("fastmlp", "0.1.0"), ("NumPy", "2.5.2"), ("randomgen", "2.5.1"), ("scipy_openblas32", "0.3.34")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in named]}
    assert gpu_wheels.missing(report, {"numpy"}) == ["randomgen==2.5.1", "scipy-openblas32==0.3.34"]
    assert gpu_wheels.missing(report, {"numpy", "randomgen", "scipy-openblas32"}) == []
