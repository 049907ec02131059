"""The examples run with small settings, and their notebooks are these scripts, executed."""

import base64
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits  # which scikit-learn brings along

import fastmlp
from fastmlp import MLP, SGD, Callback, Normal

pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SETTINGS = {
    "step_by_step": ["--iterations", "40", "--examples", "32"],
    "lecture": ["--epochs", "2", "--rows", "300", "--features", "20"],
    "mnist": ["--epochs", "1", "--rows", "600", "--digits", "7"],
    "article": ["--epochs", "1", "--rows", "320"],
}
PICTURES = {
    "step_by_step": {"regions", "costs"},
    "lecture": {"features", "mnist-features", "interpolant", "error"},
    "mnist": {"curves", "samples", "mistakes", "confusion", "first-layer"},
    "article": {"curves"},
}
# what each must say whatever its settings: the numbers that its tutorial prints, among others
LINES = {
    "step_by_step": (
        "Z = [[ 3.26295337 -1.23429987]]",
        "With sigmoid: A = [[0.96890023 0.11013289]]",
        "With ReLU: A = [[3.43896131 0.        ]]",
        "cost = 0.2797765635793422",
    ),
    "lecture": ("20 random Fourier features: test accuracy", "of which 210 train", "gradcheck: {'W1': "),
    "mnist": ("numpy: yes", "expected the magic number 2051", "784       32  relu", "F1 0."),
    "article": (
        "hidden = [[0.68126834 0.23135006 0.8239967  0.63583708]], output = [[0.44701103 0.55298897]]",
        "row by row: [0.26894142 0.73105858] [0.26894142 0.73105858]",
        "training loss 0.",
    ),
}


def test_every_example_is_run():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"make_notebooks"}
    assert scripts == set(SETTINGS) == {path.stem for path in EXAMPLES.glob("*.ipynb")}


