"""What a doctor finds: facts, troubles with the command that mends each, and both as text.  Python alone is needed."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong on this machine.

    Attributes
    ----------
    cause : str
    cure : str
        The command that mends it.
    stops : bool
        Whether a package that fastmlp needs cannot be used; other troubles cost time, or a choice.
    """

    cause: str
    cure: str
    stops: bool = False


@dataclass
class Findings:
    """What was found: under a title each, names and what is to be said about them; and the troubles."""

    facts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)

    @classmethod
    def from_dict(cls, plain: Any) -> Findings:
        """Return the findings that `dataclasses.asdict` and JSON have made plain."""
        facts = {title: [(name, value) for name, value in rows] for title, rows in plain["facts"].items()}
        return cls(facts, [Trouble(**trouble) for trouble in plain["troubles"]])

    def add(self, title: str, *rows: tuple[str, object]) -> None:
        """Add facts under a title."""
        self.facts.setdefault(title, []).extend((name, str(value)) for name, value in rows)

    def merge(self, other: Findings) -> None:
        """Add all of other findings, a trouble that is known already but once."""
        for title, rows in other.facts.items():
            self.add(title, *rows)
        self.troubles += [trouble for trouble in other.troubles if trouble not in self.troubles]

    @property
    def stops(self) -> bool:
        """Whether anything stops work."""
        return any(trouble.stops for trouble in self.troubles)

    def headline(self) -> str:
        """Return in one line how many troubles there are."""
        count, stopping = len(self.troubles), sum(trouble.stops for trouble in self.troubles)
        if not count:
            return "fastmlp doctor: nothing is wrong"
        things = f"{count} thing{'s are' if count > 1 else ' is'} wrong"
        return f"fastmlp doctor: {things}, {stopping or 'none'} of which stop{'s' * (stopping == 1)} work"

    def table(self) -> str:
        """Return the facts as lines of text."""
        lines = []
        width = max((len(name) for rows in self.facts.values() for name, _ in rows), default=0)
        for title, rows in self.facts.items():
            lines += ["", title, *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)]
        return "\n".join(lines[1:])

    def __str__(self) -> str:
        lines = [self.headline()]
        for number, trouble in enumerate(sorted(self.troubles, key=lambda t: not t.stops), 1):
            kind = "stops work" if trouble.stops else "works, but"
            lines += ["", f"{number}. {kind}: {trouble.cause}", f"   mend it by: {trouble.cure}"]
        return "\n".join([*lines, "", self.table()])

    def markdown(self) -> str:
        """Return a block to paste into an issue, without the user's name or home folder."""
        lines = [f"**{self.headline()}**", ""]
        for trouble in sorted(self.troubles, key=lambda t: not t.stops):
            kind = "stops work" if trouble.stops else "works, but"
            lines += [f"- {kind}: {trouble.cause}", "", f"      {trouble.cure}", ""]
        fence = "```"
        text = "\n".join([*lines, "<details>", "", f"{fence}text", self.table(), fence, "", "</details>"])
        return without_names(text)

    def as_json(self) -> str:
        """Return all as JSON."""
        return json.dumps(asdict(self), indent=2)


def without_names(text: str) -> str:
    """Return a text with ``~`` for the home folder, and ``USER`` for the user's name where it is part of a path."""
    homes, names = {os.path.expanduser("~")}, set()
    with contextlib.suppress(Exception):  # HOME may name another folder than the account does, or be a link
        homes.add(os.path.realpath(os.path.expanduser("~")))
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    with contextlib.suppress(Exception):
        names.add(getpass.getuser())
    names |= {Path(home).name for home in homes}
    for home in sorted(homes - {"", "/", "~"}, key=len, reverse=True):
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name in sorted(names - {""}, key=len, reverse=True):
        text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?![\w.-])", "USER", text)
    return text
