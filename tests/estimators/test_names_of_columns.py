"""An estimator fitted on a data frame judges rows of it by their names, with no word about names that are missing."""

import numpy as np
import pytest

from fastmlp import MLPClassifier, MLPRegressor

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(80, 3))
Y = (X[:, 0] + DRAW.normal(size=80) > 0).astype(int)
QUICK = {"epochs": 3, "learning_rate_init": 0.01, "random_state": 0, "backend": "numpy", "hidden_layer_sizes": 5}


def frame_of(library):
    made = pytest.importorskip(library, reason=f"{library} is not installed; it is no dependency of fastmlp")
    return made.DataFrame(dict(zip("abc", X.T, strict=True)))


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("scoring", [False, True])
@pytest.mark.parametrize("options", [{"early_stopping": True}, {"calibrate": True}, {}])
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_rows_held_out_of_a_frame_are_scored_as_those_of_the_array(kind, options, scoring, library):
    if kind is MLPRegressor and "calibrate" in options:
        options = {"early_stopping": True, "loss": "poisson"}
    options = {**options, "scoring": ("accuracy" if kind is MLPClassifier else "r2") if scoring else None}
    frame, given, same = frame_of(library), {}, {}
    if "early_stopping" not in options and "calibrate" not in options:
        given, same = {"X_val": frame, "y_val": Y}, {"X_val": X, "y_val": Y}
    estimator = kind(**QUICK, **options).fit(frame, Y, **given)
    assert estimator.validation_scores_ == kind(**QUICK, **options).fit(X, Y, **same).validation_scores_


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("given", [False, True])
def test_a_scorer_is_given_rows_of_the_frame(given, library):
    frame, seen = frame_of(library), []

    def score(estimator, x, y):
        seen.append((type(x), len(x), list(x.columns)))
        return estimator.score(x, y)

    estimator = MLPClassifier(scoring=score, early_stopping=not given, **QUICK)
    estimator.fit(frame, Y, **({"X_val": frame, "y_val": Y} if given else {}))
    assert seen == [(type(frame), 80 if given else 8, ["a", "b", "c"])] * 3
