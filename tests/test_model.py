"""`fastmlp.MLP` as its users meet it: what it accepts, and what it returns."""

import copy
import pickle
import threading

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.backends import registry


def test_a_network_learns_what_can_be_learned(backend):
    x, y = blobs()
    history = small(backend).fit(x, y, epochs=20, batch_size=32, optimizer=fastmlp.Adam(0.01), verbose=0)
    assert history.history["accuracy"][-1] > 0.97
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_history_has_one_value_an_epoch_of_each_figure(backend):
    x, y = blobs()
    history = small(backend).fit(x, y, epochs=3, validation_split=0.25, metrics=["balanced_accuracy_score"], verbose=0)
    assert set(history.history) == {
        *("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds"),
        *("balanced_accuracy_score", "val_balanced_accuracy_score"),
    }
    assert all(len(values) == 3 for values in history.history.values())


def test_predictions_come_by_loss(backend):
    x, _ = blobs()
    model = small(backend)
    assert model.predict(x).shape == (200,) and model.predict(x).dtype == np.int64
    assert model.predict_proba(x).shape == (200, 3)
    np.testing.assert_allclose(model.predict_proba(x).sum(axis=1), 1, rtol=1e-6)
    binary = fastmlp.MLP((6, 4, 1), loss="sigmoid_cross_entropy", backend=backend, seed=0)
    assert set(np.unique(binary.predict(x))) <= {0, 1} and binary.predict(x).shape == (200,)
    assert binary.predict_proba(x).shape == (200, 1)
    labels = fastmlp.MLP((6, 4, 2), loss="sigmoid_cross_entropy", backend=backend, seed=0)
    assert labels.predict(x).shape == (200, 2)
    rate = fastmlp.MLP((6, 4, 1), loss="poisson", backend=backend, seed=0)
    assert (rate.predict(x) > 0).all()
    value = fastmlp.MLP((6, 4, 2), loss="mean_squared_error", backend=backend, seed=0)
    assert value.predict(x).shape == (200, 2) and value.predict(x).dtype == np.float32
    with pytest.raises(ValueError, match=r"mean_squared_error.*no probabilities; use predict"):
        value.predict_proba(x)
    assert model.predict(x[:0]).shape == (0,)


