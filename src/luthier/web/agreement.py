"""What reviewers' votes say: which model they preferred, how sure that is, and whether they agree.

Only votes on the answers that `evaluation.json` holds now count; others are counted as outdated. A tie and "both bad"
are each half a win for either model in the win rate, and take no part in the sign test, as is usual for it. Samples
count as independent. It knows nothing of how votes were taken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import read_conversations
from luthier.errors import RunError, did_you_mean, printable
from luthier.files import write_atomically
from luthier.records import EvalReport, Judged, Record
from luthier.stats import mcnemar_exact, wilson
from luthier.web.review import Model, Tag, Vote, differing, digest, other, read_votes, reviewers, votes_file

DRAWS = 10_000
SEED = 0
MODELS: tuple[Model, ...] = ("tuned", "baseline")


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


def summarise(run: Path, report: EvalReport) -> ReviewSummary:
    """All reviewers of a run, and every pair of them. Raises RunError LU-U010 for a damaged file of votes."""
    votes, outdated = current_votes(run, report)
    both = combinations(votes, 2)
    return ReviewSummary(
        run=run.name,
        confidence=report.confidence,
        n_samples=len(report.samples),
        n_equal=len(report.samples) - len(differing(report)),
        n_clusters=report.n_clusters,
        reviewers=tuple(_result(name, votes[name], outdated[name], report.confidence) for name in votes),
        agreement=tuple(agreement((a, b), votes[a], votes[b], report.confidence) for a, b in both),
    )


def current_votes(run: Path, report: EvalReport) -> tuple[dict[str, dict[str, Vote]], dict[str, int]]:
    """Reviewer -> sample -> vote on the answers of `report`; and reviewer -> how many votes were on others."""
    now = {s.id: digest(s) for s in differing(report)}
    votes, outdated = {}, {}
    for name in reviewers(run):
        standing = read_votes(votes_file(run, name))
        votes[name] = {k: v for k, v in standing.items() if now.get(k) == v.judged}
        outdated[name] = len(standing) - len(votes[name])
    return votes, outdated


def _result(name: str, votes: Mapping[str, Vote], outdated: int, confidence: float) -> ReviewerResult:
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
        n_outdated=outdated,
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


def kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of tables of counts `(..., K, K)`, one rater's categories by the other's (Cohen 1960,
    Educ. Psychol. Meas. 20:37). NaN where both used one category only: agreement by chance is then certain."""
    n = tables.sum(axis=(-2, -1))
    observed = np.trace(tables, axis1=-2, axis2=-1) / n
    by_chance = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / n**2
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(by_chance < 1, (observed - by_chance) / (1 - by_chance), np.nan))


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
    if summary.n_clusters < summary.n_samples:
        independent = f"{summary.n_clusters} independent groups"
        lines += [
            "",
            f"note: the {summary.n_samples} samples are {independent}; these intervals take all as independent",
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


# -- export ----------------------------------------------------------------------------------------------


def export_preferences(run: Path, report: EvalReport, path: Path, names: Sequence[str]) -> dict[str, int]:
    """Write one row `prompt`, `chosen`, `rejected` (lists of messages) for each sample with a preference.

    The votes of the reviewers `names` are added up. Returns how many rows were written, and how many samples were left
    out because the votes were ties, or opposed and equally many.
    Raises RunError LU-U014 where the run's conversations are not those that were judged, LU-U017 for a name without
    votes.
    """
    votes, prompts = _votes_of(run, report, names), _prompts(run)
    rows, counts = [], Counter(rows=0, ties=0, opposed=0)
    for sample in report.samples:
        said = [votes[name][sample.id].better for name in names if sample.id in votes[name]]
        net = said.count("tuned") - said.count("baseline")
        if not said:
            continue
        counts["rows" if net else "opposed" if any(said) else "ties"] += 1
        if net:
            chosen: Model = "tuned" if net > 0 else "baseline"
            texts = {"chosen": _text(sample, chosen), "rejected": _text(sample, other(chosen))}
            answers = {k: [{"role": "assistant", "content": text}] for k, text in texts.items()}
            rows.append({"prompt": _prompt(prompts, sample), **answers, "sample": sample.id, "votes": abs(net)})
    _write_rows(path, rows)
    return dict(counts)


def export_tagged(run: Path, report: EvalReport, path: Path, names: Sequence[str], tag: str) -> dict[str, int]:
    """Write one row for each answer that one of the reviewers `names` tagged `tag`; returns how many.

    Raises RunError LU-U014 and LU-U017 as above, LU-U015 for a tag that there is not.
    """
    if tag not in get_args(Tag):
        raise RunError.of("LU-U015", "--tag", f"'{printable(tag)}' is no tag", did_you_mean(tag, get_args(Tag)))
    votes, prompts = _votes_of(run, report, names), _prompts(run)
    rows = [
        {
            "prompt": _prompt(prompts, sample),
            "answer": _text(sample, model),
            "model": model,
            "reference": sample.reference,
            "tags": list(vote.tags_of(model)),
            "note": vote.note,
            "reviewer": name,
            "sample": sample.id,
        }
        for sample in report.samples
        for name in names
        if (vote := votes[name].get(sample.id))
        for model in MODELS
        if tag in vote.tags_of(model)
    ]
    _write_rows(path, rows)
    return {"rows": len(rows)}


def export_in_words(path: Path, counts: Mapping[str, int]) -> str:
    left_out = {"ties": "ties", "opposed": "on which reviewers are opposed"}
    also = ", ".join(f"{counts[k]} {words}" for k, words in left_out.items() if k in counts)
    rows = f"{path}: {counts['rows']} rows" + (f"; left out: {also}" if also else "")
    return f"{rows}\nthey are of the test side: a model that learns from them must be tested on others"


def _votes_of(run: Path, report: EvalReport, names: Sequence[str]) -> dict[str, dict[str, Vote]]:
    """Raises RunError LU-U017 for a name that has not voted."""
    votes, _ = current_votes(run, report)
    for name in names:
        if name not in votes:
            raise RunError.of("LU-U017", "--reviewer", f"'{printable(name)}' has not voted", did_you_mean(name, votes))
    return {name: votes[name] for name in names}


def _prompts(run: Path) -> dict[str, list[dict[str, str]]]:
    """Sample -> the messages before the answer, with the system text that `Judged.prompt` leaves out."""
    return {
        f"{c.id} {c.source}": [{"role": m.role, "content": m.content} for m in c.prompt]
        for c in read_conversations(run / "prepare" / "test.jsonl")
    }


def _prompt(prompts: Mapping[str, list[dict[str, str]]], sample: Judged) -> list[dict[str, str]]:
    if sample.id not in prompts:
        found = f"sample {printable(sample.id)} is not in the run's test side"
        raise RunError.of("LU-U014", "prepare/test.jsonl", found, "finish the run: luthier evaluate RUN")
    return prompts[sample.id]


def _text(sample: Judged, model: Model) -> str:
    return sample.tuned if model == "tuned" else sample.baseline


def _write_rows(path: Path, rows: Iterable[object]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
