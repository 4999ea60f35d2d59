"""Two models' answers to the same items, metric by metric: the whole, the slices, and what the release rules ask.

The statistics are `stats.py`'s; here each metric reads each answer once, and every slice reuses what was read.
Knows nothing of models: it gets `Sample`s. Nothing is left out silently: what is too small to compare is in the
report's notes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from luthier import stats
from luthier.errors import printable
from luthier.evaluate.clean import compare_clean
from luthier.evaluate.metrics.labels import confusion, reliability
from luthier.evaluate.reading import Known, applies, read, try_to_read
from luthier.evaluate.rules import (
    check_names,
    check_rules,
    comparisons_for,
    join,
    matches,
    nothing_in,
    place_of,
    tag_text,
)
from luthier.evaluate.slices import find_slices
from luthier.evaluate.suites.suite import Suite
from luthier.metric import Metric, Sample
from luthier.records import Comparison, DiscoveredSlice, EvalReport, Judged, SuiteReport, Task
from luthier.settings import HUMAN_PREFERENCE, Recipe
from luthier.suites import FORMS

MIN_SLICE_SAMPLES = 5
"""Fewer are reported, not compared."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model made of the held-out items, and of the questions of every other suite."""

    name: str
    samples: Sequence[Sample]
    suites: Mapping[str, Sequence[Sample]] = field(default_factory=dict)


def compare_models(
    tuned: Answers,
    baseline: Answers,
    *,
    metrics: Sequence[Metric],
    suites: Sequence[Suite] = (),
    recipe: Recipe,
    task: Task,
    labels: tuple[str, ...] = (),
    seen: Container[str] = (),
) -> EvalReport:
    """The report of `tuned` against `baseline`, whose samples are the same items in the same order.

    `metrics` measure the held-out items, each suite's own metrics what was made of its questions; `seen` are the ids of
    conversations that are in the training data.
    Raises EvaluationError: LU-E006 a reference that is no label, LU-E007 a rule's place that holds no sample to
    judge by, LU-E008 a rule on a metric that is not measured, LU-E009 two metrics of one name; and what a plug-in
    does wrong.
    """
    check_names(metrics, suites)
    check_rules(recipe.release.rules, [m.name for m in metrics], suites, [s.tags for s in tuned.samples])
    notes: list[str] = []
    ruled = {rule.metric for rule in recipe.release.rules}
    tried = (try_to_read(metric, tuned.samples, baseline.samples, ruled, notes) for metric in metrics)
    known = [metric for metric in tried if metric]
    everywhere = [
        *known,
        *(
            read(metric.name, metric, tuned.suites[suite.name], baseline.suites[suite.name], notes)
            for suite in suites
            for metric in suite.metrics
        ),
    ]
    applied = {m.name: m for m in everywhere if applies(m, notes)}
    sides = {"baseline": baseline, "tuned": tuned}
    on_tests = [m for m in known if m.name in applied]
    notes += _of_drawing(on_tests, recipe)
    discovered, searched = _discovered(on_tests, recipe)
    clean, on_clean = compare_clean(on_tests, tuned.samples, baseline.samples, seen, recipe.evaluate.confidence)
    report = EvalReport(
        model=tuned.name,
        baseline=baseline.name,
        task=task,
        confidence=recipe.evaluate.confidence,
        n=len(tuned.samples),
        n_clusters=len({s.cluster for s in tuned.samples}),
        cluster_by=recipe.evaluate.cluster_by or "family",
        metrics={name: m.compare(range(len(m.tuned)), recipe) for name, m in applied.items()},
        slices=_slices(on_tests, tuned.samples, recipe, notes),
        rule_comparisons=_rule_comparisons(applied, recipe, notes),
        samples=judged(known, tuned.samples, baseline.samples),
        labels=labels,
        confusion={side: confusion(of.samples, labels) for side, of in sides.items()} if labels else {},
        suites=tuple(_told(suite, applied, len(tuned.suites[suite.name])) for suite in suites if suite.form),
        discovered=discovered,
        searched=searched,
        reliability={
            s: b for s, o in sides.items() if (b := reliability(o.samples, labels, recipe.evaluate.confidence))
        },
        clean=clean,
        notes=(*notes, *on_clean),
    )
    for rule in recipe.release.rules:
        if rule.metric != HUMAN_PREFERENCE:
            comparisons_for(rule, report)  # raises where a rule has nothing to be judged by
    return report


def _of_drawing(metrics: Sequence[Known], recipe: Recipe) -> list[str]:
    """Of answers that were drawn, how much of each metric's uncertainty is the luck of that."""
    notes, draws = [], recipe.evaluate.draws
    if not recipe.evaluate.temperature:
        return []
    for metric in metrics if draws > 1 else ():
        gains: dict[str, list[float]] = defaultdict(list)
        pairs = zip(metric.tuned, metric.alone(metric.tuned), metric.alone(metric.baseline), strict=True)
        for sample, new, old in pairs:
            if new is not None and old is not None:
                gains[re.sub(r" #\d+$", "", sample.id)].append(new - old)
        whole = [of for of in gains.values() if len(of) == draws]
        if len(whole) > 1:
            notes.append(f"{metric.name} {stats.share_of_drawing(whole):.0%}")
    shares = f"; of the variance of a metric's change, drawing makes: {', '.join(notes)}" if notes else ""
    how = f"answers were drawn at temperature {recipe.evaluate.temperature:g}, {draws} for each prompt"
    return [f"{how}, and the intervals take those of one prompt as one{shares}"]


