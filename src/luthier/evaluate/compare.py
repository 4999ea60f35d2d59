"""Two models' answers to the same items, metric by metric: the whole, the slices, and what the release rules ask.

The statistics are `stats.py`'s; here each metric reads each answer once, and every slice reuses what was read.
Knows nothing of models: it gets `Sample`s. Nothing is left out silently: what is too small to compare is in the
report's notes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier import stats
from luthier.errors import EvaluationError, Problem, did_you_mean, printable
from luthier.evaluate.clean import compare_clean
from luthier.evaluate.labels import confusion, reliability
from luthier.evaluate.slices import find_slices
from luthier.evaluate.suite import Suite
from luthier.metric import Floats, Metric, Sample, show
from luthier.records import Comparison, DiscoveredSlice, EvalReport, Judged, SuiteReport, Task
from luthier.settings import HUMAN_PREFERENCE, Recipe, Rule
from luthier.suites import FORMS

MIN_SLICE_SAMPLES = 5
"""Fewer are reported, not compared."""
MISSING = "(none)"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model made of the held-out items, and of the questions of every other suite."""

    name: str
    samples: Sequence[Sample]
    suites: Mapping[str, Sequence[Sample]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    """A metric that has read its samples: a `Metric` whose statistics are looked up."""

    name: str
    metric: Metric
    tuned: Sequence[Sample]
    baseline: Sequence[Sample]
    known: Mapping[int, Sequence[float] | None]
    """By the identity of the sample: one item has one sample of each model."""

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    def stats(self, sample: Sample) -> Sequence[float] | None:
        return self.known[id(sample)]

    def combine(self, sums: Floats) -> Floats:
        return self.metric.combine(sums)

    def n_usable(self, rows: Sequence[int]) -> int:
        """How many samples a comparison would rest on; 0 where they define no value: F1 of a label not among them."""
        both = ((self.stats(self.tuned[i]), self.stats(self.baseline[i])) for i in rows)
        usable = [pair for pair in both if None not in pair]
        if not usable:
            return 0
        with np.errstate(all="ignore"):
            values = self.combine(np.array(usable, dtype=np.float64).sum(axis=0))  # (n, 2, k) -> (2,)
        return len(usable) if np.isfinite(values).all() else 0

    def compare(self, rows: Sequence[int], recipe: Recipe) -> Comparison:
        tuned, baseline = [self.tuned[i] for i in rows], [self.baseline[i] for i in rows]
        return stats.compare(self, tuned, baseline, confidence=recipe.evaluate.confidence)

    def alone(self, samples: Sequence[Sample]) -> list[float | None]:
        """The value of each sample by itself; None where the metric does not apply or has none."""
        values: list[float | None] = [None] * len(samples)
        rows = [i for i, sample in enumerate(samples) if self.stats(sample) is not None]
        if rows:
            sums = np.array([self.stats(samples[i]) for i in rows], dtype=np.float64)  # (n, k)
            with np.errstate(all="ignore"):
                found = self.combine(sums)  # (n,)
            for i, value in zip(rows, found, strict=True):
                values[i] = float(value) if np.isfinite(value) else None
        return values


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
    read = (_try_to_read(metric, tuned.samples, baseline.samples, ruled, notes) for metric in metrics)
    known = [metric for metric in read if metric]
    everywhere = [
        *known,
        *(
            _read(metric.name, metric, tuned.suites[suite.name], baseline.suites[suite.name], notes)
            for suite in suites
            for metric in suite.metrics
        ),
    ]
    applied = {m.name: m for m in everywhere if _applies(m, notes)}
    sides = {"baseline": baseline, "tuned": tuned}
    on_tests = [m for m in known if m.name in applied]
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


def comparisons_for(rule: Rule, report: EvalReport) -> dict[str, Comparison]:
    """What `rule` is judged by: place -> comparison, each of which must hold.

    The place is "" for all samples, else "kind=unseen_fact" (`where`) or "topic=returns" (`in_slices`), or
    "kind=unseen_fact; topic=returns" for both.
    Raises EvaluationError LU-E007, LU-E008 where the report has nothing to judge the rule by.
    """
    if rule.metric not in report.metrics:
        missing = f"no comparison of '{rule.metric}': not measured, or it applies to no sample"
        raise EvaluationError.of("LU-E008", "release.rules", missing, did_you_mean(rule.metric, report.metrics))
    if not rule.where and not rule.in_slices:
        return {"": report.metrics[rule.metric]}
    where = _place(rule.where)
    if not rule.in_slices:
        asked = {where: {p: c for p, c in _of_rules(rule.metric, report) if p == where}}
    elif rule.where:
        starts = [f"{_join(where, name)}=" for name in rule.in_slices]
        asked = {start: {p: c for p, c in _of_rules(rule.metric, report) if p.startswith(start)} for start in starts}
    else:
        asked = {f"{name}=": dict(_of_slice(rule.metric, name, report)) for name in rule.in_slices}
    found: dict[str, Comparison] = {}
    for place, comparisons in asked.items():
        if not comparisons:
            raise _nothing_in(rule, place)
        found |= comparisons
    return found


def check_rules(
    rules: Sequence[Rule], metrics: Sequence[str], suites: Sequence[Suite], tags: Sequence[Mapping[str, Any]]
) -> None:
    """Whether every rule will find its metric and its samples: all that can be known before a model has run.

    `metrics` are the names of those on the held-out items, `tags` those items' tags.
    Raises EvaluationError LU-E007, LU-E008 with all problems.
    """
    problems = []
    suite_of = {metric.name: suite.name for suite in suites for metric in suite.metrics}
    measured = [*metrics, *suite_of]
    for i, rule in enumerate(rules):
        at = f"release.rules.{i}"
        if rule.metric == HUMAN_PREFERENCE:  # people's affair, after the models have run
            continue
        if rule.metric not in measured:
            advice = did_you_mean(rule.metric, measured)
            problems.append(Problem("LU-E008", at, f"no metric measures '{rule.metric}'", advice))
        elif rule.metric in suite_of and (rule.in_slices or rule.where):
            found = f"{rule.metric} is measured on '{suite_of[rule.metric]}', which has no slices of the held-out items"
            problems.append(Problem("LU-E007", at, found, "leave out `in_slices` and `where`"))
        elif rule.where and not any(_matches(t, rule.where) for t in tags):
            seen = {tag_text(t.get(key)) for key in rule.where for t in tags}
            advice = f"values there are: {printable(', '.join(sorted(seen)), 200)}"
            problems.append(Problem("LU-E007", at, f"no held-out item has {_place(rule.where)}", advice))
    if problems:
        raise EvaluationError(*problems)


def check_values(rules: Sequence[Rule], metrics: Sequence[Metric], right: Sequence[Sample]) -> None:
    """Whether the rules' metrics have a value at all: by samples `right`, each answered with its reference.

    Raises EvaluationError LU-E008 with all problems, and what a plug-in does wrong.
    """
    problems = []
    for i, rule in enumerate(rules):
        for metric in metrics:
            if metric.name != rule.metric:
                continue
            rows = [n for n, sample in enumerate(right) if _matches(sample.tags, rule.where)]
            if not _read(metric.name, metric, right, right, []).n_usable(rows):
                found = f"'{rule.metric}' would have no value on these rows even if every answer were right"
                advice = "hold out rows of every kind and label, or change the rule"
                problems.append(Problem("LU-E008", f"release.rules.{i}", found, advice))
    if problems:
        raise EvaluationError(*problems)


def tag_text(value: Any) -> str:
    """A tag as slices and rules name it: text as it is, anything else as JSON, a missing one as "(none)"."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


# -- reading ------------------------------------------------------------------------------------------------------


def _told(suite: Suite, applied: Mapping[str, _Known], n: int) -> SuiteReport:
    assert suite.form
    form = FORMS[suite.form]
    measured = tuple(m.name for m in suite.metrics if m.name in applied)
    return SuiteReport(name=suite.name, kind=form.kind, about=form.about, n=n, metrics=measured)


def check_names(metrics: Sequence[Metric], suites: Sequence[Suite]) -> None:
    """Raises EvaluationError LU-E009 where two metrics share a name."""
    names = [HUMAN_PREFERENCE, *(m.name for m in (*metrics, *(m for suite in suites for m in suite.metrics)))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError.of("LU-E009", "evaluate.metrics", f"two metrics are called {', '.join(twice)}")


def _read(name: str, metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample], notes: list[str]) -> _Known:
    assert [s.id for s in tuned] == [s.id for s in baseline], "both models answer the same items in the same order"
    show(metric, (*tuned, *baseline))
    found = ((sample, metric.stats(sample)) for sample in (*tuned, *baseline))
    known = {id(sample): None if values is None else tuple(values) for sample, values in found}
    widths = {len(values) for values in known.values() if values is not None}
    if len(widths) > 1:
        ragged = f"gave {min(widths)} statistics for one sample and {max(widths)} for another"
        raise EvaluationError.of("LU-E005", f"metric '{name}'", ragged)
    one_sided = sum((known[id(t)] is None) != (known[id(b)] is None) for t, b in zip(tuned, baseline, strict=True))
    if one_sided:
        notes.append(f"{name} applies to only one of the two answers of {one_sided} samples, which it leaves out")
    return _Known(name, metric, tuned, baseline, known)


def _try_to_read(
    metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample], ruled: Collection[str], notes: list[str]
) -> _Known | None:
    """A metric that fails costs its own results only, and is said; unless a rule stands on it."""
    try:
        return _read(metric.name, metric, tuned, baseline, notes)
    except EvaluationError as error:
        if metric.name in ruled:
            raise
        notes.append(f"{metric.name} is not reported, it failed: {error.problems[0]}")
        return None


def _applies(metric: _Known, notes: list[str]) -> bool:
    if metric.n_usable(range(len(metric.tuned))):
        return True
    notes.append(f"{metric.name} is not reported: it applies to no sample, or has no value on these")
    return False


def judged(metrics: Sequence[_Known], tuned: Sequence[Sample], baseline: Sequence[Sample]) -> tuple[Judged, ...]:
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
        )
        for i, (ours, theirs) in enumerate(zip(tuned, baseline, strict=True))
    )


# -- places -------------------------------------------------------------------------------------------------------


def _by_value(samples: Sequence[Sample], tag: str, rows: Sequence[int]) -> dict[str, list[int]]:
    """Tag value -> the rows that have it, in the values' order."""
    found: dict[str, list[int]] = defaultdict(list)
    for i in rows:
        found[tag_text(samples[i].tags.get(tag))].append(i)
    return dict(sorted(found.items()))


def _slices(
    metrics: Sequence[_Known], samples: Sequence[Sample], recipe: Recipe, notes: list[str]
) -> dict[str, dict[str, dict[str, Comparison]]]:
    """Slice -> value -> metric -> comparison."""
    return {
        name: _compare_values(metrics, _by_value(samples, name, range(len(samples))), name, recipe, notes)
        for name in recipe.data.slices
    }


def _compare_values(
    metrics: Sequence[_Known], values: Mapping[str, Sequence[int]], name: str, recipe: Recipe, notes: list[str]
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


def _rule_comparisons(metrics: Mapping[str, _Known], recipe: Recipe, notes: list[str]) -> dict[str, Comparison]:
    """'metric|place' -> comparison, for the rules with a `where`."""
    found: dict[str, Comparison] = {}
    for rule in recipe.release.rules:
        metric = metrics.get(rule.metric)
        if not rule.where or metric is None:
            continue
        where = _place(rule.where)
        rows = [i for i, sample in enumerate(metric.tuned) if _matches(sample.tags, rule.where)]
        if not metric.n_usable(rows):
            raise _nothing_in(rule, where)
        if not rule.in_slices:
            found[f"{metric.name}|{where}"] = metric.compare(rows, recipe)
        for name in rule.in_slices:
            values = _by_value(metric.tuned, name, rows)
            compared = _compare_values([metric], values, _join(where, name), recipe, notes)
            found |= {f"{metric.name}|{_join(where, name)}={v}": of[metric.name] for v, of in compared.items() if of}
    return found


def _discovered(metrics: Sequence[_Known], recipe: Recipe) -> tuple[tuple[DiscoveredSlice, ...], str]:
    """Failing slices by the metric of the first rule that is on the held-out items, else by the first metric."""
    ruled = [m for rule in recipe.release.rules for m in metrics if m.name == rule.metric]
    metric = next(iter((*ruled, *metrics)), None)
    if metric is None:
        return (), ""
    confidence, seed = recipe.evaluate.confidence, recipe.seed
    return find_slices(metric, metric.tuned, metric.baseline, confidence=confidence, seed=seed, tag_text=tag_text)


def _of_rules(metric: str, report: EvalReport) -> Iterator[tuple[str, Comparison]]:
    """Place and comparison of one metric in `rule_comparisons`."""
    for key, comparison in report.rule_comparisons.items():
        name, _, place = key.partition("|")
        if name == metric:
            yield place, comparison


def _of_slice(metric: str, name: str, report: EvalReport) -> Iterator[tuple[str, Comparison]]:
    for value, compared in report.slices.get(name, {}).items():
        if metric in compared:
            yield _place({name: value}), compared[metric]


def _place(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def _join(where: str, more: str) -> str:
    return f"{where}; {more}"


def _matches(tags: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(tag_text(tags.get(key)) == value for key, value in where.items())


def _listed(name: str, counts: Mapping[str, int], limit: int = 10) -> str:
    shown = [f"{name}={printable(value, 40)} ({n})" for value, n in list(counts.items())[:limit]]
    return ", ".join(shown) + (f" and {len(counts) - limit} more" if len(counts) > limit else "")


def _nothing_in(rule: Rule, place: str) -> EvaluationError:
    found = f"the rule on '{rule.metric}' has nothing to be judged by in {place}: too few samples to which it applies"
    return EvaluationError(Problem("LU-E007", "release.rules", found, "hold out more such samples, or change the rule"))
