"""Errors about rows of a CSV file tell the line of the file, whatever stands before and between its rows."""

import pytest

from fastmlp.datasets import load_table
from fastmlp.engine.batches import split_rows

OPTIONS = ("--target", "y", "--epochs", "1", "--hidden", "3", "--seed", "0", "--backend", "numpy")
ROWS = 60


def write(path, bad=("", ""), row=40, header=True, scale=1.0):
    """Write a table with blank lines and a cell of two lines, one number replaced; return the line of that number."""
    lines = ["a,b,note,y", ""] if header else [""]
    for i in range(ROWS):
        note = '"of two\nlines"' if i == 5 else "plain"
        cells = {"a": repr(scale * (i % 7)), "b": repr(i % 5), "note": note, "y": repr(i)}
        if i == row:
            cells[bad[0]] = bad[1]
            line = "\n".join(lines).count("\n") + 2
        lines.append(",".join(cells[name] for name in "a b note y".split()))
        lines += [""] if i % 10 == 3 else []
    if not header:
        lines = [line.replace(',"of two\nlines"', "").replace(",plain", "") for line in lines]
        line -= row > 5  # there is no cell of two lines
    path.write_text("\n".join(lines))
    return line


@pytest.fixture
def trained(cli, tmp_path):
    """The folder of a model for such tables, poisson, whose column of notes is not read."""
    write(tmp_path / "good.csv", header=False)
    text = (tmp_path / "good.csv").read_text()
    (tmp_path / "good.csv").write_text("a,b,y\n" + text)
    code, _, err = cli("train", "good.csv", *OPTIONS, "--loss", "poisson", "--out", "run")
    assert code == 0, err
    return "run"


CASES = [
    ("a", "1e39", ()),
    ("y", "1e39", ()),
    ("y", "-4.5", ("--loss", "poisson")),
    ("y", "-4.5", ("--loss", "poisson", "--validation", "0")),
    ("a", "1e30", ("--no-standardize", "--loss", "mean_squared_error")),
]


@pytest.mark.parametrize(("column", "text", "options"), CASES)
def test_an_error_about_a_row_to_train_on_tells_its_line(cli, tmp_path, column, text, options):
    parts = split_rows(ROWS, 0.2, 0, None)
    row = int(parts.train[30])
    line = write(tmp_path / "t.csv", (column, text), row, header=False)
    code, _, err = cli("train", "t.csv", *OPTIONS[2:], "--target", "2", *options, "--out", "run")
    assert code == 1
    assert f"is line {line} of {tmp_path / 't.csv'}\n" in err
    assert (tmp_path / "t.csv").read_text().split("\n")[line - 1].split(",")["a b y".split().index(column)] == text


def test_an_error_about_a_row_to_validate_with_tells_its_line(cli, tmp_path):
    row = int(split_rows(ROWS, 0.2, 0, None).held_out[5])
    line = write(tmp_path / "t.csv", ("a", "1e10"), row, header=False, scale=1e-30)
    code, _, err = cli("train", "t.csv", *OPTIONS[2:], "--target", "2", "--out", "run")
    assert code == 1
    assert "x of validation_data: row 5 of column 'x0'" in err or "x of validation_data: row 5 of column 0" in err
    assert err.endswith(f"row 5 is line {line} of {tmp_path / 't.csv'}\n")


@pytest.mark.parametrize(("command", "column", "text"), [("evaluate", "a", "1e39"), ("evaluate", "y", "-1")])
def test_an_error_of_evaluate_tells_the_line(cli, tmp_path, trained, command, column, text):
    line = write(tmp_path / "t.csv", (column, text))
    code, _, err = cli(command, trained, "t.csv", "--target", "y", "--backend", "numpy")
    assert code == 1
    assert err.endswith(f"row 40 is line {line} of t.csv\n")


def test_an_error_of_predict_tells_the_line(cli, tmp_path, trained):
    line = write(tmp_path / "t.csv", ("a", "1e39"))
    code, _, err = cli("predict", trained, "t.csv", "--backend", "numpy", "--out", "p.csv")
    assert code == 1
    assert "x: row 40 of column 'a' holds 1e+39" in err
    assert err.endswith(f"; row 40 is line {line} of t.csv\n")
    assert load_table(tmp_path / "t.csv", feature_names=["a", "b"]).x[40, 0] == 1e39
