"""Tables: each format gives the numbers that are in the file, and each fault is named with its place."""

import csv
import io
import re
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastmlp.datasets import load_table, write_idx
from fastmlp.errors import DataError, FileFormatError

FLOWERS = "length,width,kind\n5.1,3.5,rose\n4.9,3.0,lily\n6.0,2.5,rose\n"


@pytest.fixture
def write(tmp_path):
    def write_text(text, name="a.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write_text


def refusal(path, error=DataError, **options):
    with pytest.raises(error) as caught:
        load_table(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


# --- CSV: what is read ------------------------------------------------------------------------------------


def test_text_targets_become_indices_of_the_sorted_classes(write):
    table = load_table(write(FLOWERS), target="kind")
    assert table.x.dtype == np.float64 and table.x.flags.c_contiguous
    assert table.x.tolist() == [[5.1, 3.5], [4.9, 3.0], [6.0, 2.5]]
    assert table.y.dtype == np.int64 and table.y.tolist() == [1, 0, 1]
    assert table.feature_names == ("length", "width")
    assert table.class_names == ("lily", "rose")


def test_without_a_target_every_column_is_a_feature(write):
    table = load_table(write("a,b\n1,2\n3,4\n"))
    assert table.x.tolist() == [[1, 2], [3, 4]]
    assert table.y is None and table.class_names is None
    assert table.feature_names == ("a", "b")


@pytest.mark.parametrize(
    "target", [1, "1", -2, "-2", "b"], ids=["index", "index as text", "negative", "negative as text", "name"]
)
def test_a_target_in_the_middle_is_cut_out(write, target):
    table = load_table(write("a,b,c\n1,7,2\n3,8,4\n"), target=target)
    assert table.x.tolist() == [[1, 2], [3, 4]] and table.x.flags.c_contiguous
    assert table.y.tolist() == [7, 8]
    assert table.feature_names == ("a", "c")


@pytest.mark.parametrize("target", [2, "2", -1])
def test_a_file_without_a_header_row_may_have_text_targets(write, target):
    table = load_table(write("5.1,3.5,rose\n4.9,3.0,lily\n"), target=target)
    assert table.x.tolist() == [[5.1, 3.5], [4.9, 3.0]]
    assert table.feature_names == ("x0", "x1")
    assert table.class_names == ("lily", "rose") and table.y.tolist() == [1, 0]


def test_column_names_may_be_whole_numbers_beside_text(write):
    path = write("label,0,1\n5,10,20\n3,30,40\n")
    table = load_table(path, target="label")
    assert table.feature_names == ("0", "1") and table.y.tolist() == [5, 3]
    assert load_table(path, target="1").y.tolist() == [20, 40]  # a name first, an index only then
    assert load_table(path).x.shape == (2, 3)


def test_whole_numbers_stay_what_they_are_unless_a_task_is_given(write):
    path = write("a,y\n1,7\n2,3\n3,10\n4,7\n")
    table = load_table(path, target="y")
    assert table.y.dtype == np.int64 and table.y.tolist() == [7, 3, 10, 7] and table.class_names is None
    table = load_table(path, target="y", task="regression")
    assert table.y.dtype == np.float64 and table.y.tolist() == [7, 3, 10, 7] and table.class_names is None
    table = load_table(path, target="y", task="classification")
    assert table.class_names == ("3", "7", "10") and table.y.tolist() == [1, 0, 2, 1]


def test_other_numbers_are_values(write):
    table = load_table(write("a,y\n1,0.5\n2,3\n3,-1e3\n"), target="y")
    assert table.y.dtype == np.float64 and table.y.tolist() == [0.5, 3, -1000]


def test_whole_numbers_with_a_point_can_be_classes(write):
    table = load_table(write("a,y\n1,2.0\n2,1.0\n"), target="y", task="classification")
    assert table.class_names == ("1", "2") and table.y.tolist() == [1, 0]


def test_classes_may_mix_digits_and_letters(write):
    table = load_table(write("a,y\n1,7\n2,A\n3,B\n"), target="y")
    assert table.class_names == ("7", "A", "B") and table.y.tolist() == [0, 1, 2]


def test_classes_of_a_saved_model_keep_their_indices(write):
    names = ("tulip", "rose", "lily")
    table = load_table(write(FLOWERS), target="kind", class_names=names)
    assert table.class_names == names and table.y.tolist() == [1, 2, 1]
    table = load_table(write("a,y\n1,9\n2,7\n"), target="y", class_names=("7", "8", "9"))
    assert table.y.tolist() == [2, 0]


def test_features_of_a_saved_model_are_found_by_name_in_its_order(write):
    path = write("id,width,kind,length\nA-1,3.5,rose,5.1\nA-2,,lily,4.9\n".replace(",,", ",3.0,"))
    table = load_table(path, feature_names=["length", "width"])
    assert table.x.tolist() == [[5.1, 3.5], [4.9, 3.0]] and table.x.flags.c_contiguous
    assert table.feature_names == ("length", "width") and table.y is None
    table = load_table(path, feature_names=["width"], target="kind")
    assert table.x.tolist() == [[3.5], [3.0]] and table.class_names == ("lily", "rose")


def test_features_of_a_file_without_names_are_counted_only(write):
    table = load_table(write("1,2\n3,4\n"), feature_names=["length", "width"])
    assert table.feature_names == ("length", "width")
    assert "expected 3 features, got 2" in refusal(write("1,2\n3,4\n"), feature_names=["a", "b", "c"])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + FLOWERS,
        FLOWERS.replace("\n", "\r\n"),
        FLOWERS + "\n\n",
        "\n" + FLOWERS.replace("\n", "\n\n"),
        FLOWERS.rstrip("\n"),
        FLOWERS.replace(",", " , "),
        FLOWERS.replace("rose", '"rose"').replace("5.1", '"5.1"').replace("width", '"width"'),
    ],
    ids=["byte order mark", "CRLF", "blank end", "blank lines", "no last line end", "spaces", "quotes"],
)
def test_ways_of_writing_the_same_csv(write, text):
    table = load_table(write(text), target="kind")
    assert table.x.tolist() == [[5.1, 3.5], [4.9, 3.0], [6.0, 2.5]]
    assert table.feature_names == ("length", "width")
    assert table.class_names == ("lily", "rose") and table.y.tolist() == [1, 0, 1]


