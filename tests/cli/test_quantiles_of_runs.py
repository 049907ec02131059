"""``--loss quantile --quantiles ...``: trained, kept in the run and its file, measured and written by their names."""

import csv

import numpy as np
import pytest
from sklearn.metrics import d2_pinball_score, mean_pinball_loss

import fastmlp

LEVELS = (0.1, 0.5, 0.9)
QUICK = ("--epochs", "40", "--hidden", "16", "--backend", "numpy", "--seed", "0", "--loss", "quantile")


@pytest.fixture
def table(tmp_path):
    """Values whose spread grows, in units far from 1."""
    draw = np.random.default_rng(0)
    x = draw.uniform(0, 1, (600, 2))
    y = 5000 + 1000 * x[:, 0] + 800 * (0.2 + x[:, 1]) * draw.normal(size=600)
    with open(tmp_path / "values.csv", "w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *np.column_stack([x, y]).tolist()])
    return x, y


def test_several_quantiles_by_one_network(cli, table, tmp_path):
    x, y = table
    code, out, err = cli("train", "values.csv", "--target", "y", *QUICK, "--quantiles", "0.1,0.5,0.9", "--out", "run")
    assert (code, err) == (0, "")
    assert "loss=Quantile(quantiles=(0.1, 0.5, 0.9))" in out
    assert "\nvalidation D2 0." in out
    config = (tmp_path / "run" / "config.toml").read_text()
    assert "quantiles = [0.1, 0.5, 0.9]" in config
    assert "--quantiles 0.1,0.5,0.9" in config
    model = fastmlp.load("run/model.safetensors", "numpy")
    assert model.spec.loss == fastmlp.Quantile(LEVELS)
    found = model.predict(x)
    assert found.shape == (600, 3)
    shares = [(y < found[:, i]).mean() for i in range(3)]
    np.testing.assert_allclose(shares, LEVELS, atol=0.08)
    code, out, err = cli("evaluate", "run", "values.csv", "--target", "y", "--backend", "numpy")
    assert (code, err) == (0, "")
    figures = dict(line.split() for line in out.splitlines()[1:])
    assert list(figures) == ["loss", "d2_pinball_score", "below_0.1", "below_0.5", "below_0.9"]
    losses = [mean_pinball_loss(y, found[:, i], alpha=q) for i, q in enumerate(LEVELS)]
    scores = [d2_pinball_score(y, found[:, i], alpha=q) for i, q in enumerate(LEVELS)]
    expected = [np.mean(losses), np.mean(scores), *shares]
    np.testing.assert_allclose(list(map(float, figures.values())), expected, rtol=1e-4)
    assert "loss Quantile(quantiles=(0.1, 0.5, 0.9)), l2" in cli("summary", "run")[1]
    assert cli("predict", "run", "values.csv", "--target", "y", "--out", "p.csv")[0] == 0
    header, first = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[:2]]
    assert header == ["prediction_0.1", "prediction_0.5", "prediction_0.9"]
    np.testing.assert_allclose(list(map(float, first)), found[0], rtol=1e-6)


def test_a_single_quantile_and_the_median(cli, table):
    x, y = table
    for options, level in (((), 0.5), (("--quantiles", "0.9"), 0.9)):
        code, out, _ = cli("train", "values.csv", "--target", "y", *QUICK, *options, "--out", f"run{level}")
        assert code == 0
        assert "validation D2" in out
        found = fastmlp.load(f"run{level}/model.safetensors", "numpy").predict(x)
        assert found.shape == (600,)
        assert (y < found).mean() == pytest.approx(level, abs=0.08)
        code, out, _ = cli("evaluate", f"run{level}", "values.csv", "--target", "y", "--backend", "numpy")
        assert (code, f"below_{level}" in out, "r2" in out) == (0, True, False)


def test_several_targets_have_each_their_own_unit_and_quantiles(cli, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.uniform(0, 1, (400, 2))
    y = np.column_stack([1e4 * x[:, 0] + draw.normal(0, 500, 400), 3 + draw.normal(0, 0.01, 400)])
    np.savez(tmp_path / "two.npz", x=x, y=y)
    code, _, err = cli("train", "two.npz", *QUICK, "--quantiles", "0.2,0.8", "--standardize", "--out", "run")
    assert (code, err) == (0, "")
    found = fastmlp.load("run/model.safetensors", "numpy").predict(x).reshape(400, 2, 2)
    np.testing.assert_allclose((y[:, :, None] < found).mean(axis=0), [[0.2, 0.8]] * 2, atol=0.12)
    assert cli("predict", "run", "two.npz", "--out", "p.csv")[0] == 0
    header = (tmp_path / "p.csv").read_text().splitlines()[0].split(",")
    assert header == ["prediction_0_0.2", "prediction_0_0.8", "prediction_1_0.2", "prediction_1_0.8"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quantiles", "0.5", "--loss", "huber"), "--quantiles: they are of --loss quantile, got --loss huber"),
        (("--quantiles", "0.5"), "--quantiles: they are of --loss quantile, got none"),
        (("--quantiles", "0.9,0.1", "--loss", "pinball"), "several that rise strictly; got (0.9, 0.1)"),
        (("--quantiles", "0.1,1", "--loss", "quantile"), "quantiles[1] must be above 0 and below 1, got 1.0"),
        (("--quantiles", "a", "--loss", "quantile"), "--quantiles: expected such as 0.1,0.5,0.9, got 'a'"),
        (("--quantiles", "", "--loss", "quantile"), "--quantiles': expected a text, got an empty one"),
    ],
)
def test_quantiles_that_make_no_sense_are_refused(cli, table, tmp_path, options, words):
    code, _, err = cli("train", "values.csv", "--target", "y", *options, "--out", "run")
    assert (code, words in err) == (2, True), err
    assert not (tmp_path / "run").exists()
