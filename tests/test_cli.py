"""What the command line does, says and returns."""

import csv
import json
import os
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import fastmlp
from fastmlp import run_data, run_training
from fastmlp.cli import main
from fastmlp.datasets import write_idx
from fastmlp.optimizers import OPTIMIZERS
from fastmlp.run_folder import RATES, Settings, option_of
from fastmlp.schedules import SCHEDULES

ALWAYS = {"config.toml", "history.json", "model.safetensors"}


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
def digits(monkeypatch):
    """Make MNIST small: 300 training and 200 test images."""
    (x, y), (x_test, y_test) = fastmlp.datasets.load_mnist(raw=True)
    small = (x[:300], y[:300]), (x_test[:200], y_test[:200])
    monkeypatch.setattr(run_data, "load_mnist", lambda raw: small)


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


@pytest.fixture
def prices(tmp_path):
    """A CSV file with a target in the hundreds of thousands."""
    area = np.random.default_rng(1).uniform(30, 200, 200)
    np.savetxt(
        tmp_path / "prices.csv",
        np.column_stack((area, 3000 * area + 0.5)),
        "%.2f",
        ",",
        header="area,price",
        comments="",
    )
    return tmp_path / "prices.csv"


def weights(folder):
    """All weights of a run's model in a row."""
    return np.concatenate([w.ravel() for w in fastmlp.load(folder / "model.safetensors").get_weights()])


def files_of(folder):
    return {path.name for path in folder.iterdir()}


def test_the_installed_command_answers():
    command = [sys.executable, "-P", "-c", "from fastmlp.cli import main; main()", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"fastmlp {fastmlp.__version__}\n"
    )


def test_importing_the_command_line_imports_nothing_heavy():
    code = "import sys, fastmlp.cli; print(*[m for m in sys.modules if '.' not in m])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"numpy", "scipy", "numba", "sklearn", "matplotlib", "safetensors"}.isdisjoint(found)


