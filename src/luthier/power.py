"""Planning a test set before its rows are collected: what gain n rows will show, and how many rows a gain needs.

A *pilot* says how two models differ: the rows of an earlier evaluation, or a stated share of answers that differ. The
plan is the share of future gates that would PASS, by the interval and the refusals of `stats.compare`:

* *Right-or-wrong answers, exactly*: the trinomial probability of all (wins, losses) for which the gate passes. With d
  the share of answers that differ and g the true gain, wins are (max(d, |g|) + g) / 2 and losses (max(d, |g|) - g) / 2:
  a gain above d makes more of them differ, which no spread of a sample without it can know. Where rows belong
  together, they count as n / design effect rows (Kish 1965, *Survey Sampling*, section 8.2).
* *Graded scores, by resampling*: test sets of n rows are drawn by whole clusters from the pilot, all rows shifted to
  the gain; those that tied still do for the pseudo pair of `stats`. As draws are finite, a gain is known to about 1 %,
  a number of rows to 2 %.

**What a pilot cannot know.** Its own spread is uncertain (of G clusters, by 1 / sqrt(2 G), and by much more with heavy
tails): `plan` redraws the pilot itself and gives the range of what others of its size would have said. Differences
larger or rarer than those that it holds are in no plan. A gain may also change the spread of graded scores (near their
ceiling they vary less; where few rows make all of it, more): a pilot with about the planned gain is better than one
without. And the rows to come must be like those of the pilot.

This module knows nothing of models, files or rules: a rule is its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from luthier.errors import EvaluationError, did_you_mean
from luthier.metric import Floats
from luthier.records import EvalReport
from luthier.stats import MIN_CARRYING, MIN_CLUSTERS, POWER, TIE, low_ends, unseen

Ints = np.ndarray[tuple[int, ...], np.dtype[np.intp]]
Chance = Callable[[float], float]
"""Of a true gain, the share of gates that pass."""

MAX_ROWS = 100_000
DRAWS = 10_000
PILOTS = 100
"""Redrawn pilots of a range; each is planned with DRAWS_EACH draws."""
DRAWS_EACH = 400
RANGE = (5, 95)
"""Percentiles of the plans of redrawn pilots."""
BLOCK = 1_000_000
"""Drawn clusters that are held at once."""
NEGLIGIBLE = 1e-9
"""Probability at each end that is left out of the exact sum."""
STATED_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Gate:
    """What will be asked: that the interval's low end is above `limit`."""

    limit: float = 0.0
    """In points of the metric, signed so that more is better: 0 to beat the baseline, -0.02 to lose no 0.02."""
    confidence: float = 0.95
    power: float = POWER


BEAT = Gate()


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """How two models differ, row by row."""

    differences: Floats
    """`(n,)` tuned minus baseline, signed so that more is better."""
    clusters: Ints
    """`(n,)` from 0 on: rows that share one are not independent."""
    right_or_wrong: bool
    """Whether every score is 0 or 1."""
    sampled: bool = True
    """False where it is stated, so that there are no others of its size."""

    @classmethod
    def of(cls, evaluation: EvalReport, metric: str) -> Pilot:
        """The rows of an earlier evaluation.

        Raises EvaluationError LU-E008, it has no such metric; LU-E014, its value is no mean of rows that are in it, or
        they say too little.
        """
        if metric not in evaluation.metrics:
            advice = did_you_mean(metric, evaluation.metrics)
            raise EvaluationError.of("LU-E008", metric, "the evaluation has no such metric", advice)
        rows = _rows(evaluation, metric)
        if not rows:
            means = ", ".join(name for name in evaluation.metrics if _rows(evaluation, name))
            found = "is no mean over rows of the test set, so that no rows say how it varies"
            raise EvaluationError.of("LU-E014", metric, found, f"metrics that are: {means}" if means else "")
        sign = 1.0 if evaluation.metrics[metric].higher_is_better else -1.0
        index = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in rows))}
        clusters = np.array([index[name] for name, *_ in rows], dtype=np.intp)
        scores = np.array([row[1:] for row in rows])  # (n, 2) of baseline and tuned
        pilot = cls(sign * (scores[:, 1] - scores[:, 0]), clusters, bool(np.isin(scores, (0.0, 1.0)).all()))
        if pilot.n_clusters < MIN_CLUSTERS:
            found = f"its {pilot.n_clusters} independent rows say too little; at least {MIN_CLUSTERS} are needed"
            raise EvaluationError.of("LU-E014", metric, found, "evaluate on more rows, or state a share by --differ")
        if float(np.ptp(pilot.differences)) <= TIE:
            found = "every row differs by the same, mostly by nothing, which does not say how gains vary"
            raise EvaluationError.of("LU-E014", metric, found, "plan from models that differ, or by --differ")
        return pilot

    @classmethod
    def stated(cls, differ: float) -> Pilot:
        """Independent right-or-wrong answers of which this share differs. Raises EvaluationError LU-E014."""
        if not 0 < differ <= 1:
            raise EvaluationError.of("LU-E014", "differ", f"{differ:g} is no share of answers", "0.1 is every tenth")
        rows = np.arange(STATED_ROWS)
        differences = np.where(rows < round(differ * STATED_ROWS), np.where(rows % 2, 1.0, -1.0), 0.0)
        return cls(differences, rows, right_or_wrong=True, sampled=False)

    @property
    def n_clusters(self) -> int:
        return int(self.clusters.max()) + 1

    def by_cluster(self) -> tuple[Floats, Floats]:
        """Sums of the differences and numbers of rows, `(G,)` each."""
        sums, sizes = np.bincount(self.clusters, self.differences), np.bincount(self.clusters)
        return sums.astype(float), sizes.astype(float)


