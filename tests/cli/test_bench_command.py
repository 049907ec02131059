"""``fastmlp bench``: options, a whole small run, what it leaves behind, and two runs compared."""

import html.parser
import json
import re

import numpy as np
import pytest
from bench_runs import LIMITS, SMALL, made

from fastmlp.bench import contenders, measures, pictures, report, running
from fastmlp.bench.results import Case, read
from fastmlp.bench.tables import figure, header, markdown, row, sentences
from fastmlp.bench.workloads import sweep
from fastmlp.cli import bench as command
from fastmlp.plots.pictures import MissingMatplotlibError

# --- figures ---


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (51.66e-6, "s", "51.7 us"),
        (0.9996e-3, "s", "1.00 ms"),
        (9.996e-6, "s", "10.0 us"),
        (1234.0, "s", "1234 s"),
        (0.0, "s", "0 ns"),
        (3 * 2**20, "B", "3.00 MiB"),
        (512, "B", "512 B"),
    ],
)
def test_a_figure_has_three_digits_and_a_unit_that_suits_it(value, unit, text):
    assert figure(value, unit) == text


def test_bold_is_who_was_not_seen_to_be_slower_than_the_fastest():
    found = made({"numpy": 1.05e-3, "numba": 1e-3, "sklearn": 3e-3})
    best = {cells[0].text: cells[1].best for cells in (row(found, case) for case in found.cases)}
    assert best == {"fastmlp numpy": True, "fastmlp numba": True, "scikit-learn": False}
    assert sentences(found, SMALL)[0] == (
        "training step: fastmlp numba takes 1.00 ms; scikit-learn 3.00 times as long; "
        "no difference seen to fastmlp numpy"
    )


def test_who_has_too_few_samples_to_tell_is_not_bold():
    found = made({"numpy": 1.05e-3, "numba": 1e-3})
    found.cases[0].rounds = [{"train": [1.05e-3]}]
    assert [row(found, case)[1].best for case in found.cases] == [False, True]
    assert sentences(found, SMALL)[0].endswith(
        "fastmlp numba takes 1.00 ms; too few samples to tell from fastmlp numpy"
    )


def test_a_figure_is_told_with_its_spread():
    found = made({"numpy": 1e-3})
    cell = row(found, found.cases[0])[1]
    assert (cell.whole, cell.said) == ("1.00 ms ±1%", "995 us to 1.01 ms, 16 samples")


def test_what_nobody_measured_has_no_column():
    found = made({"numpy": 1e-3})
    titles = header(found)
    assert len(titles) == len(row(found, found.cases[0])) and {"peak device memory", "first call, cold"} < set(titles)
    for samples in found.cases[0].rounds:
        del samples["device"], samples["row"]
    assert [title for title in titles if title not in header(found)] == ["peak device memory"]


def test_where_a_sweep_has_another_fastest_is_told():
    workloads = sweep(SMALL, "batch", 1)
    text = markdown(made({"numpy": 5e-3, "numba": 1e-3}, workloads, sweep="batch"))
    assert (
        "- from batch 1 on: fastmlp numba trains the fastest\n- from batch 64 on: fastmlp numpy trains the fastest"
        in text
    )


# --- the page ---


