"""scikit-learn's estimators as networks and back: the same predictions, the same bits of weights, or a refusal."""

import re
import subprocess
import sys
import warnings
from itertools import product

import numpy as np
import pytest
import sklearn
from compare import assert_same_bits
from sklearn.datasets import make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor

import fastmlp
from fastmlp.convert import from_sklearn, to_sklearn

X = np.random.default_rng(0).normal(size=(30, 4))
NAMES = np.array(["tulip", "oak", "rose"])


def targets(kind):
    draw = np.random.default_rng(1)
    return {
        "two": draw.permutation(np.arange(30) % 2),
        "two names": NAMES[draw.permutation(np.arange(30) % 2)],
        "three": draw.permutation(np.arange(30) % 3),
        "three names": NAMES[draw.permutation(np.arange(30) % 3)],
        "numbers": np.array([7, -3, 5])[draw.permutation(np.arange(30) % 3)],
        "labels": make_multilabel_classification(30, 4, n_classes=3, random_state=0)[1],
        "value": draw.normal(size=30),
        "values": draw.normal(size=(30, 2)),
        "counts": draw.poisson(3.0, 30),
    }[kind]


def fitted(kind, activation, hidden, dtype=np.float64):
    options = {"hidden_layer_sizes": hidden, "activation": activation, "max_iter": 3, "random_state": 0}
    if kind == "counts":
        options["loss"] = "poisson"
    y = targets(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        cls = MLPRegressor if kind in ("value", "values", "counts") else MLPClassifier
        try:
            return cls(**options).fit(X.astype(dtype), y)
        except TypeError:
            pytest.skip("this scikit-learn has no Poisson loss; 1.7 has")


KINDS = ("two", "two names", "three", "three names", "numbers", "labels", "value", "values", "counts")
NETWORKS = [
    *product(KINDS, ("relu",), ((6,),)),
    *product(("three", "value"), ("identity", "logistic", "tanh"), ((6, 5),)),
    *product(("two", "three names", "values"), ("tanh",), ((), (5, 4, 3))),
]


def hold_equal(estimator, model, x, *, rtol):
    """Hold what an estimator predicts against what a model does; classes by their names."""
    found = model.predict(x)
    if not isinstance(estimator, MLPClassifier):
        np.testing.assert_allclose(estimator.predict(x), found, rtol=rtol, atol=rtol)
        return
    chances = model.predict_proba(x)
    expected = np.hstack([1 - chances, chances]) if chances.shape[1] == 1 else chances
    np.testing.assert_allclose(estimator.predict_proba(x), expected, rtol=rtol, atol=rtol)
    if model.class_names is not None:
        found = np.array(model.class_names)[found]
    assert (estimator.predict(x).astype(found.dtype) == found).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "activation", "hidden"), NETWORKS)
def test_an_estimator_and_its_network_predict_the_same_and_have_the_same_weights(kind, activation, hidden, dtype):
    estimator = fitted(kind, activation, hidden, dtype)
    model = from_sklearn(estimator, backend="numpy", seed=3)
    assert model.dtype == dtype and model.seed == 3
    rtol = 1e-12 if dtype is np.float64 else 1e-5
    hold_equal(estimator, model, X.astype(dtype), rtol=rtol)
    classes = {"classes": estimator.classes_} if kind == "numbers" else {}
    back = to_sklearn(model, **classes)
    hold_equal(back, model, X.astype(dtype), rtol=rtol)
    for a, b in zip(back.coefs_ + back.intercepts_, estimator.coefs_ + estimator.intercepts_, strict=True):
        assert_same_bits(a, b)
    if isinstance(estimator, MLPClassifier):
        assert back.classes_.tolist() == estimator.classes_.tolist()
        assert back.classes_.dtype.kind == estimator.classes_.dtype.kind
    again = from_sklearn(back, backend="numpy")
    assert again.spec == model.spec and again.class_names == model.class_names
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(a, b)


def network(outputs=3, **options):
    options = {"activation": "tanh", "dropout": 0.2, "dtype": "float64", **options}
    return fastmlp.MLP((4, 6, 5, outputs), backend="numpy", seed=0, **options)


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [*product(["sigmoid_cross_entropy", "mean_squared_error"], [1, 2, 3]), *product(["softmax_cross_entropy"], [2, 3])],
)
def test_a_network_as_an_estimator_predicts_the_same_and_goes_on_learning(loss, outputs):
    model = network(outputs, loss=loss)
    estimator = to_sklearn(model)
    hold_equal(estimator, model, X, rtol=1e-12)
    y = estimator.predict(X)
    y = y + 1.0 if loss == "mean_squared_error" else y
    before = estimator.coefs_[0].copy()
    estimator.partial_fit(X, y)
    rate = estimator.learning_rate_init  # each weight moves by that in Adam's first step
    np.testing.assert_allclose(np.abs(estimator.coefs_[0] - before).max(), rate, rtol=1e-3)
    assert not np.shares_memory(estimator.coefs_[0], model.get_weights()[0])


