"""Wrong values for each argument of `plots`, `stepbystep` and `parallel`; see `test_wrong_arguments`."""

import inspect

import numpy as np
import pytest
from test_wrong_arguments import FLAGS, NUMBERS, TEXTS, faults_of, labels

from fastmlp import MLP, parallel, plots, stepbystep

TABLE = []
ANY_TEXT = f"{TEXTS} empty|text"
X = np.random.default_rng(0).random((6, 6))
Y = np.array([0, 1, 0, 1, 1, 0])
CHANCES = np.eye(2)[Y]
POINTS = X[:, :2]


def argument(name, call, taken="", named=None, left_out=""):
    """List an argument, as in `test_wrong_arguments`."""
    TABLE.append(pytest.param(named or name.rpartition(" ")[2], call, labels(taken), labels(left_out), id=name))


def of(function, *given, **options):
    """Return what lists a function's arguments, with values that are right for all but the one at hand."""
    defaults = inspect.signature(function).bind(*given, **options).arguments

    def call(name):
        return lambda value: function(**{**defaults, name: value})

    return call


def small(units=(2, 3, 2), **options):
    return MLP(units, backend="numpy", seed=0, **options)


# --- several processes ----------------------------------------------------------------------------------------------

argument("memory_estimate parallel", lambda v: small((6, 2)).memory_estimate(X, Y, parallel=v), "None")
argument("mpi comm", lambda v: parallel.mpi(v), left_out="None")
argument("mpi shards", lambda v: parallel.mpi(shards=v), left_out="None 2**70 10**400")
argument("mpi timeout", lambda v: parallel.mpi(timeout=v), left_out=NUMBERS)
argument("in_threads function", lambda v: parallel.in_threads(v, 1), left_out="type function")
argument("in_threads ranks", lambda v: parallel.in_threads(id, v), left_out="2**70 10**400")
argument("in_threads shards", lambda v: parallel.in_threads(id, 1, shards=v), "None 2**70 10**400")
argument("in_threads timeout", lambda v: parallel.in_threads(id, 1, timeout=v), NUMBERS)

# --- pictures -------------------------------------------------------------------------------------------------------

curves = of(plots.curves, {"loss": [1.0, 0.5]})
argument("curves history", curves("history"))
argument("curves axes", curves("axes"), "None")
lines = of(plots.lines, {"a": [1.0, 2.0]})
argument("lines series", lines("series"), named="series|lines: 'a'")
argument("lines values", lambda v: plots.lines({"a": v}), "array|1-d array|of|bool", named="lines: 'a'")
for label in ("xlabel", "ylabel"):
    argument(f"lines {label}", lines(label), ANY_TEXT)
for scale in ("xscale", "yscale"):
    argument(f"lines {scale}", lines(scale))
argument("lines ax", lines("ax"), "None")
confusion = of(plots.confusion, Y, Y)
argument("confusion y_true", confusion("y_true"), named="confusion: .*y_true|confusion: expected two")
argument("confusion y_predicted", confusion("y_predicted"), named="confusion: .*y_predicted|confusion: expected two")
argument("confusion class_names", confusion("class_names"), "None generator array|1-d array|of|bool")
argument("confusion ax", confusion("ax"), "None")
for function, number in ((plots.mistakes, "count"), (plots.samples, "columns")):
    who = function.__name__
    images = of(function, X, Y, 1 - CHANCES, image_shape=(2, 3))
    expected = f"|{who}: expected as many"
    argument(f"{who} x", images("x"), named=rf"{who}: .*\bx\b|{who}: images{expected}")
    argument(f"{who} y_true", images("y_true"), named=f"y_true{expected}")
    argument(f"{who} probabilities", images("probabilities"), named=f"probabilities{expected}")
    argument(f"{who} class_names", images("class_names"), "None generator array|1-d array|of|bool")
    argument(f"{who} image_shape", images("image_shape"), "", named="image_shape|images of")
    argument(f"{who} {number}", images(number), "2**70 10**400")
    argument(f"{who} axes", images("axes"), "None")
