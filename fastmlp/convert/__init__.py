"""Networks of scikit-learn, PyTorch and Keras as `fastmlp.MLP` and back, and ONNX files of them.

What predicts is carried over: weights, activations, the scale of the inputs, names where the other side has a place for
them; of what concerns training alone, dropout and frozen layers where it has these.  What has no counterpart is refused
by its name.  A library is imported when it is asked for.
"""

from fastmlp.convert.keras_models import from_keras, to_keras
from fastmlp.convert.onnx_files import to_onnx
from fastmlp.convert.pytorch import from_torch, to_torch
from fastmlp.convert.scikit_learn import from_sklearn, to_sklearn

__all__ = ["from_keras", "from_sklearn", "from_torch", "to_keras", "to_onnx", "to_sklearn", "to_torch"]
