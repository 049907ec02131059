"""What `fastmlp.MLP` refuses: the message names what is wrong and, where there is one, the cure."""

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp

REFUSED = {
    "epochs must be at least 1, got 0": {"epochs": 0},
    "epochs must be an integer, got 1.5": {"epochs": 1.5},
    "batch_size must be at least 1": {"batch_size": 0},
    "verbose must be 0, 1 or 2": {"verbose": 3},
    "did you mean 'adam'": {"optimizer": "adan"},
    r"sample_weight must have shape \(200,\)": {"sample_weight": np.ones(3)},
    "sample_weight must be finite and not negative, got -1.0 in row 7": {
        "sample_weight": np.r_[np.ones(7), -np.ones(193)]
    },
    "all weights are 0": {"sample_weight": np.zeros(200)},
    "there is no class 3": {"class_weight": {3: 1.0}},
    "or 'balanced', got 'even'": {"class_weight": "even"},
    "not both": {"validation_split": 0.5, "validation_data": blobs()},
    r"\(x, y\) or \(x, y, sample_weight\)": {"validation_data": blobs()[0]},
    "x of validation_data must have shape": {"validation_data": (np.zeros((3, 2)), np.zeros(3, int))},
    "validation_split must be at least 0 and below 1": {"validation_split": 1.0},
    "leaves 200 to train on and 0": {"validation_split": 1e-4},
    "no scorer and no function .* 'f3_score'": {"metrics": ["f3_score"]},
    "callbacks must be Callback objects": {"callbacks": [print]},
    "there is no such figure.*give fit validation_data": {"callbacks": [fastmlp.EarlyStopping()]},
    "ReduceOnPlateau.*there is no such figure": {"optimizer": fastmlp.Adam(fastmlp.ReduceOnPlateau(1e-3))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_fit_refuses_what_makes_no_sense_and_changes_nothing(backend, message):
    x, y = blobs()
    model = small(backend)
    before = model.get_weights()
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(x, y, **{"epochs": 1, "verbose": 0, **REFUSED[message]})
    assert model.steps == 0 and model._learner.state.optimizer is None
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)


BAD_DATA = {
    r"x must have shape \(n, 6\), got \(6,\); one example is x.reshape\(1, -1\)": (np.zeros(6), [0]),
    r"reshape it to \(5, -1\)": (np.zeros((5, 2, 3)), np.zeros(5, int)),
    r"the network has 6 inputs; got \(5, 7\)": (np.zeros((5, 7)), np.zeros(5, int)),
    "x has no rows": (np.zeros((0, 6)), np.zeros(0, int)),
    "x has 5 rows and y 4": (np.zeros((5, 6)), np.zeros(4, int)),
    "labels must be in 0..2.*got 3 in row 4": (np.zeros((5, 6)), [0, 1, 2, 0, 3]),
    "pass y.astype": (np.zeros((2, 6)), [0.0, 1.0]),
    "number them first": (np.zeros((2, 6)), ["a", "b"]),
    r"shape \(n, 3\), one column an output; got \(2, 2\)": (np.zeros((2, 6)), np.zeros((2, 2))),
    "rows of probabilities": (np.zeros((2, 6)), [[0.5, 0.5, 0.5], [1, 0, 0]]),
    "must hold real numbers, got dtype complex128": (np.zeros((2, 6), complex), [0, 1]),
    "got dtype object": (np.full((2, 6), None), [0, 1]),
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_data_that_does_not_fit_is_refused_by_name_and_cure(backend, message):
    with pytest.raises(fastmlp.DataError, match=message):
        small(backend).fit(*BAD_DATA[message], epochs=1, verbose=0)


BAD_MODELS = {
    "at least the inputs and the outputs": {"units": (3,)},
    r"units\[1\] must be at least 1, got 0": {"units": (3, 0, 2)},
    r"units\[1\] must be an integer, got 2.5": {"units": (3, 2.5, 2)},
    "did you mean 'relu'": {"activation": "rellu"},
    "activation needs one name for all hidden layers": {"activation": ("relu",) * 3},
    "the last activation must be 'identity'": {"activation": ("relu", "relu")},
    "did you mean 'huber'": {"loss": "hubert"},
    "at least 2; got 1": {"units": (3, 1)},
    "dropout must be at least 0 and below 1, got 1.0": {"dropout": 1.0},
    "dropout needs one rate for all hidden layers or 2 of them": {"dropout": (0.1, 0.2, 0.3)},
    "l2 must be at least 0 and finite, got -1": {"l2": -1},
    "max_norm must be above 0": {"max_norm": 0},
    "initializer 'hee' is not known": {"initializer": "hee"},
    "dtype must be 'float32' or 'float64'": {"dtype": "float16"},
    "seed must be in 0..2": {"seed": -1},
    "seed must be an integer, or None; got 1.5": {"seed": 1.5},
    "backend 'torch' is not known": {"backend": "torch"},
    "label_smoothing must be at least 0 and below 1": {"loss": "softmax_cross_entropy", "_smoothing": 1.0},
}


@pytest.mark.parametrize("message", BAD_MODELS)
def test_networks_that_make_no_sense_are_refused(message):
    options = dict(BAD_MODELS[message])
    with pytest.raises((ValueError, TypeError), match=message):
        if "_smoothing" in options:
            fastmlp.SoftmaxCrossEntropy(label_smoothing=options["_smoothing"])
        fastmlp.MLP(options.pop("units", (3, 4, 2)), **{"backend": "numpy", **options})


def test_a_typo_in_an_option_is_a_type_error(backend):
    with pytest.raises(TypeError, match="hidden_layers"):
        fastmlp.MLP((3, 2), hidden_layers=3)
    with pytest.raises(TypeError):
        fastmlp.get_backend("numpy", threads=2)


def test_class_names_must_be_as_many_as_classes(backend):
    model = small(backend)
    with pytest.raises(ValueError, match="needs 3 names"):
        model.class_names = ("a", "b")
    model.class_names = ["x", "y", "z"]
    assert model.class_names == ("x", "y", "z")
