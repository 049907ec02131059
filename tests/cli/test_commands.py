"""What the commands do and say: train, evaluate, predict, summary, info and warmup."""

import csv
import json
import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from run_files import ALWAYS, files_of, weights

import fastmlp
from fastmlp.cli import data as run_data
from fastmlp.cli import run as run_training
from fastmlp.cli.folder import Settings
from fastmlp.cli.scaling import Scaling
from fastmlp.datasets import write_idx
from fastmlp.engine import loop
from fastmlp.engine.checkpoints import save_run


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


def test_the_installed_command_answers():
    command = [sys.executable, "-P", "-c", "from fastmlp.cli.app import main; main()", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"fastmlp {fastmlp.__version__}\n"
    )


def test_importing_the_command_line_imports_nothing_heavy():
    code = "import sys, fastmlp.cli; print(*[m for m in sys.modules if '.' not in m])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"numpy", "scipy", "numba", "sklearn", "matplotlib", "safetensors"}.isdisjoint(found)


@pytest.mark.thorough
def test_mnist_is_learned_from_one_line(tmp_path, kernels_in_the_cache):
    command = [sys.executable, "-P", "-c", "from fastmlp.cli.app import main; main()", "train", "mnist"]
    options = ["--epochs", "1", "--hidden", "32", "--out", "run"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    # how long a compiler takes is no matter of tests
    waits = "compiling the kernels", "measuring which"
    assert [line for line in done.stderr.splitlines() if not line.startswith(waits)] == []
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


def test_a_table_is_learned_and_its_classes_predicted_by_name(cli, pictures, flowers, tmp_path):
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


def test_values_are_learned_and_predicted_in_their_own_units(cli, pictures, prices, tmp_path):
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
    scaling = Scaling.of((x, y), "standard", True, ["a", "b", "c"])
    scaled_x, scaled_y = scaling.apply(x, y)
    np.testing.assert_allclose(scaled_x.std(axis=0), [1, 0, 1])
    np.testing.assert_allclose(scaled_y.mean(axis=0), 0, atol=1e-12)
    expected = model.predict(scaled_x) * y.std(axis=0) + y.mean(axis=0)
    scaling.fold(model)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-9)
    x[:, 1] = 1e6  # what was constant in the training means nothing
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["standard", "robust", "quantile"])
@pytest.mark.parametrize("values", [False, True])
def test_one_file_takes_the_units_of_the_table_however_it_was_scaled(cli, tmp_path, kind, values):
    draw = np.random.default_rng(0)
    x = draw.normal(50, [3, 40, 0.1], (90, 3))
    y = x[:, 0] * 1e3 if values else (x[:, 0] > 50).astype(int)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    options = ("--epochs", 3, "--seed", 0, "--dtype", "float64", "--backend", "numpy", "--validation", 0.2)
    code, out, err = cli("train", "a.npz", "--preprocess", kind, *options, "--out", kind)
    assert (code, err) == (0, "") and ("standardized" if kind == "standard" else f"scaled ({kind})") in out
    model = fastmlp.load(tmp_path / kind / "model.safetensors", "numpy")
    assert (model.preprocessing is not None) == (kind == "quantile")
    code, out, err = cli("evaluate", kind, "a.npz")
    assert (code, err) == (0, "")
    if kind == "standard":
        assert cli("train", "a.npz", "--standardize", *options, "--out", "short")[0] == 0
        same = fastmlp.load(tmp_path / "short" / "model.safetensors", "numpy")
        np.testing.assert_array_equal(same.predict(x), model.predict(x))
    estimator = (fastmlp.MLPRegressor if values else fastmlp.MLPClassifier)(preprocess=kind, epochs=1, backend="numpy")
    estimator.fit(x, y).model_.save(tmp_path / "theirs")
    code, out, err = cli("predict", "theirs", "a.npz", "--out", "p.csv", "--backend", "numpy")
    assert (code, err) == (0, ""), err
    np.testing.assert_allclose(np.loadtxt(tmp_path / "p.csv", skiprows=1), estimator.predict(x), rtol=1e-6)


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


def test_rows_held_out_are_random_but_of_mnist_the_last(cli, tmp_path):
    settings = Settings("a", (2,), 1, 1, (0.0,), 0.2, seed=3)
    x, y = np.arange(20.0)[:, None], np.arange(20.0)
    train, held = run_data._parts(y, settings, "mean_squared_error", 1, by_class=True)
    assert sorted([*train, *held]) == list(range(20))
    assert len(held) == 4 and set(held.tolist()) != {16, 17, 18, 19}
    _, (held, _) = run_data._last_rows((x, y), settings)
    assert set(held[:, 0]) == {16, 17, 18, 19}


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
    versions, threads, backends, *of_numba = (
        [line.split(maxsplit=1) for line in part.split("\n")] for part in out.strip().split("\n\n")
    )
    assert len(of_numba) == (3 if fastmlp.available_backends()["numba"].available else 0)
    assert ["fastmlp", fastmlp.__version__] in versions and ["numpy", np.__version__] in versions
    assert any("BLAS" in line[0] and "thread" in line[1] for line in threads[1:])
    for name, found in fastmlp.available_backends().items():
        state = "can run" if found.available else "cannot run"
        assert [name, f"{state}: {found.reason}" if found.reason else state] in backends
    assert backends[-1][1].startswith(f"is {fastmlp.get_backend('auto').name} (")


