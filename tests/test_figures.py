"""Metrics get what they need, or are refused before the first step; and one place knows which way each is better."""

import functools
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
from blobs import blobs, small
from compare import assert_same_bits
from sklearn.exceptions import UndefinedMetricWarning

import fastmlp
from fastmlp.engine.metrics import check_metrics, rehearsed


def noisy(rows=200):
    """Return a problem of two classes that nobody learns wholly."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, (x[:, 0] + rng.normal(size=rows) > 0).astype(int)


def two_classes(backend, loss):
    return fastmlp.MLP((4, 8, 2 if loss != "sigmoid_cross_entropy" else 1), loss=loss, backend=backend, seed=0)


PROBABLE = ["roc_auc_score", "average_precision_score", "log_loss", "brier_score_loss"]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_metrics_of_probabilities_are_given_probabilities(backend, loss):
    x, y = noisy()
    model = two_classes(backend, loss)
    history = model.fit(x, y, epochs=3, metrics=PROBABLE, validation_data=(x[:50], y[:50]), verbose=0).history
    for rows, prefix in ((200, ""), (50, "val_")):
        second = model.predict_proba(x[:rows])[:, -1].astype(float)
        for name in PROBABLE:
            expected = getattr(sklearn.metrics, name)(y[:rows], second)
            assert history[prefix + name][-1] == pytest.approx(expected, rel=1e-4), name
    assert model.evaluate(x, y, metrics=PROBABLE)["log_loss"] == pytest.approx(history["log_loss"][-1])


def test_a_scorer_means_its_function_with_its_arguments_and_sign():
    x, y = blobs()
    model = small("numpy")
    model.fit(x, y, epochs=1, verbose=0)
    auc, fbeta = sklearn.metrics.roc_auc_score, functools.partial(sklearn.metrics.fbeta_score, beta=2, average="macro")
    asked = {
        "ovr": "roc_auc_ovr",
        "same": functools.partial(auc, multi_class="ovr"),
        "macro": "f1_macro",
        "negative": "neg_log_loss",
        "loss_of_it": "log_loss",
        "beta": fbeta,
        "scorer": sklearn.metrics.make_scorer(sklearn.metrics.fbeta_score, beta=2, average="macro"),
        "own": lambda y, predicted: np.mean(y == predicted),
    }
    found = model.evaluate(x, y, metrics=asked)
    chances, predicted = model.predict_proba(x).astype(float), model.predict(x)
    chances /= chances.sum(axis=1, keepdims=True)
    assert found["ovr"] == found["same"] == pytest.approx(auc(y, chances, multi_class="ovr"), rel=1e-4)
    assert found["macro"] == sklearn.metrics.f1_score(y, predicted, average="macro")
    assert found["negative"] == -found["loss_of_it"] == pytest.approx(-found["loss"], rel=1e-4)
    assert found["beta"] == found["scorer"] == fbeta(y, predicted)
    assert found["own"] == pytest.approx(found["accuracy"])
    assert list(model.evaluate(x, y, metrics=sklearn.metrics.accuracy_score))[-1] == "accuracy_score"


@pytest.mark.parametrize("loss", ["categorical_hinge", "sigmoid_cross_entropy", "mean_squared_error"])
def test_a_ranking_takes_decision_values_where_there_are_no_probabilities(loss):
    x, y = noisy()
    model = fastmlp.MLP((4, 8, 2 if loss == "categorical_hinge" else 1), loss=loss, backend="numpy", seed=0)
    model.fit(x, y, epochs=5, verbose=0)
    rows = np.stack([model.predictor().outputs(row) for row in x])
    scores = rows[:, -1] - (rows[:, 0] if rows.shape[1] == 2 else 0)
    found = model.evaluate(x, y, metrics=["roc_auc_score"])
    assert found["roc_auc_score"] == pytest.approx(sklearn.metrics.roc_auc_score(y, scores), abs=1e-3)
    if loss != "mean_squared_error":
        found = model.evaluate(x, y, metrics=["hinge_loss"])
        assert found["hinge_loss"] == pytest.approx(sklearn.metrics.hinge_loss(y, scores), rel=1e-4)


def test_several_labels_a_row_have_a_probability_each():
    x, _ = blobs()
    y = x[:, :2] > x[:, :2].mean(axis=0)
    model = fastmlp.MLP((6, 8, 2), loss="sigmoid_cross_entropy", backend="numpy", seed=0)
    found = model.evaluate(x, y, metrics=["roc_auc_score", "f1_macro"])
    assert found["roc_auc_score"] == pytest.approx(sklearn.metrics.roc_auc_score(y, model.predict_proba(x)), abs=1e-3)
    assert found["f1_macro"] == sklearn.metrics.f1_score(y, model.predict(x), average="macro")


def test_validation_rows_may_lack_a_class():
    x, y = blobs()
    some = y < 2
    history = small("numpy").fit(x, y, epochs=1, metrics=["log_loss"], validation_data=(x[some], y[some]), verbose=0)
    assert history.history["val_log_loss"] == pytest.approx(history.history["val_loss"], rel=1e-4)


IMPOSSIBLE = {
    "'f1_score' cannot be computed: Target is multiclass.*there are f1, f1_macro": {"metrics": ["f1_score"]},
    "'<lambda>' cannot be computed: Target is multicl": {"metrics": [lambda y, p: sklearn.metrics.f1_score(y, p)]},
    "'roc_auc_score' cannot be computed: .*roc_auc_ovr": {"metrics": ["roc_auc_score"]},
    "'confusion_matrix' cannot .* it gives ndarray of shape .3, 3., not a number": {"metrics": ["confusion_matrix"]},
    "no function of targets and predictions 'auc'": {"metrics": ["auc"]},
    "no function of targets and predictions 'make_scorer'": {"metrics": ["make_scorer"]},
    "a figure called 'accuracy' is there anyway": {"metrics": ["accuracy"]},
    "a figure called 'val_x' is there": {"metrics": {"val_x": "f1_macro"}},
    "two are called 'f1_score'": {
        "metrics": ["f1_score", functools.partial(sklearn.metrics.f1_score, average="micro")]
    },
    "metrics must be a sequence": {"metrics": 3},
    "each must be a name or a callable": {"metrics": [3]},
    "'ten' cannot be computed: division by zero": {"metrics": {"ten": lambda y, p: 10 / 0}},
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_metric_that_cannot_be_computed_is_refused_before_the_first_step(message, part):
    x, y = blobs()
    model = small("numpy")
    before = model.get_weights()
    validation = {"validation_data": (x, y)} if part == "validation" else {}
    with pytest.raises((ValueError, TypeError), match=f"metrics.*{message}" if "must" not in message else message):
        model.fit(x, y, epochs=1, verbose=0, **validation, **IMPOSSIBLE[message])
    assert model.steps == 0 and model._learner.state.optimizer is None
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    with pytest.raises((ValueError, TypeError), match=message):
        model.evaluate(x, y, **IMPOSSIBLE[message])


@pytest.mark.parametrize(("loss", "units"), [("categorical_hinge", 3), ("mean_squared_error", 1)])
def test_a_loss_without_probabilities_refuses_metrics_of_them(loss, units):
    x, y = blobs()
    model = fastmlp.MLP((6, 4, units), loss=loss, backend="numpy", seed=0)
    with pytest.raises(
        ValueError, match=f"'log_loss' cannot be computed: it needs probabilities, .* {loss!r} has none"
    ):
        model.fit(x, y, epochs=1, metrics=["log_loss"], verbose=0)
    assert model.steps == 0


UNDEFINED = ["roc_auc_score", "roc_auc", "d2_log_loss_score", "cohen_kappa_score"]


@pytest.mark.parametrize("name", UNDEFINED)
@pytest.mark.parametrize("part", ["train", "validation", "held out"])
def test_a_metric_that_one_class_leaves_undefined_is_refused_before_the_first_step(name, part):
    x = np.random.default_rng(0).normal(size=(40, 4))
    mixed, one = np.arange(40) % 2, np.zeros(40, int)
    y = {"train": one, "validation": mixed, "held out": np.r_[1, one[1:]]}[part]  # its one row of class 1 trains
    options = {
        "train": {},
        "validation": {"validation_data": (x, one)},
        "held out": {"validation_split": 0.2},
    }[part]
    model = fastmlp.MLP((4, 3, 2), backend="numpy", seed=0)
    before = model.get_weights()
    purpose = "train on" if part == "train" else "validate with"
    message = rf"metrics: '{name}' is \S+ for the targets to {purpose} \(all are of class 0.*; leave it out"
    message += rf"|metrics: '{name}' cannot be computed: y_true contains only one label"  # scikit-learn 1.6's own words
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, epochs=1, metrics=[name], verbose=0, **options)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    model.fit(x, mixed, epochs=1, metrics=[name], verbose=0, validation_data=(x, mixed))


def test_a_score_of_one_row_is_refused_before_the_first_step():
    x = np.random.default_rng(0).normal(size=(40, 4))
    model = fastmlp.MLP((4, 3, 1), loss="mean_squared_error", backend="numpy", seed=0)
    with pytest.raises(ValueError, match=r"'r2_score' is nan for the targets to validate with .R.2 score is not well"):
        model.fit(x, x[:, 0], epochs=1, metrics="r2_score", validation_data=(x[:1], x[:1, 0]), verbose=0)


def test_what_scikit_learn_warns_of_is_said_before_the_first_step_with_the_name_of_the_metric():
    x, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2
    model = fastmlp.MLP((4, 3, 2), backend="numpy", seed=0)
    with pytest.warns(UserWarning, match="^metrics: 'recall_score' for the targets to validate with: Recall is ill"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UndefinedMetricWarning)  # of each epoch
            model.fit(x, y, epochs=1, metrics="recall_score", validation_data=(x, np.zeros(40, int)), verbose=0)


def test_a_metric_that_fails_on_some_answers_is_nan_and_said_and_no_end_of_a_run():
    x, _ = blobs()
    model = fastmlp.MLP((6, 4, 1), loss="mean_squared_error", backend="numpy", seed=0)
    model.set_weights([np.zeros((6, 4)), np.zeros(4), np.zeros((4, 1)), [-5.0]])
    metrics = ["mean_squared_log_error"]
    with pytest.warns(UserWarning, match="'mean_squared_log_error' cannot be computed.*It is nan in this epoch"):
        history = model.fit(x, np.abs(x[:, 0]), epochs=1, metrics=metrics, verbose=0)
    with pytest.raises(ValueError, match="'mean_squared_log_error' cannot be computed"):
        model.evaluate(x, np.abs(x[:, 0]), metrics=metrics)
    assert math.isnan(history.history["mean_squared_log_error"][0])


@pytest.mark.parametrize("loss", fastmlp.loss_names())
def test_what_is_rehearsed_suits_every_loss(loss):
    labels = loss in ("softmax_cross_entropy", "categorical_hinge")
    spec = fastmlp.MLP((2, 3 if labels else 1), loss=loss, backend="numpy", seed=0).spec
    y = np.array([0, 1, 1, 0, 1]) if labels or loss == "sigmoid_cross_entropy" else np.array([0.0, 3, 400, 2, 1])
    data = fastmlp.MLP((2, 3 if labels else 1), loss=loss, backend="numpy", seed=0)._learner.data(np.eye(5, 2), y)
    asked = ["accuracy_score", "f1_macro"] if y.dtype.kind == "i" else ["r2_score", "mean_poisson_deviance"]
    assert list(rehearsed(check_metrics(asked, spec), data, None)) == asked


# --- which way is better --------------------------------------------------------------------------------------------

LOWER = ["loss", "mean_absolute_error", "max_error", "log_loss", "hinge_loss", "mean_pinball_loss", "zero_one_loss"]
HIGHER = ["accuracy", "r2_score", "roc_auc_score", "neg_mean_absolute_error", "f1_macro", "cohen_kappa_score"]


@pytest.mark.parametrize("prefix", ["", "val_"])
@pytest.mark.parametrize(("name", "better"), [(n, -1) for n in LOWER] + [(n, 1) for n in HIGHER])
def test_every_known_figure_has_one_direction_for_all(prefix, name, better):
    monitor, values = prefix + name, [0.5, 0.5 + 0.1 * better, 0.5, 0.5]
    for mode, sign in (("auto", 1), ("max" if better > 0 else "min", 1), ("min" if better > 0 else "max", -1)):
        stopping = fastmlp.EarlyStopping(monitor, mode=mode, restore_best=False)
        schedule = fastmlp.ReduceOnPlateau(1.0, factor=0.5, patience=0, monitor=monitor, mode=mode)
        memory, scales = {}, []
        for epoch, value in enumerate(values, start=1):
            stopping.on_epoch_end(Epoch(epoch), {monitor: value})
            memory = schedule.observe(memory, {monitor: value})
            scales.append(memory["scale"])
        assert stopping.best_epoch == (2 if sign > 0 else 1)
        assert scales == ([1, 1, 0.5, 0.25] if sign > 0 else [1, 0.5, 0.25, 0.125])


class Epoch:
    """What `EarlyStopping` asks of a run."""

    def __init__(self, epoch):
        self.epoch, self.reasons = epoch, []

    def stop(self, reason):
        self.reasons.append(reason)


@pytest.mark.parametrize("kind", [fastmlp.EarlyStopping, lambda **o: fastmlp.ReduceOnPlateau(1e-3, **o)])
@pytest.mark.parametrize("monitor", ["my_metric", "val_my_loss", "learning_rate", "confusion_matrix"])
def test_a_figure_that_nobody_knows_needs_a_mode(kind, monitor):
    with pytest.raises(ValueError, match=rf"\(monitor='{monitor}'\): whether more .* is not known.*add mode='max' or"):
        kind(monitor=monitor)
    kind(monitor=monitor, mode="max")
    with pytest.raises(ValueError, match="mode must be 'auto', 'min' or 'max'; got 'most'"):
        kind(monitor=monitor, mode="most")
    with pytest.raises(TypeError, match="monitor must be the name of a figure"):
        kind(monitor=3)


def test_early_stopping_keeps_the_epoch_of_the_least_error_and_of_the_most_r2():
    x, _ = blobs()
    y = x[:, 0] * 3
    for monitor, best in (("val_mean_absolute_error", np.argmin), ("val_r2_score", np.argmax)):
        model = fastmlp.MLP((6, 8, 1), loss="mean_squared_error", backend="numpy", seed=0)
        stopping = fastmlp.EarlyStopping(monitor, patience=20)
        history = model.fit(
            x,
            y,
            epochs=8,
            metrics=["mean_absolute_error", "r2_score"],
            validation_split=0.2,
            callbacks=[stopping],
            verbose=0,
        )
        assert stopping.best_epoch == 1 + best(history.history[monitor]) > 1


# --- NaN is never the best ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_the_best(mode):
    stopping = fastmlp.EarlyStopping("loss", mode=mode, patience=3, restore_best=False)
    runs = [Epoch(n) for n in range(1, 7)]
    for run, value in zip(runs, [math.nan, 0.5, math.nan, 0.5, 0.5, math.nan], strict=True):
        stopping.on_epoch_end(run, {"loss": value})
    assert (stopping.best, stopping.best_epoch) == (0.5, 2)
    assert runs[4].reasons == ["loss has not improved since epoch 2"]


def test_a_figure_that_stays_nan_stops_a_run_and_leaves_its_weights():
    x, y = blobs()
    nothing = {"nothing": lambda y, p: math.nan}
    stopping = fastmlp.EarlyStopping("nothing", mode="max", patience=3)
    model, twin = small("numpy"), small("numpy")
    history = model.fit(x, y, epochs=9, metrics=nothing, callbacks=[stopping], verbose=0)
    assert history.epochs == 3 and history.stop_reason == "nothing has been nan so far"
    twin.fit(x, y, epochs=3, verbose=0)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        assert_same_bits(a, b)
