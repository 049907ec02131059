"""A program that has NumPy raise on overflow, underflow or NaN in its own arithmetic gets the same numbers."""

import numpy as np
import pytest
from compare import assert_same_bits
from sklearn.base import clone

import fastmlp
from fastmlp import stepbystep

LOSSES = {
    "softmax_cross_entropy": 3,
    "sigmoid_cross_entropy": 1,
    "mean_squared_error": 1,
    "mean_absolute_error": 1,
    "huber": 2,
    "poisson": 1,
    "categorical_hinge": 3,
    "mean_squared_logarithmic_error": 1,
    "quantile": 1,
}
METRICS = {"softmax_cross_entropy": ["log_loss", "roc_auc_ovr"], "sigmoid_cross_entropy": ["log_loss"]}
SCHEDULE = fastmlp.Exponential(1e-2, final_fraction=1e-300, steps=3)
OPTIMIZERS = {
    "sgd": fastmlp.SGD(SCHEDULE, momentum=0.9, clip_norm=1.0),
    "adam": fastmlp.Adam(fastmlp.StepDecay(1e-2, every=1, factor=1e-200), ema=0.9),
    "adamw": fastmlp.AdamW(fastmlp.OneCycle(1e-2), weight_decay=0.1),
    "rmsprop": fastmlp.RMSprop(fastmlp.ReduceOnPlateau(1e-2, monitor="loss")),
}


def data(loss, dtype):
    """Return inputs of very different sizes, labels, smaller inputs, large weights, and the inputs in a type."""
    rng, outputs = np.random.default_rng(0), LOSSES[loss]
    x = rng.normal(size=(40, 5)) * np.array([1e-37, 1e-30, 1e-3, 1.0, 300.0])
    labels = rng.integers(0, 3 if outputs == 3 else 2, 40)
    y = labels if outputs != 2 else np.stack([labels, 1 - labels], axis=1)
    weights = fastmlp.MLP((5, 7, 6, outputs), backend="numpy", loss="mean_squared_error", seed=0).get_weights()
    size = 1e-2 if loss == "poisson" else 200  # rates are exponentials
    weights = [np.where(w == 0, 1e-46, size * w.astype(float)) for w in weights]
    return x, y, x * 1e-300, weights, x.astype(dtype)


def everything(given, backend, loss, optimizer, activation, dtype):
    """Return the numbers that a model gives in training and after it."""
    outputs, (x, y, tiny, weights, typed) = LOSSES[loss], given
    model = fastmlp.MLP(
        (5, 7, 6, outputs), loss=loss, activation=activation, dropout=0.1, l2=1e-30, max_norm=2.0, backend=backend,
        dtype=dtype, seed=0,
    )  # fmt: skip
    model.set_weights(weights)
    metrics = {"softmax_cross_entropy": ["log_loss", "roc_auc_ovr"], "sigmoid_cross_entropy": ["log_loss"]}.get(
        loss, ()
    )
    numbers = [model.loss_and_gradients(x, y)[0], *model.loss_and_gradients(x, y)[1]]
    numbers += [list(model.evaluate(x, y, metrics=metrics).values()), model.predict(x), model.predict(tiny)]
    history = model.fit(
        x, y, sample_weight=np.linspace(1e-3, 1, 40), epochs=3, batch_size=16, optimizer=OPTIMIZERS[optimizer],
        metrics=metrics, validation_split=0.25, verbose=0,
    )  # fmt: skip
    numbers += [v for k, v in history.history.items() if k != "epoch_seconds"] + model.get_weights()
    predictor = model.predictor()
    numbers += [predictor(row) for row in x[::8]] + [predictor.outputs(row) for row in typed[::8]]
    if outputs != 2 and loss in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        numbers.append(model.predict_proba(x))
    return [np.asarray(n) for n in numbers]


def same_under_raise(make):
    """Assert that a function gives the same bits whatever NumPy was asked to do about errors."""
    with np.errstate(all="ignore"):
        expected = make()
    with np.errstate(all="raise"):
        found = make()
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))


RULES = [*zip(OPTIMIZERS, ("tanh", "gelu", "relu", "mish"), strict=True)]
# each loss and each optimizer in each type: what one of them computes has no branch on the other
CASES = [(loss, *RULES[(i + j) % 4], t) for j, t in enumerate(("float32", "float64")) for i, loss in enumerate(LOSSES)]


@pytest.mark.parametrize(("loss", "optimizer", "activation", "dtype"), CASES)
def test_training_and_asking(backend, loss, optimizer, activation, dtype):
    given = data(loss, dtype)
    same_under_raise(lambda: everything(given, backend, loss, optimizer, activation, dtype))


