"""Model files that a foreign writer signed: what they say is checked as a user's arguments are, or refused by name."""

import json
import re
import resource
import struct
import tracemalloc

import numpy as np
import pytest
from blobs import blobs, small
from safetensors.numpy import save

import fastmlp
from fastmlp.files import safetensors as files

GONE = object()


@pytest.fixture
def model(tmp_path):
    """A model file: its path, header and arrays."""
    path = tmp_path / "model"
    fastmlp.MLP((6, 8, 3), backend="numpy", seed=0).save(path)
    return path, *files.read(path)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of a run that is not at its end: its path, header and arrays."""
    path = tmp_path / "checkpoint"

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            run.stop("enough")

    callbacks = [Stop(), fastmlp.EarlyStopping("loss"), fastmlp.Checkpoint(path)]
    optimizer = fastmlp.Adam(ema=0.9)
    small("numpy").fit(*blobs(), epochs=3, optimizer=optimizer, callbacks=callbacks, verbose=0)
    return path, *files.read(path)


def refusal(path, header, tensors, *, resume=False):
    """Write a file as a foreign writer would, which signs it, and return why it is refused."""
    del header["format"]
    files.write(path, header, tensors)
    with pytest.raises(fastmlp.FileFormatError) as caught:
        again = fastmlp.load(path, "numpy")
        if resume:
            again.resume(*blobs(), callbacks=[fastmlp.EarlyStopping("loss")], verbose=0)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def changed(header, where, value):
    """Return a copy of a header with one entry, given by its keys with dots between them, put in another's place."""
    whole = json.loads(json.dumps(header))
    *outer, last = where.split(".")
    inner = whole
    for key in outer:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    return whole


MODELS = [
    *[("step", value, "step must be") for value in (-5, float("inf"), float("nan"), "5", None, True, 2**64, [5])],
    *[("key", value, "must be") for value in (None, -1, 2**64, 1.5, "a")],
    *[("kind", value, "kind") for value in ("modell", None, 3)],
    *[("dtype", value, "dtype must be") for value in ("float16", "foo", "complex64", 3)],
    ("dtype", "float64", "'layers.0.weight' holds float32, its description says float64"),
    *[("class_names", value, "class_names|len") for value in (["a"], "abc", 5, {"a": 1})],
    *[("feature_names", value, "feature_names|len") for value in (["a"], "abcdef", 5)],
    ("spec", [], "list"),
    ("spec", None, "NoneType"),
    *[("spec.units", value, "units") for value in ([6, 8.5, 3], "683", [6], [6, True, 3], 3, None, [6, 0, 3])],
    ("spec.units", [2**36, 2, 3], r"'layers.0.weight' has shape \(6, 8\), its spec asks for \(68719476736, 2\)"),
    *[("spec.frozen", value, "frozen") for value in (["no", "no"], [True], [2, 0])],
    *[("spec.l2", value, "l2 must be") for value in (-1, float("nan"), "0", True)],
    ("spec.dropout", [0.5, 1.5], "dropout"),
    ("spec.loss.name", "mse", "'mse' is not known"),
    ("spec.loss", "mean_squared_error", "indices must be"),
    ("spec.loss.label_smoothing", float("nan"), "label_smoothing must be"),
    ("spec.activations", ["rellu", "identity"], "did you mean 'relu'"),
    *[(name, GONE, f"lacks '{name}'") for name in ("spec", "dtype", "class_names", "feature_names")],
    *[(name, GONE, f"lacks '{name}'") for name in ("key", "step", "kind")],
    *[(f"spec.{name}", GONE, f"lacks '{name}'") for name in ("units", "loss", "frozen", "dropout", "initializer")],
]  # fmt: skip


@pytest.mark.parametrize(("where", "value", "said"), MODELS)
def test_a_description_is_checked_like_a_users_arguments(model, where, value, said):
    path, header, tensors = model
    message = refusal(path, changed(header, where, value), tensors)
    assert re.search(said, message) and "\n" not in message


