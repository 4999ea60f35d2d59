"""Evidence: all the records of one run, and what is read out of them for the report and the model card.

It states nothing about how a page looks. Claims, suites, worst regressions, drawn samples and the list
of what was not measured are here, so that page and card draw the same conclusions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.page.words import count
from luthier.records import (
    AuditReport,
    Comparison,
    DiscoveredSlice,
    EvalReport,
    Judged,
    KeptAugmentation,
    Outcome,
    SuiteReport,
    TrainReport,
    Verdict,
)
from luthier.release.wording import meaning, p_value
from luthier.settings import (
    HUMAN_PREFERENCE,
    AdaLora,
    Adapt,
    Bottleneck,
    Lora,
    Partial,
    Peft,
    Prefix,
    Prompt,
    PTuning,
    Recipe,
)
from luthier.stats import holm

GENERAL = "general_perplexity"
TITLES = {"retention": "Forgetting", "bias": "Bias", "robustness": "Robustness"}
"""Kind of suite -> what page and card call it, in their order."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One run, finished up to its verdict."""

    name: str
    folder: Path
    recipe: Recipe
    audit: AuditReport
    training: TrainReport
    evaluation: EvalReport
    verdict: Verdict
    environment: Mapping[str, str]
    """`base_model`, by which others find it, and what is shown as given: versions, device, seconds per stage."""
    artifacts: Mapping[str, str]
    """File, relative to the run's folder -> SHA-256."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """See `provenance.stated_licences`."""
    base_licence: str = ""
    """See `models.Base`."""
    kept: KeptAugmentation | None = None
    """What was decided of augmentations with `keep: if_it_helps`; None where there were none."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether the report may say of a metric that it improved."""

    metric: str
    improved: bool
    worsened: bool
    p: float
    p_adjusted: float
    """After Holm, over all metrics of the report."""
    why: str


def claims(evaluation: EvalReport) -> list[Claim]:
    """Which metrics improved, with p values adjusted for having looked at all of them (Holm, 1979)."""
    comparisons = evaluation.metrics.values()
    adjusted = holm([c.p for c in comparisons])
    return [_claim(c, p, 1 - evaluation.confidence) for c, p in zip(comparisons, adjusted, strict=True)]


def _claim(c: Comparison, adjusted: float, alpha: float) -> Claim:
    shown = f"p {p_value(adjusted)} after adjustment"
    shows = c.trouble is None and adjusted < alpha
    improved, worsened = shows and c.delta > 0, shows and c.delta < 0
    if c.trouble:
        why = f"the interval should not be relied on: {c.trouble}"
    elif adjusted >= alpha:
        why = f"no difference shown ({shown})"
    else:
        why = shown if improved else f"it became worse ({shown})"
    return Claim(c.metric, improved, worsened, c.p, adjusted, why)


def suites(evaluation: EvalReport) -> list[SuiteReport]:
    """The suites besides the test set; the general probe, which is always one metric, is the first of them."""
    if GENERAL not in evaluation.metrics:
        return list(evaluation.suites)
    n, about = evaluation.metrics[GENERAL].n, meaning(GENERAL)
    probe = SuiteReport(name="general probe", kind="retention", about=about, n=n, metrics=(GENERAL,))
    return [probe, *evaluation.suites]


def main_metrics(evaluation: EvalReport) -> list[Comparison]:
    """What was measured on the test set: the metrics of no suite."""
    elsewhere = {metric for suite in suites(evaluation) for metric in suite.metrics}
    return [c for name, c in evaluation.metrics.items() if name not in elsewhere]


def of_kind(evaluation: EvalReport, kind: str) -> list[Comparison]:
    """The metrics of all suites of one kind."""
    return [evaluation.metrics[m] for suite in suites(evaluation) if suite.kind == kind for m in suite.metrics]


def against_elsewhere(found: DiscoveredSlice) -> Comparison:
    """The tuned model in a slice against itself outside it, so that it is told like any change."""
    gap = {"delta": found.gap, "low": found.gap_low, "high": found.gap_high, "baseline": found.rest}
    return found.comparison.model_copy(update=gap)


def outcome_of(verdict: Verdict, metric: str, place: str = "") -> Outcome | None:
    """What the rules that stand on a metric in a place came to, the worst first; None where none stands."""
    found = {rule.outcome for rule in verdict.rules if (rule.comparison.metric, rule.place) == (metric, place)}
    ordered: tuple[Outcome, ...] = ("FAIL", "UNDERPOWERED", "PASS")
    return next((outcome for outcome in ordered if outcome in found), None)


