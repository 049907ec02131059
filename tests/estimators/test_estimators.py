"""The estimators on every backend, with fastmlp's own parameters, and in scikit-learn's tools."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
from compare import assert_same_bits
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris, make_friedman1
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.backends import registry

IRIS = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(IRIS[0])
NAMES = np.array(["setosa", "versicolor", "virginica"], object)[IRIS[1]]
QUICK = {"epochs": 30, "learning_rate_init": 0.01, "random_state": 0}


def classifier(**options):
    return MLPClassifier(**{"backend": "numpy", **QUICK, **options})


# --- on every backend ---


def test_one_network_on_every_backend(backend):
    found = MLPClassifier(backend=backend, dtype="float64", **QUICK).fit(X, NAMES)
    same = classifier(dtype="float64").fit(X, NAMES)
    np.testing.assert_allclose(found.predict_proba(X), same.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(found.loss_curve_, same.loss_curve_, atol=1e-9)
    assert found.model_.backend is backend
    assert found.score(X, NAMES) > 0.95


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_values_on_every_backend(backend, solver):
    x, y = make_friedman1(100, random_state=0)
    options = {"solver": solver, "dtype": "float64", "alpha": 0.1, "random_state": 0, "max_iter": 10}
    options |= {} if solver == "lbfgs" else {"epochs": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found, same = (MLPRegressor(backend=b, **options).fit(x, y) for b in (backend, "numpy"))
    np.testing.assert_allclose(found.predict(x), same.predict(x), rtol=1e-6)


# --- what is asked for and scikit-learn refuses ---


def test_class_weights_are_weights_of_rows():
    factors = {"setosa": 1, "versicolor": 3, "virginica": 0.5}
    a = classifier(class_weight=factors).fit(X, NAMES)
    b = classifier().fit(X, NAMES, sample_weight=[factors[name] for name in NAMES])
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    kept = X[:120], NAMES[:120]
    balanced = classifier(class_weight="balanced").fit(*kept)
    assert not np.array_equal(balanced.predict_proba(X), classifier().fit(*kept).predict_proba(X))


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.2},
        {"label_smoothing": 0.1},
        {"weight_decay": 0.1},
        {"max_norm": 0.5},
        {"clip_norm": 0.01},
        {"ema": 0.9},
        {"initializer": "he_normal"},
        {"schedule": fastmlp.Cosine(0.01)},
        {"activation": ("tanh",)},
        {"activation": "gelu"},
        {"solver": fastmlp.RMSprop(0.01)},
        {"loss": "categorical_hinge"},
        {"alpha": 1.0},
        {"solver": "sgd"},
        {"solver": "sgd", "clip_norm": 0.5},
    ],
    ids=str,
)
def test_each_option_changes_what_is_trained(options):
    plain, other = classifier().fit(X, NAMES), classifier(**options).fit(X, NAMES)
    assert not np.array_equal(plain.coefs_[0], other.coefs_[0])
    assert other.score(X, NAMES) > 0.6


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize(
    "option", [{"weight_decay": 0.5}, {"clip_norm": 0.1}, {"schedule": fastmlp.Cosine(0.01, 0.001)}]
)
def test_stages_of_a_step_mean_what_they_mean_for_the_loss_that_is_stated(option, solver):
    """Half a squared error summed over outputs, where fastmlp's own is the mean: the factor is in none of them."""
    x, y = make_friedman1(96, random_state=0)
    x, y = x - 0.5, np.column_stack([y, y[::-1], y**0.5]) / 10
    options = {"hidden_layer_sizes": 7, "batch_size": 96, "alpha": 0.0, "learning_rate_init": 0.01, **option}
    estimator = MLPRegressor(backend="numpy", dtype="float64", solver=solver, epochs=1, random_state=0, **options)
    estimator.fit(x, y)
    first = MLPRegressor(backend="numpy", dtype="float64", epochs=1, random_state=0, hidden_layer_sizes=7)
    first.set_params(learning_rate_init=1e-300).fit(x, y)  # the weights before the step
    weights = [a for pair in zip(first.coefs_, first.intercepts_, strict=True) for a in pair]
    model = fastmlp.MLP((10, 7, 3), loss="mean_squared_error", backend="numpy", dtype="float64")
    model.set_weights(weights)
    gradients = [1.5 * g for g in model.loss_and_gradients(x, y)[1]]
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    clip = min(1, option.get("clip_norm", np.inf) / norm)
    rate, decay = 0.01, option.get("weight_decay", 0.0)
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        kept = 1 - rate * decay if i % 2 == 0 else 1
        step = 1.9 * g * clip if solver == "sgd" else g * clip / (np.abs(g * clip) + 1e-8)  # Nesterov's first step
        got = (estimator.coefs_, estimator.intercepts_)[i % 2][i // 2]
        np.testing.assert_allclose(got, kept * w - rate * step, atol=1e-9)


def test_rows_to_validate_with_are_given():
    train, held = slice(0, 150, 2), slice(1, 150, 2)
    estimator = classifier(early_stopping=True, n_iter_no_change=3, epochs=60, scoring="f1_macro")
    estimator.fit(X[train], NAMES[train], X_val=X[held], y_val=NAMES[held])
    assert len(estimator.validation_scores_) == len(estimator.validation_loss_curve_) == estimator.n_iter_ < 60
    assert estimator.best_validation_score_ == max(estimator.validation_scores_)
    # the weights are those of the best epoch
    found = MLPClassifier.score(estimator, X[held], NAMES[held])
    assert found == pytest.approx(estimator.best_validation_score_, abs=0.02)
    watched = classifier().fit(X[train], NAMES[train], X_val=X[held], y_val=NAMES[held], sample_weight_val=np.ones(75))
    np.testing.assert_array_equal(watched.coefs_[0], classifier().fit(X[train], NAMES[train]).coefs_[0])
    assert len(watched.validation_scores_) == 30


def test_training_that_diverges_keeps_the_best_weights_it_had():
    x, y = IRIS
    estimator = MLPRegressor(
        activation="identity", solver="sgd", learning_rate_init=1, early_stopping=True, max_iter=20
    )
    estimator.set_params(random_state=0, backend="numpy")
    with pytest.warns(ConvergenceWarning, match="training diverged, and the weights of the epoch with the best"):
        estimator.fit(x, y)
    assert np.isnan(estimator.validation_scores_[-1])
    assert np.isfinite(estimator.predict(x)).all()
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights.*epoch"):
        estimator.set_params(early_stopping=False).fit(x, y)
    assert np.isfinite(estimator.predict(x)).all(), "a fit that fails leaves the estimator as it was"


def test_epochs_are_as_many_as_asked_for_without_a_warning():
    assert classifier(epochs=40, tol=10.0).fit(X, NAMES).n_iter_ == 40
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(3\)"):
        classifier(epochs=None, max_iter=3).fit(X, NAMES)


def test_a_time_limit_and_callbacks():
    seen = []

    class Watch(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            seen.append((run.model, run.epoch))

    estimator = classifier(epochs=10**6, time_limit=0.05, callbacks=[Watch()]).fit(X, NAMES)
    assert len(seen) == estimator.n_iter_ < 10**6
    assert seen[0] == (estimator, 1)


# --- kinds of data ---


def test_bytes_are_numbers_here():
    """As in scikit-learn, and unlike in `MLP`, which takes them for pixels."""
    x = np.random.default_rng(0).integers(0, 256, (60, 4)).astype(np.uint8)
    a, b = classifier().fit(x, IRIS[1][:60]), classifier().fit(x.astype(float), IRIS[1][:60])
    np.testing.assert_array_equal(a.predict_proba(x), b.predict_proba(x.astype(float)))


@pytest.mark.parametrize("labels", [[3, 5, 9], ["b", "a", "c"], [True, False, True], [-1.0, 1.0, -1.0]])
def test_any_labels(labels):
    y = np.array(labels)[IRIS[1]]
    estimator = classifier().fit(X, y)
    assert estimator.predict(X).dtype == y.dtype
    assert set(estimator.predict(X)) <= set(labels)
    assert estimator.predict_proba(X).shape == (150, len(set(labels)))
    np.testing.assert_allclose(estimator.predict_proba(X).sum(axis=1), 1, atol=1e-6)
    logits = estimator.decision_function(X)
    assert logits.shape == ((150,) if len(set(labels)) == 2 else (150, 3))


def test_files_hold_what_the_estimator_knows(tmp_path):
    estimator = classifier().fit(X, NAMES)
    estimator.model_.save(tmp_path / "m.safetensors")
    model = fastmlp.load(tmp_path / "m.safetensors")
    assert model.class_names == ("setosa", "versicolor", "virginica")
    np.testing.assert_allclose(model.predict_proba(X), estimator.predict_proba(X), atol=1e-6)


# --- scikit-learn's tools ---


def test_copies():
    estimator = classifier(class_weight={"setosa": 2, "versicolor": 1, "virginica": 1}).fit(X, NAMES)
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict_proba(X), estimator.predict_proba(X))
    with pytest.raises(NotFittedError):
        clone(estimator).predict(X)
    np.testing.assert_array_equal(clone(estimator).fit(X, NAMES).coefs_[0], estimator.coefs_[0])
    streamed = pickle.loads(pickle.dumps(estimator.partial_fit(X, NAMES))).partial_fit(X, NAMES)
    np.testing.assert_array_equal(streamed.coefs_[0], estimator.partial_fit(X, NAMES).coefs_[0])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_file_opens_where_the_backend_cannot_run(backend, by_name, monkeypatch, caplog, tmp_path):
    registry._say_replaced.cache_clear()
    y = IRIS[1] > 0
    where, options = backend.name if by_name else backend, {"calibrate": True, "early_stopping": True, "epochs": 5}
    estimator = classifier(backend=where, hidden_layer_sizes=4, **options).fit(X, y)
    path, expected = tmp_path / "e.joblib", estimator.predict_proba(X)
    joblib.dump([make_pipeline(StandardScaler(), estimator), estimator], path)
    dumped = pickle.dumps(estimator)
    monkeypatch.setattr(registry, "_made", {})
    monkeypatch.setitem(registry._BACKENDS, backend.name, ("fastmlp.backends.gone", "Gone"))
    monkeypatch.setattr(registry, "_AUTOMATIC", tuple({"numpy", "numba"} - {backend.name}))
    opened = [pickle.loads(dumped), joblib.load(path)[1], joblib.load(path)[0][-1]]
    for found in opened:
        assert found.model_.backend.name != backend.name
        np.testing.assert_allclose(found.predict_proba(X), expected, atol=1e-5)
        np.testing.assert_array_equal(copy.deepcopy(found).predict_proba(X), found.predict_proba(X))
    assert caplog.text.count("of a pickled model cannot be used here") == 1
    found.set_params(calibrate=False, early_stopping=False).partial_fit(X, y)
    if by_name:
        with pytest.raises(fastmlp.BackendUnavailable, match=f"backend {backend.name!r} cannot run here"):
            clone(found).fit(X, y)
        found.set_params(backend="auto")
    assert clone(found).fit(X, y).model_.backend.name != backend.name


@pytest.mark.filterwarnings("ignore:.*sample_weight.*", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "tool",
    [
        lambda e: make_pipeline(StandardScaler(), e),
        lambda e: GridSearchCV(e, {"alpha": [1e-4, 1e-1], "hidden_layer_sizes": [(10,), (5, 5)]}, cv=2, n_jobs=2),
        lambda e: CalibratedClassifierCV(e, cv=2),
        lambda e: BaggingClassifier(e, n_estimators=2),
        lambda e: AdaBoostClassifier(e, n_estimators=2),
        lambda e: VotingClassifier([("a", e), ("b", e)], voting="soft"),
    ],
    ids=["pipeline", "grid search", "calibration", "bagging", "boosting", "voting"],
)
def test_tools(tool):
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)[:200]
    assert tool(classifier(epochs=10)).fit(x, y[:200]).score(x, y[:200]) > 0.85


