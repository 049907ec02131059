"""Compiled kernels are trusted on a processor once they have computed there what NumPy does; else NumPy goes on."""

import json
import time

import numpy as np
import pytest

pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
import numba

import fastmlp
from fastmlp.backends.cpu import backend as numba_backend
from fastmlp.backends.cpu import calibration, proof
from fastmlp.backends.cpu.backend import NumbaBackend
from fastmlp.network.plan import Precision

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the JIT is off, so nothing is compiled")

KINDS = pytest.mark.parametrize(
    ("training", "dtype"), [(t, d) for t in (True, False) for d in ("float32", "float64")], ids=str
)
X, Y = np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3


@pytest.fixture
def unproven(tmp_path, monkeypatch, kernels_in_the_cache):
    """A machine on which nothing was proven yet, whose records lie in a folder of the test."""
    for dtype in ("float32", "float64"):  # compiled before anything is broken or timed
        network(dtype=dtype).fit(X, Y, epochs=1, verbose=0)
        network(dtype=dtype).predict(X)
    monkeypatch.setattr(proof, "kept_path", lambda what, dtype: tmp_path / "kept" / f"{what}-{dtype}.json")
    monkeypatch.setattr(numba_backend, "_proven", {})
    return tmp_path / "kept"


def network(backend="numba", **options):
    return fastmlp.MLP((5, 7, 3), **{"activation": "tanh", "backend": backend, "seed": 0, **options})


def make(form):
    return NumbaBackend(threads=1, products=form)


def kept(folder):
    return sorted(path.name for path in folder.glob("*"))


@pytest.fixture
def counted(monkeypatch):
    """How often anything is computed to be looked at."""
    calls, computed = [], proof._computed

    def counting(*arguments):
        calls.append(arguments[0].name)
        return computed(*arguments)

    monkeypatch.setattr(proof, "_computed", counting)
    return calls


@pytest.fixture
def broken(monkeypatch):
    """Let what is compiled compute a hundredth too much, in training alone or in prediction alone."""

    def spoil(name):
        right = getattr(NumbaBackend, name)

        def wrong(self, session, *arguments):
            result = right(self, session, *arguments)
            if numba_backend._trusted():
                target = arguments[0].params if name == "train_steps" else arguments[-1]
                target += 0.01
            return result

        monkeypatch.setattr(NumbaBackend, name, wrong)

    return spoil


@KINDS
def test_right_kernels_are_proven_once_and_that_is_kept(unproven, counted, monkeypatch, training, dtype):
    kind = training, Precision.of(np.dtype(dtype)), make
    monkeypatch.setattr(numba_backend._here, "proving", True, raising=False)
    assert proof.prove(*kind)
    assert counted.count("numpy") == 1
    assert counted.count("numba") >= 1
    (file,) = unproven.iterdir()
    assert file.name == f"proven-{'train' if training else 'predict'}-{dtype}.json"
    assert json.loads(file.read_text()) == calibration.machine()
    counted.clear()
    assert proof.prove(*kind)
    assert not counted


@pytest.mark.parametrize(
    "contents",
    [b"", b"{", b"null", b"\xff\xfe", json.dumps({**calibration.machine(), "processor": "another"}).encode()],
    ids=["empty", "cut", "nothing", "no text", "another processor"],
)
def test_a_stale_or_damaged_record_is_ignored_and_written_anew(unproven, counted, contents):
    unproven.mkdir()
    file = unproven / "proven-predict-float32.json"
    file.write_bytes(contents)
    network().predict(X)
    assert "numba" in counted
    assert json.loads(file.read_text()) == calibration.machine()


def test_a_fit_and_a_prediction_prove_what_they_use_and_no_more(unproven, counted):
    network().fit(X, Y, epochs=1, verbose=0)
    assert kept(unproven) == ["proven-train-float32.json"]
    network().predict(X)
    assert kept(unproven) == ["proven-predict-float32.json", "proven-train-float32.json"]
    counted.clear()
    network().fit(X, Y, epochs=1, verbose=0)
    assert not counted


def test_no_folder_to_keep_it_in(unproven, monkeypatch, counted):
    monkeypatch.setattr(proof, "kept_path", lambda what, dtype: None)
    network().predict(X)
    assert counted
    monkeypatch.setattr(proof, "kept_path", lambda what, dtype: unproven / "a" / "b")
    unproven.write_text("a file where a folder should be")
    numba_backend._proven.clear()
    network().predict(X)
    assert unproven.is_file()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_steps_are_told_and_numpy_goes_on(unproven, broken, dtype):
    broken("train_steps")
    model, by_numpy = network(dtype=dtype), network("numpy", dtype=dtype)
    with pytest.warns(
        RuntimeWarning, match=f"compiled kernels compute wrongly .*: the weights in {dtype} with products"
    ):
        history = model.fit(X, Y, epochs=3, batch_size=8, verbose=0)
    expected = by_numpy.fit(X, Y, epochs=3, batch_size=8, verbose=0)
    assert history.history["loss"] == expected.history["loss"]
    for a, b in zip(model.get_weights(), by_numpy.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    # and nothing that is compiled is used any more, without another word
    assert model.predict_proba(X).tobytes() == by_numpy.predict_proba(X).tobytes()
    assert model.evaluate(X, Y) == by_numpy.evaluate(X, Y)
    assert model.loss_and_gradients(X, Y)[0] == by_numpy.loss_and_gradients(X, Y)[0]
    assert model.backend.choices()["computed by"] == "numpy"
    assert not unproven.exists()  # nor are predictions taken for proven, which NumPy made


def test_wrong_predictions_are_told_and_numpy_goes_on(unproven, broken):
    broken("predict")
    model, by_numpy = network(), network("numpy")
    with pytest.warns(
        RuntimeWarning, match=r"the outputs in float32 with products by \w+ are off by .* goes on by NumPy"
    ):
        found = model.predict_proba(X)
    assert found.tobytes() == by_numpy.predict_proba(X).tobytes()
    assert not unproven.exists()
    predictor = model.predictor()
    assert predictor(X[0]) == by_numpy.predictor()(X[0])


def test_ctrl_c_meanwhile_leaves_it_unproven(unproven, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(proof, "_computed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            network().predict(X)
    assert not numba_backend._proven
    network().predict(X)
    assert list(numba_backend._proven.values()) == [True]


def test_what_is_proven_costs_next_to_nothing(unproven, monkeypatch):
    kind = True, Precision.of(np.dtype("float32")), make
    monkeypatch.setattr(numba_backend._here, "proving", True, raising=False)

    def best():
        seconds = []
        for _ in range(5):
            began = time.process_time()
            proof.prove(*kind)
            seconds.append(time.process_time() - began)
            if before:
                (unproven / "proven-train-float32.json").unlink()
        return min(seconds)

    before = True
    assert best() < 0.05  # ten milliseconds where nothing else runs
    before = False
    proof.prove(*kind)
    assert best() < 0.005
