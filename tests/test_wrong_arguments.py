"""Wrong values for each argument of each public callable: taken as documented, or refused by an error that names it.

An error from a library below, or of Python's own from inside, says nothing to who made the call.
"""

import dataclasses
import datetime
import io
import itertools
import re
import traceback
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp import approximation, features

PACKAGE = Path(fastmlp.__file__).parent
X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.array([0, 1, 0, 1, 1, 0])

VALUES = {
    "None": None,
    "True": True,
    "False": False,
    "text": "no",
    "empty text": "",
    "digits": "3",
    "bytes": b"no",
    "complex": 1 + 2j,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": -float("inf"),
    "-1": -1,
    "2**70": 2**70,
    "10**400": 10**400,
    "2.5": 2.5,
    "Decimal": Decimal("0.5"),
    "Fraction": Fraction(1, 2),
    "NaN of Decimal": Decimal("nan"),
    "date": datetime.date(2024, 1, 1),
    "[]": [],
    "ragged": [[1, 2], [3]],
    "list of None": [None],
    "()": (),
    "{}": {},
    "dict": {"a": 1},
    "set": {1, 2},
    "object": object(),
    "type": int,
    "function": len,
    "module": np,
    "file": lambda: io.BytesIO(b"12"),
    "generator": lambda: iter((1.5, 2.5)),
    "numpy nan": np.float32("nan"),
    "numpy text": np.str_("no"),
    "numpy date": np.datetime64("2024-01-01"),
    "numpy bool": np.True_,
    "numpy complex": np.complex64(1j),
    "0-d text": np.array("no"),
    "empty array": np.zeros(0),
    "array 1-d": np.array([1.5, 2.5, 3.5]),
    "array 3-d": np.zeros((2, 2, 2)),
    "array of bool": np.array([True, False]),
    "array of complex": np.ones((6, 3)) * 1j,
    "array of dates": np.array(["2024-01-01"] * 6, "M8[D]"),
    "array of text": np.array([["a", "b", "c"]] * 6),
    "array of objects": np.array([None, {}, "a", 1, 2, 3], object),
    "array of records": np.zeros(6, [("a", "f8"), ("b", "i4")]),
    "masked array": np.ma.masked_array([0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]),
}

READ_ONCE = ("file", "generator")


def value_of(label):
    return VALUES[label]() if label in READ_ONCE else VALUES[label]


SEQUENCES = "[] () empty|array"
NUMBERS = "2.5 Fraction 2**70"
FLAGS = "True False numpy|bool"
TEXTS = "text digits numpy|text"
PATHS = TEXTS  # of files that are not there

TABLE = []
NUMBERED = itertools.count()


def labels(text):
    """Return labels of values that are given in one line, where | stands for a space."""
    found = {label.replace("|", " ") for label in text.split()}
    assert found <= set(VALUES), found - set(VALUES)
    return found


def argument(name, call, taken="", named=None, left_out=""):
    """List an argument.

    `taken` are the values that it documents; `named` is a regular expression for what messages call it, where that is
    not its name; `left_out` are values that take for ever, or with which a function of the caller's own fails.
    """
    TABLE.append(pytest.param(named or name.rpartition(" ")[2], call, labels(taken), labels(left_out), id=name))


def model(**options):
    return fastmlp.MLP((3, 4, 2), **{"backend": "numpy", "seed": 0, **options})


def fit(**options):
    given = {"x": X, "y": Y, "epochs": 1, "batch_size": 3, "verbose": 0, **options}
    return model().fit(given.pop("x"), given.pop("y"), **given)


def of_mlp(name):
    return lambda value: fastmlp.MLP(**{"units": (3, 4, 2), "backend": "numpy", "seed": 0, name: value})


argument("MLP units", of_mlp("units"))
argument("MLP activation", of_mlp("activation"))
argument("MLP loss", of_mlp("loss"))
argument("MLP dropout", of_mlp("dropout"), "Fraction False")
argument("MLP l2", of_mlp("l2"), NUMBERS)
argument("MLP max_norm", of_mlp("max_norm"), f"{NUMBERS} None")
argument("MLP initializer", of_mlp("initializer"), "None")
argument("MLP backend", of_mlp("backend"))
argument("MLP dtype", of_mlp("dtype"))
argument("MLP seed", of_mlp("seed"), "None")


def of_fit(name):
    return lambda value: fit(**{name: value})


