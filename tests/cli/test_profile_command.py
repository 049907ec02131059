"""``fastmlp profile``: a table by operation and layer, which time is which, a trace; options that say nothing."""

import json

import numpy as np
import pytest

import fastmlp


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    np.savetxt(tmp_path / "a.csv", np.column_stack([x, y]), "%.9g", ",", header="a,b,c,kind", comments="")
    fastmlp.MLP((3, 9, 2), backend="numpy", seed=0).save(tmp_path / "model.safetensors")


def figures(out, first):
    """Return the cells of the lines that begin with a word."""
    return [line.split() for line in out.splitlines() if line.split()[:1] == [first]]


def test_a_network_of_ones_own_on_random_rows(cli, tmp_path):
    options = "--batch", 6, "--optimizer", "sgd", "--steps", 2, "--activation", "tanh", "--dtype", "float64"
    code, out, err = cli("profile", "--units", "4,5,3", "--backend", "numpy", *options, "--trace", "t.json")
    assert (code, err) == (0, "")
    assert out.startswith("MLP((4, 5, 3), activation='tanh'")
    assert out.splitlines()[0].endswith("dtype='float64', seed=0), batches of 6 rows")
    assert [(cells[1], cells[2]) for cells in figures(out, "dense_forward")] == [("0", "1"), ("1", "1")]
    assert len(figures(out, "update")) == 1 and not figures(out, "average")
    assert "a step of 6 rows as numpy trains: " in out and "(median of 5 rounds of 2 steps)" in out
    assert "made of these very operations" in out
    assert out.endswith("trace: t.json\n")
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_shares_by_layer_sum_up(cli):
    out = cli("profile", "--units", "4,5,3", "--backend", "numpy", "--batch-size", 6, "--steps", 1)[1]
    lines = out[out.index("the same by layer") :].splitlines()[3:]
    layers = [line.split() for line in lines if line.split() and line.split()[-1].endswith("%")]
    assert [cells[0] for cells in layers] == ["0", "1", "none"]
    assert sum(float(cells[-1].rstrip("%")) for cells in layers) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize("rows", [(), ("a.csv", "--target", "kind")], ids=["random rows", "its rows"])
def test_a_model_of_ones_own_where_steps_are_compiled(cli, saved, rows):
    code, out, err = cli("profile", *rows, "--model", "model.safetensors", "--backend", "numba", "--batch", 8)
    assert (code, err) == (0, "")
    assert "MLP((3, 9, 2), " in out and "as numba trains" in out
    assert "Their sum is not the step that trains" in out


@pytest.mark.parametrize("loss", ["quantile", "poisson", "sigmoid_cross_entropy"])
def test_random_targets_suit_every_loss(cli, loss):
    code, _, err = cli("profile", "--units", "2,3,2", "--loss", loss, "--backend", "numpy", "--steps", 1, "--batch", 4)
    assert (code, err) == (0, "")


def test_random_targets_suit_several_quantiles(cli, tmp_path):
    network = fastmlp.MLP((2, 6), loss=fastmlp.Quantile((0.1, 0.5, 0.9)), backend="numpy", seed=0)
    network.save(tmp_path / "q.safetensors")
    assert cli("profile", "--model", "q.safetensors", "--backend", "numpy", "--steps", 1)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("profile", 2, "give --units 784,512,10, or --model FILE, and not both"),
        ("profile --units 3,2 --model model.safetensors", 2, "and not both"),
        ("profile --units 3,two", 2, "--units: expected such as 784,512,10, got '3,two'"),
        ("profile --units 3", 2, "units"),
        ("profile a.csv --units 3,2", 2, "DATA (a.csv) is for --model"),
        ("profile --model model.safetensors --loss poisson --dtype float64", 2, "--loss, --dtype: of --units"),
        ("profile --model model.safetensors --target kind", 2, "--target: of DATA, and there is none"),
        ("profile --units 3,2 --no-header", 2, "--header: of DATA, and there is none"),
        ("profile --units 3,2 --optimizer adamm --backend numpy", 2, "did you mean 'adam'"),
        ("profile --units 3,2 --steps 0", 2, "--steps"),
        ("profile --units 3,2 --batch 0", 2, "--batch"),
        ("profile --model nowhere", 1, "nowhere: no such file or directory"),
        ("profile a.csv --model model.safetensors", 1, "expected a target to compare with; name it with --target"),
        (
            "profile --units 3,2 --backend numpy --trace none/t.json",
            1,
            "none/t.json: expected a folder to write it into",
        ),
    ],
)
def test_mistakes(cli, saved, arguments, code, text):
    found, _, err = cli(*arguments.split())
    assert found == code
    assert text in err
