"""Tables as programs and people leave them: names that are numbers, indices, missing targets, encodings, widths."""

import gzip
import time
import warnings

import numpy as np
import pytest
from refused_table import refusal

from fastmlp.datasets import load_table
from fastmlp.errors import FileFormatError

DRAW = np.random.default_rng(0).random((12, 3)).round(3).tolist()


@pytest.fixture
def write(tmp_path):
    def write_bytes(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_bytes


def lines(header, rows, target=None):
    """Return a file of some first row and rows of numbers, each with a target where there are some."""
    texts = [",".join(map(str, row)) for row in rows]
    if target is not None:
        texts = [f"{text},{target(i)}" for i, text in enumerate(texts)]
    return "\n".join([header, *texts]) + "\n"


def said(path, **options):
    """Read a table that warns; give it and the warnings, without the path."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = load_table(path, **options)
    return table, [str(warning.message).removeprefix(f"{path}: ") for warning in caught]


# --- Names that are numbers -------------------------------------------------------------------------------


SPECTRA = lines("400.5,401.0,401.5,species", DRAW, lambda i: ("oak", "elm")[i % 2])
GLUCOSE = lines("400.5,401.0,401.5,glucose", DRAW, lambda i: i / 4)
PANDAS = lines("0,1,2,3", DRAW, lambda i: i % 2)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (SPECTRA, {"target": -1}),
        (SPECTRA, {"target": "3"}),
        (GLUCOSE, {"target": -1}),
        (GLUCOSE, {"target": -1, "task": "regression"}),
        (SPECTRA.replace("400.5,401.0,401.5", "4000,3998,3996"), {"target": 3}),
        (PANDAS, {"target": "3"}),
        (PANDAS, {"target": 3}),
        (PANDAS.replace(",1\n", ",oak\n").replace(",0\n", ",elm\n"), {"target": 3}),
        (PANDAS, {"target": 3, "task": "regression"}),
        (lines("0,1,2,3", DRAW, lambda i: i / 4), {"target": 3}),
        (lines("400.5,401.0,401.5", DRAW), {}),
        (lines("401.5,401.0,400.5", DRAW), {}),
        (lines("0,1,2", DRAW), {}),
        (lines("0.0,1.0,2.0", DRAW), {}),
    ],
)
def test_a_first_row_of_numbers_that_are_names_is_read_as_names_and_that_is_said(write, text, options):
    path = write(text)
    table, messages = said(path, **options)
    assert table.x.tolist() == DRAW
    assert table.feature_names == tuple(text.split("\n")[0].split(",")[:3])
    assert table.y is None or len(table.y) == len(DRAW)
    assert len(messages) == 1 and "is read as the names of the columns; header=False (--no-header)" in messages[0]
    if not any(name in text for name in ("species", "glucose")):
        assert len(load_table(path, **options, header=False).x) == 1 + len(DRAW)
    assert load_table(path, **options, header=True).x.tolist() == DRAW  # asked for: nothing is said


def test_names_from_0_are_told_above_whole_numbers_too(write):
    table, messages = said(write("0,1,2,3\n1,0,0,1\n0,1,0,0\n"), target=3)
    assert table.x.tolist() == [[1, 0, 0], [0, 1, 0]] and table.y.tolist() == [1, 0] and len(messages) == 1
    table, messages = said(write("0,1\n5.5,2\n2,3\n"))
    assert table.x.tolist() == [[5.5, 2], [2, 3]] and len(messages) == 1


@pytest.mark.parametrize(("text", "target"), [(SPECTRA, "species"), (GLUCOSE, "glucose"), (SPECTRA, "400.5")])
def test_a_target_by_name_tells_that_the_first_row_holds_names(write, text, target):
    text = text if target != "400.5" else text.replace("oak", "1").replace("elm", "2")
    table = load_table(write(text), target=target)
    assert len(table.x) == len(DRAW) and target not in table.feature_names


def test_names_of_a_model_tell_that_the_first_row_holds_names(write):
    table = load_table(write(PANDAS), feature_names=["2", "0"])
    assert table.x.tolist() == [[c, a] for a, _, c in DRAW]


def test_a_class_is_not_taken_for_the_name_of_the_target(write):
    path = write("5.1,3.5,rose\n4.9,3.0,lily\n6.0,2.5,rose\n")
    assert "got a class that is in other rows too; give the target by its index" in refusal(path, target="rose")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("0,1\n1,2\n2,3\n3,4\n", {}),
        ("0,1,2\n1,2,3\n2,3,4\n", {}),
        ("1,10,100\n2,20,200\n3,30,300\n4,40,400\n5,50,500\n", {}),
        ("1,2,3\n4,5,6\n", {}),
        ("5.1,6.2,rose\n4.9,6.0,lily\n5.0,6.1,rose\n5.2,6.0,lily\n", {"target": 2}),
        ("0\n1\n2\n", {}),
    ],
)
def test_rows_of_data_are_not_taken_for_names(write, text, options):
    assert len(load_table(write(text), **options).x) == text.count("\n")


# --- Indices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", '""', "Unnamed: 0"])
def test_an_index_without_a_name_is_left_out_and_that_is_said(write, name):
    path = write(f"{name},a,y\n0,5.5,oak\n1,4.5,elm\n")
    table, messages = said(path, target="y")
    assert table.x.tolist() == [[5.5], [4.5]] and table.feature_names == ("a",)
    assert messages == [
        "the first column has no name and is left out, as the index that pandas and R write; give it a name in the "
        "first row to learn from it"
    ]


def test_an_index_before_names_that_are_numbers_and_one_of_text_are_left_out(write):
    table, messages = said(write(",0,1,2\n0,.5,.6,.7\n1,.4,.3,.2\n"), target="2")
    assert table.x.tolist() == [[0.5, 0.6], [0.4, 0.3]] and len(messages) == 2
    table, _ = said(write('"","a"\n"Mazda",1\n"Opel",2\n'))
    assert table.x.tolist() == [[1], [2]]


def test_a_column_that_counts_the_rows_is_told(write):
    text = lines("Id,a", [[i + 1, i * i] for i in range(12)])
    _, messages = said(write(text))
    assert messages == [
        "column 'Id' counts the rows (1, 2, ...) and is learned from; remove it from the file if it is an index"
    ]
    assert said(write(text), feature_names=["Id", "a"])[1] == []


# --- Targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["NA", "null", "?", "-", "nan", "None", "N/A", "<NA>"])
@pytest.mark.parametrize("classes", ["oak elm", "1 2"])
def test_a_missing_target_is_no_class(write, sign, classes):
    a, b = classes.split()
    message = refusal(write(f"x,y\n1,{a}\n2,{sign}\n3,{b}\n"), target="y")
    assert message.startswith("line 3, column 'y': expected a") and repr(sign) in message


def test_a_missing_target_of_an_archive_is_no_class_and_a_known_class_is_one(tmp_path, write):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array(["oak", "NA"]))
    assert "got 'NA', which stands for a missing value" in refusal(tmp_path / "a.npz")
    assert load_table(write("x,y\n1,Na\n2,K\n"), target="y").class_names == ("K", "Na")  # sodium
    assert load_table(write("x,y\n1,none\n2,mild\n"), target="y").class_names == ("mild", "none")
    known = load_table(write("x,y\n1,None\n2,mild\n"), target="y", class_names=["None", "mild"])
    assert known.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        *('"1,234.50"', "$3", "2024-05-01", "12 Jan 2020", "5 %", "3.5 €", '"1.234,5"', "1_000", "(3)", "USD 3"),
        *('"May 3, 2020"', "3/4/2020", "12:30", "0x1F", "1 234"),
    ],
)
def test_numbers_and_dates_written_as_text_are_no_classes_unless_asked_for(write, text):
    path = write(f"x,y\n1,{text}\n2,{text.replace('3', '4')}\n")
    message = refusal(path, target="y")
    assert "expected numbers or classes in column 'y'" in message and "--loss softmax_cross_entropy" in message
    assert load_table(path, target="y", task="classification").class_names


def test_numbers_of_which_some_are_written_as_text_are_no_classes(write):
    path = write('x,y\n1,"1,234"\n2,900\n3,800\n4,700\n')
    assert "got '1,234': write numbers as 1234.5" in refusal(path, target="y")
    assert load_table(write("x,y\n1,$3\n2,low\n3,high\n"), target="y").class_names == ("$3", "high", "low")


WITH_UNITS = ["{} kg", "{}kg", "{} °C", "{}%", "{} km/h", "<{}", "{} ± 0.1", "Rs. {}", "{}k", "~ {}", "-{} mg"]


@pytest.mark.parametrize("form", WITH_UNITS)
def test_many_numbers_with_units_are_no_classes_unless_asked_for(write, form):
    path = write("x,y\n" + "".join(f"{i},{form.format(10.5 + i % 60)}\n" for i in range(600)))
    message = refusal(path, target="y")
    assert f"got {form.format('10.5')!r}: write numbers as 1234.5, without units" in message
    assert "--loss softmax_cross_entropy" in message
    assert len(load_table(path, target="y", task="classification").class_names) == 60


def test_a_few_numbers_with_units_are_classes_and_a_line_says_so(write, tmp_path):
    path = write("x,y\n1,10 mg\n2,20 mg\n3,5 mg\n4,5 mg\n")
    message = "the 3 different values of column 'y', such as '10 mg', are taken as classes; to learn them as values"
    with pytest.warns(UserWarning, match=message):
        assert load_table(path, target="y").class_names == ("10 mg", "20 mg", "5 mg")
    assert load_table(path, target="y", task="classification").class_names == ("10 mg", "20 mg", "5 mg")
    np.savez(tmp_path / "t.npz", x=np.eye(3), y=["10 mg", "20 mg", "5 mg"])
    with pytest.warns(UserWarning, match="the 3 different values of y, such as '10 mg'"):
        load_table(tmp_path / "t.npz")


@pytest.mark.parametrize(
    "texts", ["class_1 class_2", "1st 2nd 3rd", "12ab 3fa9 77c", "0-20 20-40 40-60", "C1 C2", "3D 2D"]
)
def test_names_with_digits_are_classes(write, texts):
    names = texts.split()
    rows = "".join(f"{i},{name}\n" for i, name in enumerate(names * 2))
    if texts == "3D 2D":  # might be three of something
        with pytest.warns(UserWarning, match="are taken as classes"):
            assert load_table(write("x,y\n" + rows), target="y").class_names == ("2D", "3D")
    else:
        assert load_table(write("x,y\n" + rows), target="y").class_names == tuple(sorted(names))


@pytest.mark.parametrize("text", ['"1,012.57"', "3.5 kg", "12%", "$3", "1 012"])
def test_a_number_with_a_unit_or_marks_between_thousands_is_refused_with_the_cure(write, text):
    cell = text.strip('"')
    cure = f"expected a number, got {cell!r}; write numbers as 1234.5, without units and without marks between"
    for column in "ab":
        path = write(f"a,b\n1,2\n{text if column == 'a' else 1},{text if column == 'b' else 1}\n")
        assert f"line 3, column '{column}': {cure}" in refusal(path, target="b", task="regression")
    assert "got '2024-05-01'; write dates as numbers, of days" in refusal(write("a,b\n2024-05-01,2\n"))


def test_a_comma_in_a_value_without_quotes_is_told(write):
    message = "line 2: expected 2 cells, got 3; a value with a comma in it needs quotes around it"
    assert refusal(write("a,b\n1,1,012.57\n")) == message


def test_a_first_row_that_may_hold_names_is_refused_with_the_cure(write):
    path = write("id,400.5,401.0,y\n1,0.1,0.2,a\n2,0.3,0.1,b\n")
    message = "line 1, column 0: expected a number, got 'id'; if that is a header row, header=True (--header) reads it"
    assert message in refusal(path, target=-1)
    assert load_table(path, target=-1, header=True).feature_names == ("id", "400.5", "401.0")


def test_a_text_for_every_row_is_no_class_unless_asked_for(write, tmp_path):
    path = write(lines("x,y", [[i * i] for i in range(30)], lambda i: f"remark {i}"))
    assert "got 30 different texts in 30 rows, such as 'remark 0'" in refusal(path, target="y")
    assert len(load_table(path, target="y", task="classification").class_names) == 30
    np.savez(tmp_path / "a.npz", x=np.ones((30, 2)), y=np.array([f"remark {i}" for i in range(30)]))
    assert "got 30 different texts in 30 rows" in refusal(tmp_path / "a.npz")


def test_whole_numbers_with_a_point_are_whole_numbers(write, tmp_path):
    table = load_table(write("x,y\n1,1.0\n2,2.0\n"), target="y")
    assert table.y.dtype == np.int64 and table.y.tolist() == [1, 2]
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([1.0, 2.0]))
    assert load_table(tmp_path / "a.npz").y.dtype == np.int64
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([1.0, 1e300]))
    assert load_table(tmp_path / "a.npz").y.tolist() == [1.0, 1e300]


# --- Ways of writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "größe,y\n1.5,a\n2.5,b\n".encode("utf-16-le"),
        "größe,y\n1.5,a\n2.5,b\n".encode("utf-16-be"),
        "größe,y\n1.5,a\n2.5,b\n".encode("utf-16"),
        "\ufeff\ufeffgröße,y\n1.5,a\n2.5,b\n".encode(),
        gzip.compress("größe,y\n1.5,a\n2.5,b\n".encode()),
        gzip.compress("größe,y\n1.5,a\n2.5,b\n".encode("utf-16")),
        "größe,y\n   \n1.5,a\n \t \n2.5,b\n  \n".encode(),
        '"größe", "y"\n"1.5", "a"\n"2.5", "b"\n'.encode(),
        '  "größe" ,  "y"\n 1.5 , "a"\n2.5,  "b" \n'.encode(),
    ],
    ids=["utf-16-le", "utf-16-be", "utf-16", "two marks", "gzip", "gzip of utf-16", "blanks", "spaces", "more spaces"],
)
def test_ways_of_saving_the_same_csv(write, content):
    table = load_table(write(content), target="y")
    assert table.x.tolist() == [[1.5], [2.5]] and table.feature_names == ("größe",)
    assert table.class_names == ("a", "b") and table.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            b"a,y\n" + b"1,rose\n" * 5000 + b"1,ros\xe9\n",
            {"target": "y"},
            r"line 5002: expected text in UTF-8, got b'\xe9'",
        ),
        (
            gzip.compress(b"a,b\n1,2\n" * 50, mtime=0)[:-9],
            {},
            "expected a whole gzip file, got a truncated or damaged one",
        ),
        (b"PK\x03\x04 and more", {}, "expected text, got a zip archive, as workbooks of Excel are"),
        ("a,y\n1,ä\n".encode("utf-16")[:-1], {"target": "y"}, "expected text in UTF-16-LE"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_the_line(write, content, options, message):
    assert message in refusal(write(content), FileFormatError, **options)


@pytest.mark.parametrize("text", ["1,5;2,5\n3,5;4,5\n", "a,b\n1,5;2\n", "a,b\n1,5;2,5\n"])
@pytest.mark.parametrize("target", [None, -1])
def test_semicolons_between_decimal_commas_are_refused_with_the_line(write, text, target):
    line = 2 if text.startswith("a") else 1
    message = refusal(write(text), target=target)
    assert message.startswith(f"line {line}: expected values separated by commas, got '5;2'; save it with commas")


def test_an_empty_cell_of_a_single_column_is_no_blank_line(write):
    assert "line 3, column 'x': expected a value, got an empty cell" in refusal(write('x\n1\n""\n3\n'))


# --- Widths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [True, False])
def test_a_wide_table_is_read_in_time_that_grows_with_its_width(write, header):
    width = 40_000
    row = ",".join(["0.5"] * width)
    names = [f"f{i}" for i in range(width)]
    path = write("".join([",".join(names) + ",y\n"] * header + [f"{row},1\n{row},0\n"]))
    start = time.perf_counter()
    table = load_table(path, target=-1)
    if header:
        load_table(path, target="y", feature_names=names[::-1])
        load_table(path, target="y", feature_names=names[:2])
    assert time.perf_counter() - start < 8  # ten times the time measured; it was half a minute and more
    assert table.x.shape == (2, width) and table.y.tolist() == [1, 0]
