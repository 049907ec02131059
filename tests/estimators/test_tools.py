"""The estimators in scikit-learn's newer tools and in Optuna: searches that halve or prune, metadata, frames."""

import numpy as np
import pytest
import sklearn
from joblib import Parallel, delayed, parallel_backend
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_friedman1
from sklearn.ensemble import AdaBoostRegressor, BaggingRegressor, StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - makes the next one importable
from sklearn.feature_selection import SelectFromModel
from sklearn.inspection import permutation_importance
from sklearn.metrics import get_scorer
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
    learning_curve,
)
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version

from fastmlp import MLPClassifier, MLPRegressor

IRIS = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(IRIS[0])
Y = np.array(["setosa", "versicolor", "virginica"], object)[IRIS[1]]
QUICK = {"epochs": 20, "learning_rate_init": 0.01, "random_state": 0, "backend": "numpy"}


# --- searches ---


@pytest.mark.parametrize("resource", ["n_samples", "epochs"])
def test_a_search_that_halves(resource):
    estimator, more = (
        MLPClassifier(**QUICK),
        {} if resource == "n_samples" else {"max_resources": 20, "min_resources": 5},
    )
    grid = {"hidden_layer_sizes": [(4,), (20,)], "alpha": [1e-4, 1e3]}
    search = HalvingGridSearchCV(estimator, grid, cv=3, factor=2, resource=resource, random_state=0, n_jobs=2, **more)
    assert search.fit(X, Y).score(X, Y) > 0.85
    assert search.best_params_["alpha"] == 1e-4
    assert search.n_iterations_ > 1


def test_a_random_search_draws_layers_and_rates():
    from scipy.stats import loguniform

    drawn = {"hidden_layer_sizes": [(5,), (5, 5)], "learning_rate_init": loguniform(1e-2, 1e-1), "dropout": [0.0, 0.1]}
    search = RandomizedSearchCV(MLPClassifier(**QUICK), drawn, n_iter=3, cv=2, random_state=0)
    assert search.fit(X, Y).best_score_ > 0.8


def test_optuna_prunes_by_partial_fit():
    optuna = pytest.importorskip("optuna", reason="optuna is not installed; pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    train, held_out = np.arange(150) % 3 > 0, np.arange(150) % 3 == 0

    def objective(trial):
        rate = trial.suggest_categorical("learning_rate_init", [0.01, 1e-7])
        estimator = MLPClassifier(**{**QUICK, "epochs": None, "learning_rate_init": rate})
        for epoch in range(15):
            estimator.partial_fit(X[train], Y[train], classes=np.unique(Y))
            trial.report(estimator.score(X[held_out], Y[held_out]), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return estimator.score(X[held_out], Y[held_out])

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=5)
    sampler = optuna.samplers.GridSampler({"learning_rate_init": [0.01, 1e-7]}, seed=0)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)
    study.enqueue_trial({"learning_rate_init": 0.01})
    study.enqueue_trial({"learning_rate_init": 0.01})
    study.optimize(objective, n_trials=4)
    assert study.best_params["learning_rate_init"] == 0.01
    states = [trial.state for trial in study.trials if trial.params["learning_rate_init"] == 1e-7]
    assert optuna.trial.TrialState.PRUNED in states


def test_scores_of_several_kinds_and_curves_of_learning():
    found = cross_validate(
        MLPClassifier(**QUICK), X, Y, cv=3, scoring=["accuracy", "neg_log_loss", "roc_auc_ovr"], return_train_score=True
    )
    assert found["test_accuracy"].min() > 0.85
    assert found["test_neg_log_loss"].min() > -0.5
    sizes, _, scores = learning_curve(MLPClassifier(**QUICK), X, Y, cv=3, train_sizes=[0.5, 1.0], shuffle=True)
    assert len(sizes) == 2
    assert scores[-1].mean() > 0.85
    # a stream, as exploit_incremental_learning asks for
    incremental = learning_curve(
        MLPClassifier(**QUICK), X, Y, cv=3, train_sizes=[0.5, 1.0], exploit_incremental_learning=True, shuffle=True
    )
    assert np.isfinite(incremental[2]).all()


# --- metadata ---


