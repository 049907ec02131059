"""What samples of time say: a median with its spread, and whether two contenders differ at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FACTOR = 1.1
"""How many times as long the slower one takes at least, for a difference to be called one."""
CHANCE = 0.002
"""How likely samples of one and the same speed may lie as far apart as these, at most (asv's threshold)."""

FASTER, SLOWER, NONE, FEW = "faster", "slower", "no difference seen", "too few samples to tell"


class Summary(NamedTuple):
    """The median of some samples, the quartiles below and above it, and how many they are."""

    median: float
    low: float
    high: float
    samples: int


class Verdict(NamedTuple):
    """What became of a comparison.

    Attributes
    ----------
    word : str
        `FASTER`, `SLOWER`, `NONE` or `FEW`.
    ratio : float
        The median of the one over that of the other.
    chance : float
        The two-sided p of the Mann-Whitney test.
    """

    word: str
    ratio: float
    chance: float


def summarize(samples: Sequence[float]) -> Summary:
    """Return median and quartiles of (n,) samples, n at least 1."""
    low, median, high = np.quantile(np.asarray(samples, np.float64), (0.25, 0.5, 0.75))
    return Summary(float(median), float(low), float(high), len(samples))


def compare(one: Sequence[float], other: Sequence[float], factor: float = FACTOR) -> Verdict:
    """Say whether samples are faster or slower than others.

    They are where the medians differ by the factor *and* a Mann-Whitney test gives a chance below `CHANCE`, which is
    the rule of asv; where not even samples of which each beats each could give that, they are too few.

    Parameters
    ----------
    one, other : (n,) and (m,) sequences of float
        Seconds, or bytes; n and m at least 1.
    factor : float
        At least 1.
    """
    from scipy.stats import mannwhitneyu

    ratio = summarize(one).median / summarize(other).median
    chance = float(mannwhitneyu(one, other).pvalue)
    if 2 / math.comb(len(one) + len(other), len(one)) >= CHANCE:
        return Verdict(FEW, ratio, chance)
    if chance >= CHANCE or max(ratio, 1 / ratio) < factor:
        return Verdict(NONE, ratio, chance)
    return Verdict(SLOWER if ratio > 1 else FASTER, ratio, chance)


def beside_usual(now: Summary, runs: Summary, within: Summary, factor: float = FACTOR) -> str:
    """Say whether a run is faster or slower than is usual, where the samples of former ones are not there any more.

    It is where its median differs by the factor from that of the former medians and lies beyond their middle half, and
    its own middle half does not overlap the usual one.

    Parameters
    ----------
    now : Summary
    runs : Summary
        Of the medians of former runs, one sample a run.
    within : Summary
        The usual median and quartiles of a run.
    factor : float
        At least 1.
    """
    if now.median >= factor * runs.median and now.median > runs.high and now.low > within.high:
        return SLOWER
    if now.median * factor <= runs.median and now.median < runs.low and now.high < within.low:
        return FASTER
    return NONE
