"""Votes: what people said of two models' answers, and what that comes to as a metric, `human_preference`.

Every vote is a line of `RUN/reviews/NAME.jsonl`. The latest line of a sample counts; taking a vote back is a line too.
A vote names a hash of what was judged: where a later evaluation gave other answers, it counts no more. Votes of a
reviewer who fails the attention checks do not count either. What does not count is counted, and said.

`human_preference` is, of the samples that were judged, the share of votes for a model: 1 where it is better, a half
for a tie and for both bad, averaged over the reviewers of a sample; the baseline's is the complement. Its interval is
`stats.compare`'s, over the test set's own clusters. It covers the choice of samples and not that of reviewers: other
people may judge otherwise. This module knows nothing of pages, and not how votes are taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from luthier import stats
from luthier.errors import RunError
from luthier.metric import MeanMetric, Sample
from luthier.records import Comparison, EvalReport, Judged, Record
from luthier.settings import HUMAN_PREFERENCE, fingerprint

Model = Literal["baseline", "tuned"]
Tag = Literal["wrong", "unsafe", "biased", "off-tone"]
MODELS: tuple[Model, ...] = ("tuned", "baseline")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHECK = "check "
"""Before the id of the sample that an attention check is about."""
MAX_WRONG = 0.2
"""Of the attention checks. Who guesses is wrong on half of them, and stays under it in 2 % of reviews of nine checks
(100 samples) and in 19 % of those of five. One wrong check is a slip."""


class Tags(Record):
    """What is wrong with each answer."""

    left: tuple[Tag, ...] = Field(default=(), max_length=4)
    right: tuple[Tag, ...] = Field(default=(), max_length=4)


class Vote(Record):
    """One line of a reviewer's file."""

    sample: str
    judged: str
    """Hash of the prompt and the two answers."""
    left: Model
    """Which model's answer stood left."""
    choice: Literal["left", "right", "tie", "bad", "undone"]
    tags: Tags = Tags()
    note: str = ""
    correction: str = ""
    """What the reviewer would have answered; empty where nothing was written."""
    time: str
    """UTC, ISO 8601."""

    @property
    def better(self) -> Model | None:
        """The model preferred; None for a tie, and where both answers are bad."""
        return self.model(self.choice) if self.choice in ("left", "right") else None

    def model(self, place: str) -> Model:
        """Whose answer stood at `place`, left or right."""
        return self.left if place == "left" else other(self.left)

    def tags_of(self, model: Model) -> tuple[Tag, ...]:
        return self.tags.left if self.left == model else self.tags.right


def other(model: Model) -> Model:
    return "tuned" if model == "baseline" else "baseline"


# -- what is judged --------------------------------------------------------------------------------------


def differing(samples: Sequence[Judged]) -> list[Judged]:
    """The samples on which there is something to judge: two equal answers need no reviewer."""
    return [s for s in samples if s.baseline != s.tuned]


def digest(sample: Judged) -> str:
    content = json.dumps([sample.prompt, sample.baseline, sample.tuned]).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def check_on(samples: Sequence[Judged], i: int) -> Judged | None:
    """An attention check: the reference of sample `i` as the tuned model's answer, that of another as the baseline's.

    The other is the first from half the list away that has another reference; None where there is none. No model's
    answer is in it, so that a check stays the same when the run is evaluated anew.
    """
    asked, half = samples[i], i + len(samples) // 2
    around = (samples[(half + k) % len(samples)].reference for k in range(len(samples)))
    another = next((text for text in around if _plain(text) != _plain(asked.reference)), None)
    if another is None:
        return None
    return Judged(id=CHECK + asked.id, prompt=asked.prompt, reference=asked.reference, baseline=another,
                  tuned=asked.reference)  # fmt: skip


def _plain(text: str) -> list[str]:
    return text.casefold().split()


# -- votes on disk ---------------------------------------------------------------------------------------


def reviewers(run: Path) -> list[str]:
    """Who has opened the page, by name."""
    return sorted(path.stem for path in (run / "reviews").glob("*.jsonl"))


