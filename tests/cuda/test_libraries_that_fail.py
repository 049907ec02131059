"""What cuBLAS, the compiler and its cache refuse is told as a kernel that fails, with a cure; and TF32 by a switch."""

import logging
import warnings

import cupy_double as cp
import numpy as np
import pytest
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows, train

import fastmlp
from fastmlp.doctor import captured, selftest

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cublas(monkeypatch):
    def refused(*_):
        raise cp.cuda.cublas.CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(cp.cuda.cublas, "gemmEx", refused)


NO_CUBLAS = r"^the product x w, \({}, 6\) by \(6, 7\) in float32, fails in cuBLAS .*\(CUBLAS_STATUS_ALLOC_FAILED\); .*"
NO_CUBLAS += r"cupy.get_default_memory_pool\(\).free_all_blocks\(\) gives it some"


@pytest.mark.parametrize("way", ["auto", "captured", "eager"])
def test_cublas_that_fails_while_training_is_told_with_a_cure(no_cublas, way):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fastmlp.KernelError, match=NO_CUBLAS.format(4)) as e:
            train(model_on(make(way)), *rows())
    assert e.value.kernel == "cuBLAS"


def test_cublas_that_fails_while_predicting_is_told_with_a_cure(no_cublas):
    x, y = rows()
    model = model_on()
    for ask in (lambda: model.predict(x), lambda: model.evaluate(x, y), lambda: model.predictor()(x[0])):
        with pytest.raises(fastmlp.KernelError, match=NO_CUBLAS.format(r"\d+")):
            ask()


def test_a_handle_of_cublas_that_cannot_be_made_is_told_too(monkeypatch):
    def refused():
        raise cp.cuda.cublas.CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED")

    monkeypatch.setattr(cp.cuda.device, "get_cublas_handle", refused)
    with pytest.raises(fastmlp.KernelError, match=r"fails in cuBLAS on this GPU .*NOT_INITIALIZED"):
        model_on().predict(rows()[0])


LOG = """layers.cu(12): warning #177-D: variable "i" was declared but never referenced

layers.cu(40): error: identifier "__half2" is undefined
1 error detected in the compilation of "layers.cu".
"""
COMPILER = {
    "log": (
        lambda: cp.CompileException(LOG, "", "", ()),
        r'\(layers.cu\(40\): error: identifier "__half2" is undefined\)',
    ),
    "no log": (lambda: cp.CompileException("", "", "", ()), r"\(it does not say why\)"),
    "refused": (lambda: cp.NVRTCError("NVRTC_ERROR_INVALID_OPTION"), r"\(NVRTC_ERROR_INVALID_OPTION\)"),
}


def refuse_to_compile(monkeypatch, make_error, kernel=""):
    whole = cp.RawModule.get_function

    def refused(self, name):
        if kernel in name:
            raise make_error()
        return whole(self, name)

    monkeypatch.setattr(cp.RawModule, "get_function", refused)


@pytest.mark.parametrize("kind", COMPILER)
def test_a_kernel_that_cannot_be_compiled_is_told_with_a_cure(kind, monkeypatch):
    make_error, said = COMPILER[kind]
    refuse_to_compile(monkeypatch, make_error)
    expected = rf"^the kernel bias_activation<float> of layers.cu cannot be compiled .*{said}; .*pip install"
    with pytest.raises(fastmlp.KernelError, match=expected) as e:
        model_on().predict(rows()[0])
    assert e.value.kernel == "bias_activation<float>"
    expected = r"^the kernel .* cannot be compiled .*backend='numba' avoids the GPU$"
    with pytest.raises(fastmlp.KernelError, match=expected):
        train(model_on(make("eager")), *rows())


def test_a_kernel_of_captured_steps_alone_that_cannot_be_compiled_leaves_eager_ones(monkeypatch):
    refuse_to_compile(monkeypatch, COMPILER["log"][0], "product_forward")
    expected = "cannot be used on this GPU: the kernel product_forward.* cannot be compiled"
    with pytest.warns(RuntimeWarning, match=expected):
        train(model_on(), *rows())


def test_kernels_that_cannot_be_kept_are_told_with_the_folder_that_can_be_chosen(monkeypatch):
    refuse_to_compile(monkeypatch, lambda: OSError(28, "No space left on device", "/cache/a.cubin"))
    with pytest.raises(fastmlp.KernelError, match=r"kept once it is .*No space left.*set CUPY_CACHE_DIR to a folder"):
        model_on().predict(rows()[0])


# --- TF32 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nvidias_switch_raises_no_false_alarm_and_is_told_where_it_matters(dtype, monkeypatch, caplog):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    x, y = rows()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "fastmlp"):
        warnings.simplefilter("error")
        train(model_on(dtype=dtype), x.astype(dtype), y)
    told = "NVIDIA_TF32_OVERRIDE=1 makes cuBLAS round factors in float32 to 11 bits" in caplog.text
    assert told == (dtype == "float32")


@pytest.mark.parametrize("value", [None, "0", ""])
def test_without_the_switch_kernels_are_held_against_all_digits(value, monkeypatch, caplog):
    if value is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    cp.faults["product_forward"] = lambda arrays: np.multiply(arrays[3], 1 + 2e-4, out=arrays[3])
    try:
        with pytest.warns(RuntimeWarning, match="product_forward computes the activations of layer 0 off by"):
            train(model_on(), *rows())
    finally:
        cp.faults.clear()
    assert "TF32" not in caplog.text


def test_wrong_kernels_are_found_under_nvidias_switch(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setitem(cp.faults, "product_forward", lambda arrays: np.multiply(arrays[3], 1.5, out=arrays[3]))
    with pytest.warns(RuntimeWarning, match="product_forward computes the activations of layer 0 off by"):
        train(model_on(), *rows())


def test_the_self_test_leaves_out_what_nvidias_switch_rounds_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    compared = []
    for module in (captured, selftest):
        monkeypatch.setattr(module, "trained", lambda backend, dtype, **_: compared.append(dtype) or [np.zeros(1)])
    captured.compare_ways("cupy")
    assert set(compared) == {"float64"}
    selftest.compare_with_numpy("cupy")
    assert set(compared) == {"float64"}
    assert "unset it to test float32 too" in caplog.text
    selftest.compare_with_numpy("numpy")  # which knows nothing of it
    assert "float32" in compared
