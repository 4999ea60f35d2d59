"""Language models as judges: a grade of each answer by a rubric, or the better of two answers.

What has no verdict that can be read after one retry is counted, said in the notes and left out for both models, never
guessed. `pairwise` asks in both orders, and a verdict that the order changes is a tie.

On this machine the likelihood of each allowed verdict is read instead of a written reply: it always has a value, a
small model that cannot keep to a form still has a preference, and one pass over a prefix tree replaces hundreds of
generated tokens. The grade is then the expected one (Liu et al. 2023, "G-Eval", section 3), finer than whole numbers.

Verdicts are kept by a hash of what was asked, beside the models' answers: nothing is asked twice, and a judging that
was cut short goes on. The judge errs; how far is what `preference.corrected` measures by people's votes. This module
knows nothing of HTTP or tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier import chat as chats
from luthier import kept
from luthier.chat import Chat, Reply
from luthier.errors import EvaluationError, printable
from luthier.evaluate.judges.preference import MIN_VOTES, Outcome, corrected, length_controlled, win_rate
from luthier.evaluate.judges.questions import CLOSING, REMINDER, By, Question, make_question, prompt
from luthier.files import locked
from luthier.metric import MeanMetric, Metric, Sample
from luthier.progress import Reporter
from luthier.recipe import question
from luthier.settings import Judge, fingerprint
from luthier.stats import kappa

AT_ONCE = 64
"""Questions between two writes to disk. If none of so many gets a reply, the judge is taken for gone."""
PREFERENCES = {"first": 1.0, "second": 0.0, "tie": 0.5}
Votes = Mapping[str, float]
"""Sample -> what people say: 1 tuned better, 0 baseline better, 0.5 neither; between, where they differ."""


@dataclass(frozen=True, slots=True)
class Verdict:
    value: float | None
    """None where the reply held none that could be read, or there was no reply."""
    said: str
    """The reply; where there was none, why."""
    model: str
    lost: bool = False
    """Whether there was no reply: asked again in another run."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A judge ready to be asked."""

    judge: Judge
    criteria: str
    model: str
    """Name of the model that is asked; with the digest of its weights where they are here."""
    options: Mapping[str, float]
    """Verdict as it is said -> its value."""
    by: By
    settings: Mapping[str, Any]
    """All that decides its verdicts, besides what is judged."""
    chat: Chat


@dataclass(frozen=True, slots=True)
class Judgement:
    metrics: Sequence[Metric]
    notes: Sequence[str]


def open_judge(judge: Judge, folder: Path, seed: int, chat: Chat | None = None) -> Bench:
    """What a recipe's judge needs to begin; nothing is asked yet. `folder` is where the recipe's paths count from.

    `chat` answers in place of the recipe's model. Raises RecipeError LU-R016 (rubric), ModelError LU-M001 to LU-M004
    (the base model), LU-M006 (no key), EvaluationError LU-E011 (weights that are not the pinned ones).
    """
    by: By = judge.by or ("reply" if judge.url else "likelihood")
    options = PREFERENCES
    if judge.form == "rubric":
        options = {str(grade): float(grade) for grade in range(judge.scale[0], judge.scale[1] + 1)}
    model = judge.model
    if chat is None:
        model, chat = _connect(judge, folder, seed, by, list(options))
    criteria = question(judge, folder, f"judge '{judge.name}'")
    settings = {
        "model": model,
        "pinned": judge.pinned,
        "temperature": 0,
        "by": by,
        "max_new_tokens": judge.max_new_tokens if by == "reply" else None,
        "seed": seed if judge.url else None,
        "criteria": criteria,
        "options": options,
        "prompt": [prompt(judge.form), CLOSING[by], REMINDER],
    }
    return Bench(judge, criteria, model, options, by, settings, chat)


def _connect(judge: Judge, folder: Path, seed: int, by: By, options: Sequence[str]) -> tuple[str, Chat]:
    """The model's name, and the chat with it."""
    if judge.url:
        return judge.model, chats.endpoint(
            judge.url,
            judge.model,
            key_env=judge.key_env,
            seed=seed,
            max_new_tokens=judge.max_new_tokens,
            timeout_s=judge.timeout_s,
            at_once=judge.at_once,
        )
    from luthier.models import find_base

    base = find_base(judge.model, folder)
    if judge.pinned and not base.fingerprint.startswith(judge.pinned):
        found = f"the weights of {judge.model} begin with {base.fingerprint[:12]}, not with {judge.pinned}"
        raise EvaluationError.of("LU-E011", f"judge '{judge.name}'", found, "pin these weights, or restore the others")
    if by == "likelihood":
        return chats.model_name(base), chats.choosing(base, options)
    return chats.model_name(base), chats.local(base, max_new_tokens=judge.max_new_tokens)


