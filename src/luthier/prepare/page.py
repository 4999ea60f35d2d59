"""The data page: what was read, what became of it, and which rows are worth a look, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from luthier.conversation import Conversation
from luthier.page import plots, templates
from luthier.records import AuditReport, Histogram

LONGEST_TEXT = 1_200
"""Characters of a message that are shown."""
ROWS_SHOWN = 12
"""Rows of a table shown at once; the others unfold."""


def data_page(name: str, audit: AuditReport, sample: Sequence[Conversation]) -> str:
    """One HTML file. `sample`: training rows to show, without personal data."""
    page = templates(Path(__file__).with_name("templates")).get_template("data.html")
    return page.render(
        name=name,
        audit=audit,
        n_read=audit.steps[0].n_in,
        n_kept=sum(audit.sides.values()),
        charts=[_chart(lengths) for lengths in audit.lengths],
        sample=sample,
        LONGEST_TEXT=LONGEST_TEXT,
        ROWS_SHOWN=ROWS_SHOWN,
    )


def _chart(lengths: Histogram) -> Markup:
    held_out = [sum(n) for n in zip(lengths.counts["validation"], lengths.counts["test"], strict=True)]
    bars = [plots.Bars("training", lengths.counts["train"], "tuned"), plots.Bars("held out", held_out, "base")]
    return Markup(
        plots.histogram(lengths.edges, [b for b in bars if any(b.counts)], x_label=lengths.name, label=lengths.name)
    )
