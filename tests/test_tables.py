"""Tables from CSV files, and what all formats share: the numbers in the file; each fault is named with its place."""

import csv
import io
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refused_table import refusal

from fastmlp.datasets import load_table
from fastmlp.errors import FileFormatError

FLOWERS = "length,width,kind\n5.1,3.5,rose\n4.9,3.0,lily\n6.0,2.5,rose\n"


@pytest.fixture
def write(tmp_path):
    def write_text(text, name="a.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write_text


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


@pytest.mark.parametrize(
    ("texts", "names", "indices"),
    [
        ("+1 1 -1", ("-1", "1"), [1, 1, 0]),
        ("01 1 02", ("1", "2"), [0, 0, 1]),
        ("-0 0 1.0", ("0", "1"), [0, 0, 1]),
        ("1e0 1 -1 +1.", ("-1", "1"), [1, 1, 0, 1]),
        ("02 01 10", ("01", "02", "10"), [1, 0, 2]),  # codes, each spelt in one way
        ("+1 -1 +1", ("-1", "+1"), [1, 0, 1]),
        ("02134 90210 02134", ("02134", "90210"), [0, 1, 0]),
    ],
)
def test_two_spellings_of_a_number_are_one_class(write, texts, names, indices):
    path = write("a,y\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts.split())))
    table = load_table(path, target="y", task="classification")
    assert (table.class_names, table.y.tolist()) == (names, indices)
    as_numbers = load_table(path, target="y").y  # what the same texts are as numbers
    assert [int(float(names[i])) for i in table.y] == as_numbers.tolist()


def test_spellings_that_are_names_beside_words_stay_apart(write):
    assert load_table(write("a,y\n1,01\n2,1\n3,1a\n"), target="y").class_names == ("01", "1", "1a")


def test_classes_of_a_saved_model_are_found_in_any_spelling_of_their_number(write):
    path = write("a,y\n1,+1\n2,1\n3,2.0\n4,02\n")
    for names in (("1", "2"), ("01", "02"), ("+1", "2")):
        assert load_table(path, target="y", class_names=names).y.tolist() == [0, 0, 1, 1]
    names = ("+1", "1", "2")  # of a model of before, for which these were two classes
    assert "expected one of the classes '+1', '1', '2', got '02'" in refusal(path, target="y", class_names=names)
    assert load_table(write("a,y\n1,+1\n2,1\n3,2\n"), target="y", class_names=names).y.tolist() == [0, 1, 2]


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
@pytest.mark.filterwarnings("ignore:.*are taken as classes")  # such as k0 and k1, which may be numbers with a unit
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
        (
            "5,1,3,label\n1,2,3,7\n3,4,5,8\n",
            {"target": 3},
            "in the first row and only there; if that is a header row, header=",
        ),
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
