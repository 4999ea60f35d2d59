"""The report: one page for people, one JSON for programs, both from the same evidence.

The page is a single HTML file without scripts or requests, readable on a phone, on paper, in the dark. All
text from data is escaped and its invisible characters are shown. This module chooses and orders; the words
are in `wording`, the drawings in `plots`, the look in `templates/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.recipe import to_yaml
from luthier.records import Comparison, Judged, RuleResult
from luthier.release import plots, wording
from luthier.release.evidence import (
    Evidence,
    claims,
    drawn_samples,
    gain,
    main_metric,
    method,
    not_measured,
    worst_regressions,
)

TEMPLATES = Path(__file__).with_name("templates")
LONGEST_TEXT = 20_000
"""Characters of one prompt or answer on the page; the run folder has the rest."""
SLICE_ROWS = 12
"""Values of a slice shown at once; the others unfold."""


def report_json(evidence: Evidence) -> dict[str, Any]:
    """The report as strict JSON: what is not finite is null."""
    evaluation, training = evidence.evaluation, evidence.training
    run = {
        "name": evidence.name,
        "folder": str(evidence.folder),
        "recipe": evidence.recipe.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json", exclude={"metrics", "slices", "samples", "rule_comparisons"}),
        "environment": dict(evidence.environment),
        "artifacts": dict(evidence.artifacts),
        "not_measured": not_measured(evidence),
    }
    report = {
        "verdict": evidence.verdict.outcome,
        "rules": [rule.model_dump(mode="python") for rule in evidence.verdict.rules],
        "metrics": {name: c.model_dump(mode="python") for name, c in evaluation.metrics.items()},
        "claims": [asdict(claim) for claim in claims(evaluation)],
        "slices": evaluation.model_dump(mode="python")["slices"],
        "audit": evidence.audit.model_dump(mode="python"),
        "run": run,
    }
    return strict(report)  # type: ignore[no-any-return]


def strict(value: Any) -> Any:
    """Plain JSON data: tuples as lists, keys as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def report_html(evidence: Evidence) -> str:
    """The report as one self-contained page."""
    evaluation = evidence.evaluation
    metric = main_metric(evidence)
    return (
        _templates()
        .get_template("report.html")
        .render(
            e=evidence,
            verdict=evidence.verdict,
            evaluation=evaluation,
            training=evidence.training,
            audit=evidence.audit,
            method=method(evidence.recipe),
            headline=headline(evidence),
            found=found(evidence),
            rules=[_rule_row(rule) for rule in evidence.verdict.rules],
            metrics=[_metric_row(c) for c in evaluation.metrics.values()],
            claims=claims(evaluation),
            curves=_curves(evidence),
            slices=_slices(evidence),
            main_metric=metric,
            worst=[_sample_card(s, evidence, metric) for s in worst_regressions(evaluation, metric)],
            samples=[_sample_card(s, evidence, metric) for s in drawn_samples(evaluation, evidence.recipe.seed)],
            not_measured=not_measured(evidence),
            recipe_yaml=to_yaml(evidence.recipe),
            w=wording,
            LONGEST_TEXT=LONGEST_TEXT,
            SLICE_ROWS=SLICE_ROWS,
        )
    )


@cache
def _templates() -> Environment:
    def shown(value: Any) -> Any:
        return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def headline(evidence: Evidence) -> str:
    """What the verdict says, in a sentence or two."""
    rules = evidence.verdict.rules
    failed, undecided = (sum(r.outcome == o for r in rules) for o in ("FAIL", "UNDERPOWERED"))
    total = wording.count(len(rules), "rule")
    if evidence.verdict.outcome == "PASS":
        return f"{'The one rule holds' if len(rules) == 1 else f'All {total} hold'}. The tuned model may be released."
    if evidence.verdict.outcome == "FAIL":
        which = "The one rule does" if len(rules) == 1 else f"{failed} of {total} {'does' if failed == 1 else 'do'}"
        also = f", and {undecided} cannot be decided" if undecided else ""
        return f"{which} not hold{also}. The tuned model should not be released."
    which = "The one rule" if len(rules) == 1 else f"{undecided} of {total}"
    return f"{which} cannot be decided with this test set. That is neither a pass nor a fail."


