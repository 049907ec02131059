"""The step-by-step functions give the notebook's numbers, right gradients, and errors that say what to mend."""

import numpy as np
import pytest
from compare import assert_close, assert_same_bits, unchanged

from fastmlp import MLP, SGD, get_backend
from fastmlp import stepbystep as steps
from fastmlp.stepbystep import notebook

COLUMNS_OF_DISK = 120


def legacy(seed, *shapes):
    """Return arrays that NumPy's legacy generator draws one after the other."""
    random = np.random.RandomState(seed)
    return [random.randn(*shape) for shape in shapes]


def printed(array, expected):
    """Assert that an array, printed with eight decimals as NumPy prints it, shows these numbers."""
    np.testing.assert_array_equal(np.round(array, 8), expected)


def three_layers():
    names = ("X", "W1", "b1", "W2", "b2", "W3", "b3")
    found = dict(zip(names, legacy(6, (5, 4), (4, 5), (4, 1), (3, 4), (3, 1), (1, 3), (1, 1)), strict=True))
    return found.pop("X"), found


def disk():
    x = np.random.default_rng(0).uniform(-1, 1, (2, COLUMNS_OF_DISK))
    return x, ((x**2).sum(axis=0, keepdims=True) < 0.5).astype(int)


# --- the numbers that the notebook prints ---------------------------------------------------------------------------


def test_initialize_parameters():
    found = steps.initialize_parameters(3, 2, 1)
    printed(found["W1"], [[0.01624345, -0.00611756, -0.00528172], [-0.01072969, 0.00865408, -0.02301539]])
    printed(found["W2"], [[0.01744812, -0.00761207]])
    np.testing.assert_array_equal(found["b1"], np.zeros((2, 1)))
    np.testing.assert_array_equal(found["b2"], np.zeros((1, 1)))


def test_initialize_parameters_deep():
    found = steps.initialize_parameters_deep([5, 4, 3])
    assert {name: a.shape for name, a in found.items()} == {"W1": (4, 5), "b1": (4, 1), "W2": (3, 4), "b2": (3, 1)}
    printed(found["W1"][0], [0.01788628, 0.0043651, 0.00096497, -0.01863493, -0.00277388])
    printed(found["W2"][2], [-0.00768836, -0.00230031, 0.00745056, 0.01976111])


def test_linear_forward():
    A, W, b = legacy(1, (3, 2), (1, 3), (1, 1))
    Z, cache = steps.linear_forward(A, W, b)
    printed(Z, [[3.26295337, -1.23429987]])
    assert all(kept is given for kept, given in zip(cache, (A, W, b), strict=True))


def test_linear_activation_forward():
    given = legacy(2, (3, 2), (1, 3), (1, 1))
    A, (linear_cache, Z) = steps.linear_activation_forward(*given, "sigmoid")
    printed(A, [[0.96890023, 0.11013289]])
    assert all(kept is g for kept, g in zip(linear_cache, given, strict=True))
    np.testing.assert_array_equal(Z, steps.linear_forward(*given)[0])
    printed(steps.linear_activation_forward(*given, activation="relu")[0], [[3.43896131, 0]])


def test_l_model_forward():
    AL, caches = steps.L_model_forward(*three_layers())
    printed(AL, [[0.03921668, 0.70498921, 0.19734387, 0.04728177]])
    assert len(caches) == 3


def test_compute_cost():
    cost = steps.compute_cost(np.array([[0.8, 0.9, 0.4]]), np.array([[1, 1, 0]]))
    assert str(cost) == "0.2797765635793422"
    assert cost.shape == ()


def test_linear_backward():
    dZ, A, W, b = legacy(1, (3, 4), (5, 4), (3, 5), (3, 1))
    dA_prev, dW, db = steps.linear_backward(dZ, (A, W, b))
    printed(db, [[-0.14713786], [-0.11313155], [-0.13209101]])
    printed(dA_prev[0], [-1.15171336, 0.06718465, -0.3204696, 2.09812712])
    assert dW.shape == W.shape


# --- the backward functions, by other means -------------------------------------------------------------------------


