"""Weights of rows and classes: what counts as one, which rows they weigh, and that only their ratios matter."""

from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.engine.batches import split_rows


class Series:
    """What matters here of pandas' own: values in an order, each under a key."""

    def __init__(self, values, index):
        self.values, self.index = values, index

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, key):
        return self.values[self.index.index(key)]

    def items(self):
        return zip(self.index, self.values, strict=True)


FIRST_TWO = [3.0, 0.5, 1.0]
SAME = {
    "int": {0: 3, 1: 0.5},
    "bool": {False: 3.0, True: 0.5},
    "numpy bool": {np.False_: 3.0, np.True_: 0.5},
    "float": {0.0: 3.0, 1.0: 0.5},
    "numpy": {np.float32(0): np.float16(3), np.uint8(1): np.float32(0.5)},
    "fraction": {Fraction(0): Fraction(3), Decimal(1): Fraction(1, 2)},
    "proxy": MappingProxyType({0: 3.0, 1: 0.5}),
    "series": Series([0.5, 3.0], index=[1.0, 0.0]),
    "list": [3, 0.5, 1],
    "tuple": (3.0, 0.5, 1.0),
    "array": np.array([3, 0.5, 1], np.float32),
}


ROWS = 60  # two batches, of which the second is a part: what is added up here is no matter of how many there are


def weighed(backend, **options):
    x, y = blobs(ROWS)
    model = small(backend)
    return model.fit(x, y, **{"epochs": 2, "verbose": 0, **options}), model.get_weights()


@pytest.mark.parametrize("kind", SAME)
def test_a_class_is_named_by_any_number_that_equals_it_or_by_its_place(backend, kind):
    _, y = blobs(ROWS)
    _, expected = weighed(backend, sample_weight=np.array(FIRST_TWO)[y])
    _, found = weighed(backend, class_weight=SAME[kind])
    assert_same_bits(found[0], expected[0])
    assert not np.array_equal(found[0], weighed(backend)[1][0])


REFUSED = {
    "there is no class '0'; the classes are 0..2": {"0": 1.0},
    "there is no class 1.5": {1.5: 1.0},
    "there is no class nan": {np.nan: 1.0},
    "there is no class -1": {-1: 1.0},
    "there is no class None": {None: 1.0},
    r"class_weight\[1\] must be a number, got '2'": {1: "2"},
    r"class_weight\[True\] must be a number, got True": {True: True},
    r"class_weight\[2\] must be at least 0 and finite, got -1": [1, 1, -1],
    r"class_weight\[0\] must be at least 0 and finite, got nan": {0: np.nan},
    r"class_weight\[0\] must be a number, got \[1, 2\]": [[1, 2], 1, 1],
    r"class_weight\[1\] must be a number, got masked": np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
    "a factor for each of the 3 classes, got 2": [1, 2],
    "class 1 has more than one factor": Series([1.0, 2.0], index=[1, 1]),
    r"a sequence of 3 factors or 'balanced', got \{1.0\}": {1.0},
    "or 'balanced', got b'abc'": b"abc",
    "or 'balanced', got 3": 3,
    r"got shape \(\)": np.array(3.0),
    r"got shape \(3, 1\)": np.ones((3, 1)),
    "class_weight: the weights of all 200 rows to train on are 0": [0, 0, 0],
    "class_weight: 1e-40 .class 2. is too small beside the largest, 1": {2: 1e-40},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_names_no_class_or_is_no_factor_is_refused_by_name(message):
    x, y = blobs()
    model = small("numpy")
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        model.fit(x, y, epochs=1, class_weight=REFUSED[message], verbose=0)
    assert str(caught.value).startswith("class_weight")
    assert model.steps == 0


def test_a_single_output_has_two_classes():
    x, y = blobs(classes=2)
    found = []
    for options in ({"class_weight": [1, 4]}, {"class_weight": {True: 4}}, {"sample_weight": 1 + 3 * y}):
        model = fastmlp.MLP((6, 4, 1), loss="sigmoid_cross_entropy", backend="numpy", seed=0)
        model.fit(x, y, epochs=1, verbose=0, **options)
        found.append(model.get_weights()[0])
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


@pytest.mark.parametrize("class_weight", [[1, 5, 0], {2: 8}, "balanced"])
def test_the_same_rows_validate_alike_whichever_way_they_were_held_out(backend, class_weight):
    x, y = blobs()
    weights = np.linspace(0.5, 2, 200)
    options = {"epochs": 2, "class_weight": class_weight, "verbose": 0}
    split, given, plain = small(backend), small(backend), small(backend)
    a = split.fit(x, y, sample_weight=weights, validation_split=0.25, **options)
    train, held_out = split_rows(200, 0.25, split.seed, y)
    held = x[held_out], y[held_out], weights[held_out]
    b = given.fit(x[train], y[train], sample_weight=weights[train], validation_data=held, **options)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert a.history[name] == b.history[name]
    assert_same_bits(split.get_weights()[0], given.get_weights()[0])
    assert a.history["val_loss"][-1] == pytest.approx(split.evaluate(*held)["loss"], rel=1e-6)
    plain.fit(x[train], y[train], epochs=2, sample_weight=weights[train], verbose=0)
    assert not np.array_equal(plain.get_weights()[0], split.get_weights()[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e300, 1e39, 1e-42, 1e-46, 1e-300, 5e-324])
@pytest.mark.parametrize("whose", ["row", "class"])
def test_weights_of_any_size_say_what_their_ratios_say(backend, whose, size, dtype):
    x, y = blobs(ROWS)
    expected, model = small(backend, dtype=dtype), small(backend, dtype=dtype)
    before = expected.fit(x, y, epochs=2, verbose=0)
    given = {"sample_weight": np.full(ROWS, size)} if whose == "row" else {"class_weight": [size] * 3}
    history = model.fit(x, y, epochs=2, verbose=0, **given)
    np.testing.assert_allclose(history.history["loss"], before.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], expected.get_weights()[0], rtol=1e-4, atol=1e-5)
    weights = given.get("sample_weight")
    assert model.evaluate(x, y, weights)["loss"] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-5)
    loss, gradients = model.loss_and_gradients(x, y, weights)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)


