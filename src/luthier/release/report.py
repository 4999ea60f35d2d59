"""The report: one page for people, one JSON for programs, both from the same evidence.

The page is a single HTML file without scripts or requests, readable on a phone, on paper, in the dark. All
text from data is escaped and its invisible characters are shown. This module chooses and orders; the words
are in `wording`, the drawings in `plots`, the look in `templates/`.
"""

from __future__ import annotations

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
    main_metric,
    method,
    not_measured,
    worst_regressions,
)
from luthier.release.gate import limit

LONGEST_TEXT = 20_000
"""Characters of one prompt or answer on the page; the run folder has the rest."""
SLICE_ROWS = 12
"""Values of a slice shown at once; the others unfold."""


def report_json(evidence: Evidence) -> dict[str, Any]:
    """The report as plain JSON data."""
    evaluation = evidence.evaluation.model_dump(mode="json", exclude={"samples", "rule_comparisons"})
    metrics, slices = evaluation.pop("metrics"), evaluation.pop("slices")
    verdict = evidence.verdict.model_dump(mode="json")
    return {
        "verdict": verdict["outcome"],
        "rules": verdict["rules"],
        "metrics": metrics,
        "claims": [asdict(claim) for claim in claims(evidence.evaluation)],
        "slices": slices,
        "audit": evidence.audit.model_dump(mode="json"),
        "run": {
            "name": evidence.name,
            "folder": str(evidence.folder),
            "recipe": evidence.recipe.model_dump(mode="json"),
            "training": evidence.training.model_dump(mode="json"),
            "evaluation": evaluation,
            "environment": dict(evidence.environment),
            "artifacts": dict(evidence.artifacts),
            "not_measured": not_measured(evidence),
        },
    }


def report_html(evidence: Evidence) -> str:
    """The report as one self-contained page."""
    metric = main_metric(evidence)
    worst = worst_regressions(evidence.evaluation, metric)
    drawn = drawn_samples(evidence.evaluation, evidence.recipe.seed)
    page = _templates().get_template("report.html")
    return page.render(
        e=evidence,
        method=method(evidence.recipe),
        headline=headline(evidence),
        found=found(evidence),
        rules=[_rule_row(rule) for rule in evidence.verdict.rules],
        metrics=[_metric_row(c) for c in evidence.evaluation.metrics.values()],
        claims=claims(evidence.evaluation),
        curves=_curves(evidence),
        slices=_slices(evidence),
        main_metric=metric,
        worst=[_sample_card(s, evidence, metric) for s in worst],
        samples=[_sample_card(s, evidence, metric) for s in drawn],
        not_measured=not_measured(evidence),
        tokens=[(key, wording.number(n)) for key, n in evidence.audit.tokens.items()],
        recipe_yaml=to_yaml(evidence.recipe),
        w=wording,
        LONGEST_TEXT=LONGEST_TEXT,
        SLICE_ROWS=SLICE_ROWS,
    )


@cache
def _templates() -> Environment:
    def shown(value: Any) -> Any:
        return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
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
    by_what = "with this test set" if all(r.comparison.n for r in rules) else "before people have judged the answers"
    return f"{which} cannot be decided {by_what}. That is neither a pass nor a fail."


def found(evidence: Evidence, most: int = 3) -> list[str]:
    """The change behind the rules that matter most: those that do not hold first."""
    measured = [r for r in evidence.verdict.rules if r.comparison.n]
    ordered = sorted(measured, key=lambda r: ("FAIL", "UNDERPOWERED", "PASS").index(r.outcome))
    share = wording.confidence(evidence.evaluation)
    told = [(rule.rule, wording.told(rule.comparison)) for rule in ordered[:most]]
    return [f"{rule}: {t.change}, from {t.baseline} to {t.tuned}; {share} interval {t.interval}." for rule, t in told]


def _rule_row(rule: RuleResult) -> dict[str, Any]:
    c = rule.comparison
    label = f"{rule.rule}: change with its interval and the limit"
    plot = plots.interval_plot((c.delta, c.low, c.high), limit(rule.must, rule.margin), label=label)
    return {
        "result": rule,
        "told": wording.told(c),
        "required": wording.required(rule),
        "plot": Markup(plot),
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
    best = next(c for c in training.checks if c.step == training.best_step)
    series = [
        plots.Series("training", training.curve, "base"),
        plots.Series("validation", [(c.step, c.nll) for c in training.checks], "tuned", dots=True),
    ]

    def chart(width: int, height: int) -> Markup:
        return Markup(
            plots.line_chart(
                series,
                x_label="step",
                y_label="nll per token (nats)",
                mark=(best.step, best.nll, f"best: {best.nll:.3f}"),
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
        ruled = (rule.comparison.metric for rule in evidence.verdict.rules)
        first = next((m for m in ruled if m in metrics), None)
        metrics.sort(key=lambda m: m != first)  # stable: the others stay in the recipe's order
        tables.append({"name": name, "metrics": [_slice_table(m, values) for m in metrics]})
    return tables


def _slice_table(metric: str, values: dict[str, dict[str, Comparison]]) -> dict[str, Any]:
    compared = [(value, of_value[metric]) for value, of_value in values.items() if metric in of_value]
    compared.sort(key=lambda item: item[1].delta)
    shared = plots.padded([0.0, *(end for _, c in compared for end in (c.low, c.delta, c.high))])
    rows = []
    for value, c in compared:
        plot = plots.interval_plot((c.delta, c.low, c.high), domain=shared, label=f"change of {metric}")
        rows.append({"value": value, "c": c, "told": wording.told(c), "plot": Markup(plot)})
    return {"metric": metric, "rows": rows}


def _sample_card(sample: Judged, evidence: Evidence, metric: str | None) -> dict[str, Any]:
    """A sample with the scores that differ; the main metric's also where it does not."""
    lines = []
    for name in sorted(sample.scores, key=lambda m: m != metric):
        baseline, tuned = sample.scores[name]
        c = evidence.evaluation.metrics.get(name)
        if c is None or baseline is None or tuned is None or (tuned == baseline and name != metric):
            continue
        better = (tuned > baseline) == c.higher_is_better
        word = "same" if tuned == baseline else "better" if better else "worse"
        before, after = wording.pair(baseline, tuned)
        lines.append({"metric": name, "baseline": before, "tuned": after, "word": word})
    return {"sample": sample, "scores": lines}
