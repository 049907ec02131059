"""What the text of a cell is: a number, a number written as people write it, a sign for a missing value, a name."""

from __future__ import annotations

import re
from collections.abc import Sequence

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
"""Whole numbers that always fit in an int64."""
MISSING = frozenset(
    ("", "?", "-", "--", ".", "NA", "na", "N/A", "n/a", "N.A.", "n.a.", "NULL", "Null", "null", "None")
) | {"NaN", "nan", "NAN", "NaT", "#N/A", "#NA", "<NA>", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#NAME?"}
"""What programs and people write where there is no value; in this spelling, since Na is a metal."""
PLAIN = "write numbers as 1234.5, without units and without marks between thousands"
_GROUPS = r"[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})*(?:[.,][0-9]+)?|[0-9]+(?:[.,][0-9]+)?"
_FORMATTED = re.compile(
    rf"\(?[+\-\u2212]?\s?[$€£¥₹]?\s?[+\-\u2212]?(?:{_GROUPS})(?:[eE][+-]?[0-9]+)?\s?(?:[%‰$€£¥₹]|[A-Z]{{3}})?\)?"
    rf"|[A-Z]{{3}}\s(?:{_GROUPS})|0[xX][0-9a-fA-F]+"
)
_MEASURE = re.compile(
    rf"(?P<before>[^\d\s+\-\u2212]\D{{0,9}}?)?\s?[+\-\u2212]?(?P<number>{_GROUPS})\s?(?P<unit>[^\d\s].{{0,15}})?"
)
"""A number with something before it, ``< 3.5`` or ``Rs. 3.5``, or after it, ``3.5 kg``."""
_NO_WORD = re.compile(r"\W+")
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    r"[0-9]{4}([-/.])[0-9]{1,2}\1[0-9]{1,2}(?:[T ].*)?|[0-9]{1,2}([-/.])[0-9]{1,2}\2(?:[0-9]{4}|[0-9]{2})(?:\s.*)?"
    rf"|[0-9]{{1,2}}[- ]{_MONTH}[-, ]+[0-9]{{2,4}}.*|{_MONTH} [0-9]{{1,2}},? [0-9]{{4}}.*"
    r"|[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:\s?[ap]m)?",
    re.IGNORECASE,
)


def is_number(text: str) -> bool:
    """Return whether a text is a number as a file should hold it."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text  # float() takes more than a file should hold


def is_fractional(text: str) -> bool:
    """Return whether a text is a number, but not a whole one."""
    return is_number(text) and WHOLE.fullmatch(text) is None


def is_missing(text: str) -> bool:
    """Return whether a text stands for no value at all."""
    return text in MISSING


def is_formatted(text: str) -> bool:
    """Return whether a text is a number or a date as people write it: ``1,234.50``, ``$3``, ``5 %``, ``2024-05-01``."""
    if is_number(text):
        return False
    try:
        float(text)
    except ValueError:
        return bool(_FORMATTED.fullmatch(text) or _DATE.fullmatch(text))
    return True


def measures(texts: Sequence[str]) -> list[str]:
    """Return those of the texts of a column that are numbers with a unit or a mark: ``3.5 kg``, ``< 10``, ``Rs. 2.5``.

    What stands beside the numbers has to occur again, as it does not in codes such as ``12ab``; after a word they have
    to have fractions, as in ``class_12`` they do not.
    """
    found = [(text, match) for text in texts if (match := _MEASURE.fullmatch(text)) is not None]
    sides = [(text, match["before"] or "", match["unit"] or "", match["number"]) for text, match in found]
    fractions = any(not number.isdecimal() for *_, number in sides)
    kept = [
        (text, before, unit)
        for text, before, unit, _ in sides
        if (before or unit) and (not before or fractions or _NO_WORD.fullmatch(before))
    ]
    return [text for text, *_ in kept] if 2 * len({pair[1:] for pair in kept}) <= len(kept) else []


def cure_of(text: str) -> str:
    """Return how to write a text that is to be a number, where it is one as people write it or has a unit."""
    if _DATE.fullmatch(text):
        return "; write dates as numbers, of days for example"
    return f"; {PLAIN}" if is_formatted(text) or _MEASURE.fullmatch(text) else ""


def quoted(text: str) -> str:
    """Return a text as messages show it, cut where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def listed(names: Sequence[str]) -> str:
    """Return names as messages list them, the first twelve."""
    shown = ", ".join(map(repr, names[:12]))
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
