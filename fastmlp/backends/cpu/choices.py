"""What a session of the Numba backend chooses: parts of a step, the threads that work on them, forms of products."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.calibration import kept_path, machine
from fastmlp.backends.cpu.crew import Crew, Steady
from fastmlp.backends.decisions import Decisions, kept_so_far, steps_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastmlp.backends.cpu.forms import Forms
    from fastmlp.network.plan import Plan


MOST_SHARES = 4
"""Parts of a step for each thread, at most."""
STEPS = "steps"
"""The first part of the name of the file that keeps what trials of forms decided."""


def decisions(what: str, dtype: np.dtype[Any]) -> Decisions:
    """Return what was decided for a type on this machine, kept with the compiled kernels."""
    return Decisions(kept_path(what, dtype), machine())


class Choices:
    """The choices of one plan, each made when it is first asked for.

    Parameters
    ----------
    plan : Plan
    chunk : int
        Rows that a thread works on at once in prediction.
    most : int
        Of the threads that a call may use.
    forms : Forms
        Which decides, where no trial of steps did.
    """

    def __init__(self, plan: Plan, chunk: int, most: int, forms: Forms) -> None:
        self.most = most
        self._plan = plan
        self._chunk = chunk
        self._deciding = forms
        self._given = False
        """Whether they were made elsewhere: in the run that goes on, or by a trial."""
        self._blind = False
        """Whether a choice was made before all was known of the machine."""
        self._looked = -1
        """How many decisions there were when they were last looked at."""
        self._threads_for: dict[int, int] = {}

    @cached_property
    def parts(self) -> int:
        """Into how many parts the work of a step is divided, on which its numbers depend; in prediction the threads."""
        plan = self._plan
        self._note_what_is_known()
        if plan.optimizer is None:
            return self.most
        if self._decided is not None:
            return self._decided[1]
        return self._deciding.parts_for(plan.batch, self.most, plan.spec.units, plan.precision.products)

    @property
    def threads(self) -> int:
        """How many threads work on them at most."""
        return min(self.parts, self.most)

    @property
    def most_parts(self) -> int:
        """Into how many parts a step may be divided, which cores that are not equally fast share out as they go."""
        if self.most == 1:
            return 1
        plan, most = self._plan, MOST_SHARES * self.most
        return self._deciding.parts_for(plan.batch, most, plan.spec.units, plan.precision.products)

    @cached_property
    def crew(self) -> Crew:
        """How many threads work on them."""
        return Crew(self.threads)

    @cached_property
    def forms(self) -> NDArray[np.int64]:
        """How each layer's products are computed, see `kernels.cpu.structures.Network`."""
        plan = self._plan
        self._note_what_is_known()
        if self._decided is not None:
            return self._decided[0]
        return self._by_rule(plan.batch) if plan.optimizer is None else self.forms_in(self.parts)

    def forms_in(self, parts: int) -> NDArray[np.int64]:
        """Return the forms by the rule in training steps that are divided into so many parts."""
        return self._by_rule(-(-self._plan.batch // parts), parts)

    def forms_of(self, rows: int) -> NDArray[np.int64]:
        """Return the forms in a prediction of so many rows: few may take others than a whole chunk."""
        return self.forms if self._given or rows >= self._chunk else self._by_rule(rows)

    def _by_rule(self, rows: int, parts: int | None = None) -> NDArray[np.int64]:
        plan = self._plan
        rows = rows if plan.optimizer is not None else min(rows, self._chunk)
        units, dtype = plan.spec.units, plan.precision.products
        return self._deciding.of_layers(rows, parts or self.parts, units, dtype, gradients=plan.gradients)

    @cached_property
    def _decided(self) -> tuple[NDArray[np.int64], int] | None:
        """The forms and parts that a trial of such steps found on this machine, where there was one."""
        plan = self._plan
        self._looked = kept_so_far()
        if plan.optimizer is None or not self._deciding.left_open:
            return None
        found = decisions(STEPS, plan.precision.products).all().get(self.key, {})
        forms, parts = _of_names(found.get("products")), found.get("parts")
        if forms is None or not isinstance(parts, int) or not self._fit(forms, parts):
            return None
        return forms, parts

    @property
    def key(self) -> str:
        """For what a trial of steps decides."""
        return f"{steps_key(self._plan)}, {self.most} threads"

    @property
    def undecided(self) -> bool:
        """Whether a trial of steps may decide."""
        open_to_it = self._plan.optimizer is not None and self._deciding.left_open and not self._given
        return open_to_it and self._decided is None

    def threads_for(self, rows: int) -> int:
        """Return how many threads are to run so many rows forward."""
        if self.most == 1:
            return 1
        found = self._threads_for.get(rows)
        if found is None:
            plan = self._plan
            found = self._deciding.threads_for(rows, self.most, plan.spec.units, plan.precision.products)
            self._threads_for[rows] = found
        return found

    def described(self) -> dict[str, Any]:
        """Return what a checkpoint, and a file of decisions, says of them."""
        return {"products": named(self.forms), "parts": self.parts}

    def adopt(self, choices: Mapping[str, Any]) -> bool:
        """Make the choices of a run that goes on, where they are left open and can be; tell whether they are others."""
        forms = _of_names(choices.get("products")) if self._deciding.way == "auto" else None
        parts = choices.get("parts", self.parts)
        if forms is None or not self._fit(forms, parts):
            return False
        self._given = True
        if parts == self.parts and (forms == self.forms).all():
            return False
        self._forget()
        self.parts, self.forms = parts, forms
        return True

    def fix(self, forms: NDArray[np.int64], parts: int) -> None:
        """Make these choices, and no others any more; before the session's memory is made."""
        self._given = True
        self._forget()
        self.parts, self.forms, self.crew = parts, forms, Steady(min(parts, self.most))

    def again(self) -> bool:
        """Choose again where more is known of the machine now, but for what was given; tell whether so."""
        if self._given:
            return False
        if not self._blind:
            if self._looked == kept_so_far() or not self.undecided:  # asked before every call of a run
                return False
            del self._decided  # to look again
            if self._decided is None:
                return False
        self._forget()
        return True

    def _fit(self, forms: NDArray[np.int64], parts: object) -> bool:
        from fastmlp.kernels.cpu.codes import PRODUCTS

        a_count = type(parts) is int and parts in range(1, MOST_SHARES * self.most + 1)
        return a_count and forms.shape == (self._plan.spec.layers, len(PRODUCTS))

    def _note_what_is_known(self) -> None:
        self._blind |= self._deciding.lacks(self._plan.precision.products)

    def _forget(self) -> None:
        self._blind = False
        for choice in ("parts", "crew", "forms", "_decided"):
            self.__dict__.pop(choice, None)
        self._threads_for.clear()


def named(forms: NDArray[np.int64]) -> str:
    """Return the forms of all layers in words: what a checkpoint says of them."""
    from fastmlp.kernels.cpu import codes

    return ", ".join(" ".join(codes.FORMS[form] for form in layer) for layer in forms.tolist())


def _of_names(text: object) -> NDArray[np.int64] | None:
    """Return the forms that `named` wrote down; None where they are others than there are here."""
    from fastmlp.kernels.cpu import codes, products

    here = {codes.FORMS[form]: form for form in products.available_forms()}
    with contextlib.suppress(KeyError, ValueError):
        return np.array([[here[name] for name in layer.split()] for layer in str(text).split(", ")], np.int64)
    return None
