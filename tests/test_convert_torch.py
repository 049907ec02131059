"""Stacks of layers of PyTorch as networks and back: the same outputs, the same bits of weights, or a refusal."""

import re

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.convert import from_torch, to_torch
from fastmlp.convert.pytorch import _MODULES

X = np.random.default_rng(0).normal(size=(20, 4))
LOSSES = {"softmax_cross_entropy": (2, 5), "sigmoid_cross_entropy": (1, 3), "mean_squared_error": (1, 2)}
LOSSES |= {"poisson": (1,), "categorical_hinge": (3,)}
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


def network(units=(4, 6, 5, 3), **options):
    return fastmlp.MLP(units, **{"activation": "tanh", "backend": "numpy", "seed": 0, **options})


def outputs_of(torch, module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def logits_of(model, x):
    """Return the outputs of the layers, row by row."""
    return np.array([model.predictor().outputs(row) for row in x])


def hold_equal(torch, module, model, x):
    rtol = TOLERANCES[model.dtype.name]
    x = x.astype(model.dtype)
    np.testing.assert_allclose(outputs_of(torch, module, x), logits_of(model, x), rtol=rtol, atol=rtol)


def round_trip(torch, model):
    module = to_torch(model)
    hold_equal(torch, module, model, X)
    again = from_torch(module, model.spec.loss, backend="numpy")
    assert again.dtype == model.dtype
    assert again.spec.deterministic() == model.spec.deterministic()
    assert (again.spec.dropout, again.spec.frozen) == (model.spec.dropout, model.spec.frozen)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(a, b)
    assert not module.training
    return module


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", _MODULES)
def test_each_activation_is_the_same_there(torch, activation, dtype):
    round_trip(torch, network(activation=activation, dtype=dtype))


@pytest.mark.parametrize("units", [(4,), (4, 7), (4, 5, 6, 7)])
@pytest.mark.parametrize(("loss", "outputs"), [(loss, n) for loss, counts in LOSSES.items() for n in counts])
def test_each_loss_and_depth(torch, loss, outputs, units):
    dropout = (0.1, 0.2, 0.3, 0.4)[: len(units)]
    round_trip(torch, network((*units, outputs), loss=loss, dropout=dropout, dtype="float64"))


def test_activations_by_layer_and_layers_that_do_not_train(torch):
    model = network(activation=("relu", "silu", "sigmoid"), loss="mse", dtype="float64")
    model.freeze(1)
    module = round_trip(torch, model)
    assert [p.requires_grad for p in module.parameters()] == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        ("CrossEntropyLoss", "Softmax(dim=1)"),
        ("softmax_cross_entropy", "Softmax(dim=-1)"),
        ("softmax_cross_entropy", "LogSoftmax(dim=1)"),
        ("BCELoss", "Sigmoid()"),
    ],
)
def test_the_link_of_the_outputs_is_part_of_the_loss(torch, loss, last):
    nn = torch.nn
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), eval(f"nn.{last}", {"nn": nn})).double()
    model = from_torch(stack, loss, backend="numpy")
    expected = outputs_of(torch, stack, X)
    if last.startswith("Log"):
        expected = np.exp(expected)
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-12)
    without = from_torch(stack[:-1], loss, backend="numpy")
    assert without.spec == model.spec
    np.testing.assert_array_equal(without.predict_proba(X), model.predict_proba(X))


def test_stacks_in_stacks_flattened_pictures_and_a_module_used_twice(torch):
    nn, act = torch.nn, torch.nn.Tanh()
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 5), act, nn.Dropout(0.25), nn.Linear(5, 5), act)
    stack = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 6, bias=False), act, inner, nn.Linear(5, 2))
    stack.double().eval()
    model = from_torch(stack, "mse", backend="numpy")
    assert model.spec.activations == ("tanh", "tanh", "tanh", "identity")
    assert model.spec.dropout == (0.5, 0.0, 0.25, 0.0)
    assert not model.get_weights()[1].any()
    pictures = X.reshape(20, 2, 2)
    np.testing.assert_allclose(outputs_of(torch, stack, pictures), model.predict(X), rtol=1e-12)


def test_a_layer_by_itself(torch):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    hold_equal(torch, layer, from_torch(layer, "mse", backend="numpy"), X)


def test_bytes_are_taken_as_they_are(torch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4)).astype(np.uint8)
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2).double()
    model = from_torch(layer, "mse", backend="numpy")
    np.testing.assert_allclose(model.predict(pixels), outputs_of(torch, layer, pixels.astype(float)), rtol=1e-12)
    model = network(dtype="float64")
    model.fit(pixels, np.arange(20) % 3, epochs=1, verbose=0)
    np.testing.assert_allclose(
        outputs_of(torch, to_torch(model), pixels.astype(float)), logits_of(model, pixels), rtol=1e-12
    )


def test_what_trains_on_one_side_is_not_the_other(torch):
    module = to_torch(network())
    model = from_torch(module, "mse", backend="numpy")
    before = model.get_weights()[0].copy()
    with torch.no_grad():
        module[0].weight.zero_()
    assert_same_bits(model.get_weights()[0], before)


