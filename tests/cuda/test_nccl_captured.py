"""Steps of several ranks as CUDA graphs: the bits that they give, who moves what, when, and on which stream."""

import cupy_double as cp
import cupy_nccl
import cupy_streams
import numpy as np
import pytest
from emulator import needs_emulator
from gpu_ranks import ALL, EAGER, SHORT, X, Y, by_ranks, fitted, network, same_runs, unproven

import fastmlp
from fastmlp.backends.cuda import choice, nccl, shards
from fastmlp.backends.cuda.capture import Branch
from fastmlp.errors import KernelError
from fastmlp.network.layout import layout_of
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.tree import cut

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double", "gpu_each")]
MADE, OPTIONS = ALL
CAPTURED = {**MADE, "way": "captured"}
ONE_EPOCH = {**OPTIONS, "epochs": 1}


@pytest.fixture(autouse=True)
def without_a_proof(monkeypatch):
    unproven(monkeypatch)


@pytest.fixture
def small_pieces(monkeypatch):
    """Let the gradients of each layer be worth a call of their own."""
    monkeypatch.setattr(shards, "PIECE", 1)


@pytest.fixture
def no_padding(monkeypatch):
    """Let parameters lie right behind each other, so that the biases of an output are fewer than ranks."""
    layout_of.cache_clear()
    monkeypatch.setattr("fastmlp.network.layout.ALIGNMENT", 8)
    yield
    layout_of.cache_clear()


@pytest.fixture
def full_again():
    """Give the device its memory back."""
    kept = cp.capacity[0]
    yield
    cp.capacity[0] = kept


@pytest.fixture
def graphs(monkeypatch):
    """Return what was captured, as the parts of each graph; of the graph itself nothing is kept."""
    found, end = [], cupy_streams.Stream.end_capture

    def ended(stream):
        graph = end(stream)
        found.append(list(graph._parts))
        return graph

    monkeypatch.setattr(cupy_streams.Stream, "end_capture", ended)
    return found


# --- bits -----------------------------------------------------------------------------------------------------------


def test_pieces_of_any_size_give_the_same_bits_and_so_do_the_kernels_one_by_one(small_pieces, monkeypatch):
    (expected,) = by_ranks(1, MADE, ONE_EPOCH)
    assert len(cupy_nccl.captures[-1][2]) == 1
    assert same_runs(fitted(Alone(8), CAPTURED, **ONE_EPOCH), expected)
    assert all(same_runs(found, expected) for found in by_ranks(3, CAPTURED, ONE_EPOCH))
    monkeypatch.setattr(shards, "PIECE", 2**30)
    assert all(same_runs(found, expected) for found in by_ranks(2, MADE, ONE_EPOCH))
    cupy_nccl.captures.clear()
    cupy_nccl.version[0] = nccl.CAPTURED_FROM - 1
    assert all(same_runs(found, expected) for found in by_ranks(2, MADE, ONE_EPOCH))
    assert not cupy_nccl.captures
    assert not same_runs(by_ranks(1, EAGER[0], ONE_EPOCH)[0], expected)  # whose products are cuBLAS's


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1, 2)], ids=str)
def test_layers_that_do_not_train_stay_as_they_are(small_pieces, frozen):
    def trained(group, way):
        model = fastmlp.MLP((6, 5, 4, 3), backend=network(way).backend, activation="tanh", seed=1)
        for layer in frozen:
            model.freeze(layer)
        before = model.get_weights()
        model.fit(X, Y, epochs=1, batch_size=8, verbose=0, parallel=group)
        return before, model.get_weights()

    (_, expected), *_ = in_threads(lambda group: trained(group, "eager"), 1)
    for before, after in in_threads(lambda group: trained(group, "captured"), 2):
        for place, (old, new, wanted) in enumerate(zip(before, after, expected, strict=True)):
            assert np.array_equal(old, new) == (place // 2 in frozen)
            np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6)


def test_a_batch_that_weighs_nothing_is_no_step():
    weights = np.where(np.arange(len(Y)) < 8, 0.0, 1.0)
    options = {**ONE_EPOCH, "shuffle": False, "sample_weight": weights}
    expected = fitted(Alone(8), EAGER[0], **options)
    found = by_ranks(2, CAPTURED, options)[1]
    for got, wanted in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-5)


