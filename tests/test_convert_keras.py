"""Stacks of dense layers of Keras as networks and back: the same outputs, the same bits of weights, or a refusal."""

import contextlib
import re
import warnings

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.convert import from_keras, to_keras
from fastmlp.convert.keras_models import _FUNCTIONS

# NumPy has something to say about how Keras reads arrays of JAX
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
X = np.random.default_rng(0).normal(size=(20, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4)).astype(np.uint8)
LOSSES = {"softmax_cross_entropy": (2, 5), "sigmoid_cross_entropy": (1, 3), "mean_squared_error": (1, 2)}
LOSSES |= {"poisson": (1,), "categorical_hinge": (3,)}
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@contextlib.contextmanager
def in_float64(keras):
    """Let JAX hold float64 for a while; other backends do anyway."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def network(units=(4, 6, 5, 3), **options):
    return fastmlp.MLP(units, **{"activation": "sigmoid", "backend": "numpy", "seed": 0, **options})


def answers(model, x):
    """Return what Keras has as its output: probabilities where there are some."""
    if model.spec.loss.name in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        return model.predict_proba(x)
    if model.spec.loss.name == "categorical_hinge":
        return np.array([model.predictor().outputs(row) for row in x])
    found = model.predict(x)
    return found[:, None] if found.ndim == 1 else found


def outputs_of(keras, theirs, x):
    return keras.ops.convert_to_numpy(theirs(x.astype(theirs.layers[-1].dtype)))


def round_trip(keras, model, x=X):
    rtol = TOLERANCES[model.dtype.name]
    if "tanh" in model.spec.activations and keras.backend.backend() == "jax":
        rtol = 1e-5  # Keras makes float32 of what JAX's tanh is given
    with in_float64(keras) if model.dtype == np.float64 else contextlib.nullcontext():
        theirs = to_keras(model)
        np.testing.assert_allclose(outputs_of(keras, theirs, x), answers(model, x), rtol=rtol, atol=rtol)
        again = from_keras(theirs, model.spec.loss, backend="numpy")
    assert again.dtype == model.dtype and again.input_divisor == model.input_divisor
    assert again.spec.deterministic() == model.spec.deterministic()
    assert (again.spec.dropout, again.spec.frozen) == (model.spec.dropout, model.spec.frozen)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(a, b)
    np.testing.assert_array_equal(answers(again, x), answers(model, x))
    return theirs


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", _FUNCTIONS)
def test_each_activation_is_the_same_there(keras, activation, dtype):
    round_trip(keras, network(activation=activation, dtype=dtype))


@pytest.mark.parametrize("units", [(4,), (4, 5, 6, 7)])
@pytest.mark.parametrize(("loss", "outputs"), [(loss, n) for loss, counts in LOSSES.items() for n in counts])
def test_each_loss_and_depth(keras, loss, outputs, units):
    dropout = (0.1, 0.2, 0.3, 0.4)[: len(units)]
    round_trip(keras, network((*units, outputs), loss=loss, dropout=dropout, dtype="float64"))


def test_activations_by_layer_and_layers_that_do_not_train(keras):
    model = network(activation=("relu", "leaky_relu", "sigmoid"), loss="mse")
    model.freeze(1)
    round_trip(keras, model)


def test_pixels_are_divided_on_both_sides(keras):
    model = network()
    model.fit(PIXELS, np.arange(20) % 3, epochs=1, verbose=0)
    theirs = round_trip(keras, model, PIXELS)
    assert type(theirs.layers[0]) is keras.layers.Rescaling


def test_inputs_are_rescaled(keras):
    layers = keras.layers
    stack = keras.Sequential([keras.Input((2, 2)), layers.Rescaling(1 / 127.5, -1), layers.Flatten(), layers.Dense(3)])
    model = from_keras(stack, "mse", backend="numpy")
    assert model.input_divisor == 1
    expected = outputs_of(keras, stack, PIXELS.reshape(20, 2, 2))
    np.testing.assert_allclose(model.predict(PIXELS), expected, rtol=1e-5, atol=1e-5)


def test_layers_of_activation_functional_models_and_layers_without_biases(keras):
    layers = keras.layers
    inputs = keras.Input((4,))
    x = layers.Dropout(0.25)(inputs)
    x = layers.Activation("tanh")(layers.Dense(6, use_bias=False)(x))
    x = layers.ReLU()(layers.Dense(5)(x))
    x = layers.ELU()(layers.Dense(4)(x))
    outputs = layers.Softmax()(layers.Dense(3)(x))
    theirs = keras.Model(inputs, outputs)
    model = from_keras(theirs, backend="numpy")
    assert model.spec.activations == ("tanh", "relu", "elu", "identity")
    assert model.spec.loss.name == "softmax_cross_entropy" and model.spec.dropout == (0.25, 0, 0, 0)
    np.testing.assert_allclose(model.predict_proba(X), outputs_of(keras, theirs, X), rtol=1e-5, atol=1e-6)


def dense(keras, *stack, units=3, **options):
    return keras.Sequential([keras.Input((4,)), *stack, keras.layers.Dense(units, **options)])


def test_the_loss_is_what_the_model_tells(keras):
    for activation, compiled, loss in (
        ("softmax", None, "softmax_cross_entropy"),
        ("sigmoid", None, "sigmoid_cross_entropy"),
        ("sigmoid", "mse", "mean_squared_error"),
        ("linear", "mae", "mean_absolute_error"),
        ("exponential", "poisson", "poisson"),
        ("softmax", "sparse_categorical_crossentropy", "softmax_cross_entropy"),
        ("softmax", keras.losses.CategoricalCrossentropy(), "softmax_cross_entropy"),
        ("sigmoid", keras.losses.binary_crossentropy, "sigmoid_cross_entropy"),
    ):
        theirs = dense(keras, activation=activation)
        if compiled is not None:
            theirs.compile(loss=compiled)
        model = from_keras(theirs, backend="numpy")
        assert model.spec.loss.name == loss
        np.testing.assert_allclose(answers(model, X), outputs_of(keras, theirs, X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="not compiled and its last activation is 'identity', so that nothing tells"):
        from_keras(dense(keras), backend="numpy")
    for loss in (keras.losses.Huber(2.0), keras.losses.CategoricalCrossentropy(label_smoothing=0.1)):
        theirs = dense(keras)
        theirs.compile(loss=loss)
        with pytest.raises(ValueError, match=r"was compiled with '.*' and options; pass loss="):
            from_keras(theirs, backend="numpy")
        assert from_keras(theirs, "huber", backend="numpy").spec.loss.name == "huber"
    theirs = dense(keras)
    theirs.compile(loss="log_cosh")
    with pytest.raises(ValueError, match=r"was compiled with 'log_cosh'; pass loss=... \(loss 'log_cosh' is not known"):
        from_keras(theirs, backend="numpy")


def refused(keras):
    layers = keras.layers
    yield dense(keras, layers.BatchNormalization()), "layer 'batch_normalization.*' is BatchNormalization; expected"
    yield dense(keras, layers.ReLU()), "is relu of the inputs; expected it after a dense layer"
    yield (
        dense(keras, activation="leaky_relu"),
        "with the activation 'leaky_relu'; .*its slope is 0.2, so use LeakyReLU",
    )
    yield dense(keras, activation=lambda x: x * 2), "with the activation '<lambda>'; expected one of 'linear', 'relu'"
    yield dense(keras, activation="hard_sigmoid"), "with the activation 'hard_sigmoid'; expected one of"
    yield dense(keras, layers.Dense(3), layers.LeakyReLU(0.3)), "LeakyReLU with the slope 0.3; expected the slope 0.01"
    yield dense(keras, layers.Dense(3), layers.ReLU(max_value=6)), "ReLU with .*; expected ReLU without a limit"
    yield dense(keras, layers.Dense(3), layers.ELU(0.5)), "ELU with alpha=0.5; expected alpha=1"
    yield dense(keras, layers.Dense(3, activation="softmax")), "is a dense layer after softmax; expected softmax at the"
    yield dense(keras, layers.Dense(3), layers.Rescaling(2.0)), "is Rescaling; expected it before the first Dense alone"
    yield dense(keras, layers.Dropout(0.5), layers.Dropout(0.5)), "is dropout after dropout; expected one rate a layer"
    yield (
        keras.Sequential([layers.Dense(3)]),
        "model is not built, so that it has no weights; expected one with an Input",
    )
    yield (
        keras.Sequential([keras.Input((4, 2)), layers.Dense(3)]),
        r"of shape \(None, 4, 2\); expected \(None, inputs\)",
    )
    yield (
        keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_bfloat16")]),
        "dtype policy 'mixed_bfloat16'",
    )
    inputs = keras.Input((4,))
    one, other = layers.Dense(3)(inputs), layers.Dense(3)(inputs)
    yield keras.Model(inputs, layers.Add()([one, other])), "model is no chain of layers; expected one layer after"
    yield keras.Model(inputs, layers.Dense(2)(inputs) + 1), "expected"
    shared = layers.Dense(4)
    yield keras.Model(inputs, shared(shared(inputs))), "model is no chain of layers|each used once"


def test_what_has_no_counterpart_is_refused_by_name(keras):
    for theirs, said in refused(keras):
        with pytest.raises(ValueError, match=said):
            from_keras(theirs, "mse", backend="numpy")


def test_a_class_of_ones_own_is_refused(keras):
    class Twice(keras.Sequential):
        def call(self, *args, **options):
            return 2 * super().call(*args, **options)

    with pytest.raises(ValueError, match="model is a Twice, whose call may do anything; expected Sequential"):
        from_keras(Twice([keras.Input((4,)), keras.layers.Dense(3)]), "mse")


def test_what_is_no_model_is_told(keras):
    with pytest.raises(TypeError, match=re.escape("model must be a keras.Model, got Dense")):
        from_keras(keras.layers.Dense(2), "mse")


def test_activations_that_keras_has_not_are_refused(keras):
    with pytest.raises(ValueError, match="Keras has no counterpart of the activation 'sin'; only of 'identity', "):
        to_keras(network(activation="sin"))


def test_float64_is_not_rounded_in_silence(keras):
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX makes float32 of float64")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="Keras on jax holds float32; for JAX call"):
        warnings.simplefilter("ignore")
        to_keras(network(dtype="float64"))
