"""Numbers and flags are checked in one way wherever they enter, and come back as plain ones."""

import re
from dataclasses import fields

import numpy as np
import pytest

import fastmlp
from fastmlp.arguments import check_count, check_flag, check_number, check_seed, check_sequence
from fastmlp.engine import callbacks
from fastmlp.formulas.initializers import INITIALIZERS
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS
from fastmlp.formulas.schedules import SCHEDULES
from fastmlp.network.spec import make_spec
from fastmlp.plots.checks import names_of_classes
from fastmlp.stepbystep.columns import layer_units

REGISTRIES = (INITIALIZERS, LOSSES, OPTIMIZERS, SCHEDULES)
FIELDS = [
    pytest.param(kind, field.name, id=f"{name} {field.name}")
    for registry in REGISTRIES
    for name, kind in registry.types.items()
    for field in fields(kind)
    if field.name not in ("monitor", "mode")
]
"""Every field of every record that is a number or a flag."""


@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint32])
def test_a_count_is_any_integer_and_comes_back_as_pythons(kind):
    assert check_count("n", kind(3)) == 3
    assert type(check_count("n", kind(3))) is int


@pytest.mark.parametrize("kind", [int, float, np.float16, np.float32, np.float64, np.int64])
def test_a_number_is_of_any_real_type_and_comes_back_as_pythons(kind):
    assert check_number("x", kind(2), 0.0) == 2.0
    assert type(check_number("x", kind(2), 0.0)) is float


@pytest.mark.parametrize("value", [True, np.True_, "1", None, 1.5, np.float32(1), [1], np.array([1])])
def test_a_count_is_nothing_else(value):
    with pytest.raises(TypeError, match="n must be an integer, or None; got "):
        check_count("n", value, also="or None")


@pytest.mark.parametrize("value", [True, np.False_, "1", None, 1j, [1.0], np.array([1.0]), np.array(True)])
def test_a_number_is_nothing_else(value):
    with pytest.raises(TypeError, match="x must be a number, got "):
        check_number("x", value)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"low": 0.0, "above": True}, "x must be above 0 and finite, got 0"),
        (-1, {"low": 0.0}, "x must be at least 0 and finite, got -1"),
        (1, {"low": 0.0, "high": 1.0}, "x must be at least 0 and below 1, got 1"),
        (np.inf, {"low": 0.0}, "x must be at least 0 and finite, got inf"),
        (-np.inf, {}, "x must be finite, got -inf"),
        (np.nan, {"low": 0.0, "high": 1.0}, "x must be at least 0 and below 1, got nan"),
        pytest.param(10**400, {}, "x must be finite, got 1000", id="too many digits"),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_them(value, bounds, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_number("x", value, **bounds)


def test_a_number_may_be_an_array_without_axes():
    assert check_number("x", np.array(0.5, np.float32), 0.0) == 0.5
    assert type(check_number("x", np.array(2), 0.0)) is float


def test_bounds_themselves_are_within():
    assert check_number("x", 0, 0.0, 1.0) == 0.0
    assert check_number("x", 5e-324, 0.0, above=True) > 0
    assert check_count("n", 0, 0) == 0


@pytest.mark.parametrize("value", [2, -1, 1.0, "no", "", None, np.array([True]), []])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="nesterov must be True or False"):
        check_flag("nesterov", value)


def test_a_flag_may_be_numpys_or_1_or_0():
    assert check_flag("nesterov", np.True_) is check_flag("nesterov", np.int64(1)) is True
    assert check_flag("nesterov", 0) is False


def test_drawn_seeds_are_64_bits_and_differ():
    found = {check_seed(None) for _ in range(100)}
    assert len(found) == 100
    assert 2**60 < max(found) < 2**64
    assert check_seed(np.uint64(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_field_of_a_record_takes_numpys_numbers_and_keeps_a_plain_one(kind, field):
    plain = kind()
    default = getattr(plain, field)
    if default is None:
        default = 5 if field == "steps" else 0.5
    given = np.array(default)[()]  # NumPy's scalar of the same value
    options = {"momentum": 0.5} if field == "nesterov" else {}
    record = kind(**{**options, field: given})
    assert type(getattr(record, field)) is type(default)
    assert getattr(record, field) == default
    assert record == kind(**{**options, field: default})


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_no_field_of_a_record_takes_text_or_a_flag_for_a_number(kind, field):
    wrong = ["0.5"] if field == "nesterov" else ["0.5", True, np.True_]
    for value in wrong:
        with pytest.raises(TypeError, match=f"{field} must be "):
            kind(**{field: value})


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3)])
def test_callbacks_take_numpys_integers(value):
    assert callbacks.EarlyStopping(patience=value).patience == 3
    assert callbacks.Checkpoint("c", every_epochs=value, every_steps=value).every_steps == 3
    assert callbacks.TimeLimit(value).seconds == 3.0