first = of(plots.first_layer, X, (2, 3))
argument("first_layer weights", first("weights"), named="weights")
argument("first_layer image_shape", first("image_shape"), named="image_shape|images of")
argument("first_layer count", first("count"), "2**70 10**400")
argument("first_layer columns", first("columns"), "2**70 10**400")
argument("first_layer axes", first("axes"), "None")
regions = of(plots.regions, small(), POINTS, Y, resolution=5)
argument("regions model", regions("model"), left_out="type function")
argument("regions x", regions("x"), named="regions: .*x|regions: expected points")
argument("regions y", regions("y"), named="regions: .*y|regions: expected points")
argument("regions class_names", regions("class_names"), "None generator array|1-d array|of|bool")
argument("regions title", regions("title"), ANY_TEXT)
argument("regions resolution", regions("resolution"), left_out="2**70 10**400")
argument("regions legend", regions("legend"), FLAGS)
argument("regions ax", regions("ax"), "None")
shown = of(plots.approximation, np.sin, small((1, 3, 1), loss="mean_squared_error"), (0.0, 1.0), resolution=5)
argument("approximation function", shown("function"), left_out="type function")
argument("approximation model", shown("model"), left_out="type function")
argument("approximation interval", shown("interval"))
argument("approximation points", shown("points"), "None")
argument("approximation title", shown("title"), f"None {ANY_TEXT}")
argument("approximation resolution", shown("resolution"), left_out="2**70 10**400")
argument("approximation legend", shown("legend"), FLAGS)
argument("approximation ax", shown("ax"), "None")
panels = of(plots.panels, 1, 1)
argument("panels rows", panels("rows"), left_out="2**70 10**400")
argument("panels columns", panels("columns"), left_out="2**70 10**400")
argument("panels width", panels("width"), "2.5 Fraction", left_out="2**70")
argument("panels height", panels("height"), "2.5 Fraction", left_out="2**70")
for function in (plots.save, plots.save_both):
    who = function.__name__
    argument(f"{who} drawn", lambda v, f=function: f(v, "a.png"), named=f"{who}|save")
    argument(f"{who} path", lambda v, f=function: f(plots.panels()[0], v), TEXTS, named="path|the name of a picture")


# --- step by step ---------------------------------------------------------------------------------------------------

S = stepbystep
A, W, B = np.ones((3, 5)), np.ones((2, 3)), np.ones((2, 1))
Z, LINEAR = S.linear_forward(A, W, B)
OUT, CACHE = S.linear_activation_forward(A, W, B, "relu")
PARAMETERS = S.initialize_parameters_deep((3, 2, 1))
AL, CACHES = S.L_model_forward(A, PARAMETERS)
TRUTH = np.array([[0.0, 1.0, 0.0, 1.0, 1.0]])
GRADS = S.L_model_backward(AL, TRUTH, CACHES)
STEPS = [
    (S.initialize_parameters, (3, 2, 1)),
    (S.initialize_parameters_deep, ((3, 2, 1),)),
    (S.update_parameters, (PARAMETERS, GRADS, 0.1)),
    (S.linear_forward, (A, W, B)),
    (S.sigmoid, (Z,)),
    (S.relu, (Z,)),
    (S.linear_activation_forward, (A, W, B, "relu")),
    (S.L_model_forward, (A, PARAMETERS)),
    (S.compute_cost, (AL, TRUTH)),
    (S.linear_backward, (OUT, LINEAR)),
    (S.sigmoid_backward, (OUT, Z)),
    (S.relu_backward, (OUT, Z)),
    (S.linear_activation_backward, (OUT, CACHE, "relu")),
    (S.L_model_backward, (AL, TRUTH, CACHES)),
    (S.two_layer_model, (A, TRUTH, (3, 2, 1), 0.1, 2)),
    (S.L_layer_model, (A, TRUTH, (3, 2, 1), 0.1, 2)),
    (S.predict, (A, TRUTH, PARAMETERS)),
    (S.accuracy, (A, TRUTH, PARAMETERS)),
]
TAKEN = {
    "learning_rate": NUMBERS + " -1",
    "scale": NUMBERS + " None -1 False",
    "print_cost": FLAGS,
    "Z": "array|1-d array|3-d array|of|bool empty|array numpy|nan numpy|bool",
}
NAMES = {"A_prev": "A_prev|A", "cache": "cache|Z", "caches": r"caches|layer \d+: cache", "X": "X|A_prev", "y": "y|Y"}
for function, given in STEPS:
    for name in inspect.signature(function).parameters:
        slow = "2**70 10**400" if name in ("n_x", "n_h", "n_y", "num_iterations", "seed") else ""
        argument(f"{function.__name__} {name}", of(function, *given)(name), TAKEN.get(name, ""), NAMES.get(name), slow)


@pytest.mark.parametrize(("named", "call", "taken", "left_out"), TABLE)
def test_a_wrong_value_is_refused_by_name(named, call, taken, left_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert faults_of(named, call, taken, left_out) == []


def test_every_public_name_has_its_rows():
    told = {param.id.split()[0] for param in TABLE}
    for module in (plots, stepbystep):
        functions = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
        assert functions <= told