WEIGHTS = {
    "nan": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 9, np.nan, w).astype(w.dtype),
    "inf": lambda w: np.full_like(w, np.inf),
    "complex64": lambda w: w.astype(np.complex64),
    "int64": lambda w: w.astype(np.int64),
    "float16": lambda w: w.astype(np.float16),
    "bool": lambda w: w > 0,
    "float64": lambda w: np.full(w.shape, 1e300),
}


CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL", "complex64": "C64"}


def save_anything(arrays, metadata):
    """Return a safetensors file, of types too that some releases of the library cannot write."""
    described, place = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        described[name] = {"dtype": CODES[str(array.dtype)], "shape": array.shape}
        described[name]["data_offsets"] = place, place + array.nbytes
        place += array.nbytes
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([struct.pack("<Q", len(header)), header, *(array.tobytes() for array in arrays.values())])


def test_a_file_put_together_by_hand_is_one_that_is_read(model, monkeypatch):
    path, header, tensors = model
    monkeypatch.setattr("safetensors.numpy.save", save_anything)
    files.write(path, {name: value for name, value in header.items() if name != "format"}, tensors)
    assert fastmlp.load(path, "numpy").get_weights()[0].tolist() == tensors["layers.0.weight"].tolist()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_no_network_can_have_are_refused_by_layer_and_array(model, monkeypatch, kind):
    path, header, tensors = model
    monkeypatch.setattr("safetensors.numpy.save", save_anything)
    message = refusal(path, header, {**tensors, "layers.0.weight": WEIGHTS[kind](tensors["layers.0.weight"])})
    if kind == "nan":
        assert message.startswith(" cannot be used: 'layers.0.weight' holds nan at [1, 1], and a network of it would")
    elif kind == "inf":
        assert message.startswith(" cannot be used: 'layers.0.weight' holds inf at [0, 0]")
    elif kind == "complex64" and "deserializing header" in message:  # releases that do not know the type
        assert message.startswith(" is no fastmlp file, or it was cut short: it cannot be read as safetensors (")
    else:
        assert message == f" is inconsistent: 'layers.0.weight' holds {kind}, its description says float32"


RUNS = [
    *[("optimizer_step", value, "optimizer_step must be") for value in (-1, 1.5, None, 2**63)],
    ("optimizer.name", "adma", "did you mean 'adam'"),
    ("optimizer.ema", 2, "ema must be"),
    *[(f"progress.{name}", value, name) for name in ("epochs", "batch_size", "rows") for value in (0, -1, 1.5, None)],
    ("progress.horizon", float("inf"), "horizon must be"),
    ("progress.epoch", 4, "lie beyond the run of 3 epochs"),
    ("progress.position", 10**6, "lie beyond the run"),
    ("progress.shuffle", "no", "shuffle must be"),
    ("progress.validation_split", 1, "validation_split must be"),
    *[("progress.totals", value, "totals|iterable") for value in ([0, 0], [0, 0, float("nan")], ["a", 0, 0], 0)],
    ("progress.memory", {"best": "low"}, "memory 'best' must be a number"),
    ("progress.seconds", -1, "seconds must be"),
    ("progress.more", 1, "unexpected keyword argument 'more'"),
    ("progress.rows", GONE, "rows"),
    ("history.loss", [], "history: 'loss' must be a number for each of 1 epochs"),
    ("history.loss", ["a"], "history: 'loss' must be a number"),
    ("history", [1], "list"),
    ("figures", [1], "figures and data must be text"),
    ("data", 5, "figures and data must be text"),
    ("validation", 5, "validation must be text or null"),
    ("platform", [], "platform must be"),
    ("callbacks", 7, "int"),
    ("callbacks.0.state", 7, "callbacks: each has"),
    ("callbacks.0.same", [7], "callbacks: each has"),
    ("callbacks.0.arrays", ["gone"], r"the arrays \['gone'\] of EarlyStopping are not in the file"),
    *[(name, GONE, f"lacks '{name}'") for name in ("optimizer", "optimizer_step", "progress", "history", "callbacks")],
]  # fmt: skip


@pytest.mark.parametrize(("where", "value", "said"), RUNS)
def test_what_a_checkpoint_says_of_its_run_is_checked_when_it_is_loaded(checkpoint, where, value, said):
    path, header, tensors = checkpoint
    message = refusal(path, changed(header, where, value), tensors)
    assert message.startswith(": its description makes no sense: ") and re.search(said, message)