def test_scores_and_importances():
    assert cross_val_score(classifier(), X, NAMES, cv=3).min() > 0.85
    found = permutation_importance(classifier().fit(X, NAMES), X, NAMES, n_repeats=2, random_state=0)
    assert found.importances_mean[2:].min() > found.importances_mean[1]


def test_workers_of_a_search_take_one_thread_each():
    from joblib import Parallel, delayed

    def threads():
        return MLPClassifier(backend="numba", epochs=1).fit(X, IRIS[1]).model_.backend.threads

    assert Parallel(n_jobs=2)(delayed(threads)() for _ in range(2)) == [1, 1]


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "lbfgs", "dropout": 0.5}, "dropout=0.5 would do nothing: solver='lbfgs'"),
        ({"solver": "lbfgs", "epochs": 5}, "epochs=5 would do nothing"),
        ({"solver": fastmlp.Adam(), "clip_norm": 1.0}, "clip_norm=1.0 would do nothing: the optimizer"),
        ({"exact": True, "backend": "numba"}, "exact=True needs the backend 'numpy', got 'numba'"),
        ({"exact": True, "dtype": "float32"}, "exact=True computes in float64, got dtype='float32'"),
        ({"exact": True, "n_jobs": 2}, "n_jobs=2 would do nothing"),
        ({"backend": "numpy", "n_jobs": 2}, "n_jobs is for the backend 'numba'"),
        ({"n_jobs": 0}, "n_jobs must be a number of threads"),
        ({"scoring": "accuracy"}, "scoring needs rows to validate with"),
        ({"loss": "mean_squared_error"}, "loss must be one of classes"),
        ({"activation": "rellu"}, "rellu"),
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be > 0"),
        ({"alpha": -1}, "'alpha' parameter of MLPClassifier must be a float in the range"),
        ({"dropout": 1.5}, "dropout"),
        ({"label_smoothing": 0.1, "loss": "categorical_hinge"}, "label_smoothing: it is for loss='log_loss'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, words):
    estimator = MLPClassifier(**{"random_state": 0, "max_iter": 2, **options})
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        estimator.fit(X, NAMES)
    assert not hasattr(estimator, "classes_"), "nothing of a fit that failed is left"


def test_half_of_the_rows_to_validate_with():
    with pytest.raises(ValueError, match="X_val and y_val go together"):
        classifier().fit(X, NAMES, X_val=X)
    with pytest.raises(ValueError, match="sample_weight_val is of rows to validate with: give X_val and y_val too"):
        classifier().fit(X, NAMES, sample_weight_val=np.ones(len(X)))
    with pytest.raises(ValueError, match="has no epochs after which to validate"):
        MLPClassifier(solver="lbfgs").fit(X, NAMES, X_val=X, y_val=NAMES)
    with pytest.raises(ValueError, match="`y` has classes not in"):
        classifier().fit(X, NAMES, X_val=X, y_val=IRIS[1].astype(str))


def test_classes_are_not_balanced_by_the_rows_of_one_call():
    estimator = classifier(class_weight="balanced")
    with pytest.raises(ValueError, match=r"class_weight='balanced' is not supported by partial_fit: .*give a dict"):
        estimator.partial_fit(X, NAMES, classes=np.unique(NAMES))
    assert not hasattr(estimator, "classes_")
    with pytest.raises(ValueError, match="class_weight='balanced' is not supported by partial_fit"):
        estimator.fit(X, NAMES).partial_fit(X, NAMES)
    estimator.set_params(class_weight={NAMES[0]: 2.0}).partial_fit(X, NAMES)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"X_val": np.full(X.shape, np.nan)}, "X_val and y_val, which are X and y here: Input X contains NaN"),
        (
            {"X_val": X[:, :2]},
            "X_val and y_val, which are X and y here: X has 2 features, but MLPClassifier is",
        ),
        ({"y_val": NAMES[1:]}, "X_val and y_val, which are X and y here: Found input variables with inconsistent"),
        ({"sample_weight_val": np.ones(3)}, "sample_weight_val, which is sample_weight here: .*(3,), expected (150,)"),
    ],
)
def test_wrong_rows_to_validate_with_are_refused_by_their_own_name(wrong, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        classifier().fit(X, NAMES, **{"X_val": X, "y_val": NAMES, **wrong})


def test_another_network_is_not_gone_on_with():
    estimator = classifier(warm_start=True).fit(X, NAMES)
    with pytest.raises(ValueError, match=r"hidden_layer_sizes: the network that training goes on with has the units"):
        estimator.set_params(hidden_layer_sizes=7).fit(X, NAMES)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_checkpoint_of_an_estimator_goes_on_as_a_network(tmp_path, solver):
    path, x = tmp_path / "c.safetensors", X.astype(np.float32)
    checkpoint = fastmlp.Checkpoint(path, every_epochs=2)
    estimator = MLPClassifier((5,), solver=solver, epochs=3, random_state=0, callbacks=[checkpoint]).fit(x, IRIS[1])
    model = fastmlp.load(path)
    assert model.resume(x, IRIS[1], verbose=0).history["learning_rate"] == estimator.history_.history["learning_rate"]
    for ours, theirs in zip(model.get_weights()[::2], estimator.coefs_, strict=True):
        assert_same_bits(ours, theirs)


def test_a_checkpoint_of_an_estimator_that_held_out_rows_does_not_go_on_with_others(tmp_path):
    path, x = tmp_path / "c.safetensors", X.astype(np.float32)
    options = {"early_stopping": True, "epochs": 3, "random_state": 0}
    MLPClassifier((5,), callbacks=[fastmlp.Checkpoint(path, every_epochs=2)], **options).fit(x, IRIS[1])
    model = fastmlp.load(path)
    with pytest.raises(fastmlp.DataError, match=r"trained on 135 of these 150 rows; .* use fit to go on"):
        model.resume(x, IRIS[1], validation_data=(x[:15], IRIS[1][:15]), verbose=0)
    model.fit(x, IRIS[1], epochs=1, verbose=0)


@pytest.mark.parametrize(("rule", "cure"), [("invscaling", "InverseScaling"), ("adaptive", "ReduceOnPlateau")])
def test_a_checkpoint_of_rates_that_follow_an_estimators_curves_is_refused_with_the_cure(tmp_path, rule, cure):
    callbacks = [fastmlp.Checkpoint(tmp_path / "c.safetensors")]
    estimator = MLPClassifier(solver="sgd", learning_rate=rule, max_iter=2, callbacks=callbacks)
    with pytest.raises(ValueError, match=rf"learning_rate='{rule}', .* give schedule=fastmlp\.{cure}\("):
        estimator.fit(X, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_exact_runs_are_refused(tmp_path):
    estimator = MLPClassifier(exact=True, max_iter=2, callbacks=[fastmlp.Checkpoint(tmp_path / "c.safetensors")])
    with pytest.raises(ValueError, match=r"callbacks: a checkpoint cannot hold a run with exact=True, .*; leave exact"):
        estimator.fit(X, NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["constant", "adaptive", "invscaling"])
def test_a_schedule_stands_for_the_rule_of_the_rates(rule):
    options = {"solver": "sgd", "schedule": fastmlp.Constant(1e-4), "tol": 0.5, "n_iter_no_change": 3, "max_iter": 90}
    plain, ruled = (classifier(**{**options, "epochs": None, "learning_rate": name}) for name in ("constant", rule))
    assert ruled.fit(X, NAMES).n_iter_ == plain.fit(X, NAMES).n_iter_ < 90
    np.testing.assert_array_equal(ruled.coefs_[0], plain.coefs_[0])


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "changed", [{"backend": "numba"}, {"backend": "numba", "n_jobs": 2}, {"backend": fastmlp.get_backend("numba")}]
)
def test_training_goes_on_where_it_is_asked_to(call, changed):
    found = MLPRegressor(hidden_layer_sizes=(5,), epochs=2, warm_start=True, random_state=0, backend="numpy")
    found.fit(X, IRIS[1])
    getattr(found.set_params(**changed), call)(X, IRIS[1])
    assert found.model_.backend.name == "numba"
    assert found.model_.backend.options == ({"threads": 2} if "n_jobs" in changed else {})
    there = found.model_.to("numpy").backend  # by hand, and no parameter asks for another one
    getattr(found, call)(X, IRIS[1])
    assert found.model_.backend is there


def test_training_does_not_go_on_in_another_type():
    found = MLPRegressor(hidden_layer_sizes=(5,), epochs=2, warm_start=True, random_state=0).fit(X, IRIS[1])
    with pytest.raises(ValueError, match="dtype='float64', and the network that training goes on with is of float32"):
        found.set_params(dtype="float64").fit(X, IRIS[1])
    assert found.set_params(dtype=np.float32).fit(X, IRIS[1]).model_.dtype == np.float32
    assert found.set_params(dtype="float64", warm_start=False).fit(X, IRIS[1]).model_.dtype == np.float64
