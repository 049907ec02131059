"""``fastmlp selftest``: every stage passes where a backend is right, and says what is wrong where it is not."""

import sys
import types

import numpy as np
import pytest
from typer.testing import CliRunner

from fastmlp.backends.choosing import get_backend
from fastmlp.backends.cuda import tested
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.cli import app as cli
from fastmlp.doctor import captured, selftest, trials
from fastmlp.doctor.fresh import FreshProcessError, TooLongError

STAGES = [s for s in selftest.STAGES if s != "race"]


@pytest.fixture
def cupy(cupy_or_its_double, monkeypatch):
    """The name of a backend that can run, here or on the double, whose graphs draw themselves as CUDA does."""
    import cupy_double

    monkeypatch.setattr(cupy_double.Graph, "debug_dot_str", drawn, raising=False)
    return "cupy"


def drawn(graph, flags=0):
    """Return a graph of the double in CUDA's words (cudaGraphDebugDotPrint)."""
    count = len(graph._operations)
    nodes = [f'"graph_1_node_{i}"[style="bold" shape="octagon" label="{i}\nkernel\n"];' for i in range(count)]
    edges = [f'"graph_1_node_{i}" -> "graph_1_node_{i + 1}";' for i in range(count - 1)]
    inner = "\n".join(('label="graph_1" graph[style="dashed"];', *nodes, *edges))
    return f"digraph dot {{\nsubgraph cluster_1 {{\n{inner}\n}}\n}}\n"


@pytest.mark.parametrize("stage", selftest.stages_of("numpy"))
def test_stages_pass_on_numpy(stage):
    if stage != "race":
        assert selftest.STAGES[stage]("numpy")


@pytest.mark.timeout(1200)  # on an emulator, beside whatever else the machine does
@pytest.mark.parametrize(
    ("stage", "text"),
    [
        pytest.param("against NumPy", "agree with NumPy", marks=pytest.mark.whole_ladder),
        pytest.param(
            *("captured, bit for bit", "the same bits twice, and those of the same kernels launched one by one"),
            marks=pytest.mark.whole_ladder,  # which test_training_step asks of its graphs too
        ),
        ("captured, and cuBLAS", "of what rounding allows of eager ones"),
        ("nodes of graphs", "13 for 1 steps of 32 rows, 13 for 1 steps of 5 rows, 193 for 16 steps of 32 rows"),
        # by default it is held on NumPy, and test_memory_on_device counts the device's
        pytest.param("memory", "no more after ten fits", marks=pytest.mark.cuda_host),
    ],
)
def test_stages_pass_on_cupy(cupy, stage, text, monkeypatch):
    assert text in selftest.STAGES[stage](cupy)


def test_every_stage_is_tested_on_cupy():
    tested = test_stages_pass_on_cupy.pytestmark[0].args[1]
    assert {getattr(case, "values", case)[0] for case in tested} == set(STAGES)
    assert set(selftest.stages_of("cupy")) == set(selftest.STAGES)
    assert selftest.stages_of("numba") == ("against NumPy", "memory", "race")


DRAWN_BY_CUDA = """digraph dot {
subgraph cluster_1 {
label="graph_1" graph[style="dashed"];
"graph_1_node_0"[style="solid" style="solid" shape="record" label="{MEMSET
| {{ID | node handle | dptr} | {0 (topoId: 20) | 0x000000000A00B680 | 0x00007FC45DC00000}}}"];

"graph_1_node_1"[style="bold" shape="octagon" label="1
ampere_sgemm_128x64_tn
"];

"graph_1_node_0" -> "graph_1_node_1";
}
}
"""


def test_nodes_are_counted_in_cudas_own_picture_of_a_graph():
    graph = types.SimpleNamespace(debug_dot_str=lambda: DRAWN_BY_CUDA)
    assert captured.nodes_of(graph) == 2
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    assert "flags=0" in cupy.cuda.Graph.debug_dot_str.__doc__


def test_graphs_with_other_nodes_than_launches_are_told(cupy, monkeypatch):
    monkeypatch.setattr(captured, "nodes_of", lambda graph: 14)
    with pytest.raises(trials.SelfTestError, match=r"the graph of 1 steps of 32 rows has 14 nodes; 13 kernels"):
        captured.count_nodes(cupy)


def test_launches_beyond_what_a_step_may_take_are_told(cupy, monkeypatch):
    monkeypatch.setattr(captured, "LAUNCHES_OF_A_STEP", 11)
    with pytest.raises(trials.SelfTestError, match=r"13 kernels were launched .* at most 12 are expected"):
        captured.count_nodes(cupy)


def test_captured_steps_that_differ_from_the_same_kernels_are_told(cupy, monkeypatch):
    from fastmlp.backends.cuda import step as cupy_step

    whole = cupy_step.TrainingStep._apply_gradients

    def missing_in_captures(self, index, layers):
        if not self._stream.is_capturing():
            whole(self, index, layers)

    monkeypatch.setattr(cupy_step.TrainingStep, "_apply_gradients", missing_in_captures)
    # found by the stage, or before by the look at the first captured step
    expected = "the same kernels uncaptured in float32 differ in their bits|captured steps cannot be used"
    with pytest.raises((trials.SelfTestError, RuntimeWarning), match=expected):
        captured.compare_bits(cupy)


