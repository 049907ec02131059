"""fastmlp: multi-layer perceptrons trained at the speed the hardware allows.

Everything public is a name of this package.  Names are looked up when they are first used, so that importing fastmlp
costs next to nothing beyond importing NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastmlp import approximation as approximation
    from fastmlp import datasets as datasets
    from fastmlp import features as features
    from fastmlp import plots as plots
    from fastmlp import stepbystep as stepbystep
    from fastmlp.activations import activation_names as activation_names
    from fastmlp.activations import register_activation as register_activation
    from fastmlp.backends import available_backends as available_backends
    from fastmlp.backends import get_backend as get_backend
    from fastmlp.backends import register_backend as register_backend
    from fastmlp.callbacks import Callback as Callback
    from fastmlp.callbacks import Checkpoint as Checkpoint
    from fastmlp.callbacks import CSVLog as CSVLog
    from fastmlp.callbacks import EarlyStopping as EarlyStopping
    from fastmlp.callbacks import ProgressBar as ProgressBar
    from fastmlp.callbacks import TimeLimit as TimeLimit
    from fastmlp.differences import gradcheck as gradcheck
    from fastmlp.errors import BackendUnavailable as BackendUnavailable
    from fastmlp.errors import DataError as DataError
    from fastmlp.errors import FileFormatError as FileFormatError
    from fastmlp.errors import KernelError as KernelError
    from fastmlp.errors import NonFiniteLossError as NonFiniteLossError
    from fastmlp.errors import ReproducibilityWarning as ReproducibilityWarning
    from fastmlp.errors import TrainingInterrupted as TrainingInterrupted
    from fastmlp.history import History as History
    from fastmlp.initializers import GlorotNormal as GlorotNormal
    from fastmlp.initializers import GlorotUniform as GlorotUniform
    from fastmlp.initializers import HeNormal as HeNormal
    from fastmlp.initializers import HeUniform as HeUniform
    from fastmlp.initializers import LecunNormal as LecunNormal
    from fastmlp.initializers import LecunUniform as LecunUniform
    from fastmlp.initializers import Normal as Normal
    from fastmlp.initializers import Zeros as Zeros
    from fastmlp.loading import load as load
    from fastmlp.losses import CategoricalHinge as CategoricalHinge
    from fastmlp.losses import Huber as Huber
    from fastmlp.losses import MeanAbsoluteError as MeanAbsoluteError
    from fastmlp.losses import MeanSquaredError as MeanSquaredError
    from fastmlp.losses import MeanSquaredLogarithmicError as MeanSquaredLogarithmicError
    from fastmlp.losses import Poisson as Poisson
    from fastmlp.losses import SigmoidCrossEntropy as SigmoidCrossEntropy
    from fastmlp.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from fastmlp.losses import loss_names as loss_names
    from fastmlp.losses import register_loss as register_loss
    from fastmlp.model import MLP as MLP
    from fastmlp.optimizers import SGD as SGD
    from fastmlp.optimizers import Adam as Adam
    from fastmlp.optimizers import AdamW as AdamW
    from fastmlp.optimizers import Optimizer as Optimizer
    from fastmlp.optimizers import RMSprop as RMSprop
    from fastmlp.schedules import Constant as Constant
    from fastmlp.schedules import Cosine as Cosine
    from fastmlp.schedules import Exponential as Exponential
    from fastmlp.schedules import InverseScaling as InverseScaling
    from fastmlp.schedules import OneCycle as OneCycle
    from fastmlp.schedules import ReduceOnPlateau as ReduceOnPlateau
    from fastmlp.schedules import Schedule as Schedule
    from fastmlp.schedules import StepDecay as StepDecay
    from fastmlp.spec import NetworkSpec as NetworkSpec

# module: its public names; a test holds this against the imports above
_PUBLIC = {
    "activations": "activation_names register_activation",
    "backends": "available_backends get_backend register_backend",
    "callbacks": "Callback Checkpoint CSVLog EarlyStopping ProgressBar TimeLimit",
    "differences": "gradcheck",
    "errors": "BackendUnavailable DataError FileFormatError KernelError NonFiniteLossError ReproducibilityWarning "
    "TrainingInterrupted",
    "history": "History",
    "initializers": "GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform Normal Zeros",
    "losses": "CategoricalHinge Huber MeanAbsoluteError MeanSquaredError MeanSquaredLogarithmicError Poisson "
    "SigmoidCrossEntropy SoftmaxCrossEntropy loss_names register_loss",
    "loading": "load",
    "model": "MLP",
    "optimizers": "SGD Adam AdamW Optimizer RMSprop",
    "schedules": "Constant Cosine Exponential InverseScaling OneCycle ReduceOnPlateau Schedule StepDecay",
    "spec": "NetworkSpec",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
_MODULES = ("approximation", "datasets", "features", "plots", "stepbystep")

__all__ = sorted(["__version__", *_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fastmlp.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastmlp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
