"""The report's sections on groups, on suites besides the test set, and on single answers.

Each function gives what a part of the template shows, or nothing where there is nothing to show. The words are in
`wording`, the drawings in `plots`.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from luthier.page import plots, words
from luthier.records import Comparison, DiscoveredSlice, EvalReport, Judged, Outcome
from luthier.release import wording
from luthier.release.evidence import GENERAL, TITLES, Evidence, against_elsewhere, outcome_of, suites
from luthier.release.failures import kinds_of_failure
from luthier.release.gate import limit
from luthier.release.labels import Confusion, confusions
from luthier.stats import wilson

READING = {
    "retention": "What the base could do outside the task, asked of both models. A loss here is what the tuning cost; "
    "a rule may bound it.",
    "bias": "Questions that differ only in whom they speak of. Base against tuned says what the tuning did to it, not "
    "that the base had none.",
    "robustness": "The same questions, disturbed. A loss here that the undisturbed test set does not show is "
    "brittleness that the tuning brought.",
}
"""Kind of suite -> how to read its section."""


def slices(evidence: Evidence) -> list[dict[str, Any]]:
    """Per slice: its tables, the first rule's metric first, the values that changed worst on top."""
    tables = []
    for name, values in evidence.evaluation.slices.items():
        metrics = list(dict.fromkeys(m for of_value in values.values() for m in of_value))
        ruled = (rule.comparison.metric for rule in evidence.verdict.rules)
        first = next((m for m in ruled if m in metrics), None)
        metrics.sort(key=lambda m: m != first)  # stable: the others stay in the recipe's order
        tables.append({"name": name, "metrics": [_slice_table(m, name, values, evidence) for m in metrics]})
    return tables


def _slice_table(
    metric: str, name: str, values: dict[str, dict[str, Comparison]], evidence: Evidence
) -> dict[str, Any]:
    """A forest: all samples on top, then the values, on one scale; a limit where a rule stands on that row."""
    compared = [
        (value, of_value[metric], f"{name}={value}") for value, of_value in values.items() if metric in of_value
    ]
    compared.sort(key=lambda item: item[1].delta)
    rows = [("all samples", evidence.evaluation.metrics[metric], ""), *compared]
    limits = [_limit(evidence, metric, place) for *_, place in rows]
    ends = [end for _, c, _ in rows for end in (c.low, c.delta, c.high)]
    shared = plots.padded([0.0, *ends, *(at for at in limits if at is not None)])
    made = [
        _row(value, c, outcome_of(evidence.verdict, metric, place), at, shared)
        for (value, c, place), at in zip(rows, limits, strict=True)
    ]
    axis = Markup(plots.axis_plot(shared, signed=True, label=f"change of {metric}"))
    return {"metric": metric, "whole": made[0], "rows": made[1:], "axis": axis}


def _limit(evidence: Evidence, metric: str, place: str) -> float | None:
    """The strictest limit that a rule sets the change of a metric in a place."""
    rules = evidence.verdict.rules
    found = [limit(r.must, r.margin) for r in rules if (r.comparison.metric, r.place) == (metric, place)]
    return max(found, default=None)


def _row(
    name: str,
    c: Comparison,
    outcome: Outcome | None,
    at: float | None,
    domain: tuple[float, float] | None = None,
) -> dict[str, Any]:
    plot = plots.interval_plot((c.delta, c.low, c.high), at, domain=domain, label=f"change of {c.metric}")
    return {"value": name, "about": "", "c": c, "told": wording.told(c), "outcome": outcome, "plot": Markup(plot)}


def clean(evaluation: EvalReport) -> list[dict[str, Any]]:
    """Each metric on all test rows, and on those that are not in the training data; none where all are clean."""
    found = []
    for metric, c in evaluation.clean.items():
        if (whole := evaluation.metrics.get(metric)) is not None:
            shared = plots.padded([0.0, *(end for x in (whole, c) for end in (x.low, x.delta, x.high))])
            rows = [_row(name, x, None, None, shared) for name, x in (("all rows", whole), ("clean rows", c))]
            found.append({"metric": metric, "rows": rows})
    return found


