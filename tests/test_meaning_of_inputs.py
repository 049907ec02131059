"""Inputs mean the same whatever type they come in: bytes and numbers, masked values, data frames, columns of labels."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.errors import DataError, FileFormatError
from fastmlp.files import safetensors

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (100, 6), np.uint8)
LABELS = RNG.integers(0, 3, 100)
ONE_HOT = np.eye(6, dtype=np.uint8)[RNG.integers(0, 6, 100)]


def trained(backend, x=PIXELS, **options):
    model = small(backend)
    model.fit(x, LABELS, epochs=2, verbose=0, **options)
    return model


def summary(model):
    lines = []
    model.summary(lines.append)
    return lines


# --- Bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "int8", "int64", "float32", "float64"])
def test_ones_and_zeros_train_to_the_same_bits_in_every_type(backend, kind):
    a, b = trained(backend, ONE_HOT, validation_split=0.2), trained(backend, ONE_HOT.astype(kind), validation_split=0.2)
    assert_same_bits(a.get_weights()[0], b.get_weights()[0])
    assert_same_bits(a.predict_proba(ONE_HOT), a.predict_proba(ONE_HOT.astype(kind)))
    assert_same_bits(a.predictor().outputs(ONE_HOT[0]), a.predictor().outputs(ONE_HOT[0].astype(kind)))
    untrained = small(backend)
    assert_same_bits(untrained.predict_proba(ONE_HOT), untrained.predict_proba(ONE_HOT.astype(kind)))


@pytest.mark.parametrize("kind", ["float16", "longdouble", ">f8"])
def test_inputs_targets_and_weights_of_rarer_types_are_those_of_float64(backend, kind):
    """Of which a GPU has not each: the first fit, what it is held against, and all that is asked of the model."""
    x, y = RNG.integers(-8, 8, (60, 6)) / 4, RNG.integers(-8, 8, (60, 3)) / 4
    weights = RNG.integers(1, 8, 60) / 4
    found = []
    for given in (kind, "float64"):
        model, rows = small(backend, loss="mse"), [a.astype(given) for a in (x, y, weights)]
        validation = tuple(a[:20] for a in rows)
        history = model.fit(*rows[:2], epochs=2, sample_weight=rows[2], validation_data=validation, verbose=0).history
        del history["epoch_seconds"]
        asked = model.evaluate(*rows), model.predict(rows[0]).tolist()
        found.append((history, *asked, model.predictor().outputs(rows[0][0]).tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["int16", "int64", "float32", "float64", "list"])
def test_a_model_trained_on_bytes_divides_every_type(backend, kind):
    model = trained(backend)
    other = PIXELS.tolist() if kind == "list" else PIXELS.astype(kind)
    expected = model.predict_proba(PIXELS)
    assert_same_bits(model.predict_proba(other), expected)
    assert_same_bits(model.predictor().outputs(other[3]), model.predictor().outputs(PIXELS[3]))
    assert model.evaluate(other, LABELS) == model.evaluate(PIXELS, LABELS)
    again = copy.deepcopy(model)
    model.fit(other, LABELS, epochs=1, validation_data=(other, LABELS), verbose=0)
    again.fit(PIXELS, LABELS, epochs=1, validation_data=(PIXELS, LABELS), verbose=0)
    assert_same_bits(model.get_weights()[0], again.get_weights()[0])


def test_validation_data_of_the_first_fit_are_scaled_as_what_trains(backend):
    a, b = small(backend), small(backend)
    first = a.fit(PIXELS, LABELS, epochs=1, validation_data=(PIXELS.astype(float), LABELS), verbose=0)
    second = b.fit(PIXELS, LABELS, epochs=1, validation_data=(PIXELS, LABELS), verbose=0)
    assert first.history["val_loss"] == second.history["val_loss"]


def test_a_model_trained_on_numbers_takes_bytes_as_they_are(backend):
    model = trained(backend, PIXELS.astype(np.int64))
    for x in (PIXELS, PIXELS // 2, PIXELS // 128):
        assert_same_bits(model.predict_proba(x), model.predict_proba(x.astype(np.int64)))
        assert_same_bits(model.predictor().outputs(x[0]), model.predictor().outputs(x[0].astype(np.int64)))


def test_the_scale_is_kept_by_files_copies_and_pickles_and_said(tmp_path):
    model = trained("numpy")
    model.save(tmp_path / "a.safetensors")
    numbers, expected = PIXELS.astype(np.float64), model.predict_proba(PIXELS)
    for same in (fastmlp.load(tmp_path / "a.safetensors", "numpy"), copy.deepcopy(model)):
        assert_same_bits(same.predict_proba(numbers), expected)
        assert "inputs divided by 255, whatever their type" in summary(same)
    assert_same_bits(pickle.loads(pickle.dumps(model)).predict_proba(numbers), expected)
    assert "inputs as they are, whatever their type" in summary(trained("numpy", PIXELS / 255))
    assert any("the first fit settles which" in line for line in summary(small("numpy")))


def test_a_run_on_bytes_goes_on_from_its_checkpoint_with_numbers(tmp_path):
    whole = small("numpy")
    whole.fit(PIXELS, LABELS, epochs=4, callbacks=[fastmlp.Checkpoint(tmp_path / "c.safetensors")], verbose=0)

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            if run.epoch == 2:
                run.stop("enough")

    part = small("numpy")
    part.fit(PIXELS, LABELS, epochs=4, callbacks=[Stop(), fastmlp.Checkpoint(tmp_path / "c.safetensors")], verbose=0)
    header, tensors = safetensors.read(tmp_path / "c.safetensors")
    back = fastmlp.load(tmp_path / "c.safetensors", "numpy")
    back.resume(PIXELS.astype(int), LABELS, callbacks=[fastmlp.Checkpoint(tmp_path / "c.safetensors")], verbose=0)
    assert_same_bits(back.get_weights()[0], whole.get_weights()[0])

    del header["inputs"]  # as earlier versions wrote it
    safetensors.write(tmp_path / "old.safetensors", header, tensors)
    back = fastmlp.load(tmp_path / "old.safetensors", "numpy")
    back.resume(PIXELS, LABELS, callbacks=[fastmlp.Checkpoint(tmp_path / "c.safetensors")], verbose=0)
    assert_same_bits(back.predict_proba(PIXELS.astype(int)), whole.predict_proba(PIXELS))


def test_a_fit_that_is_refused_settles_nothing():
    model = small("numpy")
    with pytest.raises(ValueError, match="monitor"):
        model.fit(PIXELS, LABELS, epochs=1, callbacks=[fastmlp.EarlyStopping(monitor="val_loss")], verbose=0)
    assert any("the first fit settles which" in line for line in summary(model))


def test_numbers_of_another_range_than_those_trained_on_are_said():
    on_bytes, on_fractions = trained("numpy"), trained("numpy", PIXELS / 255)
    with pytest.warns(UserWarning, match=r"x has values in 0\.\.1, and the model divides .* pass x \* 255"):
        on_bytes.predict(PIXELS / 255)
    with pytest.warns(UserWarning, match=r"x has values in -300\.\.300, and the model divides"):
        on_bytes.predict([[-300, 300, 0, 0, 0, 0]])
    for x in (PIXELS, PIXELS.astype(np.int64), PIXELS.astype(np.float32)):
        with pytest.warns(UserWarning, match=r"x has values up to 25.*trained on values in 0\.\.1; pass x / 255"):
            on_fractions.predict(x)
    with pytest.warns(UserWarning, match="x of validation_data has values up to 25"):
        small("numpy").fit(PIXELS / 255, LABELS, epochs=1, validation_data=(PIXELS, LABELS), verbose=0)
    validation = PIXELS / 255, LABELS
    for call in (
        lambda: on_bytes.predict(PIXELS / 255),
        lambda: on_bytes.predictor()(PIXELS[0] / 255),
        lambda: on_bytes.evaluate(PIXELS / 255, LABELS),
        lambda: on_bytes.fit(PIXELS / 255, LABELS, epochs=1, verbose=0),
        lambda: on_bytes.fit(PIXELS, LABELS, epochs=1, validation_data=validation, verbose=0),
    ):
        with pytest.warns(UserWarning, match="divides its inputs by 255") as said:
            call()
        assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_bytes.predict(np.zeros((2, 6)))  # a black picture
        on_bytes.predict(PIXELS[:0])
        on_fractions.predict(PIXELS / 200)
        trained("numpy", ONE_HOT).predict(ONE_HOT)


def test_a_scale_that_makes_no_sense_in_a_file_is_refused_and_none_is_no_scale(tmp_path):
    trained("numpy").save(tmp_path / "a.safetensors")
    header, arrays = safetensors.read(tmp_path / "a.safetensors")
    for wrong in ({"divisor": 7, "unit": False}, {"divisor": 255, "unit": 3}, {"divisor": 255}, 255):
        safetensors.write(tmp_path / "b.safetensors", {**header, "inputs": wrong}, arrays)
        with pytest.raises(FileFormatError, match=r"b.safetensors: its description makes no sense"):
            fastmlp.load(tmp_path / "b.safetensors", "numpy")
    del header["inputs"]  # as older files are
    safetensors.write(tmp_path / "b.safetensors", header, arrays)
    assert fastmlp.load(tmp_path / "b.safetensors", "numpy").predict(PIXELS).shape == (100,)


# --- Masked values ----------------------------------------------------------------------------------------


def masked(array, *place):
    mask = np.zeros(array.shape, bool)
    mask[place] = True
    return np.ma.array(array, mask=mask)


def test_masked_values_are_refused_wherever_they_enter():
    x, y = blobs()
    model, weights = small("numpy"), np.ones(len(x))
    calls = {
        "x": lambda: model.fit(masked(x, 7, 2), y, epochs=1, verbose=0),
        "y": lambda: model.fit(x, masked(y, 7), epochs=1, verbose=0),
        "sample_weight": lambda: model.fit(x, y, sample_weight=masked(weights, 7), epochs=1, verbose=0),
        "x of validation_data": lambda: model.fit(x, y, validation_data=(masked(x, 7, 2), y), epochs=1, verbose=0),
        "y of validation_data": lambda: model.fit(x, y, validation_data=(x, masked(y, 7)), epochs=1, verbose=0),
        "weights": lambda: model.set_weights([masked(w, ...) for w in model.get_weights()]),
        "relu_interpolant: x": lambda: fastmlp.approximation.relu_interpolant(masked(np.arange(9.0), 7), np.ones(9)),
        "X": lambda: fastmlp.features.RandomFourierFeatures(3).fit(masked(x, 7, 2)),
    }
    calls |= {f"x {f.__name__}": (lambda f=f: f(masked(x, 7, 2))) for f in (model.predict, model.predict_proba)}
    for name, call in calls.items():
        with pytest.raises(DataError, match=f"^{name.split(' pre')[0]} has masked values, .* the first at "):
            call()
    with pytest.raises(DataError, match=r"^x has masked values, 1 of them, the first at \[2\]; fill them in"):
        model.predictor()(masked(x[0], 2))
    with pytest.raises(DataError, match=r"^x\[1\] has masked values"):
        model.predict([x[0], masked(x[0], 2)])
    with pytest.raises(DataError, match="x has masked values"):
        model.evaluate(masked(x, 7, 2), y)
    with pytest.raises(ValueError, match="an IDX file holds no masked values"):
        fastmlp.datasets.write_idx("a.idx", masked(x, 7, 2))
    model.fit(np.ma.array(x), y, epochs=1, verbose=0)  # nothing is masked


# --- Data frames ------------------------------------------------------------------------------------------


class Frame:
    """What data frames of pandas and polars have in common."""

    def __init__(self, array, columns):
        self.array, self.columns = np.asarray(array), list(columns)

    def __array__(self, dtype=None, copy=None):
        return self.array.astype(dtype or self.array.dtype)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, names):
        return Frame(self.array[:, [self.columns.index(name) for name in names]], names)


def test_columns_of_a_frame_are_taken_by_name(tmp_path):
    x, y = blobs()
    frame = Frame(x, "abcdef")
    turned = frame[list("fbdace")]
    model = small("numpy")
    model.fit(frame, y, epochs=2, validation_data=(turned, y), verbose=0)
    assert model.feature_names == tuple("abcdef")
    expected = model.predict_proba(x)
    assert_same_bits(model.predict_proba(turned), expected)
    assert model.evaluate(turned, y) == model.evaluate(x, y)
    model.save(tmp_path / "a.safetensors")
    assert_same_bits(fastmlp.load(tmp_path / "a.safetensors", "numpy").predict_proba(turned), expected)
    again = copy.deepcopy(model)
    model.fit(turned, y, epochs=1, verbose=0)
    again.fit(frame, y, epochs=1, verbose=0)
    assert_same_bits(model.get_weights()[0], again.get_weights()[0])


def test_a_frame_of_other_columns_is_refused_with_the_cure():
    x, y = blobs()
    model = small("numpy")
    model.fit(Frame(x, "abcdef"), y, epochs=1, verbose=0)
    with pytest.raises(DataError, match=r"got no 'f' and 'g' more; pass x\[list\(model\.feature_names\)\]"):
        model.predict(Frame(x, "abcdeg"))
    with pytest.raises(DataError, match="got 'y' more"):
        model.predict(Frame(np.c_[x, y], "abcdefy"))
    with pytest.raises(DataError, match="x of validation_data must have the columns"):
        model.fit(x, y, epochs=1, validation_data=(Frame(x, "uvwxyz"), y), verbose=0)
    model.feature_names = None
    model.predict(Frame(x, "abcdeg"))


def test_columns_by_number_are_no_names_and_a_refused_fit_keeps_none():
    x, y = blobs()
    model = small("numpy")
    with pytest.raises(ValueError, match="monitor"):
        model.fit(Frame(x, "abcdef"), y, epochs=1, callbacks=[fastmlp.EarlyStopping(monitor="val_loss")], verbose=0)
    assert model.feature_names is None
    model.fit(Frame(x, range(6)), y, epochs=1, verbose=0)
    assert model.feature_names is None


def test_numbered_columns_stand_where_their_numbers_say():
    x, y = blobs()
    model = small("numpy")
    model.fit(Frame(x, range(6)), y, epochs=1, verbose=0)
    turned = Frame(x, range(6))[[3, 0, 5, 1, 2, 4]]
    assert_same_bits(model.predict_proba(turned), model.predict_proba(x))
    again = small("numpy")
    again.fit(turned, y, epochs=1, verbose=0)
    assert_same_bits(again.get_weights()[0], model.get_weights()[0])


def test_columns_named_by_other_numbers_have_names(tmp_path):
    x, y = blobs()
    model, years = small("numpy"), [*range(2001, 2006), np.int64(2006)]
    model.fit(Frame(x, years), y, epochs=1, verbose=0)
    assert model.feature_names == ("2001", "2002", "2003", "2004", "2005", "2006")
    assert_same_bits(model.predict_proba(Frame(x, years)[years[::-1]]), model.predict_proba(x))
    model.save(tmp_path / "m.safetensors")
    assert fastmlp.load(tmp_path / "m.safetensors", "numpy").feature_names == model.feature_names
    with pytest.raises(DataError, match="got no '2006' and '2000' more"):
        model.predict(Frame(x, range(2000, 2006)))


def test_columns_of_one_name_are_refused():
    x, y = blobs()
    with pytest.raises(DataError, match="x must have columns whose names differ, got 'a' more than once; rename them"):
        small("numpy").fit(Frame(x, "abcdea"), y, epochs=1, verbose=0)


# --- Labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "categorical_hinge"])
def test_a_column_of_labels_is_labels(loss):
    x, y = blobs()
    a, b = (fastmlp.MLP((6, 5, 3), loss=loss, backend="numpy", seed=0) for _ in range(2))
    a.fit(x, y, epochs=2, validation_split=0.2, class_weight="balanced", verbose=0)
    b.fit(x, y[:, None], epochs=2, validation_split=0.2, class_weight="balanced", verbose=0)
    assert_same_bits(a.get_weights()[0], b.get_weights()[0])
    assert a.evaluate(x, y) == a.evaluate(x, y.reshape(-1, 1))
    with pytest.raises(DataError, match=r"labels must be in 0\.\.2"):
        a.fit(x, y[:, None] + 1, epochs=1, verbose=0)