def test_a_spec_holds_plain_numbers_whatever_it_was_given():
    spec = make_spec(np.array([3, 4, 2]), dropout=np.float32(0.5), l2=np.float64(0.25), max_norm=np.int64(2))
    assert [type(n) for n in (*spec.units, *spec.dropout, spec.l2, spec.max_norm)] == [int] * 3 + [float] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": (3, 2.5)}, r"units\[1\] must be an integer, got 2.5"),
        ({"units": (0, 2)}, r"units\[0\] must be at least 1, got 0"),
        ({"units": (3, 4, 2), "dropout": (0.1, "0.2")}, r"dropout\[1\] must be a number, got '0.2'"),
        ({"units": (3, 4, 2), "dropout": (0.1, 1)}, r"dropout\[1\] must be at least 0 and below 1, got 1"),
    ],
)
def test_of_several_numbers_the_wrong_one_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_spec(**options)


DROPPED = [{"a", "b"}, frozenset({1.0}), {0: 1, 1: 2}, "ab", b"ab", 3, None]
"""What gives letters, keys, or what it holds in no order, and what gives nothing."""


@pytest.mark.parametrize("value", DROPPED, ids=lambda value: type(value).__name__)
def test_what_has_no_order_is_no_sequence_wherever_one_is_asked_for(value, tmp_path):
    model = fastmlp.MLP((4, 2), backend="numpy")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")

    def named(attribute):
        return lambda: setattr(model, attribute, value)

    asked = {
        "x must be": lambda: check_sequence("x", value, "a sequence"),
        "units must be": lambda: make_spec(value),
        "activation must be": lambda: make_spec((4, 2), value),
        "dropout must be": lambda: make_spec((4, 2), dropout=value),
        "class_names must be": named("class_names"),
        "feature_names must be": named("feature_names"),
        "class_names must": lambda: fastmlp.datasets.load_table(tmp_path / "t.csv", target="a", class_names=value),
        "feature_names must": lambda: fastmlp.datasets.load_table(tmp_path / "t.csv", feature_names=value),
        "confusion: class_names": lambda: names_of_classes("confusion", value, 1),
        "layers_dims must be": lambda: layer_units("layers_dims", value),
        "weights must be": lambda: model.set_weights(value),
    }
    if value is None:
        for optional in ("class_names must be", "feature_names must be", "class_names must", "feature_names must"):
            del asked[optional]
        del asked["confusion: class_names"]
    if isinstance(value, str):
        del asked["activation must be"]  # one name for all
    if value == 3:
        del asked["dropout must be"]  # one rate for all, which is too large
    for message, call in asked.items():
        if message == "dropout must be" and isinstance(value, type(None)):
            message = "dropout must be a number"
        with pytest.raises(TypeError, match=f"^{message}.*got {re.escape(repr(value))}"):
            call()


def test_a_sequence_may_be_anything_with_an_order():
    for value in ((1, 2), [1, 2], np.array([1, 2]), {1: "a", 2: "b"}.keys(), iter((1, 2))):
        assert check_sequence("x", value, "a sequence") == [1, 2]
    assert make_spec((4, 3, 2), dropout=np.array(0.25)).dropout == (0.0, 0.25)


def test_names_that_are_there_twice_say_nothing(tmp_path):
    model = fastmlp.MLP((4, 3), backend="numpy")
    with pytest.raises(ValueError, match="class_names must be names that differ, got '1' more than once"):
        model.class_names = ("1", "0", 1)
    with pytest.raises(ValueError, match="feature_names needs 4 names, got 2: "):
        model.feature_names = ("1", "0")
    model.class_names = np.array([3, 1, 2])
    assert model.class_names == ("3", "1", "2")


def test_a_snapshot_is_of_the_same_arrays_and_shapes_or_refused():
    model, other = fastmlp.MLP((4, 2), backend="numpy", seed=0), fastmlp.MLP((4, 2), backend="numpy", seed=1)
    given = model.snapshot()
    before = other.snapshot()
    wrong = {
        "weights must be arrays of the shapes": {**given, "layers.0.bias": np.float32(3)},
        r"missing \['layers.0.bias'\], not expected \['bias'\]": {"layers.0.weight": 0, "bias": 0},
        r"not expected \['average.layers.0.bias', 'average": {**given, **{f"average.{k}": v for k, v in given.items()}},
        "W1 must hold finite": {**given, "layers.0.weight": np.full((4, 2), np.nan)},
        "b1 must hold numbers up to": {**given, "layers.0.bias": np.full(2, 1e39)},
    }
    for message, arrays in wrong.items():
        with pytest.raises(ValueError, match=message):
            other.restore_snapshot(arrays)
    with pytest.raises(TypeError, match="a snapshot must be a mapping from name to array, got list"):
        other.restore_snapshot(list(given.values()))
    np.testing.assert_array_equal(other.get_weights()[0], before["layers.0.weight"])
    other.restore_snapshot(given)
    np.testing.assert_array_equal(other.get_weights()[0], given["layers.0.weight"])