def test_steps_that_are_launched_one_by_one_capture_no_graph(cupy, monkeypatch):
    from fastmlp.backends.cuda import step as cupy_step

    taken, graph = [], cupy_step.TrainingStep._graph
    monkeypatch.setattr(cupy_step.TrainingStep, "_graph", lambda *args: taken.append(args) or graph(*args))
    where = get_backend(cupy, way="captured")
    trials.trained(where, "float32")  # proven by this: what follows trains and no more
    assert taken
    del taken[:]
    with captured.launched_one_by_one():
        trials.trained(where, "float32")
    assert not taken


def test_results_that_are_off_are_told_by_how_much():
    expected = trials.trained("numpy", "float64")
    assert trials.compare(expected, expected, "float64", "itself") == 0
    for off in (1e-3, np.nan):
        found = [expected[0] + off, *expected[1:]]
        with pytest.raises(trials.SelfTestError, match=r"itself in float64: off by .* times what rounding allows"):
            trials.compare(found, expected, "float64", "itself")


def test_runs_that_differ_in_their_bits_are_told(cupy, monkeypatch):
    results = iter([np.zeros(2), np.ones(2), np.zeros(2)])
    monkeypatch.setattr(captured, "trained", lambda *_, **__: [next(results)])
    with pytest.raises(trials.SelfTestError, match="two captured runs in float32 differ in their bits"):
        captured.compare_bits(cupy)


def test_memory_that_grows_is_told(monkeypatch):
    figures = iter(range(1000, 2000))
    monkeypatch.setattr(NumpyBackend, "memory_info", lambda self: {"used": next(figures)})
    with pytest.raises(trials.SelfTestError, match="grew from 1,002 to 1,011 bytes over ten fits"):
        selftest.leave_memory_alone("numpy")


def test_the_command_prints_a_line_a_stage_and_what_to_report(monkeypatch):
    said = "Traceback\nSelfTestError: memory grew"
    outcomes = {
        "memory": FreshProcessError("SelfTestError: memory grew", "SelfTestError", said=said),
        "race": FreshProcessError("ends the process by SIGSEGV, Segmentation fault", said="a line before"),
        "another": TooLongError("took longer than 120 s"),
    }

    def run(target, arguments, **_):
        stage = arguments["stage"]
        if stage in outcomes:
            raise outcomes[stage]
        return "all agree"

    monkeypatch.setattr(selftest, "in_fresh_process", run)
    monkeypatch.setitem(selftest.STAGES, "another", selftest.race)
    result = CliRunner().invoke(cli.app, ["selftest", "--backend", "numpy"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("passed  against NumPy") and lines[0].endswith("all agree")
    assert lines[1].startswith("FAILED  memory") and lines[1].endswith("memory grew")
    assert "ends the process by SIGSEGV" in result.output and "a line before" in result.output
    assert "took longer than 120 s: it hangs" in result.output
    assert "Please report all of this" in result.output
    assert "Traceback" in result.output


def test_a_stage_runs_in_a_process_of_its_own():
    outcome = selftest.run_stage("memory", "numpy")
    assert outcome.passed
    assert outcome.text == "nothing is known of the device's memory"
    failed = selftest.run_stage("memory", "nothing")
    assert not failed.passed
    assert "backend" in failed.text


def test_auto_asks_whether_the_whole_self_test_passed_on_this_gpu(monkeypatch, tmp_path):
    """By a note beside CuPy's kernels, for one GPU and these versions."""
    gpu = {"name": b"A GPU"}
    runtime = types.SimpleNamespace(
        getDeviceProperties=lambda number: gpu, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000
    )
    cuda = types.SimpleNamespace(runtime=runtime, Device=lambda: types.SimpleNamespace(id=0))
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda, __version__="14.2.0"))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(selftest, "get_backend", lambda name: None)
    ends = iter([True] * 6 + [True] * 5 + [False])

    def run_stage(stage, backend):
        return selftest.Outcome(stage, next(ends), 0.0, "")

    monkeypatch.setattr(selftest, "run_stage", run_stage)
    assert not tested.selftest_passed()
    assert len(list(selftest.run_all("cupy"))) == 6 and tested.selftest_passed()
    gpu["name"] = b"Another GPU"
    assert not tested.selftest_passed()
    gpu["name"] = b"A GPU"
    list(selftest.run_all("cupy"))
    assert not tested.selftest_passed()
    ends = iter([True] * 6)
    list(selftest.run_all("numpy"))
    assert not list((tmp_path / "kernels").iterdir())


def test_a_driver_that_does_not_answer_has_passed_nothing(monkeypatch):
    def path():
        raise RuntimeError("cudaErrorNoDevice")

    monkeypatch.setattr(tested, "_path", path)
    assert not tested.selftest_passed()


def test_a_note_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setattr(tested, "_path", lambda: tmp_path / "a file" / "note.json")
    tested.note_selftest(True), tested.note_selftest(False)
    assert not tested.selftest_passed()
