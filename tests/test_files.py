"""Model files and checkpoints: what is saved comes back, what is not ours or not whole is refused by name."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import fastmlp
from fastmlp.files import safetensors as files
from fastmlp.formulas.activations import ACTIVATIONS
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import optimizer_from_json
from fastmlp.network.spec import NetworkSpec, make_spec


def saved(backend, path, **options):
    model = small(backend, **options)
    model.class_names = ("ant", "bee", "cat")
    model.fit(*blobs(), epochs=1, verbose=0)
    model.save(path)
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_model_comes_back_with_everything(backend, tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    model = saved(backend, path, dtype=dtype, dropout=0.25, l2=1e-4, max_norm=3.0, initializer="lecun_uniform")
    model.freeze(1)
    model.save(path)
    back = fastmlp.load(path, backend=backend)
    assert back.spec == model.spec and back.dtype == model.dtype
    assert (back.seed, back.steps, back.class_names) == (model.seed, model.steps, ("ant", "bee", "cat"))
    for a, b in zip(back.get_weights(), model.get_weights(), strict=True):
        assert_same_bits(a, b)
    back.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_files_hold_named_arrays_and_no_flat_buffer(backend, tmp_path):
    saved(backend, tmp_path / "model.safetensors")
    arrays = load_file(tmp_path / "model.safetensors")
    assert {name: a.shape for name, a in arrays.items()} == {
        "layers.0.weight": (6, 8),
        "layers.0.bias": (8,),
        "layers.1.weight": (8, 3),
        "layers.1.bias": (3,),
    }


def test_save_keeps_the_average(backend, tmp_path):
    model = small(backend)
    model.fit(*blobs(), epochs=2, optimizer=fastmlp.Adam(ema=0.9), verbose=0)
    model.save(tmp_path / "m")
    assert_same_bits(fastmlp.load(tmp_path / "m", backend).get_weights()[0], model.get_weights()[0])


def test_files_of_another_kind_are_refused_by_name_and_reason(backend, tmp_path):
    path = tmp_path / "some.file"
    for contents in (b"", b"hello", b"\x80\x04]\x94.", os.urandom(4096)):
        path.write_bytes(contents)
        with pytest.raises(fastmlp.FileFormatError, match=r"some\.file is no fastmlp file"):
            fastmlp.load(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(fastmlp.FileFormatError, match="not one of fastmlp"):
        fastmlp.load(path)
    with pytest.raises(FileNotFoundError):
        fastmlp.load(tmp_path / "missing")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "model"
    saved("numpy", path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(fastmlp.FileFormatError):
            fastmlp.load(path)


def test_a_file_with_any_byte_altered_is_refused(tmp_path):
    path = tmp_path / "model"
    saved("numpy", path)
    whole = bytearray(path.read_bytes())
    for at in range(0, len(whole), 11):
        altered = bytearray(whole)
        altered[at] ^= 0x41
        path.write_bytes(altered)
        with pytest.raises(fastmlp.FileFormatError):
            fastmlp.load(path)


def test_a_consistent_file_of_a_later_version_or_a_wrong_shape_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model"
    saved("numpy", path)
    header, tensors = files.read(path)
    del header["format"]
    files.write(path, header, {**tensors, "layers.0.bias": np.zeros(9, np.float32)})
    with pytest.raises(fastmlp.FileFormatError, match=r"'layers.0.bias' has shape \(9,\), its spec asks for \(8,\)"):
        fastmlp.load(path)
    del tensors["layers.1.bias"]
    files.write(path, header, tensors)
    with pytest.raises(fastmlp.FileFormatError, match=r"'layers.1.bias', which is missing"):
        fastmlp.load(path)
    files.write(path, {**header, "spec": {**header["spec"], "units": [6, -1, 3]}}, tensors)
    with pytest.raises(fastmlp.FileFormatError, match=r"description makes no sense.*-1"):
        fastmlp.load(path)
    monkeypatch.setattr(files, "FORMAT", 99)
    files.write(path, header, tensors)
    monkeypatch.undo()
    with pytest.raises(fastmlp.FileFormatError, match=r"has format 99.*install a newer fastmlp"):
        fastmlp.load(path)


def test_nothing_is_executed_and_functions_of_ones_own_are_refused(tmp_path):
    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    fastmlp.register_loss("fourth", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    model = fastmlp.MLP((6, 3), loss="fourth", backend="numpy", seed=0)
    model.save(tmp_path / "m")
    del LOSSES.types["fourth"]
    with pytest.raises(fastmlp.FileFormatError, match=r"loss 'fourth' is .*fastmlp\.register_loss\('fourth'"):
        fastmlp.load(tmp_path / "m")
    model = fastmlp.MLP((6, 4, 3), activation="cube", backend="numpy", seed=0)
    model.save(tmp_path / "m")
    del ACTIVATIONS["cube"]
    with pytest.raises(fastmlp.FileFormatError, match=r"activation 'cube' is .*fastmlp\.register_activation\('cube'"):
        fastmlp.load(tmp_path / "m")
    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    assert_same_bits(fastmlp.load(tmp_path / "m").get_weights()[0], model.get_weights()[0])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model"
    saved("numpy", path)
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        saved("numpy", path, dtype="float64")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model"]


RUN = """
    import os, signal, sys, json
    import numpy as np, fastmlp
    from fastmlp.files.safetensors import read

    backend, *runs = sys.argv[1:]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 220)
    x = (rng.normal(size=(3, 6))[y] + rng.normal(size=(220, 6))).astype("float32")
    weights = rng.uniform(0.5, 2, 220)

    class Kill(fastmlp.Callback):
        def __init__(self, kills):
            self.kills = kills

        def next_step(self, run):
            return 3 * 7 + 4  # in the middle of the 4th epoch, after the checkpoint of step 24

        def on_steps(self, run):
            if self.kills and run.steps_done == 25:
                os.kill(os.getpid(), signal.SIGKILL)

    for how, folder in zip(runs[::2], runs[1::2]):
        callbacks = [
            fastmlp.EarlyStopping("val_loss", patience=50),
            fastmlp.CSVLog(f"{folder}/log.csv"),
            fastmlp.Checkpoint(f"{folder}/checkpoint", every_steps=6, every_epochs=4),
            Kill(how == "killed"),
        ]
        optimizer = fastmlp.Adam(fastmlp.Cosine(0.02, warmup_steps=5), ema=0.95, clip_norm=1.0, weight_decay=1e-3)
        if how == "resumed":
            model = fastmlp.load(f"{folder}/checkpoint", backend=backend)
            history = model.resume(x, y, sample_weight=weights, callbacks=callbacks, verbose=0)
        else:
            model = fastmlp.MLP((6, 9, 3), dropout=(0.1, 0.3), backend=backend, seed=7)
            history = model.fit(
                *(x, y), epochs=10, batch_size=27, optimizer=optimizer, sample_weight=weights, validation_split=0.15,
                callbacks=callbacks, verbose=0,
            )
        model.save(f"{folder}/final")
        del history.history["epoch_seconds"]
        print(json.dumps(history.history), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_run_killed_in_its_fourth_epoch_and_resumed_gives_the_bits_of_one_that_was_not(process_backend, tmp_path):
    once, parts = tmp_path / "once", tmp_path / "parts"

    def run(*runs):
        command = [sys.executable, "-P", "-c", textwrap.dedent(RUN), process_backend.name, *map(str, runs)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    once.mkdir(), parts.mkdir()
    killed = run("whole", once, "killed", parts)  # one after the other in a process, the rest in one of its own
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    header, _ = files.read(tmp_path / "parts" / "checkpoint")
    assert header["progress"]["epoch"] == 3 and header["progress"]["position"] == 3
    resumed = run("resumed", parts)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(killed.stdout)
    expected, found = (files.read(tmp_path / d / "final") for d in ("once", "parts"))
    assert found[0] == expected[0]
    for name, array in expected[1].items():
        assert_same_bits(found[1][name], array, name)
    rows = [(tmp_path / d / "log.csv").read_text().splitlines() for d in ("once", "parts")]
    assert [len(r) for r in rows] == [11, 11]
    assert [line.rsplit(",", 1)[0] for line in rows[0]] == [line.rsplit(",", 1)[0] for line in rows[1]]


def interrupted(backend, path, **fit):
    """Return data and the path of a checkpoint of a run of 4 epochs that was stopped after 2."""
    x, y = blobs()

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            if run.epoch == 2:
                run.stop("enough")

    model = small(backend)
    model.fit(x, y, epochs=4, callbacks=[Stop(), fastmlp.Checkpoint(path), *fit.pop("callbacks", ())], verbose=0, **fit)
    return x, y


def test_resume_refuses_other_data_callbacks_and_figures(backend, tmp_path):
    path = tmp_path / "checkpoint"
    x, y = interrupted(backend, path, callbacks=[fastmlp.EarlyStopping("loss")])
    model = fastmlp.load(path, backend)
    same = [fastmlp.EarlyStopping("loss")]
    with pytest.raises(ValueError, match=r"not those that the checkpoint .* was trained on"):
        model.resume(x + 1, y, callbacks=same, verbose=0)
    with pytest.raises(ValueError, match="not those that the checkpoint"):
        model.resume(x, y, sample_weight=np.ones(200), callbacks=same, verbose=0)
    with pytest.raises(ValueError, match=r"callbacks must be those .*\['EarlyStopping'\]; got \[\]"):
        model.resume(x, y, verbose=0)
    with pytest.raises(ValueError, match="validation data and metrics must be those"):
        model.resume(x, y, callbacks=same, validation_data=(x, y), verbose=0)
    assert model.resume(x, y, callbacks=same, verbose=0).epochs == 4
    with pytest.raises(RuntimeError, match="was not just loaded from a checkpoint"):
        model.resume(x, y, callbacks=same, verbose=0)


def test_resume_refuses_other_validation_data(backend, tmp_path):
    path, (other, labels) = tmp_path / "checkpoint", blobs(40, seed=9)
    validation = other, labels, np.linspace(0.5, 2, 40)
    x, y = interrupted(backend, path, validation_data=validation)
    model = fastmlp.load(path, backend)
    for others in ((other[:30], labels[:30], validation[2][:30]), (other, 2 - labels, validation[2]), validation[:2]):
        with pytest.raises(fastmlp.DataError, match=r"validation_data are not those that .* give the same"):
            model.resume(x, y, validation_data=others, verbose=0)
    assert model.resume(x, y, validation_data=validation, verbose=0).epochs == 4
    header, tensors = files.read(path)
    del header["format"], header["validation"]  # as an earlier version wrote it
    files.write(path, header, tensors)
    assert fastmlp.load(path, backend).resume(x, y, validation_data=validation[:2], verbose=0).epochs == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"monitor": "accuracy"}, "monitor='loss', not 'accuracy', mode='min', not 'max'"),
        ({"mode": "max"}, "mode='min', not 'max'"),
        ({"restore_best": False}, "restore_best=True, not False"),
    ],
)
def test_resume_refuses_early_stopping_by_another_figure(tmp_path, asked, said):
    path = tmp_path / "checkpoint"
    x, y = interrupted("numpy", path, callbacks=[fastmlp.TimeLimit(900), fastmlp.EarlyStopping("loss", patience=5)])
    model, limit = fastmlp.load(path, "numpy"), fastmlp.TimeLimit(900)
    with pytest.raises(ValueError, match=re.escape(said) + "; give resume the same"):
        model.resume(x, y, callbacks=[limit, fastmlp.EarlyStopping(**{"monitor": "loss", **asked})], verbose=0)
    assert limit._before == 0  # nothing has been taken back
    callbacks = [limit, fastmlp.EarlyStopping("loss", patience=7, min_delta=1e-3)]
    assert model.resume(x, y, callbacks=callbacks, verbose=0).epochs == 4


