"""Choosing by name, with an error that helps; and records (losses, optimizers, ...) as plain values for files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar

from fastmlp.formulas.names import explains_keywords, hint, own_name

T = TypeVar("T")


def choose(argument: str, name: object, options: Mapping[str, T], kind: str = "") -> T:
    """Return ``options[name]``.

    Parameters
    ----------
    argument : str
        For messages.
    name : object
    options : mapping
    kind : str
        Of `fastmlp.formulas.names`, for messages, where it is not the argument.

    Raises
    ------
    ValueError
        There is no such option: the message names the argument, the option to use or the nearest, and all of them.
    TypeError
        `name` is not a string.
    """
    if isinstance(name, str) and name in options:
        return options[name]
    known = ", ".join(options)
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be one of the names {known}; got {name!r}")
    raise ValueError(f"{argument} {name!r} is not known; {hint(kind or argument, name, options)}There are: {known}")


def as_named_here(kind: str, name: object, options: Mapping[str, T], argument: str = "") -> str:
    """Return the name that one of the options has here, for a name that users of other libraries may have typed.

    Parameters
    ----------
    kind : str
        Of `fastmlp.formulas.names`.
    name : object
    options : mapping
    argument : str
        For messages, where it is not the kind.

    Raises
    ------
    ValueError, TypeError
        As of `choose`.
    """
    found = own_name(kind, name, options) if isinstance(name, str) else None
    if found is None:
        choose(argument or kind, name, options, kind)
        raise AssertionError(f"{name!r} is an option")
    return found


def check_new_name(argument: str, name: object, options: Mapping[str, object]) -> None:
    """Raise ValueError unless `name` is an identifier that is not among `options`."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{argument}: the name must be an identifier such as 'my_{argument}', got {name!r}")
    if name in options:
        raise ValueError(f"{argument} {name!r} is there already; choose another name")


def settle(record: object, **fields: Any) -> None:
    """Set fields of a frozen record to what its checks made of them; for ``__post_init__`` alone."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


class RecordTypes(Generic[T]):
    """The frozen dataclasses of one kind, by their class attribute `name`.

    Parameters
    ----------
    kind : str
        What they are, for messages: ``"loss"``.
    base : type
        Their common base class.
    types : iterable of type
        The dataclasses.
    """

    def __init__(self, kind: str, base: type[T], types: Iterable[type[T]]) -> None:
        self.kind, self.base = kind, base
        self.types: dict[str, type[T]] = {}
        self._defaults: dict[type[T], T] = {}
        for t in types:
            # every base declares `name: ClassVar[str]`
            self.types[t.name] = explains_keywords(__init__=kind)(t)  # type: ignore[attr-defined]

    def names(self) -> tuple[str, ...]:
        """Return the names of all, in the order in which they were added."""
        return tuple(self.types)

    def type_of(self, name: str) -> type[T]:
        """Return the class called `name`, as files have it; ValueError lists those there are."""
        return choose(self.kind, name, self.types)

    def name_of(self, name: object) -> str:
        """Return the name that files have, for one that a user may have typed; ValueError lists those there are."""
        return as_named_here(self.kind, name, self.types)

    def record(self, value: str | T) -> T:
        """Return a record as given, or by its name with its defaults."""
        if isinstance(value, self.base):
            return value
        kind = self.types[self.name_of(value)]
        # records are frozen, so one with the defaults serves all
        if kind not in self._defaults:
            self._defaults[kind] = kind()
        return self._defaults[kind]

    def to_json(self, record: T) -> dict[str, Any]:
        """Return a record as plain values: its name and its fields.

        Raises
        ------
        ValueError
            Its class is not one of these, so that a file could not name it.
        """
        name = getattr(record, "name", None)
        if self.types.get(str(name)) is not type(record):
            raise ValueError(f"{self.kind}: a file cannot hold one of your own class, {type(record).__name__}")
        return {"name": name, **{f.name: getattr(record, f.name) for f in fields(record)}}  # type: ignore[arg-type]

    def from_json(self, values: Mapping[str, Any]) -> T:
        """Return the record that `to_json` described; ValueError or TypeError for anything else."""
        kind = self.type_of(values["name"])
        types = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]  # all of them are dataclasses
        given = {k: v for k, v in values.items() if k != "name"}
        # files may hold what was accepted for a number before all were checked: true
        numbers = {k: int(v) for k, v in given.items() if isinstance(v, bool) and types.get(k, "bool") != "bool"}
        return kind(**{**given, **numbers})
