"""Release rules against what was measured: whether each finds its metric and its samples, and what it is judged by.

A place is which samples a rule speaks of: "" for all, "kind=unseen_fact", "topic=returns". Judging is `release/`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.errors import EvaluationError, Problem, did_you_mean, printable
from luthier.evaluate.reading import read
from luthier.evaluate.suites.suite import Suite
from luthier.metric import Metric, Sample
from luthier.records import Comparison, EvalReport
from luthier.settings import HUMAN_PREFERENCE, Rule

MISSING = "(none)"
"""A tag that a sample does not have."""


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
    where = place_of(rule.where)
    if not rule.in_slices:
        asked = {where: {p: c for p, c in _of_rules(rule.metric, report) if p == where}}
    elif rule.where:
        starts = [f"{join(where, name)}=" for name in rule.in_slices]
        asked = {start: {p: c for p, c in _of_rules(rule.metric, report) if p.startswith(start)} for start in starts}
    else:
        asked = {f"{name}=": dict(_of_slice(rule.metric, name, report)) for name in rule.in_slices}
    found: dict[str, Comparison] = {}
    for place, comparisons in asked.items():
        if not comparisons:
            raise nothing_in(rule, place)
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
        elif rule.where and not any(matches(t, rule.where) for t in tags):
            seen = {tag_text(t.get(key)) for key in rule.where for t in tags}
            advice = f"values there are: {printable(', '.join(sorted(seen)), 200)}"
            problems.append(Problem("LU-E007", at, f"no held-out item has {place_of(rule.where)}", advice))
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
            rows = [n for n, sample in enumerate(right) if matches(sample.tags, rule.where)]
            if not read(metric.name, metric, right, right, []).n_usable(rows):
                found = f"'{rule.metric}' would have no value on these rows even if every answer were right"
                advice = "hold out rows of every kind and label, or change the rule"
                problems.append(Problem("LU-E008", f"release.rules.{i}", found, advice))
    if problems:
        raise EvaluationError(*problems)


def check_names(metrics: Sequence[Metric], suites: Sequence[Suite]) -> None:
    """Raises EvaluationError LU-E009 where two metrics share a name."""
    names = [HUMAN_PREFERENCE, *(m.name for m in (*metrics, *(m for suite in suites for m in suite.metrics)))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EvaluationError.of("LU-E009", "evaluate.metrics", f"two metrics are called {', '.join(twice)}")


def tag_text(value: Any) -> str:
    """A tag as slices and rules name it: text as it is, anything else as JSON, a missing one as "(none)"."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _of_rules(metric: str, report: EvalReport) -> Iterator[tuple[str, Comparison]]:
    """Place and comparison of one metric in `rule_comparisons`."""
    for key, comparison in report.rule_comparisons.items():
        name, _, place = key.partition("|")
        if name == metric:
            yield place, comparison


def _of_slice(metric: str, name: str, report: EvalReport) -> Iterator[tuple[str, Comparison]]:
    for value, compared in report.slices.get(name, {}).items():
        if metric in compared:
            yield place_of({name: value}), compared[metric]


def place_of(tags: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))


def join(where: str, more: str) -> str:
    return f"{where}; {more}"


def matches(tags: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    return all(tag_text(tags.get(key)) == value for key, value in where.items())


def nothing_in(rule: Rule, place: str) -> EvaluationError:
    found = f"the rule on '{rule.metric}' has nothing to be judged by in {place}: too few samples to which it applies"
    return EvaluationError(Problem("LU-E007", "release.rules", found, "hold out more such samples, or change the rule"))