@pytest.mark.parametrize("names", [("a", "b", "c"), ("oak", "rose", "ash"), ("c", "b", "a"), ("10", "9", "2")])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_classes_are_predicted_by_name_whatever_their_order(names, outputs):
    names = names[: max(outputs, 2)]
    model = network(outputs, loss="sigmoid_cross_entropy" if outputs == 1 else "softmax_cross_entropy")
    model.class_names = names
    estimator = to_sklearn(model)
    assert estimator.classes_.tolist() == sorted(names)  # which scorers rely on
    assert (estimator.predict(X) == np.array(names)[model.predict(X)]).all()
    chances = model.predict_proba(X)
    chances = np.hstack([1 - chances, chances]) if outputs == 1 else chances
    np.testing.assert_allclose(estimator.predict_proba(X), chances[:, np.argsort(names)], rtol=1e-12)
    back = from_sklearn(estimator, backend="numpy")
    assert (np.array(back.class_names)[back.predict(X)] == estimator.predict(X)).all()


def test_bytes_are_taken_as_they_are_where_the_estimator_takes_them_so():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4)).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = MLPClassifier((5,), max_iter=3, random_state=0).fit(pixels, targets("three"))
    hold_equal(estimator, from_sklearn(estimator, backend="numpy"), pixels, rtol=1e-6)


def test_a_network_of_pixels_becomes_an_estimator_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4)).astype(np.uint8)
    model = network()
    model.fit(pixels, targets("three"), epochs=1, verbose=0)
    assert model.input_divisor == 255 and network().input_divisor == 1
    hold_equal(to_sklearn(model), model, pixels, rtol=1e-12)


def test_names_of_columns_are_kept():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    model = from_sklearn(MLPRegressor(hidden_layer_sizes=(3,)).partial_fit(frame, targets("value")), backend="numpy")
    assert model.feature_names == ("a", "b", "c", "d")
    np.testing.assert_allclose(to_sklearn(model).predict(frame), model.predict(frame), rtol=1e-12)


def test_names_of_inputs_are_kept():
    model = network()
    model.feature_names = list("abcd")
    estimator = to_sklearn(model)
    assert estimator.feature_names_in_.tolist() == list("abcd")
    assert from_sklearn(estimator, backend="numpy").feature_names == ("a", "b", "c", "d")


def test_nothing_is_drawn_from_the_global_stream():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the one that scikit-learn would draw from
    to_sklearn(network())
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def averaged():
    model = network()
    model.fit(X, targets("three"), epochs=2, optimizer=fastmlp.SGD(0.5, ema=0.9), verbose=0)
    return model


def test_what_predicts_is_what_is_carried_over():
    model = averaged()
    hold_equal(to_sklearn(model), model, X, rtol=1e-12)


REFUSED = [
    (
        lambda: to_sklearn(network(activation="gelu")),
        ValueError,
        "scikit-learn has no counterpart of the activation 'ge",
    ),
    (
        lambda: to_sklearn(network(loss="categorical_hinge")),
        ValueError,
        "no counterpart of the loss 'categorical_hinge'",
    ),
    (
        lambda: to_sklearn(network(1, loss="huber")),
        ValueError,
        "no counterpart of the loss 'huber'; only of 'softmax_cr",
    ),
    (
        lambda: to_sklearn(network(activation=("tanh", "relu"))),
        ValueError,
        "one activation for all hidden.*'relu'",
    ),
    (
        lambda: to_sklearn(network(1, loss="mse", activation=("tanh", "tanh", "sigmoid"))),
        ValueError,
        "identity for values; got .*'sigmoid'",
    ),
    (lambda: to_sklearn(network(), classes=[1, 2]), ValueError, r"classes must be 3 labels that differ, got \[1, 2\]"),
    (lambda: to_sklearn(network(), classes=[1, 2, 2]), ValueError, "classes must be 3 labels that differ"),
    (lambda: to_sklearn(network(), classes="abc"), TypeError, "classes must be a sequence of one label a class"),
    (lambda: to_sklearn(network(1, loss="mse"), classes=[1, 2]), ValueError, "classes are of classifiers"),
    (lambda: to_sklearn(network(loss="bce"), classes=[1, 2, 3]), ValueError, "no names for several labels a row"),
    (
        lambda: to_sklearn("model"),
        TypeError,
        "model must be a fastmlp.MLP, or a fitted fastmlp.MLPClassifier or MLPRegressor, got str",
    ),
    (lambda: from_sklearn(LogisticRegression()), TypeError, "an MLPClassifier or an MLPRegressor .*, got LogisticRegr"),
    (lambda: from_sklearn(MLPClassifier()), NotFittedError, "not fitted yet"),
]


