"""Statistics of a comparison: a paired difference between two models, its interval, and when not to trust it.

**One procedure** gives interval and p value, so that the two cannot disagree: Student's t on the delete-one-cluster
jackknife, with two corrections for the samples that evaluations really have.

1. *A pseudo pair.* One cluster that gained and one that lost, each of the typical size of the differences seen, are
   added to the influences. For right-or-wrong answers this is the spread of Bonett & Price's adjusted Wald interval
   (2012, J. Educ. Behav. Stat. 37:479); it keeps a handful of differences from looking like certainty.
2. *Widening for skewness.* Each end lies at the farther of Student's quantile and the quantile corrected for skewness
   by Hall's monotone cubic (1992, J. R. Statist. Soc. B 54:221). Only wider: where estimated skewness would
   *narrow* an end, it comes mostly from the few differences at hand and is not to be trusted. And the estimate is
   taken (1 + 20 / clusters) times, because few clusters seldom hold the tail that makes it: of log-normal losses of
   sigma 1, n = 50, 3.8 % then pass falsely instead of 5.1, and 95 % are covered instead of 93; normal differences
   are judged by an interval 0.5 % wider. Independent right-or-wrong answers have no such tail: see FARTHEST.

Clusters, not samples, are the independent units (Miller 2024, "Adding Error Bars to Evals"), and the
jackknife (Efron & Tibshirani 1993, chapter 11) works for every metric that is a function of sums.

**Why not the BCa bootstrap** (Efron 1987), the usual default? Simulated under no difference, a one-sided 2.5 % test
of `low > 0` passed, in per cent (BCa | bootstrap-t | jackknife t | this procedure; 1,500 draws, ours 16,000, before
skewness was taken (1 + 20 / clusters) times, which only lowers it):

    right/wrong answers, 10 % discordant, n = 30    4.8 |  5.3 | 1.5 | 0.1
    right/wrong answers,  5 % discordant, n = 60    4.1 | 10.3 | 1.5 | 0.1
    right/wrong answers, 10 % discordant, n = 250   1.5 |  2.1 | 1.9 | 2.0
    perplexity, Student-t(3) differences, n = 20    6.6 |  1.4 | 1.3 | 0.8
    perplexity, lognormal losses, n = 60            6.1 |  3.1 | 7.1 | 4.5
    many small gains, rare big losses, n = 60       2.3 |  1.2 | 7.9 | 1.1
    clusters of 1 to 6, n = 60 clusters             3.6 |  3.5 | 3.3 | 2.3

BCa and bootstrap-t fail where few answers differ, the plain jackknife where losses are rare and large; resampling is
also dearer and needs draws. Where answers are only lost, never won, the limit agrees with Clopper & Pearson's: 2 lost
of 400 leave up to 7.04 possible (exactly 7.18), 5 leave 11.79 (11.57), 20 leave 30.62 (30.47).

No interval sees what its sample does not hold: a loss that strikes one case in 14 is absent from 20 clusters in 23 %
of the draws. And where documents of unequal length lose as a lognormal of sigma 0.8, the 2.5 % are 4.6 to 5.3 % for
20 to 45 clusters. `benchmarks/verdict.py` measures false PASS, coverage and power; benchmarks/RESULTS.md has the table.

This module knows nothing of models, files or rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from luthier.errors import EvaluationError
from luthier.metric import Floats, Metric, Sample
from luthier.records import Comparison

MIN_CLUSTERS = 20
"""Below it, the influences that the jackknife goes by say too little about the tails."""
MIN_CARRYING = 3.0
"""A difference of graded scores rests on at least this many clusters: (sum i^2)^2 / sum i^4 over the influences i,
which is the number of discordant clusters where all differ alike, and falls to 1 as one cluster dominates. It bounds
the skewness too: |skewness| <= sqrt(clusters / carrying). With 3, sparse differences of unequal sizes (uniform,
U-shaped, exponential) pass falsely in at most 4.7 % of draws at a nominal 2.5 %; without a limit, in up to 10.8 %."""
UNSEEN_SKEW = 20.0
"""Estimated skewness is taken (1 + 20 / clusters) times: a few clusters seldom hold the tail that makes it."""
FARTHEST = 2.0
"""Independent right-or-wrong answers have no tail that could go unseen: their skewness is taken as it is estimated, and
no end lies farther away than twice Student's quantile. Otherwise 25 wins and 3 losses of 30 would not show a gain, nor
19 and 1 of 20. Computed exactly for 20 to 200 answers, any share that differs and limits from -0.2 to 0.3, at most
2.8 % pass falsely (2.7 if they were widened like the others) and 95.0 % are covered (the same); of 25 answers that
all differ, 99 % of the gates see a gain of 0.8 (27)."""
POWER = 0.8
FLIPS = 10_000
EXACT_CLUSTERS = 13
"""Up to here, all 2^clusters sign flips are fewer than FLIPS."""
TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Luck:
    """Variation that the samples do not show, because it moves all of them at once: that of the training seeds."""

    error: float
    """Standard error of the difference, on these samples."""
    dof: int
    shared: float
    """Variance that is in this error and in the samples' own: what seeds and samples do together."""


