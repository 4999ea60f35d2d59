"""The whole life of a fine-tuned model, as one page: prepare -> [advise ->] [augment ->] train -> evaluate -> release.

Each stage is a function from records to a record. Its key (`keys.py`) is a hash of all that goes in; a stage whose
key is already done, here or in another run of the workspace, is not run again. A run that was killed goes on where
it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier import kept, keys
from luthier import recipe as recipes
from luthier.errors import RunError
from luthier.files import write_atomically
from luthier.foresight import can_judge, can_train, check_packages
from luthier.launch import WAIT_S, Launch
from luthier.launch import check as check_launch
from luthier.launch import launch as launched
from luthier.machine import describe, peak_bytes
from luthier.progress import Quiet, Reporter
from luthier.records import (
    AdviceReport,
    AuditReport,
    Comparison,
    EvalReport,
    KeptAugmentation,
    RunRecord,
    Stage,
    TrainReport,
)
from luthier.settings import HUMAN_PREFERENCE, Auto, Recipe, Rule, fingerprint, names_of
from luthier.store import STAGES, artifacts_in, damaged, find_stage, link_stage, stage_record
from luthier.target import Run, alone, base_of, folder_of, keep_recipe, open_target, read_run, workspace_of

if TYPE_CHECKING:
    from luthier.models import Base

PARITY_PROMPTS, PARITY_TOKENS = 8, 256
"""On which an export is compared with its original; 256 x 49,152 logits in float32 are 50 MB."""


class Advisor(Protocol):
    """Decides by trials what a recipe leaves open: `tune.decide.Advisor`, which stands above this."""

    def technique(
        self, recipe: Recipe, run: Path, base: Base, out: Path, workspace: Path, report: Reporter
    ) -> AdviceReport:
        """What is trained, for `adapt: auto`."""

    def augmentation(self, recipe: Recipe, run: Path, workspace: Path, report: Reporter) -> KeptAugmentation:
        """Which rows that were made are learned from, for `keep: if_it_helps`."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What every stage needs to know."""

    recipe: Recipe
    origin: Path  # where the recipe lies: its paths count from here
    folder: Path
    workspace: Path
    base: Base
    report: Reporter
    advisor: Advisor | None = None
    launch: Launch | None = None


def run(
    target: str | Path,
    *,
    overrides: tuple[str, ...] = (),
    workspace: Path | None = None,
    until: Stage = "release",
    report: Reporter | None = None,
    advisor: Advisor | None = None,
    launch: Launch | None = None,
) -> Run:
    """Do everything a recipe asks for, up to and including the stage `until`.

    Training is done by the processes that `launch` asks for, all else by this one.

    With `adapt: auto` or `keep: if_it_helps` the `advisor` is asked first, and what comes after is that of a recipe
    with its choices.

    `target` is a recipe, a run's folder, or data: a file or folder from which a recipe is derived and kept. Without a
    `workspace` runs lie in ./runs, and a run that is given stays where it is.
    Raises LuthierError of many kinds; whatever was finished stays.
    """
    report = report or Quiet()
    if launch:
        check_launch(launch)
    workspace = workspace or workspace_of(target)
    recipe, origin = open_target(target, overrides, report)
    folder = folder_of(recipe, origin, workspace)
    with alone(folder):
        keep_recipe(recipe, origin, folder)
        report.say(f"run: {folder}\nbase: {recipe.model.base} (a GGUF is dequantised once, on its first use)")
        base = base_of(recipe, origin)
        check_packages(recipe)
        work = _Work(recipe, origin, folder, workspace, base, report, advisor, launch)
        for stage in STAGES[: STAGES.index(until) + 1]:
            if stage in OPEN:
                work = OPEN[stage](work)
                continue
            _do(work, stage)
            if stage == "prepare" and until != "prepare":
                _foresee(work, folder / "prepare", judged=until in ("evaluate", "release"))
    return read_run(folder)


# -- the stages ------------------------------------------------------------------------------------------