def test_warmup_compiles_ahead_and_says_where_it_is_kept(cli):
    found = fastmlp.available_backends()["numba"]
    if not found.available:
        pytest.skip(f"backend numba: {found.reason}")
    code, out, err = cli("warmup")
    assert (code, err) == (0, "")
    single, double, kept = out.splitlines()
    assert single.startswith("float32: ") and double.startswith("float64: ") and kept.startswith("kept ")


def test_a_mapped_file_sorted_by_class_is_validated_on_all_classes(cli, tmp_path):
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 60)
    np.save(tmp_path / "x.npy", draw.normal(size=(180, 3)) * 0.1 + np.eye(3)[y])
    np.save(tmp_path / "y.npy", y)
    code, out, _ = cli("train", "x.npy", "--target", "y.npy", "--epochs", 10, "--seed", 1, "--out", "run")
    assert code == 0 and "144 rows to train on, 36 held out, 3 features, 3 classes" in out
    assert json.loads((tmp_path / "run" / "history.json").read_text())["result"]["validation_accuracy"] > 0.9
    np.savez(tmp_path / "a.npz", x=np.load(tmp_path / "x.npy"), y=y)  # not mapped: the same rows, the same numbers
    cli("train", "a.npz", "--epochs", 10, "--seed", 1, "--out", "again")
    np.testing.assert_array_equal(weights(tmp_path / "run"), weights(tmp_path / "again"))


@pytest.mark.filterwarnings("always:.*the first row:UserWarning")
def test_names_that_are_numbers_are_said_and_serve_in_prediction(cli, tmp_path):
    draw = np.random.default_rng(0).random((40, 3))
    rows = [",".join(f"{v:.3f}" for v in row) for row in draw]
    spectra = ["400.5,401.0,401.5,species", *(f"{row},{('elm', 'oak')[i % 2]}" for i, row in enumerate(rows))]
    (tmp_path / "spectra.csv").write_text("\n".join(spectra))
    (tmp_path / "new.csv").write_text("\n".join(["401.5,400.5,401.0", *rows]))
    options = "--epochs", 1, "--seed", 0, "--backend", "numpy"
    code, out, err = cli("train", "spectra.csv", "--target", "species", *options, "--out", "a")
    assert (code, err) == (0, "") and "32 rows to train on, 8 held out, 3 features, 2 classes" in out
    code, out, err = cli("train", "spectra.csv", "--target", "-1", *options, "--out", "b")
    assert code == 0 and "32 rows to train on, 8 held out" in out
    assert err.count("\n") == 1 and "is read as the names of the columns; header=False (--no-header)" in err
    assert cli("train", "spectra.csv", "--target", "-1", "--header", *options, "--out", "c")[2] == ""
    code, out, err = cli("train", "spectra.csv", "--target", "-1", "--no-header", *options, "--out", "d")
    assert "33 rows to train on, 8 held out, 3 features, 3 classes" in out
    assert cli("predict", "a", "new.csv", "--out", "p.csv")[1:] == ("40 predictions in p.csv\n", "")
    assert cli("evaluate", "a", "spectra.csv", "--target", "species")[2] == ""


def test_labels_with_a_point_are_classes_and_that_is_said(cli, tmp_path):
    draw = np.random.default_rng(0).random((40, 2))
    (tmp_path / "a.csv").write_text("a,b,y\n" + "".join(f"{a},{b},{i % 2 + 1}.0\n" for i, (a, b) in enumerate(draw)))
    out = cli("train", "a.csv", "--target", "y", "--epochs", 1, "--backend", "numpy", "--out", "run")[1]
    assert "2 classes (for values, --loss mean_squared_error)" in out


def test_a_missing_folder_for_predictions_is_told_before_the_work(cli, tmp_path):
    code, out, err = cli("predict", "no model", "no data.csv", "--out", "nodir/p.csv")
    assert (code, out) == (1, "")
    assert err == "error: nodir/p.csv: expected a folder to write it into, found none; make it first\n"


def test_the_median_is_learned_on_targets_that_are_scaled(cli, prices, tmp_path):
    options = ["--epochs", 20, "--seed", 0, "--backend", "numpy", "--out", "run"]
    assert cli("train", prices, "--target", "price", "--loss", "pinball", *options)[0] == 0
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))["settings"]["loss"] == "quantile"
    network = fastmlp.load(tmp_path / "run" / "model.safetensors")
    area, price = np.loadtxt(prices, delimiter=",", skiprows=1).T
    assert network.spec.loss == fastmlp.Quantile()
    assert np.abs(network.predict(area[:, None]) - price).mean() < 0.05 * price.std()


def test_short_epochs_are_not_followed_by_a_checkpoint_each(cli, flowers, monkeypatch):
    written = []

    def noted(learner, path, run):
        written.append(run.progress.epoch)
        save_run(learner, path, run)

    monkeypatch.setattr(loop, "save_run", noted)
    for seconds, few in ((1e6, [60]), (0.0, list(range(1, 61)))):
        monkeypatch.setattr(run_training, "CHECKPOINT_SECONDS", seconds)
        written.clear()
        asked = ("--epochs", "60", "--hidden", "4", "--backend", "numpy", "--out", f"run{seconds}")
        assert cli("train", flowers, "--target", "kind", *asked)[0] == 0
        assert written == few


def test_python_runs_the_package_as_the_command_line():
    command = [sys.executable, "-P", "-m", "fastmlp"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastmlp {fastmlp.__version__}\n", "")
    done = subprocess.run([*command, "trane"], capture_output=True, text=True)
    assert done.returncode == 2 and "Usage: fastmlp " in done.stderr