def _told(suite: Suite, applied: Mapping[str, Known], n: int) -> SuiteReport:
    assert suite.form
    form = FORMS[suite.form]
    measured = tuple(m.name for m in suite.metrics if m.name in applied)
    return SuiteReport(name=suite.name, kind=form.kind, about=form.about, n=n, metrics=measured)


def judged(metrics: Sequence[Known], tuned: Sequence[Sample], baseline: Sequence[Sample]) -> tuple[Judged, ...]:
    """Each sample beside its two answers, with its scores by `metrics`."""
    scores = {m.name: list(zip(m.alone(baseline), m.alone(tuned), strict=True)) for m in metrics}
    return tuple(
        Judged(
            id=ours.id,
            prompt=ours.prompt,
            reference=ours.reference,
            baseline=theirs.answer,
            tuned=ours.answer,
            tags=dict(ours.tags),
            scores={name: pairs[i] for name, pairs in scores.items()},
            cluster=ours.cluster,
            cut=(theirs.cut, ours.cut),
        )
        for i, (ours, theirs) in enumerate(zip(tuned, baseline, strict=True))
    )


def _by_value(samples: Sequence[Sample], tag: str, rows: Sequence[int]) -> dict[str, list[int]]:
    """Tag value -> the rows that have it, in the values' order."""
    found: dict[str, list[int]] = defaultdict(list)
    for i in rows:
        found[tag_text(samples[i].tags.get(tag))].append(i)
    return dict(sorted(found.items()))


def _slices(
    metrics: Sequence[Known], samples: Sequence[Sample], recipe: Recipe, notes: list[str]
) -> dict[str, dict[str, dict[str, Comparison]]]:
    """Slice -> value -> metric -> comparison."""
    return {
        name: _compare_values(metrics, _by_value(samples, name, range(len(samples))), name, recipe, notes)
        for name in recipe.data.slices
    }


def _compare_values(
    metrics: Sequence[Known], values: Mapping[str, Sequence[int]], name: str, recipe: Recipe, notes: list[str]
) -> dict[str, dict[str, Comparison]]:
    small = {value: len(rows) for value, rows in values.items() if len(rows) < MIN_SLICE_SAMPLES}
    found: dict[str, dict[str, Comparison]] = {value: {} for value in values if value not in small}
    if small:
        notes.append(f"not compared, under {MIN_SLICE_SAMPLES} samples: {_listed(name, small)}")
    for metric in metrics:
        few: dict[str, int] = {}
        for value, compared in found.items():
            n = metric.n_usable(values[value])
            if n < MIN_SLICE_SAMPLES:
                few[value] = n
            else:
                compared[metric.name] = metric.compare(values[value], recipe)
        if few:
            what = f"{metric.name} not compared, has a value on under {MIN_SLICE_SAMPLES} samples"
            notes.append(f"{what}: {_listed(name, few)}")
    return found


def _rule_comparisons(metrics: Mapping[str, Known], recipe: Recipe, notes: list[str]) -> dict[str, Comparison]:
    """'metric|place' -> comparison, for the rules with a `where`."""
    found: dict[str, Comparison] = {}
    for rule in recipe.release.rules:
        metric = metrics.get(rule.metric)
        if not rule.where or metric is None:
            continue
        where = place_of(rule.where)
        rows = [i for i, sample in enumerate(metric.tuned) if matches(sample.tags, rule.where)]
        if not metric.n_usable(rows):
            raise nothing_in(rule, where)
        if not rule.in_slices:
            found[f"{metric.name}|{where}"] = metric.compare(rows, recipe)
        for name in rule.in_slices:
            values = _by_value(metric.tuned, name, rows)
            compared = _compare_values([metric], values, join(where, name), recipe, notes)
            found |= {f"{metric.name}|{join(where, name)}={v}": of[metric.name] for v, of in compared.items() if of}
    return found


def _discovered(metrics: Sequence[Known], recipe: Recipe) -> tuple[tuple[DiscoveredSlice, ...], str]:
    """Failing slices by the metric of the first rule that is on the held-out items, else by the first metric."""
    ruled = [m for rule in recipe.release.rules for m in metrics if m.name == rule.metric]
    metric = next(iter((*ruled, *metrics)), None)
    if metric is None:
        return (), ""
    confidence, seed = recipe.evaluate.confidence, recipe.seed
    return find_slices(metric, metric.tuned, metric.baseline, confidence=confidence, seed=seed, tag_text=tag_text)


def _listed(name: str, counts: Mapping[str, int], limit: int = 10) -> str:
    shown = [f"{name}={printable(value, 40)} ({n})" for value, n in list(counts.items())[:limit]]
    return ", ".join(shown) + (f" and {len(counts) - limit} more" if len(counts) > limit else "")
