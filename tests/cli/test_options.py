"""What the options of `fastmlp train` do, and what they are where none is given."""

import shlex
import tomllib

import numpy as np
import pytest
from run_files import weights

import fastmlp
from fastmlp.cli.settings import RATES, Settings, option_of
from fastmlp.formulas.optimizers import OPTIMIZERS
from fastmlp.formulas.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("target", "options", "said", "outputs"),
    [
        (np.arange(200) % 3, (), "3 classes", 3),
        (np.arange(200), (), "target in values (for classes, --loss softmax_cross_entropy)", 1),
        (np.arange(200) % 3, ("--loss", "poisson"), "target in values", 1),
        (np.arange(200) % 2, ("--loss", "sigmoid_cross_entropy"), "2 classes", 1),
        (np.arange(200) % 3, ("--loss", "categorical_hinge"), "3 classes", 3),
        (np.arange(200)[:, None] % 3, (), "3 classes", 3),
        (np.arange(200)[:, None] % 3, ("--loss", "mean_squared_error"), "target in values", 1),
        (np.arange(200)[:, None] % 2 == 0, ("--loss", "sigmoid_cross_entropy"), "2 classes", 1),
        (np.eye(2)[np.arange(200) % 2], ("--loss", "sigmoid_cross_entropy"), "2 labels a row", 2),
        (np.eye(2)[np.arange(200) % 2], ("--loss", "softmax_cross_entropy"), "probabilities of 2 classes", 2),
        (np.eye(2, dtype=int)[np.arange(200) % 2], (), "values (for classes, --loss softmax_cross_entropy)", 2),
        (np.tri(3)[np.arange(200) % 3], (), "values (for several labels a row, --loss sigmoid_cross_entropy)", 3),
        (np.ones((200, 2)) / 7, (), "target in values\n", 2),
        (np.arange(200) / 7, (), "target in values", 1),
        (np.arange(200)[:, None] / 7, (), "target in values", 1),
    ],
)
def test_the_loss_suits_the_target(cli, tmp_path, target, options, said, outputs):
    x = np.random.default_rng(0).normal(size=(200, 3))
    np.savez(tmp_path / "a.npz", x=x, y=target)
    code, out, err = cli("train", "a.npz", "--epochs", 2, *options, "--out", "run")
    assert (code, err) == (0, "") and said in out
    model = fastmlp.load(tmp_path / "run" / "model.safetensors")
    assert model.spec.units[-1] == outputs
    assert model.spec.loss.name == (
        options[1] if options else ("mean_squared_error", "softmax_cross_entropy")[said == "3 classes"]
    )
    code, _, err = cli("evaluate", "run", "a.npz")
    assert (code, err) == (0, "")
    code, _, err = cli("predict", "run", "a.npz", "--out", "p.csv")
    assert (code, err) == (0, "")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 201


def test_names_of_other_libraries_are_kept_by_our_own(cli, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 3)
    named = ["--loss", "sparse_categorical_crossentropy", "--activation", "logistic", "--optimizer", "RMSprop"]
    for options in (["--out", "run", "--hidden", "4", "--epochs", "1"], ["--resume", "--out", "run"]):
        (tmp_path / "run" / "model.safetensors").unlink(missing_ok=True)
        assert cli("train", "a.npz", *named, *options)[0] == 0
    config = (tmp_path / "run" / "config.toml").read_text("utf-8")
    for name in ('loss = "softmax_cross_entropy"', 'activation = "sigmoid"', 'optimizer = "rmsprop"'):
        assert name in config


@pytest.mark.parametrize("option", ["--activation tanh", "--dropout 0.5", "--dropout 0.1,0.2"])
def test_an_option_of_hidden_layers_is_refused_where_there_are_none(cli, digits, tmp_path, option):
    code, out, err = cli("train", "mnist", "--hidden", "", *option.split())
    assert (code, out) == (2, "")
    assert f"{option}: it is of hidden layers, and --hidden '' has none; leave it out" in err
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_run_without_hidden_layers_repeats_it(cli, digits, tmp_path):
    assert cli("train", "mnist", "--hidden", "", "--epochs", 1, "--out", "run")[0] == 0
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))
    assert cli(*shlex.split(config["command"])[1:], "--out", "again")[0] == 0
    assert np.array_equal(weights(tmp_path / "run"), weights(tmp_path / "again"))


OPTIONS = {
    "hidden": "7", "activation": "tanh", "loss": "categorical_hinge", "epochs": "3", "batch_size": "16",
    "optimizer": "sgd", "lr": "0.01", "schedule": "constant", "dropout": "0.4", "l2": "0.1",
    "weight_decay": "0.5", "label_smoothing": "0.2", "clip_norm": "0.01", "ema": "0.9", "validation": "0.4",
    "standardize": None, "preprocess": "robust", "dtype": "float64", "seed": "8",
}  # fmt: skip


@pytest.mark.parametrize("name", [*OPTIONS, "momentum", "quantiles"])
def test_every_option_has_an_effect(cli, tmp_path, name):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=draw.normal(3, 2, (60, 3)), y=np.arange(60) % 3)
    base = ["train", "a.npz", "--epochs", "2", "--hidden", "5,5", "--seed", "1"]
    if name == "momentum":
        base += ["--optimizer", "sgd"]
    if name == "quantiles":
        base += ["--loss", "quantile"]
    value = OPTIONS.get(name, "0.9")
    changed = [*base, option_of(name), *([value] if value else [])]
    assert cli(*base, "--out", "base")[0] == 0
    assert cli(*changed, "--out", "changed")[0] == 0
    base_weights, changed_weights = (weights(tmp_path / folder) for folder in ("base", "changed"))
    assert base_weights.shape != changed_weights.shape or np.abs(base_weights - changed_weights).max() > 1e-9


def test_every_setting_is_an_option_and_tested():
    others = {"momentum", "quantiles", "data", "target", "header", "backend", "shards"}  # the last: see test_ranks
    assert set(Settings.__dataclass_fields__) == {*OPTIONS, *others}


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("validation", [0, 0.2])
def test_every_schedule_can_be_chosen(cli, flowers, schedule, validation):
    code, out, _ = cli(
        "train", flowers, "--target", "kind", "--epochs", 6, "--schedule", schedule, "--validation", validation
    )
    assert code == 0 and ("validation accuracy" in out) == bool(validation)


def test_help_names_what_there_is(cli):
    text = " ".join(cli("train", "--help")[1].split())
    assert set(RATES) == set(OPTIMIZERS.names())
    for name in (*OPTIMIZERS.names(), *SCHEDULES.names(), "512 for mnist, 64,64 for a file"):
        assert name in text
    for command in ("train", "evaluate", "predict", "summary", "info"):
        assert command in cli("--help")[1]
