"""How far two groups of different samples lie apart: intervals of a difference. Knows nothing of who the groups are."""

from __future__ import annotations

import math
from typing import NamedTuple

from luthier.stats import wilson


class Gap(NamedTuple):
    """The first group's value minus the second's, and its interval."""

    value: float
    low: float
    high: float


class Sums(NamedTuple):
    """Of n values."""

    n: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Unbiased; n is at least 2."""
        return max(self.squares - self.total**2 / self.n, 0.0) / (self.n - 1)


def of_shares(hits: int, n: int, other_hits: int, other_n: int, confidence: float) -> Gap:
    """The difference of two shares, by the hybrid score interval (Newcombe 1998, Statistics in Medicine 17:873, method
    10): each share's Wilson interval says how far it may lie from what was seen. Both n are at least 1."""
    p, q = hits / n, other_hits / other_n
    (low, high), (other_low, other_high) = wilson(hits, n, confidence), wilson(other_hits, other_n, confidence)
    return Gap(p - q, p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low))


def of_means(of: Sums, other: Sums, confidence: float) -> Gap:
    """The difference of two means, by Welch's t (1947, Biometrika 34:28). Both n are at least 2."""
    a, b = of.variance / of.n, other.variance / other.n
    reach = 0.0
    if a + b:
        dof = (a + b) ** 2 / (a**2 / (of.n - 1) + b**2 / (other.n - 1))
        reach = _quantile(confidence, dof) * math.sqrt(a + b)
    gap = of.mean - other.mean
    return Gap(gap, gap - reach, gap + reach)


def of_mean(of: Sums, confidence: float) -> tuple[float, float]:
    """Student's interval of one mean. n is at least 2."""
    reach = _quantile(confidence, of.n - 1) * math.sqrt(of.variance / of.n)
    return of.mean - reach, of.mean + reach


def _quantile(confidence: float, dof: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, dof))
