"""Tables from files of arrays, NPZ, NPY and IDX: the numbers in the file; each fault is named with its place."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refused_table import refusal

from fastmlp.datasets import load_table, write_idx
from fastmlp.errors import DataError, FileFormatError

# --- NumPy archives ---------------------------------------------------------------------------------------


def test_npz_gives_x_and_y_as_they_are(tmp_path):
    x, y = np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([7, 3, 7], dtype=np.int16)
    np.savez(tmp_path / "a.npz", x=x, y=y, z=y + 1)
    table = load_table(tmp_path / "a.npz")
    assert table.x.dtype == np.uint8 and np.array_equal(table.x, x)
    assert table.y.dtype == np.int64 and np.array_equal(table.y, y) and table.class_names is None
    assert table.feature_names == ("x0", "x1")
    assert load_table(tmp_path / "a.npz", target="z").y.tolist() == [8, 4, 8]
    table = load_table(tmp_path / "a.npz", task="classification", feature_names=["a", "b"])
    assert table.class_names == ("3", "7") and table.y.tolist() == [1, 0, 1]
    assert table.feature_names == ("a", "b")
    assert load_table(tmp_path / "a.npz", class_names=["7", "5", "3"]).y.tolist() == [0, 2, 0]
    assert load_table(tmp_path / "a.npz", task="regression").y.dtype == np.float64


def test_npz_without_y_has_no_targets(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.ones((2, 3, 4), dtype=">f4"))
    table = load_table(tmp_path / "a.npz")
    assert table.y is None and table.x.shape == (2, 12)
    assert table.x.dtype == np.float32 and table.x.dtype.isnative


@pytest.mark.parametrize(
    ("y", "expected", "names"),
    [
        (np.array([0.5, 1.5], np.float32), np.array([0.5, 1.5]), None),
        (np.array([True, False]), np.array([1, 0]), None),
        (np.array(["rose", "lily"]), np.array([1, 0]), ("lily", "rose")),
        (np.eye(2, dtype=np.uint8), np.eye(2), None),
        (np.array([[7], [3]], np.int16), np.array([7, 3]), None),
        (np.array([[7.0], [3.0]]), np.array([[7.0], [3.0]]), None),
    ],
    ids=["values", "booleans", "text", "one-hot", "a column of integers", "a column of values"],
)
def test_npz_targets_by_type(tmp_path, y, expected, names):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=y)
    table = load_table(tmp_path / "a.npz")
    assert table.y.dtype == expected.dtype and np.array_equal(table.y, expected)
    assert table.class_names == names


@pytest.mark.parametrize("y", [np.array([2.0, 1.0]), np.array([True, False]), np.array(["2", "1"])])
def test_npz_targets_as_classes(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=y)
    table = load_table(tmp_path / "a.npz", task="classification")
    assert table.y.tolist() == [1, 0] and len(table.class_names) == 2
    assert table.class_names == (("0", "1") if y.dtype == bool else ("1", "2"))


@given(
    x=st.sampled_from(["uint8", "int64", "float16", "float32", "float64", "bool"]).flatmap(
        lambda name: hnp.arrays(
            name,
            hnp.array_shapes(min_dims=2, max_dims=4, max_side=4),
            elements={"allow_nan": False, "allow_infinity": False} if name.startswith("float") else None,
        )
    )
)
def test_npz_npy_and_csv_agree(tmp_path_factory, x):
    folder = tmp_path_factory.mktemp("tables")
    flat = x.reshape(len(x), -1)
    np.savez(folder / "a.npz", x=x)
    np.save(folder / "a.npy", x)
    for name in ("a.npz", "a.npy"):
        table = load_table(folder / name)
        assert table.x.dtype == x.dtype and table.x.tobytes() == flat.tobytes()
    names = [f"f{column}" for column in range(flat.shape[1])]
    rows = [names, *flat.astype(object).tolist()] if x.dtype != bool else [names, *flat.astype(int).tolist()]
    (folder / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    assert np.array_equal(load_table(folder / "a.csv").x, flat.astype(np.float64))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"a": np.ones(2), "b": np.ones(2)},
            {},
            "expected arrays named 'x', got no 'x'; the file has 'a', 'b'",
        ),
        ({"x": np.ones((2, 2))}, {"target": "y"}, "arrays named 'x', 'y', got no 'y'; the file has 'x'"),
        ({"x": np.ones((2, 2)), "y": np.ones(3)}, {}, "a target for each row, got 2 rows and 3 targets"),
        ({"x": np.ones(2)}, {}, "expected features of shape (rows, columns), got (2,)"),
        ({"x": np.ones((0, 2))}, {}, "expected at least one row and one feature, got shape (0, 2)"),
        ({"x": np.ones((2, 0))}, {}, "expected at least one row and one feature, got shape (2, 0)"),
        ({"x": np.array([["a"]])}, {}, "expected features that are numbers, got <U1"),
        ({"x": np.array([[1j]])}, {}, "expected features that are numbers, got complex128"),
        ({"x": np.array([[1, np.nan], [np.inf, 0]])}, {}, "expected finite numbers, got nan at x[0, 1]"),
        ({"x": np.ones((2, 2)), "y": [0, -np.inf]}, {}, "expected finite numbers, got -inf at y[1]"),
        ({"x": np.ones((1, 2)), "y": 3}, {}, "expected targets of shape (rows,) or (rows, outputs), got ()"),
        ({"x": np.ones((1, 2)), "y": np.ones((1, 1, 1))}, {}, "or (rows, outputs), got (1, 1, 1)"),
        ({"x": np.ones((1, 2)), "y": [b"a"]}, {}, "numbers or, in one dimension, text, got |S1"),
        ({"x": np.ones((1, 2)), "y": ["a"]}, {"task": "regression"}, "targets that are numbers, got <U1"),
        ({"x": np.ones((1, 2)), "y": [["a"]]}, {}, "numbers or, in one dimension, text, got <U1"),
        ({"x": np.ones((1, 2)), "y": [0.5]}, {"task": "classification"}, "text or whole numbers, got '0.5'"),
        ({"x": np.ones((1, 2)), "y": [3]}, {"class_names": ["1", "2"]}, "the classes '1', '2', got '3'"),
        ({"x": np.ones((1, 2))}, {"feature_names": ["a"]}, "expected 1 features, got 2"),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused_with_the_place(tmp_path, arrays, options, message):
    np.savez(tmp_path / "a.npz", **arrays)
    assert message in refusal(tmp_path / "a.npz", **options)


def archive(member):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("x.npy", member)
    return content.getvalue()


def numpy_bytes(array, save=np.save):
    content = io.BytesIO()
    save(content, array)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 and no archive",
        b"hello",
        archive(b""),
        archive(b"hello"),
        archive(numpy_bytes(np.ones((2, 2)))[:-3]),
        archive(numpy_bytes(np.array([[None]]))),
        numpy_bytes(np.ones((2, 2))),
        numpy_bytes(np.ones((40, 40)), lambda file, x: np.savez_compressed(file, x=x))[:-60],
    ],
    ids=[
        "empty",
        "cut",
        "foreign",
        "empty array",
        "foreign array",
        "short array",
        "objects",
        "npy",
        "truncated",
    ],
)
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    message = refusal(tmp_path / "a.npz", FileFormatError)
    assert message.startswith("expected a whole NumPy file of numbers, got one that cannot be read (")


def test_an_npz_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError("Unable to allocate 3 GiB")

    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", full)
    assert refusal(tmp_path / "a.npz") == (
        "expected a file that fits into memory, got Unable to allocate 3 GiB; save x as .npy, which stays on the disk"
    )


def headed(header, version=1):
    """Return a NumPy file of 8 bytes with any header."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(8)