def _prepare(work: _Work, out: Path) -> dict[str, Any]:
    from luthier.encode import Encoder
    from luthier.models import load_tokenizer, max_tokens
    from luthier.prepare import prepare

    encoder = Encoder(load_tokenizer(work.base), max_tokens(work.recipe, work.base), work.base.new_tokens)
    audit = prepare(work.recipe, work.origin, out, encoder, work.report)
    return {"task": audit.task, **audit.sides}


def _foresee(work: _Work, prepared: Path, *, judged: bool) -> None:
    """Raises what training, and with `judged` evaluation too, could only end with."""
    from luthier.votes import votes_key

    asked = (work.recipe, prepared, work.base, work.origin)
    can_train(*asked)
    if judged:
        can_judge(*asked, voted=bool(votes_key(work.folder)))


def _advised(work: _Work) -> _Work:
    """The same work with what is trained chosen; the recipe in the run's folder stays as it was given."""
    if not isinstance(work.recipe.model.adapt, Auto):
        return work
    _do(work, "advise")
    advice = AdviceReport.read(work.folder / "advise" / "advice.json")
    tree = recipes.override(work.recipe.model_dump(mode="json", exclude_defaults=True), advice.settings)
    return replace(work, recipe=recipes.validate(tree, "advice", work.origin))


def _advise(work: _Work, out: Path) -> dict[str, Any]:
    if work.advisor is None:
        found, advice = "what is trained is not chosen yet", "luthier advise chooses; or name a technique"
        raise RunError.of("LU-U040", "model.adapt: auto", found, advice)
    done = work.advisor.technique(work.recipe, work.folder, work.base, out, work.workspace, work.report)
    done.write(out / "advice.json")
    work.report.say(f"advise: {done.chosen}: {'; '.join(done.why)}")
    return {"chosen": done.chosen}


def _augmented(work: _Work) -> _Work:
    """The same work with every augmentation kept or left out."""
    uses = work.recipe.data.augment
    if all(use.keep != "if_it_helps" for use in uses):
        return work
    _do(work, "augment")
    chosen = KeptAugmentation.read(work.folder / "augment" / "kept.json").kept
    decided = tuple(
        use.model_copy(update={"keep": "always" if name in chosen else "never"}) if use.keep == "if_it_helps" else use
        for name, use in zip(names_of(uses), uses, strict=True)
    )
    data = work.recipe.data.model_copy(update={"augment": decided})
    return replace(work, recipe=work.recipe.model_copy(update={"data": data}))


OPEN = {"advise": _advised, "augment": _augmented}
"""Stages that are done only where a recipe leaves something open."""


def _augment(work: _Work, out: Path) -> dict[str, Any]:
    if work.advisor is None:
        found, advice = "which rows are learned from is not decided yet", "luthier run decides; or keep: always"
        raise RunError.of("LU-U045", "data.augment: keep: if_it_helps", found, advice)
    done = work.advisor.augmentation(work.recipe, work.folder, work.workspace, work.report)
    done.write(out / "kept.json")
    work.report.say(f"augment: {'; '.join(done.why)}")
    return {"kept": list(done.kept)}


def _train(work: _Work, out: Path) -> dict[str, Any]:
    from luthier.train import train

    _check_same_inputs(work, out)
    if work.launch and not work.launch.alone:
        job = {
            "recipe": work.recipe.model_dump(mode="json", exclude_defaults=True),
            "origin": str(work.origin.resolve()),
        }
        write_atomically(work.folder / JOB, json.dumps(job).encode())
        try:
            launched(work.launch, _as_member(work.folder, work.report))
        finally:
            (work.folder / JOB).unlink()
        done = TrainReport.read(out / "train.json")
    else:
        with alone(work.folder, "train."):  # processes whose command was killed may still be at it
            done = train(work.recipe, work.folder / "prepare", work.base, out, work.report, work.origin)
    return {"steps": done.steps, "best_step": done.best_step, "stopped": done.stopped}


JOB = "train/job.json"
"""What the processes that train together are told."""


def _as_member(folder: Path, report: Reporter) -> list[str]:
    return ["-m", "luthier", "member", str(folder.resolve()), *(["--quiet"] if isinstance(report, Quiet) else [])]


