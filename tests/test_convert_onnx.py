"""ONNX models of networks, run by onnxruntime: the same labels, probabilities and values; and `fastmlp export`."""

import json
import sys
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

import fastmlp
from fastmlp.cli.app import main
from fastmlp.convert import from_sklearn, to_onnx, to_sklearn
from fastmlp.formulas.activations import activation_names

X = np.random.default_rng(0).normal(size=(40, 4))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.uint8)
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(scope="module")
def onnx():
    """The package onnx, beside onnxruntime; else the tests show as skipped."""
    pytest.importorskip("onnxruntime", reason='onnxruntime is not installed; pip install "fastmlp[onnx]"')
    return pytest.importorskip("onnx", reason='onnx is not installed; pip install "fastmlp[onnx]"')


def network(units=(4, 6, 5, 3), **options):
    return fastmlp.MLP(units, **{"activation": "tanh", "backend": "numpy", "seed": 0, **options})


def run(proto, x):
    """Return what onnxruntime makes of inputs, by name."""
    import onnxruntime

    contents = proto if isinstance(proto, bytes) else proto.SerializeToString()
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"X": x}), strict=True))


def hold_equal(found, model, x, rtol=None):
    """Hold what onnxruntime found against what the model predicts."""
    rtol, predicted = rtol or TOLERANCES[model.dtype.name], model.predict(x)
    loss, count = model.spec.loss, model.spec.units[-1]
    if not loss.has_accuracy:
        assert list(found) == ["variable"] and found["variable"].dtype == model.dtype
        np.testing.assert_allclose(found["variable"], predicted.reshape(len(x), -1), rtol=rtol, atol=rtol)
        return
    named = model.class_names is not None and (count == 1 or loss.takes_labels)
    expected = np.array(model.class_names)[predicted] if named else predicted
    assert found["label"].tolist() == expected.tolist()
    assert named or found["label"].dtype == np.int64
    if loss.name == "categorical_hinge":
        assert list(found) == ["label"]
        return
    assert list(found) == ["label", "probabilities"]
    chances = model.predict_proba(x)
    chances = np.hstack([1 - chances, chances]) if count == 1 else chances
    np.testing.assert_allclose(found["probabilities"], chances, rtol=rtol, atol=rtol)
    assert found["probabilities"].dtype == model.dtype


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", activation_names())
def test_each_activation_is_the_same_there(onnx, activation, dtype):
    model = network(activation=activation, dtype=dtype)
    draw = np.random.default_rng(2)  # far from 0 too, and no output near the others
    model.set_weights([3 * draw.normal(size=w.shape) for w in model.get_weights()])
    proto, x = to_onnx(model), X.astype(dtype)
    if (activation, dtype) == ("gelu", "float64"):  # which onnxruntime has not, and its reference in float32
        from onnx.reference import ReferenceEvaluator

        found = ReferenceEvaluator(proto).run(None, {"X": x})
        hold_equal(dict(zip(["label", "probabilities"], found, strict=True)), model, x, 1e-5)
        return
    hold_equal(run(proto, x), model, x)


LOSSES = [("softmax_cross_entropy", 2), ("softmax_cross_entropy", 3), ("sigmoid_cross_entropy", 1)]
LOSSES += [("sigmoid_cross_entropy", 3), ("categorical_hinge", 3), ("mean_squared_error", 1), ("mean_squared_error", 2)]
LOSSES += [("poisson", 1), ("mean_squared_logarithmic_error", 2)]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("units", [(4,), (4, 5, 6, 7)])
@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
def test_each_loss_and_depth_with_and_without_names(onnx, loss, outputs, units, named):
    model = network((*units, outputs), loss=loss, dropout=0.2, dtype="float64")
    if named:
        model.class_names = ("ros\N{LATIN SMALL LETTER E WITH ACUTE}", "oak", "ash")[: max(outputs, 2)]
        model.feature_names = list("abcd")
    proto = to_onnx(model)
    hold_equal(run(proto, X), model, X)
    kept = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert kept == ({"class_names": list(model.class_names), "feature_names": list("abcd")} if named else {})
    assert not any("dropout" in node.op_type.lower() for node in proto.graph.node)