def found(evidence: Evidence, most: int = 3) -> list[str]:
    """The change behind the rules that matter most: those that do not hold first."""
    ordered = sorted(evidence.verdict.rules, key=lambda r: ("FAIL", "UNDERPOWERED", "PASS").index(r.outcome))
    share = wording.confidence(evidence.evaluation)
    lines = []
    for rule in ordered[:most]:
        t = wording.told(rule.comparison)
        seen = f"{t.change}, from {t.baseline} to {t.tuned}; {share} interval {t.interval}"
        lines.append(f"{rule.rule}: {seen if math.isfinite(rule.comparison.delta) else 'the change is not defined'}.")
    return lines


def _span(c: Comparison) -> plots.Span:
    return c.delta, c.low, c.high


def _rule_row(rule: RuleResult) -> dict[str, Any]:
    label = f"{rule.rule}: change with its interval and the limit"
    return {
        "result": rule,
        "told": wording.told(rule.comparison),
        "required": wording.required(rule),
        "plot": Markup(plots.interval_plot(_span(rule.comparison), rule.required, label=wording.visible(label))),
    }


def _metric_row(c: Comparison) -> dict[str, Any]:
    pair = plots.pair_plot(
        (c.baseline, c.baseline_low, c.baseline_high),
        (c.value, c.value_low, c.value_high),
        label=f"{c.metric}, base and tuned",
    )
    return {
        "c": c,
        "told": wording.told(c),
        "meaning": wording.meaning(c.metric),
        "direction": wording.direction(c),
        "pair": Markup(pair),
        "bar": Markup(plots.share_bar(c.wins, c.ties, c.losses)),
    }


def _curves(evidence: Evidence) -> dict[str, Any]:
    training = evidence.training
    series = [
        plots.Series("training", training.curve, "base"),
        plots.Series("validation", [(c.step, c.nll) for c in training.checks], "tuned", dots=True),
    ]
    best = next((c for c in training.checks if c.step == training.best_step), None)
    mark = (best.step, best.nll, f"best: {best.nll:.3f}") if best else None

    def chart(width: int, height: int) -> Markup:
        return Markup(
            plots.line_chart(
                series,
                x_label="step",
                y_label="nll per token (nats)",
                mark=mark,
                width=width,
                height=height,
                label="Learning curves",
            )
        )

    return {"wide": chart(920, 340), "narrow": chart(360, 280), "best": best}


def _slices(evidence: Evidence) -> list[dict[str, Any]]:
    """Per slice: its tables, the first rule's metric first, the values that changed worst on top."""
    tables = []
    for name, values in evidence.evaluation.slices.items():
        metrics = list(dict.fromkeys(m for of_value in values.values() for m in of_value))
        first = next((r.metric for r in evidence.verdict.rules if r.metric in metrics), None)
        metrics.sort(key=lambda m: m != first)  # stable: the others stay in the recipe's order
        tables.append({"name": name, "metrics": [_slice_table(m, values) for m in metrics]})
    return tables


def _slice_table(metric: str, values: dict[str, dict[str, Comparison]]) -> dict[str, Any]:
    compared = [(value, of_value[metric]) for value, of_value in values.items() if metric in of_value]
    compared.sort(key=lambda item: item[1].delta if math.isfinite(item[1].delta) else -math.inf)
    domain = _shared([c for _, c in compared])
    rows = [
        {
            "value": value,
            "c": c,
            "told": wording.told(c),
            "plot": Markup(plots.interval_plot(_span(c), domain=domain, label=f"change of {metric}")),
        }
        for value, c in compared
    ]
    return {"metric": metric, "rows": rows}


def _shared(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """One scale for all rows of a slice, zero included."""
    ends = [v for c in comparisons for v in _span(c) if math.isfinite(v)] + [0.0]
    pad = (max(ends) - min(ends)) * 0.06 or 1.0
    return min(ends) - pad, max(ends) + pad


def _sample_card(sample: Judged, evidence: Evidence, metric: str | None) -> dict[str, Any]:
    """A sample with the scores that differ; the main metric's also where it does not."""
    lines = []
    for name in sorted(sample.scores, key=lambda m: m != metric):
        c = evidence.evaluation.metrics.get(name)
        change = gain(sample, name, c.higher_is_better) if c else None
        if change is None or (change == 0 and name != metric):
            continue
        baseline, tuned = wording.pair(*sample.scores[name])
        word = "same" if change == 0 else "better" if change > 0 else "worse"
        lines.append({"metric": name, "baseline": baseline, "tuned": tuned, "word": word})
    return {"sample": sample, "scores": lines}
