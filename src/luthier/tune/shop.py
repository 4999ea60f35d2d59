"""Runs of variants on the nested rows: each an ordinary run, asked with the recipe's questions, and remembered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier import lifecycle
from luthier.errors import EvaluationError, Stopped, did_you_mean
from luthier.evaluate.metrics import default_metrics
from luthier.evaluate.metrics.build import build
from luthier.metric import Metric, Sample
from luthier.progress import Reporter
from luthier.records import AuditReport, TrialRun
from luthier.settings import Use, metric_name
from luthier.store import stage_record
from luthier.tune.effect import Effect, compare_seeds, value_of
from luthier.tune.nested import Nest, Part, answers_of, question


@dataclass(frozen=True, slots=True)
class Shop:
    """What all runs share, and, in `runs`, what has come of them."""

    nest: Nest
    variants: dict[str, tuple[str, ...]]
    use: Use
    seeds: tuple[int, ...]
    rungs: tuple[float, ...]
    again: tuple[int, ...]
    """The seeds with which the winner is judged; none: those that it was chosen by."""
    workspace: Path
    report: Reporter
    runs: list[TrialRun] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)
    """Variants whose training stopped, and why."""

    def ask(self, variant: str, seeds: Sequence[int], rung: float, part: Part) -> list[list[Sample]]:
        """What a variant answers after training with each seed, in the order of the rows' ids."""
        return [self._ask(variant, seed, rung, part) for seed in seeds]

    def ask_variant(self, variant: str, seeds: Sequence[int], rung: float, part: Part) -> list[list[Sample]] | None:
        """The same; None where its training stops, and it is out."""
        try:
            return self.ask(variant, seeds, rung, part)
        except Stopped as error:
            self.out[variant] = stopped(error)
            self.report.say(f"{variant} is out: {self.out[variant]}")
            return None

    @property
    def confidence(self) -> float:
        return self.nest.recipe.evaluate.confidence

    def metric(self, run: str) -> Metric:
        """What decides, for the labels that were in the data of the run."""
        audit = AuditReport.read(self.workspace / run / "prepare" / "audit.json")
        return build(self.use, audit.labels, self.nest.origin)

    def compare(self, ours: list[list[Sample]], theirs: list[list[Sample]], confidence: float) -> Effect:
        return compare_seeds(self.metric(self.runs[-1].run), ours, theirs, confidence=confidence)

    def _ask(self, variant: str, seed: int, rung: float, part: Part) -> list[Sample]:
        self.report.say(f"trial {len(self.runs) + 1}: {variant}, seed {seed}, {rung:.0%} of the rows, to {part}")
        recipe = self.nest.recipe
        name = f"{recipe.name[:24]}.{re.sub('[^A-Za-z0-9-]+', '-', variant)[:24]}.{seed}"
        run = lifecycle.run(
            question(self.nest, metric_name(self.use), part, rung),
            overrides=(*self.variants.get(variant, ()), f"seed={seed}", f'name="{name}"'),
            workspace=self.workspace,
            until="evaluate",
            report=self.report,
        ).folder
        samples = answers_of(run, recipe.evaluate.cluster_by)
        seconds = [r.seconds for stage in ("train", "evaluate") if (r := stage_record(run, stage))]
        self.runs.append(
            TrialRun(
                variant=variant,
                seed=seed,
                rung=rung,
                part=part,
                run=run.name,
                value=value_of(self.metric(run.name), samples),
                seconds=round(sum(seconds), 3),
            )
        )
        if len(self.runs) == 1:
            planned = rounds(len(self.variants), len(self.seeds), self.rungs)
            whole = sum(n * (seconds[0] * fraction / rung + seconds[1]) for fraction, n in planned)
            self.report.say(f"the first run took {sum(seconds):.0f} s; all rungs: about {whole / 60:.1f} minutes")
        return samples


def rounds(n_variants: int, n_seeds: int, rungs: Sequence[float]) -> list[tuple[float, int]]:
    """Fraction and number of runs of each rung: the baseline's and those of the variants that are left."""
    return [(f, n_seeds * (1 + math.ceil(n_variants / 2**i))) for i, f in enumerate(rungs)]


def stopped(error: Stopped) -> str:
    return f"its training stopped: {error.problems[0].found}"


def measured(nest: Nest, name: str | None) -> Use:
    """What decides. Raises EvaluationError LU-E008 where the recipe does not measure it on its test rows."""
    recipe = nest.recipe
    uses = {metric_name(u): u for u in recipe.evaluate.metrics or default_metrics(nest.audit.task)}
    name = name or next((r.metric for r in recipe.release.rules if r.metric in uses), next(iter(uses)))
    if name not in uses:
        raise EvaluationError.of("LU-E008", "metric", f"no metric measures '{name}'", did_you_mean(name, uses))
    return uses[name]
