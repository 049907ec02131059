"""What is particular to the Numba backend: threads, determinism, its cache, what it cannot compile."""

import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits
from numba_runs import backend, trained

import fastmlp
from fastmlp.backends.cpu import backend as numba_backend
from fastmlp.backends.cpu import blas
from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cpu.threads import on_threads
from fastmlp.formulas.activations import activation_names
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS, StepScalars
from fastmlp.network.plan import Precision

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available, reason=fastmlp.available_backends()["numba"].reason
)
needs_jit = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the JIT is off, so there is one thread")


@needs_jit
def test_what_is_kept_of_other_kernels_is_not_even_read(tmp_path):
    from fastmlp.kernels.cpu import compiling, predict

    kept = compiling._KernelCache(predict.predict_thread.py_func)._cache_file
    kept._index_path = str(tmp_path / "index")
    of_a_module_that_is_gone = b"cfastmlp.kernels.cpu.records\nNetwork\n."
    other = f"{numba.__version__} of other kernels\n".encode() + of_a_module_that_is_gone
    Path(kept._path_of("a signature")).write_bytes(hashlib.sha256(other).digest() + other)
    assert kept.load("a signature") is None
    kept._cache_path = str(tmp_path)
    kept.save("a signature", "code")
    assert kept.load("a signature") == "code"
    assert kept.load("another signature") is None


def test_threads_that_ask_the_blas_for_its_version_at_once_are_told_the_same():
    """Else ranks that are threads refuse each other, since they seem to have other choices."""
    found, together = set(), threading.Barrier(8)

    def work(t):
        together.wait()
        found.update(blas.version() for _ in range(3000))

    on_threads(8, work)
    assert len(found) == 1


@needs_jit
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_number_of_threads_gives_the_same_bits(threads):
    for a, b in zip(trained(threads), trained(threads), strict=True):
        assert_same_bits(a, b)


@needs_jit
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_other_numbers_of_threads_agree_within_rounding(threads):
    for a, b in zip(trained(threads), trained(1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@needs_jit
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 3000])
def test_predictions_and_figures_have_the_same_bits_on_any_number_of_threads(rows, monkeypatch):
    monkeypatch.setattr(Forms, "threads_for", lambda self, rows, most, *more: most)  # however little there is to do
    rng = np.random.default_rng(rows)
    x, y, weights = rng.normal(size=(rows, 70)), rng.integers(0, 3, rows), rng.uniform(0.5, 2, rows)
    found = []
    for threads in (1, 2, 3, 8):
        model = fastmlp.MLP((70, 60, 3), backend=fastmlp.get_backend("numba", threads=threads), seed=0)
        figures = model.evaluate(x, y, sample_weight=weights)
        found.append((model.predict_proba(x, batch_size=rows).tobytes(), figures["loss"], figures["accuracy"]))
    assert found == found[:1] * 4