argument("fit x", of_fit("x"))
argument("fit y", of_fit("y"))
argument("fit epochs", lambda v: fit(epochs=v, callbacks=[fastmlp.TimeLimit(1e-9)]), "2**70 10**400")
argument("fit batch_size", of_fit("batch_size"), "None 2**70 10**400")
argument("fit optimizer", of_fit("optimizer"), "None")
argument("fit sample_weight", of_fit("sample_weight"), "None")
argument("fit class_weight", of_fit("class_weight"), "None {}")
argument("fit validation_data", of_fit("validation_data"), "None")
argument("fit x of validation_data", lambda v: fit(validation_data=(v, Y)), named="x of validation_data")
argument("fit y of validation_data", lambda v: fit(validation_data=(X, v)), named="y of validation_data")
argument(
    "fit sample_weight of validation_data",
    lambda v: fit(validation_data=(X, Y, v)),
    "None",
    named="sample_weight of validation_data",
)
argument("fit validation_split", of_fit("validation_split"), "Fraction")
argument("fit metrics", of_fit("metrics"), f"{SEQUENCES} {{}}")
argument("fit callbacks", of_fit("callbacks"), SEQUENCES)
argument("fit shuffle", of_fit("shuffle"), FLAGS)
argument("fit verbose", of_fit("verbose"), FLAGS)
argument("fit parallel", of_fit("parallel"), "None")
argument("evaluate x", lambda v: model().evaluate(v, Y))
argument("evaluate y", lambda v: model().evaluate(X, v))
argument("evaluate sample_weight", lambda v: model().evaluate(X, Y, v), "None")
argument("evaluate metrics", lambda v: model().evaluate(X, Y, metrics=v), f"{SEQUENCES} {{}}")
argument("predict x", lambda v: model().predict(v))
argument("predict batch_size", lambda v: model().predict(X, v), "None 2**70 10**400")
argument("predict_proba x", lambda v: model().predict_proba(v))
argument("predict_proba batch_size", lambda v: model().predict_proba(X, v), "None 2**70 10**400")
argument("predictor x", lambda v: model().predictor()(v), "array|1-d")
argument("predictor.outputs x", lambda v: model().predictor().outputs(v), "array|1-d")
argument("loss_and_gradients x", lambda v: model().loss_and_gradients(v, Y))
argument("loss_and_gradients y", lambda v: model().loss_and_gradients(X, v))
argument("loss_and_gradients sample_weight", lambda v: model().loss_and_gradients(X, Y, v), "None")
argument("set_weights weights", lambda v: model().set_weights(v))
argument("set_weights W1", lambda v: model().set_weights([v, *model().get_weights()[1:]]), named="weights")
argument(
    "set_weights b1",
    lambda v: model().set_weights([model().get_weights()[0], v, *model().get_weights()[2:]]),
    named="weights",
)
argument("freeze layers", lambda v: model().freeze(v), "-1")
argument("unfreeze layers", lambda v: model().unfreeze(v), "-1")
argument("restore_snapshot arrays", lambda v: model().restore_snapshot(v), named="snapshot")
argument("save path", lambda v: model().save(v), PATHS)
argument("to backend", lambda v: model().to(v))
argument("memory_estimate x", lambda v: model().memory_estimate(v, Y))
argument("memory_estimate y", lambda v: model().memory_estimate(X, v))
argument("memory_estimate batch_size", lambda v: model().memory_estimate(X, Y, batch_size=v), "None 2**70 10**400")
argument("memory_estimate optimizer", lambda v: model().memory_estimate(X, Y, optimizer=v), "None")
argument("memory_estimate sample_weight", lambda v: model().memory_estimate(X, Y, sample_weight=v), "None")
argument("summary print_fn", lambda v: model().summary(v), "function", left_out="type")
argument("class_names", lambda v: setattr(model(), "class_names", v), "None generator array|of|bool")
argument("feature_names", lambda v: setattr(model(), "feature_names", v), "None array|1-d")

argument("load path", lambda v: fastmlp.load(v), PATHS)
argument("get_backend name", lambda v: fastmlp.get_backend(v), named="backend")
argument("get_backend numba threads", lambda v: fastmlp.get_backend("numba", threads=v), "None")
argument("get_backend numba products", lambda v: fastmlp.get_backend("numba", products=v))
argument("register_backend name", lambda v: fastmlp.register_backend(v, "m", "c"), TEXTS)
argument("register_backend module", lambda v: fastmlp.register_backend(new(), v, "C"), TEXTS)
argument("register_backend cls", lambda v: fastmlp.register_backend(new(), "m", v), TEXTS)


