"""What a model says of itself: the properties of `fastmlp.MLP`, read off its learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.engine.checks import check_class_names, check_feature_names
from fastmlp.network.spec import NetworkSpec

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.choosing import BackendChoice
    from fastmlp.engine.learner import Learner
    from fastmlp.preprocessing.record import Preprocessing


class Described:
    """What is asked of a model without its being trained or used."""

    _learner: Learner

    @property
    def spec(self) -> NetworkSpec:
        """What the network is."""
        return self._learner.spec

    @property
    def backend(self) -> Backend:
        """Where it runs."""
        return self._learner.backend

    @property
    def backend_choice(self) -> BackendChoice:
        """Why it runs there: as asked for, or what "auto" found, with what a step took where that was tried."""
        return self._learner.choice

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which type it computes."""
        return self._learner.dtype

    @property
    def seed(self) -> int:
        """The 64-bit seed that was given or drawn."""
        return self._learner.state.key

    @property
    def steps(self) -> int:
        """Training steps done so far."""
        return self._learner.state.step

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, which saved files keep; one an output, or two for a single sigmoid output."""
        return self._learner.class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._learner.class_names = check_class_names(self.spec, names)

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The names of the columns of x, which saved files keep; the command line picks columns of a table by them."""
        return self._learner.rules.names

    @feature_names.setter
    def feature_names(self, names: Sequence[str] | None) -> None:
        rules = self._learner.rules
        self._learner.rules = rules._replace(names=check_feature_names(rules.columns(self.spec.units[0]), names))

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What makes inputs of the rows that it is given, which saved files keep; None where they are the inputs."""
        return self._learner.rules.preprocessing

    @preprocessing.setter
    def preprocessing(self, fitted: Preprocessing | None) -> None:
        self._learner.rules = self._learner.rules.preprocessed(fitted, self.spec.units[0])

    @property
    def input_divisor(self) -> int:
        """What inputs of any type are divided by: 255 where the first training was on uint8 pixels, else 1."""
        return self._learner.rules.divisor
