"""What reviewers' votes say: which model they preferred, how sure that is, and whether they agree.

Only votes on the answers that `evaluation.json` holds now count; others are counted as outdated. A tie and "both bad"
are each half a win for either model in the win rate, and take no part in the sign test, as is usual for it. Samples
count as independent in what is said of one reviewer, not in `human_preference`, which is what rules go by. It knows
nothing of how votes were taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.records import Comparison, EvalReport, Record
from luthier.stats import kappa, mcnemar_exact, wilson
from luthier.votes import MODELS, Cast, Model, Vote, casts, differing, with_votes

DRAWS = 10_000
SEED = 0


class ReviewerResult(Record):
    """One reviewer's votes, told for the tuned model."""

    reviewer: str
    n: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    win_rate: float | None
    """(wins + (ties + both bad) / 2) / n; None without votes."""
    low: float | None
    high: float | None
    """Wilson's interval of the win rate."""
    p: float
    """Two-sided, of no preference: the exact sign test on wins and losses."""
    preferred_left: int
    """Of wins and losses, how often the left answer was preferred: far from a half, the place decided."""
    tags: dict[Model, dict[str, int]]
    n_checks: int
    n_wrong_checks: int
    """Attention checks judged, and those on which the reference was not preferred."""
    attentive: bool
    """False: so many wrong checks that the votes do not count in `human_preference`."""
    n_outdated: int
    """Votes on answers that a later evaluation replaced: in none of these numbers."""


class AgreementResult(Record):
    """Two reviewers on the samples that both judged."""

    reviewers: tuple[str, str]
    n: int
    n_same: int
    kappa: float | None
    """Cohen's, over tuned better, base better, and neither; None where it is undefined."""
    low: float | None
    high: float | None
    """Percentile bootstrap."""
    n_undefined: int
    """Bootstrap draws in which kappa has no value; the interval is that of the others."""


class ReviewSummary(Record):
    run: str
    confidence: float
    n_samples: int
    n_equal: int
    """Samples whose two answers are equal: nobody was asked."""
    n_clusters: int
    """Independent groups among the samples."""
    reviewers: tuple[ReviewerResult, ...]
    agreement: tuple[AgreementResult, ...]
    human_preference: Comparison
    """All attentive reviewers together, as a rule on it is judged; without a vote that counts, n is 0."""


def summarise(run: Path, report: EvalReport) -> ReviewSummary:
    """All reviewers of a run, and every pair of them. Raises RunError LU-U010 for a damaged file of votes."""
    found = casts(run, report.samples)
    votes = {name: cast.votes for name, cast in found.items()}
    return ReviewSummary(
        run=run.name,
        confidence=report.confidence,
        n_samples=len(report.samples),
        n_equal=len(report.samples) - len(differing(report.samples)),
        n_clusters=report.n_clusters,
        reviewers=tuple(_result(name, cast, report.confidence) for name, cast in found.items()),
        agreement=tuple(agreement((a, b), votes[a], votes[b], report.confidence) for a, b in combinations(votes, 2)),
        human_preference=with_votes(report, run)[1],
    )


def _result(name: str, cast: Cast, confidence: float) -> ReviewerResult:
    votes = cast.votes
    better, n = Counter(v.better for v in votes.values()), len(votes)
    wins, losses = better["tuned"], better["baseline"]
    half_split = wins + better[None] / 2
    low, high = wilson(half_split, n, confidence) if n else (None, None)
    tags = {m: Counter(tag for v in votes.values() for tag in v.tags_of(m)) for m in MODELS}
    bad = sum(v.choice == "bad" for v in votes.values())
    return ReviewerResult(
        reviewer=name,
        n=n,
        wins=wins,
        losses=losses,
        ties=better[None] - bad,
        both_bad=bad,
        win_rate=half_split / n if n else None,
        low=low,
        high=high,
        p=mcnemar_exact(wins, losses),
        preferred_left=sum(v.choice == "left" for v in votes.values()),
        tags={m: dict(sorted(tags[m].items())) for m in MODELS},
        n_checks=cast.n_checks,
        n_wrong_checks=cast.n_wrong,
        attentive=cast.attentive,
        n_outdated=cast.n_outdated,
    )


# -- agreement -------------------------------------------------------------------------------------------