# all on the backend that is the default, and one on NumPy's: what an example asks of a backend is the same
@pytest.mark.parametrize(
    ("name", "backend_name"),
    [
        ("step_by_step", "auto"),
        ("mnist", "auto"),
        pytest.param("lecture", "auto", marks=pytest.mark.thorough),
        pytest.param("article", "auto", marks=pytest.mark.thorough),
        pytest.param("step_by_step", "numpy", marks=pytest.mark.thorough),
    ],
)
def test_examples_run_and_leave_their_pictures(name, backend_name, tmp_path, monkeypatch, capsys):
    arguments = [*SETTINGS[name], "--backend", backend_name, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.chdir(tmp_path)
    random = np.random.get_state()  # noqa: NPY002 - the tutorials seed the global generator
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        np.random.set_state(random)  # noqa: NPY002
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    for kind in ("png", "svg"):
        assert {p.stem for p in (tmp_path / "out").glob(f"*.{kind}")} == PICTURES[name]
    printed = capsys.readouterr().out
    for line in LINES[name]:
        assert line in printed
    if name == "step_by_step":
        by_hand, by_differences = re.search(r"by backward (\S+), by differences (\S+)", printed).groups()
        assert abs(float(by_hand) - float(by_differences)) < 1e-8
        assert float(re.search(r"costs differ by (\S+) at most", printed)[1]) < 1e-12
    if name == "lecture":
        pairs = [[float(v) for v in pair] for pair in re.findall(r"points: error (\S+), bound (\S+)", printed)]
        assert len(pairs) == 9 and all(error <= bound for error, bound in pairs)
        assert max(float(v) for v in re.findall(r"'[Wb]\d': '(\S+)'", printed)) < 1e-6


# --- notebooks ------------------------------------------------------------------------------------------------------


def cells_of_script(text):
    """Return [(kind, source), ...] of a script in the percent format."""
    cells = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        first, _, body = part.partition("\n")
        if "[markdown]" in first:
            body = "\n".join(re.sub(r"^# ?", "", line) for line in body.splitlines())
        cells.append(("markdown" if "[markdown]" in first else "code", body.strip()))
    return cells


@pytest.mark.parametrize("name", SETTINGS)
def test_the_notebook_is_the_script_executed(name):
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text("utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    again = "the notebook is not made from this script: python examples/make_notebooks.py"
    assert cells == cells_of_script((EXAMPLES / f"{name}.py").read_text("utf-8")), again
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert not [o for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == len(PICTURES[name])
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    for shown in (EXAMPLES / "pictures").glob(f"{name}-*.png"):  # in the README; mnist-*.png are of the command line
        assert name == "mnist" or base64.b64encode(shown.read_bytes()).decode() in {
            p.replace("\n", "") for p in pictures
        }
    printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
    for line in LINES[name]:
        if "20 random" not in line and "210 train" not in line:  # those of the small settings
            assert line in printed
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 500_000


def test_the_mnist_notebook_reaches_97_percent():
    printed = (EXAMPLES / "mnist.ipynb").read_text("utf-8")
    by_network, by_linear = (float(a) for a in re.findall(r'"accuracy (0\.\d{4}), F1', printed))
    assert by_network >= 0.97 > by_linear


def test_the_readme_says_what_the_notebooks_print():
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    mnist, article = ((EXAMPLES / f"{name}.ipynb").read_text("utf-8") for name in ("mnist", "article"))
    reached = [re.search(r'"accuracy (0\.\d{4}), F1', mnist)[1]]
    reached += [line.split()[-1] for line in re.findall(r'"test accuracy ([\d. ]+)', article)]
    assert len(reached) == 3
    for accuracy in reached:
        assert f"{100 * float(accuracy):.{len(accuracy) - 4}f} %" in " ".join(readme.split())
    shown = set(re.findall(r"examples/pictures/([\w-]+\.png)", readme))
    assert shown == {path.name for path in (EXAMPLES / "pictures").iterdir()} and len(shown) >= 3


# --- what the tutorials print and reach -----------------------------------------------------------------------------


def test_the_articles_forward_pass_gives_the_printed_digits(backend):
    x = np.random.RandomState(1).randint(-10, 10, (1, 2))
    w1, w2 = np.random.RandomState(2).random((2, 4)), np.random.RandomState(3).random((4, 2))
    options = {"activation": ["sigmoid"], "dtype": "float64", "backend": backend, "seed": 0}
    first, both = MLP((2, 4), loss="mean_squared_error", **options), MLP((2, 4, 2), **options)
    # its "sigmoid" e^-z / (1 + e^-z) is sigma(-z)
    first.set_weights([-w1, -np.ones(4)])
    both.set_weights([-w1, -np.ones(4), w2, np.ones(2)])
    hidden, output = first.predict(x), both.predict_proba(x)
    np.testing.assert_array_equal(np.round(hidden, 8), [[0.68126834, 0.23135006, 0.8239967, 0.63583708]])
    np.testing.assert_array_equal(np.round(output, 8), [[0.44701103, 0.55298897]])


class DigitAccuracy(Callback):
    def __init__(self, x, y):
        self.x, self.y, self.values = x, y, []

    def on_epoch_end(self, run, figures):
        self.values.append((run.model.predict_proba(self.x).argmax(axis=1) == self.y).mean())


@pytest.mark.thorough
def test_the_articles_training_run_reaches_what_the_article_prints():
    (x, y), (x_test, y_test) = fastmlp.datasets.load_mnist()
    options = {"activation": "sigmoid", "loss": "sigmoid_cross_entropy", "initializer": Normal(1.0)}
    model = MLP((784, 64, 32, 10), **options, seed=0)
    rng, reached = np.random.default_rng(0), DigitAccuracy(x_test, y_test)
    model.set_weights([w if w.ndim == 2 else rng.normal(size=w.shape) for w in model.get_weights()])
    # its gradient is the sum over 32 rows and ten outputs, where ours is the mean
    step, one_hot = SGD(5e-3 * 32 * 10), np.eye(10, dtype=np.float32)[y]
    with threadpool_limits(1):  # of NumPy's BLAS, whose threads wait for each other on a machine that is busy
        losses = model.fit(x, one_hot, epochs=10, batch_size=32, optimizer=step, callbacks=[reached], verbose=0).history
    assert abs(reached.values[-1] - 0.93) <= 0.01
    printed = [0.85, 0.89, 0.90, 0.91, 0.92, 0.92, 0.93, 0.93, 0.93, 0.93]
    np.testing.assert_allclose(reached.values, printed, atol=0.02)
    np.testing.assert_allclose([losses["loss"][0], losses["loss"][-1]], [0.161560, 0.038245], rtol=0.05)