def test_a_finished_run_says_so(backend, tmp_path):
    x, y = blobs()
    small(backend).fit(x, y, epochs=2, callbacks=[fastmlp.Checkpoint(tmp_path / "c")], verbose=0)
    model = fastmlp.load(tmp_path / "c", backend)
    with pytest.raises(RuntimeError, match="was finished after 2 epochs; use fit"):
        model.resume(x, y, verbose=0)
    model.fit(x, y, epochs=1, verbose=0)


def test_a_run_resumed_under_other_choices_warns(backend, tmp_path, monkeypatch):
    path = tmp_path / "c"
    x, y = interrupted(backend, path)
    choices = backend.choices()
    monkeypatch.setattr(type(backend), "choices", lambda self: {**choices, "threads": 99})
    with pytest.warns(fastmlp.ReproducibilityWarning, match=r"threads .*, now 99") as caught:
        fastmlp.load(path, backend).resume(x, y, verbose=0)
    assert caught[0].filename == __file__  # it names the call of resume


KEPT = Path(__file__).parent / "kept"
"""Files that an earlier fastmlp wrote: of each of two runs a checkpoint after 7 steps, and the model at its end."""


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_files_of_earlier_versions_load_and_their_runs_go_on(name):
    x = np.linspace(-1, 1, 60).reshape(20, 3)
    finished = fastmlp.load(KEPT / f"model-{name}.safetensors", "numpy")
    run = fastmlp.load(KEPT / f"checkpoint-{name}.safetensors", "numpy")
    if name == "adamw":
        assert (finished.class_names, finished.feature_names) == (("no", "yes"), ("a", "b", "c"))
        assert (finished.seed, finished.steps, finished.spec.frozen) == (7, 12, (True, False))
        assert finished.spec.loss == fastmlp.SoftmaxCrossEntropy(0.1)
        y, callbacks = (x.sum(axis=1) > 0).astype(int), [fastmlp.EarlyStopping(patience=3, restore_best=False)]
    else:
        assert (finished.spec.loss, finished.dtype, finished.steps) == (fastmlp.Huber(0.5), np.float32, 16)
        y, callbacks = np.abs(x).sum(axis=1), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastmlp.ReproducibilityWarning)  # another machine wrote them
        history = run.resume(x, y, callbacks=callbacks, verbose=0)
    assert (history.epochs, run.steps) == (4, finished.steps)
    tolerance = 1e-12 if finished.dtype == np.float64 else 1e-5
    for a, b in zip(finished.get_weights(), run.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        ("float32", "50028ec7f959c149556c48b68716b2acef7246c2dcbeab7cb95f921ad0cad840"),
        ("float64", "9869a0416f1c7941a013914c20ddc8c27147004d249ca55cef3d45e4e7ff2342"),
    ],
)
def test_the_same_model_gives_the_same_bytes_as_ever(dtype, digest, tmp_path):
    model = fastmlp.MLP(
        (3, 4, 2),
        activation="gelu",
        loss=fastmlp.SoftmaxCrossEntropy(label_smoothing=0.125),
        dropout=(0.25, 0.5),
        l2=0.5,
        max_norm=2.0,
        initializer="glorot_normal",
        dtype=dtype,
        seed=11,
    )
    first, second = np.arange(12).reshape(3, 4) / 8, np.arange(8).reshape(4, 2) / 4
    model.set_weights([first, np.arange(4) / 2, second, np.arange(2)])
    model.class_names = ("no", "yes")
    model.freeze(1)
    model.save(tmp_path / "model")
    assert hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest() == digest


