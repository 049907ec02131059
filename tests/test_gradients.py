"""Gradients agree with central differences, in float64, for every activation, loss and option."""

import numpy as np
import pytest
from compare import loss_records, targets_for

from fastmlp import MLP, register_activation, register_loss
from fastmlp.formulas.activations import activation_names, get_activation
from fastmlp.formulas.differences import agree
from fastmlp.formulas.losses import LOSSES, Loss, SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import Adam
from fastmlp.network.spec import make_spec

STEP = 6e-6  # the cube root of eps: the formula's error, O(STEP^2), and that of rounding, O(eps / STEP), meet here
activations = pytest.mark.parametrize("activation", activation_names())
losses = pytest.mark.parametrize("loss", loss_records(), ids=repr)


def pieces(model, x, y):
    """Return on which smooth piece each activation and each loss lies, as arrays to compare."""
    spec, weights, a, found = model.spec, iter(model.get_weights()), x, []
    for name, (w, b) in zip(spec.activations, zip(weights, weights, strict=True), strict=True):
        z = a @ w + b
        found += [z > kink for kink in get_activation(name).kinks]
        a, no_slope = z.copy(), None
        get_activation(name).function(a, no_slope, (np.empty_like(z), np.empty_like(z)))
    loss = spec.loss
    if loss.name in ("mean_absolute_error", "quantile"):
        found.append(a > y)
    elif loss.name == "huber":
        found += [a - y > loss.delta, a - y < -loss.delta]
    elif loss.name == "mean_squared_logarithmic_error":
        found.append(a > 0)
    elif loss.name == "categorical_hinge":
        rows, wrong = np.arange(len(y)), a.copy()
        wrong[rows, y] = -np.inf
        found += [wrong.argmax(axis=1), 1 + wrong.max(axis=1) > a[rows, y]]
    return found


def shifted(weights, direction, step):
    return [w + step * d for w, d in zip(weights, direction, strict=True)]


def difference(model, weights, direction, data):
    """Return the derivative along a direction by two evaluations, or None where a kink lies between them."""
    values, sides = [], []
    for step in (STEP, -STEP):
        model.set_weights(shifted(weights, direction, step))
        values.append(model.loss_and_gradients(*data)[0])
        sides.append(pieces(model, *data[:2]))
    model.set_weights(weights)
    if any(not np.array_equal(a, b) for a, b in zip(*sides, strict=True)):
        return None
    return (values[0] - values[1]) / (2 * STEP)


def draw(units, rng, loss, rows=7, soft=False, weighted=False, **network):
    """Return a model with random weights and biases, and data for it."""
    model = MLP(units, loss=loss, dtype="float64", backend="numpy", seed=0, **network)
    model.set_weights([rng.normal(size=w.shape) / np.sqrt(w.shape[0]) for w in model.get_weights()])
    x, y = rng.normal(size=(rows, units[0])), targets_for(model.spec.loss, rows, units[-1], rng, soft)
    return model, (x, y, rng.uniform(0, 2, rows)) if weighted else (x, y)