def test_the_scaling_of_pixels_is_inside(onnx):
    model = network()
    model.fit(PIXELS, np.arange(40) % 3, epochs=1, verbose=0)
    hold_equal(run(to_onnx(model), PIXELS.astype(np.float32)), model, PIXELS)
    # bytes that a network takes as they are
    y = np.arange(40) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = from_sklearn(MLPClassifier((5,), max_iter=2, random_state=0).fit(PIXELS, y), backend="numpy")
    hold_equal(run(to_onnx(model), PIXELS.astype(np.float64)), model, PIXELS)


def test_any_number_of_rows_goes_through(onnx):
    model = network(dtype="float64")
    proto = to_onnx(model)
    for rows in (1, 7):
        hold_equal(run(proto, X[:rows]), model, X[:rows])


@pytest.mark.parametrize("kind", ["two", "three", "names", "labels", "value", "values"])
def test_inputs_and_outputs_are_those_of_sklearn_onnx(onnx, kind):
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed; pip install skl2onnx")
    draw = np.random.default_rng(1)
    y = {
        "two": draw.permutation(np.arange(40) % 2),
        "three": draw.permutation(np.arange(40) % 3),
        "names": np.array(["a", "b", "c"])[draw.permutation(np.arange(40) % 3)],
        "labels": draw.integers(0, 2, (40, 3)),
        "value": draw.normal(size=40),
        "values": draw.normal(size=(40, 2)),
    }[kind]
    cls = MLPRegressor if kind.startswith("value") else MLPClassifier
    x = X.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = cls(hidden_layer_sizes=(6, 5), max_iter=5, random_state=0).fit(x, y)
        options = {"zipmap": False} if cls is MLPClassifier else None
        theirs = skl2onnx.to_onnx(estimator, x[:1], options=options, target_opset=13)
    ours = to_onnx(from_sklearn(estimator, backend="numpy"))
    assert [i.name for i in ours.graph.input] == [i.name for i in theirs.graph.input]
    found, expected = run(ours, x), run(theirs, x)
    assert list(found) == list(expected)
    for name, values in expected.items():
        if kind == "values":
            values = values.reshape(-1, 2)  # which sklearn-onnx strings out, row after row
        assert found[name].dtype == values.dtype and found[name].shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)
        else:
            assert found[name].tolist() == values.tolist()


@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2], [7, 3, 5], ["b", "a", "c"], [2.0, 1.0, 4.0], [1, 0, 1], [9, 4, 9], ["no", "yes", "no"], [1, 1, 1]],
)
def test_an_estimator_answers_with_its_labels_and_probabilities_as_sklearn_onnx_does(onnx, labels):
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed; pip install skl2onnx")
    x, y = X.astype("f4"), np.array(labels)[np.arange(40) % 3]
    estimator = fastmlp.MLPClassifier((5,), epochs=3, random_state=0, backend="numpy").fit(x, y)
    estimator.temperature_ = 2.0
    found = run(to_onnx(estimator), x)
    assert list(found) == ["label", "probabilities"]
    assert found["label"].tolist() == estimator.predict(x).tolist()
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(x), atol=1e-5)
    if len(set(labels)) == 1:
        return  # theirs has no such network
    theirs = to_sklearn(estimator)
    expected = run(skl2onnx.to_onnx(theirs, x[:1], options={"zipmap": False}), x)
    assert found["label"].dtype == expected["label"].dtype
    assert found["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)


def test_an_estimator_of_values_and_of_several_labels(onnx):
    x = X.astype("f4")
    options = {"hidden_layer_sizes": (5,), "epochs": 3, "random_state": 0, "backend": "numpy"}
    estimator = fastmlp.MLPRegressor(**options).fit(x, X[:, :2])
    np.testing.assert_allclose(run(to_onnx(estimator), x)["variable"], estimator.predict(x), atol=1e-5)
    estimator = fastmlp.MLPClassifier(**options).fit(x, (X[:, :3] > 0).astype(int))
    found = run(to_onnx(estimator), x)
    assert found["label"].tolist() == estimator.predict(x).tolist()
    np.testing.assert_allclose(found["probabilities"], estimator.predict_proba(x), atol=1e-5)


def test_older_runtimes_can_read_it(onnx):
    proto = to_onnx(network())
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 13)]
    assert proto.ir_version == 7