NO_LUCK = Luck(0.0, 1, 0.0)


def compare(
    metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample], *, confidence: float, luck: Luck = NO_LUCK
) -> Comparison:
    """The paired difference of two models on the same samples.

    Args:
        metric: What to measure. Samples to which it does not apply, for either model, are left out for both.
        tuned: The samples with what the tuned model made of them.
        baseline: The same samples, in the same order, with what the baseline made of them.
        confidence: Two-sided coverage of the intervals, e.g. 0.95.
        luck: Added to the variation of the samples, in the difference's interval, p value and `min_detectable`.

    Returns:
        The comparison; `delta`, `low` and `high` are signed so that more is better, and `low > 0 or high < 0` exactly
        if `p < 1 - confidence`. Every number in it is finite.

    Raises:
        EvaluationError: LU-E001, the metric applies to no sample; LU-E002, it has no finite value on these samples.
    """
    stats, clusters = _paired_stats(metric, tuned, baseline)  # (n, 2, k) of tuned and baseline, (n,)
    n = len(stats)
    n_clusters = int(clusters.max()) + 1
    sums = np.zeros((n_clusters, *stats.shape[1:]))  # (G, 2, k)
    np.add.at(sums, clusters, stats)
    total = sums.sum(axis=0)

    with np.errstate(all="ignore"):
        values = np.asarray(metric.combine(total), dtype=float)  # (2,)
        left_out = np.asarray(metric.combine(total - sums), dtype=float)  # (G, 2), each without one cluster
        alone = np.asarray(metric.combine(stats), dtype=float)  # (n, 2), each sample by itself
    if not np.isfinite(values).all():
        raise EvaluationError.of("LU-E002", metric.name, f"has no finite value on these {n} samples: {values.tolist()}")

    sign = 1.0 if metric.higher_is_better else -1.0
    undefined = ~np.isfinite(left_out).all(axis=1)
    influence = _influences(np.where(undefined[:, None], values, left_out), values)  # (G, 2)
    delta = sign * float(values[0] - values[1])
    influences = _clean(sign * (influence[:, 0] - influence[:, 1]), values)
    discordant = int((np.abs(sums[:, 0] - sums[:, 1]) > TIE * (1 + np.abs(sums[:, 1]))).any(axis=1).sum())
    right_or_wrong = all(_is_proportion(alone[:, side], values[side]) for side in (0, 1))
    paired = _estimate(delta, influences, discordant, bounded=right_or_wrong and n_clusters == n)
    if right_or_wrong and not discordant and not _identical(tuned, baseline):
        paired = unseen(n_clusters, confidence)
    paired = replace(paired, luck=luck)
    low, high = paired.interval(confidence)
    value_low, value_high = _marginal(values[0], influence[:, 0], alone[:, 0], confidence)
    baseline_low, baseline_high = _marginal(values[1], influence[:, 1], alone[:, 1], confidence)

    with np.errstate(all="ignore"):
        gains = sign * (alone[:, 0] - alone[:, 1])
    wins, losses = int((gains > TIE).sum()), int((gains < -TIE).sum())  # an undefined gain (NaN) is neither: a tie
    return Comparison(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        value=float(values[0]),
        baseline=float(values[1]),
        delta=delta,
        low=low,
        high=high,
        p=paired.p(),
        n=n,
        n_clusters=n_clusters,
        wins=wins,
        losses=losses,
        ties=n - wins - losses,
        min_detectable=(delta - low) + _normal_quantile(POWER) * math.hypot(paired.own_error, luck.error),
        value_low=value_low,
        value_high=value_high,
        baseline_low=baseline_low,
        baseline_high=baseline_high,
        trouble=_trouble(influences, discordant, int(undefined.sum()), right_or_wrong),
    )


