"""Temperature scaling by the classifier itself, against scikit-learn's."""

import copy
import warnings

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

import fastmlp
from fastmlp import MLPClassifier
from fastmlp.estimators.calibration import temperature_of

OVERFITTED = {"epochs": 100, "learning_rate_init": 0.01, "random_state": 0, "backend": "numpy", "batch_size": 32}


def rows(classes, seed=0):
    x, y = make_classification(900, 8, n_informative=4, n_classes=classes, flip_y=0.2, random_state=seed)
    x = (x - x.mean(0)) / x.std(0)
    return train_test_split(x, np.array(["b", "c", "a"])[y], test_size=400, random_state=0)


def theirs(logits, labels, weights=None):
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn has temperature scaling since 1.8")
    return 1 / float(calibration._TemperatureScaling().fit(logits, labels, weights).beta_)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}], ids=str)
def test_probabilities_of_an_overfitted_network_get_better(classes, options):
    x, x_test, y, y_test = rows(classes)
    options = {**OVERFITTED, **options}
    if "solver" in options:
        options |= {"epochs": None, "max_iter": 100}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = MLPClassifier(calibrate=True, **options).fit(x, y)
    assert estimator.temperature_ > 1
    plain = copy.deepcopy(estimator)
    plain.temperature_ = 1.0
    before, after = (log_loss(y_test, e.predict_proba(x_test)) for e in (plain, estimator))
    assert after < 0.95 * before
    np.testing.assert_array_equal(plain.predict(x_test), estimator.predict(x_test))
    np.testing.assert_allclose(np.exp(estimator.predict_log_proba(x_test)), estimator.predict_proba(x_test), rtol=1e-5)
    logits = estimator.decision_function(x_test)
    np.testing.assert_allclose(logits * estimator.temperature_, plain.decision_function(x_test), rtol=1e-5, atol=1e-5)
    found = softmax(logits, axis=1) if classes > 2 else expit(logits)
    expected = estimator.predict_proba(x_test)
    np.testing.assert_allclose(found, expected if classes > 2 else expected[:, 1], atol=1e-6)