def differences(f, array, step=1e-6):
    """Return the derivatives of a number by each element of an array, which is put back as it was."""
    found = np.zeros(array.shape)
    for i in np.ndindex(array.shape):
        kept, sides = array[i], []
        for sign in (1, -1):
            array[i] = kept + sign * step
            sides.append(f())
        array[i] = kept
        found[i] = (sides[0] - sides[1]) / (2 * step)
    return found


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "gelu"])
def test_linear_activation_backward_agrees_with_differences(activation):
    dA, A_prev, W, b = legacy(2, (3, 4), (5, 4), (3, 5), (3, 1))

    def total():
        return (dA * steps.linear_activation_forward(A_prev, W, b, activation)[0]).sum()

    cache = steps.linear_activation_forward(A_prev, W, b, activation)[1]
    dA_prev, dW, db = steps.linear_activation_backward(dA, cache, activation)
    # dW and db are divided by the number of examples, dA_prev is not
    for got, array, divisor in ((dA_prev, A_prev, 1), (dW, W, 4), (db, b, 4)):
        np.testing.assert_allclose(got, differences(total, array) / divisor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["sigmoid", "relu"])
def test_activation_backward_takes_its_cache(name):
    dA, Z = legacy(3, (3, 4), (3, 4))
    forward, backward = getattr(steps, name), getattr(steps, f"{name}_backward")
    cache = forward(Z)[1]
    assert cache is Z
    by_differences = differences(lambda: (dA * forward(Z)[0]).sum(), Z)
    np.testing.assert_allclose(backward(dA, cache), by_differences, rtol=1e-6, atol=1e-8)