def agreement(
    names: tuple[str, str], first: Mapping[str, Vote], second: Mapping[str, Vote], confidence: float
) -> AgreementResult:
    """Cohen's kappa of two reviewers on the samples that both judged, by model and not by place."""
    shared = [sample for sample in first if sample in second]
    table = np.zeros((3, 3))
    for sample in shared:
        table[_category(first[sample]), _category(second[sample])] += 1
    value = float(kappa(table)) if shared else np.nan
    low, high, undefined = (None, None, 0) if np.isnan(value) else kappa_interval(table, confidence)
    return AgreementResult(
        reviewers=names,
        n=len(shared),
        n_same=int(np.trace(table)),
        kappa=None if np.isnan(value) else value,
        low=low,
        high=high,
        n_undefined=undefined,
    )


def _category(vote: Vote) -> int:
    return (*MODELS, None).index(vote.better)


def kappa_interval(table: NDArray[np.float64], confidence: float) -> tuple[float, float, int]:
    """Percentile bootstrap over samples, seeded: low, high, and the number of draws in which kappa is undefined."""
    n = int(table.sum())
    draws = np.random.default_rng(SEED).multinomial(n, table.ravel() / n, size=DRAWS).reshape(DRAWS, *table.shape)
    drawn = kappa(draws.astype(np.float64))
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), DRAWS - len(defined)


# -- in words --------------------------------------------------------------------------------------------


def in_words(summary: ReviewSummary) -> list[str]:
    """The summary as lines for a person."""
    to_judge = summary.n_samples - summary.n_equal
    share = f"{summary.confidence * 100:.3g} %"
    lines = [f"{summary.run}: {to_judge} samples to judge, {summary.n_equal} with equal answers left out"]
    for r in summary.reviewers:
        lines += ["", f"{r.reviewer}: {r.n} of {to_judge} judged"]
        if r.n_outdated:
            lines.append(f"  {r.n_outdated} more on answers that a later evaluation replaced: not counted")
        if not r.attentive:
            lines.append(f"  wrong on {r.n_wrong_checks} of {r.n_checks} attention checks: not in human_preference")
        if r.win_rate is None or r.low is None or r.high is None:
            continue
        lines += [
            f"  tuned better {r.wins}, base better {r.losses}, ties {r.ties}, both bad {r.both_bad}",
            f"  win rate of the tuned model {r.win_rate:.3f}, {share} interval {r.low:.3f} to {r.high:.3f} (Wilson; "
            "ties and both bad are half a win)",
            f"  exact sign test of {r.wins} against {r.losses}: p {r.p:.3g}",
            f"  left preferred {r.preferred_left} times of {r.wins + r.losses}",
            *(f"  {_said(model)} tagged: {_counts(r.tags[model])}" for model in MODELS if r.tags[model]),
        ]
    lines += [line for pair in summary.agreement for line in ("", _agreement_line(pair, share))]
    if (c := summary.human_preference).n:
        lines += [
            "",
            f"human_preference: {c.value:.3f} of the votes on {c.n} samples for the tuned model; the difference "
            f"to the base is {c.delta:+.3f}, {share} interval {c.low:+.3f} to {c.high:+.3f} over {c.n_clusters} "
            "independent groups" + (f" (not to be relied on: {c.trouble})" if c.trouble else ""),
        ]
    if summary.n_clusters < summary.n_samples:
        independent = f"{summary.n_clusters} independent groups"
        lines += [
            "",
            f"note: the {summary.n_samples} samples are {independent}; only human_preference takes that into account",
        ]
    return lines if summary.reviewers else [*lines, "nobody has voted yet"]


def _agreement_line(pair: AgreementResult, share: str) -> str:
    names = " and ".join(pair.reviewers)
    if not pair.n:
        return f"{names} judged no sample in common"
    same = f"{names}: the same on {pair.n_same} of {pair.n}"
    if pair.kappa is None:
        return f"{same}; kappa is undefined where both always say the same one thing"
    undefined = f", {pair.n_undefined} of {DRAWS} draws undefined" if pair.n_undefined else ""
    return f"{same}; kappa {pair.kappa:.3f}, {share} interval {pair.low:.3f} to {pair.high:.3f} (bootstrap{undefined})"


def _said(model: str) -> str:
    return "tuned" if model == "tuned" else "base"


def _counts(tags: Mapping[str, int]) -> str:
    return ", ".join(f"{tag} {n}" for tag, n in tags.items())
