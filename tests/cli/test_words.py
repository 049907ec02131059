"""Columns of words on the command line: one-hot as by the estimators' `preprocess`, and raw rows from then on."""

import csv
import random
import re

import numpy as np
import pytest

import fastmlp
from fastmlp.preprocessing.fitting import fit_preprocessing

NAMES = ["area", "material", "floor", "lift", "doors", "price", "dear"]
KINDS = [float, str, float, lambda cell: cell == "True", str]
pytestmark = pytest.mark.filterwarnings("always:.*taken as words:UserWarning", "always:.*read as the names:UserWarning")
QUICK = ("--epochs", "12", "--hidden", "8", "--backend", "numpy", "--seed", "0")


def made(rows, seed):
    draw = random.Random(seed)
    for _ in range(rows):
        area, material, lift = draw.uniform(20, 120), draw.choice(["brick", "wood", "?", ""]), draw.random() < 0.5
        price = 2 * area + {"brick": 60}.get(material, 0) + 40 * lift + draw.gauss(0, 2)
        floor, doors = draw.choice(["1", "2.0", "NA", "3"]), draw.choice(["2", "4", "5more"])
        yield [f"{area:.2f}", material, floor, str(lift), doors, f"{price:.2f}", "yes" if price > 180 else "no"]


def write(path, rows, header=True):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([NAMES, *rows] if header else rows)


def raw(rows):
    """Return the five columns of features as an array of objects, as a data frame would have them."""
    missing = ("", "?", "NA")
    return np.array(
        [[None if c in missing else kind(c) for c, kind in zip(r, KINDS, strict=False)] for r in rows], object
    )


@pytest.fixture
def flats(tmp_path):
    """Rows to train on, and new ones in which a column of words has numbers alone, and a material is unknown."""
    rows, new = list(made(200, 0)), list(made(40, 1))
    for i, row in enumerate(new):
        row[4] = "4"
        row[1] = row[1] if i % 3 else "straw"
    write(tmp_path / "flats.csv", rows)
    write(tmp_path / "new.csv", new)
    return rows, new


def trained(cli, *options, data="flats.csv", target="dear", out="run"):
    code, said, err = cli("train", data, "--target", target, *QUICK, "--out", out, *options)
    assert code == 0, err
    return said, err, fastmlp.load(f"{out}/model.safetensors", "numpy")


@pytest.mark.parametrize("kind", ["standard", "robust", "quantile"])
def test_words_are_learned_as_the_estimators_do(cli, flats, tmp_path, kind):
    rows, new = flats
    for name, part in (("flats", rows), ("new", new)):
        write(tmp_path / f"{name}.csv", [row[:5] + row[6:] for row in part], header=False)
    options = ("--no-header", "--preprocess", kind, "--validation", "0")
    said, err, model = trained(cli, *options, target="5")
    assert "5 features that become 11 inputs" in said
    assert "the 3 different values of column 4, such as '5more', are taken as words, not as numbers" in err
    theirs = fit_preprocessing(raw(rows), kind, random_state=0)
    np.testing.assert_array_equal(model.preprocessing.transform(raw(new)), theirs.transform(raw(new)))
    assert [c.known for c in model.preprocessing.categories] == [
        ("brick", "wood"),
        ("False", "True"),
        ("2", "4", "5more"),
    ]
    assert cli("predict", "run", "new.csv", "--target", "5", "--out", "p.npz", "--proba")[0] == 0
    with np.load(tmp_path / "p.npz") as file:
        written = dict(file)
    np.testing.assert_array_equal(written["probability"], model.predict_proba(raw(new)))
    y = np.array([model.class_names.index(row[6]) for row in new])
    code, out, _ = cli("evaluate", "run", "new.csv", "--target", "5", "--backend", "numpy")
    assert code == 0
    assert f"{model.evaluate(raw(new), y)['loss']:.6g}" in out
    # rows without names: none of them is taken for a header
    np.testing.assert_array_equal(written["prediction"], np.array(model.class_names)[model.predict(raw(new))])


def test_columns_go_by_their_names(cli, flats, tmp_path):
    _, new = flats
    _, _, model = trained(cli, "--standardize")
    assert model.feature_names == tuple(NAMES[:6])
    order = [4, 6, 1, 5, 0, 2, 3]
    with open(tmp_path / "turned.csv", "w", newline="") as file:
        csv.writer(file).writerows([[each[i] for i in order] for each in [NAMES, *new]])
    found = []
    for data in ("new.csv", "turned.csv"):
        assert cli("predict", "run", data, "--out", "p.npy", "--proba", "--backend", "numpy")[0] == 0
        found.append(np.load(tmp_path / "p.npy"))
    np.testing.assert_array_equal(*found)
    prices = [[*each, float(row[5])] for each, row in zip(raw(new).tolist(), new, strict=True)]
    np.testing.assert_array_equal(found[0], model.predict_proba(np.array(prices, object)))
    code, out, _ = cli("summary", "run")
    assert (code, "6 columns of any kind become 12 inputs" in out) == (0, True)


def test_values_are_learned_of_words_too(cli, flats):
    said, _, model = trained(cli, "--preprocess", "quantile", "--epochs", "40", target="price")
    assert "R2" in said
    assert model.predict(np.array([[100.0, "brick", 1.0, True, "2", "yes"]] * 2, object)).mean() > 200


