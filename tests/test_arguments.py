"""Numbers and flags are checked in one way wherever they enter, and come back as plain ones."""

from dataclasses import fields

import numpy as np
import pytest

from fastmlp.arguments import check_count, check_flag, check_number, check_seed
from fastmlp.engine import callbacks
from fastmlp.formulas.initializers import INITIALIZERS
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS
from fastmlp.formulas.schedules import SCHEDULES
from fastmlp.network.spec import make_spec

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
