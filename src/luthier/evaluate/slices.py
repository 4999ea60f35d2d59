"""Failing slices, found on one half of the clusters and confirmed on the other, so that they are not noise.

Whoever looks at hundreds of conditions finds one on which a model looks bad. Here the looking is done on one half
(*exploring*), which leaves at most ten conditions; only those are tested, on the half that nobody looked at
(*confirming*), and their p values are adjusted by Benjamini & Hochberg: of the slices listed, at most 10 % are
expected to be false. With nothing to be found, a list has any entry in at most 10 % of the runs. The halves are of
clusters, drawn by seed.

Two kinds, five candidates each:

* *shortfall*: the tuned model is worse here than elsewhere. It may be that the base is, too.
* *regression*: it is worse here than the base, **and** its change is worse here than elsewhere. A loss that is the
  same everywhere is the whole comparison's affair; it would otherwise be listed once for every large slice. Both must
  hold, so the larger of the two p values counts (intersection-union: Berger 1982, Technometrics 24:295).

**Exploring** ranks all conditions, and all pairs of two, by z = difference / error over the metric's pseudo-values, one
a sample (Tukey's jackknife), to first order what each adds to any function of sums; errors are of clusters. A pair must
beat both of its conditions by a standard error, because many are looked at. Two that share most of the smaller one's
samples are one finding: the more conspicuous is carried over.

**Confirming** has the metric's own values. Slice against base: `stats.compare`. Slice against the rest: Welch's t
(1947, Biometrika 34:28) on the delete-one-cluster jackknife of each side, a cluster that lies on both counted as such.
As in `stats.py`, each side has a pseudo pair (for proportions: Agresti & Caffo 2000, Am. Stat. 54:280), and ends are
widened for skewness, which is taken (1 + 20 / clusters) times, with Welch's degrees of freedom for the clusters. And no
side's spread is taken for less than that of both together: ten answers that are all wrong, or that by chance lack the
tail, show none of their own. Simulated without a difference, slices of 10 to 75 in 60 to 200, one-sided tests at 1 %
claimed a shortfall in up to 9.6 % without this (10 answers, 20 % right) or 3.0 % (lognormal scores of sigma 1), and
with it in at most 0.8 %. All tests are one-sided.

Known limits: only conditions of `conditions.py` are seen; small test sets confirm only gross failures; which samples
explore is chance, so that another seed may list another slice. What is listed is worse, why is not said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier import stats
from luthier.errors import EvaluationError
from luthier.evaluate.conditions import Bools, Condition, find_conditions
from luthier.metric import Floats, Metric, Sample
from luthier.records import DiscoveredSlice

MIN_CLUSTERS = 2 * stats.MIN_CLUSTERS
"""Fewer are not searched: each half needs what a comparison needs."""
MIN_SLICE_CLUSTERS = 10
"""Of a slice, and of what is outside it, in each half; a regression needs a comparison's `stats.MIN_CLUSTERS`."""
CARRIED = 5
"""Candidates of a kind that are tested."""
LEAST_Z = 1.0
"""A candidate that is not even one standard error worse is not worth a test."""
PAIR_MARGIN = 1.0
"""By so much more a pair is worse than each of its conditions, in standard errors."""
MAX_OVERLAP = 0.8
"""Of the smaller of two slices of a kind: copies and slices of slices overlap by more. Of both together, where a
regression is a shortfall too."""
FALSE_SHARE = 0.1

Kind = Literal["regression", "shortfall"]
KINDS: tuple[Kind, Kind] = ("regression", "shortfall")
Value = Callable[[Floats], Floats]
"""`(..., 2, k)` sums of tuned and baseline -> `(...)`, signed so that more is better."""