DAMAGED = {
    "TokenError": b"{'descr': '<f8', 'shape': (1, 1, 'fortran_order': False",
    "SyntaxError": b"{'descr': '<f8' 'shape'",
    "IndentationError": b"  {\n 'descr'\n:",
    "RecursionError": b"-" * 3000 + b"1",
    "RecursionError of brackets": b"(" * 190 + b")" * 190,
    "MemoryError": b"[" * 9000,
    "TypeError of keys": b"{1: 2, 'a': 3}",
    "TypeError of a set": b"{[]}",
    "TypeError of descr": b"{'descr': {}, 'fortran_order': False, 'shape': (1, 1)}",
    "IndexError of descr": b"{'descr': [()], 'fortran_order': False, 'shape': (1, 1)}",
    "ValueError of descr": b"{'descr': ('<f8', (-1,)), 'fortran_order': False, 'shape': (1, 1)}",
    "OverflowError": b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 400 + b", 1)}",
    "digits": b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b", 1)}",
    "negative": b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}",
    "nothing": b"",
    "NUL": b"\0" * 40,
    "no UTF-8": b"\xff\xfe",
}


@pytest.mark.filterwarnings("ignore")  # of Python's parser, about what it reads there
@pytest.mark.parametrize("version", [1, 2, 3, 9])
@pytest.mark.parametrize("header", DAMAGED.values(), ids=DAMAGED)
def test_whatever_the_parser_of_a_damaged_header_raises_is_our_error(tmp_path, header, version):
    content = headed(header, version)
    for name, whole in (("a.npy", content), ("a.npz", archive(content))):
        (tmp_path / name).write_bytes(whole)
        message = refusal(tmp_path / name, FileFormatError)
        assert message.startswith("expected a whole NumPy file of numbers, got one that cannot be read (")
        assert "\n" not in message and len(message) < 500


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_archive_is_our_error_whatever_its_compression(tmp_path, compression, seed):
    draw = np.random.default_rng(seed)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("x.npy", numpy_bytes(draw.normal(size=(20, 3))))
    damaged = bytearray(content.getvalue())
    for at in draw.integers(0, len(damaged), 3):
        damaged[at] = draw.integers(256)
    (tmp_path / "a.npz").write_bytes(damaged)
    try:
        load_table(tmp_path / "a.npz")
    except DataError as error:
        assert str(error).startswith(f"{tmp_path / 'a.npz'}: ")
    except FileFormatError as error:
        assert str(error).startswith(f"{tmp_path / 'a.npz'}: expected a whole NumPy file of numbers, got one that")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_compressed_as_numpy_never_does_is_refused_before_anything_is_allocated(tmp_path, compression):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("x.npy", numpy_bytes(np.ones((20, 3))))
    # a dictionary of 2 GiB, after the version and the size of LZMA's properties and their first byte
    whole = content.getvalue()
    at = whole.index(b"\x05\x00\x5d") + 3 if compression == zipfile.ZIP_LZMA else len(whole)
    for contents in (whole, whole[:at] + b"\0\0\0\x80" + whole[at + 4 :]):
        (tmp_path / "a.npz").write_bytes(contents)
        message = refusal(tmp_path / "a.npz", FileFormatError)
        assert f"x.npy is compressed by method {compression}, which numpy.savez never writes" in message
        assert "write it with numpy.save or numpy.savez" in message


