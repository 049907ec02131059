"""The exceptions and warnings of fastmlp that are more than a ValueError or a TypeError."""

from __future__ import annotations


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here; the message gives the reason and the cure."""


class FileFormatError(ValueError):
    """A file is not what it should be: foreign, truncated, altered or inconsistent.

    The message names the file, what was expected, what was found and, where there is one, the cure.
    """


class DataError(ValueError):
    """Data that can be read but cannot be used: labels out of range, NaN, wrong shapes, mismatched counts.

    Attributes
    ----------
    row : int or None
        The row to blame, from 0, where it is one; who read the rows from a file knows its line.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class NonFiniteLossError(FloatingPointError):
    """The loss of a training step was NaN or infinite; the model is as it was before that step.

    Where a step had made weights overflow that no loss had seen yet, the model has the weights again that it had before
    the call that trained it, and its optimizer begins anew.

    Attributes
    ----------
    epoch, step, row : int
        Epoch (from 1), step of the run (from 0) and row of the training data where it happened; `row` is -1
        where no single row is to blame.
    where : str
        The first array that was not finite, such as ``"the pre-activations of layer 2"``.
    """

    def __init__(self, message: str, *, epoch: int, step: int, row: int, where: str) -> None:
        super().__init__(message)
        self.epoch, self.step, self.row, self.where = epoch, step, row, where


class KernelError(RuntimeError):
    """A kernel does not run on a device; the message names it and what avoids it.

    Attributes
    ----------
    kernel : str
        Its name, with its template arguments.
    """

    def __init__(self, message: str, *, kernel: str) -> None:
        super().__init__(message)
        self.kernel = kernel


class ParallelError(RuntimeError):
    """Ranks that train together cannot go on: one has other settings, data or weights, has failed, or does not answer.

    The message names the rank.
    """


class TrainingInterrupted(UserWarning):
    """Training was stopped by Ctrl-C after a whole step; the model is usable and says where it stands."""


class ReproducibilityWarning(UserWarning):
    """A run goes on under other choices than it began with, so it need not give the same bits."""
