"""A few rows at a time are answered from memory that is ready: to the bits of the long way, and with its refusals."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP
from fastmlp.engine import inference
from fastmlp.engine.inference import Inference
from fastmlp.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6))
Y = RNG.integers(0, 3, 40)

backends = pytest.mark.parametrize("where", ["numpy", "numba"])


@pytest.fixture
def long_way(monkeypatch):
    """How many rows each question had that went the long way."""
    found = []
    original = Inference.outputs

    def noted(self, spec, params, x, *more):
        found.append(len(x))
        return original(self, spec, params, x, *more)

    monkeypatch.setattr(Inference, "outputs", noted)
    return found


def trained(where, x=X, **given):
    model = MLP((6, 8, 3), seed=1, backend=where, **given)
    model.fit(x, Y, epochs=2, verbose=0)
    return model


@backends
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("of", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_answers_have_the_bits_of_the_long_way(where, dtype, of, rows, long_way, monkeypatch):
    model, x = trained(where, dtype=dtype), X[:rows].astype(of)
    found = [model.predict_proba(x) for _ in range(4)]
    assert long_way == [rows, rows]  # the second time memory is made ready
    other = model.predict_proba(X[5 : 5 + rows].astype(of))
    assert len(long_way) == 2
    monkeypatch.setattr(inference, "FEW", 0)
    expected, expected_other = model.predict_proba(x), model.predict_proba(X[5 : 5 + rows].astype(of))
    assert len(long_way) == 4
    for answer in found:
        np.testing.assert_array_equal(answer, expected)  # the first ones are not overwritten by the next
    np.testing.assert_array_equal(other, expected_other)


@backends
def test_columns_in_another_layout_are_taken_too(where, long_way):
    model = trained(where)
    wanted = [model.predict_proba(X[:2]) for _ in range(3)][-1]
    np.testing.assert_array_equal(model.predict_proba(np.asfortranarray(X[:2])), wanted)
    np.testing.assert_array_equal(model.predict_proba(X[1::-1])[::-1], wanted)
    assert len(long_way) == 2


@backends
@pytest.mark.parametrize("optimizer", [fastmlp.SGD(0.5), fastmlp.Adam(ema=0.9)], ids=["sgd", "average"])
def test_answers_follow_the_weights(where, optimizer, long_way, monkeypatch):
    model = trained(where)
    before = [model.predict_proba(X[:1]) for _ in range(3)][-1]
    model.fit(X, Y, epochs=1, verbose=0, optimizer=optimizer)
    after = [model.predict_proba(X[:1]) for _ in range(3)]
    model.set_weights([w / 2 for w in model.get_weights()])
    halved = [model.predict_proba(X[:1]) for _ in range(3)]
    monkeypatch.setattr(inference, "FEW", 0)
    for found in halved:
        np.testing.assert_array_equal(found, model.predict_proba(X[:1]))
    model.set_weights([w * 2 for w in model.get_weights()])
    for found in after:
        np.testing.assert_array_equal(found, model.predict_proba(X[:1]))
    assert not np.array_equal(before, after[0])
    assert not np.array_equal(after[0], halved[0])


@backends
def test_answers_are_those_of_the_network_as_it_is(where, monkeypatch):
    estimator = fastmlp.MLPClassifier((8,), epochs=2, warm_start=True, random_state=0, backend=where).fit(X, Y)
    before = [estimator.predict_proba(X[:1]) for _ in range(3)][-1]
    estimator.set_params(activation="tanh").fit(X, Y)
    found = [estimator.predict_proba(X[:1]) for _ in range(3)]
    monkeypatch.setattr(inference, "FEW", 0)
    for answer in found:
        np.testing.assert_array_equal(answer, estimator.predict_proba(X[:1]))
    assert not np.array_equal(before, found[0])


@backends
@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "got nan in row 0, column 2"), (np.inf, "got inf in row 0, column 2"), (1e300, "float32")],
    ids=["nan", "inf", "too large"],
)
def test_what_is_refused_is_refused_at_every_call(where, value, text):
    model = trained(where)
    x = X[:1].copy()
    x[0, 2] = value
    for _ in range(4):
        model.predict(X[:1])
        with pytest.raises(DataError, match=text):
            model.predict(x)


@backends
def test_outputs_without_a_class_are_refused_at_every_call(where):
    model = trained(where)
    model.set_weights([w * 100 for w in model.get_weights()])
    for _ in range(4):
        model.predict(X[:1])
        with pytest.raises(DataError, match="of the network is"):
            model.predict(np.full((1, 6), 1e37))


@backends
def test_numbers_of_another_range_are_told_of_at_every_call(where):
    model = trained(where, x=RNG.random((40, 6)))
    for _ in range(4):
        model.predict(RNG.random((1, 6)))
        with pytest.warns(UserWarning, match="has values up to 200"):
            model.predict(np.full((1, 6), 200.0))


@backends
def test_networks_that_take_longer_than_the_call_go_the_long_way(where, long_way):
    model = MLP((6, 4000, 3), seed=1, backend=where)
    model.fit(X, Y, epochs=1, verbose=0)
    for _ in range(4):
        model.predict(X[:27])
    assert long_way == [27] * 4  # times 40,003 parameters
    for _ in range(4):
        model.predict(X[:26])
    assert long_way == [27] * 4 + [26] * 2


@backends
def test_rows_in_turn_of_several_numbers_are_answered_rightly(where, monkeypatch):
    model = trained(where)
    found = [model.predict_proba(X[:n]) for n in (1, 2, 1, 1, 1, 2, 2, 2, 40, 1, 1)]
    monkeypatch.setattr(inference, "FEW", 0)
    for answer in found:
        np.testing.assert_allclose(answer, model.predict_proba(X)[: len(answer)], rtol=1e-5)


@backends
def test_threads_that_ask_at_once_get_their_own_answers(where, monkeypatch):
    model = trained(where)
    for _ in range(3):
        model.predict_proba(X[:1])

    def ask(i):
        return [model.predict_proba(X[i : i + 1]) for _ in range(200)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(8)))
    monkeypatch.setattr(inference, "FEW", 0)
    for i, found in enumerate(answers):
        for answer in found:
            np.testing.assert_array_equal(answer, model.predict_proba(X[i : i + 1]))


@backends
def test_copies_and_pickles_answer_for_themselves(where):
    model = trained(where)
    wanted = [model.predict_proba(X[:1]) for _ in range(3)][-1]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal([copied.predict_proba(X[:1]) for _ in range(3)][-1], wanted)
        copied.set_weights([w * 2 for w in copied.get_weights()])
        assert not np.array_equal(copied.predict_proba(X[:1]), wanted)
    np.testing.assert_array_equal(model.predict_proba(X[:1]), wanted)


@backends
def test_bytes_and_models_that_were_never_trained_go_the_long_way(where, long_way):
    untrained = MLP((6, 8, 3), seed=1, backend=where)
    pixels = RNG.integers(0, 256, (40, 6), np.uint8)
    of_pixels = trained(where, x=pixels)
    for _ in range(4):
        untrained.predict(X[:1])
        of_pixels.predict(pixels[:1])
        of_pixels.predict(pixels[:1].astype(np.float32))
    assert len(long_way) == 12