def new():
    """Return a name that is not registered."""
    return f"my{next(NUMBERED)}"


def relu(z):
    return np.maximum(z, 0), (z > 0) * 1.0


def tanh(z):
    return np.tanh(z), 1 - np.tanh(z) ** 2


def squares(outputs, targets):
    targets = np.eye(5)[targets] if targets.ndim == 1 else targets
    return ((outputs - targets) ** 2).sum(axis=1), 2 * (outputs - targets)


argument("register_activation name", lambda v: fastmlp.register_activation(v, relu, kinks=(0.0,)), TEXTS)
argument("register_activation function", lambda v: fastmlp.register_activation(new(), v))
argument("register_activation initializer", lambda v: fastmlp.register_activation(new(), relu, initializer=v))
argument(
    "register_activation kinks",
    lambda v: fastmlp.register_activation(new(), tanh, kinks=v),
    f"{SEQUENCES} generator array|1-d",
)
argument("register_loss name", lambda v: fastmlp.register_loss(v, squares), TEXTS)
argument("register_loss function", lambda v: fastmlp.register_loss(new(), v))
argument("register_loss takes_labels", lambda v: fastmlp.register_loss(new(), squares, takes_labels=v), FLAGS)

for check in (fastmlp.gradcheck, fastmlp.parity, fastmlp.profile):
    argument(f"{check.__name__} model", lambda v, check=check: check(v, X, Y))
    argument(f"{check.__name__} x", lambda v, check=check: check(model(), v, Y))
    argument(f"{check.__name__} y", lambda v, check=check: check(model(), X, v))
    argument(f"{check.__name__} sample_weight", lambda v, check=check: check(model(), X, Y, v), "None")
for name, check in (("parity", fastmlp.parity), ("profile", fastmlp.profile)):
    argument(f"{name} optimizer", lambda v, check=check: check(model(), X, Y, optimizer=v), "None")
    argument(f"{name} steps", lambda v, check=check: check(model(), X, Y, steps=v), left_out="2**70 10**400")
    argument(f"{name} batch_size", lambda v, c=check: c(model(), X, Y, batch_size=v), "None 2**70 10**400")
argument("parity backends", lambda v: fastmlp.parity(model(), X, Y, backends=v), "None")
argument("gradcheck directions", lambda v: fastmlp.gradcheck(model(), X, Y, directions=v), left_out="2**70 10**400")
argument("gradcheck seed", lambda v: fastmlp.gradcheck(model(), X, Y, directions=1, seed=v), "2**70 10**400")
argument("EarlyStopping monitor", lambda v: fastmlp.EarlyStopping(v))
argument("EarlyStopping patience", lambda v: fastmlp.EarlyStopping(patience=v), "2**70 10**400")
argument("EarlyStopping min_delta", lambda v: fastmlp.EarlyStopping(min_delta=v), NUMBERS)
argument("EarlyStopping mode", lambda v: fastmlp.EarlyStopping(mode=v))
argument("EarlyStopping restore_best", lambda v: fastmlp.EarlyStopping(restore_best=v), FLAGS)
argument("Checkpoint path", lambda v: fastmlp.Checkpoint(v), PATHS)
argument("Checkpoint every_epochs", lambda v: fastmlp.Checkpoint("c", every_epochs=v), "None 2**70 10**400")
argument("Checkpoint every_steps", lambda v: fastmlp.Checkpoint("c", every_steps=v), "None 2**70 10**400")
argument("Checkpoint every_seconds", lambda v: fastmlp.Checkpoint("c", every_seconds=v), f"None {NUMBERS}")
argument("CSVLog path", lambda v: fastmlp.CSVLog(v), PATHS)
argument("EpochTimer trace", lambda v: fastmlp.EpochTimer(v), f"{PATHS} None")
argument("TimeLimit seconds", lambda v: fastmlp.TimeLimit(v), NUMBERS)
argument("ProgressBar bar", lambda v: fastmlp.ProgressBar(bar=v), FLAGS)
argument("History history", lambda v: fastmlp.History(v), "None {}")
argument("History.to_csv path", lambda v: fastmlp.History().to_csv(v), PATHS)