def test_mnist_is_learned_from_one_line(tmp_path):
    command = [sys.executable, "-P", "-c", "from fastmlp.cli import main; main()", "train", "mnist"]
    options = ["--epochs", "1", "--hidden", "32", "--out", "run"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    # how long a compiler takes is no matter of tests
    assert [line for line in done.stderr.splitlines() if not line.startswith("compiling the kernels")] == []
    *_, figures, folder = done.stdout.splitlines()
    assert figures.startswith("test accuracy 9")
    pytest.importorskip("matplotlib")
    pictures = {"curves.png", "confusion.png", "mistakes.png"}
    assert files_of(tmp_path / "run") == ALWAYS | pictures
    assert folder == f"run: {', '.join(sorted(ALWAYS | pictures))}"


def test_a_run_has_a_folder_of_its_own_and_a_config_that_repeats_it(cli, digits, tmp_path):
    for _ in range(2):
        assert cli("train", "mnist", "--epochs", 2, "--hidden", "8,6", "--dropout", "0.1,0.2,0.3")[0] == 0
    first, second = sorted((tmp_path / "runs").iterdir())
    assert first.name.startswith("mnist-2")
    config = tomllib.loads((first / "config.toml").read_text("utf-8"))
    assert config["settings"]["hidden"] == [8, 6] and config["settings"]["dropout"] == [0.1, 0.2, 0.3]
    assert config["settings"]["backend"] == fastmlp.get_backend("auto").name
    assert config["made_with"]["fastmlp"] == fastmlp.__version__
    assert cli(*shlex.split(config["command"])[1:], "--out", "again")[0] == 0
    np.testing.assert_array_equal(weights(tmp_path / "again"), weights(first))
    assert (weights(second) != weights(first)).any()  # its seed was drawn anew
    history = json.loads((first / "history.json").read_text("utf-8"))
    assert len(history["history"]["val_accuracy"]) == 2
    network = fastmlp.load(first / "model.safetensors")
    x, y = run_data.load_mnist(True)[1]
    assert history["result"]["test_accuracy"] == network.evaluate(x, y)["accuracy"]
    assert network.class_names == tuple("0123456789")


def test_a_table_is_learned_and_its_classes_predicted_by_name(cli, flowers, tmp_path):
    code, out, err = cli("train", flowers, "--target", "kind", "--out", "run", "--seed", 1)
    assert (code, err) == (0, "")
    assert "144 rows to train on, 36 held out, 3 features, 3 classes, standardized for the training" in out
    assert "validation accuracy 100.00 %" in out
    assert "mistakes.png" not in files_of(tmp_path / "run")
    code, out, _ = cli("evaluate", "run", flowers, "--target", "kind")
    assert code == 0
    assert [line.split() for line in out.splitlines()][-3:] == [
        ["oak,", "old", "1.0000", "1.0000", "1.0000", "60"],
        ["rose", "1.0000", "1.0000", "1.0000", "60"],
        ["tulip", "1.0000", "1.0000", "1.0000", "60"],
    ]
    assert cli("predict", "run", flowers, "--target", "kind", "--out", "p.csv", "--proba")[0] == 0
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == ["rose"] * 60 + ["tulip"] * 60 + ["oak, old"] * 60
    assert float(rows[70]["probability_tulip"]) > 0.9


def test_columns_are_found_by_name_whatever_their_order(cli, flowers, tmp_path):
    cli("train", flowers, "--target", "kind", "--out", "run", "--seed", 1)
    (tmp_path / "new.csv").write_text("garden,note,weight,size\n7,hello,0,5600\n7,there,0.001,5300\n")
    assert cli("predict", "run", "new.csv", "--out", "p.npy")[0] == 0
    assert list(np.load(tmp_path / "p.npy")) == ["oak, old", "tulip"]
    (tmp_path / "new.csv").write_text("garden,mass,size\n7,0,5600\n")
    code, _, err = cli("predict", "run", "new.csv", "--out", "q.npy")
    assert code == 1 and "'weight'" in err and err.count("\n") == 1


def test_predictions_are_written_as_arrays_too(cli, flowers, tmp_path):
    cli("train", flowers, "--target", "kind", "--out", "run", "--seed", 1)
    for options in ("--out p.npy", "--out c.npy --proba", "--out p.npz --proba", "--out q.npz"):
        assert cli("predict", "run", flowers, "--target", "kind", *options.split())[0] == 0
    names = np.load(tmp_path / "p.npy")
    assert names[0] == "rose"
    chances = np.load(tmp_path / "c.npy")
    assert chances.shape == (180, 3)
    with np.load(tmp_path / "p.npz") as both, np.load(tmp_path / "q.npz") as one:
        np.testing.assert_array_equal(both["prediction"], names)
        np.testing.assert_array_equal(both["probability"], chances)
        assert one.files == ["prediction"]


def test_the_probability_of_a_single_output_is_that_of_the_second_class(cli, tmp_path):
    rows = [f"{i},{'yes' if i > 40 else 'no'}" for i in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["x,answer", *rows]))
    train = ("train", "a.csv", "--target", "answer", "--loss", "sigmoid_cross_entropy", "--out", "run", "--seed", 1)
    assert cli(*train)[0] == 0
    assert cli("predict", "run", "a.csv", "--target", "answer", "--proba", "--out", "p.csv")[0] == 0
    header, first, *_, last = (tmp_path / "p.csv").read_text().split()
    assert header == "prediction,probability_yes"
    assert first.startswith("no,") and float(first.split(",")[1]) < 0.1
    assert last.startswith("yes,") and float(last.split(",")[1]) > 0.9


def test_the_target_may_be_missing_where_it_is_to_be_predicted(cli, flowers, tmp_path):
    cli("train", flowers, "--target", "kind", "--out", "run", "--seed", 1)
    predict = ("predict", "run", "new.csv", "--target", "kind", "--out", "p.npy")
    for text in ("size,weight,garden\n5600,0,7\n", "kind,size,weight,garden\n,5600,0,7\n?,5600,0,7\n"):
        (tmp_path / "new.csv").write_text(text)
        assert cli(*predict)[0] == 0
        assert set(np.load(tmp_path / "p.npy")) == {"oak, old"}
    (tmp_path / "new.csv").write_text("5600,0,7,rose\n5300,0.001,7,rose\n")
    assert cli(*predict[:4], "3", *predict[5:])[0] == 0
    assert list(np.load(tmp_path / "p.npy")) == ["oak, old", "tulip"]