def test_probabilities_that_underflow(backend):
    model = fastmlp.MLP((2, 3), backend=backend, seed=0)
    model.set_weights([np.eye(2, 3), np.array([0.0, 0.0, -500.0])])
    same_under_raise(lambda: [model.predict_proba([[0.0, 200.0]]), list(model.evaluate([[0.0, 200.0]], [1]).values())])
    assert model.predict_proba([[0.0, 200.0]])[0].tolist() == [0, 1, 0]
    for loss in (fastmlp.SoftmaxCrossEntropy(), fastmlp.SigmoidCrossEntropy()):
        same_under_raise(lambda loss=loss: [loss.probabilities(np.array([[900.0, -900.0]]))])


def test_errors_are_still_ours(backend):
    model = fastmlp.MLP((2, 3), backend=backend, seed=0)
    with np.errstate(all="raise"):
        for x in ([[np.inf, 0.0]], [[np.nan, 1.0]]):
            with pytest.raises(fastmlp.DataError, match="x must be finite"):
                model.predict(x)
            with pytest.raises(fastmlp.DataError, match="x must be finite"):
                model.predictor()(np.array(x[0], "float32"))
        with pytest.raises(fastmlp.NonFiniteLossError):
            model.fit(np.full((4, 2), 3e38), [0, 1, 2, 0], epochs=50, optimizer=fastmlp.SGD(1e30), verbose=0)


def test_every_schedule():
    for schedule in (
        SCHEDULE,
        fastmlp.StepDecay(1.0, 1, 1e-9),
        fastmlp.InverseScaling(1.0, 90.0),
        fastmlp.Cosine(1e-300),
    ):
        same_under_raise(lambda schedule=schedule: [schedule.rates(0, 90_000, 90_000, {})])


def test_what_is_built_around_a_model(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)) * np.array([1e-180, 1.0]), rng.integers(0, 2, 30)
    features = fastmlp.features.RandomFourierFeatures(8, random_state=0)
    same_under_raise(lambda: [clone(features).fit_transform(x), *features.fit(x).network((2,), seed=0).get_weights()])
    t = np.array([0.0, 1e-200, 1.0])
    interpolant = fastmlp.approximation.relu_interpolant
    same_under_raise(lambda: interpolant(t, [0.0, 1e-300, 1.0], backend="numpy").get_weights())
    model = fastmlp.MLP((2, 4, 2), activation="tanh", backend="numpy", seed=0)
    same_under_raise(lambda: list(fastmlp.gradcheck(model, x, y).values()))
    with np.errstate(all="raise"):
        fastmlp.register_activation("steep", lambda z: (np.exp(-900 * z**2), -1800 * z * np.exp(-900 * z**2)))
    (tmp_path / "t.csv").write_text("a,b,y\n1e-46,1e-320,x\n1,2,z\n", encoding="utf-8")
    same_under_raise(lambda: [fastmlp.datasets.load_table(tmp_path / "t.csv", target="y").x])


def test_pictures(tmp_path):
    from fastmlp import plots

    x = np.random.default_rng(0).normal(size=(30, 2))
    model = fastmlp.MLP((2, 4, 2), backend="numpy", seed=0)
    model.set_weights([w * 400 for w in model.get_weights()])
    with np.errstate(all="raise"):
        plots.save(plots.regions(model, x, (x[:, 0] > 0).astype(int), resolution=20), tmp_path / "a.png")
        history = {"loss": [1e300, 1e-300, 1e-320], "accuracy": [0.1, np.nan, 1.0], "val_loss": [np.nan] * 3}
        plots.save(plots.curves(history), tmp_path / "b.png")
        plots.save(plots.lines({"a": [1e-320, 1e-300, 1.0]}, yscale="log"), tmp_path / "c.png")
        plots.save(plots.confusion([0, 1, 1], [0, 1, 0]), tmp_path / "d.png")


def test_the_steps_of_the_notebook():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 9)) * 1e3, rng.integers(0, 2, (1, 9))

    def steps():
        parameters = stepbystep.initialize_parameters_deep([4, 3, 1], scale=1.0)
        out, caches = stepbystep.L_model_forward(x, parameters)
        grads = stepbystep.L_model_backward(out, y, caches)
        grads = {name: np.nan_to_num(g) for name, g in grads.items()}
        updated = stepbystep.update_parameters(parameters, grads, 1e-300)
        more = stepbystep.sigmoid_backward(np.ones((1, 2)), np.array([[-800.0, 800.0]]))
        return [out, *updated.values(), stepbystep.compute_cost(out, y), stepbystep.accuracy(x, y, parameters), more]

    same_under_raise(steps)
