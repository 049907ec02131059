"""``fastmlp parity``: the user's model or random ones, a table, a verdict and an exit code."""

import numpy as np
import pytest

import fastmlp
from fastmlp.backends import registry
from fastmlp.backends.numpy_backend import NumpyBackend


class Wrong(NumpyBackend):
    name = "wrong"

    def activation_backward(self, activation, a, slope, d, scratch):
        super().activation_backward(activation, a, slope, d, scratch)
        if d.shape[1] == 7:
            d *= 1.001


@pytest.fixture
def wrong(monkeypatch):
    monkeypatch.setitem(registry._BACKENDS, "wrong", (__name__, "Wrong"))
    monkeypatch.setitem(registry._made, "wrong", Wrong())
    monkeypatch.setattr(registry, "_probe", lambda name: registry.Availability(True))


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    np.savetxt(tmp_path / "a.csv", np.column_stack([x, y]), "%.9g", ",", header="a,b,c,kind", comments="")
    fastmlp.MLP((3, 9, 7, 2), backend="numpy", seed=0).save(tmp_path / "model.safetensors")


def test_a_model_of_ones_own(cli, saved):
    code, out, err = cli("parity", "model.safetensors", "a.csv", "--target", "kind", "--backends", "numpy,numba")
    assert (code, err) == (0, "")
    for text in (
        "what rounding in float32 allows",
        "gradients of the biases",
        "numpy: rounding: at most",
        "numba: round",
    ):
        assert text in out


def test_a_bug_is_named_with_its_layer(cli, saved, wrong):
    arguments = "parity", "model.safetensors", "a.csv", "--target", "kind", "--steps", "1", "--backends"
    code, out, _ = cli(*arguments, "numpy,wrong")
    assert code == 1
    assert "wrong: a bug: the gradients of the weights of layer 1 are off by" in out
    assert "numpy: rounding" in out


def test_random_networks(cli, wrong):
    code, out, _ = cli("parity", "--networks", "3", "--steps", "1", "--backends", "numpy")
    assert code == 0
    assert "3 of 3 random networks differ by rounding alone" in out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("parity model.safetensors", 2, "DATA is missing: the rows to compute the model on"),
        ("parity --networks 0", 2, "--networks"),
        ("parity --steps -1", 2, "--steps"),
        ("parity --backends nunpy", 2, "did you mean 'numpy'"),
        ("parity nowhere a.csv", 1, "nowhere: no such file or directory"),
        ("parity model.safetensors a.csv", 1, "expected a target to compare with; name it with --target"),
    ],
)
def test_mistakes(cli, saved, arguments, code, text):
    found, _, err = cli(*arguments.split())
    assert found == code
    assert text in err