def test_l_model_backward_agrees_with_differences():
    X, parameters = three_layers()
    Y = np.array([[1, 0, 0, 1]])

    def cost():
        return steps.compute_cost(steps.L_model_forward(X, parameters)[0], Y)

    AL, caches = steps.L_model_forward(X, parameters)
    grads = steps.L_model_backward(AL, Y, caches)
    assert set(grads) == {f"{d}{i}" for i in (1, 2, 3) for d in ("dW", "db")} | {"dA0", "dA1", "dA2"}
    for name, array in parameters.items():
        np.testing.assert_allclose(grads[f"d{name}"], differences(cost, array), rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(grads["dA0"], 4 * differences(cost, X), rtol=1e-6, atol=1e-9)


def test_the_cost_of_several_outputs_is_their_sum_and_its_gradient_follows():
    X, parameters = three_layers()
    parameters["W3"], parameters["b3"] = legacy(7, (2, 3), (2, 1))
    Y = np.array([[1, 0, 0, 1], [1, 1, 0, 0]])

    def cost():
        return steps.compute_cost(steps.L_model_forward(X, parameters)[0], Y)

    AL, caches = steps.L_model_forward(X, parameters)
    assert np.isclose(cost(), sum(steps.compute_cost(AL[i : i + 1], Y[i]) for i in (0, 1)), rtol=1e-14)
    grads = steps.L_model_backward(AL, Y, caches)
    for name, array in parameters.items():
        np.testing.assert_allclose(grads[f"d{name}"], differences(cost, array), rtol=1e-6, atol=1e-9, err_msg=name)


def test_l_model_backward_takes_caches_and_outputs_that_are_not_of_one_pass():
    # as the notebook's own test has them: so the formula for dAL must be the notebook's, AL - Y would not do
    AL, A1, W1, b1, Z1, A2, W2, b2, Z2 = legacy(
        3, (1, 2), (4, 2), (3, 4), (3, 1), (3, 2), (3, 2), (1, 3), (1, 1), (1, 2)
    )
    Y = np.array([[1, 0]])
    grads = steps.L_model_backward(AL, Y, [((A1, W1, b1), Z1), ((A2, W2, b2), Z2)])
    s = 1 / (1 + np.exp(-Z2))
    dZ2 = -(Y / AL - (1 - Y) / (1 - AL)) * s * (1 - s)
    dZ1 = W2.T @ dZ2 * (Z1 > 0)
    expected = {"dA1": W2.T @ dZ2, "dW2": dZ2 @ A2.T / 2, "dA0": W1.T @ dZ1, "dW1": dZ1 @ A1.T / 2}
    for name, array in expected.items():
        np.testing.assert_allclose(grads[name], array, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(grads["db1"], dZ1.mean(axis=1, keepdims=True), rtol=1e-12, atol=1e-14)


def test_outputs_of_exactly_0_and_1_have_a_cost_and_a_gradient():
    Z = np.array([[800.0, -800.0, 800.0]])
    caches = [((np.ones((1, 3)), np.ones((1, 1)), np.zeros((1, 1))), Z)]
    AL, Y = steps.sigmoid(Z)[0], np.array([[1, 0, 0]])
    np.testing.assert_array_equal(AL, [[1, 0, 1]])
    assert str(steps.compute_cost(AL[:, :2], Y[:, :2])) == "0.0"
    assert steps.compute_cost(AL, Y) == np.inf
    assert steps.L_model_backward(AL, Y, caches)["dW1"] == 1 / 3  # of AL - Y = 0, 0, 1


def test_update_parameters_goes_downhill_and_leaves_what_it_is_given():
    parameters = dict(zip(("W1", "b1", "W2", "b2"), legacy(2, (3, 4), (3, 1), (1, 3), (1, 1)), strict=True))
    grads = dict(zip(("dW1", "db1", "dW2", "db2"), legacy(3, (3, 4), (3, 1), (1, 3), (1, 1)), strict=True))
    with unchanged(get_backend("numpy"), *parameters.values(), *grads.values()):
        updated = steps.update_parameters(parameters, grads, 0.1)
    assert list(updated) == list(parameters)
    for name, p in parameters.items():
        assert_close(updated[name], p - 0.1 * grads[f"d{name}"])


# --- the same as the library ----------------------------------------------------------------------------------------


def as_model(parameters, backend):
    """Return the network with these parameters, rows being examples."""
    units = [parameters["W1"].shape[1], *(w.shape[0] for name, w in parameters.items() if name[0] == "W")]
    model = MLP(units, loss="sigmoid_cross_entropy", dtype="float64", backend=backend, seed=0)
    model.set_weights([a.T if name[0] == "W" else a[:, 0] for name, a in parameters.items()])
    return model


def test_gradients_and_cost_are_those_of_an_mlp(backend):
    X, parameters = three_layers()
    Y = np.array([[1, 0, 0, 1]])
    AL, caches = steps.L_model_forward(X, parameters)
    grads = steps.L_model_backward(AL, Y, caches)
    loss, gradients = as_model(parameters, backend).loss_and_gradients(X.T, Y.T)
    assert_close(np.array(loss), steps.compute_cost(AL, Y), k=4)
    for name, gradient in zip(parameters, gradients, strict=True):
        assert_close(gradient.T.reshape(parameters[name].shape), grads[f"d{name}"], k=20, c=16)


def test_training_is_that_of_an_mlp_under_plain_sgd(backend):
    X, Y = disk()
    start = steps.initialize_parameters_deep((2, 6, 4, 1), seed=1, scale=None)
    trained, costs = steps.L_layer_model(X, Y, (2, 6, 4, 1), learning_rate=0.5, num_iterations=101)
    model = as_model(start, backend)
    history = model.fit(X.T, Y[0], epochs=101, batch_size=COLUMNS_OF_DISK, optimizer=SGD(0.5), verbose=0)
    # 101 steps of rectifiers amplify rounding, so no promise is made to the last digit
    np.testing.assert_allclose(costs, history.history["loss"][::100], rtol=1e-9)
    for name, array in zip(trained, model.get_weights(), strict=True):
        np.testing.assert_allclose(array.T.reshape(trained[name].shape), trained[name], rtol=1e-7, atol=1e-9)


def test_the_two_layer_model_learns_and_says_so(capsys):
    X, Y = disk()
    parameters, costs = steps.two_layer_model(X, Y, (2, 12, 1), learning_rate=1.0, num_iterations=1500, print_cost=True)
    assert len(costs) == 15 and abs(costs[0] - np.log(2)) < 1e-3 and costs[-1] < 0.25
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"Cost after iteration 100: {costs[1]}" and len(lines) == 15
    p = steps.predict(X, Y, parameters)
    share = (p == Y).mean()
    assert p.shape == Y.shape and set(np.unique(p)) == {0.0, 1.0} and share > 0.9
    assert capsys.readouterr().out == f"Accuracy: {share}\n"
    assert steps.accuracy(X, Y[0], parameters) == share


def test_the_global_generator_stays_as_it_was():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    steps.initialize_parameters(3, 2, 1)
    steps.initialize_parameters_deep((3, 2))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_arguments_stay_as_they_were_and_single_precision_stays_single():
    X, parameters = three_layers()
    X, parameters = X.astype("f4"), {name: a.astype("f4") for name, a in parameters.items()}
    Y = np.array([[1, 0, 0, 1]])
    with unchanged(get_backend("numpy"), X, Y, *parameters.values()):
        AL, caches = steps.L_model_forward(X, parameters)
        kept = AL.copy()
        grads = steps.L_model_backward(AL, Y, caches)
        updated = steps.update_parameters(parameters, grads, 0.1)
    assert_same_bits(AL, kept)
    assert {a.dtype for a in (AL, *grads.values(), *updated.values())} == {np.dtype("f4")}


def test_integers_are_computed_with_in_double_precision():
    Z, _ = steps.linear_forward(np.array([[1, 2]]), np.array([[3]]), np.array([[1]]))
    assert Z.dtype == np.float64 and Z.tolist() == [[4, 7]]
    assert steps.sigmoid(np.array([0, 0]))[0].tolist() == [0.5, 0.5]


def everything(X, Y, parameters):
    """Return all that the functions make of these, by name."""
    AL, caches = steps.L_model_forward(X, parameters)
    grads = steps.L_model_backward(AL, Y, caches)
    updated = steps.update_parameters(parameters, grads, 0.1)
    trained, costs = steps.L_layer_model(X, Y, (5, 3, 1), num_iterations=3)
    found = {"AL": AL, "Z1": caches[0][1], **grads} | updated | {f"trained {n}": a for n, a in trained.items()}
    return found | {"cost": steps.compute_cost(AL, Y), "first cost": costs[0]}


def test_results_are_arrays_of_the_kind_given(backend, monkeypatch):
    kind = type(backend.asarray(np.ones(1)))
    if kind.__module__ == "cupy_arrays":  # kinds are told apart by it
        monkeypatch.setattr(kind, "__module__", "cupy")
    X, parameters = three_layers()
    Y = np.array([[1, 0, 0, 1]])
    expected = everything(X, Y, parameters)
    found = everything(*map(backend.asarray, (X, Y)), {name: backend.asarray(a) for name, a in parameters.items()})
    for name, value in found.items():
        if "cost" not in name:
            assert type(value) is type(backend.asarray(X)), name
            value = backend.to_numpy(value)
        assert_close(np.asarray(value), expected[name], k=20, c=16, what=name)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_a_shape_that_does_not_fit_names_layer_array_got_and_expected():
    X, parameters = three_layers()
    wrong = parameters | {"W2": np.zeros((3, 5))}
    with pytest.raises(ValueError, match=r"layer 2: W is \(3, 5\), expected \(3, 4\), since A_prev is \(4, 4\)"):
        steps.L_model_forward(X, wrong)
    with pytest.raises(ValueError, match=r"layer 3: b is \(1,\), expected \(1, 1\), since W is \(1, 3\)"):
        steps.L_model_forward(X, parameters | {"b3": np.zeros(1)})
    with pytest.raises(ValueError, match=r"^W is \(1, 4\), expected \(1, 5\), since A is \(5, 4\)"):
        steps.linear_forward(X, np.zeros((1, 4)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"layer 1: A_prev is \(5,\), expected a matrix; columns are examples"):
        steps.L_model_forward(X[:, 0], parameters)


def test_backward_and_update_name_what_does_not_fit():
    X, parameters = three_layers()
    AL, caches = steps.L_model_forward(X, parameters)
    grads = steps.L_model_backward(AL, np.ones((1, 4)), caches)
    with pytest.raises(ValueError, match=r"Y is \(4, 1\), expected \(1, 4\), since AL is \(1, 4\)"):
        steps.L_model_backward(AL, np.ones((4, 1)), caches)
    with pytest.raises(ValueError, match=r"layer 3: dA is \(1, 4\), expected \(3, 4\), since Z is \(3, 4\)"):
        steps.L_model_backward(AL, np.ones((1, 4)), [*caches[:2], caches[1]])
    with pytest.raises(
        ValueError, match=r"^dZ is \(2, 4\), expected \(3, 4\), since A_prev is \(4, 4\) and W \(3, 4\)"
    ):
        steps.linear_backward(np.zeros((2, 4)), caches[1][0])
    with pytest.raises(ValueError, match=r"layer 2: dW2 is \(1, 3\), expected \(3, 4\), since W2 is \(3, 4\)"):
        steps.update_parameters(parameters, grads | {"dW2": grads["dW3"]}, 0.1)
    del grads["db1"]
    with pytest.raises(ValueError, match="layer 1: grads has no 'db1'; there are dA2, dW3"):
        steps.update_parameters(parameters, grads, 0.1)
    del parameters["b2"]
    with pytest.raises(ValueError, match="layer 2: parameters has no 'b2'; there are W1, b1, W2, W3, b3"):
        steps.L_model_forward(X, parameters)


def test_what_is_no_array_or_no_number_is_refused():
    X, parameters = three_layers()
    with pytest.raises(ValueError, match="activation 'sigmiod' is not known; did you mean 'sigmoid'"):
        steps.linear_activation_forward(X, parameters["W1"], parameters["b1"], "sigmiod")
    with pytest.raises(TypeError, match="real numbers, up to float64"):
        steps.linear_forward(X.astype(complex), parameters["W1"], parameters["b1"])
    with pytest.raises(TypeError, match="Z must be a NumPy array or a CuPy array, got list of builtins"):
        steps.sigmoid([1.0])
    with pytest.raises(ValueError, match=r"layers_dims must be \(n_x, n_h, n_y\), got \(2, 1\)"):
        steps.two_layer_model(X, X[:1] > 0, (2, 1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        steps.initialize_parameters_deep((2, 0))
    with pytest.raises(ValueError, match="n_h must be at least 1, got -1"):
        steps.initialize_parameters(2, -1, 1)
    for train in (steps.two_layer_model, steps.L_layer_model):
        with pytest.raises(TypeError, match=r"layers_dims must be numbers of units such as \(2, 4, 1\), got 5"):
            train(X, X[:1] > 0, 5)
        with pytest.raises(ValueError, match=r"^X is \(4, 5\), expected \(5, 5\), since layers_dims is \(5, 3, 1\)"):
            train(X.T, X[:1] > 0, (5, 3, 1))
    for rate, error, message in ((None, TypeError, "a number, got None"), (np.inf, ValueError, "finite, got inf")):
        with pytest.raises(error, match=f"learning_rate must be {message}"):
            steps.update_parameters(parameters, {}, rate)


def test_no_examples_have_no_mean():
    X, parameters = three_layers()
    AL, caches = steps.L_model_forward(X[:, :0], parameters)
    with pytest.raises(ValueError, match=r"AL is \(1, 0\), expected at least one column"):
        steps.compute_cost(AL, AL)
    with pytest.raises(ValueError, match=r"^dZ is \(1, 0\), expected at least one column"):
        steps.linear_backward(AL, caches[-1][0])


def test_what_is_not_the_cache_is_refused():
    X, parameters = three_layers()
    AL, caches = steps.L_model_forward(X, parameters)
    with pytest.raises(TypeError, match=r"^cache is a ndarray, expected \(A_prev, W, b\), what linear"):
        steps.linear_backward(AL, X)
    with pytest.raises(TypeError, match=r"cache is a tuple of 3, expected \(linear_cache, Z\)"):
        steps.linear_activation_backward(AL, caches[-1][0], "sigmoid")
    with pytest.raises(TypeError, match=r"layer 2: cache is a NoneType, expected \(linear_cache, Z\)"):
        steps.L_model_backward(AL, np.ones((1, 4)), [caches[0], None, caches[2]])


def test_importing_all_gives_the_functions_and_nothing_else():
    found = {}
    exec("from fastmlp.stepbystep import *", found)
    own = {name for name, value in vars(notebook).items() if getattr(value, "__module__", "") == notebook.__name__}
    assert set(found) - {"__builtins__"} == {name for name in own if not name.startswith("_")}
