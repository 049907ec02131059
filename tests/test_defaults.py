"""What a network does where it is told nothing follows from `benchmarks/defaults.py`, which trains and counts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp.formulas.activations import activation_names

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def defaults(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import defaults

    return defaults


def epoch(model, rows, **options):
    x, y = np.random.default_rng(0).normal(size=(rows, 3)), np.arange(rows) % 2
    before = model.steps
    model.fit(x, y, epochs=1, verbose=0, **options)
    return model.steps - before


def test_a_small_table_is_learned_with_the_defaults():
    x, y = load_iris(return_X_y=True)
    accuracies = []
    for seed in range(5):
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=1 / 3, random_state=seed, stratify=y)
        scaler = StandardScaler().fit(x_train)
        model = fastmlp.MLP((4, 16, 3), backend="numpy", seed=seed)
        model.fit(scaler.transform(x_train), y_train, epochs=50, verbose=0)
        accuracies.append(model.evaluate(scaler.transform(x_test), y_test)["accuracy"])
    assert np.mean(accuracies) > 0.85  # by 128 rows a step, with He's initializer: .54


@pytest.mark.parametrize("activation", activation_names())
def test_initial_weights_are_glorots_or_of_lecun_for_selu(activation):
    units = (7, 5, 5, 3)
    model = fastmlp.MLP(units, activation=activation, seed=3, backend="numpy")
    hidden = "lecun_normal" if activation == "selu" else "glorot_uniform"
    for layer, name in enumerate((hidden, hidden, "glorot_uniform")):  # selu's self-normalisation ends at the outputs
        same = fastmlp.MLP(units, activation=activation, initializer=name, seed=3, backend="numpy")
        assert (model.get_weights()[2 * layer] == same.get_weights()[2 * layer]).all()


@pytest.mark.parametrize(
    ("rows", "steps"), [(5, 1), (8, 1), (100, 13), (287, 36), (288, 32), (320, 32), (4096, 32), (5000, 40)]
)
def test_a_step_takes_a_32nd_of_the_rows_but_8_to_128(rows, steps):
    model = fastmlp.MLP((3, 2), backend="numpy", seed=0)
    assert epoch(model, rows) == steps
    assert epoch(model, rows, batch_size=128) == -(-rows // 128)
    x, y = np.zeros((rows, 3)), np.zeros(rows, np.int64)
    told = model.memory_estimate(x, y, batch_size=min(max(rows // 32, 8), 128))
    assert model.memory_estimate(x, y) == told


def test_a_32nd_is_that_of_the_rows_that_train():
    assert epoch(fastmlp.MLP((3, 2), backend="numpy", seed=0), 640, validation_split=0.5) == 32


def test_a_resumed_run_keeps_the_batch_size_that_it_began_with(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(320, 3)), np.arange(320) % 2
    callbacks = [fastmlp.Checkpoint(tmp_path / "{epoch}.safetensors")]
    model = fastmlp.MLP((3, 4, 2), backend="numpy", seed=0)
    model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    resumed = fastmlp.load(tmp_path / "1.safetensors", backend="numpy")
    resumed.resume(x, y, verbose=0, callbacks=callbacks)
    assert resumed.steps == model.steps == 64
    assert all((a == b).all() for a, b in zip(resumed.get_weights(), model.get_weights(), strict=True))


def test_the_defaults_are_those_that_the_benchmark_calls_so(defaults):
    start, optimizer, batch = defaults.DEFAULT
    named = fastmlp.MLP((6, 5, 2), initializer=defaults.STARTS[start](2), seed=1, backend="numpy")
    silent = fastmlp.MLP((6, 5, 2), seed=1, backend="numpy")
    assert all((a == b).all() for a, b in zip(named.get_weights(), silent.get_weights(), strict=True))
    assert defaults.OPTIMIZERS[optimizer] == fastmlp.Adam()
    for rows in (100, 600, 9000):
        assert epoch(fastmlp.MLP((3, 2), seed=0, backend="numpy"), rows) == -(-rows // defaults.BATCHES[batch](rows))


@pytest.mark.thorough
def test_the_benchmark_trains_on_classes_and_values_and_tells_settings_apart(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "defaults.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    tried, scores = [tuple(s) for s in found["settings"]], found["scores"]
    default, former = tried.index(("glorot_uniform", "Adam(0.001)", "n / 32, 8 to 128")), 1
    assert tried[former] == ("he_normal, outputs glorot_uniform", "Adam(0.001)", "128")
    for name, least in {"iris": 0.9, "friedman1": 0.85}.items():
        assert scores[name][default][-1] > least
        assert scores[name][default][-1] > scores[name][former][-1]
    assert "| iris |" in done.stdout and "| the default |" in done.stdout


def test_a_diverged_network_scores_as_a_constant_and_every_score_is_a_share(defaults):
    setting = ("he_normal", "SGD(0.1, momentum=0.9)", "n / 32, 8 to 128")
    (found,) = defaults.scores("friedman2, raw", [setting], 1)
    assert found == [0.0, 0.0]


def test_tables_are_split_by_class_and_scaled_by_the_rows_that_train(defaults):
    found = defaults.tasks()
    assert len({name.split(",")[0] for name in found}) >= 11
    x, y, x_test, y_test = defaults.split(found["iris"], 0)
    assert (np.bincount(y_test) >= 16).all() and len(x) + len(x_test) == 150
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    assert np.abs(x_test.mean(axis=0)).max() > 1e-3
    raw = defaults.split(found["iris, raw"], 0)
    assert raw[0].min() > 0 and (raw[1] == y).all()
