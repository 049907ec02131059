"""Which backend a long run on "auto" takes: the same steps on each that is a candidate, timed, and the faster one kept.

Only where another backend than the default could win is anything timed: a GPU whose self-test has passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
