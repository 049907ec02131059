"""What all backends share, at the branches that no test of networks takes; needs no GPU and compiles nothing."""

import copy
import logging
import types

import numpy as np
import pytest
from compare import assert_same_bits
from scenarios import Scenario

import fastmlp
from fastmlp.backends import contest, decisions, registry
from fastmlp.backends.foreign import host_array, refuse_gpu
from fastmlp.backends.operations import Operations
from fastmlp.backends.sparse import SparseRows
from fastmlp.errors import DataError
from fastmlp.floating import in_units_of
from fastmlp.formulas.optimizers import SGD, StepScalars

SMALL = Scenario("small", (4, 3, 2), {"activation": "tanh"}, SGD(0.1), rows=8, batch=4)


# --- frames, as pandas and polars have them ---------------------------------------------------------------------------


class Column:
    """A column of a frame of pandas: objects, where its type is not NumPy's."""

    def __init__(self, values, kind):
        self.values, self.dtype = values, types.SimpleNamespace(kind=kind)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, object if self.dtype.kind in "OMi" else float)

    def to_numpy(self, dtype, na_value):
        return np.array([na_value if v is None else v for v in self.values], dtype)


class Frame:
    """A frame of pandas' with these columns."""

    def __init__(self, **columns):
        self.columns, self._columns = list(columns), list(columns.values())
        self.iloc = self

    def __getitem__(self, at):
        return self._columns[at[1]]

    def __array__(self, dtype=None, copy=None):
        return np.array([c.values for c in self._columns], object).T


class WholeFrame(Frame):
    """A frame of a library like polars: no `iloc`, columns by their labels."""

    def __init__(self, **columns):
        super().__init__(**columns)
        del self.iloc

    def __getitem__(self, label):
        return self._columns[self.columns.index(label)]


def test_a_frames_columns_become_numbers_each_by_itself():
    frame = Frame(a=Column([1.5, 2.5], "f"), b=Column([7, None], "i"))
    np.testing.assert_array_equal(host_array(frame, "x"), [[1.5, 7], [2.5, np.nan]])
    with pytest.raises(DataError, match=r"column 'c' holds .*pandas.get_dummies.*x.astype\({'c': float}\)"):
        host_array(Frame(a=Column([1.0], "f"), c=Column(["red"], "O")), "x")
    with pytest.raises(DataError, match=r"column 'd' holds .*make numbers of it, of days for example"):
        host_array(Frame(a=Column([1.0], "f"), d=Column(["2020-01-01"], "M")), "x")


def test_a_frame_that_is_made_into_an_array_whole_is_refused_by_the_column():
    with pytest.raises(DataError, match="must hold real numbers, and column 'c' holds object; encode it"):
        host_array(WholeFrame(a=Column([1.0], "f"), c=Column(["red"], "O")), "x")
    plain = WholeFrame(a=Column([1.0], "f"), b=Column([2.0], "f"))
    assert host_array(plain, "x").shape == (1, 2)


def test_what_raises_while_it_becomes_an_array_is_told():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("planted")

    with pytest.raises(DataError, match="x cannot be made into an array: planted"):
        host_array(Broken(), "x")
    mask = np.ma.MaskedArray([[1.0, 2.0]], [[False, True]])
    with pytest.raises(DataError, match=r"x has masked values, 1 of them, the first at \[0, 1\]"):
        host_array(mask, "x")
    with pytest.raises(DataError, match=r"x\[1\] has masked values"):
        host_array([[1.0, 2.0], mask[0]], "x")
    whole = np.ma.MaskedArray([[1.0, 2.0]], [[False, False]])
    assert_same_bits(host_array(whole, "x"), np.array([[1.0, 2.0]]))


def test_an_array_on_a_gpu_is_refused_where_only_host_memory_will_do():
    on_gpu = types.SimpleNamespace(__cuda_array_interface__={})
    with pytest.raises(DataError, match=r"x must be in host memory, where preprocess works; pass x.get\(\) or .cpu"):
        refuse_gpu("x", on_gpu, "where preprocess works")
    assert refuse_gpu("x", np.zeros(2), "where preprocess works") is None


# --- sparse rows ------------------------------------------------------------------------------------------------------