def votes_file(run: Path, reviewer: str) -> Path:
    """Raises RunError LU-U009 for a name that is no file's."""
    if not NAME.fullmatch(reviewer):
        advice = "letters, digits, dots, dashes and underscores, at most 64, a letter or digit first"
        raise RunError.of("LU-U009", "--reviewer", f"'{reviewer}' is no name of a reviewer", advice)
    return run / "reviews" / f"{reviewer}.jsonl"


def read_lines(path: Path) -> list[Vote]:
    """All lines of a reviewer's file, in the order in which they were written.

    A last line without an end was cut short by a crash and never confirmed: it is none. Raises RunError LU-U010 for
    any other line that is no vote.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], 1):
        try:
            found.append(Vote.model_validate_json(line))
        except ValidationError:
            advice = "mend or delete the line"
            raise RunError.of("LU-U010", f"{path}:{number}", "is no vote", advice) from None
    return found


def standing(lines: Sequence[Vote]) -> dict[str, Vote]:
    """The votes that stand, sample -> vote, in the order in which they were given."""
    votes: dict[str, Vote] = {}
    for vote in lines:
        votes.pop(vote.sample, None)
        if vote.choice != "undone":
            votes[vote.sample] = vote
    return votes


def read_votes(path: Path) -> dict[str, Vote]:
    return standing(read_lines(path))


def votes_key(run: Path) -> dict[str, str]:
    """Reviewer -> hash of the votes that stand: what a verdict that counts votes is decided by."""
    votes = {name: read_votes(votes_file(run, name)) for name in reviewers(run)}
    return {name: fingerprint([v.model_dump() for v in said.values()]) for name, said in votes.items() if said}


@dataclass(frozen=True, slots=True)
class Cast:
    """What one reviewer's file holds for a report."""

    votes: Mapping[str, Vote]
    """Sample -> vote on the answers that the report holds."""
    n_checks: int
    n_wrong: int
    """Attention checks judged, and those on which the reference was not preferred."""
    n_outdated: int
    """Votes on answers that a later evaluation replaced."""
    n_replaced: int
    """Votes that a later one of the same reviewer on the same sample replaced."""

    @property
    def attentive(self) -> bool:
        return self.n_wrong < 2 or self.n_wrong <= MAX_WRONG * self.n_checks


def casts(run: Path, samples: Sequence[Judged]) -> dict[str, Cast]:
    """Reviewer -> votes on `samples`. Raises RunError LU-U010 for a damaged file of votes."""
    return {name: _cast(read_lines(votes_file(run, name)), samples) for name in reviewers(run)}


def _cast(lines: Sequence[Vote], samples: Sequence[Judged]) -> Cast:
    now = {s.id: digest(s) for s in differing(samples)}
    place = {CHECK + s.id: i for i, s in enumerate(samples)}
    votes = standing(lines)
    checked = [v for v in votes.values() if v.sample in place and _is_check(v, samples, place[v.sample])]
    judged = {name: v for name, v in votes.items() if not name.startswith(CHECK)}
    kept = {name: v for name, v in judged.items() if now.get(name) == v.judged}
    return Cast(
        votes=kept,
        n_checks=len(checked),
        n_wrong=sum(v.better != "tuned" for v in checked),
        n_outdated=len(judged) - len(kept),
        n_replaced=len(lines) - 2 * sum(v.choice == "undone" for v in lines) - len(votes),
    )


def _is_check(vote: Vote, samples: Sequence[Judged], i: int) -> bool:
    check = check_on(samples, i)
    return check is not None and digest(check) == vote.judged


# -- the metric ------------------------------------------------------------------------------------------


def preferences(run: Path, samples: Sequence[Judged]) -> dict[str, float]:
    """Sample -> the tuned model's share of the votes on it. Raises RunError LU-U010 for a damaged file of votes."""
    return _shares(casts(run, samples))