@dataclass(frozen=True, slots=True)
class Plan:
    """A question and its answer."""

    found: Literal["rows", "gain", "power"]
    """From the other two."""
    rows: int | None
    """None: more than MAX_ROWS."""
    gain: float | None
    """None: these rows show none."""
    power: float
    low: float | None
    high: float | None
    """Percentiles RANGE of what other pilots of this size would have found; None as above, or where it is stated."""


def plan(pilot: Pilot, gate: Gate = BEAT, *, gain: float | None = None, rows: int | None = None, seed: int = 0) -> Plan:
    """The rows that a gain needs, the gain that rows show or, of both, the power; with its range.

    Raises EvaluationError LU-E015 as `rows_needed`.
    """
    if rows is not None and gain is not None:
        ends = _range(pilot, partial(power_of, n=rows, gain=gain, gate=gate, draws=DRAWS_EACH, seed=seed), seed)
        return Plan("power", rows, gain, power_of(pilot, rows, gain, gate, seed=seed), *ends)
    if rows is not None:
        ends = _range(pilot, partial(detectable, n=rows, gate=gate, draws=DRAWS_EACH, seed=seed), seed)
        return Plan("gain", rows, detectable(pilot, rows, gate, seed=seed), gate.power, *ends)
    assert gain is not None, "a plan is for a gain or for a number of rows"
    found = rows_needed(pilot, gain, gate, seed=seed)
    n = found or MAX_ROWS

    def scaled(other: Pilot) -> float | None:
        """Rows by the gain that `n` of them show, because errors shrink as 1 / sqrt(n): to search takes minutes."""
        shown = detectable(other, n, gate, draws=DRAWS_EACH, seed=seed)
        needed = math.inf if shown is None else n * ((shown - gate.limit) / (gain - gate.limit)) ** 2
        return max(needed, MIN_CLUSTERS) if needed <= MAX_ROWS else None

    return Plan("rows", found, gain, gate.power, *_range(pilot, scaled, seed))


def power_of(pilot: Pilot, n: int, gain: float, gate: Gate = BEAT, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The share of gates on `n` rows that pass where the true gain is `gain`."""
    return _chance(pilot, n, gate, draws, seed)(gain)


def detectable(pilot: Pilot, n: int, gate: Gate = BEAT, *, draws: int = DRAWS, seed: int = 0) -> float | None:
    """The least true gain that gates on `n` rows show with the gate's power; None where they show none."""
    chance = _chance(pilot, n, gate, draws, seed)
    spread = float(pilot.differences.std())
    low, high = gate.limit, 1.0 if pilot.right_or_wrong else gate.limit + 1e3 * spread
    if chance(high) < gate.power:
        return None
    while high - low > 1e-6 * (spread or 1.0):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) >= gate.power else (middle, high)
    return high


