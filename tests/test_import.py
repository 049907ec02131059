"""Importing fastmlp is cheap, and its public names are there and documented."""

import inspect
import subprocess
import sys

import pytest

import fastmlp


def run(code):
    # here and wherever tests start Python: -P, so that the installed package is met, not the source folder
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_fastmlp_imports_none_of_the_heavy_packages():
    code = "import fastmlp, sys; print(*[m for m in sys.modules if '.' not in m])"
    heavy = {"numba", "cupy", "sklearn", "matplotlib", "torch", "scipy", "safetensors", "typer", "rich", "pandas"}
    assert heavy.isdisjoint(run(code))


def test_making_and_training_a_model_imports_no_more_than_it_needs():
    code = (
        "import fastmlp, sys, numpy as np; m = fastmlp.MLP((3, 4, 2), backend='numpy');"
        "m.fit(np.eye(3), [0, 1, 0], epochs=1, verbose=0); m.predict(np.eye(3));"
        "print(*[m for m in sys.modules if '.' not in m])"
    )
    assert {"numba", "cupy", "sklearn", "matplotlib", "torch"}.isdisjoint(run(code))


def test_choosing_a_backend_by_name_touches_no_device():
    code = "import fastmlp, sys; fastmlp.get_backend('numpy'); print(*[m for m in sys.modules if '.' not in m])"
    assert {"cupy", "sklearn", "matplotlib"}.isdisjoint(run(code))


def test_asking_which_backends_there_are_imports_no_more_than_cupy():
    code = "import fastmlp, sys; fastmlp.available_backends(); print(*[m for m in sys.modules if '.' not in m])"
    assert {"sklearn", "matplotlib", "numba"}.isdisjoint(run(code))


@pytest.mark.parametrize("name", fastmlp.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(fastmlp, name)
    if not isinstance(value, str):
        assert inspect.getdoc(value)


def test_the_names_for_type_checkers_are_those_that_are_looked_up():
    source = inspect.getsource(fastmlp)
    typed = {line.split(" as ")[-1] for line in source.splitlines() if line.startswith("    from fastmlp")}
    assert typed == set(fastmlp.__all__) - {"__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MPL'"):
        fastmlp.MPL  # noqa: B018


def test_every_backend_says_whether_it_can_run_and_if_not_why():
    found = fastmlp.available_backends()
    assert {"numpy", "numba", "cupy"} <= set(found)
    assert found["numpy"].available
    for name, availability in found.items():
        if availability.available:
            assert fastmlp.get_backend(name).name == name
        else:
            assert availability.reason
            with pytest.raises(fastmlp.BackendUnavailable, match=f"{name}.*cannot run here: "):
                fastmlp.get_backend(name)
