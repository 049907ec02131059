"""``fastmlp.EpochTimer``: where an epoch's time goes, in a run that goes on as it would without it."""

import numpy as np
import pytest
import scipy.sparse
from test_profile import Hours, bars_of

import fastmlp
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.backends.sparse import SparseRows
from fastmlp.engine import batches, epoch_timer, loop
from fastmlp.engine.epoch_timer import KINDS, EpochTimes


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 3)), rng.integers(0, 2, 24)


def fitted(rows, callbacks, *, backend="numpy", epochs=3, **options):
    model = fastmlp.MLP((3, 5, 2), backend=backend, dropout=0.2, seed=0)
    model.fit(*rows, epochs=epochs, batch_size=8, callbacks=callbacks, verbose=0, **options)
    return model


@pytest.fixture
def hours(monkeypatch):
    return Hours(monkeypatch)


class Slow(fastmlp.Callback):
    """Takes an hour for each event of some kinds."""

    def __init__(self, hours, *events):
        for event in events:
            setattr(self, event, lambda *_: hours.pass_by(1))


@pytest.mark.parametrize("where", ["numpy", "numba"])
@pytest.mark.parametrize("validated", [False, True])
def test_each_epoch_has_a_row_and_the_run_its_bits(rows, where, validated):
    timer, options = fastmlp.EpochTimer(), {"validation_split": 0.25} if validated else {}
    model = fitted(rows, [timer], backend=where, **options)
    plain = fitted(rows, [], backend=where, **options)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert [row.epoch for row in timer.times] == [None, 1, 2, 3, None]
    for row in timer.times[1:-1]:
        assert row.training > 0 and row.evaluation > 0 and row.data > 0 and row.preparation == 0
    assert timer.times[0].preparation > 0 and timer.times[0].training == 0


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_steps", "on_epoch_end"])
@pytest.mark.parametrize("first", [True, False])
def test_the_time_of_callbacks_is_theirs_before_and_after_it_in_the_list(rows, hours, event, first):
    timer, slow = fastmlp.EpochTimer(), Slow(hours, event)
    fitted(rows, [timer, slow] if first else [slow, timer])
    epochs = [EpochTimes(epoch, callbacks=1.0) for epoch in (1, 2, 3)]
    assert timer.times == [EpochTimes(None), *epochs, EpochTimes(None)]


def test_what_callbacks_do_after_the_last_epoch_is_told_too(rows, hours):
    timer = fastmlp.EpochTimer()
    fitted(rows, [Slow(hours, "on_train_end"), timer], epochs=1)
    assert timer.times == [EpochTimes(None), EpochTimes(1), EpochTimes(None, callbacks=1.0)]


def test_the_time_of_validation_is_evaluation_and_that_of_steps_training(rows, hours):
    class Slowly(NumpyBackend):
        name = "slowly"

        def train_steps(self, *args):
            hours.pass_by(7 * len(args[4]))
            return super().train_steps(*args)

        def evaluate(self, *args):
            hours.pass_by(2)
            return super().evaluate(*args)

    timer = fastmlp.EpochTimer()
    fitted(rows, [timer], validation_data=rows, backend=Slowly())
    assert timer.times[1:-1] == [EpochTimes(epoch, evaluation=2.0, training=21.0) for epoch in (1, 2, 3)]


def test_the_time_of_rows_made_dense_and_of_orders_is_datas(rows, hours, monkeypatch):
    def slowly(owner, name, seconds):
        made = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (hours.pass_by(seconds), made(*args))[1])

    slowly(SparseRows, "fill", 2)
    slowly(batches, "epoch_order", 3)
    slowly(loop, "feed_of", 5)
    timer = fastmlp.EpochTimer()
    fitted((scipy.sparse.csr_array(rows[0]), rows[1]), [timer])
    assert timer.times[0] == EpochTimes(None, data=5.0)
    assert timer.times[1:-1] == [EpochTimes(epoch, data=5.0) for epoch in (1, 2, 3)]


def test_what_nobody_has_a_name_for_is_other(rows, hours):
    schedule = fastmlp.ReduceOnPlateau(monitor="loss")
    with pytest.MonkeyPatch.context() as patch:
        observe = type(schedule).observe
        patch.setattr(type(schedule), "observe", lambda self, *args: (hours.pass_by(4), observe(self, *args))[1])
        timer = fastmlp.EpochTimer()
        fitted(rows, [timer], optimizer=fastmlp.Adam(schedule))
    assert timer.times[1:-1] == [EpochTimes(epoch, other=4.0) for epoch in (1, 2, 3)]
    assert timer.times[1].total == 4.0


def test_epochs_in_one_call_have_equal_shares(rows):
    pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
    timer = fastmlp.EpochTimer()
    fitted(rows, [timer], backend="numba", epochs=40)
    epochs = timer.times[1:-1]
    assert [row.epoch for row in epochs] == list(range(1, 41))
    shares = [row.training for row in epochs]
    assert len(set(shares)) < 40  # the run took several at once
    assert all(share > 0 for share in shares)