def test_nothing_is_drawn_from_the_global_stream(torch):
    before = torch.get_rng_state()
    to_torch(network())
    assert (torch.get_rng_state() == before).all()


REFUSED = {
    "Conv2d(1, 1, 1)": "module[0] is Conv2d; expected Linear, Dropout, Flatten at first",
    "Linear(4, 3), BatchNorm1d(3)": "module[1] is BatchNorm1d; expected Linear",
    "ReLU(), Linear(4, 3)": "module[0] is relu of the inputs; expected it after a dense layer",
    "Linear(4, 3), ReLU(), Tanh()": "module[2] is tanh after relu; expected one activation a layer",
    "Linear(4, 3), Dropout(0.5), ReLU(), Linear(3, 3)": "module[2] is relu after dropout; expected it after a dense",
    "Linear(4, 3), Dropout(0.5), Dropout(0.5), Linear(3, 3)": "module[2] is dropout after dropout; expected one rate",
    "Linear(4, 3), ReLU(), Dropout(0.5)": "there is dropout of the outputs; expected a dense layer after it",
    "Linear(4, 3), LeakyReLU(0.2)": "module[1] is LeakyReLU(negative_slope=0.2); expected negative_slope=0.01",
    "Linear(4, 3), GELU('tanh')": "module[1] is GELU(approximate='tanh'); expected approximate='none'",
    "Linear(4, 3), ELU(0.5)": "module[1] is ELU(alpha=0.5); expected alpha=1.0",
    "Linear(4, 3), Softplus(2.0)": "expected beta=1.0, threshold=20.0",
    "Linear(4, 3), Softmax(dim=0)": "module[1] is Softmax(dim=0); expected it over the outputs, dim=1",
    "Linear(4, 3), Softmax(dim=1), Linear(3, 3)": "module[2] is a dense layer after softmax; expected softmax at the",
    "Linear(4, 3), Flatten()": "module[1] is Flatten(start_dim=1, end_dim=-1); expected Flatten() before the first",
    "Linear(4, 3), Linear(4, 3)": "module[1] is a dense layer of 4 inputs; expected 3 of them",
    "Sequential(Linear(4, 3), Hardtanh())": "module[0][1] is Hardtanh; expected Linear",
    "Linear(4, 3), Softmax(dim=1)": "the outputs have 'softmax'; for the loss 'mean_squared_error' expected one that",
    "Linear(4, 3).half()": "from_torch: the weights are float16; expected all float32, or all float64",
    "Linear(4, 3).bfloat16()": "module[0] is a layer whose weights NumPy cannot hold",
    "LazyLinear(3)": "module[0] is a LazyLinear with hooks; expected one without",
    "Linear(4, 3), Linear(3, 2).double()": "the weights are float32, float64; expected all float32, or all float64",
    "Flatten()": "there is no dense layer; expected one at least",
}


@pytest.mark.parametrize("layers", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(torch, layers):
    stack = eval(f"Sequential({layers})", vars(torch.nn).copy())
    with pytest.raises(ValueError, match=re.escape(REFUSED[layers])):
        from_torch(stack, "mse", backend="numpy")


def test_a_link_that_is_not_the_losss_is_refused(torch):
    nn = torch.nn
    for last, loss in ((nn.Sigmoid(), "softmax_cross_entropy"), (nn.Softmax(1), "sigmoid_cross_entropy")):
        with pytest.raises(ValueError, match=f"for the loss '{loss}' expected 's.*' or none"):
            from_torch(nn.Sequential(nn.Linear(4, 3), last), loss, backend="numpy")
    with pytest.raises(ValueError, match="for the loss 'categorical_hinge' expected none"):
        from_torch(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "categorical_hinge", backend="numpy")


def test_what_is_computed_by_hooks_or_by_a_class_of_ones_own_is_refused(torch):
    nn = torch.nn

    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Stack(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Linear(4, 3)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    for module, said in ((Twice(4, 3), "is Twice;"), (Stack(nn.Linear(4, 3)), "is Stack;"), (hooked, "with hooks;")):
        with pytest.raises(ValueError, match=said):
            from_torch(module, "mse")
        with pytest.raises(ValueError, match=said):
            from_torch(nn.Sequential(module), "mse")


def test_what_is_no_module_is_told(torch):
    with pytest.raises(TypeError, match=re.escape("module must be a torch.nn.Sequential, got dict")):
        from_torch({}, "mse")
    with pytest.raises(
        TypeError,
        match=re.escape("model must be a fastmlp.MLP, or a fitted fastmlp.MLPClassifier or MLPRegressor, got Linear"),
    ):
        to_torch(torch.nn.Linear(2, 2))


def test_activations_that_pytorch_has_not_are_refused(torch):
    with pytest.raises(
        ValueError, match="PyTorch has no counterpart of the activation 'sin'; only of 'identity', 'relu'"
    ):
        to_torch(network(activation="sin"))


def test_an_estimator_is_taken_with_its_temperature(torch):
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("f4")
    estimator = fastmlp.MLPClassifier((5,), epochs=2, random_state=0, backend="numpy").fit(x, np.arange(30) % 3)
    estimator.temperature_ = 2.0
    with torch.no_grad():
        found = to_torch(estimator)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, estimator.decision_function(x), atol=1e-5)