def test_values_are_learned_and_predicted_in_their_own_units(cli, prices, tmp_path):
    code, out, _ = cli("train", prices, "--target", "price", "--out", "run", "--seed", 1)
    assert code == 0
    assert "target in values" in out and "validation R2 1.0000" in out
    assert files_of(tmp_path / "run") >= ALWAYS and "confusion.png" not in files_of(tmp_path / "run")
    assert "r2_score" in cli("evaluate", "run", prices, "--target", "price")[1]
    (tmp_path / "new.csv").write_text("area\n100\n")
    assert cli("predict", "run", "new.csv", "--out", "p.csv")[0] == 0
    header, value = (tmp_path / "p.csv").read_text().split()
    assert header == "prediction" and 290_000 < float(value) < 310_000
    assert "no probabilities" in cli("predict", "run", "new.csv", "--out", "p.csv", "--proba")[2]


def test_scaling_is_folded_into_the_weights():
    draw = np.random.default_rng(0)
    x, y = draw.normal(50, [3, 40, 0.1], (30, 3)), draw.normal(1e4, 300, (30, 2))
    x[:, 1] = 5.0
    model = fastmlp.MLP((3, 4, 2), loss="mean_squared_error", dtype="float64", seed=0)
    model.set_weights([draw.normal(size=w.shape) for w in model.get_weights()])  # biases are 0 at first
    scaling = run_data.Scaling.of((x, y), with_target=True)
    scaled_x, scaled_y = scaling.apply(x, y)
    np.testing.assert_allclose(scaled_x.std(axis=0), [1, 0, 1])
    np.testing.assert_allclose(scaled_y.mean(axis=0), 0, atol=1e-12)
    expected = model.predict(scaled_x) * y.std(axis=0) + y.mean(axis=0)
    scaling.fold(model)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-9)
    x[:, 1] = 1e6  # what was constant in the training means nothing
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-9)


def test_arrays_and_images_are_learned_too(cli, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (80, 4, 3), dtype=np.uint8)
    y = (x[:, 0, 0] > 127).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    write_idx(tmp_path / "x-ubyte.gz", x)
    write_idx(tmp_path / "y.idx", y)
    models = []
    for i, data in enumerate((["a.npz"], ["x.npy", "--target", "y.npy"], ["x-ubyte.gz", "--target", "y.idx"])):
        code, out, _ = cli("train", *data, "--epochs", 2, "--seed", 0, "--validation", 0, "--out", i)
        assert code == 0
        assert "80 rows to train on, 12 features, 2 classes (for values, --loss mean_squared_error)" in out
        assert "training accuracy" in out
        assert cli("evaluate", i, *data)[0] == 0
        models.append(weights(tmp_path / str(i)))
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])


def test_rows_held_out_are_random_but_for_mapped_files_the_last(cli, tmp_path):
    settings = Settings("a", (2,), 1, 1, (0.0,), 0.2, seed=3)
    x, y = np.arange(20.0)[:, None], np.arange(20)
    (train, _), (held, labels) = run_data._hold_out((x, y), settings, in_order=False)
    assert sorted(np.concatenate((train, held))[:, 0]) == list(range(20))
    np.testing.assert_array_equal(held[:, 0], labels)
    assert len(held) == 4 and set(held[:, 0]) != {16, 17, 18, 19}
    _, (held, _) = run_data._hold_out((x, y), settings, in_order=True)
    assert set(held[:, 0]) == {16, 17, 18, 19}


