"""Readers are fed damaged and foreign files for some seconds: only our errors, no crash, no hang, memory bounded.

Two seconds of it are part of every run of the tests, twenty of `.ci/run`; ``pytest tests/fuzz --fuzz 1800`` goes on for
half an hour from there, and ``-s`` shows how many files each reader was fed.
"""

import json
import tempfile
import time
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import Path

import altered
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import fastmlp
from fastmlp.backends.cpu import calibration
from fastmlp.cli.folder import RunFolder
from fastmlp.datasets import load_table, read_idx
from fastmlp.errors import DataError, FileFormatError
from fastmlp.files import safetensors

SLOWEST = 10.0
"""Seconds that a file of a few thousand bytes may take, on a machine with much else to do."""
ROOM = 1 << 30
"""Bytes that a process may ask for beside what it has, whatever a file says."""


def by_name(path, error):
    """Check that an error is one of ours, a line that names the file."""
    text = str(error)
    assert isinstance(error, (FileFormatError, DataError)), f"{type(error).__name__}: {error}"
    assert str(path) in text and "fits into memory" not in text, text
    assert len(text) < 5000, text


class Tables:
    """`load_table` on files of one kind."""

    def __init__(self, folder, name, contents, **options):
        self.path, self.contents, self.options = folder / name, contents, options

    def read(self, contents):
        self.path.write_bytes(contents)
        table = load_table(self.path, **self.options)
        assert table.x.ndim == 2 and table.x.size and np.isfinite(np.asarray(table.x, np.float64)).all()
        assert table.y is None or len(table.y) == len(table.x)


class Idx:
    """`read_idx`, gzipped or not."""

    def __init__(self, folder):
        self.path, self.contents = folder / "a.idx", altered.edited(altered.idx_files(folder))

    def read(self, contents):
        self.path.write_bytes(contents)
        read_idx(self.path)


class Models:
    """`fastmlp.load` on files that were damaged, and on files that were signed again."""

    def __init__(self, folder):
        self.path = folder / "a.safetensors"
        self.files = altered.model_files(folder)
        whole = [(folder / name).read_bytes() for name in altered.MODELS]
        self.contents = altered.edited(whole) | altered.changed([header for header, _ in self.files])

    def read(self, contents):
        if isinstance(contents, bytes):
            self.path.write_bytes(contents)
        else:
            which = altered.MODELS.index("checkpoint") if "optimizer" in contents else 0
            raw = contents.get("preprocessing")
            if isinstance(raw, dict):
                which = altered.MODELS.index("quantile" if raw.get("kind") == "quantile" else "standard")
            arrays = self.files[which][1]
            try:
                safetensors.write(self.path, {"format": 1, **contents}, arrays)
            except (ValueError, TypeError):  # of JSON's, for what no file can hold
                return
        model = fastmlp.load(self.path, "numpy")
        assert all(np.isfinite(array).all() for array in model.get_weights())
        raw = model.preprocessing
        if raw is None:
            assert np.isfinite(model.predict_proba(np.zeros((1, model.spec.units[0])))).all()
        elif raw.columns < 1000:
            assert np.isfinite(model.predict_proba(np.full((1, raw.columns), None))).all()
            assert len(raw.get_feature_names_out()) == model.spec.units[0]


class Configs:
    """The settings of a run's folder."""

    def __init__(self, folder):
        self.folder = RunFolder(folder)
        self.path = self.folder.config
        whole = altered.config_text(folder)
        tree = tomllib.loads(whole.decode())["settings"]
        self.contents = altered.edited([whole]) | altered.changed([tree])

    def read(self, contents):
        if not isinstance(contents, bytes):
            lines = [f"{json.dumps(str(k))} = {json.dumps(v)}" for k, v in contents.items()]
            contents = "\n".join(["[settings]", *lines]).encode("utf-8", "replace")
        self.path.write_bytes(contents)
        try:
            self.folder.settings()
        except FileNotFoundError as error:  # data = "something else"
            assert error.filename is not None


class Measured:
    """The table of products that were timed on a machine: damaged, it is measured anew."""

    def __init__(self, folder):
        self.path = folder / "products.json"
        whole = {"machine": {}, "start": 1e-5, "measured": [[p, 1, 2, 3, [1.0, 2.0, 3.0]] for p in range(3)]}
        self.contents = altered.edited([json.dumps(whole).encode()]) | altered.changed([whole]).map(
            lambda tree: json.dumps(tree).encode()
        )

    def read(self, contents):
        self.path.write_bytes(contents)
        found = calibration._read(self.path)
        assert found is None or len({m.product for m in found.measured}) == 3


def csv_options(target):
    return lambda folder: Tables(folder, "a.csv", altered.edited(altered.CSV_FILES), target=target)


READERS = {
    "npy": lambda f: Tables(f, "a.npy", altered.edited(altered.npy_files()) | altered.npy_headers()),
    "npz": lambda f: Tables(f, "a.npz", altered.edited(altered.npz_files())),
    "idx": Idx,
    "csv": csv_options(None),
    "csv with a target": csv_options(-1),
    "models": Models,
    "config": Configs,
    "measured": Measured,
}


@contextmanager
def bounded_memory():
    """Refuse memory beyond some room, where the system can: what a file says then ends in an error of ours."""
    resource = pytest.importorskip("resource")
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fuzz(reader, batch, examples=100):
    """Feed a reader some files; which, follows from the number of the batch."""

    @seed(batch)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.contents)
    def feed(contents):
        began = time.process_time()  # of this process alone, whatever else the machine does
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and Python, about what they read
            try:
                reader.read(contents)
            except AssertionError:
                raise
            except Exception as error:
                by_name(reader.path, error)
        assert time.process_time() - began < SLOWEST

    feed()


@pytest.mark.parametrize("kind", READERS)
def test_whatever_a_file_holds_a_reader_returns_or_raises_an_error_of_ours(kind, pytestconfig, monkeypatch):
    monkeypatch.setattr(calibration, "machine", dict)
    end = time.monotonic() + pytestconfig.getoption("--fuzz") / len(READERS)
    batches = 0
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[kind](Path(folder))
        with bounded_memory():
            while batches == 0 or time.monotonic() < end:
                fuzz(reader, batches)
                batches += 1
    print(f"{kind}: {100 * batches:,} files")


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_the_job_tells_an_error_that_is_not_ours(data):
    with pytest.raises(AssertionError):
        by_name("a.npy", data.draw(st.sampled_from([KeyError("a.npy"), RecursionError("a.npy"), ValueError("a.npy")])))
    with pytest.raises(AssertionError):
        by_name("a.npy", FileFormatError("no name"))