def discovered(evaluation: EvalReport) -> list[dict[str, Any]]:
    """The slices that were found by searching, each with what is bad about it first and the other comparison after."""
    return [_discovered(found) for found in evaluation.discovered]


def _discovered(found: DiscoveredSlice) -> dict[str, Any]:
    c, elsewhere = found.comparison, against_elsewhere(found)
    here, there = wording.told(c), wording.told(elsewhere)
    regressed = found.kind == "regression"
    shown = c if regressed else elsewhere
    plot = plots.interval_plot((shown.delta, shown.low, shown.high), label=f"{c.metric} where {found.condition}")
    return {
        "condition": found.condition,
        "kind": found.kind,
        "c": c,
        "told": here if regressed else there,
        "against": "the base" if regressed else "the tuned model elsewhere",
        "also": f"Elsewhere the tuned model has {there.baseline}; against that, here: {there.change}."
        if regressed
        else f"The base has {here.baseline} here; against that: {here.change}.",
        "p": wording.p_value(found.p_adjusted),
        "plot": Markup(plot),
    }


def suite_sections(evidence: Evidence) -> list[dict[str, Any]]:
    """One section for each kind of suite that there is."""
    found = suites(evidence.evaluation)
    made = []
    for kind, title in TITLES.items():
        tables = [
            {"suite": suite, "rows": [_suite_row(metric, suite.name, evidence) for metric in suite.metrics]}
            for suite in found
            if suite.kind == kind
        ]
        if tables:
            made.append({"id": title.lower(), "title": title, "reading": READING[kind], "tables": tables})
    return made


def _suite_row(metric: str, suite: str, evidence: Evidence) -> dict[str, Any]:
    c = evidence.evaluation.metrics[metric]
    row = _row(metric, c, outcome_of(evidence.verdict, metric), _limit(evidence, metric, ""))
    known = "" if metric == GENERAL else wording.MEANING.get(wording.plain(metric.removeprefix(f"{suite}_")), "")
    return row | {"about": f"{known} {wording.direction(c).capitalize()}.".lstrip()}


def failures(evaluation: EvalReport) -> list[dict[str, Any]]:
    """The kinds of failure, each with its share of both models' answers."""
    rows = []
    for kind in kinds_of_failure(evaluation):
        counts = [kind.baseline, kind.tuned]
        shares = [None if n is None else _share(n, kind.n, evaluation.confidence) for n in counts]
        most = _most_mistaken(evaluation) if kind.name == "wrong label" else None
        rows.append({"kind": kind, "shares": shares, "most": most})
    return rows


def _most_mistaken(evaluation: EvalReport) -> Confusion | None:
    """The tuned model's most frequent confusion of two labels."""
    found = confusions(evaluation.labels, evaluation.confusion["tuned"])
    return next((c for c in found if c.answered is not None), None)


def _share(n: int, of: int, confidence: float) -> str:
    return words.share((n / of, *wilson(n, of, confidence)))


def sample_card(sample: Judged, evaluation: EvalReport, metric: str | None) -> dict[str, Any]:
    """A sample with the scores that differ; the main metric's also where it does not."""
    lines = []
    for name in sorted(sample.scores, key=lambda m: m != metric):
        baseline, tuned = sample.scores[name]
        c = evaluation.metrics.get(name)
        if c is None or baseline is None or tuned is None or (tuned == baseline and name != metric):
            continue
        better = (tuned > baseline) == c.higher_is_better
        word = "same" if tuned == baseline else "better" if better else "worse"
        before, after = wording.pair(baseline, tuned)
        lines.append({"metric": name, "baseline": before, "tuned": after, "word": word})
    return {"sample": sample, "scores": lines}