def test_weights_of_rows_and_classes_may_each_be_of_their_own_size():
    x, y = blobs()
    a, b = small("numpy"), small("numpy")
    weights = np.linspace(1, 2, 200)
    a.fit(x, y, epochs=2, sample_weight=weights * 2.0**900, class_weight=[2.0**900, 2.0**901, 2.0**900], verbose=0)
    b.fit(x, y, epochs=2, sample_weight=weights, class_weight=[1, 2, 1], verbose=0)
    assert_same_bits(a.get_weights()[0], b.get_weights()[0])


@pytest.mark.parametrize("small_one", [1e-42, 1e-45, 1e-60, 1e-300])
def test_a_weight_that_the_type_cannot_hold_beside_the_largest_is_refused_by_row(backend, small_one):
    x, y = blobs(ROWS)
    weights = np.ones(ROWS)
    weights[7] = small_one
    model = small(backend)
    message = "sample_weight: .*e-.* .row 7. is too small beside the largest, 1: float32 cannot hold both"
    for ask in (
        lambda: model.fit(x, y, epochs=1, sample_weight=weights, verbose=0),
        lambda: model.evaluate(x, y, weights),
    ):
        with pytest.raises(fastmlp.DataError, match=message):
            ask()
    small(backend, dtype="float64").fit(x, y, epochs=1, sample_weight=weights, batch_size=1, verbose=0)


def test_ordinary_weights_are_taken_as_they_are():
    from fastmlp.engine.row_weights import in_range

    weights = np.array([0.0, 1e-9, 1.0, 3e9])
    assert in_range(weights, np.dtype("float32"), "w", "row") is weights


@pytest.mark.parametrize("part", ["validate with", "train on"])
def test_a_part_without_weight_is_refused_before_training(backend, part):
    x, y = blobs()
    model, weights = small(backend), np.zeros(200)
    train, held_out = split_rows(200, 0.25, model.seed, y)
    weights[train if part == "validate with" else held_out] = 1
    with pytest.raises(fastmlp.DataError, match=f"sample_weight: the weights of all .*0 rows to {part} are 0"):
        model.fit(x, y, epochs=1, sample_weight=weights, validation_split=0.25, verbose=0)
    assert model.steps == 0
    with pytest.raises(fastmlp.DataError, match="sample_weight of validation_data: all weights are 0"):
        model.fit(x, y, epochs=1, validation_data=(x, y, np.zeros(200)), verbose=0)
    with pytest.raises(fastmlp.DataError, match="sample_weight: all weights are 0"):
        model.evaluate(x, y, np.zeros(200))


def test_a_batch_without_weight_is_no_step(backend):
    x, y = blobs()
    given, fewer = small(backend), small(backend)
    given.fit(x, y, epochs=1, batch_size=100, sample_weight=np.repeat([1.0, 0.0], 100), shuffle=False, verbose=0)
    fewer.fit(x[:100], y[:100], epochs=1, batch_size=100, shuffle=False, verbose=0)
    np.testing.assert_allclose(given.get_weights()[0], fewer.get_weights()[0], rtol=1e-6)


@pytest.mark.parametrize("weights", [np.ones(200) + 1j, np.full(200, "1"), [None] * 200])
def test_weights_that_are_no_real_numbers_are_refused(weights):
    x, y = blobs()
    with pytest.raises(fastmlp.DataError, match="sample_weight must hold real numbers, got dtype"):
        small("numpy").fit(x, y, epochs=1, sample_weight=weights, verbose=0)
