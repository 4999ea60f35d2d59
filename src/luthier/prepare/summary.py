"""What is told of a preparation: the report's figures, and rows to show, without personal data."""

from __future__ import annotations

import math

import numpy as np

from luthier.conversation import SIDES, Conversation
from luthier.prepare.audit import Audit
from luthier.prepare.clean import Cleaning
from luthier.prepare.detect import task_of
from luthier.prepare.formats import Format
from luthier.prepare.rows import Item
from luthier.prepare.table import Numbers, Rows
from luthier.records import AuditReport, Augmentation, Checked, Cleaned, Histogram, Rewritten, WorthALook

SHOWN_ROWS = 5
"""On the data page."""


def report_of(
    format: Format,
    rows: Rows,
    numbers: Numbers,
    made: list[Item],
    augmentation: tuple[Augmentation, ...],
    checked: tuple[tuple[Checked, ...], tuple[WorthALook, ...]],
    audit: Audit,
    hashes: dict[str, str],
    cleaning: Cleaning,
) -> AuditReport:
    """The audit's report.

    Args:
        made: Rows of the training side that were made, by `augmentation`.
        checked: What checks found, and the rows most worth a look.
        hashes: Source file -> SHA-256.
    """
    labels = {c.answer for c in rows.each(numbers) if c.prompt} if format.name == "classification" else set()
    return AuditReport(
        task=task_of(format, bool(rows.has_several_answers[numbers].any())),
        labels=tuple(sorted(labels)),
        format=format.name,
        fields=format.fields,
        steps=tuple(audit.steps),
        sides={side: len(rows.on(side, numbers)) + (len(made) if side == "train" else 0) for side in SIDES},
        counts=dict(sorted(audit.counts.items())),
        findings=tuple(audit.findings),
        tokens=_tokens(rows, rows.on("train", numbers), made),
        lengths=_lengths(rows, numbers),
        augmentation=tuple(_hidden(one, cleaning) for one in augmentation),
        hashes=hashes,
        cleaning=cleaning.done(),
        checks=checked[0],
        worth_a_look=checked[1],
        notes=(*map(_told, cleaning.done()), *map(cleaning.hiding.text, audit.notes)),
    )


def _told(done: Cleaned) -> str:
    before, after = done.characters
    counted = "".join(f"; {n:,} {what}" for what, n in done.counts.items())
    changed = f"{done.cleaner} changed {done.texts:,} texts of {done.rows:,} rows"
    return f"{changed}: {before:,} characters became {after:,}{counted}"


def _hidden(augmentation: Augmentation, cleaning: Cleaning) -> Augmentation:
    """With samples that show no personal data."""
    hide = cleaning.hiding.text
    samples = [Rewritten(source=s.source, before=hide(s.before), after=hide(s.after)) for s in augmentation.samples]
    return augmentation.model_copy(update={"samples": tuple(samples)})


def sample_of(rows: Rows, train: Numbers, seed: int, cleaning: Cleaning) -> list[Conversation]:
    """Some of the training rows, as they may be shown."""
    drawn = np.random.default_rng(seed).permutation(train)[:SHOWN_ROWS]
    return [_shown(conversation, cleaning) for conversation in rows.each(np.sort(drawn))]


def _shown(conversation: Conversation, cleaning: Cleaning) -> Conversation:
    """Without personal data."""
    hide = cleaning.hiding
    messages = [m.model_copy(update={"content": hide.text(m.text), "tool_calls": ()}) for m in conversation.messages]
    tags = hide.value(conversation.tags)
    return conversation.model_copy(update={"messages": tuple(messages), "tags": tags})


def _lengths(rows: Rows, numbers: Numbers) -> tuple[Histogram, ...]:
    found = []
    for name, lengths in (("tokens of a row", rows.n_tokens), ("learned tokens of a row", rows.n_learned)):
        longest = int(lengths[numbers].max(initial=0))
        halves = math.ceil(2 * math.log2(longest + 1)) if longest else 1
        edges = np.unique(np.round(2 ** (np.arange(halves + 1) / 2)).astype(np.int64))
        edges = edges[max(np.searchsorted(edges, lengths[numbers].min(initial=longest), "right") - 1, 0) :]
        counts = {str(s): tuple(np.histogram(lengths[rows.on(s, numbers)], edges)[0].tolist()) for s in SIDES}
        found.append(Histogram(name=name, edges=tuple(edges.tolist()), counts=counts))
    return tuple(found)


def _tokens(rows: Rows, train: Numbers, made: list[Item]) -> dict[str, float]:
    n_tokens = np.append(rows.n_tokens[train], [item.n_tokens for item in made]).astype(np.int64)
    return {
        "n_tokens": int(n_tokens.sum()),
        "n_learned": int(rows.n_learned[train].sum()) + sum(item.n_learned for item in made),
        "longest": int(n_tokens.max(initial=0)),
        "mean": float(n_tokens.mean()) if len(n_tokens) else 0.0,
    }