def test_the_size_that_a_header_promises_is_compared_with_the_file_before_anything_is_allocated(tmp_path):
    lie = numpy_bytes(np.ones((9, 9))).replace(b"(9, 9), }" + b" " * 8, b"(999999999, 9), }")
    assert len(lie) == 776
    tracemalloc.start()
    try:
        for name, content in (("a.npy", lie), ("a.npz", archive(lie))):
            (tmp_path / name).write_bytes(content)
            message = refusal(tmp_path / name, FileFormatError)
            assert "expected 72000000056 bytes" in message and "for shape (999999999, 9), got 776" in message
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little"))
        refusal(tmp_path / "a.npy", FileFormatError)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_an_error_of_the_system_names_the_file(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    monkeypatch.setattr(np.lib.format, "open_memmap", broken)
    with pytest.raises(OSError, match=r"Input/output error: .*a\.npy"):
        load_table(tmp_path / "a.npy")


# --- Single arrays: NPY and IDX ---------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    y = np.array([3, 1, 7, 1], dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    write_idx(tmp_path / "images-idx3-ubyte.gz", x)
    write_idx(tmp_path / "labels.idx1-ubyte", y)
    write_idx(tmp_path / "x.idx", x)
    return tmp_path, x.reshape(4, 30), y


@pytest.mark.parametrize("x_name", ["x.npy", "images-idx3-ubyte.gz", "x.idx"])
@pytest.mark.parametrize("y_name", ["y.npy", "labels.idx1-ubyte"])
def test_single_arrays_take_their_targets_from_another_file(digits, x_name, y_name):
    folder, x, y = digits
    table = load_table(folder / x_name, target=str(folder / y_name))
    assert table.x.dtype == np.uint8 and np.array_equal(table.x, x)
    assert table.y.dtype == np.int64 and np.array_equal(table.y, y)
    table = load_table(folder / x_name, target=str(folder / y_name), task="classification")
    assert table.class_names == ("1", "3", "7") and table.y.tolist() == [1, 0, 2, 0]
    assert load_table(folder / x_name).y is None


def test_npy_features_stay_on_the_disk(tmp_path):
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1000, 30))[:] = 1
    x = load_table(path).x
    assert isinstance(x, np.memmap) and x.mode == "r" and not x.flags.writeable
    np.lib.format.open_memmap(path, mode="r+")[5, 5] = 2
    assert x[5, 5] == 2