def test_a_file_that_is_not_there_is_said_before_a_backend_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastmlp.load(tmp_path / "none", "no such backend")


def test_true_stands_for_one_in_files_that_were_written_when_it_did():
    assert (
        LOSSES.from_json({"name": "softmax_cross_entropy", "label_smoothing": False}) == fastmlp.SoftmaxCrossEntropy()
    )
    described = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": 1, "clip_norm": True}
    assert optimizer_from_json(described) == fastmlp.SGD(0.1, momentum=0.9, nesterov=True, clip_norm=1.0)


def test_checkpoints_can_be_kept_by_epoch_and_step(backend, tmp_path):
    x, y = blobs()
    small(backend).fit(
        x, y, epochs=2, batch_size=128, callbacks=[fastmlp.Checkpoint(tmp_path / "e{epoch}s{step}")], verbose=0
    )
    assert sorted(os.listdir(tmp_path)) == ["e1s2", "e2s4"]


def test_what_no_file_can_hold_is_refused_before_training(backend, tmp_path):
    class Own(fastmlp.Schedule):
        name = "own"

        def _shape(self, steps, horizon, memory):
            return np.full(len(steps), 1e-3)

    x, y = blobs()
    model = small(backend)
    with pytest.raises(ValueError, match="cannot hold one of your own class, Own"):
        model.fit(
            x, y, epochs=1, optimizer=fastmlp.SGD(Own()), callbacks=[fastmlp.Checkpoint(tmp_path / "c")], verbose=0
        )
    with pytest.raises(FileNotFoundError, match="expected a folder to write it into, found none"):
        model.fit(x, y, epochs=1, callbacks=[fastmlp.Checkpoint(tmp_path / "no" / "c")], verbose=0)
    assert model.steps == 0
    model.fit(x, y, epochs=1, optimizer=fastmlp.SGD(Own()), verbose=0)