class Page(html.parser.HTMLParser):
    """Collects what a page holds, and whether each tag that was opened was closed."""

    VOID = ("meta", "use", "path", "image")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.sources, self.texts, self.values = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.open += [] if tag in self.VOID else [tag]
        self.ids += [given["id"]] if "id" in given else []
        self.values += [given["data-value"]] if "data-value" in given else []
        self.sources += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_needs_nothing_else_and_says_everything(tmp_path):
    found = made({"numpy": 5e-3, "numba": 1e-3})
    found.cases.append(Case(SMALL, "jax", "JAX", "cpu", [], "not <installed>"))
    found.cases[0].label = "fastmlp <b>"
    files = report.write(found, tmp_path / "out")
    assert [f.name for f in files] == [
        "results.json",
        *("times.png", "times.svg", "roofline-cpu-float32.png", "roofline-cpu-float32.svg"),
        "report.html",
    ]
    assert all(f.stat().st_size > 1000 for f in files)
    text = files[-1].read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) > 20
    assert len(set(page.ids)) == len(page.ids)
    assert all(source.startswith("#") and source[1:] in page.ids for source in page.sources)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert set(re.findall(r"https?://[^\"' <]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for said in (
        "A & B <fast>",
        "fastmlp <b>",
        "not measured: JAX: not <installed>",
        "fastmlp bench",
        "5.00 ms",
        "abc",
    ):
        assert any(said in part for part in page.texts), said
    assert {f"{float(v):.3f}" for v in page.values if v[0].isdigit()} >= {"0.001", "0.005"}
    assert read(tmp_path / "out") == found


def test_without_matplotlib_the_page_says_how_to_have_pictures(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise MissingMatplotlibError('pictures need matplotlib, which is not installed: pip install "fastmlp[plot]"')

    monkeypatch.setattr(report, "pictures", missing)
    files = report.write(made({"numpy": 1e-3}), tmp_path)
    assert [f.name for f in files] == ["results.json", "report.html"]
    assert "pip install &quot;fastmlp[plot]&quot;" in files[-1].read_text()


def test_a_sweep_has_a_picture_of_its_own():
    found = made({"numpy": 5e-3, "numba": 1e-3}, sweep(SMALL, "batch", 1), sweep="batch")
    name, title, axes = next(pictures.pictures(found))
    assert (name, title, axes[0].get_xlabel()) == ("sweep-batch", "How times grow with batch", "batch")
    lines = {line.get_label(): line for line in axes[0].lines}
    assert list(lines) == ["fastmlp numpy", "fastmlp numba"]
    assert list(lines["fastmlp numba"].get_xdata()) == [1, 4, 16, 64, 256, 1024, 4096]
    np.testing.assert_allclose(lines["fastmlp numba"].get_ydata(), 1e3 * lines["fastmlp numba"].get_xdata(), rtol=0.01)


def test_a_roofline_has_each_measurement_below_what_the_machine_can_do():
    found = made({"numpy": 5e-3, "numba": 1e-3})
    step, prediction = pictures.roofline(found, "cpu float32")
    points = {line.get_label(): line.get_xydata()[0] for line in step.lines if len(line.get_xdata()) == 1}
    cost = found.cases[0].cost("train")
    assert points["fastmlp numba"] == pytest.approx((cost.intensity, cost.operations / 1e-3 / 1e9), rel=0.01)
    row = found.cases[0].cost("predict")
    points = {line.get_label(): line.get_xydata()[0] for line in prediction.lines if len(line.get_xdata()) == 1}
    assert points["fastmlp numpy"] == pytest.approx((row.intensity, row.operations / 5e-3 / 1e9), rel=0.01)
    assert max(max(line.get_ydata()) for line in step.lines if len(line.get_xdata()) > 2) == LIMITS["product"][0] / 1e9


# --- the command ---


def test_a_whole_small_run(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "QUICK", measures.QUICK._replace(samples=1, seconds=0.0, operations=1e5))
    options = "--units", "4,3,2", "--backends", "numpy,cupy", "--quick", "--rounds", "1", "--seed", "3", "--batch", "8"
    code, out, err = cli("bench", *options, "--out", "o")
    assert (code, err.strip()) == (0, "")  # earlier releases of rich end what they wipe out with a new line
    assert "own: 4-3-2, batch 8, adam, float32" in out
    assert "not measured: fastmlp cupy: " in out
    assert "product of large matrices" in out
    found = read(tmp_path / "o")
    assert (found.seed, found.rounds, found.command) == (3, 1, "fastmlp bench " + " ".join([*options, "--out", "o"]))
    assert found.cases[0].samples("train")
    assert found.cases[1].failure
    for name in ("report.html", "times.png", "times.svg", "roofline-cpu-float32.png"):
        assert name in out
        assert (tmp_path / "o" / name).exists()
    code, _, err = cli("bench", *options, "--out", "o")
    assert code == 1
    assert "o holds results already; choose another folder, or remove it first" in err


@pytest.fixture
def runs(monkeypatch):
    """Measure nothing; give what would have been."""
    asked = []

    def run(workloads, entrants, effort, **options):
        asked.append((workloads, entrants, effort, options))
        return made({"numpy": 1e-3}, workloads)

    monkeypatch.setattr(running, "run", run)
    return asked


def test_options_choose_what_is_measured(cli, runs, tmp_path):
    cli("bench")
    cli("bench", "--quick", "--optimizer", "sgd", "--dtype", "float64", "--backends", "numpy")
    cli("bench", "--workload", "table,gelu", "--batch", "7", "--rounds", "2", "--peers")
    cli("bench", "--workload", "viblo", "--sweep", "batch", "--seed", "5")
    first, second, third, fourth = runs
    assert [w.name for w in first[0]] == ["viblo", "keras", "hundred", "mid", "big"]
    assert {w.optimizer for w in first[0]} == {"adam"}
    assert first[2] == measures.FULL
    assert [(w.name, w.optimizer, w.dtype) for w in second[0]] == [(n, "sgd", "float64") for n in ("viblo", "mid")]
    assert second[1] == {"numpy": None}
    assert second[2] == measures.QUICK
    assert [(w.name, w.batch, w.activation) for w in third[0]] == [("table", 7, "relu"), ("gelu", 7, "gelu")]
    assert third[2] == measures.FULL._replace(rounds=2)
    assert set(contenders.PEERS) < set(third[1])
    assert [w.swept for w in fourth[0]] == [1, 4, 16, 64, 256, 1024, 4096]
    assert (fourth[3]["sweep"], fourth[3]["seed"]) == ("batch", 5)


def test_a_quick_run_of_many_leaves_out_what_was_not_named_and_says_so(cli, runs, monkeypatch):
    monkeypatch.setattr(contenders, "entrants", lambda *_: dict.fromkeys(("numpy", "numba", *contenders.PEERS)))
    said = "left out: mid: with it there would be"
    assert said in cli("bench", "--quick", "--peers")[1]
    assert said not in cli("bench", "--quick", "--peers", "--workload", "viblo,mid")[1]
    assert said not in cli("bench", "--peers")[1]
    assert [[w.name for w in run[0]] for run in runs[:2]] == [["viblo"], ["viblo", "mid"]]


def test_a_model_of_ones_own(cli, runs, tmp_path):
    import fastmlp

    fastmlp.MLP((4, 3, 2), activation="gelu", dropout=0.5, backend="numpy", seed=0).save(tmp_path / "m.safetensors")
    assert cli("bench", "--model", "m.safetensors")[0] == 0
    (workload,) = runs[0][0]
    assert (workload.units, workload.batch, workload.model) == ((4, 3, 2), 128, "m.safetensors")
    assert workload.spec().dropout == (0.0, 0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--units 3", "--units must be two or more numbers of units, such as 784,512,10; got '3'"),
        ("--units 3,x", "got '3,x'"),
        ("--units 3,0", "got '3,0'"),
        ("--units 3,2 --workload viblo", "--workload and --units: each says what to measure; leave all out but one"),
        ("--workload nosuch", "--workload must be of viblo"),
        ("--optimizer lion", "--optimizer must be 'sgd'"),
        ("--dtype float16", "dtype must be 'float32' or 'float64', got 'float16'"),
        ("--backends torch", "backends must be of numpy, numba, cupy; got 'torch'"),
        ("--sweep colour", "--sweep must be 'batch', 'width', 'depth' or 'threads'"),
        ("--sweep batch", "--sweep takes one network"),
        ("--units 3,2 --sweep batch --batch 3", "--sweep batch takes batches of its own; leave --batch out"),
        ("--units 3,2 --sweep width", "has no hidden layers"),
        ("--fail-slower 5%", "--fail-slower is an option of --compare OLD NEW and --history FILE.jsonl"),
        ("--history a.json", "--history must be a file that ends in .jsonl, got 'a.json'"),
        ("--history a.jsonl --fail-slower much", "--fail-slower must be a share such as 5% or 0.05, got 'much'"),
        ("--compare a b --history c.jsonl", "--history has no meaning beside --compare"),
        ("--compare a b --quick", "--quick has no meaning beside --compare, which measures nothing"),
        ("--compare a b --units 3,2", "--units has no meaning beside --compare"),
        ("--compare a b --fail-slower much", "--fail-slower must be a share such as 5% or 0.05, got 'much'"),
        ("--rounds 0", "'--rounds'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(cli, runs, options, said):
    code, _, err = cli("bench", *options.split())
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert not runs


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("a.txt", "error: a.txt is a file; --out names a folder\n"),
        ("a.txt/o", "error: a.txt/o: not a directory\n"),
        ("old", "error: old holds results already; choose another folder, or remove it first\n"),
    ],
)
def test_a_folder_that_cannot_take_the_results_is_refused_before_they_are_measured(cli, runs, tmp_path, out, said):
    (tmp_path / "a.txt").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").touch()
    assert cli("bench", "--quick", "--out", out) == (1, "", said)
    assert not runs


def test_a_run_that_measures_nothing_leaves_no_folder(cli, tmp_path):
    (tmp_path / "there").mkdir()
    for out in ("new/o", "there"):
        assert cli("bench", "--units", "3,2", "--backends", "torch", "--out", out)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_run_that_measures_nothing_ends_with_1(cli):
    code, out, err = cli("bench", "--units", "3,2", "--backends", "cupy", "--quick")
    assert (code, out) == (1, "")
    assert err.startswith("error: not measured: fastmlp cupy: ")


# --- two runs ---


@pytest.fixture
def two(tmp_path):
    """Write results before and after a change that makes NumPy half as fast again, and Numba 7 % slower."""
    made({"numpy": 1e-3, "numba": 1e-3, "jax": 1.0}).write(tmp_path / "old.json")
    made({"numpy": 1.5e-3, "numba": 1.07e-3}, versions={"numpy": "3"}).write(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("options", "code", "slower"),
    [
        ("", 0, "8 of 16 slower by 10%"),
        ("--fail-slower 5%", 1, "16 of 16 slower by 5%"),
        ("--fail-slower 0.6", 0, None),
    ],
)
def test_what_has_become_slower_is_told_by_the_rule(cli, two, options, code, slower):
    found, out, err = cli("bench", "--compare", "old.json", "new.json", *options.split())
    assert (found, err) == (code, "")
    assert (slower or "nothing is slower by 60%") in out
    assert "differs: numpy: 2 before, 3 now" in out
    assert "only before: small, JAX" in out


def test_a_run_compared_with_itself_has_no_difference(cli, two):
    code, out, _ = cli("bench", "--compare", "old.json", "old.json", "--fail-slower", "0.1%", "--markdown")
    assert code == 0
    assert "| small | fastmlp numpy | training step | 1.00 ms | 1.00 ms | 1.00 | no difference seen |" in out
    assert "nothing is slower" in out


def test_what_cannot_be_compared_is_an_error(cli, two, tmp_path):
    made({"sklearn": 1.0}).write(tmp_path / "other.json")
    code, _, err = cli("bench", "--compare", "old.json", "other.json")
    assert (code, err) == (
        1,
        "error: the two runs have no workload and contender in common of which both have samples\n",
    )
    (tmp_path / "damaged.json").write_text(json.dumps({"format": 1}))
    code, _, err = cli("bench", "--compare", "old.json", "damaged.json")
    assert code == 1
    assert err.startswith("error: damaged.json: expected what fastmlp bench --out has written")
    code, _, err = cli("bench", "--compare", "old.json", "none.json")
    assert (code, err) == (1, "error: none.json: no such file or directory\n")