@needs_jit
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_fewer_rows_than_threads_are_no_trouble(batch_size):
    few = {"rows": 11, "batch_size": batch_size}
    for a, b in zip(trained(4, **few), trained(1, **few), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@needs_jit
def test_many_fits_from_several_threads_at_once_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    cases = []
    for i in range(50):
        units = (*(int(u) for u in rng.integers(1, 40, rng.integers(2, 5))), 3)
        cases.append(
            {"units": units, "rows": int(rng.integers(1, 300)), "batch_size": int(rng.integers(1, 64)), "seed": i}
        )
    expected = [trained(2, **case) for case in cases]
    wrong = []

    def work(part):
        for i in range(part, 200, 4):
            case = i % len(cases)
            for a, b in zip(trained(2, **cases[case]), expected[case], strict=True):
                if a.tobytes() != b.tobytes():
                    wrong.append(case)

    workers = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert not any(worker.is_alive() for worker in workers), "a fit hangs"
    assert not wrong


@needs_jit
@pytest.mark.skipif(not hasattr(multiprocessing, "get_context") or sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_trains_to_the_same_bits(default_signals):
    expected = trained(2)  # so that the parent has had threads and a BLAS at work
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        for found in pool.map(trained, [2, 2]):
            for a, b in zip(found, expected, strict=True):
                assert_same_bits(a, b)


UNDER_JOBLIB = """
    import joblib, numpy as np, fastmlp

    def trained():
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(230, 7)), rng.integers(0, 4, 230)
        model = fastmlp.MLP((7, 12, 4), backend=fastmlp.get_backend("numba", threads=2), seed=0)
        model.fit(x, y, epochs=2, verbose=0)
        return model.get_weights()[0].tobytes()

    if __name__ == "__main__":
        print(set(joblib.Parallel(n_jobs=2)(joblib.delayed(trained)() for _ in range(2))) == {trained()})
"""


@pytest.mark.thorough  # in fewer processes, test_a_forked_process_trains_to_the_same_bits
@needs_jit
def test_it_works_under_joblib(tmp_path, kernels_in_the_cache):
    (tmp_path / "script.py").write_text(textwrap.dedent(UNDER_JOBLIB))
    command = [sys.executable, str(tmp_path / "script.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


INTERRUPTED = """
    import os, signal, sys, threading, time, warnings
    import numpy as np
    import fastmlp
    from fastmlp.backends.cpu import said

    said.LONG_SECONDS = 0.2
    model = fastmlp.MLP((5, 4, 3), backend="numba", seed=0)
    before = [w.copy() for w in model.get_weights()]
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(np.eye(5), [0, 1, 2, 0, 1], epochs=10**9, verbose=0)
    assert history.stop_reason == "interrupted" and model.steps == 0
    assert "after 0 whole steps" in str(caught[0].message), caught
    assert all((a == b).all() for a, b in zip(before, model.get_weights()))
    print(len(sys.modules["fastmlp.kernels.cpu.train"].train_thread.overloads))
"""


@needs_jit
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_while_kernels_are_compiled_ends_that(tmp_path, default_signals):
    command = [sys.executable, "-P", "-c", textwrap.dedent(INTERRUPTED)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0\n"
    said = "compiling the kernels that train in float32, ten to fifteen seconds, once on this machine"
    assert done.stderr.startswith(said)


def test_nobody_waits_for_a_compiler_after_ctrl_c():
    from fastmlp.kernels.cpu import compiling

    let_go, ended, went_on = threading.Event(), threading.Event(), threading.Event()

    def call():
        compiling._here.wait.in_llvm.set()
        let_go.wait()
        try:
            compiling._go_on_unless_given_up()
            went_on.set()
        finally:
            ended.set()

    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiling.compile_aside(call, check)
    assert not ended.is_set()
    (compiler,) = (t for t in threading.enumerate() if t.name == "fastmlp's compiler")
    let_go.set()
    compiler.join()
    assert ended.is_set() and not went_on.is_set()


def test_ctrl_c_ends_every_first_call_that_compiles(monkeypatch):
    from fastmlp.kernels.cpu import compiling

    x, y = np.eye(5, dtype=np.float32), np.arange(5) % 3
    model = fastmlp.MLP((5, 4, 3), backend="numba", seed=0)
    compiled, compile_aside = set(), compiling.compile_aside
    monkeypatch.setattr(numba_backend, "_compiled", compiled)

    def interrupted(call, check):
        raise KeyboardInterrupt

    monkeypatch.setattr(compiling, "compile_aside", interrupted)
    for first_call in (lambda: model.predict(x), lambda: model.evaluate(x, y), model.predictor):
        with pytest.raises(KeyboardInterrupt):
            first_call()
    assert not compiled
    compiled.add((True, Precision.of(model.dtype)))  # what trains is there, what evaluates is not
    with pytest.warns(fastmlp.TrainingInterrupted, match="after 0 whole steps"):
        history = model.fit(x, y, epochs=10**9, validation_data=(x, y), verbose=0)
    assert history.stop_reason == "interrupted" and model.steps == 0
    monkeypatch.setattr(compiling, "compile_aside", compile_aside)
    assert model.predict(x).shape == (5,) and (False, Precision.of(model.dtype)) in compiled


def test_what_goes_wrong_in_the_compiler_is_raised_where_it_is_waited_for():
    from fastmlp.kernels.cpu.compiling import compile_aside

    with pytest.raises(ZeroDivisionError):
        compile_aside(lambda: 1 / 0, lambda: None)


def test_the_kernels_know_every_activation_loss_and_optimizer_by_name():
    from fastmlp.kernels.cpu import codes

    assert set(codes.ACTIVATIONS) == set(activation_names())
    assert set(codes.LOSSES) == set(LOSSES.names())
    assert set(codes.OPTIMIZERS) == set(OPTIMIZERS.names())
    assert codes.STEP_SCALARS == StepScalars._fields
    for names in (codes.ACTIVATIONS, codes.LOSSES, codes.OPTIMIZERS, codes.SOURCES, codes.STEP_SCALARS):
        assert [getattr(codes, name.upper()) for name in names] == list(range(len(names)))
        assert [codes.code_of(name, names) for name in names] == list(range(len(names)))
    with pytest.raises(LookupError, match="the kernels know no 'adagrad'; they know sgd, adam, adamw, rmsprop"):
        codes.code_of("adagrad", codes.OPTIMIZERS)


def test_a_function_of_ones_own_runs_composed_and_says_so_once(caplog):
    fastmlp.register_activation("square_of_it", lambda z: (z * z, 2 * z))
    options = {"units": (5, 6, 3), "activation": "square_of_it", "max_norm": None, "dropout": 0.0}
    with caplog.at_level(logging.WARNING, "fastmlp"):
        found = trained(1, **options)
        trained(1, **options)
    assert [r.getMessage() for r in caplog.records if "square_of_it" in r.getMessage()] == [
        "square_of_it: a function of your own cannot be compiled, so training and prediction run step by step, "
        "as on NumPy"
    ]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(230, 5)), rng.integers(0, 3, 230)
    model = fastmlp.MLP((5, 6, 3), activation="square_of_it", l2=1e-3, dtype="float64", backend="numpy", seed=0)
    optimizer = fastmlp.Adam(1e-2, clip_norm=1.0, ema=0.9, weight_decay=1e-3)
    model.fit(x, y, epochs=2, batch_size=32, optimizer=optimizer, verbose=0)
    np.testing.assert_allclose(found[0], model.get_weights()[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        fastmlp.SGD(0.1),
        fastmlp.SGD(0.1, weight_decay=0.3, ema=0.9),
        fastmlp.SGD(0.1, 0.9, weight_decay=0.3),
        fastmlp.SGD(0.1, 0.9, nesterov=True, clip_norm=0.5),
        fastmlp.Adam(0.01, weight_decay=0.3),
        fastmlp.RMSprop(0.01, momentum=0.5, weight_decay=0.3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("max_norm", [None, 0.8])
def test_every_update_with_l2_and_decay_is_numpys(optimizer, max_norm):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 7)), rng.integers(0, 3, 70)
    options = {"activation": "tanh", "l2": 0.2, "max_norm": max_norm, "dtype": "float64", "seed": 0}
    found, expected = (fastmlp.MLP((7, 9, 3), backend=b, **options) for b in (backend(2), "numpy"))
    for model in (found, expected):
        model.fit(x, y, epochs=3, batch_size=16, optimizer=optimizer, verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_an_optimizer_or_a_loss_derived_from_fastmlps_is_the_users_own():
    @dataclass(frozen=True)
    class HalfAdam(fastmlp.Adam):
        def update(self, p, g, moments, scalars, scratch):
            super().update(p, g, moments, scalars._replace(rate=scalars.rate / 2), scratch)

    @dataclass(frozen=True)
    class Doubled(fastmlp.MeanSquaredError):
        def compute(self, outputs, targets, d_outputs, row_losses, scratch):
            super().compute(outputs, targets, d_outputs, row_losses, scratch)
            row_losses *= 2
            d_outputs *= 2

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 2))
    for loss, optimizer in ((fastmlp.MeanSquaredError(), HalfAdam(0.01)), (Doubled(), fastmlp.SGD(0.1))):
        models = [fastmlp.MLP((5, 4, 2), loss=loss, dtype="float64", backend=b, seed=0) for b in (backend(1), "numpy")]
        for model in models:
            model.fit(x, y, epochs=2, batch_size=16, optimizer=optimizer, verbose=0)
        for a, b in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(threads):
    error, needed = (ValueError, "at least 1") if type(threads) is int else (TypeError, "an integer")
    with pytest.raises(error, match=f"threads must be {needed}, or None for the physical cores; got {threads!r}"):
        backend(threads)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int8", "uint16", "uint64", "bool", "uint8"])
def test_inputs_of_any_real_type_are_taken_as_numpy_takes_them(kind):
    x = np.random.default_rng(0).integers(0, 2, (60, 9)).astype(kind)
    y = np.arange(60) % 3
    found, expected = (fastmlp.MLP((9, 5, 3), backend=b, seed=0, dtype="float64") for b in (backend(1), "numpy"))
    for model in (found, expected):
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), rtol=1e-10)


@needs_jit
def test_importing_and_asking_compiles_nothing():
    code = """
        from numba.core import event
        with event.install_recorder("numba:compile") as compiled:
            import fastmlp
            fastmlp.available_backends(); fastmlp.get_backend("numba")
            fastmlp.MLP((3, 2), backend="numba")
            import fastmlp.kernels.cpu.train, fastmlp.kernels.cpu.predict, fastmlp.kernels.cpu.operations
        print(len(compiled.buffer))
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


@needs_jit
def test_an_edit_of_a_callee_in_another_kernel_file_is_noticed(tmp_path):
    from fastmlp.kernels.cpu import compiling

    package = tmp_path / "kernelcopy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("compiling.py", "kept.py"):
        (package / name).write_text(Path(compiling.__file__).with_name(name).read_text())
    (package / "caller.py").write_text(
        "from .compiling import entry\nfrom .callee import f\n\n@entry\ndef call(x):\n    return f(x)\n"
    )
    show = "import kernelcopy.caller as c; print(c.call(2.0), c.call._cache_hits.total())"

    def run(factor):
        (package / "callee.py").write_text(
            f"from .compiling import part\n\n@part\ndef f(x):\n    return {factor} * x\n"
        )
        environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # its stamps are seconds, and both edits are made in one
        command = [sys.executable, "-P", "-c", show]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert run(3) == ["6.0", "0"]
    assert run(3) == ["6.0", "1"], "the second process takes it from the cache"
    assert run(5) == ["10.0", "0"]


@needs_jit
def test_a_cache_folder_that_cannot_be_written_is_no_error(monkeypatch):
    from fastmlp.kernels.cpu import compiling

    def refuse(self, function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiling._KernelCache, "__init__", refuse)

    def double(x):
        return 2 * x

    assert compiling.entry(double)(4) == 8