def test_a_run_of_words_goes_on(cli, flats, tmp_path, monkeypatch):
    from fastmlp.cli import run as running

    _, _, whole = trained(cli, "--preprocess", "standard", out="whole")
    fit = running.fit

    def killed(run):
        class Stop(fastmlp.Callback):
            def on_epoch_end(self, training, figures):
                if training.epoch == 4:
                    raise KeyboardInterrupt

        monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 0.0)
        inner = run.model.fit
        monkeypatch.setattr(run.model, "fit", lambda *a, callbacks, **k: inner(*a, callbacks=[*callbacks, Stop()], **k))
        return fit(run)

    monkeypatch.setattr(running, "fit", killed)
    code, _, err = cli("train", "flats.csv", "--target", "dear", *QUICK, "--preprocess", "standard", "--out", "broken")
    assert (code, "interrupted" in err) == (130, True), err
    monkeypatch.setattr(running, "fit", fit)
    code, _, err = cli("train", "flats.csv", "--resume", "--out", "broken")
    assert code == 0, err
    resumed = fastmlp.load("broken/model.safetensors", "numpy")
    assert resumed.feature_names == whole.feature_names
    for ours, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_words_without_preprocess_are_refused_with_the_cure(cli, flats):
    code, _, err = cli("train", "flats.csv", "--target", "dear", *QUICK)
    assert code == 1
    assert err.startswith("error: ")
    assert "column 'material': expected a" in err
    assert "columns of words and missing values are taken with raw=True (--preprocess standard)" in err


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            [f"${i}.50" for i in range(200)],
            r"numbers or words in column 'area', got '\$0.50' among 200 different",
        ),
        (
            [f"2024-05-{i % 28 + 1:02d}" for i in range(200)],
            "'area', got '2024-05-01' among 28 different",
        ),
        ([str(i) if i != 70 else "12o" for i in range(200)], "'area', got '12o' among 200 different values"),
        ([f"row {i}" for i in range(1200)], "column 'area' holds 1,200 categories in 1,200 rows, expected 1,000 at"),
        (["inf"] + [str(i) for i in range(1, 200)], "column 'area' holds inf in row 0; it must be finite"),
    ],
)
def test_what_is_neither_numbers_nor_words_is_refused(cli, flats, tmp_path, cells, words):
    rows = list(made(len(cells), 0))
    for row, cell in zip(rows, cells, strict=True):
        row[0] = cell
    write(tmp_path / "odd.csv", rows)
    code, _, err = cli("train", "odd.csv", "--target", "dear", *QUICK, "--preprocess", "standard", "--validation", "0")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert re.search(words, err), err


def test_cells_of_another_kind_than_in_training_are_refused_by_line(cli, flats, tmp_path):
    _, new = flats
    trained(cli, "--preprocess", "standard")
    for row, at, cell, words in (
        (20, 0, "large", "new.csv: line 22, column 'area': expected a number, got 'large'"),
        (20, 3, "maybe", "held booleans in training, got text, 'maybe'"),
    ):
        changed = [list(each) for each in new]
        changed[row][at] = cell
        if at == 3:
            changed = [[*each[:3], "maybe", *each[4:]] for each in changed]
        write(tmp_path / "new.csv", changed)
        code, _, err = cli("predict", "run", "new.csv", "--out", "p.csv", "--backend", "numpy")
        assert (code, words in err) == (1, True), err
    write(tmp_path / "new.csv", [new[0], new[1][:-1], *new[2:]])
    code, _, err = cli("predict", "run", "new.csv", "--out", "p.csv")
    assert (code, "line 3: expected 7 cells, got 6" in err) == (1, True), err


def test_a_first_row_that_looks_like_data_is_told(cli, flats, tmp_path):
    rows, _ = flats
    with open(tmp_path / "bare.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [row[1:2] + row[4:5] + row[3:4] + row[6:] for row in rows if row[1] not in ("", "?")]
        )
    _, err, _ = trained(cli, "--preprocess", "standard", data="bare.csv", target="3")
    assert "is in other rows too; header=False (--no-header) reads it as data" in err


def test_a_file_of_numbers_is_read_as_before(cli, flowers):
    """Whether words were asked for or not; then nothing is said, and the model is the same to the bit."""
    trained(cli, data="flowers.csv", target="kind", out="plain")
    trained(cli, "--preprocess", "standard", data="flowers.csv", target="kind", out="asked")
    plain, asked = (fastmlp.load(f"{name}/model.safetensors", "numpy") for name in ("plain", "asked"))
    for ours, theirs in zip(asked.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_load_table_gives_raw_rows(tmp_path, flats):
    rows, _ = flats
    with pytest.warns(UserWarning, match="taken as words, not as numbers"):
        table = fastmlp.datasets.load_table(tmp_path / "flats.csv", target="price", task="regression", raw=True)
    assert table.x.dtype == object
    expected = np.column_stack([raw(rows), [row[6] for row in rows]])
    for ours, theirs in zip(table.x.ravel(), expected.ravel(), strict=True):
        assert ours == theirs or (theirs is None and (ours is None or np.isnan(ours)))
    np.testing.assert_array_equal(table.y, [float(row[5]) for row in rows])
    with pytest.raises(TypeError, match="raw must be True or False"):
        fastmlp.datasets.load_table(tmp_path / "flats.csv", raw=1.5)
