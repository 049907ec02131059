"""What the fuzzing job feeds the readers: whole files with anything done to them, and headers of any content."""

import gzip
import io
import json
import zipfile

import numpy as np
from hypothesis import strategies as st

import fastmlp
from fastmlp.cli.folder import RunFolder
from fastmlp.cli.settings import TABLE, Settings
from fastmlp.datasets import write_idx
from fastmlp.files import safetensors

ODD_BYTES = [
    *(b"\0", b"\xff", b"\x80", b"\n", b"\r", b'"', b"'", b",", b";", b"{", b"[", b"(", b"-", b"nan", b"inf", b"1e999"),
    *(b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"[" * 3000, b"(" * 300, b"9" * 400, b"9" * 5000, b"None"),
    *(b"True", b"-1", b"\xef\xbb\xbf", b"\xed\xa0\x80", "é".encode(), b"PK\x03\x04", b"\x93NUMPY\x03\0", b"<f8", b"|O"),
]


@st.composite
def edited(draw, wholes):
    """Return one of some whole files after up to six edits: cut, changed, taken out, doubled, put in."""
    contents = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(contents)))
        to = min(len(contents), at + draw(st.integers(0, 20)))
        kind = draw(st.sampled_from(["flip", "put", "odd", "take", "double", "cut"]))
        if kind == "flip" and at < len(contents):
            contents[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "put":
            contents[at:to] = draw(st.binary(max_size=20))
        elif kind == "odd":
            contents[at:to] = draw(st.sampled_from(ODD_BYTES))
        elif kind == "take":
            del contents[at:to]
        elif kind == "double":
            contents[at:at] = contents[at:to]
        elif kind == "cut" and draw(st.integers(0, 3)) == 0:
            del contents[at:]
    return bytes(contents)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**31, 2**36, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["relu", "float64", "checkpoint", "sgd", "softmax_cross_entropy", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw, trees):
    """Return one of some trees of plain values with up to three of its entries replaced, removed or doubled."""
    tree = json.loads(json.dumps(draw(st.sampled_from(trees))))
    for _ in range(draw(st.integers(1, 3))):
        at = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            if draw(st.integers(0, 3)) == 0:
                del at[key]
            else:
                at[key] = draw(values)
            break
    return tree


def bytes_of(save, *arguments, **options):
    stream = io.BytesIO()
    save(stream, *arguments, **options)
    return stream.getvalue()


def npy_files():
    arrays = [np.arange(6.0).reshape(2, 3), np.zeros((3, 2), np.uint8), np.ones((2, 2), ">i4", order="F")]
    return [bytes_of(np.save, array) for array in arrays]


@st.composite
def npy_headers(draw):
    """Return a NumPy file whose header is a literal of any kind."""
    whole = {"descr": "<f8", "fortran_order": False, "shape": (2, 3)}
    for key in draw(st.lists(st.sampled_from([*whole, "more"]), max_size=2)):
        whole[key] = draw(
            values | st.tuples(st.integers(), st.integers()) | st.sampled_from(["|O", "V9", "<U9", "<f2"])
        )
    header = repr(whole).encode("utf-8", "replace")
    version = draw(st.sampled_from([1, 1, 2, 3]))
    length = len(header).to_bytes(2 if version == 1 else 4, "little") if len(header) < 65536 else b"\xff\xff"
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(48)


def npz_files():
    table = {"x": np.arange(8.0).reshape(4, 2), "y": np.array([0, 1, 1, 0])}
    named = {**table, "y": np.array(["a", "b", "b", "a"])}
    files = [bytes_of(np.savez, **table), bytes_of(np.savez_compressed, **named)]
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as archive:
            archive.writestr("x.npy", bytes_of(np.save, table["x"]))
        files.append(stream.getvalue())
    return files


def idx_files(folder):
    write_idx(folder / "fuzz.idx", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    write_idx(folder / "fuzz1.idx", np.arange(6, dtype=np.float64).reshape(3, 2))
    plain = [(folder / name).read_bytes() for name in ("fuzz.idx", "fuzz1.idx")]
    return [*plain, gzip.compress(plain[0]), gzip.compress(plain[1], 0)]


CSV_FILES = [
    b"a,b,y\n1,2,x\n3,4,z\n5,6,x\n",
    b"1,2,0\n3,4,1\n5.5,-6e3,1\n",
    b'\xef\xbb\xbf"a","b","y"\r\n1,"2",0\r\n"3",4,1\r\n',
    b"y,a\n1.5,2\n2.5,3\nNA,4\n",
    b"0,1,2\n1,2,3\n4,5,6\n",
]


MODELS = ("model", "checkpoint", "standard", "quantile")


def model_files(folder):
    """Return the headers and arrays of a model, of a checkpoint and of models that take raw rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3)), rng.integers(0, 2, 24)

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            run.stop("enough")

    model = fastmlp.MLP((3, 4, 2), backend="numpy", seed=0)
    callbacks = [Stop(), fastmlp.EarlyStopping("loss"), fastmlp.Checkpoint(folder / "checkpoint")]
    model.fit(x, y, epochs=3, batch_size=8, optimizer=fastmlp.Adam(ema=0.9), callbacks=callbacks, verbose=0)
    model.class_names = ("a", "b")
    model.save(folder / "model")
    for name, kind in (("standard", "standard"), ("quantile", "quantile")):
        rows = np.array([[*row, "ab"[label], bool(label)] for row, label in zip(x, y, strict=True)], dtype=object)
        rows[::5, 1] = rows[::4, 3] = None
        estimator = fastmlp.MLPClassifier(4, preprocess=kind, epochs=1, backend="numpy", random_state=0)
        estimator.fit(rows, y).model_.save(folder / name)
    return [safetensors.read(folder / name) for name in MODELS]


def config_text(folder):
    settings = Settings(data="mnist", seed=1, loss="softmax_cross_entropy", lr=1e-3, backend="numpy", **TABLE)
    run = RunFolder(folder)
    run.write_config(settings, {"fastmlp": fastmlp.__version__})
    return run.config.read_bytes()