# Legend: n samples, m of a half, G clusters of a half, k statistics of a metric, C conditions.


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    rows: NDArray[np.intp]
    """(m,) of the samples, cluster by cluster."""
    starts: NDArray[np.intp]
    """(G,) where each cluster begins in `rows`."""
    stats: Floats
    """(m, 2, k) of tuned and baseline."""

    def by_cluster(self, values: Floats, axis: int = 0) -> Floats:
        """Sums over each cluster's samples: m becomes G."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=axis))


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    kind: Kind
    words: str
    members: Bools
    """(n,)"""
    z: float
    """By how many standard errors it is better: negative."""


def find_slices(
    metric: Metric,
    tuned: Sequence[Sample],
    baseline: Sequence[Sample],
    *,
    confidence: float,
    seed: int,
    tag_text: Callable[[Any], str],
) -> tuple[tuple[DiscoveredSlice, ...], str]:
    """The slices in which `tuned` fails by one metric, surest first, and how they were searched, in a sentence.

    Args:
        metric: What to go by. Samples to which it does not apply, for either model, are left out.
        tuned: The samples with what the tuned model made of them.
        baseline: The same samples, in the same order, with what the baseline made of them. The order is of no effect.
        confidence: Two-sided coverage of the intervals that are shown; what is listed does not depend on it.
        seed: Draws the halves.
        tag_text: How a tag's value is written.
    """
    pairs = sorted(zip(tuned, baseline, strict=True), key=lambda pair: (pair[0].cluster, pair[0].id))
    scored = [(pair, metric.stats(pair[0]), metric.stats(pair[1])) for pair in pairs]
    usable = [(pair, (new, old)) for pair, new, old in scored if new is not None and old is not None]
    both = [pair for pair, _ in usable]
    index = {name: i for i, name in enumerate(dict.fromkeys(new.cluster for new, _ in both))}
    if len(index) < MIN_CLUSTERS:
        few = f"{len(index)} independent samples are too few; at least {MIN_CLUSTERS} are needed"
        return (), f"Failing slices were not searched: {few}"
    clusters = np.array([index[new.cluster] for new, _ in both])
    exploring, confirming = _halves(np.array([of for _, of in usable], dtype=float), clusters, seed)
    at_least = 2 * MIN_SLICE_CLUSTERS
    conditions = find_conditions([new for new, _ in both], at_least=at_least, seed=seed, tag_text=tag_text)
    n_looked_at, candidates = _explore(metric, conditions, exploring, confirming)
    tested = [(c, *_confirm(metric, c, both, confirming, confidence)) for c in candidates]
    adjusted = stats.benjamini_hochberg([p for *_, p in tested])
    found = [
        (candidate, one.model_copy(update={"p_adjusted": p}))
        for (candidate, one, _), p in zip(tested, adjusted, strict=True)
        if one is not None and p <= FALSE_SHARE
    ]
    listed = _once(found)
    tests = f"{len(tested)} tested on the other {len(confirming.rows)}, {len(found) or 'none'} confirmed"
    search = f"{n_looked_at} conditions looked at on {len(exploring.rows)} samples"
    return listed, _in_words(metric.name, f"{search}, {tests if tested else 'none worth a test'}", len(found), listed)


def _in_words(metric: str, search: str, n_confirmed: int, listed: Sequence[DiscoveredSlice]) -> str:
    if not listed:
        return f"No failing slice found by {metric}: {search}"
    count = f"{len(listed)} failing slice{'s' if len(listed) > 1 else ''} found by {metric}"
    twice = n_confirmed - len(listed)
    copies = f" ({twice} of them twice, as a regression and as a shortfall, and listed once)" if twice else ""
    return f"{count}: {search}{copies}; at most {FALSE_SHARE:.0%} are expected to be false"


def _once(found: Sequence[tuple[_Candidate, DiscoveredSlice]]) -> tuple[DiscoveredSlice, ...]:
    """Surest first; a shortfall that is a regression too is listed as that one, which has its gap."""
    regressions = [c.members for c, _ in found if c.kind == "regression"]
    kept = [
        one
        for c, one in found
        if c.kind == "regression" or not any(_jaccard(c.members, other) > MAX_OVERLAP for other in regressions)
    ]
    return tuple(sorted(kept, key=lambda one: one.p_adjusted))


def _jaccard(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / (one | other).sum())


# -- the two halves -----------------------------------------------------------------------------------------------


def _halves(values: Floats, clusters: NDArray[np.intp], seed: int) -> tuple[_Half, _Half]:
    """Statistics `(n, 2, k)`, in the order of their clusters, divided between two drawn sets of clusters."""
    order = np.random.default_rng(seed).permutation(int(clusters.max()) + 1)
    explores = np.isin(clusters, order[: len(order) // 2])
    return _half(values, clusters, np.flatnonzero(explores)), _half(values, clusters, np.flatnonzero(~explores))


def _half(values: Floats, clusters: NDArray[np.intp], rows: NDArray[np.intp]) -> _Half:
    return _Half(rows, np.flatnonzero(np.diff(clusters[rows], prepend=-1)), values[rows])


# -- exploring ----------------------------------------------------------------------------------------------------


def _explore(
    metric: Metric, conditions: Sequence[Condition], exploring: _Half, confirming: _Half
) -> tuple[int, list[_Candidate]]:
    """How many conditions were looked at, pairs among them, and the worst few of each kind, worst first."""
    values = _pseudo_values(metric, exploring.stats)
    members = np.array([c.members for c in conditions], dtype=bool)
    members = members.reshape(len(conditions), len(exploring.rows) + len(confirming.rows))  # (C, n), C may be 0
    z = _rank(members, values, exploring, confirming)  # (2, C)
    looked_at = int(np.isfinite(z[1]).sum())
    found = [_Candidate(KINDS[k], conditions[c].words, members[c], z[k, c]) for k, c in np.argwhere(z < -LEAST_Z)]
    for i, first in enumerate(conditions):
        others = [j for j, second in enumerate(conditions) if j > i and second.about != first.about]
        both = members[i] & members[others]  # (O, n)
        pair_z = _rank(both, values, exploring, confirming)  # (2, O)
        looked_at += int(np.isfinite(pair_z[1]).sum())
        bar = np.minimum(-LEAST_Z, np.minimum(z[:, [i]], z[:, others]) - PAIR_MARGIN)
        for k, o in np.argwhere(pair_z < bar):
            words = f"{first.words} and {conditions[others[o]].words}"
            found.append(_Candidate(KINDS[k], words, both[o], pair_z[k, o]))
    return looked_at, [c for kind in KINDS for c in _distinct([c for c in found if c.kind == kind])]


def _distinct(candidates: list[_Candidate]) -> list[_Candidate]:
    """The worst of them, worst first, each with samples of its own."""
    kept: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: c.z):
        if len(kept) < CARRIED and not any(_overlap(candidate, other) > MAX_OVERLAP for other in kept):
            kept.append(candidate)
    return kept


def _overlap(one: _Candidate, other: _Candidate) -> float:
    """What share of the smaller slice lies in the larger (Szymkiewicz & Simpson)."""
    return float((one.members & other.members).sum() / min(one.members.sum(), other.members.sum()))


def _pseudo_values(metric: Metric, values: Floats) -> Floats:
    """(m, 2): the tuned model's, and its gain on the baseline; more is better. Their means estimate the metric's."""
    m, sign = len(values), 1.0 if metric.higher_is_better else -1.0
    total = values.sum(axis=0)
    with np.errstate(all="ignore"):
        whole = np.asarray(metric.combine(total), dtype=float)  # (2,)
        left_out = np.asarray(metric.combine(total - values), dtype=float)  # (m, 2)
    # A sample without which there is no value carries none: one of 0 influence.
    pseudo = sign * (whole + (m - 1) * np.where(np.isfinite(left_out), whole - left_out, 0.0))
    return np.stack([pseudo[:, 0], pseudo[:, 0] - pseudo[:, 1]], axis=1)


def _rank(members: Bools, values: Floats, exploring: _Half, confirming: _Half) -> Floats:
    """(2, C): by how many standard errors each slice `(C, n)` is better, by kind; inf where it has too few clusters."""
    inside, outside = (
        np.min(
            [(h.by_cluster(m[:, h.rows].astype(int), axis=1) > 0).sum(axis=1) for h in (exploring, confirming)], axis=0
        )
        for m in (members, ~members)
    )
    z = np.full((2, len(members)), np.inf)
    enough = np.minimum(inside, outside) >= MIN_SLICE_CLUSTERS
    chosen = members[enough][:, exploring.rows].astype(float)
    z[1, enough] = _z(chosen, values[:, 0], exploring)[1]
    z[0, enough] = np.max(_z(chosen, values[:, 1], exploring), axis=0)
    z[0, inside < stats.MIN_CLUSTERS] = np.inf
    return z


def _z(members: Floats, values: Floats, half: _Half) -> tuple[Floats, Floats]:
    """The mean of `values` `(m,)` in each slice `(C, m)`, against 0 and against the rest, in standard errors."""
    size, total = half.by_cluster(np.ones_like(values)), half.by_cluster(values)  # (G,)
    ones, sums = half.by_cluster(members, axis=1), half.by_cluster(members * values, axis=1)  # (C, G)
    n = ones.sum(axis=1, keepdims=True)
    n_rest = len(values) - n
    mean, mean_rest = sums.sum(axis=1, keepdims=True) / n, (total - sums).sum(axis=1, keepdims=True) / n_rest
    inside = (sums - mean * ones) / n
    outside = (total - sums - mean_rest * (size - ones)) / n_rest
    pair = 2 * ((total - values.mean() * size) ** 2).mean()  # a pseudo pair, as when confirming
    if pair <= (stats.TIE * np.abs(values).max()) ** 2:  # nothing differs
        return np.zeros(len(members)), np.zeros(len(members))
    against_zero = mean[:, 0] / np.sqrt((inside**2).sum(axis=1) + pair / n[:, 0] ** 2)
    error = np.sqrt(((inside - outside) ** 2).sum(axis=1) + pair * (1 / n[:, 0] ** 2 + 1 / n_rest[:, 0] ** 2))
    return against_zero, (mean - mean_rest)[:, 0] / error


# -- confirming ---------------------------------------------------------------------------------------------------


def _confirm(
    metric: Metric, candidate: _Candidate, both: Sequence[tuple[Sample, Sample]], half: _Half, confidence: float
) -> tuple[DiscoveredSlice | None, float]:
    """What the other half says of a candidate, None where it has no value there, and its claim's one-sided p value."""
    inside = candidate.members[half.rows]
    sign = 1.0 if metric.higher_is_better else -1.0
    tuned, baseline = zip(*(both[i] for i in half.rows[inside]), strict=True)
    gap = _gap(lambda sums: sign * metric.combine(sums)[..., 0], inside, half)
    try:
        comparison = stats.compare(metric, tuned, baseline, confidence=confidence)
    except EvaluationError:  # LU-E002: no value on these samples
        return None, 1.0
    if gap is None:
        return None, 1.0
    p = _worse(gap)
    if candidate.kind == "regression":
        change = _gap(lambda sums: sign * -np.diff(metric.combine(sums))[..., 0], inside, half)
        here = comparison.p / 2 if comparison.delta < 0 else 1 - comparison.p / 2
        p = 1.0 if change is None or comparison.trouble else max(here, _worse(change))
    low, high = gap.interval(confidence)
    found = DiscoveredSlice(
        condition=candidate.words,
        kind=candidate.kind,
        comparison=comparison,
        rest=float(metric.combine(half.stats[~inside].sum(axis=0))[0]),
        gap=gap.value,
        gap_low=low,
        gap_high=high,
        p_adjusted=p,
    )
    return found, p