def test_more_ranks_than_a_piece_has_columns_and_one_shard_for_each_of_them_give_the_same_bits(no_padding, monkeypatch):
    made = {"way": "captured", "dtype": "float64"}
    monkeypatch.setattr(shards, "PIECE", 1)

    def trained(group):
        where = network(**made).backend
        model = fastmlp.MLP((6, 1, 1), backend=where, dtype="float64", loss="mean_squared_error", seed=1)
        model.fit(X, Y[:, None] * 1.0, epochs=1, batch_size=21, verbose=0, parallel=group)
        return b"".join(w.tobytes() for w in model.get_weights())

    expected = trained(Alone(3))
    assert in_threads(trained, 3, shards=3) == [expected] * 3
    assert trained(Alone(1)) != expected


def test_one_shard_is_a_batch_of_one_process():
    expected = fitted(None, CAPTURED, **ONE_EPOCH)
    assert same_runs(fitted(Alone(1), CAPTURED, **ONE_EPOCH), expected)


def test_a_rank_without_rows_of_a_short_batch_takes_its_part_of_the_sums():
    options = {
        **ONE_EPOCH,
        "x": X[:10],
        "y": Y[:10],
    }  # two rows in the last batch, of which ranks 1 and 2 have one each
    expected = by_ranks(1, CAPTURED, options)[0]
    assert all(same_runs(found, expected) for found in by_ranks(3, CAPTURED, options))


def test_functions_of_a_users_own_are_composed_as_before():
    fastmlp.register_activation("cube_of_ranks", lambda z: (z**3, 3 * z**2))
    made = {"activation": "cube_of_ranks", "dtype": "float64"}
    options = {"epochs": 1, "optimizer": fastmlp.SGD(0.01)}
    found = by_ranks(2, {**made, "way": "captured"}, options)[0]
    assert not cupy_nccl.captures
    expected = fitted(Alone(8), {**made, "backend": "numpy"}, **options)
    for got, wanted in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_steps_that_are_made_anew_by_one_rank_are_by_all_and_keep_no_graphs(monkeypatch):
    expected, found = by_ranks(1, CAPTURED, OPTIONS)[0], []
    fits = shards.ShardedStep.fits
    monkeypatch.setattr(shards.ShardedStep, "fits", lambda self, *of: fits(self, *of) and self._carrier.rank == 0)

    class Look(fastmlp.Callback):
        def on_steps(self, run):
            found.extend(len(communicator._graphs) for communicator in list(cupy_nccl.alive))

    cupy_nccl.captures.clear()
    assert all(same_runs(one, expected) for one in by_ranks(2, CAPTURED, {**OPTIONS, "callbacks": [Look()]}))
    assert max(found) == 2  # of whole batches, and of a short one
    first, second = ([capture[1] for capture in cupy_nccl.captures if capture[0] == rank] for rank in range(2))
    assert first == second
    assert len(first) >= 2 * 2 * 3  # epochs, graphs, and what each of these exchanges


def test_long_graphs_give_the_bits_of_short_ones(monkeypatch):
    options = {**ONE_EPOCH, "x": np.resize(X, (40, 6)), "y": np.resize(Y, 40)}
    expected = by_ranks(2, CAPTURED, options)[0]
    monkeypatch.setattr("fastmlp.backends.cuda.step.GRAPH_STEPS", 2)
    assert same_runs(by_ranks(2, CAPTURED, options)[1], expected)


# --- who moves what, when, on which stream --------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_graph_holds_the_totals_then_the_gradients_of_each_layer_from_the_top_on_a_stream_of_their_own(
    small_pieces, ranks
):
    layouts = []

    class Look(fastmlp.Callback):
        def on_steps(self, run):
            layouts.append((run.learner.state.layout, run.learner.backend._stream))

    by_ranks(ranks, CAPTURED, {**ONE_EPOCH, "batch_size": 21, "callbacks": [Look()]})
    layout = layouts[0][0]
    (_, top), bottom = (layout.offsets[1][0], layout.weights_size), (0, layout.offsets[1][0])
    pieces = [(layout.offsets[1][0], top), bottom, (layout.weights_size, layout.size)]
    brought = {1: [1], 3: [1, 2, 2]}[ranks]
    for rank in range(ranks):
        mine = [capture for capture in cupy_nccl.captures if capture[0] == rank]
        assert [number for _, number, _, _ in mine] == list(range(1 + 2 * len(pieces)))
        (stream,) = {stream for *_, stream in mine}
        assert stream is not layouts[0][1]
        totals, *rest = [sorted(calls, key=str) for _, _, calls, _ in mine]
        assert totals == sorted(moved((3 * np.diff(cut(8, ranks))).tolist(), rank, 8), key=str)
        for place, (start, stop) in enumerate(pieces):
            columns = np.diff(cut(stop - start, ranks)).tolist()
            expected = [("send", peer, 4 * columns[peer]) for _ in range(brought[rank]) for peer in range(ranks)]
            expected += [("recv", peer, 4 * columns[rank]) for peer in range(ranks) for _ in range(brought[peer])]
            assert rest[2 * place] == sorted(expected, key=str)
            assert rest[2 * place + 1] == sorted(moved(columns, rank, 4), key=str)