names = st.sampled_from(["relu", "tanh", "gelu", "sin"])


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    loss=st.sampled_from(["mean_squared_error", "huber", "sigmoid_cross_entropy", "poisson", "quantile"]),
    dropout=st.floats(0, 0.99),
    l2=st.floats(0, 1e3),
    max_norm=st.none() | st.floats(1e-3, 1e3),
    activation=names,
    initializer=st.none() | st.sampled_from(["he_normal", "zeros", fastmlp.Normal(0.5)]),
    data=st.data(),
)
def test_any_spec_survives_json(units, loss, dropout, l2, max_norm, activation, initializer, data):
    spec = make_spec(
        units, activation=activation, loss=loss, dropout=dropout, l2=l2, max_norm=max_norm, initializer=initializer
    )
    frozen = data.draw(st.lists(st.booleans(), min_size=spec.layers, max_size=spec.layers))
    spec = NetworkSpec(**{**spec.__dict__, "frozen": tuple(frozen)})
    assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@settings(max_examples=40, deadline=None)
@given(
    header=st.dictionaries(
        st.text(max_size=8), st.floats(allow_nan=False) | st.integers() | st.text(max_size=20), max_size=4
    ),
    shapes=st.dictionaries(
        st.text("abc.", min_size=1, max_size=6), st.lists(st.integers(0, 4), max_size=3), max_size=4
    ),
)
def test_any_header_and_arrays_come_back(tmp_path_factory, header, shapes):
    header.pop("format", None)
    path = tmp_path_factory.mktemp("f") / "x"
    rng = np.random.default_rng(0)
    tensors = {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    files.write(path, header, tensors)
    back, arrays = files.read(path)
    assert back == {"format": files.FORMAT, **header}
    assert set(arrays) == set(tensors)
    for name, array in tensors.items():
        assert_same_bits(arrays[name], array)