@pytest.fixture
def routed():
    """Metadata routing, for one test."""
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_weights_of_rows_are_routed_through_a_pipeline_and_a_search(kind):
    y = Y if kind is MLPClassifier else X[:, 0]
    weights = np.where(IRIS[1] == 0, 1.0, 1e-3)
    estimator = kind(**QUICK).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), estimator)
    alone = kind(**QUICK).fit(StandardScaler().fit_transform(X), y, sample_weight=weights)
    pipeline.fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(pipeline[-1].coefs_[0], alone.coefs_[0])
    grid = {f"{kind.__name__.lower()}__alpha": [1e-4, 1e-2]}
    scorer = get_scorer("accuracy" if kind is MLPClassifier else "r2").set_score_request(sample_weight=True)
    search = GridSearchCV(pipeline, grid, cv=3, scoring=scorer).fit(X, y, sample_weight=weights)
    best = search.best_estimator_[-1]
    again = kind(**QUICK).set_params(alpha=best.alpha).fit(StandardScaler().fit_transform(X), y, sample_weight=weights)
    np.testing.assert_array_equal(best.coefs_[0], again.coefs_[0])
    assert not np.array_equal(best.coefs_[0], kind(**QUICK).set_params(alpha=best.alpha).fit(X, y).coefs_[0])


@pytest.mark.usefixtures("routed")
def test_rows_to_validate_with_are_routed_too():
    estimator = MLPClassifier(**QUICK).set_fit_request(X_val=True, y_val=True)
    chain = make_pipeline(estimator).fit(X, Y, X_val=X[::3], y_val=Y[::3])
    assert len(chain[-1].validation_scores_) == 20


@pytest.mark.usefixtures("routed")
def test_partial_fit_takes_routed_metadata():
    estimator = MLPClassifier(**QUICK).set_partial_fit_request(sample_weight=True, classes=True)
    tool = MultiOutputClassifier(MLPClassifier(**QUICK).set_fit_request(sample_weight=True))
    both = np.column_stack([IRIS[1] > 0, IRIS[1] > 1]).astype(int)
    assert tool.fit(X, both, sample_weight=np.ones(150)).score(X, both) > 0.8
    assert estimator.get_metadata_routing().partial_fit.requests["sample_weight"] is True


# --- frames before, and other tools ---


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_step_that_gives_frames_gives_names(library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**QUICK)).set_output(transform=library)
    pipeline.fit(X, Y)
    assert list(pipeline[-1].feature_names_in_) == ["x0", "x1", "x2", "x3"]
    assert pipeline.score(X, Y) > 0.85
    np.testing.assert_array_equal(
        pipeline[-1].coefs_[0], make_pipeline(StandardScaler(), MLPClassifier(**QUICK)).fit(X, Y)[-1].coefs_[0]
    )


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.8"), reason="scikit-learn has it since 1.8")
def test_calibration_by_temperature():
    for y in (Y, IRIS[1] > 0):
        tool = CalibratedClassifierCV(MLPClassifier(**QUICK), method="temperature", cv=3, ensemble=False).fit(X, y)
        assert tool.score(X, y) > 0.85
        np.testing.assert_allclose(tool.predict_proba(X).sum(axis=1), 1, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("tool", [BaggingRegressor, AdaBoostRegressor])
def test_ensembles_of_values(tool):
    x, y = make_friedman1(200, random_state=0)
    y = (y - y.mean()) / y.std()
    assert tool(MLPRegressor(**QUICK), n_estimators=3, random_state=0).fit(x, y).score(x, y) > 0.5


def test_stacks_chains_and_importances():
    stack = StackingClassifier([("a", MLPClassifier(**QUICK))], MLPClassifier(**QUICK), cv=2)
    assert stack.fit(X, Y).score(X, Y) > 0.8
    both = np.column_stack([IRIS[1] > 0, IRIS[1] > 1]).astype(int)
    assert ClassifierChain(MLPClassifier(**QUICK)).fit(X, both).score(X, both) > 0.8
    found = permutation_importance(MLPRegressor(**QUICK).fit(X, X[:, 2]), X, X[:, 2], n_repeats=2, random_state=0)
    assert found.importances_mean.argmax() == 2
    chosen = SelectFromModel(
        MLPClassifier(**QUICK), importance_getter=lambda e: np.abs(e.coefs_[0]).sum(axis=1), max_features=2
    )
    assert chosen.fit_transform(X, Y).shape == (150, 2)


@pytest.mark.parametrize("limit", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_the_limit_of_threads_of_a_worker_is_kept(limit):
    def threads():
        return MLPClassifier(backend="numba", epochs=1).fit(X, IRIS[1]).model_.backend.threads

    with parallel_backend("loky", inner_max_num_threads=limit):
        found = Parallel(n_jobs=2)(delayed(threads)() for _ in range(2))
    assert max(found) <= limit
