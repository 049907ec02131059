"""Columns and targets in units far from 1: trained as the same ones near 1, or refused by name before the training."""

import re

import numpy as np
import pytest

import fastmlp
from fastmlp.cli.scaling import Scaling
from fastmlp.preprocessing.fitting import fit_preprocessing

OPTIONS = ("--epochs", "30", "--hidden", "8", "--seed", "0", "--backend", "numpy", "--target", "y")


def write(path, x, y):
    rows = (",".join(map(repr, [*map(float, row), value])) for row, value in zip(x, y, strict=True))
    path.write_text("\n".join([*[",".join([*(f"c{i}" for i in range(x.shape[1])), "y"])], *rows]))


def rows(kind):
    x = np.random.default_rng(0).normal(1, 2, (200, 3))
    value = x[:, 0] + 0.5 * x[:, 1] ** 2
    return x, (value > 2).astype(int).tolist() if kind == "classes" else value.tolist()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1e-34, "float32"), (1e33, "float32"), (1e-290, "float64"), (1e298, "float64")],
)
def test_columns_of_any_size_that_the_type_holds_are_learned_alike(cli, tmp_path, size, dtype):
    x, y = rows("classes")
    figures = []
    for name, factor in (("near", 1.0), ("far", size)):
        write(tmp_path / f"{name}.csv", x * factor, y)
        code, out, err = cli("train", f"{name}.csv", *OPTIONS, "--dtype", dtype, "--out", name)
        assert (code, err) == (0, ""), out
        weights = fastmlp.load(tmp_path / name / "model.safetensors", "numpy").get_weights()
        assert all(np.isfinite(w).all() for w in weights)
        code, out, err = cli("evaluate", name, f"{name}.csv", "--target", "y", "--backend", "numpy")
        assert (code, err) == (0, "")
        figures.append(out)
    assert figures[0].split("\n\n")[1] == figures[1].split("\n\n")[1]  # precision and recall of each class


@pytest.mark.parametrize("size", [1e-17, 1e16])
def test_targets_of_any_size_that_the_type_holds_are_learned_alike(cli, tmp_path, size):
    x, y = rows("values")
    found, losses = [], []
    for name, factor in (("near", 1.0), ("far", size)):
        write(tmp_path / f"{name}.csv", x, [v * factor for v in y])
        code, out, err = cli("train", f"{name}.csv", *OPTIONS, "--out", name)
        assert (code, err) == (0, ""), out
        losses.append(float(out.split("loss ")[-1].split(",")[0]) / factor**2)
        found.append(fastmlp.load(tmp_path / name / "model.safetensors", "numpy").predict(x).astype(float) / factor)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


REFUSED = [
    (1e39, "row .* of column 'c0' holds .*e.39, and float32 numbers up to 3.4e.38 only; .*use --dtype float64"),
    (1e200, "of column 'c0' holds .*e.200"),
    (1e37, "the standard deviation of column 'c0' is .*e.37, and a float32 network can be scaled by 3e-36 to 8e.34"),
    (1e-37, "the standard deviation of column 'c0' is .*e-37, and a float32"),
    (1e-40, "column 'c0' holds nothing above .*e-40 .in row .*, and float32 numbers from 1.18e-38"),
    (1e-200, "column 'c0' holds nothing above .*e-200"),
]


@pytest.mark.parametrize(("size", "message"), REFUSED)
def test_a_column_that_the_type_cannot_hold_is_refused_by_name_before_training(cli, tmp_path, size, message):
    x, y = rows("classes")
    write(tmp_path / "t.csv", x * [size, 1, 1], y)
    code, _, err = cli("train", "t.csv", *OPTIONS, "--out", "run")
    assert code == 1
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1 and "--dtype float64" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1e39, "the target: row"),
        (1e-46, "the target: column 0"),
        (1e20, "deviation of the target"),
        (1e-25, "deviation of the target"),
    ],
)
def test_a_target_that_the_type_cannot_hold_is_refused_before_training(cli, tmp_path, size, message):
    x, y = rows("values")
    write(tmp_path / "t.csv", x, [v * size for v in y])
    code, _, err = cli("train", "t.csv", *OPTIONS, "--out", "run")
    assert code == 1 and message in err
    assert not (tmp_path / "run").exists()
    assert cli("train", "t.csv", *OPTIONS, "--out", "run", "--dtype", "float64")[0] == 0


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_model_is_not_asked_about_what_it_cannot_hold(cli, tmp_path, command):
    x, y = rows("classes")
    write(tmp_path / "t.csv", x, y)
    assert cli("train", "t.csv", *OPTIONS, "--out", "run")[0] == 0
    x[3, 1] = 1e39
    write(tmp_path / "t.csv", x, y)
    more = ("--out", "p.csv") if command == "predict" else ()
    code, _, err = cli(command, "run", "t.csv", "--target", "y", *more)
    assert code == 1 and "row 3 of column 'c1' holds 1e+39" in err and "row 3 is line 5 of t.csv" in err


@pytest.mark.parametrize("exponent", [-1060, -700, -299, 0, 299, 700, 1015])
def test_mean_and_deviation_of_finite_columns_are_finite_and_right(exponent):
    x = np.random.default_rng(0).integers(-64, 64, (100, 2)).astype(float)
    found = fit_preprocessing(np.ldexp(x, exponent), "standard").affine
    mean, deviation = found.center, found.scale
    np.testing.assert_allclose(np.ldexp(mean, -exponent), x.mean(axis=0), rtol=0.01 if exponent < -1000 else 1e-14)
    np.testing.assert_allclose(np.ldexp(deviation, -exponent), x.std(axis=0), rtol=0.01 if exponent < -1000 else 1e-14)


def test_folded_weights_that_cannot_be_held_leave_the_network_as_it_was():
    model = fastmlp.MLP((2, 2), seed=0, backend="numpy")
    before = model.get_weights()
    scaling = Scaling.of((np.array([[1.0, 1e-42], [2.0, 2e-42]]), np.zeros(2)), "standard", False, ["a", "b"])
    with pytest.raises(
        fastmlp.DataError, match=r"cannot be saved in the units of the file: weights: W1 .*--dtype float64"
    ):
        scaling.fold(model)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