def records():
    """Return each field of each public record, with what is documented of it."""
    taken = {
        "learning_rate": NUMBERS,
        "weight_decay": NUMBERS,
        "clip_norm": f"{NUMBERS} None",
        "ema": "Fraction None",
        "nesterov": "False numpy|bool True",
        "epsilon": NUMBERS,
        "std": NUMBERS,
        "delta": NUMBERS,
        "power": NUMBERS,
        "final_fraction": NUMBERS,
        "final_rate": NUMBERS,
        "start_divisor": "2.5 2**70",
        "final_divisor": "2.5 2**70",
        "min_rate": NUMBERS,
        "min_delta": NUMBERS,
        "steps": "None 2**70 10**400",
        "warmup_steps": "2**70 10**400",
        "patience": "2**70 10**400",
        "every": "2**70 10**400",
        "monitor": "",
        "mode": "",
    }
    for kind in public_records():
        for field in (field.name for field in dataclasses.fields(kind)):
            options = {"momentum": 0.5} if field == "nesterov" else {}
            allowed = taken.get(field, "Fraction")
            if kind is fastmlp.StepDecay and field == "factor":
                allowed = NUMBERS
            argument(f"{kind.__name__} {field}", lambda v, k=kind, f=field, o=options: k(**{**o, f: v}), allowed)


def public_records():
    found = [getattr(fastmlp, name) for name in fastmlp.__all__]
    return [kind for kind in found if hasattr(kind, "__dataclass_fields__") and kind is not fastmlp.NetworkSpec]


records()


def of_spec(name):
    return lambda value: fastmlp.NetworkSpec(
        **{
            "units": (3, 2),
            "activations": ("identity",),
            "loss": fastmlp.SoftmaxCrossEntropy(),
            "dropout": (0.0,),
            name: value,
        }
    )


argument("NetworkSpec units", of_spec("units"))
argument("NetworkSpec activations", of_spec("activations"))
argument("NetworkSpec loss", of_spec("loss"))
argument("NetworkSpec dropout", of_spec("dropout"))
argument("NetworkSpec l2", of_spec("l2"), NUMBERS)
argument("NetworkSpec max_norm", of_spec("max_norm"), f"{NUMBERS} None")
argument("NetworkSpec initializer", of_spec("initializer"), "None")
argument("NetworkSpec frozen", of_spec("frozen"), SEQUENCES)

argument("load_mnist raw", lambda v: fastmlp.datasets.load_mnist(raw=v, folder="nowhere"), FLAGS, named="raw|nowhere: ")
argument("load_mnist folder", lambda v: fastmlp.datasets.load_mnist(folder=v), named="folder|no: |3: ", left_out="None")
argument("read_idx path", lambda v: fastmlp.datasets.read_idx(v), PATHS)
argument("write_idx path", lambda v: fastmlp.datasets.write_idx(v, X), PATHS)
argument(
    "write_idx array",
    lambda v: fastmlp.datasets.write_idx("a.idx", v),
    f"nan inf -inf 2.5 numpy|nan array|1-d array|3-d {SEQUENCES}",
)


