"""Names that users of scikit-learn, Keras and PyTorch type: taken where they mean the same, else answered."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.files import safetensors
from fastmlp.formulas import names
from fastmlp.formulas.activations import ACTIVATIONS
from fastmlp.formulas.initializers import INITIALIZERS
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS

HERE = {
    "activation": ACTIVATIONS,
    "loss": LOSSES.types,
    "optimizer": OPTIMIZERS.types,
    "initializer": INITIALIZERS.types,
}
TAKEN = [
    *[("loss", name, "mean_squared_error") for name in ("mse", "MSE", "MeanSquaredError", "MSELoss", "mse_loss")],
    *[("loss", name, "mean_absolute_error") for name in ("mae", "L1Loss", "absolute_error", "mean-absolute-error")],
    *[("loss", name, "huber") for name in ("Huber", "HuberLoss", "SmoothL1Loss")],
    *[
        ("loss", name, "quantile")
        for name in ("Quantile", "pinball", "PinballLoss", "quantile_loss", "mean_pinball_loss")
    ],
    *[("loss", name, "poisson") for name in ("Poisson", "PoissonNLLLoss")],
    *[("loss", name, "sigmoid_cross_entropy") for name in ("binary_crossentropy", "BinaryCrossentropy", "bce")],
    *[("loss", name, "sigmoid_cross_entropy") for name in ("bce_with_logits", "BCEWithLogitsLoss", "BCELoss")],
    *[("loss", name, "softmax_cross_entropy") for name in ("cross_entropy", "CrossEntropyLoss")],
    ("loss", "categorical_crossentropy", "softmax_cross_entropy"),
    ("loss", "sparse_categorical_crossentropy", "softmax_cross_entropy"),
    ("loss", "SparseCategoricalCrossentropy", "softmax_cross_entropy"),
    ("loss", "log_loss", "sigmoid_cross_entropy"),
    *[("activation", name, "identity") for name in ("linear", "Identity")],
    *[("activation", name, "sigmoid") for name in ("logistic", "Sigmoid")],
    *[("activation", name, "silu") for name in ("swish", "SiLU")],
    *[("activation", name, "leaky_relu") for name in ("LeakyReLU", "leaky_relu")],
    ("activation", "ReLU", "relu"),
    *[("optimizer", name, "adam") for name in ("Adam", "ADAM")],
    *[("optimizer", name, "rmsprop") for name in ("RMSprop", "RMSProp", "rms_prop")],
    *[("optimizer", name.upper(), name) for name in ("sgd", "adamw")],
    *[("initializer", name, "glorot_uniform") for name in ("xavier_uniform", "GlorotUniform", "xavier_uniform_")],
    *[("initializer", name, "he_normal") for name in ("kaiming_normal", "HeNormal", "kaiming_normal_")],
    *[("initializer", name, "he_uniform") for name in ("kaiming_uniform",)],
    *[("initializer", name, "glorot_normal") for name in ("xavier_normal",)],
]


def outputs_of(name):
    return 3 if "softmax" in name or "hinge" in name else 1


def made(kind, name):
    """Return the name that a network or its training has of what was asked for."""
    if kind == "optimizer":
        model = fastmlp.MLP((2, 1), loss="mse", backend="numpy", seed=0)
        model.fit(np.eye(2), [0.0, 1.0], epochs=1, optimizer=name, verbose=0)
        return model._learner.state.optimizer.name
    outputs = outputs_of(dict((n, own) for k, n, own in TAKEN if k == "loss").get(name, ""))
    options = {} if kind == "loss" else {"loss": "mse"}
    spec = fastmlp.MLP((2, 4, outputs), **{kind: name}, **options, backend="numpy", seed=0).spec
    return spec.activations[0] if kind == "activation" else getattr(spec, kind).name


@pytest.mark.parametrize(("kind", "name", "own"), TAKEN)
def test_a_name_that_means_the_same_is_taken_and_becomes_our_own(kind, name, own):
    assert made(kind, name) == own


ANSWERED = [
    ("loss", "log_loss", 3, "for one class a row use 'softmax_cross_entropy' .* several labels a row 'sigmoid"),
    ("loss", "squared_error", 1, "use 'mean_squared_error', which is twice scikit-learn's"),
    ("loss", "NLLLoss", 3, "use 'softmax_cross_entropy', which takes the outputs before the log-softmax"),
    ("loss", "hinge", 3, "use 'categorical_hinge' with one output a class"),
    ("loss", "sparse_categorical_crossentrpy", 3, "did you mean 'sparse_categorical_crossentropy', here 'softmax_cr"),
    ("loss", "mean_squarred_error", 1, "did you mean 'mean_squared_error'"),
    ("activation", "softmax", 3, "it is part of the loss 'softmax_cross_entropy'; leave"),
    ("activation", "LogSoftmax", 3, "it is part of the loss 'softmax_cross_entropy'; leave"),
    ("activation", "swich", 3, "did you mean 'swish', here 'silu'"),
    ("initializer", "normal_", 3, r"use Normal\(std=...\), whose default deviation is another"),
    ("initializer", "RandomNormal", 3, r"use Normal\(std=...\), whose default deviation is another"),
    ("initializer", "xavier", 3, "use 'glorot_uniform' or 'glorot_normal'"),
    ("backend", "cuda", 3, "use 'cupy'"),
    ("backend", "cpu", 3, "use 'numba' or 'numpy'"),
]


@pytest.mark.parametrize(("kind", "name", "outputs", "said"), ANSWERED)
def test_a_name_that_means_another_thing_is_answered_by_the_one_to_use(kind, name, outputs, said):
    loss = {} if kind == "loss" else {"loss": "mse"}
    with pytest.raises(ValueError, match=f"{kind} '{name}' is not known; {said}.*There are: ") as caught:
        fastmlp.MLP((2, 4, outputs), **{kind: name, **loss})
    assert "'log_loss'" not in str(caught.value) or name == "log_loss"


@pytest.mark.parametrize(("name", "said"), [("momentum", r"use SGD\(momentum=0.9\)"), ("lbfgs", "it takes all rows")])
def test_an_optimizer_that_is_none_is_answered_too(name, said):
    model = fastmlp.MLP((2, 1), loss="mse", backend="numpy", seed=0)
    with pytest.raises(ValueError, match=f"optimizer '{name}' is not known; {said}"):
        model.fit(np.eye(2), [0.0, 1.0], epochs=1, optimizer=name)


def test_a_name_of_a_figure_is_answered_by_that_of_sklearn():
    model = fastmlp.MLP((2, 1), loss="mse", backend="numpy", seed=0)
    with pytest.raises(ValueError, match="use 'mean_absolute_error', or pass a callable"):
        model.evaluate(np.eye(2), [0.0, 1.0], metrics=["mae"])
    with pytest.raises(ValueError, match="use 'accuracy', or add mode="):
        fastmlp.EarlyStopping("val_acc")


def network(**options):
    return fastmlp.MLP((2, 4, 3), backend="numpy", seed=0, **options)


def fitted(**options):
    return network().fit(np.eye(2), [0, 1], **options)


KEYWORDS = [
    *[(fastmlp.Adam, name, "use learning_rate.") for name in ("lr", "learning_rate_init")],
    *[(fastmlp.Adam, name, "use beta1.") for name in ("beta_1", "b1")],
    (fastmlp.AdamW, "betas", "use beta1 and beta2."),
    (fastmlp.Adam, "eps", "use epsilon."),
    (fastmlp.Adam, "learnin_rate", "did you mean 'learning_rate'?"),
    (fastmlp.Adam, "nesterov", "it is an argument of SGD."),
    (fastmlp.SGD, "nesterovs_momentum", "use nesterov, of SGD."),
    (fastmlp.SGD, "clipnorm", "use clip_norm, of the norm of all gradients together."),
    (fastmlp.RMSprop, "alpha", "use rho for the decay of RMSprop's squares, and MLP(l2=...) for a penalty."),
    (fastmlp.SGD, "foo", None),
    (fastmlp.Huber, "beta", "use delta, of Huber."),
    *[(fastmlp.Quantile, name, "use quantiles, of Quantile.") for name in ("quantile", "tau", "alpha")],
    (fastmlp.SoftmaxCrossEntropy, "from_logits", "leave it out: the outputs are logits, and softmax or sigmoid"),
    (fastmlp.Normal, "stddev", "use std, of Normal."),
    (fastmlp.Cosine, "T_max", "use steps; without it the run's own."),
    (fastmlp.EarlyStopping, "restore_best_weights", "use restore_best."),
    (fastmlp.EarlyStopping, "n_iter_no_change", "use patience."),
    (fastmlp.Checkpoint, "filepath", "use path."),
    (fastmlp.CSVLog, "filename", "use path."),
    (network, "hidden_layer_sizes", "use units, with the numbers of inputs and outputs too, such as"),
    (network, "random_state", "use seed."),
    (network, "batch_size", "it is an argument of fit."),
    (network, "max_iter", "use fit(..., epochs=...)."),
    (network, "learning_rate_init", "give fit the rate: fit(..., optimizer=Adam(learning_rate=1e-3))."),
    (network, "solver", "give fit an optimizer with its parameters"),
    (network, "early_stopping", "stop early with fit(..., callbacks=[EarlyStopping(patience=10)])."),
    (network, "alpha", "use l2: for cross-entropy, scikit-learn's alpha divided by the rows of a batch."),
    (network, "weight_decay", "use fit(..., optimizer=AdamW(weight_decay=...)), or l2 for a penalty."),
    (network, "quantiles", "give the loss with them: loss=Quantile(0.9)."),
    (network, "label_smoothing", "give the loss with it: loss=SoftmaxCrossEntropy(label_smoothing=0.1)."),
    (network, "delta", "give the loss with it: loss=Huber(delta=0.5)."),
    (network, "activatoin", "did you mean 'activation'?"),
    (fitted, "max_iter", "use epochs."),
    (fitted, "lr", "use optimizer=Adam(learning_rate=1e-3)."),
    (fitted, "validation_fraction", "use validation_split."),
    (fitted, "X_val", "use validation_data=(x, y) or (x, y, sample_weight)."),
    (lambda **options: network().predict(np.eye(2), **options), "verbose", "leave it out: nothing is printed."),
    (lambda **options: network().evaluate(np.eye(2), [0, 1], **options), "verbose", "leave it out: nothing"),
]


@pytest.mark.parametrize(("call", "name", "said"), KEYWORDS)
def test_an_argument_of_another_library_is_answered_by_the_one_to_use(call, name, said):
    if call in (fastmlp.Checkpoint, fastmlp.CSVLog):
        options = {name: "run"}
    else:
        options = {name: 1}
    expected = f"; {said}" if said else ". There are: "
    with pytest.raises(TypeError, match=re.escape(f"got an unexpected keyword argument '{name}'{expected}")):
        call(**options)


def test_the_tables_name_nothing_that_is_not_there():
    for kind, aliases in names.ALIASES.items():
        assert set(aliases.values()) <= set(HERE[kind])
        assert not set(map(names._folded, aliases)) & set(map(names._folded, HERE[kind]))
        assert not set(map(names._folded, aliases)) & set(map(names._folded, names.ANSWERS[kind]))
    for kind, answers in names.ANSWERS.items():
        for answer in answers.values():
            named = re.findall(r"use '(\w+)'", answer)
            assert kind not in HERE or set(named) <= set(HERE[kind])


def rows_of_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    for kind, theirs, own in re.findall(
        r"^\| (loss|activation|initializer|optimizer) \| (.*) \| `(\w+)` \|$", text, re.M
    ):
        for name in re.findall(r"`(\w+)`", theirs):
            yield kind, name, own


def test_the_readme_lists_what_is_taken():
    listed = set(rows_of_the_readme())
    assert len(listed) > 20 and listed <= set(TAKEN)


def test_files_and_pickles_have_our_own_names_alone(tmp_path):
    model = fastmlp.MLP((2, 3, 1), loss="mse", activation="swish", initializer="xavier_uniform", backend="numpy")
    model.save(tmp_path / "model")
    text = json.dumps(safetensors.read(tmp_path / "model")[0])
    assert "swish" not in text and "mse" not in text and "xavier" not in text
    assert pickle.loads(pickle.dumps(fastmlp.Adam(1e-2, epsilon=1e-7))) == fastmlp.Adam(1e-2, epsilon=1e-7)


def test_a_name_that_somebody_registers_is_theirs():
    fastmlp.register_activation("swish", lambda z: (z**3, 3 * z**2))
    assert fastmlp.MLP((2, 4, 3), activation="swish", backend="numpy").spec.activations[0] == "swish"
    assert fastmlp.MLP((2, 4, 3), activation="Swish", backend="numpy").spec.activations[0] == "swish"
