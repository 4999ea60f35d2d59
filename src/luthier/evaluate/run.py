"""`evaluate`: base and tuned model on the same held-out conversations, compared pair by pair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from luthier import kept
from luthier.conversation import Conversation, read_conversations
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.errors import DataError, RunError
from luthier.evaluate.clean import contaminated
from luthier.evaluate.compare import Answers, compare_models, judged
from luthier.evaluate.coverage import coverage
from luthier.evaluate.exam import (
    TEST,
    Answer,
    Drawing,
    Exam,
    Scorer,
    Write,
    check_clusters,
    dump_samples,
    load_answers,
    sample_of,
    write_here,
)
from luthier.evaluate.fluency import Reader
from luthier.evaluate.judges.judge import Bench, Votes, judge_answers, open_judge
from luthier.evaluate.metrics import default_metrics
from luthier.evaluate.metrics.build import build
from luthier.evaluate.rules import check_names, check_rules, check_values
from luthier.evaluate.servers import about, connect, writing
from luthier.evaluate.suites.changed import CHANGES, from_tests
from luthier.evaluate.suites.files import from_file
from luthier.evaluate.suites.general import probe_documents
from luthier.evaluate.suites.harness import from_task
from luthier.evaluate.suites.suite import Item, Suite, form_metrics, general, labelled
from luthier.files import write_atomically
from luthier.metric import Metric, Sample
from luthier.models import Base, load_model, load_tokenizer, max_tokens
from luthier.progress import Quiet, Reporter
from luthier.records import AuditReport, EvalReport, Judged
from luthier.saved import load_merged
from luthier.settings import Recipe, Servers, SuiteUse, left_out
from luthier.store import folder_hash


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    fingerprint: str
    load: Callable[[], nn.Module]
    adapter: Path | None = None
    """What servers load of the tuned model."""


def evaluate(
    recipe: Recipe,
    prepared: Path,
    base: Base,
    trained: Path,
    out: Path,
    folder: Path,
    *,
    answers: Path,
    report: Reporter | None = None,
    votes: Callable[[Sequence[Judged]], Votes] | None = None,
    requests: Sequence[Conversation] = (),
    notes: Sequence[str] = (),
) -> EvalReport:
    """Compare the model in `trained` with its base on the test side, on the general probe and in the recipe's suites.

    Leaves `out/evaluation.json` and what each model answered, `out/base.jsonl` and `out/tuned.jsonl`.

    Args:
        folder: Where the recipe's own metrics and files are looked for.
        answers: Keeps what a model answered for other runs that ask it the same, and what judges said of it.
        votes: Looks up what people said of the answers.
        requests: Real ones, to see what the test side lacks.
        notes: What else the report's reader must know.

    Raises:
        DataError: LU-D070, the test side is empty; LU-D071 to LU-D074, a suite cannot be asked.
        EvaluationError: A metric or a rule cannot be measured.
        ModelError: LU-M006 to LU-M009, servers do not answer.
    """
    report = report or Quiet()
    asked = _open(recipe, prepared, base, folder, voted=votes is not None)
    test = Suite(TEST, labelled(asked.tests, asked.audit.labels), asked.metrics, scored=True, written=True)
    exams = [_exam(suite, asked.encoder, asked, recipe) for suite in (test, *asked.suites)]
    taken = _take(exams, asked, recipe, base, trained, out, answers, report)
    both = taken["tuned"], taken["base"]
    samples = [of.samples for of in both]
    said = votes(judged([], *samples)) if votes else {}
    judgement = judge_answers(asked.benches, *samples, answers=answers, report=report, votes=said)
    result = compare_models(
        *both,
        metrics=[*asked.metrics, *judgement.metrics],
        suites=asked.suites,
        recipe=recipe,
        task=asked.audit.task,
        labels=asked.audit.labels,
        seen=_in_training(recipe, prepared, asked.tests),
    )
    if requests:
        result = result.model_copy(update={"coverage": coverage(asked.tests, requests, recipe.seed)})
    served = _about_servers(recipe, base, trained, answers)
    result = result.model_copy(update={"notes": (*notes, *asked.notes, *served, *judgement.notes, *result.notes)})
    result.write(out / "evaluation.json")
    return result


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a recipe asks, and what it is measured by: all that is known before a model is loaded."""

    audit: AuditReport
    tests: Sequence[Conversation]
    metrics: Sequence[Metric]
    suites: Sequence[Suite]
    benches: Sequence[Bench]
    encoder: Encoder
    window: int | None
    """Tokens of a document that are scored at once."""
    notes: Sequence[str]


