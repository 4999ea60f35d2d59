"""`evaluate`: base and tuned model on the same held-out conversations, compared pair by pair."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.adapt import load_merged
from luthier.conversation import Conversation, read_conversations
from luthier.decoder import Decoder
from luthier.errors import DataError, RunError
from luthier.evaluate.build import build
from luthier.evaluate.compare import check_rules, compare_models
from luthier.evaluate.exam import Exam, dump_answers, load_answers
from luthier.evaluate.forgetting import probe_documents
from luthier.evaluate.judge import Votes, judge_answers, open_judge
from luthier.evaluate.metrics import default_metrics
from luthier.files import write_atomically
from luthier.models import Base, load_model, load_tokenizer
from luthier.progress import Quiet, Reporter
from luthier.recipe import Recipe
from luthier.records import AuditReport, EvalReport
from luthier.store import folder_hash


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
    votes: Votes | None = None,
) -> EvalReport:
    """Compare the model in `trained` with its base on the test side and on the general probe.

    Leaves `out/evaluation.json` and what each model answered, `out/base.jsonl` and `out/tuned.jsonl`.
    `folder` is where the recipe's own metrics are looked for; `answers` keeps what a model answered for
    other runs that ask it the same, and what judges said of it; `votes` are what people said. Raises DataError LU-D070
    where the test side is empty; EvaluationError where a metric or a rule cannot be measured.
    """
    report = report or Quiet()
    audit = AuditReport.read(prepared / "audit.json")
    conversations, notes = _test_side(recipe, prepared)
    metrics = [build(use, audit.labels, folder) for use in recipe.evaluate.metrics or default_metrics(audit.task)]
    benches = [open_judge(judge, folder, recipe.seed) for judge in recipe.evaluate.judges]
    judged = [name for judge in recipe.evaluate.judges for name in judge.measures(bool(votes))]
    check_rules(recipe.release.rules, [*(m.name for m in metrics), *judged], [c.tags for c in conversations])
    tokenizer = load_tokenizer(base)
    exam = Exam(recipe, tokenizer, conversations, probe_documents(recipe.evaluate.probe_documents), audit.labels)
    models = {
        "base": (base.fingerprint, lambda: load_model(base)),
        "tuned": (f"{base.fingerprint} {folder_hash(trained)}", lambda: load_merged(load_model(base), trained)),
    }
    taken = {}
    for name, (fingerprint, load) in models.items():
        kept = answers / f"{exam.key(fingerprint)}.jsonl"
        if kept.is_file():
            report.say(f"{name}: answers known from an earlier run")
        else:
            write_atomically(kept, dump_answers(exam.take(Decoder(load()), name, report)))
        shown = Path(base.name).name if name == "base" else name
        taken[name] = load_answers(shown, kept, recipe.evaluate.cluster_by)
        shutil.copyfile(kept, out / f"{name}.jsonl")
    both = taken["tuned"], taken["base"]
    judgement = judge_answers(benches, *(of.samples for of in both), answers=answers, report=report, votes=votes)
    metrics += judgement.metrics
    result = compare_models(*both, metrics=metrics, recipe=recipe, task=audit.task, labels=audit.labels)
    result = result.model_copy(update={"notes": (*notes, *judgement.notes, *result.notes)})
    result.write(out / "evaluation.json")
    return result


def _test_side(recipe: Recipe, prepared: Path) -> tuple[list[Conversation], list[str]]:
    conversations = list(read_conversations(prepared / "test.jsonl"))
    if not conversations:
        raise DataError.of(
            "LU-D070", str(prepared), "the test side is empty", "give more data, or a larger data.split.test_fraction"
        )
    limit = recipe.evaluate.limit
    if limit is None or len(conversations) <= limit:
        return conversations, []
    chosen = sorted(np.random.default_rng(recipe.seed).permutation(len(conversations))[:limit])
    note = f"evaluate.limit: {limit} of {len(conversations)} test conversations, drawn by seed {recipe.seed}"
    return [conversations[i] for i in chosen], [note]


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

    Raises RunError LU-U006 where they share no conversation.
    """
    sides = [
        load_answers(name, at / "tuned.jsonl", recipe.evaluate.cluster_by)
        for name, at in zip(names, (first, second), strict=True)
    ]
    shared = {s.id for s in sides[0].samples} & {s.id for s in sides[1].samples}
    if not shared:
        raise RunError.of(
            "LU-U006", " and ".join(names), "share no test conversation", "compare runs on the same test data"
        )
    baseline, tuned = (
        replace(
            side,
            samples=sorted((s for s in side.samples if s.id in shared), key=lambda s: s.id),
            general=sorted(side.general, key=lambda s: s.id),
        )
        for side in sides
    )
    metrics = [build(use, audit.labels, folder) for use in recipe.evaluate.metrics or default_metrics(audit.task)]
    benches = [open_judge(judge, folder, recipe.seed) for judge in recipe.evaluate.judges]
    judgement = judge_answers(benches, tuned.samples, baseline.samples, answers=answers, report=Quiet())
    metrics += judgement.metrics
    result = compare_models(tuned, baseline, metrics=metrics, recipe=recipe, task=audit.task, labels=audit.labels)
    return result.model_copy(update={"notes": (*judgement.notes, *result.notes)})