def member(folder: Path, report: Reporter) -> None:
    """What each of them does. Raises LuthierError as training does."""
    from luthier.train import train
    from luthier.train.shards import Shards
    from luthier.train.world import Replicas, joined

    job = json.loads((folder / JOB).read_bytes())
    origin = Path(job["origin"])
    recipe = recipes.validate(job["recipe"], str(folder / JOB), origin)
    wait = timedelta(seconds=float(os.environ[WAIT_S]))
    made = Shards if recipe.train.parallel == "fsdp" else Replicas
    with joined(made, wait) as world, alone(folder, "train.") if world.rank == 0 else nullcontext():
        train(recipe, folder / "prepare", base_of(recipe, origin), folder / "train", report, origin, world)


def join(
    target: str | Path, how: Launch, *, overrides: tuple[str, ...] = (), workspace: Path | None = None, report: Reporter
) -> None:
    """Give processes of this machine to a training that `run` with the same options leads on another one.

    Both see the run's folder under the same path. Raises what `launch` raises.
    """

    check_launch(how)
    recipe, origin = open_target(target, overrides, report)
    folder = folder_of(recipe, origin, workspace or workspace_of(target))
    report.say(f"run: {folder}; waiting for the machine that leads")
    while not (folder / JOB).is_file():  # it reads the data first
        if stage_record(folder, "train"):
            report.say("train: done already")
            return
        time.sleep(1)
    launched(how, _as_member(folder, report))


def _evaluate(work: _Work, out: Path) -> dict[str, Any]:
    from luthier.evaluate import evaluate
    from luthier.prepare.clean import Cleaning
    from luthier.prepare.requests import read_requests
    from luthier.votes import preferences, votes_key

    trained, asked = work.folder / "train" / "model", work.recipe.evaluate.requests
    requests, notes = read_requests(asked, work.origin, Cleaning(work.recipe, work.origin)) if asked else ([], [])
    report = evaluate(
        work.recipe,
        work.folder / "prepare",
        work.base,
        trained,
        out,
        work.origin,
        answers=work.workspace / ".answers",
        report=work.report,
        votes=partial(preferences, work.folder) if work.recipe.evaluate.judges and votes_key(work.folder) else None,
        requests=requests,
        notes=notes,
    )
    return {"n": report.n}


def _release(work: _Work, out: Path) -> dict[str, Any]:
    from luthier.conversation import read_conversations
    from luthier.encode import Encoder
    from luthier.models import load_tokenizer
    from luthier.release import release

    evaluation, comparisons = _to_judge_by(work)
    encoder = Encoder(load_tokenizer(work.base), new_tokens=work.base.new_tokens)
    tests = islice(read_conversations(work.folder / "prepare" / "test.jsonl"), PARITY_PROMPTS)
    verdict = release(
        work.recipe,
        work.folder,
        out,
        base=work.base,
        evaluation=evaluation,
        comparisons=comparisons,
        prompts=[encoder(c).ids[:PARITY_TOKENS] for c in tests],
        environment=_environment(work),
    )
    return {"verdict": verdict.outcome}


def _to_judge_by(work: _Work) -> tuple[EvalReport, Sequence[tuple[Rule, Mapping[str, Comparison]]]]:
    """The evaluation, with people's votes where a rule asks for them, and what each rule is judged by."""
    from luthier.evaluate.rules import comparisons_for
    from luthier.release.gate import rules_of
    from luthier.votes import with_votes

    rules = rules_of(work.recipe.release)
    evaluation = EvalReport.read(work.folder / "evaluate" / "evaluation.json")
    if not any(rule.metric == HUMAN_PREFERENCE for rule in rules):
        return evaluation, [(rule, comparisons_for(rule, evaluation)) for rule in rules]
    reviewed, said = with_votes(evaluation, work.folder)
    return reviewed, [
        (rule, {"": said} if rule.metric == HUMAN_PREFERENCE else comparisons_for(rule, evaluation)) for rule in rules
    ]


_STAGES: dict[str, Callable[[_Work, Path], dict[str, Any]]] = {
    "prepare": _prepare,
    "advise": _advise,
    "augment": _augment,
    "train": _train,
    "evaluate": _evaluate,
    "release": _release,
}


