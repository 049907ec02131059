"""fastmlp: multi-layer perceptrons trained at the speed the hardware allows.

Everything public is a name of this package.  Names are looked up when they are first used, so that importing fastmlp
costs next to nothing beyond importing NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastmlp._version import __version__ as __version__

if TYPE_CHECKING:
    from fastmlp import approximation as approximation
    from fastmlp import convert as convert
    from fastmlp import datasets as datasets
    from fastmlp import features as features
    from fastmlp import parallel as parallel
    from fastmlp import plots as plots
    from fastmlp import stepbystep as stepbystep
    from fastmlp.backends.choosing import get_backend as get_backend
    from fastmlp.backends.registry import available_backends as available_backends
    from fastmlp.backends.registry import register_backend as register_backend
    from fastmlp.doctor.gradients import gradcheck as gradcheck
    from fastmlp.doctor.parity import parity as parity
    from fastmlp.doctor.profile import profile as profile
    from fastmlp.engine.callbacks import Checkpoint as Checkpoint
    from fastmlp.engine.callbacks import CSVLog as CSVLog
    from fastmlp.engine.callbacks import EarlyStopping as EarlyStopping
    from fastmlp.engine.callbacks import ProgressBar as ProgressBar
    from fastmlp.engine.callbacks import TimeLimit as TimeLimit
    from fastmlp.engine.epoch_timer import EpochTimer as EpochTimer
    from fastmlp.engine.history import History as History
    from fastmlp.engine.loop import Callback as Callback
    from fastmlp.errors import BackendUnavailable as BackendUnavailable
    from fastmlp.errors import DataError as DataError
    from fastmlp.errors import FileFormatError as FileFormatError
    from fastmlp.errors import KernelError as KernelError
    from fastmlp.errors import NonFiniteLossError as NonFiniteLossError
    from fastmlp.errors import ParallelError as ParallelError
    from fastmlp.errors import ReproducibilityWarning as ReproducibilityWarning
    from fastmlp.errors import TrainingInterrupted as TrainingInterrupted
    from fastmlp.estimators.classifier import MLPClassifier as MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor as MLPRegressor
    from fastmlp.formulas.activations import activation_names as activation_names
    from fastmlp.formulas.initializers import GlorotNormal as GlorotNormal
    from fastmlp.formulas.initializers import GlorotUniform as GlorotUniform
    from fastmlp.formulas.initializers import HeNormal as HeNormal
    from fastmlp.formulas.initializers import HeUniform as HeUniform
    from fastmlp.formulas.initializers import LecunNormal as LecunNormal
    from fastmlp.formulas.initializers import LecunUniform as LecunUniform
    from fastmlp.formulas.initializers import Normal as Normal
    from fastmlp.formulas.initializers import Zeros as Zeros
    from fastmlp.formulas.losses import CategoricalHinge as CategoricalHinge
    from fastmlp.formulas.losses import Huber as Huber
    from fastmlp.formulas.losses import MeanAbsoluteError as MeanAbsoluteError
    from fastmlp.formulas.losses import MeanSquaredError as MeanSquaredError
    from fastmlp.formulas.losses import MeanSquaredLogarithmicError as MeanSquaredLogarithmicError
    from fastmlp.formulas.losses import Poisson as Poisson
    from fastmlp.formulas.losses import Quantile as Quantile
    from fastmlp.formulas.losses import SigmoidCrossEntropy as SigmoidCrossEntropy
    from fastmlp.formulas.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from fastmlp.formulas.losses import loss_names as loss_names
    from fastmlp.formulas.optimizers import SGD as SGD
    from fastmlp.formulas.optimizers import Adam as Adam
    from fastmlp.formulas.optimizers import AdamW as AdamW
    from fastmlp.formulas.optimizers import Optimizer as Optimizer
    from fastmlp.formulas.optimizers import RMSprop as RMSprop
    from fastmlp.formulas.registration import register_activation as register_activation
    from fastmlp.formulas.registration import register_loss as register_loss
    from fastmlp.formulas.schedules import Constant as Constant
    from fastmlp.formulas.schedules import Cosine as Cosine
    from fastmlp.formulas.schedules import Exponential as Exponential
    from fastmlp.formulas.schedules import InverseScaling as InverseScaling
    from fastmlp.formulas.schedules import OneCycle as OneCycle
    from fastmlp.formulas.schedules import ReduceOnPlateau as ReduceOnPlateau
    from fastmlp.formulas.schedules import Schedule as Schedule
    from fastmlp.formulas.schedules import StepDecay as StepDecay
    from fastmlp.loading import load as load
    from fastmlp.model import MLP as MLP
    from fastmlp.network.spec import NetworkSpec as NetworkSpec

# module: its public names; a test holds this against the imports above
_PUBLIC = {
    "formulas.activations": "activation_names",
    "backends.choosing": "get_backend",
    "backends.registry": "available_backends register_backend",
    "engine.callbacks": "Checkpoint CSVLog EarlyStopping ProgressBar TimeLimit",
    "doctor.gradients": "gradcheck",
    "doctor.parity": "parity",
    "doctor.profile": "profile",
    "engine.epoch_timer": "EpochTimer",
    "engine.loop": "Callback",
    "formulas.registration": "register_activation register_loss",
    "errors": "BackendUnavailable DataError FileFormatError KernelError NonFiniteLossError ParallelError "
    "ReproducibilityWarning TrainingInterrupted",
    "engine.history": "History",
    "estimators.classifier": "MLPClassifier",
    "estimators.regressor": "MLPRegressor",
    "formulas.initializers": "GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform Normal Zeros",
    "formulas.losses": "CategoricalHinge Huber MeanAbsoluteError MeanSquaredError MeanSquaredLogarithmicError Poisson "
    "Quantile SigmoidCrossEntropy SoftmaxCrossEntropy loss_names",
    "loading": "load",
    "model": "MLP",
    "formulas.optimizers": "SGD Adam AdamW Optimizer RMSprop",
    "formulas.schedules": "Constant Cosine Exponential InverseScaling OneCycle ReduceOnPlateau Schedule StepDecay",
    "network.spec": "NetworkSpec",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}
_MODULES = ("approximation", "convert", "datasets", "features", "parallel", "plots", "stepbystep")

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
