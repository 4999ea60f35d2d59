"""The report: one page for people, one JSON for programs, both from the same evidence.

The page is a single HTML file without scripts or requests, readable on a phone, on paper, in the dark. All
text from data is escaped and its invisible characters are shown. This module chooses and orders, with `sections`
and `labels` for what is below the metrics; the words are in `wording`, the drawings in `plots`, the look in
`templates/`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.page import plots, templates, words
from luthier.recipe import to_yaml
from luthier.records import Comparison, RuleResult
from luthier.release import sections, wording
from luthier.release.evidence import (
    Evidence,
    claims,
    drawn_samples,
    largest_gains,
    main_metric,
    main_metrics,
    method,
    not_measured,
    outcome_of,
    worst_regressions,
)
from luthier.release.failures import kinds_of_failure
from luthier.release.gate import limit
from luthier.release.labels import labels_section
from luthier.release.learning import in_words, learning

LONGEST_TEXT = 20_000
"""Characters of one prompt or answer on the page; the run folder has the rest."""
ROWS_SHOWN = 12
"""Rows of a table shown at once; the others unfold."""
CARDS_SHOWN = 5
"""Samples of one list shown at once; the others unfold."""
METRICS_SHOWN = 6
"""Metrics shown at once, and all on which a rule stands; the others unfold."""
LISTED = 10
"""Confusions of one model shown at once; the others unfold."""


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
        "failures": [asdict(kind) for kind in kinds_of_failure(evidence.evaluation)],
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
    evaluation, metric = evidence.evaluation, main_metric(evidence)
    shown_samples = {
        "worst": worst_regressions(evaluation, metric),
        "best": largest_gains(evaluation, metric),
        "samples": drawn_samples(evaluation, evidence.recipe.seed),
    }
    page = templates(Path(__file__).with_name("templates")).get_template("report.html")
    return page.render(
        e=evidence,
        method=method(evidence.recipe),
        headline=headline(evidence),
        found=found(evidence),
        rules=[_rule_row(rule) for rule in evidence.verdict.rules],
        metrics=_metric_rows(evidence),
        claims=claims(evaluation),
        labels=labels_section(evaluation),
        curves=_curves(evidence),
        slices=sections.slices(evidence),
        discovered=sections.discovered(evaluation),
        clean=sections.clean(evaluation),
        suites=sections.suite_sections(evidence),
        failures=sections.failures(evaluation),
        main_metric=metric,
        **{name: [sections.sample_card(s, evaluation, metric) for s in of] for name, of in shown_samples.items()},
        not_measured=not_measured(evidence),
        tokens=[(key, words.number(n)) for key, n in evidence.audit.tokens.items()],
        recipe_yaml=to_yaml(evidence.recipe),
        w=wording,
        LONGEST_TEXT=LONGEST_TEXT,
        ROWS_SHOWN=ROWS_SHOWN,
        CARDS_SHOWN=CARDS_SHOWN,
        LISTED=LISTED,
    )


def headline(evidence: Evidence) -> str:
    """What the verdict says, in a sentence or two."""
    rules = evidence.verdict.rules
    failed, undecided = (sum(r.outcome == o for r in rules) for o in ("FAIL", "UNDERPOWERED"))
    total = words.count(len(rules), "rule")
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


def _metric_rows(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """The metrics of the test set, those of the rules first; `folded` are those that unfold."""
    ruled = {rule.comparison.metric for rule in evidence.verdict.rules}
    ordered = sorted(main_metrics(evidence.evaluation), key=lambda c: c.metric not in ruled)
    rows = [_metric_row(c) | {"outcome": outcome_of(evidence.verdict, c.metric)} for c in ordered]
    n = max(METRICS_SHOWN, sum(c.metric in ruled for c in ordered))
    return {"shown": rows[:n], "folded": rows[n:]}


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

    seen = learning(training)
    return {
        "wide": chart(920, 340),
        "narrow": chart(360, 280),
        "best": best,
        "overfitting": seen.overfitting is not None,
        "told": in_words(seen),
    }