def judge_answers(
    benches: Sequence[Bench],
    tuned: Sequence[Sample],
    baseline: Sequence[Sample],
    *,
    answers: Path,
    report: Reporter,
    votes: Votes | None = None,
) -> Judgement:
    """The metrics of all judges, with all their verdicts in them, and what a reader must know of each.

    Args:
        benches: The judges.
        tuned: The samples with the tuned model's answers; those without a prompt are not judged.
        baseline: The same samples, in the same order, with the baseline's.
        answers: The folder in which verdicts are kept, as `judge-KEY.jsonl`.
        report: Told how far it is.
        votes: What people say of some of the samples.
    """
    found = []
    for bench in benches:
        judged = _graded if bench.judge.form == "rubric" else _compared
        found.append(judged(bench, tuned, baseline, answers, report, votes or {}))
    return Judgement([m for j in found for m in j.metrics], [note for j in found for note in j.notes])


def _graded(
    bench: Bench,
    tuned: Sequence[Sample],
    baseline: Sequence[Sample],
    answers: Path,
    report: Reporter,
    votes: Votes,
) -> Judgement:
    asked = {(s.id, s.answer): s for s in (*tuned, *baseline) if s.prompt}
    questions = _questions(bench, ((s, {"answer": s.answer}) for s in asked.values()))
    verdicts = _ask_all(bench, questions, answers, report)
    grades = {key: verdict.value for key, verdict in zip(asked, verdicts, strict=True)}
    metric = MeanMetric(bench.judge.name, lambda sample: grades.get((sample.id, sample.answer)))
    said = []
    for new, old in zip(tuned, baseline, strict=True):
        ours, theirs = grades.get((new.id, new.answer)), grades.get((old.id, old.answer))
        if ours is not None and theirs is not None and new.answer != old.answer:
            said.append((new.id, 0.5 + 0.5 * ((ours > theirs) - (ours < theirs))))
    return Judgement([metric], [_about(bench, verdicts), *_agreement(bench, dict(said), votes)])


def _compared(
    bench: Bench,
    tuned: Sequence[Sample],
    baseline: Sequence[Sample],
    answers: Path,
    report: Reporter,
    votes: Votes,
) -> Judgement:
    name, both = bench.judge.name, [(t, b) for t, b in zip(tuned, baseline, strict=True) if t.prompt]
    pairs = [(t, b) for t, b in both if t.answer != b.answer]
    orders = ((x, {"first": x.answer, "second": y.answer}) for t, b in pairs for x, y in ((t, b), (b, t)))
    verdicts = _ask_all(bench, _questions(bench, orders), answers, report)
    outcomes = {(t.id, t.answer): Outcome(0.5, equal=True) for t, b in both if t.answer == b.answer}
    leanings = []
    for (t, b), one, other in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
        if one.value is None or other.value is None:
            continue
        sides = _side(one.value), -_side(other.value)  # 1: for the tuned model, -1: for the baseline
        leanings.append(sides[0] - sides[1])  # above 0: for whichever came first
        won = 0.5 + 0.5 * sides[0] if sides[0] == sides[1] else 0.5
        outcome = Outcome(won, len(t.answer) - len(b.answer), votes.get(t.id))
        outcomes |= {(t.id, t.answer): outcome, (b.id, b.answer): outcome.mirrored}
    told = {t.id: outcomes[t.id, t.answer].won for t, _ in pairs if (t.id, t.answer) in outcomes}
    metrics = [win_rate(name, outcomes), length_controlled(f"{name}_length_controlled", outcomes)]
    if len(votes.keys() & told.keys()) >= MIN_VOTES:
        metrics.append(corrected(f"{name}_corrected", outcomes))
    notes = [_about(bench, verdicts), *_order(name, leanings), *_agreement(bench, told, votes)]
    return Judgement(metrics, notes)


def _side(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)


# -- verdicts --------------------------------------------------------------------------------------------


def _questions(bench: Bench, asked: Iterable[tuple[Sample, Mapping[str, str]]]) -> list[Question]:
    """The judge's questions on samples with what is judged of each."""
    found = []
    for sample, judged in asked:
        reference = {"reference": sample.reference} if sample.reference else {}
        material = {"request": sample.prompt, **reference, **judged}
        found.append(make_question(bench.judge.form, bench.by, bench.criteria, bench.options, material))
    return found


def _ask(bench: Bench, questions: Sequence[Question]) -> list[Verdict]:
    """A verdict on each; a reply that cannot be read is asked for once more."""
    replies = bench.chat([q.messages for q in questions])
    found = [_verdict(bench, q, reply) for q, reply in zip(questions, replies, strict=True)]
    unread = [i for i, verdict in enumerate(found) if verdict.value is None and not verdict.lost]
    again = bench.chat([questions[i].again(replies[i].text) for i in unread]) if unread else []
    for i, reply in zip(unread, again, strict=True):
        found[i] = _verdict(bench, questions[i], reply)
    return found


