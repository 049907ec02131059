"""Arrays that a model cannot take: on another GPU, or of the wrong shape or type."""

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from gpu_arrays import KINDS, Dlpack, make, model_on, rows, train

import fastmlp

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_another_gpu_is_refused_with_the_cure(kind):
    x, y = rows()
    model = model_on()
    with cp.cuda.Device(1):
        other = KINDS[kind](x)
    expected = "x lies on GPU 1, a .*, and the model is on GPU 0; copy it there, or make a backend"
    for ask in (model.predict, model.predict_proba):
        with pytest.raises(fastmlp.DataError, match=expected):
            ask(other)
    with pytest.raises(fastmlp.DataError, match=expected):
        train(model, other, y)
    with cp.cuda.Device(1):
        labels = KINDS[kind](y)
    with pytest.raises(fastmlp.DataError, match=r"^y of validation_data lies on GPU 1"):
        train(model, x, y, validation_data=(x, labels))
    with cp.cuda.Device(1):
        there = model_on(make())
        predicted = there.predict(other)
    assert there.backend.device == 1
    assert predicted.device.id == 1
    assert_same_bits(there.predict_proba(x), model.predict_proba(x))


def test_a_model_stays_on_its_gpu_whichever_is_current():
    x, y = rows()
    model, reference = model_on(), model_on()
    with cp.cuda.Device(1):
        train(model, x, y)
        found = model.predict_proba(x)
    train(reference, x, y)
    assert_same_bits(found, reference.predict_proba(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_another_backend_refuses_arrays_of_a_gpu_with_the_cure(kind):
    x, y = rows()
    model = model_on("numpy")
    there = KINDS[kind](x)
    expected = (
        r"x lies on a GPU, a .*, and the model runs on the numpy backend; move the model there with model.to\('cupy'"
    )
    with pytest.raises(fastmlp.DataError, match=expected):
        model.predict(there)
    with pytest.raises(fastmlp.DataError, match=expected):
        train(model, there, y)
    with pytest.raises(fastmlp.DataError, match=r"^sample_weight lies on a GPU"):
        train(model, x, y, sample_weight=KINDS[kind](np.ones(len(x))))


def test_shapes_and_types_of_arrays_of_the_gpu_are_checked():
    x, y = rows()
    model = model_on()
    for wrong, message in (
        (cp.asarray(x[:, :5]), r"x must have shape \(n, 6\), because the network has 6 inputs; got \(21, 5\)"),
        (cp.asarray(x[0]), r"x must have shape \(n, 6\), got \(6,\); one example is x.reshape\(1, -1\)"),
        (cp.asarray(x.astype(complex)), "x must hold real numbers, got dtype complex"),
    ):
        with pytest.raises(fastmlp.DataError, match=message):
            model.predict(wrong)
    with pytest.raises(fastmlp.DataError, match=r"labels must be in 0..2 .* got 7 in row 0"):
        train(model, cp.asarray(x), cp.asarray(y + 7))
    with pytest.raises(fastmlp.DataError, match="sample_weight must be finite and not negative"):
        train(model, cp.asarray(x), cp.asarray(y), sample_weight=cp.asarray(-np.ones(len(x))))
    with pytest.raises(fastmlp.DataError, match=r"x must be one example of shape \(6,\), got \(21, 6\)"):
        model.predictor()(cp.asarray(x))


def test_what_its_owner_does_not_hand_over_is_an_error_that_says_so():
    class Guarded(Dlpack):
        def __dlpack__(self, **options):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(fastmlp.DataError, match=r"x cannot be taken .* require gradient, use tensor.detach\(\)"):
        model_on().predict(Guarded(rows()[0]))
