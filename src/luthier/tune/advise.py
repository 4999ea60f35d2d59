"""Advice: which technique to train with, from measurements of machine, data and distance, and from short trials.

1. **Machine.** The step of the data that holds the largest micro-batch is made in earnest, with the first candidate
   that fits the model, in a process of its own (`advise_trial.py`). It corrects what `luthier.cost` foretells of every
   candidate's memory and time.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.cost import StepCost, on_shapes, step_cost
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import DataError, ModelError, RunError, Stopped
from luthier.machine import available_bytes
from luthier.models import Base, load_model, load_tokenizer, pick_device
from luthier.progress import Reporter
from luthier.rates import LORA, multiple
from luthier.records import AdviceReport, Advised, TrialsReport
from luthier.settings import Adapt, Auto, Full, Recipe, Train
from luthier.stats import MIN_CLUSTERS
from luthier.train import make_plan, read_data
from luthier.train.data import StepData
from luthier.train.memory import compute_again
from luthier.train.optim import MOMENT_BYTES
from luthier.tune import trials
from luthier.tune.advise_facts import measure
from luthier.tune.advise_rules import CANDIDATES, RULES, judge
from luthier.tune.advise_trial import Measured, gradient, trial_step
from luthier.tune.shop import stopped
from luthier.tune.variants import BASELINE, augmented_by

SAMPLED_STEPS = 24
"""Of the first epoch: by them the run's time is told, and the largest micro-batch found."""
TRIED, RUNGS = 3, 2
"""How many candidates short trials compare, on half and on all of the nested training rows."""
TOO_FEW_ROWS = ("LU-D106", "LU-D130")
"""What trials say of data that hold too little to choose by."""
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
    machine, facts, found = _foretold(recipe, auto, run / "prepare", base, out)
    left = sorted((a for a in found if a.out is None), key=lambda a: -a.points)
    if not left:
        said = "; ".join(f"{a.name}: {a.out}" for a in found)
        advice = "shorten data.max_tokens, lower train.tokens_per_micro_batch, or allow more time"
        raise RunError.of("LU-U042", "model.adapt: auto", f"no technique is left: {said}", advice)
    notes = _notes(facts)
    tried, path = _try(left[:TRIED], recipe, run, workspace, report, notes) if auto.trials else (left[:1], "")
    names = {a.name for a in tried}
    ranked = (*tried, *(a for a in left if a.name not in names), *(a for a in found if a.out))
    return AdviceReport(
        base=base.name,
        facts={name: round(value, 6) for name, value in facts.items()},
        measured=machine.figures(),
        path=machine.tried.path,
        candidates=tuple(sorted(ranked, key=lambda a: a.out is not None)),
        chosen=tried[0].name,
        settings=tried[0].settings,
        why=tuple(_why(tried)),
        trials=path,
        notes=tuple(notes),
    )


def _foretold(
    recipe: Recipe, auto: Auto, prepared: Path, base: Base, out: Path
) -> tuple[_Machine, dict[str, float], list[Advised]]:
    """What the trial step and the data say, and what follows for each candidate."""
    tokenizer, limits, shaped = load_tokenizer(base), _limits(auto, recipe), _on_shapes(base, recipe)
    data = read_data(recipe, prepared, base, tokenizer, share=True)
    plan = _Plan.of(data, recipe)
    machine = _Machine.of(base, next(s.how for s in shaped if s.decoder), recipe, plan, limits, out)
    facts = measure(recipe, prepared, data, Decoder(load_model(base)), tokenizer) | limits
    return machine, facts, [_advised(s, recipe, plan, machine, facts) for s in shaped]


