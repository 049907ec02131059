"""scikit-learn's checks of any estimator."""

import warnings
from unittest import SkipTest

import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator


def hold_the_checks(estimator, refused=lambda name, error: False, least=50):
    """Run all checks to the end, but for what needs pandas or an array library; some may be `refused`."""
    passed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        for checked, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            try:
                check(checked)
                passed += 1
            except (pytest.skip.Exception, SkipTest):
                pass
            except Exception as error:
                if not refused(name, error):
                    raise AssertionError(name) from error
    assert passed >= least