def _do(work: _Work, stage: str) -> None:
    """Run one stage, unless what it would make is already there."""
    inputs = _inputs(work, stage)
    key = fingerprint(inputs)
    record, folder = stage_record(work.folder, stage), work.folder / stage
    if record and record.key == key and (broken := damaged(work.folder, record)) is None:
        work.report.say(f"{stage}: unchanged")
        return
    if record:
        reason = broken if record.key == key else f"{keys.difference(record.inputs, inputs)} changed"
        aside = folder.with_name(f"{stage}-{record.key[:8]}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        work.report.say(f"{stage}: {reason}; the earlier result is kept in {aside.name}")
    if other := find_stage(work.workspace, stage, key, not_in=work.folder):
        link_stage(other, work.folder, stage)
        work.report.say(f"{stage}: taken over from {other.name}")
        return
    work.report.say(f"{stage}: running")
    started, clock = datetime.now(UTC), time.monotonic()
    if stage != "train":  # training goes on from its checkpoints, the others start clean
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    summary = _STAGES[stage](work, folder)
    _finish(work, stage, key, inputs, summary, started, time.monotonic() - clock)


def _finish(
    work: _Work,
    stage: str,
    key: str,
    inputs: dict[str, Any],
    summary: dict[str, Any],
    started: datetime,
    seconds: float,
) -> None:
    import torch

    folder = work.folder / stage
    artifacts = tuple(a for a in artifacts_in(folder) if not a.path.startswith("checkpoints/"))
    RunRecord(
        stage=stage,  # type: ignore[arg-type]
        key=key,
        inputs=inputs,
        parents={s: r.key for s in STAGES[: STAGES.index(stage)] if (r := stage_record(work.folder, s))},
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        artifacts=artifacts,
        summary={**summary, "peak_bytes": peak_bytes()},
    ).write(folder / "record.json")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the record vouches for the result
    work.report.say(f"{stage}: done in {seconds:.0f} s")


def _inputs(work: _Work, stage: str) -> dict[str, Any]:
    return keys.stage_inputs(stage, work.recipe, work.origin, work.folder, work.base.fingerprint)


def _check_same_inputs(work: _Work, out: Path) -> None:
    """A half-finished training may only go on from what it started with. Raises RunError LU-U004."""
    start = out / "start.json"
    inputs = _inputs(work, "train")
    if not start.is_file() and not (out / "checkpoints").is_dir():
        kept.write(start, json.dumps(inputs, indent=1).encode())
        return
    if (before := kept.read(start)) is None:
        found = "does not say any more what the training was started with"
        raise RunError.of("LU-U004", str(start), found, f"delete {out} to train anew")
    changed = keys.difference(json.loads(before), inputs)
    if changed == "versions":
        work.report.say("train: package versions changed since it was started; what follows is not exact any more")
    elif changed:
        raise RunError.of(
            "LU-U004", str(out), f"was started with another {changed}", f"restore it, or delete {out} to train anew"
        )


def _environment(work: _Work) -> dict[str, str]:
    seconds, peaks = {}, []
    for stage in STAGES:
        if record := stage_record(work.folder, stage):
            seconds[f"seconds for {stage}"] = f"{record.seconds:.0f}"
            peaks.append(record.summary.get("peak_bytes") or 0)
    peak = max([*peaks, peak_bytes() or 0])
    return {
        "base_model": work.base.public_name,
        "base weights": f"{work.base.name}, sha256 {work.base.fingerprint}",
        **describe(),
        **seconds,
        "peak memory": f"{peak / 2**30:.2f} GiB",
    }


def check(
    target: str | Path, *, overrides: tuple[str, ...] = (), out: Path, report: Reporter | None = None
) -> tuple[Recipe, Base, AuditReport]:
    """Read recipe and tokenizer, audit the data into `out`, and see whether it can train and be judged.

    Loads no model to train. Raises as `run` does before training begins.
    """
    recipe, origin = open_target(target, overrides, report or Quiet())
    base = base_of(recipe, origin)
    check_packages(recipe)
    workspace = workspace_of(target)
    work = _Work(recipe, origin, folder_of(recipe, origin, workspace), workspace, base, report or Quiet())
    _prepare(work, out)
    _foresee(work, out, judged=True)
    return recipe, base, AuditReport.read(out / "audit.json")