@pytest.mark.parametrize(
    ("target", "options", "said", "outputs"),
    [
        (np.arange(200) % 3, (), "3 classes", 3),
        (np.arange(200), (), "target in values (for classes, --loss softmax_cross_entropy)", 1),
        (np.arange(200) % 3, ("--loss", "poisson"), "target in values", 1),
        (np.arange(200) % 2, ("--loss", "sigmoid_cross_entropy"), "2 classes", 1),
        (np.arange(200) % 3, ("--loss", "categorical_hinge"), "3 classes", 3),
        (np.eye(2)[np.arange(200) % 2], ("--loss", "sigmoid_cross_entropy"), "target in values", 2),
        (np.eye(2)[np.arange(200) % 2], ("--loss", "softmax_cross_entropy"), "target in values", 2),
        (np.eye(2)[np.arange(200) % 2], (), "target in values", 2),
        (np.arange(200) / 7, (), "target in values", 1),
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
        options[1] if options else ("mean_squared_error", "softmax_cross_entropy")[outputs == 3]
    )
    code, _, err = cli("evaluate", "run", "a.npz")
    assert (code, err) == (0, "")
    code, _, err = cli("predict", "run", "a.npz", "--out", "p.csv")
    assert (code, err) == (0, "")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 201


OPTIONS = {
    "hidden": "7", "activation": "tanh", "loss": "categorical_hinge", "epochs": "3", "batch_size": "16",
    "optimizer": "sgd", "lr": "0.01", "schedule": "constant", "dropout": "0.4", "l2": "0.1",
    "weight_decay": "0.5", "label_smoothing": "0.2", "clip_norm": "0.01", "ema": "0.9", "validation": "0.4",
    "standardize": None, "dtype": "float64", "seed": "8",
}  # fmt: skip


@pytest.mark.parametrize("name", [*OPTIONS, "momentum"])
def test_every_option_has_an_effect(cli, tmp_path, name):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=draw.normal(3, 2, (60, 3)), y=np.arange(60) % 3)
    base = ["train", "a.npz", "--epochs", "2", "--hidden", "5,5", "--seed", "1"]
    if name == "momentum":
        base += ["--optimizer", "sgd"]
    value = OPTIONS.get(name, "0.9")
    changed = [*base, option_of(name), *([value] if value else [])]
    assert cli(*base, "--out", "base")[0] == 0
    assert cli(*changed, "--out", "changed")[0] == 0
    base_weights, changed_weights = (weights(tmp_path / folder) for folder in ("base", "changed"))
    assert base_weights.shape != changed_weights.shape or np.abs(base_weights - changed_weights).max() > 1e-9


def test_every_setting_is_an_option_and_tested():
    assert set(Settings.__dataclass_fields__) == {*OPTIONS, "momentum", "data", "target", "backend"}


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


def test_mnist_models_are_evaluated_on_the_test_images(cli, digits, tmp_path):
    cli("train", "mnist", "--epochs", 1, "--hidden", "8", "--out", "run")
    out = cli("evaluate", "run", "mnist")[1]
    accuracy = json.loads((tmp_path / "run" / "history.json").read_text())["result"]["test_accuracy"]
    assert ["accuracy", f"{accuracy:.6g}"] in [line.split() for line in out.splitlines()]
    assert len(out.splitlines()) == 3 + 1 + 11
    assert cli("predict", "run/model.safetensors", "mnist", "--out", "p.csv")[1] == "200 predictions in p.csv\n"


def test_summary_shows_layers_and_classes(cli, flowers):
    cli("train", flowers, "--target", "kind", "--epochs", 1, "--out", "run")
    code, out, _ = cli("summary", "run")
    assert code == 0
    assert "parameters 4,611" in out and "classes oak, old, rose, tulip" in out


def test_info_tells_versions_threads_and_backends(cli):
    code, out, _ = cli("info")
    assert code == 0
    versions, threads, backends = (
        [line.split(maxsplit=1) for line in part.split("\n")] for part in out.strip().split("\n\n")
    )
    assert ["fastmlp", fastmlp.__version__] in versions and ["numpy", np.__version__] in versions
    assert any("BLAS" in line[0] and "thread" in line[1] for line in threads[1:])
    for name, found in fastmlp.available_backends().items():
        state = "can run" if found.available else "cannot run"
        assert [name, f"{state}: {found.reason}" if found.reason else state] in backends
    assert backends[-1][1].startswith(f"is {fastmlp.get_backend('auto').name} (")


