"""What is asked of runs that are there: which there are, how two compare, how large a next test must be, a talk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.errors import RunError
from luthier.progress import Quiet
from luthier.records import AuditReport, EvalReport, RunRecord
from luthier.store import STAGES, damaged, runs_in, stage_record
from luthier.target import WORKSPACE, Run, base_of, open_target, read_run

if TYPE_CHECKING:
    from luthier.power import Gate, Pilot


def list_runs(workspace: Path = WORKSPACE) -> list[tuple[Run, dict[str, RunRecord]]]:
    """All runs of the workspace with the records of their finished stages, oldest first.

    What cannot be read is not done: the next `luthier run` says what is wrong.
    """
    return [(_readable(f), {s: r for s in STAGES if (r := _record(f, s))}) for f in runs_in(workspace)]


def _readable(folder: Path) -> Run:
    try:
        return read_run(folder)
    except RunError:
        return Run(folder, None)


def _record(folder: Path, stage: str) -> RunRecord | None:
    try:
        return stage_record(folder, stage)
    except RunError:
        return None


def compare(first: Path, second: Path) -> EvalReport:
    """The tuned model of `second` against that of `first`, on the test conversations that both answered.

    Raises RunError LU-U005 where a run has not been evaluated, LU-U018 where it is damaged, LU-U006 where they share no
    conversation.
    """
    from luthier.evaluate import compare_answers

    for folder in (first, second):
        _expect(folder, "prepare")
        _expect(folder, "evaluate")
    recipe, origin = open_target(second, (), Quiet())
    audit = AuditReport.read(second / "prepare" / "audit.json")
    sides, names = (first / "evaluate", second / "evaluate"), (first.name, second.name)
    return compare_answers(recipe, audit, *sides, names, origin, answers=second.resolve().parent / ".answers")


def pilot(folder: Path, metric: str | None, limit: float | None, power: float) -> tuple[str, Pilot, Gate]:
    """A run's evaluation as a pilot of the next one, with the gate that will judge it.

    Without a `metric`, that of the recipe's first rule. Without a `limit`, that of the recipe's rule on the metric, 0
    where there is none (a rule on part of the rows is none). Raises RunError LU-U005 where the run has not been
    evaluated, LU-U018 where it is damaged; EvaluationError LU-E008, LU-E014 as `power.Pilot.of`.
    """
    from luthier.power import Gate, Pilot
    from luthier.release.gate import limit as limit_of

    _expect(folder, "evaluate")
    rules = open_target(folder, (), Quiet())[0].release.rules
    evaluation = EvalReport.read(folder / "evaluate" / "evaluation.json")
    name = metric or rules[0].metric
    found = Pilot.of(evaluation, name)
    rule = next((r for r in rules if r.metric == name and not r.where and not r.in_slices), None)
    if limit is None:
        relative = rule.by_relative * abs(evaluation.metrics[name].baseline) if rule else 0.0
        limit = limit_of(rule.must, relative or rule.by_points) if rule else 0.0
    return name, found, Gate(limit, evaluation.confidence, power)


def talk(folder: Path, *, base: bool = False) -> Callable[[str], str]:
    """A function from what a person says to what the run's model answers, remembering the conversation.

    The system text is the one of the training data. Raises RunError LU-U005 where nothing was trained, LU-U018
    where the run is damaged.
    """
    from luthier.conversation import Message, read_conversations
    from luthier.decoder import Decoder
    from luthier.encode import Encoder
    from luthier.generate import generate
    from luthier.models import load_model, load_tokenizer
    from luthier.saved import load_merged

    _expect(folder, "prepare")
    _expect(folder, "train")
    recipe, origin = open_target(folder, (), Quiet())
    found = base_of(recipe, origin).unchanged if base else base_of(recipe, origin)
    tokenizer, model = load_tokenizer(found), load_model(found)
    decoder = Decoder(model if base else load_merged(model, folder / "train" / "model"))
    encoder = Encoder(tokenizer, new_tokens=found.new_tokens)
    example = next(read_conversations(folder / "prepare" / "train.jsonl"))
    history = [m for m in example.messages[:1] if m.role == "system"]
    encoded = encoder(example)
    end_ids = {tokenizer.eos_token_id, encoded.ids[encoded.last_learned]}

    def answer(question: str) -> str:
        history.append(Message(role="user", content=question))
        [ids] = generate(
            decoder,
            [encoder.prompt(history)],
            max_new_tokens=recipe.evaluate.max_new_tokens,
            end_ids=end_ids,
            advance=lambda *_, **__: None,
        )
        text: str = tokenizer.decode(ids, skip_special_tokens=True).strip()
        history.append(Message(role="assistant", content=text))
        return text

    return answer


def _expect(folder: Path, stage: Literal["prepare", "train", "evaluate"]) -> None:
    """Raises RunError LU-U005 where the stage is not done, LU-U018 where what it left is not there any more."""
    record, advice = stage_record(folder, stage), f"luthier {stage} {folder}"
    if record is None:
        found = {"train": "has no trained model", "evaluate": "has not been evaluated"}.get(stage, "has no data")
        raise RunError.of("LU-U005", str(folder), found, advice)
    if harm := damaged(folder, record):
        raise RunError.of("LU-U018", str(folder), harm, advice)
