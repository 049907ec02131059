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
_GROUPS = r"[0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})*(?:[.,][0-9]+)?|[0-9]+(?:[.,][0-9]+)?"
_FORMATTED = re.compile(
    rf"\(?[+\-\u2212]?\s?[$€£¥₹]?\s?[+\-\u2212]?(?:{_GROUPS})(?:[eE][+-]?[0-9]+)?\s?(?:[%‰$€£¥₹]|[A-Z]{{3}})?\)?"
    rf"|[A-Z]{{3}}\s(?:{_GROUPS})|0[xX][0-9a-fA-F]+"
)
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


def quoted(text: str) -> str:
    """Return a text as messages show it, cut where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def listed(names: Sequence[str]) -> str:
    """Return names as messages list them, the first twelve."""
    shown = ", ".join(map(repr, names[:12]))
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