def test_elements_that_are_there_twice_are_added_and_the_matrix_stays_as_it_was():
    sparse = pytest.importorskip("scipy.sparse")
    twice = sparse.csr_matrix(([1.0, 2.0, 4.0], [1, 1, 0], [0, 2, 3]), shape=(2, 3))
    rows = SparseRows(twice)
    np.testing.assert_array_equal(rows.matrix.toarray(), [[0, 3, 0], [4, 0, 0]])
    assert rows.matrix.nnz == 2 and twice.nnz == 3


# --- composed operations ----------------------------------------------------------------------------------------------


def test_workspaces_of_many_numbers_of_rows_are_views_of_the_same_memory():
    session = fastmlp.get_backend("numpy").open(SMALL.plan("float32"))
    for n in (1, 2, 3, 4, 1, 2, 3):
        views = session.views(n)
        assert [z.shape for z in views.z] == [(n, 3), (n, 2)] and all(z.base is not None for z in views.z)
        views.z[0][...] = n
        assert np.shares_memory(views.z[0], session.views(4).z[0])
        assert session.views(4).z[0][0, 0] == n


def test_several_epochs_end_with_the_one_whose_loss_is_not_finite():
    backend, table = fastmlp.get_backend("numpy"), SMALL.table(0, 0, "float32")
    for spoilt in (False, True):
        session, state = backend.open(SMALL.plan("float32")), SMALL.state(backend, "float32")
        data, before = SMALL.device_data(backend, "float32"), state.step
        if spoilt:
            data.x[5] = np.inf
        orders = np.array([[0, 1, 2, 3, 4, 6, 7, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
        totals, norms = np.zeros((2, 3)), np.zeros(0 if spoilt else 2)
        report = backend.train_epochs(session, state, data, orders, np.tile(table[:2], (2, 1)), totals, norms)
        assert (report.done, report.finite) == ((3, False) if spoilt else (4, True))
        assert state.step == before + report.done
        weights = state.params[: state.layout.weights_size]
        assert spoilt or norms[1] == pytest.approx(float(weights @ weights), rel=1e-6)


def test_where_a_loss_stops_being_finite_is_told_by_the_first_array():
    backend = fastmlp.get_backend("numpy")
    session, state = backend.open(SMALL.plan("float32")), SMALL.state(backend, "float32")
    data, order = SMALL.device_data(backend, "float32"), np.arange(8)
    kept, biases = state.params.copy(), state.layout.views(state.params)[1][1]
    biases[...] = 3e38, -3e38  # finite, and so are the outputs
    with np.errstate(over="ignore"):
        row, where = backend.first_nonfinite(session, state, data, order, 1)
    assert where == "the loss of the row" and row == next(i for i in range(4, 8) if data.y[i] == 1)
    state.params[...] = kept
    data.x[6, 1] = np.nan
    assert backend.first_nonfinite(session, state, data, order, 1) == (6, "the input")
    layers = state.layout.views(state.params)
    layers[1][1][0] = np.inf
    assert backend.first_nonfinite(session, state, data, order, 0) == (-1, "the biases of layer 1")
    layers[0][0][2, 1] = np.nan
    assert backend.first_nonfinite(session, state, data, order, 0) == (-1, "the weights of layer 0")


def test_a_layer_without_an_activation_hands_gradients_on_as_they_are():
    d = np.array([[1.5, -2.0]], np.float32)
    fastmlp.get_backend("numpy").activation_backward("identity", d, None, d, np.empty_like(d))
    assert d.tolist() == [[1.5, -2.0]]


def test_a_step_without_an_optimizer_ends_with_its_gradients():
    backend, table = fastmlp.get_backend("numpy"), SMALL.table(0, 0, "float32")
    plan = SMALL.plan("float32", optimizer=None)
    session, state = backend.open(plan), SMALL.state(backend, "float32")
    before, scalars = state.params.copy(), StepScalars(*table[0])
    backend.batch_gradients(session, state, SMALL.device_data(backend, "float32"), np.arange(4), scalars)
    backend.finish_step(session, state, scalars)
    assert_same_bits(state.params, before)
    assert np.abs(session.grads).max() > 0


def test_what_a_backend_says_unless_it_knows_better():
    backend = registry.make("numpy", {})
    assert copy.deepcopy(backend) is backend
    plain = types.SimpleNamespace(name="plain")
    assert Operations.choices(plain) == {"backend": "plain"} and Operations.memory_info(plain) == {}
    made = Operations.decisions(plain, "steps", np.dtype("float32"))
    assert made.path is None


def test_without_a_file_a_decision_is_known_in_this_process_alone(monkeypatch):
    monkeypatch.setattr(decisions, "_known", {})
    assert decisions.Decisions(None, {}).keep("steps", {"way": "eager"}) == {"way": "eager"}
    assert decisions.Decisions(None, {}).all() == {"steps": {"way": "eager"}}
    decisions._known.clear()
    assert decisions.Decisions(None, {}).all() == {}


def test_steps_on_which_no_row_counts_are_not_timed():
    backend = fastmlp.get_backend("numpy")
    session, state = backend.open(SMALL.plan("float32")), SMALL.state(backend, "float32")
    data, table = SMALL.device_data(backend, "float32"), np.array(SMALL.table(0, 0, "float32"))
    assert contest.steps_on(backend, session, state, data, table)(3) > 0
    table[:, contest._COLUMNS.index("inverse_total")] = 0
    with pytest.raises(contest.NoStepsError):
        contest.steps_on(backend, session, state, data, table)(1)


def test_a_gradient_that_is_shorter_than_the_bound_is_not_clipped():
    def trained(clip):
        model = fastmlp.MLP((4, 3, 2), backend="numpy", seed=0)
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("f4")
        model.fit(x, [0, 1] * 4, epochs=1, batch_size=4, verbose=0, optimizer=SGD(0.1, clip_norm=clip))
        return model.get_weights()

    for a, b, c in zip(trained(1e6), trained(1e7), trained(None), strict=True):
        assert_same_bits(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-7)  # that the plain step is one with its product
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(trained(1e-3), trained(None), strict=True))


# --- names ------------------------------------------------------------------------------------------------------------


def test_why_a_backend_cannot_be_is_told(monkeypatch, tmp_path):
    (tmp_path / "needs_something.py").write_text("import something_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register_backend("absent", "fastmlp.backends.not_there", "Backend")
    registry.register_backend("needy", "needs_something", "Backend")
    found = fastmlp.available_backends()
    assert found["absent"].reason == "this version of fastmlp has no absent backend; use backend='numpy'"
    assert "No module named 'something_that_is_nowhere'; install what is missing" in found["needy"].reason
    with pytest.raises(fastmlp.BackendUnavailable, match="backend 'absent' cannot run here: this version"):
        fastmlp.get_backend("absent")
    monkeypatch.setattr(registry, "_AUTOMATIC", ("absent", "numpy"))
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    assert registry.choose_backend() == ("numpy", f"not absent: {found['absent'].reason}")


def test_a_pickled_model_of_a_backend_that_is_not_here_runs_on_auto_and_says_so_once(monkeypatch, caplog):
    registry.register_backend("gone", "fastmlp.backends.not_there", "Backend")
    monkeypatch.setenv(registry.VARIABLE, "numpy")
    registry._say_replaced.cache_clear()
    with caplog.at_level(logging.WARNING, "fastmlp"):
        for _ in range(2):
            assert registry.restored_backend("gone", {}).name == "numpy"
    assert caplog.text.count("backend gone of a pickled model cannot be used here, so it runs on numpy") == 1
    assert repr(registry.restored_backend("numpy", {})) == "NumpyBackend()"


# --- how far numbers are apart ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_differences_are_told_in_units_whatever_a_program_has_numpy_do_about_its_own():
    found = np.array([1.0, np.inf, np.nan, np.inf, 3.0, 1e308, 2.0], np.float64)
    expected = np.array([1.0, np.inf, np.inf, 2.0, 1.0, -1e308, 2.0], np.float64)
    too_far = np.finfo(np.float64).max  # what an infinity becomes in a table of figures
    for whatever in ({}, {"all": "raise"}, {"all": "warn"}):
        with np.errstate(**whatever):
            assert in_units_of(0.5, found, expected).tolist() == [0, 0, 0, too_far, 4, too_far, 0]
            assert in_units_of(0.0, found, expected).tolist() == [0, 0, 0, *3 * [too_far], 0]