def table(**options):
    Path("t.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    return fastmlp.datasets.load_table(**{"path": "t.csv", **options})


argument("load_table path", lambda v: table(path=v), named="path|no: |3: ")
argument("load_table target", lambda v: table(target=v), "None -1")
argument("load_table task", lambda v: table(target="b", task=v))
argument("load_table feature_names", lambda v: table(feature_names=v), "None", named="feature_names|columns")
argument("load_table class_names", lambda v: table(target="b", class_names=v), "None", named="class_names|classes")
argument("load_table header", lambda v: table(header=v), f"None {FLAGS}")

POINTS = np.arange(6.0)
argument("relu_interpolant x", lambda v: approximation.relu_interpolant(v, POINTS, backend="numpy"))
argument("relu_interpolant y", lambda v: approximation.relu_interpolant(POINTS, v, backend="numpy"))
argument("relu_interpolant backend", lambda v: approximation.relu_interpolant(POINTS, POINTS, backend=v))
argument("relu_interpolant dtype", lambda v: approximation.relu_interpolant(POINTS, POINTS, dtype=v, backend="numpy"))


def fourier(**options):
    return features.RandomFourierFeatures(**{"n_components": 3, "random_state": 0, **options}).fit(X)


argument("RandomFourierFeatures n_components", lambda v: fourier(n_components=v))
argument("RandomFourierFeatures gamma", lambda v: fourier(gamma=v), NUMBERS)
argument("RandomFourierFeatures units", lambda v: fourier().network(v, backend="numpy"))
argument("RandomFourierFeatures activation", lambda v: fourier().network((3, 2), activation=v, backend="numpy"))


NO_FIELDS = {kind.__name__ for kind in public_records() if not dataclasses.fields(kind)}
OURS = (TypeError, ValueError, OSError, fastmlp.BackendUnavailable)


def fault_of(call, value, named):
    """Return whether a value is taken, or what is wrong with how it is refused; None for a right refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(value)
    except OSError as e:  # of the file system, which names the file
        return None if e.filename or re.match(named, str(e)) else f"no file in {e!r}"
    except OURS as e:
        raised_in = traceback.extract_tb(e.__traceback__)[-1].filename
        if not Path(raised_in).is_relative_to(PACKAGE):
            return f"raised in {raised_in}: {e!r}"
        return None if re.search(rf"\b(?:{named})", str(e)) else f"not named: {e!r}"
    except Exception as e:
        return f"an error from inside: {e!r}"
    return "taken"


def faults_of(named, call, taken, left_out):
    """Return what is wrong with how the wrong values are answered, but for those that may be taken."""
    found = {label: fault_of(call, value_of(label), named) for label in VALUES if label not in left_out}
    taken_rightly = {label: "taken" for label in taken if found[label] == "taken"}
    return [f"{label}: {fault}" for label, fault in found.items() if fault != taken_rightly.get(label)]


@pytest.mark.parametrize(("named", "call", "taken", "left_out"), TABLE)
def test_a_wrong_value_is_refused_by_name(named, call, taken, left_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert faults_of(named, call, taken, left_out) == []


@pytest.mark.parametrize("shuffle", ["no", 2, None, 0.0])
def test_the_order_is_asked_for_by_true_or_false_alone(shuffle):
    with pytest.raises(TypeError, match="shuffle must be True or False"):
        fit(shuffle=shuffle)


def test_weights_keep_what_they_are_or_are_refused():
    m = model()
    weights = m.get_weights()
    for i, name in enumerate(("W1", "b1", "W2", "b2")):
        with pytest.raises(ValueError, match=f"weights: {name} must hold finite real numbers"):
            m.set_weights([*weights[:i], weights[i] * (1 + 1j), *weights[i + 1 :]])
        with pytest.raises(ValueError, match=f"{name} must hold finite real numbers"):
            m.restore_snapshot({k: v * 1j if j == i else v for j, (k, v) in enumerate(m.snapshot().items())})


def test_targets_of_validation_are_named_whatever_the_loss_says_of_them():
    for given, loss, message in [
        ([0, 1, 0, 1, 1, 2], "softmax_cross_entropy", "^y of validation_data: labels must be in 0..1 .* got 2 in"),
        (["a"] * 6, "mean_squared_error", "^y of validation_data: mean_squared_error needs real numbers"),
        ([-1.0] * 6, "poisson", "^y of validation_data: poisson needs targets"),
    ]:
        last = 2 if loss == "softmax_cross_entropy" else 1
        m = fastmlp.MLP((3, last), loss=loss, backend="numpy", seed=0)
        with pytest.raises(fastmlp.DataError, match=message):
            m.fit(X, Y, epochs=1, verbose=0, validation_data=(X, given))


def test_a_masked_number_is_none():
    with pytest.raises(TypeError, match="l2 must be a number"):
        fastmlp.MLP((3, 2), l2=np.ma.masked, backend="numpy")


def test_a_number_of_units_that_no_memory_holds_is_refused():
    for units in [(3, 2**70, 2), (2**40, 2), (3, 10**400)]:
        with pytest.raises(ValueError, match=r"units .* ask for more than"):
            fastmlp.MLP(units, backend="numpy")


def test_every_public_name_has_its_row():
    told = {param.id.split()[0].partition(".")[0] for param in TABLE}
    bases = {"Optimizer", "Initializer", "Callback", "ReproducibilityWarning", "TrainingInterrupted"}
    public = {name for name in fastmlp.__all__ if callable(getattr(fastmlp, name)) and name not in bases}
    without = {
        n for n in public if isinstance(getattr(fastmlp, n), type) and issubclass(getattr(fastmlp, n), Exception)
    }
    nothing_to_give = {"activation_names", "available_backends", "loss_names", *NO_FIELDS}
    elsewhere = {"MLPClassifier", "MLPRegressor"}  # tests/estimators/test_wrong_parameters.py
    assert public - without - nothing_to_give - elsewhere <= told