def _open(recipe: Recipe, prepared: Path, base: Base, folder: Path, *, voted: bool) -> _Opened:
    """Raises as `foresee`."""
    audit = AuditReport.read(prepared / "audit.json")
    tests, drawn = _test_side(recipe, prepared)
    metrics = [build(use, audit.labels, folder) for use in recipe.evaluate.metrics or default_metrics(audit.task)]
    encoder = Encoder(load_tokenizer(base.unchanged))
    chats = bool(getattr(encoder.tokenizer, "chat_template", None))
    suites, unasked = _suites(recipe, tests, folder, chats=chats)
    benches = [open_judge(judge, folder, recipe.seed) for judge in recipe.evaluate.judges]
    drawn += check_clusters(recipe.evaluate.cluster_by, tests)
    check_names(metrics, suites)
    known = [*(m.name for m in metrics), *(name for judge in recipe.evaluate.judges for name in judge.measures(voted))]
    check_rules(recipe.release.rules, known, suites, [c.tags for c in tests])
    notes = [*drawn, *_about_the_base(recipe), *unasked]
    return _Opened(audit, tests, metrics, suites, benches, encoder, max_tokens(recipe, base), notes)


def _about_the_base(recipe: Recipe) -> list[str]:
    """What the base model has not, and the tuned one has from elsewhere than the training data."""
    notes = []
    if n := len(recipe.model.new_tokens):
        new = "1 new token" if n == 1 else f"{n} new tokens"
        notes.append(f"the base model reads and writes without the {new}; all likelihoods are per token of the base's")
    if n := len(recipe.model.adapters):
        given = "the adapter" if n == 1 else f"the {n} adapters"
        notes.append(f"the base model is asked without {given} that training began with: the change is of all together")
    return notes


def _models(base: Base, trained: Path) -> tuple[_Model, _Model]:
    fingerprint = f"{base.fingerprint} {folder_hash(trained)}"
    return (
        _Model("base", base.fingerprint, lambda: load_model(base.unchanged)),
        _Model("tuned", fingerprint, lambda: load_merged(load_model(base), trained), trained),
    )


def _take(
    exams: Sequence[Exam],
    asked: _Opened,
    recipe: Recipe,
    base: Base,
    trained: Path,
    out: Path,
    answers: Path,
    report: Reporter,
) -> dict[str, Answers]:
    """What both models answer, by `base` and `tuned`; left in `out` too."""
    read = any("fluency" in use.names for use in recipe.evaluate.metrics)
    load, at_once = (lambda: load_model(base.unchanged)), recipe.train.tokens_per_micro_batch
    reader = Reader(base.fingerprint, load, asked.encoder, at_once, answers)
    exams_of = {"base": exams, "tuned": _with_new_tokens(exams, asked, recipe, base) if base.new_tokens else exams}
    taken = {}
    for model in _models(base, trained):
        path = out / f"{model.name}.jsonl"
        write_atomically(path, _answers(exams_of[model.name], model, recipe.evaluate.servers, answers, report))
        if read:
            _read(path, reader, report)
        shown = Path(base.name).name if model.name == "base" else model.name
        taken[model.name] = load_answers(shown, path, recipe.evaluate.cluster_by)
    return taken


def _with_new_tokens(exams: Sequence[Exam], asked: _Opened, recipe: Recipe, base: Base) -> list[Exam]:
    encoder = Encoder(load_tokenizer(base), new_tokens=base.new_tokens)
    return [_exam(exam.suite, encoder, asked, recipe, like=exam) for exam in exams]


