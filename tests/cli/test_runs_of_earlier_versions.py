"""Runs that versions began which held out other rows go on with these."""

from dataclasses import asdict

import numpy as np
import pytest

from fastmlp.cli import run as run_training
from fastmlp.cli.data import load_run
from fastmlp.engine.progress import Progress
from fastmlp.files import safetensors
from fastmlp.formulas.random_bits import epoch_order

OPTIONS = ("--epochs", "4", "--batch-size", "8", "--seed", "5", "--hidden", "6", "--backend", "numpy", "--target")
CHECKPOINT = "run/checkpoint.safetensors"
SAID = "an earlier version began this run: it goes on with the rows held out that it drew"


def interrupted(*_):
    raise KeyboardInterrupt


def begin_as_earlier(cli, monkeypatch, *options):
    """Leave the folder of a run of an earlier version that was stopped before its end."""
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "to_json", lambda self: {k: v for k, v in asdict(self).items() if k != "drawn"})
        patched.setattr(run_training, "load_run", lambda settings, by_class: load_run(settings, by_class=False))
        patched.setattr(run_training, "finish", interrupted)
        assert cli("train", *options, "--out", "run")[0] == 130


def go_on(cli, monkeypatch, epoch, data):
    """Go on with the run after that many epochs; return what it trained on and what it said."""
    header, tensors = safetensors.read(CHECKPOINT)
    header["progress"]["epoch"] = epoch
    header["history"] = {name: values[:epoch] for name, values in header["history"].items()}
    safetensors.write(CHECKPOINT, header, tensors)
    found = []
    with monkeypatch.context() as patched:
        patched.setattr(run_training, "load_run", lambda *a, **o: found.append(load_run(*a, **o)) or found[-1])
        patched.setattr(run_training, "finish", interrupted)
        code, out, err = cli("train", data, "--resume", "--out", "run")
    assert code == 130 and err.startswith("interrupted"), err
    return found[0], out


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_a_run_of_an_earlier_version_goes_on_with_the_rows_that_it_held_out(cli, monkeypatch, kind):
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    y = (x[:, 0] > 0.5).astype(np.int64)
    np.save("x.npy", x)
    np.save("y.npy", y)
    np.savez("x.npz", x=x, y=y)
    np.savetxt("x.csv", np.c_[x, y], delimiter=",", header="a,b,c,y", comments="", fmt=["%.8g"] * 3 + ["%d"])
    begin_as_earlier(cli, monkeypatch, f"x.{kind}", *OPTIONS, "y.npy" if kind == "npy" else "y")
    # rows drawn without a look at classes, or the last ones of a file that stays on the disk
    held = np.arange(80, 100) if kind == "npy" else np.sort(epoch_order(5, 2**63, 100)[-20:])
    for epoch in (3, 2):  # the second time from a checkpoint that this version wrote
        data, out = go_on(cli, monkeypatch, epoch, f"x.{kind}")
        np.testing.assert_allclose(data.validation[0], x[held], rtol=1e-6)
        np.testing.assert_array_equal(data.validation[1], y[held])
        assert len(data.train[0]) == 80 and SAID in out


def test_nothing_is_said_of_earlier_versions_where_the_rows_are_those_of_today(cli, monkeypatch, digits, flowers):
    with monkeypatch.context() as patched:
        patched.setattr(run_training, "finish", interrupted)
        cli("train", flowers, *OPTIONS, "kind", "--out", "run")
    assert SAID not in go_on(cli, monkeypatch, 2, flowers)[1]


def test_mnist_was_split_as_it_is_today(cli, monkeypatch, digits):
    begin_as_earlier(cli, monkeypatch, "mnist", *OPTIONS[:-1])
    assert SAID not in go_on(cli, monkeypatch, 2, "mnist")[1]