def test_nan_is_found_in_the_last_piece_of_a_mapped_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.datasets.table.SCAN", 64)
    x = np.ones((100, 7), np.float32)
    x[99, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    assert "expected finite numbers, got nan at x[99, 3]" in refusal(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", x[:99])
    assert load_table(tmp_path / "x.npy").x.shape == (99, 7)


@pytest.mark.parametrize("target", [0, "0", "label"])
def test_a_column_is_no_target_of_a_single_array(digits, target):
    folder, _, _ = digits
    for name in ("x.npy", "x.idx"):
        message = refusal(folder / name, target=target)
        assert message == (
            f"expected as target another .npy or IDX file, since this one holds one array; got {target!r}"
        )


def test_single_arrays_that_do_not_fit_are_refused(digits):
    folder, _, _ = digits
    np.save(folder / "y.npy", np.ones(3))
    assert "got 4 rows and 3 targets" in refusal(folder / "x.idx", target=str(folder / "y.npy"))
    assert "expected features of shape (rows, columns), got (4,)" in refusal(folder / "labels.idx1-ubyte")
    np.save(folder / "y.npy", np.ones((0, 3)))
    assert "expected at least one row" in refusal(folder / "y.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"hello, this is no array", "cannot be read"),
        (numpy_bytes(np.ones((9, 9)))[:-1], "cannot be read"),
        (numpy_bytes(np.ones((9, 9)))[:60], "cannot be read"),
        (numpy_bytes(np.ones((9, 9))) + b"x", "expected 776 bytes for shape (9, 9), got 777"),
        (numpy_bytes(np.array([[None]])), "cannot be read"),
        (archive(b"hello"), "cannot be read"),
        (
            numpy_bytes(np.ones((9, 9))).replace(b"(9, 9), }" + b" " * 10, b"(99999999999, 9), }"),
            "cannot be read",
        ),
    ],
    ids=["empty", "foreign", "short", "short header", "over-long", "objects", "zip", "lying header"],
)
def test_what_is_no_npy_is_refused(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    assert message in refusal(tmp_path / "a.npy", FileFormatError)