MISTAKES = [
    # user mistakes in data, files and machine: exit code 1
    ("train nowhere.csv --target y", 1, "nowhere.csv: no such file or directory"),
    ("train . --target y", 1, "expected a name that ends in .csv"),
    ("train a.csv", 1, "expected a target to learn; name it with --target"),
    ("train a.csv --target c", 1, "expected a target column 'c', got the columns 'a', 'b'"),
    ("train one.csv --target kind", 1, "expected two classes or more in the target, got 'x' only"),
    ("train a.csv --target b --validation 0.01", 1, "--validation 0.01 of 4 rows leaves no row to validate with"),
    ("train a.csv --target b --validation 0.9", 1, "--validation 0.9 of 4 rows leaves no row to train on"),
    ("train three.csv --target b --loss sigmoid_cross_entropy", 1, "is for two classes, the target has 3"),
    ("train a.csv --target b --out full", 1, "full is not empty; choose another folder for --out, or go on"),
    ("train a.csv --target b --out a.csv", 1, "a.csv is a file; --out names a folder"),
    ("train a.csv --target b --resume --out full", 1, "full holds no run to resume: there is no config.toml"),
    ("train huge.csv --target b --loss mean_squared_error --no-standardize --lr 1e30 --optimizer sgd --validation 0",
     1, "the loss is not finite in epoch"),
    ("evaluate nowhere a.csv", 1, "nowhere: no such file or directory"),
    ("evaluate a.csv a.csv", 1, "a.csv is no fastmlp file"),
    ("evaluate model.safetensors a.csv", 1, "expected a target to compare with; name it with --target"),
    ("evaluate model.safetensors three.csv --target a", 1, "expected one of the classes 'p', 'q', got '1'"),
    ("evaluate model.safetensors mnist", 1, "mnist: expected 2 features, as the model has inputs; got 784"),
    ("predict model.safetensors three.csv --out p.csv", 1, "got 3; if one of them is the target, name it with"),
    ("predict model.safetensors a.csv --out nowhere/p.csv", 1, "nowhere/"),
    ("summary nowhere", 1, "nowhere: no such file or directory"),
    # usage: exit code 2
    ("trane mnist", 2, "No such command 'trane'"),
    ("train", 2, "Missing argument"),
    ("train mnist --epochs 0", 2, "'--epochs'"),
    ("train mnist --epochs ten", 2, "'--epochs'"),
    ("train mnist --hidden 12x", 2, "--hidden: expected such as 256,128, got '12x'"),
    ("train mnist --hidden 0", 2, "each at least 1"),
    ("train mnist --dropout 1.5", 2, "dropout must be at least 0 and below 1"),
    ("train mnist --dropout x", 2, "--dropout: expected such as 0.2"),
    ("train mnist --dropout ,", 2, "--dropout: expected such as 0.2"),
    ("train mnist --dropout 0.1,0.1,0.1", 2, "dropout needs one rate for all hidden layers or 2"),
    ("train mnist --activation rellu", 2, "did you mean 'relu'?"),
    ("train mnist --activation relu,tanh", 2, "--activation needs one name, or one for each of the 1 hidden layers"),
    ("train mnist --optimizer adma", 2, "did you mean 'adam'?"),
    ("train mnist --schedule cosin", 2, "did you mean 'cosine'?"),
    ("train mnist --loss mse", 2, "loss 'mse' is not known"),
    ("train mnist --loss huber", 2, "--loss huber is not for classes"),
    ("train mnist --momentum 0.9", 2, "--momentum: the optimizer 'adam' has none; use --optimizer sgd or rmsprop"),
    ("train mnist --label-smoothing 0.1 --loss categorical_hinge", 2, "--label-smoothing: the loss"),
    ("train mnist --lr -1", 2, "learning_rate must be a finite number"),
    ("train mnist --l2 -1", 2, "l2 must be at least 0"),
    ("train mnist --ema 2", 2, "ema must be between 0 and 1"),
    ("train mnist --validation 1", 2, "--validation is a fraction of the rows, in [0, 1); got 1.0"),
    ("train mnist --backend torch", 2, "backend 'torch' is not known"),
    ("train mnist --dtype float16", 2, "dtype must be 'float32' or 'float64'"),
    ("train mnist --seed -1", 2, "seed must be in 0..2**64-1"),
    ("train mnist --target y", 2, "--target has no meaning for mnist"),
    ("train mnist --standardize", 2, "--standardize has no meaning for mnist"),
    ("train mnist --resume", 2, "--resume needs --out DIR"),
    ("train bytes.npz --standardize", 2, "--standardize: features of type uint8 are divided by 255 already"),
    ("evaluate model.safetensors mnist --target y", 2, "--target has no meaning for mnist"),
    ("evaluate model.safetensors a.csv --backend torch", 2, "backend 'torch' is not known"),
    ("predict model.safetensors a.csv --out p.txt", 2, "--out: the name of the file ends in .csv, .npy or .npz"),
    ("predict model.safetensors bytes.npz --target y --out p.csv", 2, "--target has no meaning for bytes.npz"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES)
def test_a_mistake_is_a_line_and_an_exit_code(cli, digits, tmp_path, arguments, code, said):
    (tmp_path / "a.csv").write_text("a,b\n1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "three.csv").write_text("a,b,c\n1,0,5\n2,1,4\n3,2,5\n4,1,4\n5,0,5\n6,2,4\n")
    (tmp_path / "one.csv").write_text("a,kind\n1,x\n2,x\n")
    (tmp_path / "huge.csv").write_text("a,b\n1e30,1.5\n2e30,2.5\n")
    np.savez(tmp_path / "bytes.npz", x=np.zeros((9, 2), np.uint8), y=np.arange(9) % 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    model = fastmlp.MLP((2, 2))
    model.class_names = ("p", "q")
    model.save(tmp_path / "model.safetensors")
    before = files_of(tmp_path)
    got, _, err = cli(*arguments.split())
    assert said in err
    assert got == code
    assert "Traceback" not in err
    last = err.rstrip("\n").splitlines()[-1]
    assert said in last  # whole, on one line
    if code == 1:
        assert last.startswith("error: ") and err.count("\n") == 1
    # nothing is left behind, but by a run that had begun
    assert files_of(tmp_path) - before <= ({"runs"} if "not finite" in said else set())


def test_a_backend_that_cannot_run_here_is_an_error_with_its_cure(cli, digits):
    for name, found in fastmlp.available_backends().items():
        if not found.available:
            code, _, err = cli("train", "mnist", "--backend", name)
            assert (code, err) == (1, f"error: backend {name!r} cannot run here: {found.reason}\n")


def test_warmup_compiles_ahead_and_says_where_it_is_kept(cli):
    found = fastmlp.available_backends()["numba"]
    if not found.available:
        pytest.skip(f"backend numba: {found.reason}")
    code, out, err = cli("warmup")
    assert (code, err) == (0, "")
    single, double, kept = out.splitlines()
    assert single.startswith("float32: ") and double.startswith("float64: ") and kept.startswith("kept ")


def test_messages_are_not_folded_where_they_are_piped(tmp_path):
    name = tmp_path / ("a long name " * 15) / "data.csv"
    code = "from fastmlp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "train", str(name), "--target", "y"],
        capture_output=True, text=True, env=os.environ | {"COLUMNS": "40"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"error: {name}: no such file or directory\n"


def test_other_errors_keep_their_traceback(cli, digits, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_training, "fit", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli("train", "mnist", "--epochs", 1)


def test_without_matplotlib_it_says_what_to_install_and_goes_on(cli, digits, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = cli("train", "mnist", "--epochs", 1, "--hidden", "8", "--out", "run")
    assert code == 0
    assert err.count("\n") == 1 and 'pip install "fastmlp[plot]"' in err
    assert "test accuracy" in out
    assert files_of(tmp_path / "run") == ALWAYS


def test_a_warning_of_the_library_is_a_line(cli, digits, monkeypatch):
    import warnings

    finish = run_training.finish

    def warning(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("be careful", stacklevel=2)
        return finish(*arguments)

    monkeypatch.setattr(run_training, "finish", warning)
    assert cli("train", "mnist", "--epochs", 1, "--hidden", "8")[2] == "warning: be careful\n"


@pytest.mark.filterwarnings("always")
def test_a_column_that_hardly_varies_for_its_size_asks_for_more_digits(cli, tmp_path):
    rows = [f"{1.7e9 + i},{i % 2}" for i in range(40)]
    (tmp_path / "times.csv").write_text("\n".join(["time,y", *rows]))
    train = ("train", "times.csv", "--target", "y", "--epochs", 1)
    code, _, err = cli(*train)
    assert code == 0 and err.count("\n") == 1
    assert (
        err.startswith("warning: column 'time' varies by less than a 10,000th of its size") and "--dtype float64" in err
    )
    assert cli(*train, "--dtype", "float64")[2] == ""
