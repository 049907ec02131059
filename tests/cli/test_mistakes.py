"""Mistakes of a user, errors and warnings: what is said, on one line, and the exit code."""

import os
import subprocess
import sys

import numpy as np
import pytest
from run_files import ALWAYS, files_of

import fastmlp
from fastmlp.cli import run as run_training

MISTAKES = [
    # user mistakes in data, files and machine: exit code 1
    ("train nowhere.csv --target y", 1, "nowhere.csv: no such file or directory"),
    ("train . --target y", 1, "expected a name that ends in .csv"),
    ("train a.csv", 1, "a.csv: expected a target to learn; name it with --target, a column by its name or number"),
    ("train three.csv", 1, "expected a target to learn; name it with --target, a column by its name or number"),
    ("train nowhere.csv", 1, "nowhere.csv: no such file or directory"),
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
    ("evaluate model.safetensors a.csv", 1, "expected a target to compare with; name it with --target, a column by"),
    ("evaluate model.safetensors three.csv", 1, "expected a target to compare with; name it with --target, a column"),
    ("evaluate model.safetensors three.csv --target a", 1, "expected one of the classes 'p', 'q', got '1'"),
    ("evaluate model.safetensors mnist", 1, "mnist: expected 2 features, as the model has inputs; got 784"),
    ("predict model.safetensors three.csv --out p.csv", 1, "got 3; if one of them is the target, name it with"),
    ("predict model.safetensors words.csv --out p.csv", 1, "got 3; if one of them is the target, name it with"),
    ("predict killed a.csv --out p.csv", 1, "go on with it, by fastmlp train DATA --resume --out killed"),
    ("bench --model killed", 1, "killed holds a run that was not finished, and no model.safetensors; go on with it"),
    ("predict model.safetensors a.csv --out nowhere/p.csv", 1, "nowhere/"),
    ("summary nowhere", 1, "nowhere: no such file or directory"),
    # usage: exit code 2
    ("trane mnist", 2, "No such command 'trane'"),
    ("train", 2, "Missing argument"),
    ("train mnist --epochs 0", 2, "'--epochs'"),
    ("train mnist --epochs ten", 2, "'--epochs'"),
    ("train mnist --hidden 12x", 2, "--hidden: expected such as 256,128, got '12x'"),
    ("train mnist --hidden 0", 2, "--hidden must be at least 1, got 0"),
    ("train mnist --dropout 1.5", 2, "dropout must be at least 0 and below 1"),
    ("train mnist --dropout x", 2, "--dropout: expected such as 0.2"),
    ("train mnist --dropout ,", 2, "--dropout: expected such as 0.2"),
    ("train mnist --dropout 0.1,0.1,0.1", 2, "dropout needs one rate for all hidden layers or 2"),
    ("train mnist --activation rellu", 2, "did you mean 'relu'?"),
    ("train mnist --activation relu,tanh", 2, "--activation needs one name, or one for each of the 1 hidden layers"),
    ("train mnist --optimizer adma", 2, "did you mean 'adam'?"),
    ("train mnist --schedule cosin", 2, "did you mean 'cosine'?"),
    ("train mnist --loss mse", 2, "--loss mean_squared_error is not for classes"),
    ("train mnist --loss squared_error", 2, "use 'mean_squared_error', which is twice scikit-learn's. There are: "),
    ("train mnist --loss huber", 2, "--loss huber is not for classes"),
    ("train mnist --momentum 0.9", 2, "--momentum: the optimizer 'adam' has none; use --optimizer sgd or rmsprop"),
    ("train mnist --label-smoothing 0.1 --loss categorical_hinge", 2, "--label-smoothing: the loss"),
    ("train mnist --lr -1", 2, "--lr must be at least 0"),
    ("train mnist --l2 -1", 2, "--l2 must be at least 0"),
    ("train mnist --ema 2", 2, "ema must be above 0 and below 1"),
    ("train mnist --validation 1", 2, "--validation is a fraction of the rows, in [0, 1); got 1.0"),
    ("train mnist --backend torch", 2, "backend 'torch' is not known"),
    ("train mnist --dtype float16", 2, "dtype must be 'float32' or 'float64'"),
    ("train mnist --seed -1", 2, "seed must be in 0..2**64-1"),
    ("train mnist --target y", 2, "--target has no meaning for mnist"),
    ("train mnist --standardize", 2, "--standardize has no meaning for mnist"),
    ("train mnist --shards 0", 2, "'--shards'"),
    ("train mnist --resume", 2, "--resume needs --out DIR"),
    ("train bytes.npz --preprocess robust", 2, "--preprocess: features of type uint8 are divided by 255 already"),
    ("train mnist --preprocess robust", 2, "--preprocess has no meaning for mnist"),
    ("train bytes.npz --preprocess minmax", 2, "--preprocess must be 'standard', 'robust' or 'quantile'; got 'minmax'"),
    ("train bytes.npz --preprocess robust --no-standardize", 2, "--no-standardize does not; leave out one of them"),
    ("train bytes.npz --standardize", 2, "--standardize: features of type uint8 are divided by 255 already"),
    ("evaluate model.safetensors mnist --target y", 2, "--target has no meaning for mnist"),
    ("evaluate model.safetensors a.csv --backend torch", 2, "backend 'torch' is not known"),
    ("selftest --backend torch", 2, "backend 'torch' is not known"),
    ("predict model.safetensors a.csv --out p.txt", 2, "--out: the name of the file ends in .csv, .npy or .npz"),
    ("predict model.safetensors a.csv --out ./a.csv", 2, "--out: ./a.csv is the file of the data, which would be lost"),
    ("predict named.safetensors three.csv --out p.csv --target a", 2,
     "--target a is a feature of the model, which cannot be left out; its are 'a', 'c'"),
    ("predict named.safetensors three.csv --out p.csv --target -1", 2, "--target -1 is 'c', a feature of the model"),
    ("predict model.safetensors bytes.npz --target y --out p.csv", 2, "--target has no meaning for bytes.npz"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES)
def test_a_mistake_is_a_line_and_an_exit_code(cli, digits, tmp_path, arguments, code, said):
    (tmp_path / "a.csv").write_text("a,b\n1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "three.csv").write_text("a,b,c\n1,0,5\n2,1,4\n3,2,5\n4,1,4\n5,0,5\n6,2,4\n")
    (tmp_path / "one.csv").write_text("a,kind\n1,x\n2,x\n")
    (tmp_path / "huge.csv").write_text("a,b\n1e30,1.5\n2e30,2.5\n")
    np.savez(tmp_path / "bytes.npz", x=np.zeros((9, 2), np.uint8), y=np.arange(9) % 3)
    (tmp_path / "words.csv").write_text("a,b,kind\n1,0,p\n2,1,q\n")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.toml").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    model = fastmlp.MLP((2, 2))
    model.class_names = ("p", "q")
    model.save(tmp_path / "model.safetensors")
    model.feature_names = ("a", "c")
    model.save(tmp_path / "named.safetensors")
    before = files_of(tmp_path)
    got, _, err = cli(*arguments.split())
    assert said in err
    assert got == code
    assert "Traceback" not in err
    last = err.rstrip("\n").splitlines()[-1]
    assert said in last  # whole, on one line
    if code == 1:
        assert last.startswith("error: ") and err.count("\n") == 1
    assert files_of(tmp_path) == before  # nothing is left behind, not by a run that had begun either


TRAIN = ("train", "a.csv", *"--target b --validation 0 --epochs 2 --hidden 3 --batch-size 1 --backend numpy".split())
DIVERGES = (*TRAIN, *"--optimizer sgd --lr 1e30 --schedule constant".split())


def test_an_error_before_the_first_checkpoint_leaves_the_folder_to_another_try(cli, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "there").mkdir()
    for out in ("new/run", "there"):
        code, _, err = cli(*DIVERGES, "--out", out)
        assert code == 1 and "ower the learning rate" in err
        assert files_of(tmp_path) == {"a.csv", "there"} and not files_of(tmp_path / "there")
    assert cli(*TRAIN, "--out", "there")[::2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", ""), "'DATA'"),
        (("train", "mnist", "--target", ""), "'--target'"),
        (("train", "mnist", "--out", ""), "'--out'"),
        (("evaluate", "model.safetensors", ""), "'DATA'"),
        (("predict", "model.safetensors", "", "--out", "p.csv"), "'DATA'"),
        (("predict", "", "a.csv", "--out", "p.csv"), "'MODEL'"),
        (("predict", "model.safetensors", "a.csv", "--out", ""), "'--out'"),
        (("summary", ""), "'MODEL'"),
        (("export", "model.safetensors", ""), "'OUT'"),
        (("profile", "--model", ""), "'--model'"),
        (("parity", "model.safetensors", ""), "'DATA'"),
        (("bench", "--out", ""), "'--out'"),
        (("bench", "--compare", "old", ""), "'--compare'"),
    ],
)
def test_empty_text_where_a_variable_is_not_set_is_refused_by_the_name_of_the_argument(cli, tmp_path, arguments, named):
    fastmlp.MLP((2, 2)).save(tmp_path / "model.safetensors")
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    said = f"Invalid value for {named}: expected a text, got an empty one; is a variable not set?"
    assert err.splitlines()[-1].endswith(said)
    assert files_of(tmp_path) == {"model.safetensors"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_a_file_is_refused_by_its_name(cli, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    writer = os.open(tmp_path / "pipe.csv", os.O_RDWR)  # or whoever reads would wait for one
    os.write(writer, b"a,b\n1,0\n2,1\n")
    code, out, err = cli("train", "pipe.csv", "--target", "b")
    os.close(writer)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "pipe.csv: expected a file, which can be read more than once, got a pipe" in err


def test_a_run_that_begins_again_only_to_diverge_leaves_the_folder_too(cli, monkeypatch, tmp_path):
    def ends(error):
        def fit(*_, **__):
            raise error

        return fit

    (tmp_path / "a.csv").write_text("a,b\n1,0\n2,1\n3,0\n4,1\n")
    resume, config = ("train", "a.csv", "--resume", "--out", "run"), tmp_path / "run" / "config.toml"
    with monkeypatch.context() as patched:
        patched.setattr(fastmlp.MLP, "fit", ends(KeyboardInterrupt))
        assert cli(*DIVERGES, "--out", "run")[0] == 130
        before = config.read_text("utf-8")
        patched.setattr(fastmlp.MLP, "fit", ends(OSError("no space is left")))
        assert cli(*resume)[::2] == (1, "error: no space is left\n")
    assert config.read_text("utf-8") == before  # with space the run may be a good one
    code, _, err = cli(*resume)
    assert code == 1 and "ower the learning rate" in err
    assert not files_of(tmp_path / "run")
    assert cli(*TRAIN, "--out", "run")[::2] == (0, "")


def test_a_backend_that_cannot_run_here_is_an_error_with_its_cure(cli, digits):
    for name, found in fastmlp.available_backends().items():
        if not found.available:
            code, _, err = cli("train", "mnist", "--backend", name)
            assert (code, err) == (1, f"error: backend {name!r} cannot run here: {found.reason}\n")


def test_messages_are_not_folded_where_they_are_piped(tmp_path):
    name = tmp_path / ("a long name " * 15) / "data.csv"
    code = "from fastmlp.cli.app import main; main()"
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


def test_without_matplotlib_it_says_what_to_install_and_goes_on(cli, pictures, digits, monkeypatch, tmp_path):
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