def _about_servers(recipe: Recipe, base: Base, trained: Path, answers: Path) -> list[str]:
    servers = recipe.evaluate.servers
    if servers is None:
        return []
    return [note for m in _models(base, trained) for note in about(servers, m.fingerprint, answers, m.name)]


def _in_training(recipe: Recipe, prepared: Path, tests: Sequence[Conversation]) -> dict[str, float]:
    trained = read_conversations(prepared / "train.jsonl", left_out(recipe.data.augment))
    return contaminated(tests, trained, recipe.data.split.near_duplicate_similarity)


def foresee(recipe: Recipe, prepared: Path, base: Base, folder: Path, *, voted: bool) -> None:
    """Whether the rules can be judged on the test side at all: to be known before hours of training.

    `voted`: whether people have judged answers of this run. Raises DataError LU-D070 where the test side is empty,
    LU-D071 to LU-D074 where a suite cannot be asked, LU-D102 where no row has the tag `cluster_by`, what `open_judge`
    raises, and EvaluationError: LU-E007 to LU-E009 as `compare_models`, LU-E008 also where a rule's metric would have
    no value even if every answer were right (one label only, say), LU-E003 to LU-E005 where a rule's metric fails on
    such answers.
    """
    asked = _open(recipe, prepared, base, folder, voted=voted)
    if recipe.evaluate.servers:
        connect(recipe.evaluate.servers)
    right = [_all_right(c, asked.audit.labels) for c in asked.tests]
    check_values(recipe.release.rules, asked.metrics, right)


def _all_right(conversation: Conversation, labels: tuple[str, ...]) -> Sample:
    """What a model would leave that gives the reference itself."""
    choices = {label: float(label != conversation.answer) for label in labels} or None
    item = Item(conversation)
    made = sample_of(item, n_tokens=1, nats=1.0, answer=Answer(conversation.answer), choices=choices)
    return replace(made, read=(1.0, 1))


def _suites(
    recipe: Recipe, tests: Sequence[Conversation], folder: Path, *, chats: bool
) -> tuple[list[Suite], list[str]]:
    """The general probe and what the recipe asks besides, with a note on each suite that asks nothing here."""
    suites, notes = [general(probe_documents(recipe.evaluate.probe_documents))], []
    for use in recipe.evaluate.suites:
        suite = _suite(use, tests, folder, recipe.seed)
        if not suite.items:
            notes.append(f"{use.name} is not measured: it changes none of the test questions")
        elif suite.written and not chats:
            notes.append(f"{use.name} is not measured: the base model has no chat template to ask by")
        else:
            suites.append(suite)
    return suites, notes


def _suite(use: SuiteUse, tests: Sequence[Conversation], folder: Path, seed: int) -> Suite:
    if use.form in CHANGES:
        return from_tests(use, tests, seed)
    return from_task(use, folder, seed) if use.task else from_file(use, folder, seed)


def _exam(suite: Suite, encoder: Encoder, asked: _Opened, recipe: Recipe, like: Exam | None = None) -> Exam:
    settings = recipe.evaluate
    return Exam(
        suite,
        encoder,
        tests=asked.tests,
        window=asked.window,
        max_new_tokens=settings.max_new_tokens,
        tokens_at_once=recipe.train.tokens_per_micro_batch,
        # The likeliest answers are those of any seed.
        drawing=Drawing(settings.temperature, settings.draws, recipe.seed)
        if suite.name == TEST and settings.temperature
        else None,
        like=like,
    )


def _answers(exams: Sequence[Exam], model: _Model, servers: Servers | None, folder: Path, report: Reporter) -> bytes:
    """What one model answers in every exam; the model is loaded only where an answer is not kept in `folder`."""
    scorer, found, known = None, list[bytes](), 0
    with _writing(model, servers, folder, report) as write:
        for exam in exams:
            path = folder / f"{exam.key(model.fingerprint, servers.model if servers else '')}.jsonl"
            content = kept.read(path)
            known += content is not None
            if content is None:
                scorer = scorer or Scorer(Decoder(model.load()))
                content = dump_samples(exam.take(scorer, model.name, report, write), exam.suite.name)
                kept.write(path, content)
            found.append(content)
    if known:
        part = "" if known == len(exams) else f" to {known} of {len(exams)} sets of questions"
        report.say(f"{model.name}: answers known from an earlier run{part}")
    return b"".join(found)