def _worse(estimate: stats.Estimate) -> float:
    """One-sided p of 'not below 0'."""
    return estimate.p() / 2 if estimate.value < 0 else 1 - estimate.p() / 2


def _gap(value: Value, inside: Bools, half: _Half) -> stats.Estimate | None:
    """Slice minus rest with its error, as the module's docstring says. None where either has no finite value."""
    weights = np.stack([inside, ~inside]).astype(float)  # (2, m)
    sums = [half.by_cluster(half.stats * of[:, None, None]) for of in weights]  # (G, 2, k) each
    touched = half.by_cluster(weights, axis=1) > 0  # (2, G)
    with np.errstate(all="ignore"):
        here, there, pooled = (
            float(value(x)) for x in (sums[0].sum(axis=0), sums[1].sum(axis=0), half.stats.sum(axis=0))
        )
    if not np.isfinite((here, there, pooled)).all():
        return None
    influences = np.array([_influences(value, *of) for of in zip(sums, (here, there), touched, strict=True)])  # (2, G)
    n = touched.sum(axis=1)
    deviations = (influences + np.array([[here], [there]]) - pooled)[touched]
    spread = float((deviations**2).mean())
    if spread <= (stats.TIE * pooled) ** 2:  # all alike
        return stats.Estimate(0.0, 0.0, int(n.min()) - 1, 0.0)
    scaled = influences / np.sqrt(n * (n - 1))[:, None]
    least = spread / (n - 1)
    variances = np.maximum((scaled**2).sum(axis=1), least) + 2 * least / n  # the pseudo pair
    error = math.sqrt(float(variances.sum() - 2 * (scaled[0] * scaled[1]).sum()))  # clusters on both sides
    dof = int(variances.sum() ** 2 / (variances**2 / (n - 1)).sum())
    skew = float(((scaled[0] - scaled[1]) ** 3).sum()) / error**3 * (1 + stats.UNSEEN_SKEW / (dof + 1))
    return stats.Estimate(here - there, error, dof, skew)


def _influences(value: Value, sums: Floats, whole: float, touched: Bools) -> Floats:
    """(G,): the jackknife's, for a mean each cluster's deviation from it; 0 for a cluster that is not `touched`."""
    with np.errstate(all="ignore"):
        left_out = value(sums.sum(axis=0) - sums[touched])
    left_out = np.where(np.isfinite(left_out), left_out, whole)
    influences = np.zeros(len(sums))
    influences[touched] = (len(left_out) - 1) * (left_out.mean() - left_out)
    return influences
