"""Export: reviewed samples as rows to learn from, each with what it comes from.

They are rows of the test side: a model that learns from them must be tested on others. Every row says so (`split:
train`, and the sample's id, family, source and tags), and its prompt is the very prompt of the test side: where a run
draws its own sides, both fall on one; where sides are given, the audit counts them as a leak (LU-D039).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from luthier.conversation import Conversation, read_conversations
from luthier.errors import RunError, did_you_mean, printable
from luthier.files import write_atomically
from luthier.records import EvalReport, Judged
from luthier.votes import MODELS, Cast, Model, Tag, Vote, casts, other

Shape = Literal["preferences", "sft", "marked"]
LEFT_OUT = {
    "ties": "samples without a preference or a correction",
    "opposed": "samples on which reviewers are opposed",
    "unmarked": "samples without the tag",
    "inattentive": "reviewers who failed the attention checks",
}


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A sample with the votes that are exported, the latest last."""

    sample: Judged
    asked: Conversation
    votes: Sequence[tuple[str, Vote]]

    @property
    def net(self) -> int:
        """Votes for the tuned model, less those for the baseline."""
        better = Counter(vote.better for _, vote in self.votes)
        return better["tuned"] - better["baseline"]

    @property
    def preferred(self) -> Model | None:
        return "tuned" if self.net > 0 else "baseline" if self.net < 0 else None

    @property
    def correction(self) -> str:
        """The latest that a reviewer wrote."""
        return next((vote.correction for _, vote in reversed(self.votes) if vote.correction), "")

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages before the answer, with the system text that `Judged.prompt` leaves out."""
        return [m.as_openai() for m in self.asked.prompt]

    @property
    def origin(self) -> dict[str, Any]:
        named = {"sample": self.sample.id, "family": self.asked.family, "source": self.asked.source}
        return {**self.asked.tags, "split": "train", **named}

    def text(self, model: Model) -> str:
        return self.sample.tuned if model == "tuned" else self.sample.baseline


def export(
    run: Path, report: EvalReport, path: Path, shape: Shape, *, reviewer: str | None = None, tag: str | None = None
) -> dict[str, int]:
    """Write what was judged to `path`, a JSON row a line. Returns how many rows, and what was left out.

    sft: `messages`, with the correction or else the preferred answer. preferences: `prompt`, `chosen`, `rejected`
    (lists of messages); a correction is chosen over each answer that differs from it. marked: a row for each vote, as
    it is; with `tag`, of the votes that give either answer this tag. The votes are those of `reviewer`, or of all whose
    attention checks are right.
    Raises RunError LU-U014 where the run's conversations are not those that were judged, LU-U015 for a tag that there
    is not, LU-U017 for a name without votes.
    """
    if tag is not None and tag not in get_args(Tag):
        raise RunError.of("LU-U015", "--tag", f"'{printable(tag)}' is no tag", did_you_mean(tag, get_args(Tag)))
    found = casts(run, report.samples)
    if reviewer is not None and reviewer not in found:
        advice = did_you_mean(reviewer, found)
        raise RunError.of("LU-U017", "--reviewer", f"'{printable(reviewer)}' has not voted", advice)
    taken = {name: cast for name, cast in found.items() if (cast.attentive if reviewer is None else name == reviewer)}
    rows, counts = [], Counter(rows=0)
    if reviewer is None and len(taken) < len(found):
        counts["inattentive"] = len(found) - len(taken)
    for reviewed in _reviewed(run, report, taken):
        if shape == "marked":
            made, left = _marked(reviewed, tag), "unmarked"
        else:
            made = _lesson(reviewed) if shape == "sft" else _preferences(reviewed)
            left = "opposed" if any(vote.better for _, vote in reviewed.votes) else "ties"
        rows += made
        counts["rows" if made else left] += len(made) or 1
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return dict(counts)


def in_words(path: Path, counts: Mapping[str, int]) -> str:
    left_out = ", ".join(f"{counts[k]} {words}" for k, words in LEFT_OUT.items() if k in counts)
    return (
        f"{path}: {counts['rows']} rows" + (f"; left out: {left_out}" if left_out else "") + "\n"
        "they are of the test side: what learns from them is not tested by it any more. A run that draws its own sides "
        "keeps them and the same prompts together; one whose test side is given counts them as a leak (LU-D039)"
    )


def _reviewed(run: Path, report: EvalReport, taken: Mapping[str, Cast]) -> list[Reviewed]:
    """In the report's order."""
    asked = {f"{c.id} {c.source}": c for c in read_conversations(run / "prepare" / "test.jsonl")}
    reviewed = []
    for sample in report.samples:
        votes = [(name, cast.votes[sample.id]) for name, cast in taken.items() if sample.id in cast.votes]
        if votes and sample.id not in asked:
            missing = f"sample {printable(sample.id)} is not in the run's test side"
            raise RunError.of("LU-U014", "prepare/test.jsonl", missing, "finish the run: luthier evaluate RUN")
        if votes:
            reviewed.append(Reviewed(sample, asked[sample.id], sorted(votes, key=lambda said: said[1].time)))
    return reviewed


def _lesson(of: Reviewed) -> list[dict[str, Any]]:
    answer = of.correction or (of.text(of.preferred) if of.preferred else None)
    return (
        []
        if answer is None
        else [{**of.origin, "messages": [*of.prompt, *_answer(answer)], "corrected": bool(of.correction)}]
    )


def _preferences(of: Reviewed) -> list[dict[str, Any]]:
    if of.correction:
        worse = [text for model in MODELS if (text := of.text(model)) != of.correction]
        pairs = [(of.correction, text) for text in worse]
    elif of.preferred:
        pairs = [(of.text(of.preferred), of.text(other(of.preferred)))]
    else:
        pairs = []
    said = {**of.origin, "corrected": bool(of.correction), "votes": abs(of.net)}
    return [{**said, "prompt": of.prompt, "chosen": _answer(a), "rejected": _answer(b)} for a, b in pairs]


def _marked(of: Reviewed, tag: str | None) -> list[dict[str, Any]]:
    return [
        {
            **of.origin,
            "prompt": of.prompt,
            "baseline": of.sample.baseline,
            "tuned": of.sample.tuned,
            "reference": of.sample.reference,
            "choice": vote.better or ("bad" if vote.choice == "bad" else "tie"),
            "tags": {model: list(vote.tags_of(model)) for model in MODELS},
            "correction": vote.correction,
            "note": vote.note,
            "reviewer": name,
        }
        for name, vote in of.votes
        if tag is None or any(tag in vote.tags_of(model) for model in MODELS)
    ]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