def _read(path: Path, reader: Reader, report: Reporter) -> None:
    """Put what the base model makes of each answer beside it."""
    kept = load_answers("", path, None)
    samples = {TEST: reader(kept.samples, report), **kept.suites}
    write_atomically(path, b"".join(dump_samples(found, of) for of, found in samples.items()))


def _writing(
    model: _Model, servers: Servers | None, folder: Path, report: Reporter
) -> contextlib.AbstractContextManager[Write]:
    if servers is None:
        return contextlib.nullcontext(write_here)
    return writing(servers, model.fingerprint, model.adapter, folder, model.name, report)


def _test_side(recipe: Recipe, prepared: Path) -> tuple[list[Conversation], list[str]]:
    with (prepared / "test.jsonl").open("rb") as lines:
        n = sum(1 for _ in lines)
    if not n:
        raise DataError.of(
            "LU-D070", str(prepared), "the test side is empty", "give more data, or a larger data.split.test_fraction"
        )
    limit = recipe.evaluate.limit
    conversations = read_conversations(prepared / "test.jsonl")
    if limit is None or n <= limit:
        return list(conversations), []
    chosen = {*np.random.default_rng(recipe.seed).permutation(n)[:limit].tolist()}
    note = f"evaluate.limit: {limit} of {n} test conversations, drawn by seed {recipe.seed}"
    return [c for i, c in enumerate(conversations) if i in chosen], [note]


def compare_answers(
    recipe: Recipe,
    audit: AuditReport,
    first: Path,
    second: Path,
    names: tuple[str, str],
    folder: Path,
    *,
    answers: Path,
) -> EvalReport:
    """The tuned answers in `second` against those in `first`, on what both were asked; only judges are run.

    Rules on what only one of them was asked, or on votes, are left out: nothing is released by this.
    Raises RunError LU-U006 where they share no conversation.
    """
    sides = [
        load_answers(name, at / "tuned.jsonl", recipe.evaluate.cluster_by)
        for name, at in zip(names, (first, second), strict=True)
    ]
    baseline, tuned = _on_what_both_were_asked(*sides)
    if not tuned.samples:
        raise RunError.of(
            "LU-U006", " and ".join(names), "share no test conversation", "compare runs on the same test data"
        )
    uses = recipe.evaluate.suites
    suites = [general([]), *(Suite(u.name, [], form_metrics(u.name, u.form), form=u.form) for u in uses)]
    suites = [suite for suite in suites if tuned.suites.get(suite.name)]
    metrics = [build(use, audit.labels, folder) for use in recipe.evaluate.metrics or default_metrics(audit.task)]
    benches = [open_judge(judge, folder, recipe.seed) for judge in recipe.evaluate.judges]
    judgement = judge_answers(benches, tuned.samples, baseline.samples, answers=answers, report=Quiet())
    metrics = [*metrics, *judgement.metrics]
    measured = {m.name for m in (*metrics, *(m for suite in suites for m in suite.metrics))}
    rules = tuple(rule for rule in recipe.release.rules if rule.metric in measured)
    result = compare_models(
        tuned,
        baseline,
        metrics=metrics,
        suites=suites,
        recipe=recipe.model_copy(update={"release": recipe.release.model_copy(update={"rules": rules})}),
        task=audit.task,
        labels=audit.labels,
    )
    return result.model_copy(update={"notes": (*judgement.notes, *result.notes)})


def _on_what_both_were_asked(first: Answers, second: Answers) -> list[Answers]:
    """Both sides with the samples of each suite that the other has too, in one order."""

    def shared(mine: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
        ids = {s.id for s in others}
        return sorted((s for s in mine if s.id in ids), key=lambda s: s.id)

    return [
        Answers(
            mine.name,
            shared(mine.samples, other.samples),
            {name: shared(samples, other.suites.get(name, [])) for name, samples in mine.suites.items()},
        )
        for mine, other in ((first, second), (second, first))
    ]