def _verdict(bench: Bench, asked: Question, reply: Reply) -> Verdict:
    pinned = bench.judge.pinned if bench.judge.url else None
    if reply.failure is not None:
        return Verdict(None, reply.failure, reply.model, lost=True)
    if pinned and reply.model != pinned:
        return Verdict(None, f"answered by {reply.model}, pinned is {pinned}", reply.model, lost=True)
    if reply.nats is None:
        return Verdict(asked.read(reply.text), reply.text, reply.model)
    least = min(reply.nats.values())
    weights = {option: math.exp(least - nats) for option, nats in reply.nats.items()}
    expected = sum(w * asked.options[option] for option, w in weights.items()) / sum(weights.values())
    return Verdict(expected, reply.text, reply.model)


def _ask_all(bench: Bench, questions: Sequence[Question], answers: Path, report: Reporter) -> list[Verdict]:
    """A verdict on each question, from an earlier run where one asked the same."""
    path = answers / f"judge-{fingerprint(dict(bench.settings))[:32]}.jsonl"
    with locked(path.with_suffix(".lock")):  # two runs of one workspace may ask the same judge
        known = _kept(path)
        open_ = [*{q.key: q for q in questions if q.key not in known}.values()]
        with report.bar(f"judge {bench.judge.name}", len(open_)) as advance:
            for at in range(0, len(open_), AT_ONCE):
                group = open_[at : at + AT_ONCE]
                found = dict(zip((q.key for q in group), _ask(bench, group), strict=True))
                known |= found
                _keep(path, found)
                advance(len(group))
                if all(verdict.lost for verdict in found.values()):
                    break
    gone = Verdict(None, f"not asked, because {AT_ONCE} in a row had no reply", "", lost=True)
    return [known.get(q.key, gone) for q in questions]


def _keep(path: Path, found: Mapping[str, Verdict]) -> None:
    came = {key: verdict for key, verdict in found.items() if not verdict.lost}
    kept.append(path, ({"key": k, "value": v.value, "said": v.said, "model": v.model} for k, v in came.items()))


def _kept(path: Path) -> dict[str, Verdict]:
    return {row["key"]: Verdict(row["value"], row["said"], row["model"]) for row in kept.rows(path)}


# -- in words --------------------------------------------------------------------------------------------


def _about(bench: Bench, verdicts: Sequence[Verdict]) -> str:
    """Who judged, how, and what was lost."""
    judge, n = bench.judge, len(verdicts)
    how = "temperature 0" if bench.by == "reply" else "the likelihood of each verdict"
    versions = Counter(v.model for v in verdicts if v.model)
    text = f"{judge.name}: {judge.form} judge {bench.model}, {how}, settings {fingerprint(dict(bench.settings))[:12]}; "
    text += f"{n} verdicts asked for" + (f", answered by {_counted(versions)}" if versions else "")
    if judge.url and not judge.pinned:
        text += "; no version is pinned, so another day may judge differently"
    unread = sum(v.value is None and not v.lost for v in verdicts)
    lost = Counter(v.said for v in verdicts if v.lost)
    if unread:
        text += f"; {unread} replies could not be read, after one retry"
    if lost:
        text += f"; {lost.total()} had no reply: {printable(_counted(lost), 300)}"
    return text + ("; these samples are left out for both models" if unread or lost else "")


def _order(name: str, leanings: Sequence[int]) -> list[str]:
    """How often the order of the answers decided, of the pairs with two verdicts."""
    if not leanings:
        return []
    decided, first = sum(x != 0 for x in leanings), sum(x > 0 for x in leanings)
    share = f"{decided} of {len(leanings)} pairs ({decided / len(leanings):.0%})"
    return [f"{name}: the order of the answers changed the verdict of {share}, {first} of them towards the first: ties"]


def _agreement(bench: Bench, told: Mapping[str, float], votes: Votes) -> list[str]:
    """How far judge and people agree; `told` is what the judge says of pairs of different answers, as votes are."""
    both = [(told[sample], votes[sample]) for sample in told if sample in votes]
    if not both:
        return []
    table = np.zeros((3, 3))
    for ours, theirs in both:
        table[_side(ours), _side(theirs)] += 1
    value = float(kappa(table))
    same = f"{np.trace(table):.0f} of {len(both)}"
    text = f"{bench.judge.name}: judge and people agree on {same} voted pairs of different answers"
    text += "" if math.isnan(value) else f", Cohen's kappa {value:.2f}"
    if bench.judge.form == "pairwise" and len(both) < MIN_VOTES:
        text += f"; not corrected by votes, which takes {MIN_VOTES}"
    return [text]


def _counted(words: Counter[str]) -> str:
    return ", ".join(f"{word} ({n})" for word, n in words.most_common(3))