def test_quoted_names_and_classes_may_hold_commas_quotes_and_line_ends(write):
    text = '"a\nb","c, d","y ""z"""\n1,2,"rose, red"\n3,4,"the ""other"""\n'
    table = load_table(write(text), target='y "z"')
    assert table.feature_names == ("a\nb", "c, d")
    assert table.x.tolist() == [[1, 2], [3, 4]]
    assert table.class_names == ("rose, red", 'the "other"')


@given(
    x=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
        elements=st.floats(allow_nan=False, allow_infinity=False),
    ),
    data=st.data(),
)
def test_csv_round_trip_to_the_last_bit(tmp_path_factory, x, data):
    rows, columns = x.shape
    label = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1)
    labels = data.draw(st.lists(label.map("k".__add__), min_size=rows, max_size=rows))
    at = data.draw(st.integers(0, columns))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = [f"f{column}" for column in range(columns)]
    writer.writerow([*names[:at], "target", *names[at:]])
    for values, name in zip(x.tolist(), labels, strict=True):
        writer.writerow([*values[:at], name, *values[at:]])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    table = load_table(path, target="target")
    assert table.x.tobytes() == x.tobytes()
    assert table.feature_names == tuple(names)
    assert [table.class_names[index] for index in table.y] == labels
    assert table.class_names == tuple(sorted(set(labels)))


def test_a_large_csv_is_read_fast(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 785))
    rows = "\n".join(",".join(map(str, row)) for row in pixels.tolist())
    (tmp_path / "a.csv").write_text(rows)
    start = time.perf_counter()
    table = load_table(tmp_path / "a.csv", target=0)
    assert time.perf_counter() - start < 5  # 20 times the time measured on an ordinary processor
    assert np.array_equal(table.x, pixels[:, 1:]) and np.array_equal(table.y, pixels[:, 0])


