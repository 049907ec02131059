"""``fastmlp bench --history``: a line a run, whole or not there; a run beside the former ones of its machine."""

import json
import os
import threading
from dataclasses import replace

import pytest
from bench_runs import SMALL, made

from fastmlp.bench import history, running
from fastmlp.bench.comparing import compare_with_former
from fastmlp.bench.history import append, read, record_of, typical
from fastmlp.bench.verdicts import FASTER, NONE, SLOWER, Summary, beside_usual
from fastmlp.bench.workloads import sweep
from fastmlp.errors import DataError, FileFormatError

HERE = {"processor": "a", "cores": "2", "memory": "4 GiB", "GPU": "none", "system": "Linux 1"}


def run(seconds, day="1", **changes):
    changes = {"machine": HERE, "made": f"2026-01-0{day}", **changes}
    return made({"numpy": seconds, "numba": 1e-3}, **changes)


def words(found):
    return {(c.label, c.measure): c.word for c in found.changes}


def test_a_run_is_the_same_when_read_again_and_tells_medians_and_spreads(tmp_path):
    file = tmp_path / "h.jsonl"
    first, second = run(1e-3), run(2e-3, "2", workloads=sweep(SMALL, "batch", 1), sweep="batch")
    for results in (first, second):
        append(file, record_of(results))
    assert read(file) == [record_of(first), record_of(second)]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["made"] for line in lines] == ["2026-01-01", "2026-01-02"]
    (numpy,) = (f for f in lines[0]["figures"] if f["contender"] == "numpy")
    summary = first.cases[0].summary("train")
    assert numpy["measures"]["train"] == {
        "median": summary.median,
        "low": summary.low,
        "high": summary.high,
        "samples": 16,
    }
    assert (lines[0]["commit"], lines[0]["machine"], lines[0]["versions"]) == ("abc", HERE, {"numpy": "2"})
    assert len(lines[1]["figures"]) == 14