def _limits(auto: Auto, recipe: Recipe) -> dict[str, float]:
    """What memory and time allow, as far as it is known."""
    minutes, free = auto.max_train_minutes or recipe.train.max_minutes, available_bytes(pick_device())
    room = {} if free is None else {"available_bytes": MEMORY_SHARE * free}
    return room | ({"max_train_minutes": minutes} if minutes else {})


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
        first = data.steps_per_epoch
        spread = {i * first // SAMPLED_STEPS for i in range(SAMPLED_STEPS)}
        longest = max(range(first), key=lambda step: data.lengths[data.numbers(step)].max())
        steps = [_micro_batches(data.examples(step), recipe) for step in sorted({*spread, longest})]
        valid = sum(_size(group) for group in _micro_batches(data.validation, recipe))
        return cls(
            hardest=max(steps, key=lambda groups: _size(groups[-1])),
            easiest=min((group for groups in steps for group in groups), key=_size),
            n_steps=data.n_steps,
            first_steps=first,
            tokens=fmean(sum(map(_size, groups)) for groups in steps),
            micro_batches=fmean(map(len, steps)),
            valid_tokens=valid,
            n_checks=1 + math.ceil(data.n_steps / make_plan(recipe, data).validate_every),
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

    @classmethod
    def of(
        cls, base: Base, how: Adapt, recipe: Recipe, plan: _Plan, limits: Mapping[str, float], scratch: Path
    ) -> _Machine:
        """Raises RunError LU-U041; ModelError LU-M022 where only numbers show that the model runs row by row."""
        decoder = on_shapes(base, how, recipe.train.precision)
        again = Train(recompute_layers=recipe.train.recompute_layers)
        batches = [make_batch(group) for group in plan.hardest]
        told = _cost(decoder, batches, again, limits.get("available_bytes", math.inf))
        tried = trial_step(base, how, plan.hardest, scratch, recipe.train.precision, decoder.recompute)
        if not tried.shares:
            raise ModelError.of("LU-M022", base.name, f"its steps cannot be foretold: it runs {tried.path}")
        slower = tried.seconds / tried.rates.seconds(told.work + told.update)
        return cls(tried, max(tried.peak_bytes - told.memory.peak, 0), slower)

    def figures(self) -> dict[str, float]:
        rates = {f"{name} a second": value for name, value in asdict(self.tried.rates).items()}
        return {"seconds": self.tried.seconds, "peak_bytes": float(self.tried.peak_bytes), **rates}

    def minutes(self, hardest: StepCost, easiest: StepCost, plan: _Plan, n_hardest: int) -> float:
        """Of the whole training: steps, and validations.

        A micro-batch takes a + b N, told from the hardest step and the easiest micro-batch, where neither is below 0
        (of about the same size, they differ by how much is learned); layers below all that learns run once per example.
        """
        rates = self.tried.rates
        whole, small = (rates.seconds(c.work) for c in (hardest, easiest))
        spread = hardest.n_tokens - n_hardest * easiest.n_tokens
        most = whole / hardest.n_tokens
        b = min(max((whole - n_hardest * small) / spread, 0.0), most) if spread else most
        a = max(small - b * easiest.n_tokens, 0.0)
        step = a * plan.micro_batches + b * plan.tokens + rates.seconds(hardest.update)
        frozen, forward = (
            flops / hardest.n_tokens / rates.product_flops for flops in (hardest.frozen_flops, hardest.forward_flops)
        )
        steps = plan.n_steps * step - (plan.n_steps - plan.first_steps) * frozen * plan.tokens
        checks = plan.valid_tokens * (plan.n_checks * forward - (plan.n_checks - 1) * frozen)
        return self.slower * (steps + checks) / 60


# -- candidates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shaped:
    """A candidate for this model and recipe, without numbers."""

    name: str
    how: Adapt
    settings: tuple[str, ...]
    decoder: Decoder | None
    """None: it does not fit the model."""
    trouble: str = ""


def _on_shapes(base: Base, recipe: Recipe) -> list[_Shaped]:
    """All candidates; at least the one that learns all weights fits. Raises ModelError LU-M022."""
    precision = recipe.train.precision
    n_layers = len(on_shapes(base, Full(method="full"), precision).layers()[1])
    found = []
    for candidate in CANDIDATES:
        how, trouble, decoder = candidate.adapt(n_layers), "", None
        try:
            decoder = on_shapes(base, how, precision)
        except ModelError as error:
            trouble = error.problems[0].found
        adapt = {"method": how.method, **how.model_dump(mode="json", exclude_defaults=True)}
        settings = [f"model.adapt={json.dumps(adapt)}"]
        if recipe.train.learning_rate is not None:
            settings.append(f"train.learning_rate={recipe.train.learning_rate * multiple(how) / LORA:.3g}")
        found.append(_Shaped(candidate.name, how, tuple(settings), decoder, trouble))
    return found


def _cost(decoder: Decoder, batches: Sequence[Batch], train: Train, room: float) -> StepCost:
    """As the recipe trains; with all layers computed again where `auto` may do so and the peak is above `room`."""
    if train.update_in_backward:
        for parameter in decoder.layers()[1].parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop)
    moments = MOMENT_BYTES[train.optimizer]
    compute_again(decoder, 0 if train.recompute_layers == "auto" else train.recompute_layers)
    cost = step_cost(decoder, batches, gradient, moments)
    if train.recompute_layers != "auto" or cost.memory.peak <= room:
        return cost
    compute_again(decoder, len(decoder.layers()[1]))
    return step_cost(decoder, batches, gradient, moments)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _advised(shaped: _Shaped, recipe: Recipe, plan: _Plan, machine: _Machine, facts: Mapping[str, float]) -> Advised:
    """A candidate with what is foretold of it and what the rules say."""
    name, settings, decoder = shaped.name, shaped.settings, shaped.decoder
    if decoder is None:
        return Advised(name=name, settings=settings, out=f"it does not fit the model: {shaped.trouble}")
    # Two micro-batches are enough for the peak: the largest, and before it one whose gradients are there.
    batches = [make_batch(group) for group in plan.hardest[:1] + plan.hardest[1:][-1:]]
    room = facts.get("available_bytes", math.inf) - machine.process
    hardest = _cost(decoder, batches, recipe.train, room)
    easiest = step_cost(decoder, [make_batch(plan.easiest)], gradient)
    memory = asdict(hardest.memory) | {"process": machine.process}
    minutes = machine.minutes(hardest, easiest, plan, len(batches))
    known = {
        **facts,
        "peak_bytes": float(sum(memory.values())),
        "minutes": minutes,
        "capacity_bits": 2.0 * hardest.n_trainable,
        "computed_again": float(recipe.train.recompute_layers == "auto" and decoder.recompute > 0),
    }
    judged = judge(name, known)
    return Advised(
        name=name,
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
        again = ", with every layer computed again" if facts["computed_again"] else ""
        return f"{rule.why}: {facts[when.fact] / 2**30:.1f} of {limit / 2**30:.1f} GiB{again}"
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


def _shortened(recipe: Recipe) -> tuple[str, ...]:
    """Settings that leave out suites, judges and real requests, which take time or money and choose nothing.

    Rules on suites and judges go with them; where there are no others, both stay.
    """
    asked = recipe.evaluate
    measured = {m for suite in asked.suites for m in suite.metrics} | {m for j in asked.judges for m in j.measures()}
    rules = [r.model_dump(mode="json", exclude_defaults=True) for r in recipe.release.rules if r.metric not in measured]
    left_out = "evaluate.suites=[]", "evaluate.judges=[]", f"release.rules={json.dumps(rules)}"
    return "evaluate.requests=null", *(left_out if rules else ())


def _try(
    first: Sequence[Advised], recipe: Recipe, run: Path, workspace: Path, report: Reporter, notes: list[str]
) -> tuple[list[Advised], str]:
    """Those that were tried, the best first, and the file of the trials' report; notes say why there was no trial.

    One whose training stops is out, and the others go on.
    """
    if len(first) < 2:
        notes.append("no trials: one candidate is left")
        return list(first), ""
    baseline, *others = first
    surely = [use for use in recipe.data.augment if use.keep == "always"]
    try:
        found, path = trials.trials(
            run,
            {a.name: a.settings for a in others},
            seeds=1,
            rungs=trials.halving(RUNGS),
            overrides=(*baseline.settings, *_shortened(recipe), augmented_by(surely)),
            judged=False,
            workspace=workspace,
            report=report,
        )
    except Stopped as error:  # the baseline's
        rest, where = _try(others, recipe, run, workspace, report, notes)
        return [*rest, baseline.model_copy(update={"out": stopped(error)})], where
    except DataError as error:
        if error.problems[0].code not in TOO_FEW_ROWS:
            raise
        notes.append(f"no trials: {error.problems[0].found}")
        return list(first[:1]), ""
    notes.append("short trials, one seed: which was best of them may be luck; luthier trials with more seeds tells")
    return _ranked(first, found), os.path.relpath(path, workspace)


def _ranked(first: Sequence[Advised], found: TrialsReport) -> list[Advised]:
    """The trials' baseline and variants with what they gained, the winner first; what stopped is out."""
    gains = {v.name: v.comparison for v in found.variants}
    out = {name: why for name, is_out, why in (note.partition(" is out: ") for note in found.notes) if is_out}
    tried = [a.model_copy(update={"gain": gains.get(a.name), "out": out.get(a.name)}) for a in first]
    winner = first[0].name if found.winner == BASELINE else found.winner
    return sorted(tried, key=lambda a: a.name != winner)