def method(recipe: Recipe) -> str:
    """How the weights were trained, in words."""
    bits, n = recipe.model.quantize, len(recipe.model.new_tokens)
    tokens = f" with {count(n, 'new token')}" if n else ""
    beside = f", beside a base held in {bits.removesuffix('bit')} bits" if bits else ""
    return _technique(recipe.model.adapt) + tokens + beside


def _technique(adapt: Adapt) -> str:
    if isinstance(adapt, Lora):
        return f"{'DoRA' if adapt.dora else 'LoRA'} of rank {adapt.rank}"
    if isinstance(adapt, AdaLora):
        return f"AdaLoRA of mean rank {adapt.target_rank}"
    if isinstance(adapt, Peft):
        return f"{adapt.type} by peft"
    if isinstance(adapt, Bottleneck):
        return f"bottleneck adapters, {adapt.placement}"
    if isinstance(adapt, Prompt | PTuning | Prefix):
        name = {"prompt": "prompt tuning", "p_tuning": "P-tuning", "prefix": "prefix tuning"}[adapt.method]
        return f"{name} with {adapt.tokens} virtual tokens"
    return "fine-tuning of a part of the weights" if isinstance(adapt, Partial) else "full fine-tuning"


def main_metric(evidence: Evidence) -> str | None:
    """By which single samples are shown: the first of the rules' metrics on which one was lost.

    Where none was, the first metric that scores single samples, the rules' before others; None where none does.
    """
    evaluation = evidence.evaluation
    scored = {name for s in evaluation.samples for name, pair in s.scores.items() if None not in pair}
    ruled = [m for rule in evidence.verdict.rules if (m := rule.comparison.metric) in scored]
    others = [m for m in evaluation.metrics if m in scored]
    return next((m for m in ruled if worst_regressions(evaluation, m, k=1)), next(iter(ruled + others), None))


def worst_regressions(evaluation: EvalReport, metric: str | None, k: int = 10) -> list[Judged]:
    """The `k` samples on which the tuned answer lost most, worst first; none that did not lose."""
    return [sample for gain, _, sample in sorted(_gains(evaluation, metric), key=lambda g: g[:2]) if gain < 0][:k]


def largest_gains(evaluation: EvalReport, metric: str | None, k: int = 5) -> list[Judged]:
    """The `k` samples on which the tuned answer won most, best first; none that did not win."""
    ordered = sorted(_gains(evaluation, metric), key=lambda g: (-g[0], g[1]))
    return [sample for gain, _, sample in ordered if gain > 0][:k]


def _gains(evaluation: EvalReport, metric: str | None) -> list[tuple[float, str, Judged]]:
    """(gain, id, sample) of those that the metric scores alone; more is better."""
    if metric is None:
        return []
    sign = 1 if evaluation.metrics[metric].higher_is_better else -1
    found = []
    for sample in evaluation.samples:
        baseline, tuned = sample.scores.get(metric, (None, None))
        if baseline is not None and tuned is not None:
            found.append((sign * (tuned - baseline), sample.id, sample))
    return found


def drawn_samples(evaluation: EvalReport, seed: int, k: int = 20) -> list[Judged]:
    """`k` samples drawn without looking at their scores; the same for the same seed."""
    return random.Random(seed).sample(evaluation.samples, min(k, len(evaluation.samples)))


def not_measured(evidence: Evidence) -> list[str]:
    """What a reader might take for granted and no number here covers."""
    evaluation = evidence.evaluation
    kinds = {suite.kind for suite in suites(evaluation)}
    gaps = [
        (
            "Safety: beyond a few plain requests, nobody tested for harmful or private content in the answers."
            if any(name.endswith("_declined") for name in evaluation.metrics)
            else "Safety: nobody tested for harmful or private content in the answers."
        ),
        "Truth: answers were compared with references by program; "
        + (
            "people said which they prefer." if HUMAN_PREFERENCE in evaluation.metrics else "no person has judged them."
        ),
        (
            f"Other seeds: this is one training run (seed {evidence.recipe.seed}). The intervals cover the choice "
            "of test samples, not the luck of training."
        ),
        "Other inputs: the numbers hold for prompts like those of the test set, not beyond.",
    ]
    if "retention" not in kinds:
        gaps.append("Forgetting: general ability outside the task was not measured.")
    if "bias" not in kinds:
        gaps.append("Bias: whether answers depend on who is spoken of was not measured.")
    if "robustness" not in kinds:
        gaps.append("Robustness: whether typing errors or another wording change the answers was not measured.")
    if not evaluation.slices and not evaluation.searched:
        gaps.append("Groups: the recipe names no slices, so a group that fares worse would not be seen.")
    return gaps