def check_along_a_direction(units, loss, seed, **options):
    """Draw until no kink is near and the gradient is not 0, then compare."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        model, data = draw(units, rng, loss, **options)
        weights = model.get_weights()
        direction = [rng.normal(size=w.shape) for w in weights]
        length = np.sqrt(sum((d**2).sum() for d in direction))
        direction = [d / length for d in direction]
        _, gradients = model.loss_and_gradients(*data)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        by_differences = difference(model, weights, direction, data)
        if by_differences is None or norm < 1e-2:
            continue
        by_gradients = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        assert agree(np.array(by_gradients), np.array(by_differences), norm), (
            f"{by_gradients!r} along the direction, {by_differences!r} by differences, gradient norm {norm:.3g}"
        )
        return
    pytest.fail("each of fifty draws lay at a kink or had no gradient: nothing was checked")


@activations
@losses
def test_gradients_with_every_hidden_activation_and_loss(activation, loss):
    check_along_a_direction((4, 6, 5, 3), loss, seed=1, activation=activation)


@activations
@pytest.mark.parametrize("loss", [r for r in loss_records() if not r.from_logits], ids=repr)
def test_gradients_with_every_output_activation(activation, loss):
    check_along_a_direction((4, 6, 3), loss, seed=2, activation=("tanh", activation))


OPTIONS = {
    "row weights": {"weighted": True},
    "l2": {"l2": 0.3},
    "soft targets": {"soft": True},
    "label smoothing": {"loss": SoftmaxCrossEntropy(label_smoothing=0.2)},
    "smoothed soft targets": {"loss": SoftmaxCrossEntropy(label_smoothing=0.2), "soft": True, "weighted": True},
    "several labels": {"loss": "sigmoid_cross_entropy", "weighted": True},
    "one row": {"rows": 1},
    "dropout and max_norm, which stay out": {"dropout": 0.5, "max_norm": 0.1},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_with_options(option):
    options = {"loss": "softmax_cross_entropy", "activation": "silu", **OPTIONS[option]}
    check_along_a_direction((4, 6, 3), seed=3, **options)


@pytest.mark.parametrize("units", [(1, 1), (1, 4, 1), (5, 1, 2)], ids=str)
def test_gradients_of_narrow_networks(units):
    check_along_a_direction(units, "mean_squared_error", seed=4, activation="tanh")


@losses
@pytest.mark.parametrize("weighted", [False, True])
def test_each_single_derivative_of_a_small_network(loss, weighted):
    rng, compared = np.random.default_rng(5), 0
    model, data = draw((3, 4, 2), rng, loss, activation="tanh", weighted=weighted, l2=0.1)
    weights = model.get_weights()
    _, gradients = model.loss_and_gradients(*data)
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    for i, g in enumerate(gradients):
        for index in np.ndindex(g.shape):
            direction = [np.zeros_like(w) for w in weights]
            direction[i][index] = 1.0
            found = difference(model, weights, direction, data)
            if found is not None:
                compared += 1
                assert agree(g[index], np.array(found), norm), f"array {i}, element {index}: {g[index]} != {found}"
    assert compared >= 20  # of 26


def test_a_check_of_a_wrong_gradient_fails(monkeypatch):
    right = MLP.loss_and_gradients

    def wrong(self, *data):
        loss, gradients = right(self, *data)
        gradients[0][0, 0] *= 1.001
        return loss, gradients

    monkeypatch.setattr(MLP, "loss_and_gradients", wrong)
    with pytest.raises(AssertionError, match="by differences"):
        check_along_a_direction((4, 6, 3), "mean_squared_error", seed=1, activation="tanh")


# --- a user's own ---------------------------------------------------------------------------------------------------


def cube(z):
    return z**3, 3 * z**2


def log_cosh(outputs, targets):
    e = outputs - targets
    return np.log(np.cosh(e)).mean(axis=1), np.tanh(e) / e.shape[1]


def perceptron(outputs, labels):
    rows, d = np.arange(len(labels)), np.zeros_like(outputs)
    best = outputs.argmax(axis=1)
    d[rows, best] += 1
    d[rows, labels] -= 1
    return outputs[rows, best] - outputs[rows, labels], d


def test_an_activation_of_ones_own_is_checked_and_trains():
    register_activation("cube", cube, initializer="lecun_normal")
    assert "cube" in activation_names()
    check_along_a_direction((4, 6, 3), "mean_squared_error", seed=6, activation="cube")
    x = np.random.default_rng(0).normal(size=(64, 3))
    model = MLP((3, 8, 1), activation="cube", loss="mean_squared_error", seed=0)
    losses = model.fit(x, x[:, 0] ** 3, epochs=20, optimizer=Adam(0.01), verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("function", "takes_labels"), [(log_cosh, False), (perceptron, True)])
def test_a_loss_of_ones_own_is_checked_and_trains(function, takes_labels):
    made = register_loss("mine", function, takes_labels=takes_labels)
    assert issubclass(made, Loss)
    assert "mine" in LOSSES.names()
    x = np.random.default_rng(0).normal(size=(64, 3))
    y = (x[:, 0] > 0).astype(int) if takes_labels else x[:, :2]
    model = MLP((3, 8, 2), loss=made() if takes_labels else "mine", seed=0)
    history = model.fit(x, y, epochs=20, optimizer=Adam(0.01), verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert ("accuracy" in history) == takes_labels
    if not takes_labels:
        check_along_a_direction((4, 6, 3), "mine", seed=7, activation="tanh")


def test_what_tests_register_is_forgotten():
    assert "cube" not in activation_names()
    assert "mine" not in LOSSES.names()


def changes_its_argument(z):
    z *= 2
    return z, np.ones_like(z)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: (np.tanh(z), 1 - np.tanh(z)), r"slope is not the derivative: at z = .* central differences give"),
        (lambda z: (z**3, 3 * z**2 * 1.00001), "slope is not the derivative"),
        (lambda z: (z, np.ones(3)), r"of the shape of z \(16, 25\)"),
        (changes_its_argument, "changed its argument z"),
    ],
)
def test_a_wrong_activation_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        register_activation("wrong", function)
    assert "wrong" not in activation_names()


def test_an_activation_with_a_kink_is_checked_beside_it():
    register_activation("positive", lambda z: (np.maximum(z - 1, 0), (z > 1) * 1.0), kinks=(1.0,))
    assert get_activation("positive").kinks == (1.0,)


@pytest.mark.parametrize(
    ("function", "takes_labels", "message"),
    [
        (lambda o, t: (((o - t) ** 2).mean(axis=1), o - t), False, "gradient is wrong: for output 0 of row 0"),
        (lambda o, t: (perceptron(o, t)[0], -perceptron(o, t)[1]), True, "gradient is wrong"),
        (lambda o, t: (np.abs(o - t), np.sign(o - t)), False, r"row losses \(12,\) and a gradient \(12, 5\)"),
        (lambda o, t: log_cosh(np.multiply(o, 2, out=o), t), False, "changed its arguments"),
    ],
)
def test_a_wrong_loss_is_refused(function, takes_labels, message):
    with pytest.raises(ValueError, match=message):
        register_loss("wrong", function, takes_labels=takes_labels)
    assert "wrong" not in LOSSES.names()


@pytest.mark.parametrize("register", [register_activation, register_loss])
def test_a_name_is_new_and_an_identifier(register):
    taken = {register_activation: "relu", register_loss: "huber"}[register]
    with pytest.raises(ValueError, match=f"'{taken}' is there already"):
        register(taken, cube)
    with pytest.raises(ValueError, match="must be an identifier"):
        register("no name", cube)


def test_an_unknown_item_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        make_spec((2, 2), activation="tanhh")
    with pytest.raises(ValueError, match="did you mean 'huber'"):
        make_spec((2, 2), loss="hubert")