# --- CSV: what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "expected rows of numbers, got an empty file"),
        ("\ufeff\n\n", {}, "expected rows of numbers, got an empty file"),
        ("a,b\n", {}, "expected rows of numbers, got a header row only"),
        ("a,b\n\n", {"target": "b"}, "expected rows of numbers, got a header row only"),
        ("a,b\n1,2\n3\n", {}, "line 3: expected 2 cells, got 1"),
        ("a,b\n1,2\n3,4,5\n", {}, "line 3: expected 2 cells, got 3"),
        ("a,b\n1,2,3\n4,5,6\n", {}, "line 2: expected 2 cells, got 3"),
        ("a,b,c\n1,2\n3,4\n", {"target": "c"}, "line 2: expected 3 cells, got 2"),
        ("a,b\n1,2\n3,4,5\n", {"feature_names": ["a"]}, "line 3: expected 2 cells, got 3"),
        ("a,b\n1,2\n\n3,x y\n", {}, "line 4, column 'b': expected a number, got 'x y'"),
        ("1,2\n3,?\n", {}, "line 2, column 1: expected a number, got '?'"),
        ("1,?\n3,4\n", {}, "line 1, column 1: expected a number, got '?'"),
        ("5.1,rose\n4,5\n", {}, "line 1, column 1: expected a number, got 'rose'"),
        ("a,b\n1,1_000\n", {}, "line 2, column 'b': expected a number, got '1_000'"),
        ("a,b\n1,0x10\n", {}, "line 2, column 'b': expected a number, got '0x10'"),
        (f"a,b\n1,{'z' * 99}\n", {}, f"expected a number, got '{'z' * 37}...'"),
        ("a,b\n1,\n", {}, "line 2, column 'b': expected a value, got an empty cell"),
        ("1,,3\n4,5,6\n", {}, "line 1, column 1: expected a value, got an empty cell"),
        ("a,y\n1,rose\n2, \n", {"target": "y"}, "line 3, column 'y': expected a value, got an empty cell"),
        ("a,b\n1,2\n3,nan\n", {}, "line 3, column 'b': expected a finite number, got 'nan'"),
        ("a,b\n-inf,2\n", {}, "line 2, column 'a': expected a finite number, got '-inf'"),
        ("a,b\n1e999,2\n", {}, "line 2, column 'a': expected a finite number, got '1e999'"),
        ("a,y\n1,2.5\n2,NaN\n", {"target": "y"}, "line 3, column 'y': expected a finite number, got 'NaN'"),
        ("a,y\n1,2.5\n2,N/A\n", {"target": "y"}, "line 3, column 'y': expected a number, got 'N/A'"),
        (
            "a,y\n1,2\n2,b\n",
            {"target": "y", "task": "regression"},
            "line 3, column 'y': expected a number, got 'b'",
        ),
        ("a,y\n1,2\n2,inf\n", {"target": "y", "task": "regression"}, "line 3, column 'y': expected a finite"),
        ("a,y\n1,2\n2,\n", {"target": "y", "task": "regression"}, "line 3, column 'y': expected a value"),
        (
            "a,y\n1,2.5\n",
            {"target": "y", "task": "classification"},
            "text or whole numbers, got '2.5'; is it",
        ),
        (FLOWERS, {"target": "sort"}, "a target column 'sort', got the columns 'length', 'width', 'kind'"),
        (FLOWERS, {"target": 3}, "expected a target among 3 columns, got column 3"),
        (FLOWERS, {"target": "-4"}, "expected a target among 3 columns, got column -4"),
        ("1,2\n3,4\n", {"target": "y"}, "a target column 'y', got no header row; give its index from 0"),
        ("y\n1\n2\n", {"target": "y"}, "expected a column of features beside the target"),
        ("a,b,a\n1,2,3\n", {}, "expected column names that differ, got 'a' more than once"),
        ("a;b\n1;2\n", {}, "expected values separated by commas, got 'a;b'; save it with commas"),
        ("1\t2\n3\t4\n", {}, "expected values separated by commas, got '1\\t2'"),
        ("0,1,label\n1,2,7\n3,4,8\n", {"target": 2}, "if that is a header row, give the target by its name"),
        (
            FLOWERS,
            {"feature_names": ["width", "depth"]},
            "expected the columns 'width', 'depth', got no 'depth'",
        ),
        (FLOWERS, {"feature_names": ["depth"]}, "the file has 'length', 'width', 'kind'"),
        (
            FLOWERS,
            {"target": "kind", "class_names": ["rose", "tulip"]},
            "classes 'rose', 'tulip', got 'lily'",
        ),
        (
            'a,y\n1,"rose\n2,lily\n',
            {"target": "y"},
            "got several lines, 'rose\\n2,lily'; is a quote not closed?",
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_the_place(write, text, options, message):
    assert message in refusal(write(text), **options)


def test_csv_in_another_encoding_is_refused(write):
    path = write("größe,b\n1,2\n", encoding="latin-1")
    assert "expected text in UTF-8, got b'\\xf6'; save the file as UTF-8" in refusal(path, FileFormatError)
    late = write("a,y\n" + "1,rose\n" * 5000 + "1,ros\xe9\n", encoding="latin-1")
    assert "expected text in UTF-8, got b'\\xe9" in refusal(late, FileFormatError, target="y")


def test_a_csv_cell_without_end_is_refused(write):
    path = write('a,b\n1,2\n3,"' + "x" * 200_000)
    assert "line 3: expected comma-separated values, got field larger than" in refusal(path, FileFormatError)


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
    ],
    ids=["values", "booleans", "text", "one-hot"],
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


def test_an_npz_beyond_the_memory_is_refused(tmp_path):
    lie = numpy_bytes(np.ones((9, 9))).replace(b"(9, 9), }" + b" " * 12, b"(9999999999999, 9), }")
    (tmp_path / "a.npz").write_bytes(archive(lie))
    message = refusal(tmp_path / "a.npz")
    assert re.match("expected arrays that fit into memory, got .*; save x as .npy, which stays on", message)


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
    monkeypatch.setattr("fastmlp.datasets.tables._SCAN", 64)
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


# --- All formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.npy", "a.idx", "a-ubyte.gz", "A.CSV"])
def test_a_missing_file_is_the_usual_error(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        load_table(tmp_path / name)


def test_an_unknown_ending_is_refused_with_the_known_ones(write):
    message = refusal(write("1,2\n", "a.xlsx"), FileFormatError)
    assert re.match(r"expected a name that ends in .csv, .npz, .npy, .idx or -ubyte .*, got 'a.xlsx'", message)


def test_a_table_is_frozen_and_compares_by_identity(write):
    table = load_table(write("1,2\n"))
    with pytest.raises(AttributeError):
        table.x = None
    assert table == table and table != load_table(write("1,2\n"))
