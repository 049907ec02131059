"""What is missing for CUDA is told with its cure, whichever of the many things it is."""

import importlib.metadata
import subprocess
import sys
import types

import numpy as np
import pytest
from emulator import Module, needs_emulator

from fastmlp.backends.cuda import probe as cuda_probe
from fastmlp.errors import BackendUnavailable


def good(**changes):
    """Return a stand-in for CuPy on a machine where all is well, with some of its answers changed."""

    def answer(name, value):
        def call(*_, **__):
            given = changes.get(name, value)
            if isinstance(given, Exception):
                raise given
            return given

        return call

    product = types.SimpleNamespace(
        get=lambda: types.SimpleNamespace(tolist=answer("product", [[8.0, 8.0], [8.0, 8.0]]))
    )
    return types.SimpleNamespace(
        __version__="14.2.0",
        ones=answer("ones", None),
        RawKernel=lambda *_: answer("kernel", None),
        matmul=lambda *_: product,
        cuda=types.SimpleNamespace(
            runtime=types.SimpleNamespace(
                driverGetVersion=answer("driver", 13000),
                runtimeGetVersion=answer("runtime", 13000),
                getDeviceCount=answer("devices", 1),
                getDeviceProperties=lambda _: {"name": b"a GPU"},
            ),
            nvrtc=types.SimpleNamespace(getVersion=answer("nvrtc", (13, 0))),
            device=types.SimpleNamespace(get_cublas_handle=answer("cublas", 1)),
            Device=lambda: types.SimpleNamespace(id=0, compute_capability=changes.get("capability", "90")),
        ),
    )


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))


def test_a_machine_with_all_that_is_needed_is_available():
    found = cuda_probe.look(good())
    assert found.available
    assert found.reason == "a GPU, CuPy 14.2.0"


REASONS = {
    "no driver": ({"driver": 0}, "no NVIDIA driver, or no GPU; install a driver"),
    "a driver that does not answer": ({"driver": RuntimeError("boom")}, r"does not answer \(RuntimeError: boom\)"),
    "a driver too old": (
        {"driver": 12080},
        r"driver is for CUDA 12, this CuPy for CUDA 13; update .* 'fastmlp\[cuda12\]'",
    ),
    "no device": (
        {"devices": RuntimeError("cudaErrorNoDevice: none\nmore")},
        r"finds no GPU \(.*none\); see nvidia-smi",
    ),
    "devices hidden": ({"devices": 0}, "CUDA_VISIBLE_DEVICES"),
    "a GPU too old": ({"capability": "70"}, r"compute capability 7\.0; 7\.5 \(Turing, 2018\) or newer"),
    "no NVRTC": ({"nvrtc": ImportError("libnvrtc")}, r"compiler NVRTC is not found .*\[ctk\] extra"),
    "no cuBLAS": ({"cublas": ImportError("libcublas")}, r"cuBLAS is not found .*\[ctk\] extra"),
    "no headers": ({"kernel": RuntimeError("cannot open source file")}, "CUDA headers are missing"),
    "a wrong product": ({"product": [[8.0, 8.0], [8.0, 7.0]]}, "comes out wrong; please report it"),
}


@pytest.mark.parametrize("what", REASONS)
def test_what_is_missing_is_told_with_its_cure(what):
    changes, message = REASONS[what]
    found = cuda_probe.look(good(**changes))
    assert not found.available
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.reason)


def test_of_several_things_that_are_missing_the_first_to_mend_is_told(monkeypatch, tmp_path):
    missing = {
        "driver": (0, "no NVIDIA driver"),
        "nvrtc": (ImportError("libnvrtc"), "NVRTC is not found"),
        "folder": (None, "cannot be written"),
        "cublas": (ImportError("libcublas"), "cuBLAS is not found"),
        "kernel": (RuntimeError("boom"), "a small kernel and product fail"),
    }
    (tmp_path / "file").write_text("")
    for first in range(len(missing)):
        left = dict(list(missing.items())[first:])
        folder = tmp_path / ("file" if "folder" in left else "fine") / "cache"
        monkeypatch.setenv("CUPY_CACHE_DIR", str(folder))
        changes = {name: answer for name, (answer, _) in left.items() if name != "folder"}
        assert next(iter(left.values()))[1] in cuda_probe.look(good(**changes)).reason


@needs_emulator
def test_the_small_kernel_of_the_look_adds_one_to_each_number():
    a, given = np.ones((2, 2), np.float32), []
    machine = good()
    machine.ones = lambda *_, **__: a

    def raw_kernel(source, name):
        given.append(Module(source, [name]))
        return lambda grid, block, args: given[0].launch(name, grid, block, args)

    machine.RawKernel = raw_kernel
    assert cuda_probe.look(machine).available
    assert a.tolist() == [[2, 2], [2, 2]]


def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "cache"))
    found = cuda_probe.look(good())
    assert not found.available
    assert "which cannot be written" in found.reason
    assert "set CUPY_CACHE_DIR" in found.reason


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cuda_probe.importlib.util, "find_spec", lambda name: None)
    found = cuda_probe.cuda_availability.__wrapped__()
    assert not found.available
    assert found.reason.startswith("the package cupy is not installed; pip install 'fastmlp[cuda13]'")


def test_two_packages_of_cupy_are_told_apart(monkeypatch):
    names = ["cupy-cuda12x", "numpy", "cupy_cuda13x", None]
    wheels = [types.SimpleNamespace(metadata={"Name": name}) for name in names]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: wheels)
    monkeypatch.setattr(cuda_probe.importlib.util, "find_spec", lambda name: object())
    found = cuda_probe.cuda_availability.__wrapped__()
    assert not found.available
    assert "several CuPy packages are installed, cupy-cuda12x, cupy-cuda13x" in found.reason
    del wheels[2:]  # one is as it should be, whatever else is missing
    assert "several" not in cuda_probe.cuda_availability.__wrapped__().reason


def test_a_package_that_cannot_be_imported_is_told_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise RuntimeError('no libcuda\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(cuda_probe, "cupy_wheels", lambda: ["cupy-cuda13x"])
    found = cuda_probe.cuda_availability.__wrapped__()
    assert not found.available
    assert found.reason.startswith("cupy cannot be imported (RuntimeError: no libcuda); pip install")


def test_neither_importing_fastmlp_nor_asking_for_numpy_touches_cuda():
    code = """
import sys, fastmlp
fastmlp.MLP((2, 2), backend="numpy")
assert not [m for m in sys.modules if m.split(".")[0] in ("cupy", "cuda", "cupy_backends")], sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_backend_asked_for_by_name_gives_the_reason(monkeypatch):
    from fastmlp.backends import registry
    from fastmlp.backends.choosing import get_backend
    from fastmlp.backends.cuda import backend as cupy_backend

    monkeypatch.setattr(cupy_backend, "cuda_availability", lambda: cuda_probe.look(good(driver=0)))
    monkeypatch.delitem(registry._made, "cupy", raising=False)
    with pytest.raises(BackendUnavailable, match="backend 'cupy' cannot run here: there is no NVIDIA driver"):
        get_backend("cupy")
