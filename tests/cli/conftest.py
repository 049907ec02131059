"""Fixtures of the tests of the command line."""

import csv
import sys

import numpy as np
import pytest

import fastmlp
from fastmlp.cli import data as run_data
from fastmlp.cli import run as run_training
from fastmlp.cli.app import main


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Call the command line in an empty folder; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastmlp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def pictures():
    """Let runs draw their pictures."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Leave the pictures of runs to the tests that ask for them: they take ten times as long as a small run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(run_training, "_draw", lambda *_: None)


@pytest.fixture(scope="session")
def few_digits():
    """300 training and 200 test images of MNIST, read once: that takes longer than most tests."""
    train, test = fastmlp.datasets.load_mnist(raw=True)
    few = tuple(tuple(array[:rows].copy() for array in part) for part, rows in ((train, 300), (test, 200)))
    for array in (*few[0], *few[1]):
        array.flags.writeable = False
    return few


@pytest.fixture
def digits(monkeypatch, few_digits):
    """Make MNIST small."""
    monkeypatch.setattr(run_data, "load_mnist", lambda raw: few_digits)


@pytest.fixture
def flowers(tmp_path):
    """A CSV file whose columns differ wildly in scale, with three classes by name."""
    draw = np.random.default_rng(0)
    rows = [("size", "weight", "garden", "kind")]
    for i, kind in enumerate(["rose", "tulip", "oak, old"]):
        for _ in range(60):
            rows.append((5000 + 300 * i + draw.normal(0, 30), 1e-3 * draw.normal(i % 2, 0.2), 7, kind))
    with open(tmp_path / "flowers.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "flowers.csv"