def test_one_temperature_on_every_backend(backend):
    x, _, y, _ = rows(3)
    options = {**OVERFITTED, "epochs": 3, "calibrate": True, "dtype": "float64", "batch_size": 100}
    found = MLPClassifier(**{**options, "backend": backend}).fit(x, y)
    same = MLPClassifier(**options).fit(x, y)
    assert found.temperature_ == pytest.approx(same.temperature_, rel=1e-6)
    np.testing.assert_allclose(found.predict_proba(x), same.predict_proba(x), atol=1e-6)
    np.testing.assert_allclose(found.model_.predict_proba(x), same.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize(("weighted", "stops"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_is_scikit_learns_on_the_same_logits(classes, weighted, stops):
    x, held, y, y_held = rows(classes)
    weights = np.random.default_rng(0).integers(0, 4, len(held)).astype(float) if weighted else None
    options = {**OVERFITTED, "epochs": 20, "dtype": "float64", "calibrate": True, "early_stopping": stops}
    estimator = MLPClassifier(**options).fit(x, y, X_val=held, y_val=y_held, sample_weight_val=weights)
    logits = estimator.decision_function(held) * estimator.temperature_
    logits = logits if classes > 2 else np.column_stack([np.zeros(len(held)), logits])
    labels = np.searchsorted(estimator.classes_, y_held)
    assert estimator.temperature_ == pytest.approx(theirs(logits, labels, weights), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probabilities_are_those_of_their_meta_estimator(classes):
    frozen = pytest.importorskip("sklearn.frozen").FrozenEstimator
    x, held, y, y_held = rows(classes)
    ours = MLPClassifier(calibrate=True, **OVERFITTED).fit(x, y, X_val=held, y_val=y_held)
    plain = MLPClassifier(**OVERFITTED).fit(x, y)
    assert plain.temperature_ == 1
    try:
        them = CalibratedClassifierCV(frozen(plain), method="temperature").fit(held, y_held)
    except ValueError:
        pytest.skip("scikit-learn has temperature scaling since 1.8")
    np.testing.assert_allclose(ours.predict_proba(x), them.predict_proba(x), atol=1e-4)


def test_several_labels_have_one_temperature():
    x, y = make_multilabel_classification(400, 6, n_classes=3, random_state=0)
    x = (x - x.mean(0)) / x.std(0)
    weights = np.arange(100) % 3 + 1.0
    estimator = MLPClassifier(calibrate=True, dtype="float64", **OVERFITTED)
    estimator.fit(x[:300], y[:300], X_val=x[300:], y_val=y[300:], sample_weight_val=weights)
    logits = (estimator.decision_function(x[300:]) * estimator.temperature_).ravel()
    expected = theirs(np.column_stack([0 * logits, logits]), y[300:].ravel(), np.repeat(weights, 3))
    assert estimator.temperature_ == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(estimator.predict_proba(x).ravel(), expit(estimator.decision_function(x)).ravel())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_file_has_the_same_probabilities_and_training_goes_on_from_the_weights_that_trained(classes, tmp_path):
    x, held, y, y_held = rows(classes)
    options = {**OVERFITTED, "epochs": 30, "warm_start": True}
    estimator, plain = MLPClassifier(calibrate=True, **options), MLPClassifier(**options)
    for kind in (estimator, plain):
        kind.fit(x, y, X_val=held, y_val=y_held)
    assert abs(estimator.temperature_ - 1) > 0.1
    estimator.model_.save(tmp_path / "m.safetensors")
    model = fastmlp.load(tmp_path / "m.safetensors")
    expected = estimator.predict_proba(x)
    np.testing.assert_allclose(model.predict_proba(x), expected if classes > 2 else expected[:, 1:], atol=1e-5)
    for kind in (estimator, plain):
        kind.fit(x, y, X_val=held, y_val=y_held)
    for ours, theirs_ in zip(estimator.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs_)


def test_class_weights_are_for_training_alone_whichever_rows_are_held_out():
    """Else held-out rows would be counted by them where they are split off, and not where they are given."""
    x, _, y, _ = rows(2)
    options = {**OVERFITTED, "epochs": 5, "early_stopping": True}
    weights = np.random.default_rng(0).uniform(1, 2, len(x))
    estimator = MLPClassifier(class_weight={"b": 1, "c": 50}, **options).fit(x, y, sample_weight=weights)
    seen = []
    estimator.set_params(scoring=lambda e, x, y, sample_weight=None: seen.append((y, sample_weight)) or 0.0)
    estimator.fit(x, y, sample_weight=weights)
    labels, given = seen[0]
    assert given.max() < 2
    assert set(labels) == {"b", "c"}


def test_rows_that_are_all_right_leave_the_temperature_at_1():
    logits, labels = np.array([[3.0, 1, 0], [0, 2, 1]]), np.array([0, 1])
    with pytest.warns(ConvergenceWarning, match="each of the 2 rows held out is predicted rightly"):
        assert temperature_of(logits, labels, None) == 1
    with pytest.warns(ConvergenceWarning, match="each of the 2 rows held out"):
        assert temperature_of(np.vstack([logits, [[0, 5, 1]]]), np.array([0, 1, 0]), np.array([1.0, 1, 0])) == 1
    assert temperature_of(np.vstack([logits, [[0, 5, 1]]]), np.array([0, 1, 0]), None) > 1


@pytest.mark.parametrize("loss", ["categorical_hinge"])
def test_a_loss_without_probabilities_cannot_be_calibrated(loss):
    x, _, y, _ = rows(3)
    with pytest.raises(ValueError, match="calibrate=True divides the logits of probabilities, and loss="):
        MLPClassifier(loss=loss, calibrate=True, **OVERFITTED).fit(x, y)


def test_partial_fit_holds_no_rows_out():
    x, _, y, _ = rows(3)
    with pytest.raises(ValueError, match="partial_fit does not support calibrate=True, for which rows are held out"):
        MLPClassifier(calibrate=True, **OVERFITTED).partial_fit(x, y, classes=np.unique(y))


@pytest.mark.parametrize("option", [{"early_stopping": True}, {"calibrate": True}], ids=str)
def test_rows_held_out_without_weight_are_refused(option):
    """They ended in a ZeroDivisionError."""
    x, _, y, _ = rows(2)
    weights = np.zeros(len(x))
    weights[:2] = 1
    with pytest.raises(ValueError, match=r"sample_weight: the weights of all 50 rows to validate with are 0 \(valid"):
        MLPClassifier(**OVERFITTED, **option).fit(x, y, sample_weight=weights)


@pytest.mark.parametrize("classes", [2, 3])
def test_rows_held_out_that_are_predicted_worse_than_by_chance_are_told_of(classes):
    x, held, y, _ = rows(classes)
    told = "held out are predicted no better than by chance, .* temperature_ is 22,026, .*; train longer"
    with pytest.warns(ConvergenceWarning, match=told):
        wrong = MLPClassifier(**{**OVERFITTED, "epochs": 30}).fit(x, y).predict(held)
        turned = np.roll(np.unique(y), 1)[np.searchsorted(np.unique(y), wrong)]
        estimator = MLPClassifier(calibrate=True, **{**OVERFITTED, "epochs": 30}).fit(x, y, X_val=held, y_val=turned)
    np.testing.assert_allclose(estimator.predict_proba(held), 1 / classes, atol=1e-2)