def moved(parts, rank, itemsize):
    if len(set(parts)) == 1:
        return [("allGather", None, itemsize * parts[rank])]
    return [("broadcast", root, itemsize * part) for root, part in enumerate(parts)]


def unordered(parts):
    """Return, for each call, how many operations stand beside it: that come neither before nor after."""
    after, events = {}, {}
    before = []
    for number, (branch, what, item) in enumerate(parts):
        mine = after.setdefault(branch, set())
        before.append(set(mine))
        if what == "record":
            events[item] = set(mine)
        elif what == "wait":
            mine |= events.get(item, set())
        else:
            mine.add(number)
    calls = [number for number, part in enumerate(parts) if part[1] == "call"]
    work = [number for number, part in enumerate(parts) if part[1] == "operation"]
    return [sum(n not in before[call] and call not in before[n] for n in work) for call in calls]


def test_gradients_of_upper_layers_are_exchanged_beside_the_passes_of_lower_ones(small_pieces, graphs, monkeypatch):
    made = {"way": "captured"}
    run = {"epochs": 1, "batch_size": 21, "verbose": 0}

    def beside():
        graphs.clear()
        in_threads(
            lambda group: fastmlp.MLP((6, 5, 4, 3), backend=network(**made).backend, seed=1).fit(
                X, Y, **run, parallel=group
            ),
            2,
        )
        return unordered(next(parts for parts in graphs if any(what == "call" for _, what, _ in parts)))

    # gathers and exchanges: totals, the upper two layers, the lowest, biases
    found = beside()
    assert len(found) == 9
    assert found[1] > found[3] > 0 and found[1] == found[2] and found[3] == found[4]
    assert found[5:] == [0, 0, 0, 0]
    monkeypatch.setattr(shards, "PIECE", 2**30)
    found = beside()
    assert len(found) == 3
    assert found[1:] == [0, 0]


def runs_otherwise(expected, seed):
    try:
        with cp.late(seed):
            return not same_runs(by_ranks(2, CAPTURED, ONE_EPOCH)[0], expected)
    except (fastmlp.NonFiniteLossError, fastmlp.ParallelError):  # what follows from numbers that are not there yet
        return True


def forks_from_one_stream_alone(monkeypatch):
    beside = Branch.beside
    monkeypatch.setattr(Branch, "beside", lambda self, after=None: beside(self))


def joins_late(name):
    """Plant a join that comes after the update."""

    def plant(monkeypatch):
        learn = shards.ShardedStep._learn

        def planted(self, *args, **options):
            branch = getattr(self, name)
            branch.join = lambda: None
            learn(self, *args, **options)
            del branch.join
            branch.join()

        monkeypatch.setattr(shards.ShardedStep, "_learn", planted)

    return plant


MISSING = {
    "the exchange does not wait for weight gradients": forks_from_one_stream_alone,
    "the update does not wait for the exchange": joins_late("_wire"),
    "a shard does not wait for the weight gradients of the one before": joins_late("_side"),
}


@pytest.mark.parametrize("plant", MISSING.values(), ids=MISSING)
def test_an_event_that_is_missing_is_refused_and_changes_numbers(small_pieces, monkeypatch, plant):
    expected = by_ranks(2, CAPTURED, ONE_EPOCH)[0]
    plant(monkeypatch)
    cupy_nccl.patience[0] = 0.5
    with pytest.raises((cp.CudaError, KernelError), match="two streams that nothing orders"):
        by_ranks(2, CAPTURED, ONE_EPOCH)
    assert any(runs_otherwise(expected, seed) for seed in range(8))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.cuda_host), 2])
def test_whatever_the_schedule_the_bits_are_those_of_work_done_at_once(small_pieces, seed):
    expected = by_ranks(1, CAPTURED, ONE_EPOCH)[0]
    with cp.late(seed):
        assert all(same_runs(found, expected) for found in by_ranks(2, CAPTURED, ONE_EPOCH))


