"""Pairs of answers as metrics: win rate, win rate at equal length, win rate corrected by people's votes.

Each is a function of sums, and the baseline's value is the complement of the tuned model's, so that the paired
difference of two models is P(win) - P(loss). It knows nothing of who judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan, tanh

import numpy as np

from luthier.metric import Floats, MeanMetric, Metric, Sample, SumMetric

MIN_VOTES = 30
"""Fewer differ too little from one another to tell how far people stray from the judge."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One pair, told for one of the two models."""

    won: float
    """1 for a win, 0 for a loss, 0.5 for a tie."""
    longer: float = 0.0
    """Characters by which its answer is longer than the other's."""
    vote: float | None = None
    """What people say: 1 where they prefer it, 0 the other, 0.5 neither; between, where they differ."""
    equal: bool = False
    """Whether the answers are the same text: a tie that nobody has to judge."""

    @property
    def mirrored(self) -> Outcome:
        """The same, told for the other model."""
        vote = None if self.vote is None else 1 - self.vote
        return replace(self, won=1 - self.won, longer=-self.longer, vote=vote)


Outcomes = Mapping[tuple[str, str], Outcome]
"""By the sample's id and the answer, which tells the model: equal answers are a tie for both."""


def win_rate(name: str, outcomes: Outcomes) -> Metric:
    """Share of pairs won, a tie as half."""

    def score(sample: Sample) -> float | None:
        found = outcomes.get((sample.id, sample.answer))
        return None if found is None else found.won

    return MeanMetric(name, score)


def length_controlled(name: str, outcomes: Outcomes) -> Metric:
    """The win rate that a line through the outcomes gives to answers of equal length.

    By least squares of the outcome y on d = tanh(difference in characters / its root mean square over all pairs); the
    intercept is a function of the sums of 1, y, d, d^2, yd. After the length-controlled AlpacaEval (Dubois, Galambosi,
    Liang & Hashimoto 2024), which fits a logistic model, divides by the standard deviation, and has terms for the
    difficulty of each request and for the model; a line needs no iteration, hence a jackknife. It takes out what
    length alone explains: if the better answers had to be longer, that merit goes with it. NaN where all pairs differ
    by the same length.
    """
    raw = np.array([o.longer for o in outcomes.values() if not o.equal], dtype=float)
    scale = float(np.sqrt((raw**2).mean())) if raw.any() else 1.0

    def stats(sample: Sample) -> Sequence[float] | None:
        if (found := outcomes.get((sample.id, sample.answer))) is None:
            return None
        d = tanh(found.longer / scale)
        return 1.0, found.won, d, d * d, found.won * d

    def combine(sums: Floats) -> Floats:
        n, y, d, dd, yd = np.moveaxis(sums, -1, 0)
        spread = n * dd - d * d  # n^2 times the variance of d
        flat = spread <= 1e-12 * n * dd
        with np.errstate(invalid="ignore", divide="ignore"):
            at_zero = (dd * y - d * yd) / spread
            alone = (n == 1) | (dd == 0)  # a sample by itself is won or lost; equal lengths need no line
            return np.asarray(np.where(alone, y / n, np.where(flat, nan, at_zero)))

    return SumMetric(name, stats, combine)


def corrected(name: str, outcomes: Outcomes) -> Metric:
    """The win rate that people would give to all pairs, from their votes on some and the judge's word on all.

    With f the judge's outcomes and h people's on m pairs, mean(h) + lambda (mean of f over all - mean of f over the
    m), where lambda = cov(h, f) over the m / var(f) over all, kept in 0..1: prediction-powered inference (Angelopoulos
    et al. 2023, Science 382:669) with the power tuning of PPI++ (Angelopoulos, Duchi & Zrnic 2023, section 6; their
    factor 1 / (1 + n/N) is here in f's mean, which is over all pairs and not over the unvoted ones). The same is
    sampling theory's regression estimator (Cochran 1977, chapter 12). Equal answers are ties that are known, a stratum
    of their own. It holds where the voted pairs are a random part of those with different answers, whatever the
    judge's errors; a judge that knows nothing gets lambda 0 and only the votes count. NaN without votes.
    """

    def stats(sample: Sample) -> Sequence[float] | None:
        if (o := outcomes.get((sample.id, sample.answer))) is None:
            return None
        if o.equal:
            return 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        voted = (0.0,) * 4 if o.vote is None else (1.0, o.vote, o.won, o.vote * o.won)
        return 0.0, 1.0, o.won, o.won**2, *voted

    def combine(sums: Floats) -> Floats:
        equal, n, f, ff, m, h, fm, hf = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance, covariance = ff / n - (f / n) ** 2, hf / m - h * fm / m**2
            weight = np.where(variance > 1e-12, np.clip(covariance / variance, 0.0, 1.0), 0.0)
            differing = h / m + weight * (f / n - fm / m)
            by_itself = np.where(m > 0, h, f)  # a sample alone: people's word, else the judge's
            won = np.where(equal + n == 1, by_itself, n * differing)
            return np.asarray((0.5 * equal + np.where(n > 0, won, 0.0)) / (equal + n))

    return SumMetric(name, stats, combine)