@pytest.mark.parametrize("state", [{}, {"best": 1.0, "best_epoch": "x", "waited": 0}])
def test_the_state_of_a_callback_that_makes_no_sense_is_refused_on_resume(checkpoint, state):
    path, header, tensors = checkpoint
    message = refusal(path, changed(header, "callbacks.0.state", state), tensors, resume=True)
    assert message.startswith(": the state of EarlyStopping makes no sense: ")


@pytest.mark.parametrize("name", ["layers.0.bias", "average.layers.1.weight", "callbacks.0.layers.0.weight"])
def test_nan_is_refused_in_every_array_that_becomes_weights(checkpoint, name):
    path, header, tensors = checkpoint
    message = refusal(path, header, {**tensors, name: np.full_like(tensors[name], np.nan)})
    assert message.startswith(f" cannot be used: '{name}' holds nan at [0")


def test_moments_may_be_infinite_but_not_nan(checkpoint):
    path, header, tensors = checkpoint
    name = "moment1.layers.0.bias"
    del header["format"]
    files.write(path, header, {**tensors, name: np.full_like(tensors[name], np.inf)})
    assert fastmlp.load(path, "numpy").steps > 0
    header["format"] = 1
    assert f"'{name}' holds nan" in refusal(path, header, {**tensors, name: np.full_like(tensors[name], np.nan)})


def test_a_foreign_file_is_refused_by_its_header_however_large_it_is(tmp_path):
    path, size = tmp_path / "llm.safetensors", 3_000_000_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)  # on the disk it takes nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(fastmlp.FileFormatError, match="is a safetensors file, but not one of fastmlp"):
        fastmlp.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_sizes_in_a_description_allocate_nothing(model):
    path, header, tensors = model
    for units in ([2**36, 2**36, 3], [2] * 50_000):
        tracemalloc.start()
        refusal(path, changed(header, "spec.units", units), tensors)
        assert tracemalloc.get_traced_memory()[1] < 3e7
        tracemalloc.stop()


def with_description(text):
    return save({"w": np.zeros(2, np.float32)}, {"fastmlp": text})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 5000,
        "[" * 500 + "]" * 500,
        "1" * 5000,
        "null",
        "[]",
        '{"header": 5, "sha256": ""}',
        '{"header": {"format": 1e999}, "sha256": ""}',
        '{"header": {"format": true}, "sha256": ""}',
        '{"header": {"format": -3}, "sha256": ""}',
        '{"header": [["format", 1], ["a"]], "sha256": ""}',
        '{"sha256": ""}',
        '{"header": {"format": 1, "a": ' + "[" * 900 + "]" * 900 + '}, "sha256": ""}',
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "m").write_bytes(with_description(text))
    with pytest.raises(fastmlp.FileFormatError, match="was altered"):
        fastmlp.load(tmp_path / "m")


def test_types_that_numpy_has_not_are_our_error(tmp_path):
    header = json.dumps({
        "__metadata__": {"fastmlp": '{"header": {"format": 1}, "sha256": ""}'},
        "w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
    }).encode()  # fmt: skip
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(fastmlp.FileFormatError, match="is no fastmlp file, or it was cut short"):
        fastmlp.load(tmp_path / "m")


def test_a_checkpoint_of_the_last_step_of_an_epoch_goes_on(tmp_path):
    path, model = tmp_path / "checkpoint", small("numpy")
    steps = 3
    x, y = blobs()

    class Stop(fastmlp.Callback):
        def on_steps(self, run):
            if run.steps_done == steps:
                run.stop("enough")

        def next_step(self, run):
            return steps

    options = {"epochs": 2, "batch_size": -(-len(x) // steps), "verbose": 0}
    model.fit(x, y, callbacks=[Stop(), fastmlp.Checkpoint(path, every_steps=steps)], **options)
    assert files.read(path)[0]["progress"]["position"] in (0, steps)
    assert fastmlp.load(path, "numpy").resume(x, y, verbose=0).epochs == 2
