"""Advice: which technique to train with, from measurements of machine, data and distance, and from short trials.

1. **Machine.** The step of the data that holds the largest micro-batch is made in earnest, with LoRA, in a process of
   its own (`advise_trial.py`). It corrects what `luthier.cost` foretells of every candidate's memory and time.
2. **Data and distance** (`advise_facts.py`): how much there is to learn, and how far it is from what the base does.
3. **Rules** (`advise_rules.py`) put candidates out, each with its figure, and order the others.
4. **Trials** of the first three, by successive halving on a nested split of the training side (`trials.py`).

Without trials, equal facts give equal advice; the machine's speed and memory matter only where they put one out.
Everything that it rests on is in the report. It claims no gain but what trials show.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from luthier.batch import make_batch, split_by_tokens
from luthier.cost import StepCost, on_shapes, step_cost
from luthier.decoder import Decoder
from luthier.encode import Encoded, Encoder
from luthier.errors import DataError, ModelError, RunError
from luthier.machine import available_bytes
from luthier.models import Base, load_model, load_tokenizer, pick_device
from luthier.progress import Reporter
from luthier.records import AdviceReport, Advised
from luthier.settings import Auto, Lora, Precision, Recipe
from luthier.stats import MIN_CLUSTERS
from luthier.train import read_data
from luthier.train.data import StepData
from luthier.tune import trials
from luthier.tune.advise_facts import measure
from luthier.tune.advise_rules import CANDIDATES, RULES, Candidate, judge
from luthier.tune.advise_trial import Measured, gradient, trial_step

SAMPLED_STEPS = 24
"""Of the first epoch: by them the run's time is told, and the largest micro-batch found."""
TRIED, RUNGS = 3, 2
"""How many candidates short trials compare, on half and on all of the nested training rows."""
MEMORY_SHARE = 0.9
"""Of the memory that is available: predictions are good to about a tenth."""


def choose(recipe: Recipe, run: Path, base: Base, out: Path, workspace: Path, report: Reporter) -> AdviceReport:
    """Advice for a recipe whose `model.adapt` is `auto`; its data are prepared in the folder `run`.

    Raises RunError LU-U041 where not even the trial step fits, LU-U042 where no candidate is left; ModelError LU-M022
    for a model that runs row by row.
    """
    auto = recipe.model.adapt
    assert isinstance(auto, Auto)
    report.say("advice: a trial step, and the distance from what the base does")
    tokenizer = load_tokenizer(base)
    plan = _Plan.of(read_data(recipe, run / "prepare", tokenizer, share=True), recipe)
    machine = _Machine.of(base, recipe.train.precision, plan, out)
    encoder = Encoder(tokenizer, recipe.data.max_tokens)
    facts = measure(recipe, run / "prepare", Decoder(load_model(base)), encoder) | _limits(auto, recipe)
    found = [_advised(c, recipe, base, plan, machine, facts) for c in CANDIDATES]
    left = sorted((a for a in found if a.out is None), key=lambda a: -a.points)
    if not left:
        said = "; ".join(f"{a.name}: {a.out}" for a in found)
        advice = "shorten data.max_tokens, lower train.tokens_per_micro_batch, or allow more time"
        raise RunError.of("LU-U042", "model.adapt: auto", f"no technique is left: {said}", advice)
    notes = _notes(facts)
    tried, path = _try(left[:TRIED], recipe, run, workspace, report, notes) if auto.trials else (left[:1], "")
    names = {a.name for a in tried}
    return AdviceReport(
        base=base.name,
        facts={name: round(value, 6) for name, value in facts.items()},
        measured=machine.figures(),
        path=machine.tried.path,
        candidates=(*tried, *(a for a in left if a.name not in names), *(a for a in found if a.out)),
        chosen=tried[0].name,
        settings=tried[0].settings,
        why=tuple(_why(tried)),
        trials=path,
        notes=tuple(notes),
    )


def _limits(auto: Auto, recipe: Recipe) -> dict[str, float]:
    """What memory and time allow."""
    minutes = auto.max_train_minutes or recipe.train.max_minutes
    free = available_bytes(pick_device()) or math.inf
    return {"available_bytes": MEMORY_SHARE * free} | ({"max_train_minutes": minutes} if minutes else {})