@pytest.mark.parametrize(("call", "error", "said"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_weights_that_are_spoilt_are_refused():
    estimator = fitted("three", "relu", (6,))
    estimator.coefs_[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="weights: W2 must hold finite real numbers"):
        from_sklearn(estimator, backend="numpy")


def test_a_loss_of_ones_own_is_refused():
    fastmlp.register_loss("fourth", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    with pytest.raises(ValueError, match="no counterpart of the loss 'fourth', which is your own"):
        to_sklearn(network(1, loss="fourth"))


def test_a_library_is_imported_when_it_is_asked_for():
    seen = "print(*[m for m in sys.modules if '.' not in m])"
    asked = "fastmlp.convert.to_sklearn(fastmlp.MLP((2, 2), backend='numpy'))"
    code = f"import sys, fastmlp; fastmlp.convert.from_torch; {seen}; {asked}; {seen}"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    assert {"torch", "keras", "onnx", "onnxruntime", "tensorflow", "jax"}.isdisjoint(after)
    assert "sklearn" not in before and "sklearn" in after


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
def test_a_library_that_is_missing_is_told_with_the_cure(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=re.escape(f"{library} cannot be imported (")) as caught:
        getattr(fastmlp.convert, f"to_{library}")(network())
    cure = 'pip install "fastmlp[onnx]"' if library == "onnx" else f"pip install {library}"
    assert cure in str(caught.value)


# --- fastmlp's own estimators ---


def ours(kind, **options):
    """Return a fitted estimator of fastmlp's, and what it learned."""
    cls = fastmlp.MLPRegressor if kind in ("value", "values", "counts") else fastmlp.MLPClassifier
    options |= {"loss": "poisson"} if kind == "counts" else {}
    given = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0, "backend": "numpy", "dtype": "float64"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return cls(**{**given, **options}).fit(X, targets(kind))


def hold_equal_predictions(a, b):
    for name in ("predict", "predict_proba"):
        if hasattr(a, name):
            found, expected = getattr(a, name)(X), getattr(b, name)(X)
            assert found.shape == expected.shape
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
            else:
                assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"early_stopping": True, "alpha": 0.5}, {"solver": "lbfgs"}], ids=str)
def test_an_estimator_of_theirs_becomes_one_of_ours(kind, options):
    theirs = fitted(kind, "tanh", (6,))
    theirs = theirs.__class__(**{**theirs.get_params(), **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            theirs.fit(X, targets(kind))
        except TypeError as e:  # of 1.6 with early_stopping and names of classes
            pytest.skip(f"scikit-learn {sklearn.__version__} itself fails here: {e}")
    found = from_sklearn(theirs, as_estimator=True, backend="numpy")
    assert type(found) is getattr(fastmlp, type(theirs).__name__)
    hold_equal_predictions(found, theirs)
    for name, value in theirs.get_params().items():
        assert getattr(found, name) == value
    told = ("n_iter_", "t_", "loss_", "loss_curve_", "n_features_in_", "n_outputs_", "n_layers_", "out_activation_")
    for name in told:
        assert getattr(found, name, None) == getattr(theirs, name, None), name
    for name in () if "solver" in options else ("validation_loss_curve_", "history_"):
        assert getattr(found, name) is None
    if not options:
        before = found.loss_curve_[-1]
        found.partial_fit(X, targets(kind))
        assert len(found.loss_curve_) == len(theirs.loss_curve_) + 1
        assert found.loss_curve_[-1] < before
    hold_equal_predictions(from_sklearn(to_sklearn(found), as_estimator=True), found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"early_stopping": True}, {"solver": fastmlp.RMSprop(0.01), "alpha": 0.5}], ids=str
)
def test_an_estimator_of_ours_becomes_one_of_theirs(kind, options):
    if kind == "counts":
        fitted(kind, "tanh", (6,))  # skips where there is none
    estimator = ours(kind, **options)
    found = to_sklearn(estimator)
    assert type(found) is (MLPRegressor if kind in ("value", "values", "counts") else MLPClassifier)
    hold_equal_predictions(found, estimator)
    assert found.alpha == estimator.alpha
    assert found.early_stopping == estimator.early_stopping
    assert found.solver == "adam", "an optimizer of fastmlp's has no counterpart"
    assert found.loss_curve_ == estimator.loss_curve_
    if not options:
        found.partial_fit(X, targets(kind))
        assert len(found.loss_curve_) == 4


@pytest.mark.parametrize("kind", ["two names", "numbers"])
def test_the_temperature_goes_along(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = ours(kind, calibrate=True)
    estimator.temperature_ = 3.0
    hold_equal_predictions(to_sklearn(estimator), estimator)


def test_frames_names_and_what_is_refused():
    estimator = ours("numbers")
    with pytest.raises(ValueError, match="an estimator has its own classes_; leave classes out"):
        to_sklearn(estimator, classes=[1, 2, 3])
    with pytest.raises(TypeError, match="got MLPClassifier of fastmlp, whose network is its model_"):
        from_sklearn(estimator)
    with pytest.raises(ValueError, match="seed=3 is of a network; an estimator has random_state"):
        from_sklearn(fitted("two", "tanh", (6,)), as_estimator=True, seed=3)
    with pytest.raises(TypeError, match="as_estimator must be True or False, got 'yes'"):
        from_sklearn(fitted("two", "tanh", (6,)), as_estimator="yes")
    with pytest.raises(NotFittedError):
        to_sklearn(fastmlp.MLPClassifier())