def test_a_second_fit_begins_anew_and_a_resumed_run_goes_on(rows, tmp_path):
    timer, path = fastmlp.EpochTimer(), tmp_path / "c.safetensors"
    fitted(rows, [timer, fastmlp.Checkpoint(path)], epochs=2)
    fitted(rows, [timer, fastmlp.Checkpoint(path), fastmlp.EarlyStopping("loss", patience=1, min_delta=9)], epochs=5)
    assert [row.epoch for row in timer.times] == [None, 1, 2, None]
    model = fastmlp.load(path, backend="numpy")
    later = fastmlp.EpochTimer()
    model.resume(
        *rows, callbacks=[later, fastmlp.Checkpoint(path), fastmlp.EarlyStopping("loss", patience=9)], verbose=0
    )
    assert [row.epoch for row in later.times] == [None, 3, 4, 5, None]


def test_nothing_is_left_in_a_run_that_failed_either(rows):
    class Fails(fastmlp.Callback):
        def on_epoch_begin(self, run):
            self.run = run
            if run.epoch == 1:
                raise ZeroDivisionError

    timer, fails = fastmlp.EpochTimer(), Fails()
    with pytest.raises(ZeroDivisionError):
        fitted(rows, [timer, fails])
    run = fails.run
    parts = {"_feed", "_short_epochs", *(name for name, _ in epoch_timer._PARTS)}
    assert not parts & set(vars(run)) and not {"of_epoch", "of_epochs"} & set(vars(run._orders))
    assert run._told is run.callbacks
    assert [row.epoch for row in timer.times] == [None, 1, None]


def test_two_timers_are_refused_before_anything_changes(rows):
    with pytest.raises(ValueError, match="callbacks must hold one EpochTimer at most"):
        fitted(rows, [fastmlp.EpochTimer(), fastmlp.EpochTimer()])


def test_a_trace_without_a_folder_is_refused_before_the_work(rows, tmp_path):
    timer = fastmlp.EpochTimer(tmp_path / "none" / "run.json")
    with pytest.raises(FileNotFoundError, match=r"run\.json: expected a folder to write it into, found none; make it"):
        fitted(rows, [timer])
    assert timer.times == []


def test_a_trace_has_a_bar_for_each_epoch_and_its_parts_within(rows, tmp_path):
    fitted(rows, [fastmlp.EpochTimer(tmp_path / "run.json")], validation_split=0.25)
    bars, _ = bars_of(tmp_path / "run.json")
    epochs = [e for e in bars if e["name"].startswith("epoch ")]
    assert [e["name"] for e in epochs] == ["epoch 1", "epoch 2", "epoch 3"]
    for kind in ("training", "evaluation", "data"):
        for epoch in epochs:
            end = epoch["ts"] + epoch["dur"]
            inside = [
                e for e in bars if e["name"] == kind and epoch["ts"] <= e["ts"] and e["ts"] + e["dur"] <= end + 1e-3
            ]
            assert inside, (kind, epoch)


def test_the_text_has_means_the_slowest_epoch_and_the_sum():
    timer = fastmlp.EpochTimer()
    assert str(timer) == "EpochTimer: no epoch yet"
    timer.times = [
        EpochTimes(None, preparation=1.0),
        EpochTimes(1, training=2.0, other=1.0),
        EpochTimes(2, training=4.0),
        EpochTimes(None, callbacks=0.5),
    ]
    head, *lines = (line.split("  ") for line in str(timer).splitlines())
    figures = {cells[0]: [float(cell) for cell in cells[1:] if cell.strip()] for cells in lines}
    assert [cell.strip() for cell in head if cell.strip()] == ["seconds", *KINDS, "total"]
    assert figures["before"] == [0, 1, 0, 0, 0, 0, 1]
    assert figures["an epoch, mean of 2"] == [0, 0, 3, 0, 0, 0.5, 3.5]
    assert figures["slowest epoch, 2"] == [0, 0, 4, 0, 0, 0, 4]
    assert figures["all"] == [0, 1, 6, 0, 0.5, 1, 8.5]


def test_parts_of_a_run_on_a_gpu_are_ranges(rows, cupy_or_its_double):
    cupy = fastmlp.get_backend("cupy", way="eager")
    ranges = getattr(cupy._cupy, "ranges", None)
    if ranges is None:
        pytest.skip("NVTX of a GPU does not tell what was pushed")
    before = len(ranges)
    fitted(rows, [fastmlp.EpochTimer()], backend=cupy, epochs=1)
    new = ranges[before:]
    assert new.count(("push", "training")) == new.count(("pop", "training")) >= 1
    assert len(new) % 2 == 0