def with_votes(report: EvalReport, run: Path) -> tuple[EvalReport, Comparison]:
    """The report with `human_preference` in metrics, samples' scores and notes; and the comparison that rules go by.

    Without a vote that counts, the report gets its notes only, and the comparison says that nothing is known.
    Raises RunError LU-U010 for a damaged file of votes.
    """
    found = casts(run, report.samples)
    report = report.model_copy(update={"notes": (*report.notes, *_notes(found, report))})
    shares = _shares(found)
    if not shares:
        return report, _unjudged(report, run)
    comparison = _preference(report, shares)
    samples = [
        s.model_copy(update={"scores": {**s.scores, HUMAN_PREFERENCE: (1 - shares[s.id], shares[s.id])}})
        if s.id in shares
        else s
        for s in report.samples
    ]
    metrics = {**report.metrics, HUMAN_PREFERENCE: comparison}
    return report.model_copy(update={"metrics": metrics, "samples": tuple(samples)}), comparison


def _preference(report: EvalReport, shares: Mapping[str, float]) -> Comparison:
    """Tuned against baseline by the tuned model's share of the votes on each sample."""
    judged = [s for s in report.samples if s.id in shares]
    tuned = [_sample(s, s.tuned, shares[s.id]) for s in judged]
    baseline = [_sample(s, s.baseline, 1 - shares[s.id]) for s in judged]
    metric = MeanMetric(HUMAN_PREFERENCE, lambda sample: sample.tags["share"])
    found = stats.compare(metric, tuned, baseline, confidence=report.confidence)
    if found.low < found.high:
        return found
    # Ties alone give an interval of no width, which would prove that two models are alike that nobody told apart.
    return found.model_copy(update={"trouble": f"the votes on all {found.n} samples balance: they tell no difference"})


def _shares(found: Mapping[str, Cast]) -> dict[str, float]:
    """Sample -> the tuned model's share of the votes that count."""
    said: dict[str, list[float]] = {}
    for cast in found.values():
        for name, vote in cast.votes.items() if cast.attentive else ():
            said.setdefault(name, []).append({"tuned": 1.0, None: 0.5, "baseline": 0.0}[vote.better])
    return {name: sum(votes) / len(votes) for name, votes in said.items()}


def _sample(judged: Judged, answer: str, share: float) -> Sample:
    return Sample(
        id=judged.id,
        cluster=judged.cluster or judged.id,
        prompt=judged.prompt,
        reference=judged.reference,
        answer=answer,
        nats=0.0,
        n_tokens=0,
        n_bytes=0,
        tags={"share": share},
    )


def _unjudged(report: EvalReport, run: Path) -> Comparison:
    """Nothing is known: the change may be anything that it can be."""
    why = f"no votes yet: luthier review {run.name}, then release again"
    if not differing(report.samples):
        why = f"both models gave the same answer to all {len(report.samples)} samples: nobody can prefer one"
    return Comparison(
        metric=HUMAN_PREFERENCE,
        higher_is_better=True,
        value=0.5,
        baseline=0.5,
        delta=0.0,
        low=-1.0,
        high=1.0,
        p=1.0,
        n=0,
        n_clusters=0,
        wins=0,
        losses=0,
        ties=0,
        min_detectable=1.0,
        value_low=0.0,
        value_high=1.0,
        baseline_low=0.0,
        baseline_high=1.0,
        trouble=why,
    )


def _notes(found: Mapping[str, Cast], report: EvalReport) -> list[str]:
    notes = []
    counted = {name: cast for name, cast in found.items() if cast.attentive and cast.votes}
    if counted:
        n_votes = sum(len(cast.votes) for cast in counted.values())
        samples = {name for cast in counted.values() for name in cast.votes}
        people = "1 reviewer" if len(counted) == 1 else f"{len(counted)} reviewers"
        notes.append(
            f"human_preference: {n_votes} votes of {people} on {len(samples)} of the {len(differing(report.samples))} "
            "samples whose answers differ; the interval covers the choice of samples, not that of reviewers, and not a "
            "review that goes on until it passes"
        )
    for name, cast in found.items():
        if not cast.attentive:
            wrong = f"wrong on {cast.n_wrong} of {cast.n_checks} attention checks"
            notes.append(f"human_preference: {name} was {wrong}; the {len(cast.votes)} votes do not count")
        if cast.n_outdated:
            notes.append(f"human_preference: votes of {name} on answers that were replaced since: {cast.n_outdated}")
        if cast.n_replaced:
            notes.append(f"human_preference: votes of {name} given again, the last counts: {cast.n_replaced}")
    return notes