def test_a_file_is_written_in_one_piece(onnx, tmp_path):
    model = network(dtype="float64")
    proto = to_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    contents = (tmp_path / "model.onnx").read_bytes()
    assert contents == proto.SerializeToString(deterministic=True)
    to_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == contents
    hold_equal(run(contents, X), model, X)
    with pytest.raises(FileNotFoundError):
        to_onnx(model, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(TypeError, match=r"path must be text or a pathlib\.Path, got 3"):
        to_onnx(model, 3)


def test_what_is_your_own_is_refused(onnx):
    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    with pytest.raises(
        ValueError, match="to_onnx: ONNX has no counterpart of the activation 'cube'; only of 'identity'"
    ):
        to_onnx(network(activation="cube"))
    fastmlp.register_loss("fourth", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    with pytest.raises(ValueError, match="no counterpart of the loss 'fourth', which is your own"):
        to_onnx(network(loss="fourth"))


def test_weights_that_no_file_holds_are_refused(onnx, monkeypatch):
    monkeypatch.setattr("fastmlp.convert.onnx_files.MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"a file holds weights of up to 100 bytes, the model has \d+"):
        to_onnx(network())


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Call the command line in a folder with a model; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    model = network(dtype="float64")
    model.class_names = ("a", "b", "c")
    model.save("model.safetensors")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastmlp", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def test_the_command_writes_a_file_that_runs(onnx, cli, tmp_path):
    code, out, err = cli("export", "model.safetensors", "model.onnx")
    assert (code, err) == (0, "")
    assert out == "model.onnx: X (n, 4) double; label, probabilities\n"
    hold_equal(run((tmp_path / "model.onnx").read_bytes(), X), fastmlp.load("model.safetensors"), X)


MISTAKES = [
    (("model.safetensors", "model.txt"), 2, "OUT: the name of the file ends in .onnx; got 'model.txt'"),
    (("model.safetensors", "there.onnx"), 1, "there.onnx is there already; choose another name, or remove it first"),
    (("model.safetensors", "no/model.onnx"), 1, "no/model.onnx: expected a folder to write it into, found none; make"),
    (("none.safetensors", "model.onnx"), 1, "none.safetensors: no such file"),
    (("model.txt", "model.onnx"), 1, "model.txt is no fastmlp file"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), MISTAKES)
def test_a_mistake_is_a_line_and_an_exit_code_and_writes_nothing(cli, tmp_path, arguments, code, said):
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "model.txt").write_text("text")
    before = sorted(tmp_path.iterdir())
    got, _, err = cli("export", *arguments)
    assert got == code and said in err
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "there.onnx").read_text() == "mine"


def test_a_missing_package_is_a_line_with_the_cure(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = cli("export", "model.safetensors", "model.onnx")
    assert code == 1 and "error: onnx cannot be imported (" in err and 'pip install "fastmlp[onnx]"' in err


def test_the_tables_of_all_conversions_name_activations_that_there_are():
    from fastmlp.convert import keras_models, onnx_files, pytorch, scikit_learn

    known = set(activation_names())
    tables = (keras_models._FUNCTIONS, onnx_files._ACTIVATIONS, pytorch._MODULES, scikit_learn._ACTIVATIONS)
    for table in tables:
        assert set(table) <= known
    assert set(onnx_files._ACTIVATIONS) == known
