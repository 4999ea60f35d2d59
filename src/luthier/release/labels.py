"""The report's section on labels: what was taken for what, each label's recall and precision, how sure is how right.

All of it comes from the counts and bins of the record. Intervals are Wilson's: samples are taken as independent.
It knows nothing of answers: what was read as a label was decided when the models were compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from luthier.page import plots, words
from luthier.page.plots import Span
from luthier.records import EvalReport, ReliabilityBin
from luthier.stats import wilson

MOST_IN_A_TABLE = 12
"""Labels of a confusion shown whole; of more, the most frequent confusions are listed."""
LISTED = 40
"""Confusions that are listed at most."""
SHADES = 8
WHOLE = (0.0, 1.0)

Counts = Sequence[Sequence[int]]
"""Rows are true labels, columns answered ones and, as the last, none."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """One model's shares for one label: (value, low, high), None where nothing was to be counted."""

    recall: Span | None
    precision: Span | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """A label that was taken for another, or for none, `n` times `of` those that it was due."""

    true: str
    answered: str | None
    n: int
    of: int


def label_scores(counts: Counts, i: int, confidence: float) -> LabelScores:
    """Of the samples of label `i` the share found; of the answers of label `i` the share right."""

    def share(n: int) -> Span | None:
        return (counts[i][i] / n, *wilson(counts[i][i], n, confidence)) if n else None

    return LabelScores(share(sum(counts[i])), share(sum(row[i] for row in counts)))


def confusions(labels: Sequence[str], counts: Counts) -> list[Confusion]:
    """What was taken for what, the most frequent first."""
    answered = [*labels, None]
    found = [
        Confusion(labels[i], answered[j], n, sum(row))
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if n and i != j
    ]
    return sorted(found, key=lambda c: -c.n)


def calibration_gap(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance of sureness and share right, each bin weighing as its answers."""
    return sum(b.n * abs(b.accuracy - b.sureness) for b in bins) / sum(b.n for b in bins)


def labels_section(evaluation: EvalReport) -> dict[str, Any] | None:
    """What the page shows, or None where the task has no labels."""
    if not evaluation.confusion:
        return None
    whole = len(evaluation.labels) <= MOST_IN_A_TABLE
    sides = {"base": evaluation.confusion["baseline"], "tuned": evaluation.confusion["tuned"]}
    return {
        "matrices": {side: _matrix(evaluation.labels, counts) for side, counts in sides.items()} if whole else {},
        "confusions": {side: confusions(evaluation.labels, counts)[:LISTED] for side, counts in sides.items()},
        "rows": _label_rows(evaluation),
        "axis": Markup(plots.axis_plot(WHOLE, label="share found, 0 to 1")),
        "absent": [name for name, row in zip(evaluation.labels, sides["tuned"], strict=True) if not sum(row)],
        "reliability": _reliability(evaluation),
    }


def _matrix(labels: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    """Rows of cells; the shade is the share of the row's samples, from 0 to SHADES."""
    rows = []
    for i, row in enumerate(counts):
        due = sum(row) or 1
        cells = [(n, -(-SHADES * n // due), "right" if i == j else "wrong") for j, n in enumerate(row)]
        rows.append({"label": labels[i], "cells": cells})
    return rows


def _label_rows(evaluation: EvalReport) -> list[dict[str, Any]]:
    """One row for each label that was due, the one that the tuned model finds least on top."""
    base, tuned = evaluation.confusion["baseline"], evaluation.confusion["tuned"]
    mistakes = confusions(evaluation.labels, tuned)
    rows = []
    for i, label in enumerate(evaluation.labels):
        before, after = (label_scores(counts, i, evaluation.confidence) for counts in (base, tuned))
        if before.recall is None or after.recall is None:
            continue
        plot = plots.pair_plot(before.recall, after.recall, domain=WHOLE, label=f"{label}: share found")
        rows.append(
            {
                "label": label,
                "n": sum(tuned[i]),
                "least": after.recall[0],
                "recall": (words.share(before.recall), words.share(after.recall)),
                "precision": tuple(
                    words.share(s.precision) if s.precision else "never answered" for s in (before, after)
                ),
                "instead": next((c for c in mistakes if c.true == label), None),
                "plot": Markup(plot),
            }
        )
    return sorted(rows, key=lambda row: (row["least"], -row["n"]))


def _reliability(evaluation: EvalReport) -> dict[str, Any] | None:
    bins = {side: evaluation.reliability.get(side, ()) for side in ("baseline", "tuned")}
    measured = {name: b for name, b in (("base", bins["baseline"]), ("tuned", bins["tuned"])) if b}
    if not measured:
        return None
    drawn = (
        [(b.sureness, (b.accuracy, b.accuracy_low, b.accuracy_high), b.n) for b in bins[side]]
        for side in ("baseline", "tuned")
    )
    return {
        "plot": Markup(plots.reliability_plot(*drawn, label="How sure, and how often right")),
        "gaps": {name: words.number(calibration_gap(b), 3) for name, b in measured.items()},
        "counts": {name: (sum(x.n for x in b), len(b)) for name, b in measured.items()},
        "bins": [
            (name, b, words.share((b.accuracy, b.accuracy_low, b.accuracy_high)))
            for name, of_side in measured.items()
            for b in of_side
        ],
        "ece": evaluation.metrics.get("ece"),
    }
