"""The same numbers as scikit-learn and PyTorch, where they define a thing as fastmlp does."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from compare import assert_close
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fastmlp import MLP
from fastmlp.formulas.activations import activation_names
from fastmlp.formulas.losses import Huber, SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import SGD, Adam, AdamW, RMSprop

ROWS, FEATURES = 40, 5
EPSILON = 1e-30  # scikit-learn adds Adam's epsilon at another place: this one is nowhere to be seen

# --- scikit-learn ---------------------------------------------------------------------------------------------------


def problem(kind):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, FEATURES))
    if kind == "classes":
        return x, rng.integers(0, 3, ROWS)
    if kind == "two classes":
        return x, rng.integers(0, 2, ROWS)
    if kind == "values":
        return x, rng.normal(size=(ROWS, 2))
    return x, rng.normal(size=ROWS)


NETWORKS = {
    "classes": (MLPClassifier, 3, "softmax_cross_entropy"),
    "two classes": (MLPClassifier, 1, "sigmoid_cross_entropy"),
    "values": (MLPRegressor, 2, "mean_squared_error"),
    "value": (MLPRegressor, 1, "mean_squared_error"),
}


def train_sklearn(estimator, x, y, steps):
    """Take full-batch steps from where the estimator stands, with a fresh optimizer."""
    estimator.set_params(max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few steps are what is wanted
        return estimator.fit(x, y)


def twins(kind, activation, alpha=0.0, **options):
    """Return an estimator after one step, and a model with its weights."""
    kind_of_estimator, outputs, loss = NETWORKS[kind]
    x, y = problem(kind)
    estimator = kind_of_estimator(
        hidden_layer_sizes=(7, 4),
        activation=activation,
        alpha=alpha,
        batch_size=ROWS,
        shuffle=False,
        warm_start=True,
        random_state=0,
        tol=0.0,
        n_iter_no_change=1000,
        **options,
    )
    train_sklearn(estimator, x, y, 1)
    # scikit-learn's squared error is half of ours, and its penalty alpha / 2 is divided by the rows
    l2 = alpha / ROWS * (2 / outputs if loss == "mean_squared_error" else 1)
    model = MLP(
        (FEATURES, 7, 4, outputs),
        activation={"logistic": "sigmoid"}.get(activation, activation),
        loss=loss,
        l2=l2,
        backend="numpy",
        dtype="float64",
    )
    model.set_weights([a for pair in zip(estimator.coefs_, estimator.intercepts_, strict=True) for a in pair])
    return estimator, model, x, y


def hold_together(estimator, model, x, kind, steps):
    k = ROWS * max(steps, 1)
    if kind == "two classes":
        assert_close(model.predict_proba(x)[:, 0], estimator.predict_proba(x)[:, 1], k=k, c=16)
    elif kind == "classes":
        assert_close(model.predict_proba(x), estimator.predict_proba(x), k=k, c=16)
    else:
        assert_close(model.predict(x), estimator.predict(x), k=k, c=16)
    if NETWORKS[kind][0] is MLPClassifier:
        assert (model.predict(x) == estimator.predict(x)).all()
    weights = [a for pair in zip(estimator.coefs_, estimator.intercepts_, strict=True) for a in pair]
    for i, (a, b) in enumerate(zip(model.get_weights(), weights, strict=True)):
        assert_close(a, b, k=k, scale=1, c=16, what=f"array {i} of the weights")


kinds = pytest.mark.parametrize("kind", NETWORKS)
sklearn_activations = pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])


@kinds
@sklearn_activations
def test_predictions_are_those_of_sklearn_with_its_weights(kind, activation):
    estimator, model, x, _ = twins(kind, activation)
    hold_together(estimator, model, x, kind, 0)


@kinds
@sklearn_activations
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_steps_are_those_of_sklearn(kind, activation, steps, momentum):
    options = {"solver": "sgd", "momentum": momentum, "nesterovs_momentum": momentum > 0, "learning_rate_init": 0.1}
    estimator, model, x, y = twins(kind, activation, alpha=0.5, **options)
    train_sklearn(estimator, x, y, steps)
    # its gradient of the squared error is (z - t) / n, ours 2 (z - t) / (n K)
    outputs = model.spec.units[-1]
    rate = 0.1 * outputs / 2 if kind in ("value", "values") else 0.1
    optimizer = SGD(rate, momentum, nesterov=momentum > 0)
    model.fit(x, y, epochs=steps, batch_size=ROWS, shuffle=False, optimizer=optimizer, verbose=0)
    hold_together(estimator, model, x, kind, steps)


@pytest.mark.parametrize("kind", ["classes", "two classes"])
@pytest.mark.parametrize("activation", ["logistic", "tanh"])
@pytest.mark.parametrize("steps", [1, 8])
def test_adam_steps_are_those_of_sklearn(kind, activation, steps):
    estimator, model, x, y = twins(kind, activation, alpha=0.1, epsilon=EPSILON, learning_rate_init=0.01)
    train_sklearn(estimator, x, y, steps)
    optimizer = Adam(0.01, epsilon=EPSILON)
    model.fit(x, y, epochs=steps, batch_size=ROWS, shuffle=False, optimizer=optimizer, verbose=0)
    # m / sqrt(v) has the relative error of a gradient, which may be a thousand times smaller than its terms
    weights = [a for pair in zip(estimator.coefs_, estimator.intercepts_, strict=True) for a in pair]
    for a, b in zip(model.get_weights(), weights, strict=True):
        assert_close(a, b, k=ROWS * steps, scale=1 + 1e3 * 0.01, c=16)


def test_sklearn_reports_our_loss():
    estimator, model, x, y = twins("classes", "tanh", alpha=0.5)
    before = model.loss_and_gradients(x, y)[0]
    train_sklearn(estimator, x, y, 1)
    assert_close(before, estimator.loss_curve_[-1], k=ROWS)  # of before the step, with its penalty


# --- PyTorch --------------------------------------------------------------------------------------------------------


def torch_loss(torch, loss):
    f = torch.nn.functional
    return {
        "softmax_cross_entropy": lambda z, t: f.cross_entropy(z, t, label_smoothing=loss.label_smoothing),
        "sigmoid_cross_entropy": f.binary_cross_entropy_with_logits,
        "mean_squared_error": f.mse_loss,
        "mean_absolute_error": f.l1_loss,
        "huber": lambda z, t: f.huber_loss(z, t, delta=loss.delta),
        "poisson": lambda z, t: f.poisson_nll_loss(z, t, log_input=True),
    }[loss.name]


def torch_activation(torch, name):
    functions = {"identity": lambda z: z, "sin": torch.sin, "cos": torch.cos}
    return functions.get(name) or getattr(torch.nn.functional, name)


def torch_parameters(torch, model):
    return [torch.nn.Parameter(torch.tensor(w)) for w in model.get_weights()]


def torch_outputs(torch, model, parameters, x):
    a = torch.tensor(x)
    for name, w, b in zip(model.spec.activations, parameters[::2], parameters[1::2], strict=True):
        a = torch_activation(torch, name)(a @ w + b)
    return a


def torch_targets(torch, loss, rng, dtype):
    if loss.takes_labels:
        return rng.integers(0, 3, ROWS)
    if loss.name == "sigmoid_cross_entropy":
        return rng.integers(0, 2, (ROWS, 3)).astype(dtype)
    return (rng.poisson(1.0, (ROWS, 3)) if loss.name == "poisson" else rng.normal(size=(ROWS, 3))).astype(dtype)


TORCH_LOSSES = ["sigmoid_cross_entropy", "mean_squared_error", "mean_absolute_error", "poisson"]
torch_losses = pytest.mark.parametrize(
    "loss", [SoftmaxCrossEntropy(), SoftmaxCrossEntropy(0.1), Huber(0.5), *TORCH_LOSSES], ids=repr
)


@pytest.mark.parametrize("activation", activation_names())
@torch_losses
def test_gradients_are_those_of_torch(torch, activation, loss):
    rng = np.random.default_rng(3)
    model = MLP((FEATURES, 9, 7, 3), activation=activation, loss=loss, backend="numpy", seed=2)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    y = torch_targets(torch, model.spec.loss, rng, np.float32)
    value, gradients = model.loss_and_gradients(x, y)
    parameters = torch_parameters(torch, model)
    outputs = torch_outputs(torch, model, parameters, x)
    theirs = torch_loss(torch, model.spec.loss)(outputs, torch.tensor(y))
    theirs.backward()
    assert_close(value, theirs.item(), dtype="float32", k=ROWS, scale=1 + abs(theirs.item()))
    flat = np.concatenate([g.ravel() for g in gradients]).astype(np.float64)
    expected = np.concatenate([p.grad.numpy().ravel() for p in parameters]).astype(np.float64)
    assert np.linalg.norm(flat - expected) <= 1e-5 * np.linalg.norm(expected)


OPTIMIZERS = {
    "sgd": (SGD(0.1), lambda o, p: o.SGD(p, lr=0.1)),
    "momentum": (SGD(0.1, momentum=0.9), lambda o, p: o.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (Adam(0.05, beta2=0.99), lambda o, p: o.Adam(p, lr=0.05, betas=(0.9, 0.99))),
    "adamw": (AdamW(0.05, weight_decay=0.3), lambda o, p: o.AdamW(p, lr=0.05)),
    "rmsprop": (RMSprop(0.01, rho=0.8), lambda o, p: o.RMSprop(p, lr=0.01, alpha=0.8)),
    "rmsprop with momentum": (
        RMSprop(0.01, rho=0.8, momentum=0.5),
        lambda o, p: o.RMSprop(p, lr=0.01, alpha=0.8, momentum=0.5),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_trajectories_are_those_of_torch(torch, name, clip):
    """Ten steps in double precision; PyTorch decays what its group says, here the weights without the biases."""
    ours, make = OPTIMIZERS[name]
    rng = np.random.default_rng(5)
    model = MLP((FEATURES, 6, 3), activation="tanh", backend="numpy", dtype="float64", seed=4)
    x, y = rng.normal(size=(ROWS, FEATURES)), rng.integers(0, 3, ROWS)
    parameters = torch_parameters(torch, model)
    groups = [
        {"params": parameters[::2], "weight_decay": ours.weight_decay},
        {"params": parameters[1::2], "weight_decay": 0.0},
    ]
    theirs = make(torch.optim, groups)
    optimizer = replace(ours, clip_norm=clip)
    for step in range(10):
        model.fit(x, y, epochs=1, batch_size=ROWS, shuffle=False, optimizer=optimizer, verbose=0)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(torch_outputs(torch, model, parameters, x), torch.tensor(y)).backward()
        if clip is not None:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
            for p in parameters:
                p.grad *= min(1.0, clip / float(norm))
        theirs.step()
        for a, b in zip(model.get_weights(), parameters, strict=True):
            # a quotient g / sqrt(v) has the relative error of g, at most a thousand times that of its terms
            scale = 1 if name in ("sgd", "momentum", "nesterov") else 1 + 1e3 * optimizer.schedule.learning_rate
            assert_close(a, b.detach().numpy(), k=ROWS * (step + 1), scale=scale, c=16, what=f"step {step}")


def test_initial_weights_have_the_spread_of_torchs(torch):
    units = (300, 200, 100)
    model = MLP(units, initializer="he_normal", seed=1)
    for (inputs, outputs), w in zip(pairwise(units), model.get_weights()[::2], strict=True):
        peer = torch.empty(outputs, inputs)
        torch.nn.init.kaiming_normal_(peer, generator=torch.Generator().manual_seed(1))
        # two standard deviations of n numbers: each is off by 1 / sqrt(2 n) of itself
        assert abs(w.std() / float(peer.std()) - 1) < 5 * (1 / w.size) ** 0.5