def test_the_host_waits_once_a_call_not_once_a_step():
    found = []
    for rows in (16, 48):  # two steps, and six, in a call each
        cp.counts.clear()
        options = {**ONE_EPOCH, "x": np.resize(X, (rows, 6)), "y": np.resize(Y, rows)}
        by_ranks(1, CAPTURED, options)
        found.append((cp.counts["asked"], cp.counts["synchronisations"]))
    assert found[0] == found[1]
    assert found[0][0] == 1 + 2 + 1  # for the weights, around the step that warms up, and for the call


# --- the choice -----------------------------------------------------------------------------------------------------


def test_large_shards_run_eagerly_and_all_ranks_agree(monkeypatch):
    monkeypatch.setattr(shards, "CROSSING", 0.0)
    expected = by_ranks(1, EAGER[0], ONE_EPOCH)[0]
    cupy_nccl.captures.clear()
    assert all(same_runs(found, expected) for found in by_ranks(2, MADE, ONE_EPOCH))
    assert not cupy_nccl.captures


@pytest.mark.parametrize("way", ["auto", "captured"])
def test_where_one_rank_cannot_capture_none_does(monkeypatch, way):
    expected = by_ranks(1, EAGER[0], ONE_EPOCH)[0]
    cupy_nccl.captures.clear()
    monkeypatch.setattr(choice, "prove", lambda *_: "a doubt" if cp.cuda.Device().id else "")
    told = r"cannot be used on this GPU: a doubt|^parallel: steps cannot be captured on rank 1, so all ranks train"
    with pytest.warns(RuntimeWarning, match=told) as warned:
        found = by_ranks(2, {**MADE, "way": way}, ONE_EPOCH)
    assert all(same_runs(one, expected) for one in found)
    assert not cupy_nccl.captures
    assert len(warned) == (1 if way == "auto" else 3)  # of the one that doubts, and of both where it was asked for


def test_without_memory_to_capture_steps_run_eagerly_unless_it_was_asked_for(monkeypatch):
    expected = by_ranks(1, EAGER[0], ONE_EPOCH)[0]

    def refused(*_):
        raise MemoryError("full")

    monkeypatch.setattr(shards, "choose_way", refused)
    assert all(same_runs(found, expected) for found in by_ranks(2, MADE, ONE_EPOCH))
    with pytest.raises(MemoryError, match="full"):
        by_ranks(2, CAPTURED, ONE_EPOCH)


@pytest.mark.parametrize("way", ["captured", "eager"])
def test_a_checkpoint_goes_on_in_its_way(tmp_path, monkeypatch, way):
    path = tmp_path / "run.safetensors"

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            run.stop("enough")

    expected = by_ranks(1, {**MADE, "way": way}, OPTIONS)[0]
    monkeypatch.setattr(shards, "CROSSING", 0.0 if way == "eager" else 1e30)
    by_ranks(2, MADE, {**OPTIONS, "callbacks": [fastmlp.Checkpoint(path), Stop()]})
    monkeypatch.setattr(shards, "CROSSING", 1e30 if way == "eager" else 0.0)
    model = fastmlp.load(path, network().backend)
    model.resume(X, Y, verbose=0)
    assert all(np.array_equal(got, wanted) for got, wanted in zip(model.get_weights(), expected[0], strict=True))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_estimate_is_what_steps_of_ranks_take(monkeypatch, ranks):
    taken, made = [], shards.ShardedStep.__init__

    def noted(self, *args, **options):
        made(self, *args, **options)
        taken.append((self._carrier.rank, self.nbytes))

    monkeypatch.setattr(shards.ShardedStep, "__init__", noted)

    def train(group):
        model = network("captured", **MADE)
        told = model.memory_estimate(X, Y, batch_size=8, optimizer=OPTIONS["optimizer"], parallel=group)
        model.fit(X, Y, **{**SHORT, **ONE_EPOCH}, parallel=group)
        return group.rank, told["workspace"]

    assert sorted(in_threads(train, ranks)) == sorted(taken)


@pytest.mark.parametrize("way", ["auto", "eager", "captured"])
def test_a_fit_of_ranks_that_has_no_room_is_refused_with_the_batch_that_would_fit(full_again, way):
    model = network(way, **MADE)
    needed = model.memory_estimate(X, Y, batch_size=8, parallel=Alone(8))
    assert needed["workspace"] != model.memory_estimate(X, Y, batch_size=8)["workspace"]
    used = cp.get_default_memory_pool().used_bytes()
    cp.capacity[0] = used + 2048  # less than any way takes
    with pytest.raises(
        MemoryError, match=r"^fit needs .* bytes on the GPU: .* for batches of 8 rows, .* would|not even"
    ):
        model.fit(X, Y, **SHORT, parallel=Alone(8))