def test_prediction_does_not_depend_on_the_batch_size_beyond_rounding(backend):
    x, _ = blobs(300)
    model = small(backend, dtype="float64")
    expected = model.predict_proba(x)
    for size in (1, 7, 300, 1000):
        np.testing.assert_allclose(model.predict_proba(x, batch_size=size), expected, rtol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(backend):
    x, y = blobs()

    def trained(seed):
        model = fastmlp.MLP((6, 8, 3), dropout=0.3, backend=backend, seed=seed)
        model.fit(x, y, epochs=2, verbose=0)
        return model.get_weights()[0]

    assert_same_bits(trained(5), trained(5))
    assert not np.array_equal(trained(5), trained(6))


def test_a_drawn_seed_is_kept_and_repeats_the_model(backend):
    first = fastmlp.MLP((4, 3), backend=backend)
    again = fastmlp.MLP((4, 3), backend=backend, seed=first.seed)
    assert_same_bits(first.get_weights()[0], again.get_weights()[0])


def test_fit_twice_goes_on_where_it_stood(backend):
    x, y = blobs()
    at_once, in_two = small(backend), small(backend)
    at_once.fit(x, y, epochs=4, optimizer=fastmlp.Adam(), verbose=0)
    in_two.fit(x, y, epochs=2, optimizer=fastmlp.Adam(), verbose=0)
    in_two.fit(x, y, epochs=2, optimizer=fastmlp.Adam(), verbose=0)
    assert_same_bits(in_two.get_weights()[0], at_once.get_weights()[0])


def test_another_optimizer_begins_with_new_moments(backend):
    x, y = blobs()
    model = small(backend)
    model.fit(x, y, epochs=1, batch_size=128, optimizer=fastmlp.Adam(), verbose=0)
    assert model._learner.state.optimizer_step == 2
    model.fit(x, y, epochs=1, batch_size=128, optimizer=fastmlp.Adam(2e-3), verbose=0)
    assert model._learner.state.optimizer_step == 2 and model.steps == 4
    model.fit(x, y, epochs=1, optimizer=fastmlp.SGD(0.1), verbose=0)
    assert model._learner.state.moments == []


def test_a_schedule_without_a_horizon_spans_each_call(backend):
    x, y = blobs()
    model = small(backend)
    for _ in range(2):
        rates = model.fit(x, y, epochs=3, optimizer=fastmlp.Adam(fastmlp.Cosine(1e-2)), verbose=0).history[
            "learning_rate"
        ]
        assert rates[0] > rates[1] > rates[2] > 0
    fixed = {"epochs": 2, "batch_size": 128, "optimizer": fastmlp.Adam(fastmlp.Cosine(1e-2, steps=4)), "verbose": 0}
    assert model.fit(x, y, **fixed).history["learning_rate"][-1] > 0
    assert model.fit(x, y, **fixed).history["learning_rate"][-1] == 0


def test_sample_weights_of_zero_leave_rows_out(backend):
    x, y = blobs()
    weighted, fewer = small(backend, dtype="float64"), small(backend, dtype="float64")
    weights = np.r_[np.ones(150), np.zeros(50)]
    weighted.fit(x, y, epochs=3, batch_size=200, sample_weight=weights, verbose=0)
    fewer.fit(x[:150], y[:150], epochs=3, batch_size=150, verbose=0)
    for a, b in zip(weighted.get_weights(), fewer.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert weighted.evaluate(x, y, weights)["loss"] == pytest.approx(fewer.evaluate(x[:150], y[:150])["loss"])


def test_class_weights_are_row_weights(backend):
    x, y = blobs()
    by_class, by_row = small(backend), small(backend)
    by_class.fit(x, y, epochs=2, class_weight={0: 3.0}, verbose=0)
    by_row.fit(x, y, epochs=2, sample_weight=np.where(y == 0, 3.0, 1.0), verbose=0)
    assert_same_bits(by_class.get_weights()[0], by_row.get_weights()[0])
    balanced = small(backend)
    balanced.fit(x, y, epochs=2, class_weight="balanced", verbose=0)
    counts = np.bincount(y)
    small(backend).fit(x, y, epochs=2, sample_weight=(200 / (3 * counts))[y], verbose=0)


def test_bytes_are_scaled_like_pixels(backend):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (100, 6), np.uint8)
    y = rng.integers(0, 3, 100)
    a, b = small(backend), small(backend)
    a.fit(pixels, y, epochs=2, verbose=0)
    b.fit(pixels.astype(np.float32) / 255, y, epochs=2, verbose=0)
    assert_same_bits(a.get_weights()[0], b.get_weights()[0])
    assert_same_bits(a.predict_proba(pixels), b.predict_proba(pixels.astype(np.float32) / 255))


def test_byte_targets_are_values_and_are_not_scaled(backend):
    x, y = blobs()
    one_hot = np.eye(3, dtype=np.uint8)[y]
    a, b = small(backend), small(backend)
    a.fit(x, one_hot, epochs=1, verbose=0)
    b.fit(x, one_hot.astype(np.float32), epochs=1, verbose=0)
    assert_same_bits(a.get_weights()[0], b.get_weights()[0])


@pytest.mark.parametrize("layout", ["fortran", "strided", "float64", "int32", "bool", "big-endian", "readonly", "list"])
def test_any_layout_and_real_type_of_inputs_will_do_and_is_not_changed(backend, layout):
    x, y = blobs(64)
    x = np.round(x)
    given = {
        "fortran": lambda: np.asfortranarray(x),
        "strided": lambda: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
        "float64": lambda: x.astype(np.float64),
        "int32": lambda: x.astype(np.int32),
        "bool": lambda: x > 0,
        "big-endian": lambda: x.astype(">f4"),
        "readonly": lambda: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        "list": lambda: x.tolist(),
    }[layout]()
    expected, model = small(backend), small(backend)
    reference = (x > 0).astype(np.float32) if layout == "bool" else x
    before = copy.deepcopy(given)
    expected.fit(reference, y, epochs=2, verbose=0)
    model.fit(given, y, epochs=2, verbose=0)
    assert_same_bits(model.get_weights()[0], expected.get_weights()[0])
    np.testing.assert_array_equal(given, before)


def test_weights_can_be_taken_and_set(backend):
    model, other = small(backend), fastmlp.MLP((6, 8, 3), backend=backend, seed=9)
    other.set_weights(model.get_weights())
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(a, b)
    assert [w.shape for w in model.get_weights()] == [(6, 8), (8,), (8, 3), (3,)]
    with pytest.raises(ValueError, match=r"shapes \[\(6, 8\)"):
        model.set_weights(model.get_weights()[:-1])
    bad = model.get_weights()
    bad[2][0, 0] = np.nan
    before = model.get_weights()
    with pytest.raises(ValueError, match="W2 must hold finite"):
        model.set_weights(bad)
    assert_same_bits(model.get_weights()[0], before[0])


def test_frozen_layers_keep_their_weights(backend):
    x, y = blobs()
    model = fastmlp.MLP((6, 8, 5, 3), dropout=0.2, l2=1e-3, max_norm=1.0, backend=backend, seed=0)
    model.freeze(0, -1)
    before = model.get_weights()
    model.fit(x, y, epochs=2, optimizer=fastmlp.AdamW(1e-2), verbose=0)
    after = model.get_weights()
    for i, (a, b) in enumerate(zip(after, before, strict=True)):
        assert np.array_equal(a, b) == (i in (0, 1, 4, 5)), i
    model.unfreeze()
    model.fit(x, y, epochs=1, optimizer=fastmlp.AdamW(1e-2), verbose=0)
    assert not np.array_equal(model.get_weights()[0], before[0])
    for wrong in ((3,), (), (True,)):
        with pytest.raises((ValueError, TypeError)):
            model.freeze(*wrong)
    model.freeze(0, 1, 2)
    model.unfreeze(0, -1)
    assert model.spec.frozen == (False, True, False)
    with pytest.raises(ValueError, match=r"there is no layer 3; the network has 3, 0\.\.2"):
        model.unfreeze(3)


def test_a_network_whose_layers_are_all_frozen_stays_as_it_is(backend):
    x, y = blobs()
    model = small(backend)
    model.freeze(0, 1)
    before = model.get_weights()
    model.fit(x, y, epochs=1, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)


def test_the_average_predicts_and_the_raw_weights_train(backend):
    x, y = blobs()
    averaged, raw = small(backend), small(backend)
    averaged.fit(x, y, epochs=3, optimizer=fastmlp.Adam(ema=0.9), verbose=0)
    raw.fit(x, y, epochs=3, optimizer=fastmlp.Adam(), verbose=0)
    assert_same_bits(backend.to_numpy(averaged._learner.state.params), backend.to_numpy(raw._learner.state.params))
    assert not np.array_equal(averaged.get_weights()[0], raw.get_weights()[0])
    other = small(backend)
    other.set_weights(averaged.get_weights())
    assert_same_bits(other.predict_proba(x), averaged.predict_proba(x))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_train_on_to_the_same_bits(backend, way):
    x, y = blobs()
    model = small(backend, dropout=0.2)
    model.class_names = ("a", "b", "c")
    model.fit(x, y, epochs=1, optimizer=fastmlp.Adam(ema=0.99), verbose=0)
    twin = way(model)
    assert twin.class_names == model.class_names and repr(twin.backend) == repr(model.backend)
    for m in (model, twin):
        m.fit(x, y, epochs=1, optimizer=fastmlp.Adam(ema=0.99), verbose=0)
    assert_same_bits(twin.get_weights()[0], model.get_weights()[0])


def test_copies_keep_the_options_of_the_backend(backend):
    options = {"numpy": {}, "numba": {"threads": 3}, "cupy": {"way": "eager"}}[backend.name]
    model = small(fastmlp.get_backend(backend.name, **options))
    assert copy.deepcopy(model).backend is model.backend
    opened = pickle.loads(pickle.dumps(model)).backend
    assert opened.options == options and repr(opened) == repr(model.backend)


def test_a_pickled_model_opens_where_its_backend_cannot_run(backend, monkeypatch, caplog):
    registry._say_replaced.cache_clear()
    model = small(backend)
    dumped = pickle.dumps(model)
    expected = model.get_weights()
    monkeypatch.setattr(registry, "_made", {})
    monkeypatch.setitem(registry._BACKENDS, backend.name, ("fastmlp.backends.gone", "Gone"))
    monkeypatch.setattr(registry, "_AUTOMATIC", tuple({"numpy", "numba"} - {backend.name}))
    opened = pickle.loads(dumped)
    assert opened.backend.name != backend.name
    pickle.loads(dumped)
    assert caplog.text.count(f"backend {backend.name} of a pickled model cannot be used here") == 1
    assert_same_bits(opened.get_weights()[0], expected[0])


def test_a_closed_model_still_works(backend):
    x, y = blobs()
    model = small(backend)
    expected = model.predict_proba(x)
    model.close()
    assert_same_bits(model.predict_proba(x), expected)
    model.close()
    model.to(backend).fit(x, y, epochs=1, verbose=0)


def test_threads_may_predict_at_once(backend):
    x, _ = blobs(400)
    model = small(backend)
    expected = model.predict_proba(x)
    wrong = []

    def work():
        for _ in range(50):
            if not np.array_equal(model.predict_proba(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_second_fit_of_the_same_model_at_once_is_refused(backend):
    x, y = blobs()
    model = small(backend)

    class Nested(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            with pytest.raises(RuntimeError, match="being trained already"):
                model.fit(x, y, epochs=1, verbose=0)
            model.predict(x)  # asking is fine

    model.fit(x, y, epochs=1, callbacks=[Nested()], verbose=0)


def test_repr_and_summary_tell_the_network(backend, capsys):
    model = fastmlp.MLP((784, 100, 10), activation="tanh", dropout=0.1, backend=backend, seed=3)
    assert repr(model) == (
        "MLP((784, 100, 10), activation='tanh', loss='softmax_cross_entropy', dropout=(0.0, 0.1), "
        f"backend='{backend.name}', dtype='float32', seed=3)"
    )
    model.freeze(0)
    model.summary()
    out = capsys.readouterr().out
    assert "78,500" in out and "1,010" in out and "parameters 79,510, of which 1,010 train" in out and "frozen" in out


def test_loss_and_gradients_leave_the_model_as_it_is(backend):
    x, y = blobs()
    model = small(backend, l2=0.1, dtype="float64")
    before = model.get_weights()
    loss, gradients = model.loss_and_gradients(x, y)
    assert [g.shape for g in gradients] == [w.shape for w in before]
    penalty = 0.05 * sum((w**2).sum() for w in before[::2])
    assert loss == pytest.approx(model.evaluate(x, y)["loss"] + penalty, rel=1e-12)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