def wilson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927). `n` may be an effective, fractional sample size."""
    if n <= 0:
        raise EvaluationError.of("LU-E001", "", "an empty sample has no proportion")
    z, p = _normal_quantile(0.5 + confidence / 2), successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not push an end past the proportion itself.
    return max(0.0, min(p, (centre - half) / (1 + z * z / n))), min(1.0, max(p, (centre + half) / (1 + z * z / n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for having looked at all of them, in the order given (Holm 1979, step-down).

    Rejecting those below alpha keeps the chance of any false claim under alpha, however the tests depend.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for having been searched, in the order given (Benjamini & Hochberg 1995, step-up).

    Among those below alpha, the expected share of false claims is under alpha, if the tests are independent or
    positively dependent. For slices that were found by looking; claims that must all hold need `holm`.
    """
    n, adjusted, lowest = len(p_values), [0.0] * len(p_values), 1.0
    for rank, i in enumerate(sorted(range(n), key=lambda i: -p_values[i])):
        lowest = min(lowest, p_values[i] * n / (n - rank))
        adjusted[i] = lowest
    return adjusted


def permutation_p(differences: Sequence[float], seed: int) -> float:
    """Two-sided p of 'each difference is as likely with its sign turned', by flipping signs (Fisher 1935, Pitman 1937).

    Args:
        differences: Tuned minus baseline, summed over each cluster `(G,)`: clusters flip whole.
        seed: Of the draw of FLIPS flips. All 2^G are tried, and nothing is drawn, for up to EXACT_CLUSTERS.

    Returns:
        The share of flips that move the sum as far from 0 as the data did; of drawn flips, the data counts as one
        more (Phipson & Smyth 2010), so that p is never 0.

    Raises:
        EvaluationError: LU-E001, no cluster at all.
    """
    sums = np.asarray(differences, dtype=float)  # (G,)
    if not len(sums):
        raise EvaluationError.of("LU-E001", "", "an empty sample has no p value")
    least = abs(float(sums.sum())) - TIE * float(np.abs(sums).sum())  # rounding must not part equals
    if len(sums) <= EXACT_CLUSTERS:
        flipped = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1  # (2^G, G), each row another choice
        return float((np.abs((1 - 2 * flipped) @ sums) >= least).mean())
    rng, block = np.random.default_rng(seed), 100  # blocks, because FLIPS rows of many clusters are gigabytes
    draws = (1 - 2 * rng.integers(0, 2, (block, len(sums))) for _ in range(FLIPS // block))
    return (1 + sum(int((np.abs(signs @ sums) >= least).sum()) for signs in draws)) / (1 + FLIPS)


def share_of_drawing(gains: Sequence[Sequence[float]]) -> float:
    """The share of the variance of a mean gain that comes from drawing answers, not from the choice of prompts.

    One-way random effects (Searle, Casella & McCulloch 1992, chapter 3): mean square within prompts over that between
    them, at most 1.

    Args:
        gains: Of each prompt, the gain of each of its answers; the same number, two or more.
    """
    of = np.asarray(gains, dtype=float)  # (prompts, draws)
    within, between = of.var(axis=1, ddof=1).mean(), of.shape[1] * of.mean(axis=1).var(ddof=1)
    return float(min(within / between, 1.0)) if between > 0 else float(within > 0)


def kappa(tables: Floats) -> Floats:
    """Cohen's kappa of tables of counts `(..., K, K)`, one rater's categories by the other's (Cohen 1960,
    *Educational and Psychological Measurement* 20:37).

    NaN of an empty table, and where both used one category only: agreement by chance is then certain.
    """
    n = tables.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        observed = np.trace(tables, axis1=-2, axis2=-1) / n
        by_chance = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / n**2
        return np.asarray(np.where(by_chance < 1, (observed - by_chance) / (1 - by_chance), np.nan))


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided p of 'wins and losses are equally likely', for independent samples (the exact sign test)."""
    from scipy.special import bdtr  # type: ignore[import-untyped, unused-ignore]

    return min(1.0, 2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    error: float
    """Standard error."""
    dof: int
    skew: float
    """Skewness of the estimate: that of one influence over the root of their number."""
    bounded: bool = False
    """See FARTHEST."""
    luck: Luck = NO_LUCK

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided. `skewed` is increasing, so an end is at or beyond a point exactly if both statistics say so.

        Luck adds the square of its own Student half-width to that of the samples, where what is shared counts once
        (Howe 1974, J. Am. Stat. Assoc. 69:789, on the sum of two independent means).
        """
        t = _student_quantile(0.5 + confidence / 2, self.dof)
        down, up = (float(_reach(skew, t, self.bounded)) for skew in (self.skew, -self.skew))
        luck = self.luck.error * _student_quantile(0.5 + confidence / 2, self.luck.dof)
        return self.value - math.hypot(down * self.own_error, luck), self.value + math.hypot(up * self.own_error, luck)

    @property
    def own_error(self) -> float:
        """Of the samples, without what they share with luck."""
        return math.sqrt(max(self.error**2 - self.luck.shared, 0.0))

    def p(self) -> float:
        """Two-sided p of 'the value is 0': the least 1 - confidence at which `interval` leaves 0 out."""
        if self.luck != NO_LUCK:
            return self._p_by_search()
        if self.error == 0.0:
            return 1.0 if self.value == 0.0 else 0.0
        t = self.value / self.error
        reached = min(t, self._skewed(t)) if t > 0 else min(-t, -self._skewed(t))
        reached = max(reached, abs(t) / FARTHEST) if self.bounded else reached
        return 2.0 * _student_tail(reached, self.dof) if reached > 0 else 1.0

    def _p_by_search(self) -> float:
        """The sum of two half-widths has no inverse in closed form."""
        too_small, enough = 0.0, 1.0
        for _ in range(60):
            p = (too_small + enough) / 2
            low, high = self.interval(1 - p)
            too_small, enough = (p, enough) if low <= 0.0 <= high else (too_small, p)
        return enough

    def _skewed(self, t: float) -> float:
        """Hall's increasing cubic of the studentised estimate, which takes its skewness out."""
        g = self.skew
        return t + g / 6 + g * t * t / 3 + g * g * t**3 / 27


def low_ends(
    values: Floats,
    squares: Floats,
    cubes: Floats,
    typical: Floats,
    clusters: int,
    confidence: float,
    *,
    bounded: bool = False,
) -> Floats:
    """The low ends `(...)` that `compare` would find, for many samples at once.

    Args:
        values: Mean differences.
        squares, cubes: Sums of the influences' powers.
        typical: Mean square of the differences, over the clusters that differ; 0 where none does.
        clusters: Of each sample.
        bounded: They are of independent right-or-wrong answers, see FARTHEST.
    """
    error, skew = _spread(squares, cubes, typical, clusters, bounded)
    return values - _reach(skew, _student_quantile(0.5 + confidence / 2, max(clusters - 1, 1)), bounded) * error


def unseen(clusters: int, confidence: float) -> Estimate:
    """No difference in right-or-wrong answers of models that do differ: what can go unseen is Clopper & Pearson's
    limit for none of n. Without it, 60 ties would prove a loss of under 3 %, which ties 60 times in 16 % of draws."""
    dof = max(clusters - 1, 1)
    limit = 1 - ((1 - confidence) / 2) ** (1 / clusters)
    return Estimate(0.0, limit / _student_quantile(0.5 + confidence / 2, dof), dof, 0.0)


def _reach(skew: float | Floats, t: float, bounded: bool) -> Floats:
    """How many standard errors `(...)` an interval goes down for Student's quantile `t`; that of -skew, how far up."""
    g = np.asarray(skew, dtype=float)
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is skewed
        inverse = 3.0 * (np.cbrt(1 + g * (t - g / 6)) - 1) / g  # of `Estimate._skewed`
    # Near 0 the quotient loses its digits; the first order is exact to 1e-12.
    reach = np.maximum(t, np.where(np.abs(g) < 1e-6, t - g / 6 - g * t * t / 3, inverse))
    return np.minimum(reach, FARTHEST * t) if bounded else reach


def _spread(
    squares: float | Floats, cubes: float | Floats, typical: float | Floats, clusters: int, bounded: bool
) -> tuple[Floats, Floats]:
    """Standard errors and skewnesses `(...)`, as `low_ends` has them."""
    variance = np.asarray(squares + 2.0 * typical, dtype=float)  # the pseudo pair: one cluster up and one down
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.where(variance > 0, cubes / variance**1.5, 0.0) * (1 if bounded else 1 + UNSEEN_SKEW / clusters)
    # A single cluster has no spread: the pseudo pair alone then gives an interval that is finite and says nothing.
    return np.sqrt(variance / max(clusters * (clusters - 1), 1)), skew


def _estimate(value: float, influences: Floats, discordant: int, bounded: bool = False) -> Estimate:
    """A value with its error and skewness from the influences of the clusters `(G,)`.

    `discordant`: how many clusters differ, for the pseudo pair; 0 adds none.
    """
    clusters = len(influences)
    typical = float(((influences + value) ** 2).sum()) / discordant if discordant else 0.0
    error, skew = _spread((influences**2).sum(), (influences**3).sum(), typical, clusters, bounded)
    return Estimate(value, float(error), max(clusters - 1, 1), float(skew), bounded)


def _paired_stats(
    metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample]
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Sufficient statistics `(n, 2, k)` of the samples to which the metric applies, and the cluster of each `(n,)`."""
    assert len(tuned) == len(baseline), "both models answer the same samples"
    kept, names = [], []
    for new, old in zip(tuned, baseline, strict=True):
        assert new.id == old.id and new.cluster == old.cluster, f"sample {new.id} faces {old.id}"
        if (stats_new := metric.stats(new)) is not None and (stats_old := metric.stats(old)) is not None:
            kept.append((tuple(stats_new), tuple(stats_old)))
            names.append(new.cluster)
    if not kept:
        raise EvaluationError.of(
            "LU-E001",
            metric.name,
            f"applies to none of the {len(tuned)} samples, and an empty sample has no mean",
            "leave the metric out, or evaluate on samples that it applies to",
        )
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array(kept, dtype=float), np.array([index[name] for name in names], dtype=np.intp)


def _influences(left_out: Floats, values: Floats) -> Floats:
    """Jackknife influences `(G, 2)`: for a mean, each cluster's deviation from it."""
    return np.asarray(_clean((len(left_out) - 1) * (left_out.mean(axis=0) - left_out), values))


def _clean(influences: Floats, values: Floats) -> Floats:
    """Influences with the rounding of `G * (value - value)` set to 0: its shape is no skewness."""
    rounding = TIE * len(influences) * float(np.abs(values).max())
    return np.where(np.abs(influences) <= rounding, 0.0, influences)


def _marginal(value: float, influences: Floats, alone: Floats, confidence: float) -> tuple[float, float]:
    """The interval of one model's own value.

    A proportion gets Wilson's, at the sample size that would give the jackknife's error: clusters cost samples
    (Korn & Graubard 1998), the ends stay in [0, 1], and 20 right of 20 is not certainty.
    """
    estimate = _estimate(float(value), influences, 0)
    if _is_proportion(alone, value):
        spread = float(value) * (1 - float(value))
        n = min(spread / estimate.error**2, len(alone)) if estimate.error > 0 else len(influences)
        return wilson(float(value) * n, n, confidence)
    return estimate.interval(confidence)


def _is_proportion(alone: Floats, value: float) -> bool:
    """Whether a value is the share of samples that are right: each is 0 or 1 by itself, and it is their mean."""
    return bool(np.isin(alone, (0.0, 1.0)).all() and abs(alone.mean() - value) <= TIE)


def _identical(tuned: Sequence[Sample], baseline: Sequence[Sample]) -> bool:
    """Whether the two models did the same, not only as well as each other."""
    did = ((sample.answer, sample.nats, sample.choices) for sample in tuned)
    return all(mine == (old.answer, old.nats, old.choices) for mine, old in zip(did, baseline, strict=True))


def _trouble(influences: Floats, discordant: int, undefined: int, right_or_wrong: bool) -> str | None:
    """Why the interval should not be relied on, in words; None where it may be.

    Right-or-wrong differences all have one size, so that the interval holds for however few of them.
    """
    clusters = len(influences)
    if clusters < MIN_CLUSTERS:
        return f"{clusters} independent samples are too few; at least {MIN_CLUSTERS} are needed"
    if undefined:
        return f"the metric has no value without {undefined} of the {clusters} independent samples"
    squares = influences**2
    if right_or_wrong or not squares.any():  # nothing differs, or all by the same: there is no tail to fear
        return None
    carrying = float(squares.sum() ** 2 / (squares**2).sum())
    if carrying >= MIN_CARRYING:
        return None
    if discordant < MIN_CARRYING:
        return f"only {discordant} of {clusters} independent samples differ; at least {MIN_CARRYING:.0f} are needed"
    share = float(squares.max() / squares.sum())
    return f"the spread rests on too few of {clusters} independent samples (one alone carries {share:.0%} of it)"


def _normal_quantile(q: float) -> float:
    return NormalDist().inv_cdf(q)


def _student_quantile(q: float, dof: int) -> float:
    from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

    return float(stdtrit(dof, q))


def _student_tail(t: float, dof: int) -> float:
    from scipy.special import stdtr  # type: ignore[import-untyped, unused-ignore]

    return float(stdtr(dof, -t))
