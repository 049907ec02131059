"""Several ranks train one model, to the bits of one, whatever goes on in them; here each is a thread of the process."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from blobs import blobs
from compare import assert_close, assert_same_bits

import fastmlp
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.engine import loop
from fastmlp.engine.inference import Inference
from fastmlp.engine.sharded import ShardedSteps
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.threads import Threads
from fastmlp.parallel.tree import cut

X, Y = blobs(rows=75)
WEIGHTS = np.random.default_rng(3).uniform(0.5, 2.0, len(Y)).astype("f4")
WEIGHTS[:40:3] = 0
SHORT = {"epochs": 2, "batch_size": 16, "verbose": 0}
RUNS = {
    "sgd": ({}, {"optimizer": fastmlp.SGD(0.05)}),
    "adam, clipping, dropout, average": (
        {"dropout": (0.1, 0.3), "l2": 0.01, "max_norm": 1.5},
        {"optimizer": fastmlp.Adam(clip_norm=0.3, ema=0.9), "validation_split": 0.2},
    ),
    "weights, fewer rows than shards": (
        {"dropout": 0.2},
        {"optimizer": fastmlp.SGD(0.05, momentum=0.9), "sample_weight": WEIGHTS, "batch_size": 6},
    ),
}
runs = pytest.mark.parametrize(("network", "options"), RUNS.values(), ids=RUNS)


def network(backend="numpy", **options):
    return fastmlp.MLP((6, 8, 3), **{"backend": backend, "activation": "tanh", "seed": 1, **options})


def fitted(group, backend="numpy", made=None, x=X, y=Y, **options):
    """Return what a run leaves: weights and history, without the time that it took."""
    model = network(backend, **(made or {}))
    history = model.fit(x, y, **{**SHORT, **options}, parallel=group).history
    return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}


def assert_same_runs(found, expected):
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert_same_bits(got, wanted)
    assert found[1] == expected[1]


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in common", "by messages"])
def sums(request, monkeypatch):
    """How ranks add up what they bring; those of processes send messages where they have no memory in common."""
    if request.param == "by messages":
        monkeypatch.setattr(Threads, "common", lambda self, shape, dtype: None)
    return request.param


@runs
@pytest.mark.parametrize("where", ["numpy", "numba"])
def test_any_number_of_ranks_gives_the_same_bits(where, network, options, sums):
    expected = fitted(Alone(None), where, network, **options)
    for ranks in (2, 3, 8):
        for found in in_threads(lambda group: fitted(group, where, network, **options), ranks):
            assert_same_runs(found, expected)


@runs
def test_one_shard_is_the_run_of_one_process_to_the_bit(network, options):
    expected = fitted(None, made=network, **options)
    (found,) = in_threads(lambda group: fitted(group, made=network, **options), 1, shards=1)
    assert_same_runs(found, expected)


@runs
@pytest.mark.parametrize("where", ["numpy", "numba"])
def test_shards_differ_from_one_process_by_rounding(where, network, options):
    """Masks of dropout, the order of rows and what weights are divided by are then those of one process."""
    made = {**network, "dtype": "float64"}
    expected = fitted(None, made=made, **options)
    found, *_ = in_threads(lambda group: fitted(group, where, made, **options), 3)
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert_close(got, wanted, k=75 * 13, scale=1, c=16)
    assert found[1].keys() == expected[1].keys()
    for name, values in expected[1].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-12)


def test_sparse_inputs_are_shared_too():
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.where(X > 0, X, 0))
    expected = in_threads(lambda group: fitted(group, x=np.where(X > 0, X, 0)), 2)
    found = in_threads(lambda group: fitted(group, x=sparse), 2)
    assert_same_runs(found[1], expected[0])


def test_a_memory_map_is_read_where_it_is_needed(tmp_path):
    np.save(tmp_path / "x.npy", X)
    expected = in_threads(lambda group: fitted(group), 1)[0]
    found = in_threads(lambda group: fitted(group, x=np.load(tmp_path / "x.npy", mmap_mode="r")), 3)
    assert_same_runs(found[2], expected)


def test_weights_of_rank_0_are_everyones():
    def train(group):
        model = network()
        if group.rank:
            model.set_weights([w + group.rank for w in model.get_weights()])
        model.fit(X, Y, **SHORT, parallel=group)
        return model.get_weights()

    first, second = in_threads(train, 2)
    for a, b, expected in zip(first, second, in_threads(fitted, 1)[0][0], strict=True):
        assert_same_bits(a, expected)
        assert_same_bits(b, expected)


# --- checkpoints ----------------------------------------------------------------------------------------------------


class StopAt(fastmlp.Callback):
    """Stops after some steps."""

    def __init__(self, step):
        self.step = step

    def next_step(self, run):
        return self.step

    def on_steps(self, run):
        if run.steps_done == self.step:
            run.stop("enough")


@pytest.mark.parametrize("where", ["numpy", "numba"])  # of which the second says threads, fewer for each of several
@pytest.mark.parametrize("ranks", [1, 3, None])
def test_a_checkpoint_goes_on_to_the_same_bits_on_another_number_of_ranks(tmp_path, ranks, where):
    path = tmp_path / "run.safetensors"
    made, options = RUNS["adam, clipping, dropout, average"]
    expected = in_threads(lambda group: fitted(group, where, made, **options), 2, shards=5)[0]
    saving = [fastmlp.Checkpoint(path, every_steps=3), StopAt(3)]
    in_threads(lambda group: fitted(group, where, made, **options, callbacks=saving), 2, shards=5)

    def go_on(group):
        model = fastmlp.load(path, where)
        history = model.resume(X, Y, verbose=0, parallel=group).history
        return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}

    for found in [go_on(None)] if ranks is None else in_threads(go_on, ranks):
        assert_same_runs(found, expected)


def test_a_run_that_early_stopping_has_ended_goes_back_to_its_best_epoch_on_all_ranks(tmp_path):
    path = tmp_path / "run.safetensors"

    def callbacks():
        return [fastmlp.EarlyStopping("loss", patience=1, min_delta=9), fastmlp.Checkpoint(path)]

    expected = in_threads(lambda group: fitted(group, epochs=4, callbacks=callbacks()), 2)[0]
    assert len(expected[1]["loss"]) == 2

    def go_on(group):
        model = fastmlp.load(path, "numpy")
        history = model.resume(X, Y, verbose=0, callbacks=callbacks(), parallel=group).history
        return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}

    for found in in_threads(go_on, 3):
        assert_same_runs(found, expected)


def checkpoint_of(path, ranks=None, **options):
    callbacks = [fastmlp.Checkpoint(path), StopAt(5)]
    if ranks is None:
        fitted(None, callbacks=callbacks)
    else:
        in_threads(lambda group: fitted(group, callbacks=callbacks), ranks, **options)
    return fastmlp.load(path, "numpy")


def test_shards_are_those_of_the_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint_of(path, 2, shards=4)
    with pytest.raises(ValueError, match=r"^parallel: .* has shards=4, and goes on with as many; got 8"):
        in_threads(lambda group: fastmlp.load(path, "numpy").resume(X, Y, verbose=0, parallel=group), 2, shards=8)
    with pytest.raises(ValueError, match=r"^parallel: 5 ranks have no more than shards=4 .* give a new run more"):
        in_threads(lambda group: fastmlp.load(path, "numpy").resume(X, Y, verbose=0, parallel=group), 5)


def test_a_run_of_one_process_goes_on_in_one(tmp_path):
    path = tmp_path / "run.safetensors"
    checkpoint_of(path)
    assert b"shards" not in path.read_bytes()  # earlier versions know of none
    with pytest.raises(ValueError, match=r"^parallel: the run of .* was begun without"):
        in_threads(lambda group: fastmlp.load(path, "numpy").resume(X, Y, verbose=0, parallel=group), 2)


def test_rank_0_alone_writes(tmp_path, monkeypatch, capsys):
    written = []
    whole = loop.save_run
    monkeypatch.setattr(loop, "save_run", lambda *given: (written.append(1), whole(*given)))
    callbacks = [fastmlp.Checkpoint(tmp_path / "run.safetensors"), fastmlp.CSVLog(tmp_path / "log.csv")]
    callbacks += [Does(lambda run: run.save_checkpoint(tmp_path / "first.safetensors"))]  # of all ranks
    in_threads(lambda group: fitted(group, callbacks=callbacks, verbose=2), 3)
    assert len(written) == 3
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert capsys.readouterr().out.count("epoch 1/2") == 1


# --- what is refused ------------------------------------------------------------------------------------------------

OTHER = {
    "seed": lambda rank: {"made": {"seed": rank}},
    "network": lambda rank: {"made": {"dropout": rank / 4}},
    "dtype": lambda rank: {"made": {"dtype": ["float32", "float64"][rank]}},
    "choices of the backend": lambda rank: {"backend": ["numpy", "numba"][rank]},
    "optimizer": lambda rank: {"optimizer": fastmlp.Adam(1e-3 + rank)},
    "settings of the run": lambda rank: {"batch_size": 10 + rank},
    "shape of x": lambda rank: {"x": X[rank:], "y": Y[rank:]},
    "data": lambda rank: {"x": X + rank},
    "validation data": lambda rank: {"validation_data": (X + rank, Y)},
    "metrics": lambda rank: {"metrics": ["f1_macro"][:rank]},
    "callbacks": lambda rank: {"callbacks": [fastmlp.TimeLimit(60)][:rank]},
    "version of fastmlp": lambda rank: {},
}


@pytest.mark.parametrize(("what", "given"), OTHER.items(), ids=OTHER)
def test_ranks_that_differ_are_refused_by_name(what, given, monkeypatch):
    if what == "version of fastmlp":
        from fastmlp.engine import together

        monkeypatch.setattr(together, "__version__", OtherVersion())
    with pytest.raises(fastmlp.ParallelError, match=rf"^parallel: all ranks must have the same {what}.*; rank 1 has"):
        in_threads(lambda group: fitted(group, **given(group.rank)), 2, timeout=60)


class OtherVersion:
    """A version of its own wherever it is looked at."""

    def __eq__(self, other):
        return False

    __hash__ = object.__hash__


def test_more_ranks_than_shards_are_refused():
    with pytest.raises(ValueError, match=r"^parallel: 3 ranks have no more than shards=2 .*mpi\(shards=3\)"):
        in_threads(fitted, 3, shards=2)


def test_a_backend_whose_arrays_lie_elsewhere_is_refused():
    class Elsewhere(NumpyBackend):
        name = "elsewhere"

        def empty(self, shape, dtype):
            return memoryview(b"")

    with pytest.raises(ValueError, match=r"^parallel: nothing carries arrays of the elsewhere .*model.to\('numba'\)"):
        Elsewhere().of_rank(Alone(8))


# --- faults ---------------------------------------------------------------------------------------------------------


class Does(fastmlp.Callback):
    """Does something after the first epoch."""

    def __init__(self, what):
        self.what = what

    def on_epoch_end(self, run, figures):
        if run.epoch == 1:
            self.what(run)


def test_a_rank_that_fails_ends_the_others_with_its_error():
    ended = {}

    def train(group):
        def fail(run):
            if group.rank == 1:
                raise OSError("the disk is full")

        try:
            fitted(group, callbacks=[Does(fail)])
        except Exception as error:
            ended[group.rank] = error
            raise

    began = time.perf_counter()
    with pytest.raises(OSError, match=r"^the disk is full$"):
        in_threads(train, 3, timeout=60)
    assert time.perf_counter() - began < 30  # nobody waits for a rank that has failed
    assert sorted(ended) == [0, 1, 2]
    for rank in (0, 2):
        assert isinstance(ended[rank], fastmlp.ParallelError)
        assert str(ended[rank]) == "parallel: rank 1 has failed: the disk is full"


def test_a_rank_that_does_not_come_is_not_waited_for_longer_than_told():
    began = time.perf_counter()
    with pytest.raises(fastmlp.ParallelError, match=r"^parallel: rank 0 has waited 0.2 s for the others"):
        in_threads(lambda group: fitted(group) if group.rank == 0 else time.sleep(0.5), 2, timeout=0.2)
    assert time.perf_counter() - began < 30


def test_weights_that_change_on_one_rank_are_noticed_and_the_rank_is_named():
    def train(group):
        def spoil(run):
            if group.rank == 2:
                run.learner.state.params[0] += 1e-3

        fitted(group, callbacks=[Does(spoil)])

    message = "^parallel: the weights of rank 2 are no longer those of the others after epoch 2"
    with pytest.raises(fastmlp.ParallelError, match=message):
        in_threads(train, 3, timeout=60)


def test_a_loss_that_is_not_finite_is_told_as_by_one_process():
    made, options = {"activation": "relu"}, {"optimizer": fastmlp.SGD(1e19)}
    with pytest.raises(fastmlp.NonFiniteLossError, match="the loss is not finite in epoch 1, step") as alone:
        fitted(None, made=made, **options)
    with pytest.raises(fastmlp.NonFiniteLossError) as shared:
        in_threads(lambda group: fitted(group, made=made, **options), 3, timeout=60)
    assert str(shared.value) == str(alone.value)


def test_weights_that_overflow_are_told_by_all_ranks(tmp_path):
    ended = {}

    def train(group):
        try:
            saving = [fastmlp.Checkpoint(tmp_path / "run.safetensors")]
            fitted(
                group,
                x=1e4 * X,
                made={"activation": "relu"},
                optimizer=fastmlp.SGD(1e38),
                batch_size=75,
                callbacks=saving,
            )
        except fastmlp.NonFiniteLossError as error:
            ended[group.rank] = str(error)
            raise

    with pytest.raises(fastmlp.NonFiniteLossError):
        in_threads(train, 3, timeout=20)
    assert len(ended) == 3
    assert set(ended.values()) == {ended[0]}
    assert "are not finite in epoch" in ended[0]
    assert not (tmp_path / "run.safetensors").exists()


@pytest.mark.parametrize("rows", [3, 75])
def test_each_rank_works_out_its_part_of_the_validation(rows, monkeypatch):
    asked, original = {}, Inference.totals

    def noted(self, spec, params, data, ready=None):
        asked.setdefault(threading.current_thread(), []).append(len(data))
        return original(self, spec, params, data, ready)

    def figures(group):
        return fitted(group, validation_data=(X[:rows], Y[:rows]), epochs=1)[1]

    expected = figures(Alone(8))
    monkeypatch.setattr(Inference, "totals", noted)
    assert in_threads(figures, 3) == [expected] * 3
    parts = cut(rows, 8)
    shares = [sum(parts[shard + 1] - parts[shard] for shard in range(a, b)) for a, b in pairwise(cut(8, 3))]
    assert sorted(map(sum, asked.values())) == sorted(share for share in shares if share)
    plain = network().fit(X, Y, **{**SHORT, "epochs": 1}, validation_data=(X[:rows], Y[:rows])).history
    assert expected["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)
    assert expected["val_accuracy"] == plain["val_accuracy"]


def test_what_one_rank_stops_all_stop():
    def train(group):
        steps = []

        class Stop(fastmlp.Callback):
            def next_step(self, run):
                return 7 if group.rank == 1 else None

            def on_steps(self, run):
                steps.append(run.steps_done)
                if group.rank == 1 and run.steps_done >= 7:
                    run.stop("rank 1 has had enough")

        model = network()
        history = model.fit(X, Y, **SHORT, callbacks=[Stop()], parallel=group)
        return history.stop_reason, steps[-1]

    assert in_threads(train, 3, timeout=20) == [("rank 1 has had enough", 7)] * 3


def test_figures_are_those_of_rank_0():
    """Clocks differ, and whoever decides by a figure must decide alike."""
    first, second = in_threads(lambda group: network().fit(X, Y, **SHORT, parallel=group).history, 2)
    assert first == second


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["numpy", "numba"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_estimate_counts_what_gradients_of_shards_are_added_up_in(monkeypatch, where, ranks):
    monkeypatch.setattr(Threads, "common", lambda self, shape, dtype: None)  # in common they take less
    steps, share = {}, ShardedSteps._share_memory

    def noted(self):
        steps[self._carrier.rank] = self
        return share(self)

    monkeypatch.setattr(ShardedSteps, "_share_memory", noted)

    def told(group):
        model = network(where)
        found = model.memory_estimate(X, Y, batch_size=16, parallel=group)
        model.fit(X, Y, **{**SHORT, "epochs": 1}, parallel=group)
        return found["workspace"], model.memory_estimate(X, Y, batch_size=16)["workspace"]

    for rank, (told_here, alone) in enumerate(in_threads(told, ranks)):
        step = steps[rank]
        tree = [step._tree.sums, *step._tree._spare, step.reduction.brought, step._totals]
        if where == "numpy":
            assert told_here == alone + sum(array.nbytes for array in tree)
        else:
            shards = step._at_once.__self__
            small = {"counting", "order", "norms", "arrivals"}
            own = [array for name, array in shards._memory._asdict().items() if name not in small]
            own += [*tree, shards._spare, step._session.grads, step._session.update_scratch]
            assert told_here == sum(array.nbytes for array in own)