def rows_needed(pilot: Pilot, gain: float, gate: Gate = BEAT, *, seed: int = 0) -> int | None:
    """The rows with which gates show this true gain with the gate's power; None where MAX_ROWS are too few.

    Raises EvaluationError LU-E015 where no number of rows can show the gain.
    """
    if gain <= gate.limit:
        found = f"a true gain of {gain:g} is not above the limit {gate.limit:g}: no number of rows shows it"
        raise EvaluationError.of("LU-E015", "gain", found, "plan for a larger gain, or for a wider margin")
    if pilot.right_or_wrong and gain > 1:
        raise EvaluationError.of("LU-E015", "gain", f"{gain:g} is more than all answers", "give a share: 0.05 is 5 %")

    def enough(n: int) -> bool:
        return power_of(pilot, n, gain, gate, seed=seed) >= gate.power

    few, many = 0, MIN_CLUSTERS
    while not enough(many):
        if many == MAX_ROWS:
            return None
        few, many = many, min(2 * many, MAX_ROWS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _rows(evaluation: EvalReport, metric: str) -> list[tuple[str, float, float]]:
    """Cluster, baseline's and tuned model's score of each row; none where the metric is not their mean."""
    seen = evaluation.metrics[metric]
    rows = [(s.cluster or f"\n{s.id}", *s.scores[metric]) for s in evaluation.samples if metric in s.scores]
    kept = [(name, old, new) for name, old, new in rows if old is not None and new is not None]
    means = [math.fsum(side) / len(kept) for side in list(zip(*kept, strict=True))[1:]]
    close = partial(math.isclose, rel_tol=1e-9, abs_tol=1e-9)
    return kept if kept and all(map(close, means, (seen.baseline, seen.value))) else []


def _range(pilot: Pilot, find: Callable[[Pilot], float | None], seed: int) -> tuple[float | None, float | None]:
    """Percentiles RANGE of what is found from pilots redrawn by whole clusters."""
    if not pilot.sampled:
        return None, None
    rng, plans = np.random.default_rng((seed, 1)), []
    rows = np.split(np.argsort(pilot.clusters, kind="stable"), np.cumsum(np.bincount(pilot.clusters))[:-1])
    for _ in range(PILOTS):
        chosen = [rows[i] for i in rng.integers(0, len(rows), len(rows))]
        owners = np.repeat(np.arange(len(chosen)), [len(c) for c in chosen])
        found = find(Pilot(pilot.differences[np.concatenate(chosen)], owners, pilot.right_or_wrong))
        plans.append(math.inf if found is None else found)
    low, high = (float(x) for x in np.percentile(plans, RANGE, method="nearest"))
    return low if math.isfinite(low) else None, high if math.isfinite(high) else None


def _chance(pilot: Pilot, n: int, gate: Gate, draws: int, seed: int) -> Chance:
    """Of gates on `n` rows that hold rows by cluster as the pilot does."""
    clusters = round(n * pilot.n_clusters / len(pilot.differences))
    if clusters < MIN_CLUSTERS:  # refused, whatever the gain
        return lambda gain: 0.0
    if pilot.right_or_wrong:
        differ = float(np.abs(pilot.differences).mean())
        return partial(_exact, max(round(n / _design_effect(pilot)), 2), differ, gate)
    return _resampled(pilot, clusters, gate, draws, seed)


# -- right-or-wrong answers ------------------------------------------------------------------------------


def _exact(n: int, differ: float, gate: Gate, gain: float) -> float:
    """The probability of the counts that pass: of how many differ, and then of how many of these are won."""
    from scipy.special import bdtrc
    from scipy.stats import binom

    share = max(differ, abs(gain))
    first, last = binom.ppf(NEGLIGIBLE, n, share), binom.isf(NEGLIGIBLE, n, share)
    differing, win = np.arange(int(first), int(last) + 1), (1 + gain / (share or 1.0)) / 2
    passed = bdtrc(_least_wins(n, gate.limit, gate.confidence)[differing] - 1, differing, win)
    return float((binom.pmf(differing, n, share) * passed).sum())


@lru_cache(maxsize=64)
def _least_wins(n: int, limit: float, confidence: float) -> Ints:
    """Of 0 to `n` answers that differ `(n + 1,)`, the fewest wins that pass; one more than differ where none do."""
    differ = np.arange(n + 1)
    too_few, enough = np.full(n + 1, -1), differ + 1
    while (enough - too_few > 1).any():
        wins = np.maximum((too_few + enough) // 2, 0)
        passes = _low_end_of_counts(n, wins, differ - wins, confidence) > limit
        too_few, enough = np.where(passes, too_few, wins), np.where(passes, wins, enough)
    return enough


def _low_end_of_counts(n: int, wins: Ints, losses: Ints, confidence: float) -> Floats:
    """The low ends `(...)` that `stats.compare` gives `n` independent answers with so many wins and losses."""
    differ, value = wins + losses, (wins - losses) / n
    squares, cubes = differ - n * value**2, n * value - 3 * value * differ + 2 * n * value**3
    typical = np.sign(differ).astype(float)
    nothing, _ = unseen(n, confidence).interval(confidence)
    return np.where(differ == 0, nothing, low_ends(value, squares, cubes, typical, n, confidence, bounded=True))


def _design_effect(pilot: Pilot) -> float:
    """The variance of the mean difference by clusters over that of independent rows, at least 1."""
    sums, sizes = pilot.by_cluster()
    n, clusters, mean = len(pilot.differences), len(sums), pilot.differences.mean()
    by_cluster = float(((sums - mean * sizes) ** 2).sum()) * clusters / (clusters - 1)
    by_row = float(((pilot.differences - mean) ** 2).sum()) * n / (n - 1)
    return max(by_cluster / by_row, 1.0) if by_row > 0 else 1.0


# -- graded scores ---------------------------------------------------------------------------------------


def _resampled(pilot: Pilot, clusters: int, gate: Gate, draws: int, seed: int) -> Chance:
    """A gain shifts every row, which leaves the influences as they are: so they are drawn once for all gains."""
    sums, sizes = pilot.by_cluster()
    rng = np.random.default_rng((seed, 0))
    rows = max(BLOCK // min(clusters, len(sums)), 1)
    parts = [_draw(sums, sizes, clusters, min(rows, draws - done), rng) for done in range(0, draws, rows)]
    values, squares, cubes, differ, trusted = np.concatenate(parts, axis=1)
    mean = float(pilot.differences.mean())

    def chance(gain: float) -> float:
        moved = np.where(differ > 0, values + gain - mean, 0.0)  # where nothing differs, nothing is gained
        typical = (squares + clusters * moved**2) / np.maximum(differ, 1)
        ends = low_ends(moved, squares, cubes, typical, clusters, gate.confidence)
        return float(((ends > gate.limit) & (trusted > 0)).mean())

    return chance


def _draw(sums: Floats, sizes: Floats, clusters: int, draws: int, rng: np.random.Generator) -> Floats:
    """`(5, draws)`: mean, sums of squares and cubes of the influences, clusters that differ, trusted."""
    if clusters < len(sums):
        chosen = rng.integers(0, len(sums), (draws, clusters))
        sums, sizes, times = sums[chosen], sizes[chosen], np.ones((1, 1))
    else:  # cheaper by how often each was drawn
        times = rng.multinomial(clusters, np.full(len(sums), 1 / len(sums)), draws).astype(float)
    total, n = (times * sums).sum(axis=1, keepdims=True), (times * sizes).sum(axis=1, keepdims=True)
    left_out = (total - sums) / (n - sizes)  # (draws, clusters), the mean without each
    influences = (clusters - 1) * ((times * left_out).sum(axis=1, keepdims=True) / clusters - left_out)
    influences = np.where(np.abs(influences) <= TIE * clusters * np.abs(sums).max(), 0.0, influences)
    squares = influences**2
    second, fourth = (times * squares).sum(axis=1), (times * squares**2).sum(axis=1)
    differ = (times * (np.abs(sums) > TIE)).sum(axis=1)
    trusted = second**2 >= MIN_CARRYING * fourth  # `stats`: enough clusters carry the spread
    return np.stack([(total / n)[:, 0], second, (times * squares * influences).sum(axis=1), differ, trusted])
