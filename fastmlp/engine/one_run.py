"""Callbacks that are part of one training run at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from fastmlp.engine.loop import Callback

if TYPE_CHECKING:
    from fastmlp.engine.loop import Training

_OWNED: WeakValueDictionary[int, Training] = WeakValueDictionary()
"""The run that each callback is part of which keeps what is a run's, by its id: copies are nobody's.  A run that is
gone is none, where another callback's error kept this one from being ended."""
_OWNING = threading.Lock()


class OfOneRun(Callback):
    """Keeps what belongs to a run, and is part of one at a time; what derives from it begins and ends by it."""

    def on_train_begin(self, run: Training) -> None:
        with _OWNING:
            if _OWNED.setdefault(id(self), run) is not run:
                raise RuntimeError(
                    f"callbacks: this {type(self).__name__} is part of another fit, which has not ended (in another "
                    "thread, or the one whose callback asks for this fit); give each fit one of its own"
                )

    def on_train_end(self, run: Training) -> None:
        _OWNED.pop(id(self), None)