# -- machine and plan ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a training of this data is made of."""

    hardest: list[list[Encoded]]
    """The micro-batches of the step that holds the largest, which is the last of them."""
    easiest: list[Encoded]
    n_steps: int
    first_steps: int
    """Steps of the first epoch."""
    tokens: float
    """Of a step, on average."""
    micro_batches: float
    valid_tokens: int
    n_checks: int

    @classmethod
    def of(cls, data: StepData, recipe: Recipe) -> _Plan:
        """From some steps of the first epoch, and the one with the longest example."""
        first = math.ceil(len(data.train) / data.examples_per_step)
        spread = {i * first // SAMPLED_STEPS for i in range(SAMPLED_STEPS)}
        longest = max(range(first), key=lambda step: max(len(e.ids) for e in data.examples(step)))
        steps = [_micro_batches(data.examples(step), recipe) for step in sorted({*spread, longest})]
        valid = sum(_size(group) for group in _micro_batches(data.validation, recipe))
        epochs = 1 + math.ceil(recipe.train.epochs * recipe.train.checks_per_epoch)
        return cls(
            hardest=max(steps, key=lambda groups: _size(groups[-1])),
            easiest=min((group for groups in steps for group in groups), key=_size),
            n_steps=data.n_steps,
            first_steps=first,
            tokens=fmean(sum(map(_size, groups)) for groups in steps),
            micro_batches=fmean(map(len, steps)),
            valid_tokens=valid,
            n_checks=epochs,
        )


def _micro_batches(examples: Sequence[Encoded], recipe: Recipe) -> list[list[Encoded]]:
    return sorted(split_by_tokens(examples, recipe.train.tokens_per_micro_batch), key=_size)


def _size(group: Sequence[Encoded]) -> int:
    """Tokens of the packed tree."""
    return make_batch(group).ids.numel()


@dataclass(frozen=True, slots=True)
class _Machine:
    """The trial step, and what it corrects."""

    tried: Measured
    process: int
    """Bytes besides what is foretold of the trial step."""
    slower: float
    """Its seconds over those foretold."""
    n_layers: int

    @classmethod
    def of(cls, base: Base, precision: Precision, plan: _Plan, scratch: Path) -> _Machine:
        """Raises RunError LU-U041."""
        tried = trial_step(base, Lora(), plan.hardest, scratch, precision)
        decoder = on_shapes(base, Lora(), precision)
        told = step_cost(decoder, [make_batch(group) for group in plan.hardest], gradient)
        slower = tried.seconds / tried.rates.seconds(told.work + told.update)
        return cls(tried, max(tried.peak_bytes - told.memory.peak, 0), slower, len(decoder.layers()[1]))

    def figures(self) -> dict[str, float]:
        rates = {f"{name} a second": value for name, value in asdict(self.tried.rates).items()}
        return {"seconds": self.tried.seconds, "peak_bytes": float(self.tried.peak_bytes), **rates}

    def minutes(self, hardest: StepCost, easiest: StepCost, plan: _Plan, n_hardest: int) -> float:
        """Of the whole training: steps, and validations.

        A micro-batch takes a + b N, told from the hardest step and the easiest micro-batch; layers below all that
        learns run once per example.
        """
        rates = self.tried.rates
        whole, small = (rates.seconds(c.work) for c in (hardest, easiest))
        spread = hardest.n_tokens - n_hardest * easiest.n_tokens
        b = (whole - n_hardest * small) / spread if spread else whole / hardest.n_tokens
        a = max(small - b * easiest.n_tokens, 0.0)
        step = a * plan.micro_batches + b * plan.tokens + rates.seconds(hardest.update)
        frozen, forward = (
            flops / hardest.n_tokens / rates.product_flops for flops in (hardest.frozen_flops, hardest.forward_flops)
        )
        steps = plan.n_steps * step - (plan.n_steps - plan.first_steps) * frozen * plan.tokens
        checks = plan.valid_tokens * (plan.n_checks * forward - (plan.n_checks - 1) * frozen)
        return self.slower * (steps + checks) / 60


# -- candidates ------------------------------------------------------------------------------------------


def _advised(
    candidate: Candidate, recipe: Recipe, base: Base, plan: _Plan, machine: _Machine, facts: dict[str, float]
) -> Advised:
    """A candidate with what is foretold of it and what the rules say; one that does not fit the model is out."""
    how = candidate.adapt(machine.n_layers)
    adapt = {"method": how.method, **how.model_dump(mode="json", exclude_defaults=True)}
    rate = float(f"{recipe.train.learning_rate * candidate.rate:.3g}")
    settings = f"model.adapt={json.dumps(adapt)}", f"train.learning_rate={rate!r}"
    try:
        decoder = on_shapes(base, how, recipe.train.precision)
    except ModelError as error:
        if error.problems[0].code == "LU-M022":  # the model's own, whatever the technique
            raise
        out = f"it does not fit the model: {error.problems[0].found}"
        return Advised(name=candidate.name, settings=settings, out=out)
    # Two micro-batches are enough for the peak: the largest, and before it one whose gradients are there.
    batches = [make_batch(group) for group in plan.hardest[:1] + plan.hardest[1:][-1:]]
    hardest = step_cost(decoder, batches, gradient)
    easiest = step_cost(decoder, [make_batch(plan.easiest)], gradient)
    memory = asdict(hardest.memory) | {"process": machine.process}
    minutes = machine.minutes(hardest, easiest, plan, len(batches))
    known = facts | {
        "peak_bytes": float(sum(memory.values())), "minutes": minutes, "capacity_bits": 2.0 * hardest.n_trainable
    }  # fmt: skip
    judged = judge(candidate.name, known)
    return Advised(
        name=candidate.name,
        settings=settings,
        n_trainable=hardest.n_trainable,
        memory=memory,
        minutes=round(minutes, 3),
        points=judged.points,
        rules=judged.met,
        out=_reason(judged.met, known) if judged.out else None,
    )


def _reason(met: Sequence[str], facts: dict[str, float]) -> str:
    """Why a candidate is out, with the figure."""
    rule = next(r for r in RULES if r.name in met and r.points is None)
    [when] = rule.when
    limit = facts[when.value] if isinstance(when.value, str) else when.value
    if when.fact == "peak_bytes":
        return f"{rule.why}: {facts[when.fact] / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    return f"{rule.why}: {facts[when.fact]:.3g} of {limit:.3g} {when.fact}"


def _why(tried: Sequence[Advised]) -> list[str]:
    """What speaks for the first, which is the choice: its trials, and the rules that are met."""
    best = tried[0]
    lines = [f"{rule.name}: {rule.why} ({rule.source})" for rule in RULES if rule.name in best.rules]
    if len(tried) > 1:
        ahead = "ahead of the others" if best.gain else "none of the others was ahead of it"
        lines.insert(0, f"short trials of {', '.join(sorted(a.name for a in tried))}: {ahead}")
    return lines or ["no rule speaks against it, and it stands first in the list of candidates"]


def _notes(facts: dict[str, float]) -> list[str]:
    notes = []
    if facts["n_train"] < MIN_CLUSTERS:
        notes.append(f"{facts['n_train']:.0f} training rows: too few to tell what is learned from luck; collect more")
    return notes


# -- short trials ----------------------------------------------------------------------------------------


def _without_suites(recipe: Recipe) -> tuple[str, ...]:
    """Settings that leave out suites, which take time, and the rules on them; none where all rules are on suites."""
    measured = {metric for suite in recipe.evaluate.suites for metric in suite.metrics}
    rules = [r.model_dump(mode="json", exclude_defaults=True) for r in recipe.release.rules if r.metric not in measured]
    return ("evaluate.suites=[]", f"release.rules={json.dumps(rules)}") if rules else ()


def _try(
    first: Sequence[Advised], recipe: Recipe, run: Path, workspace: Path, report: Reporter, notes: list[str]
) -> tuple[list[Advised], str]:
    """Those that were tried, the best first, and the file of the trials' report; notes say why there was no trial."""
    if len(first) < 2:
        notes.append("no trials: one candidate is left")
        return list(first), ""
    baseline, *others = first
    try:
        found, path = trials.trials(
            run,
            {a.name: a.settings for a in others},
            seeds=1,
            new_seeds=0,
            rungs=trials.halving(RUNGS),
            overrides=(*baseline.settings, *_without_suites(recipe)),
            workspace=workspace,
            report=report,
        )
    except DataError as error:
        notes.append(f"no trials: {error.problems[0].found}")
        return list(first[:1]), ""
    gains = {v.name: v.comparison for v in found.variants}
    tried = [a.model_copy(update={"gain": gains.get(a.name)}) for a in first]
    winner = baseline.name if found.winner == trials.BASELINE else found.winner
    notes.append("short trials, one seed: which was best of them may be luck; luthier trials with more seeds tells")
    return sorted(tried, key=lambda a: a.name != winner), os.path.relpath(path, workspace)