def test_who_measured_nothing_is_in_no_line():
    results = run(1e-3)
    results.cases[0].rounds, results.cases[0].failure = [], "it is broken"
    assert [figure.contender for figure in record_of(results).figures] == ["numba"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n", "line 1: expected a run of the format 'fastmlp bench history 1', got None; name another file"),
        ('{"format": 7}\n', "line 1: expected a run of the format 'fastmlp bench history 1', got 7"),
        ("GOOD\n[]\n", "line 2: expected a run of the format .*, got None"),
        (
            "GOOD\nGO",
            "line 2: expected a run as fastmlp bench --history writes it, got something else .JSONDecodeError",
        ),
        ('{"format": "fastmlp bench history 1", "figures": []}\n', "line 1: expected a run as .*TypeError"),
        ('{"format": "fastmlp bench history 1", "figures": [{}]}\n', "line 1: expected a run as .*TypeError"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_not_touched(cli, tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(running, "run", None)  # before anything is measured
    file, good = tmp_path / "h.jsonl", record_of(run(1e-3)).line().decode().strip()
    file.write_text(text.replace("GOOD", good))
    before = file.read_bytes()
    with pytest.raises(FileFormatError, match=said):
        append(file, record_of(run(1e-3)))
    code, _, err = cli("bench", "--history", "h.jsonl")
    assert code == 1 and err.startswith("error: h.jsonl, line ")
    assert file.read_bytes() == before


def test_a_line_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    file = tmp_path / "h.jsonl"
    append(file, record_of(run(1e-3)))
    before = file.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(history.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            append(file, record_of(run(2e-3)))
    assert file.read_bytes() == before


def test_runs_that_end_at_the_same_time_are_all_there(tmp_path):
    file = tmp_path / "h.jsonl"
    records = [record_of(run(1e-3, made=str(i))) for i in range(8)]
    threads = [threading.Thread(target=append, args=(file, record)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.made for record in read(file)} == set(map(str, range(8)))


def test_a_last_line_without_its_end_is_ended_first(tmp_path):
    file = tmp_path / "h.jsonl"
    file.write_bytes(record_of(run(1e-3)).line().rstrip())  # as an editor may leave it
    append(file, record_of(run(2e-3)))
    assert len(read(file)) == 2


def test_what_is_usual_are_the_medians_of_the_medians():
    key = SMALL, "numpy", "train"
    runs, within = typical([record_of(run(seconds)) for seconds in (1.0, 4.0, 2.0)])[key]
    assert (runs.median, runs.low, runs.high, runs.samples) == pytest.approx((2.0, 1.5, 3.0, 3))
    assert within == pytest.approx((2.0, 1.99, 2.01, 48), rel=1e-2)


@pytest.mark.parametrize(
    ("now", "runs", "word"),
    [
        ((2.0, 1.9, 2.1), (1.0, 0.9, 1.1), SLOWER),
        ((0.5, 0.4, 0.6), (1.0, 0.9, 1.1), FASTER),
        ((1.05, 1.04, 1.06), (1.0, 0.99, 1.01), NONE),  # less than the factor
        ((2.0, 0.9, 2.1), (1.0, 0.9, 1.1), NONE),  # its own samples reach down to what is usual
        ((2.0, 1.9, 2.1), (1.0, 0.9, 2.5), NONE),  # former runs differed by as much
        ((0.5, 0.4, 0.99), (1.0, 0.9, 1.1), NONE),
        ((0.5, 0.4, 0.6), (1.0, 0.4, 1.1), NONE),
    ],
)
def test_a_run_is_slower_by_a_factor_and_beyond_what_is_usual(now, runs, word):
    assert beside_usual(Summary(*now, 9), Summary(*runs, 9), Summary(1.0, 0.98, 1.02, 9)) == word


def test_only_former_runs_of_the_same_machine_count():
    former = [record_of(run(1e-3, str(day), machine={**HERE, "system": f"Linux {day}"})) for day in range(1, 4)]
    others = [record_of(run(9e-3, machine={**HERE, name: "other"})) for name in history.MACHINE]
    latest = record_of(run(1.5e-3, "9", versions={"numpy": "3"}))
    found = compare_with_former([*former, *others, latest], latest, 1.1)
    assert words(found) == {
        (f"fastmlp {name}", measure): word
        for name, word in (("numpy", SLOWER), ("numba", NONE))
        for measure in latest.figures[0].measures
    }
    assert found.notes == [
        "before: the medians of 3 runs on this machine, from 2026-01-01 to 2026-01-03",
        "differs: system: Linux 3 before, Linux 1 now",
        "differs: numpy: 2 before, 3 now",
    ]
    with pytest.raises(
        DataError, match=r"none of the 5 runs of the history is another one on this machine: processor a"
    ):
        compare_with_former([*others, latest], latest, 1.1)
    with pytest.raises(DataError, match="no workload and contender in common with the former ones"):
        compare_with_former([record_of(run(1.0, workloads=(replace(SMALL, batch=9),)))], latest, 1.1)


def test_a_scheduled_run_appends_and_fails_where_it_is_slower(cli, tmp_path, monkeypatch):
    days = iter([run(1e-3, "1"), run(1.01e-3, "2"), run(1.5e-3, "3"), run(1.07e-3, "4")])
    monkeypatch.setattr(running, "run", lambda *_, **__: next(days))
    asked = "bench", "--history", "h.jsonl", "--fail-slower"
    code, out, err = cli(*asked, "10%")
    assert (code, err) == (0, "") and out.endswith("h.jsonl: the first run on this machine\n")
    code, out, _ = cli(*asked, "10%")
    assert code == 0 and "before: the medians of 1 runs" in out and "nothing is slower by 10%" in out
    code, out, _ = cli(*asked, "10%")
    assert code == 1 and "8 of 16 slower by 10%" in out
    code, out, _ = cli("bench", "--history", "h.jsonl", "--markdown")  # nothing is said of failing
    assert (
        code == 0 and "| small | fastmlp numpy | training step | 1.01 ms | 1.07 ms | 1.06 | no difference seen |" in out
    )
    assert [record.made[-1] for record in read(tmp_path / "h.jsonl")] == ["1", "2", "3", "4"]


def test_histories_and_results_are_compared_in_any_order(cli, tmp_path):
    for day, seconds in enumerate((1e-3, 1e-3, 2e-3), start=1):
        append(tmp_path / "h.jsonl", record_of(run(seconds, str(day))))
    run(3e-3, "4").write(tmp_path / "new.json")
    for options, code, said in (
        ("h.jsonl h.jsonl", 1, "1.00 ms | 2.00 ms | 2.00 | slower"),  # the last one against the others
        ("h.jsonl new.json", 1, "1.00 ms | 3.00 ms | 3.00 | slower"),
        ("new.json h.jsonl", 0, "3.00 ms | 2.00 ms | 0.67 | faster"),
    ):
        found, out, err = cli("bench", "--compare", *options.split(), "--fail-slower", "5%", "--markdown")
        assert (found, err) == (code, "")
        assert f"| small | fastmlp numpy | training step | {said} |" in out
    (tmp_path / "empty.jsonl").touch()
    code, _, err = cli("bench", "--compare", "h.jsonl", "empty.jsonl")
    assert (code, err) == (1, "error: empty.jsonl: expected a history with a run, got an empty one\n")


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(cli, monkeypatch):
    monkeypatch.setattr(running, "run", None)
    code, _, err = cli("bench", "--history", os.path.join("nowhere", "h.jsonl"))
    assert code == 1 and "expected a folder to write it into, found none" in err
