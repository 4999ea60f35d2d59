"""Trials: variants of a recipe, trained with the same seeds and asked the same nested rows.

Each (variant, seed, rung) is an ordinary run of `lifecycle.run`: cached by key, gone on with after a kill, and listed
with the others. The recipe's own test and validation sides take no part (`nested.py`).

**Successive halving** (Jamieson & Talwalkar 2016): after each rung the worse half of the variants stops, by the low end
of the difference to the baseline; the baseline always goes on. That is the low end at 68 %, about one standard error:
at 95 % and with few seeds, what surely changes nothing would go before what probably helps. A rung is a fraction of
the *training rows*: such a run is a whole one, with its own warm-up, schedule and best weights, and does not depend on
the clock. Lost: a fraction of the epochs, which are few and whole; and to stop a schedule half-way and go on later,
whose weights at the stop are those of a high learning rate. So each rung trains anew. Fewer rows favour variants that
learn much from little: a rung decides who goes on, and claims nothing.

**Claims** are made of the last rung only, after Holm over all variants: the stopped ones count, because they were
looked at too. The winner's own figure comes from rows, and from trainings, that took no part in the choice, because
the best of several is partly the luckiest. `effect.py` has the statistics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from luthier import lifecycle
from luthier.errors import Problem, RunError
from luthier.progress import Quiet, Reporter
from luthier.records import Comparison, TrialsReport, VariantResult
from luthier.settings import fingerprint, metric_name
from luthier.stats import holm
from luthier.target import open_target, workspace_of
from luthier.tune.effect import Effect
from luthier.tune.nested import make_nest
from luthier.tune.shop import Shop, measured, rounds
from luthier.tune.variants import BASELINE, Variants, check_rungs, check_seeds, check_variants

HELD_OUT = 0.3
RANKED_AT = 0.68
"""Confidence of the interval whose low end decides who goes on."""


def trials(
    target: str | Path,
    variants: Variants,
    *,
    seeds: int | Sequence[int],
    overrides: tuple[str, ...] = (),
    rungs: Sequence[float] | None = None,
    new_seeds: int | None = None,
    judged: bool = True,
    metric: str | None = None,
    held_out: float = HELD_OUT,
    workspace: Path | None = None,
    report: Reporter | None = None,
) -> tuple[TrialsReport, Path]:
    """Compare variants with the recipe itself; the report, and the file that it is kept in.

    Args:
        target: A recipe, data or a run's folder, as for `lifecycle.run`; `overrides` apply to the baseline too.
        variants: Name -> settings, on top of the recipe. One that changes nothing is left out, and said.
        seeds: Of all variants alike, so that what one does to all of them cancels; or how many, from the recipe's on.
        rungs: Rising fractions of the training rows, the last 1; None: every variant runs in full.
        new_seeds: With how many, that were not used, winner and baseline are trained anew to be judged; None: as many
            as `seeds`; 0: the trainings that were chosen by are asked, and their luck stays in the figure.
        judged: False: the winner is chosen, and not judged on the rows to report by.
        metric: What decides; None: the recipe's first rule's on its own test rows.
        held_out: Fraction of the training side that the trials hold out, half to choose and half to report by.

    A variant whose training stops is out, and the others go on. Raises RunError LU-U030 to LU-U033 and with what is
    wrong in a variant's settings, DataError LU-D106, LU-D130, EvaluationError LU-E008, and what a run raises, Stopped
    for the baseline alone; whatever was finished stays.
    """
    say = report or Quiet()
    rungs = check_rungs(rungs)
    workspace = workspace or workspace_of(target)
    recipe, origin = open_target(target, overrides, say)
    seeds = check_seeds(seeds, recipe.seed)
    kept, notes = check_variants(recipe, variants, origin)
    outer = lifecycle.run(target, overrides=overrides, workspace=workspace, until="prepare", report=say)
    nest = make_nest(recipe, origin, outer.folder, workspace, held_out)
    n_again = (len(seeds) if new_seeds is None else new_seeds) if judged else 0
    again = tuple(max(seeds) + 1 + i for i in range(n_again))
    shop = Shop(nest, kept, measured(nest, metric), seeds, rungs, again, workspace, say)
    for line in plan(len(kept), len(seeds), rungs, n_again if judged else None):
        say.say(line)
    reached = _race(shop)
    winner, effect = _judge(shop, reached) if judged else (_best(reached), None)
    found = _report(shop, reached, winner, effect, notes)
    asked = fingerprint([recipe.model_dump(mode="json"), kept, seeds, rungs, again, judged, found.metric, held_out])
    path = nest.folder / f"trials-{asked[:6]}.json"
    found.write(path)
    return found, path


def plan(n_variants: int, n_seeds: int, rungs: Sequence[float], n_again: int | None) -> list[str]:
    """What will be run, in words, before anything is. `n_again`: seeds that judge the winner; None: none is judged."""
    planned = rounds(n_variants, n_seeds, rungs)
    shown = " + ".join(f"{n} on {fraction:.0%} of the rows" for fraction, n in planned)
    full = sum(fraction * n for fraction, n in planned)
    trained = f"up to {2 * n_again} more, with new seeds," if n_again else "the winner and the baseline are asked again"
    judging = "" if n_again is None else f"; {trained} to judge the winner"
    return [
        f"{n_variants} variants and the baseline, {n_seeds} seeds each: {shown}",
        f"{sum(n for _, n in planned)} runs, of the cost of {full:.3g} full ones{judging}",
    ]


def halving(n_rungs: int) -> tuple[float, ...]:
    """Fractions that double up to 1: 3 -> 1/4, 1/2, 1. Raises RunError LU-U033."""
    if n_rungs < 1:
        raise RunError.of("LU-U033", "rungs", f"{n_rungs} rungs", "1 runs every variant in full; 3 is 1/4, 1/2, 1")
    return tuple(0.5**i for i in reversed(range(n_rungs)))


# -- the runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reached:
    """How far a variant came, and how it stood there."""

    rung: float
    effect: Effect
    low: float
    """By which it is ranked."""


def _race(shop: Shop) -> dict[str, _Reached]:
    """Variant -> where it ended, the best of the last rung first; without those that are out."""
    reached: dict[str, _Reached] = {}
    running = list(shop.variants)
    for rung in shop.rungs:
        baseline = shop.ask(BASELINE, shop.seeds, rung, "choose")
        for name in running:
            if answers := shop.ask_variant(name, shop.seeds, rung, "choose"):
                low = shop.compare(answers, baseline, RANKED_AT).comparison.low
                reached[name] = _Reached(rung, shop.compare(answers, baseline, shop.confidence), low)
        running = sorted((name for name in running if name not in shop.out), key=lambda name: -reached[name].low)
        n = math.ceil(len(running) / 2) if rung < 1 else len(running)
        if n < len(running):
            shop.report.say(f"rung {rung:.0%}: {', '.join(running[:n])} go on, {', '.join(running[n:])} stop")
        running = running[:n]
    return {name: reached[name] for name in [*running, *(n for n in reached if n not in {*running, *shop.out})]}


def _best(reached: dict[str, _Reached]) -> str:
    """The variant that is ahead of the baseline and of the others, or the baseline."""
    best = next(iter(reached), BASELINE)
    ahead = best != BASELINE and reached[best].rung == 1.0 and reached[best].effect.comparison.delta > 0
    return best if ahead else BASELINE


def _judge(shop: Shop, reached: dict[str, _Reached]) -> tuple[str, Effect | None]:
    """The winner, and how it stands on rows that took no part in choosing it; the baseline needs no judgement."""
    seeds = shop.again or shop.seeds
    while (winner := _best(reached)) != BASELINE:
        baseline = shop.ask(BASELINE, seeds, 1.0, "report")
        if answers := shop.ask_variant(winner, seeds, 1.0, "report"):
            return winner, shop.compare(answers, baseline, shop.confidence)
        del reached[winner]
    return BASELINE, None


# -- what is said of them -----------------------------------------------------------------------------------------


def _report(
    shop: Shop, reached: dict[str, _Reached], winner: str, judged: Effect | None, notes: list[str]
) -> TrialsReport:
    return TrialsReport(
        name=shop.nest.recipe.name,
        metric=metric_name(shop.use),
        higher_is_better=shop.metric(shop.runs[-1].run).higher_is_better,
        confidence=shop.confidence,
        seeds=shop.seeds,
        rungs=shop.rungs,
        n={part: len(rows) for part, rows in shop.nest.parts.items()},
        variants=_results(shop, reached),
        winner=winner,
        report_seeds=shop.again or shop.seeds if judged else (),
        report=judged.comparison if judged else None,
        report_luck=judged.luck if judged else None,
        report_word=_word(judged.comparison, judged.comparison.p, shop.confidence) if judged else None,
        runs=tuple(shop.runs),
        notes=(*notes, *_notes(shop, winner, judged)),
    )


def _results(shop: Shop, reached: dict[str, _Reached]) -> tuple[VariantResult, ...]:
    """The baseline, then each variant with its p value among those of all, also of those that stopped or are out."""
    finished = {name: at.rung == 1.0 for name, at in reached.items()}
    p_values = {name: reached[name].effect.comparison.p if finished.get(name) else 1.0 for name in shop.variants}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    value = fmean(r.value for r in shop.runs if (r.variant, r.rung, r.part) == (BASELINE, 1.0, "choose"))
    baseline = VariantResult(name=BASELINE, settings=(), rung=1.0, value=value, comparison=None, word="baseline")
    return baseline, *(
        VariantResult(
            name=name,
            settings=settings,
            rung=reached[name].rung,
            value=(effect := reached[name].effect).comparison.value,
            comparison=effect.comparison,
            p_adjusted=adjusted[name] if finished[name] else None,
            luck=effect.luck,
            seeds_needed=effect.seeds_needed,
            word=_word(effect.comparison, adjusted[name], shop.confidence) if finished[name] else "stopped",
        )
        for name, settings in shop.variants.items()
        if name in reached
    )


def _word(comparison: Comparison, p: float, confidence: float) -> Literal["better", "worse", "not shown"]:
    if comparison.trouble or p >= 1 - confidence:
        return "not shown"
    return "better" if comparison.delta > 0 else "worse"


def _notes(shop: Shop, winner: str, judged: Effect | None) -> list[str]:
    notes = [f"{name} is out: {why}" for name, why in shop.out.items()]
    if len(shop.seeds) == 1:
        notes.append("one seed: the intervals do not cover the luck of training; two or more seeds would tell")
    if winner == BASELINE:
        notes.append("no variant is ahead of the recipe itself: keep it; the rows to report by were not used")
    elif judged is None:
        notes.append("the winner was not judged on the rows to report by")
    elif not shop.again:
        notes.append("the winner is judged by the trainings that it was chosen by: their luck is still in its figure")
    elif len(shop.again) == 1:
        notes.append("one seed judged the winner: that interval does not cover the luck of training")
    if shop.nest.recipe.train.max_minutes:
        notes.append("train.max_minutes bounds each training: what was found depends on this machine's speed")
    return notes


# -- what may be asked --------------------------------------------------------------------------------------------


def variants_of(vary: Sequence[str], named: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """From the command line: the grid of `model.adapt.rank=4,16` and what `name:key=value,key=value` says.

    Raises RunError LU-U032 for what is not of that form, and for a name that is used twice.
    """
    problems: list[Problem] = []
    grid: list[tuple[str, ...]] = [()]
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not all(_pieces(values)):
            problems.append(Problem("LU-U032", f"--vary {text}", "is not of the form setting=value,value"))
        grid = [(*cell, f"{key}={value}") for cell in grid for value in _pieces(values)]
    # `model.adapt.rank=8` is called `rank=8`; a value may hold dots too.
    found = [(" ".join(re.sub(r"^[^=]*\.", "", setting) for setting in cell), cell) for cell in grid if cell]
    for text in named:
        name, colon, settings = text.partition(":")
        if not colon or not name or not all("=" in s for s in _pieces(settings)):
            problems.append(Problem("LU-U032", f"--variant {text}", "is not of the form name:setting=value,..."))
        found.append((name, tuple(_pieces(settings))))
    names = [name for name, _ in found]
    problems += [
        Problem("LU-U032", name, "is the name of two variants", "give each its own")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise RunError(*problems)
    return dict(found)


def _pieces(text: str) -> list[str]:
    """Cut at the commas that stand in no bracket."""
    return re.split(r",(?![^\[{]*[\]}])", text)
