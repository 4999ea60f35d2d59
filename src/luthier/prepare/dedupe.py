"""Dedupe: drop copies of conversations, the first is kept; a held-out copy is kept before a training copy.

Exact copies have the same turns but for white space, a pair's rejected answer among them, the same tools and rating.
Near-duplicates have the same system text, tools and rating and, where answers are labels, the same label. Rows that
share only the prompt are no copies of each other.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from luthier.conversation import SIDES, Conversation
from luthier.prepare.table import NO_SIDE, Numbers, Rows, beside, firsts
from luthier.similar import SimilarTexts

KEPT_FIRST = (SIDES.index("test"), SIDES.index("validation"), SIDES.index("train"), NO_SIDE)
"""Of copies on several sides."""


def dedupe(rows: Rows, numbers: Numbers, similarity: float, labelled: bool) -> tuple[Numbers, Counter[str]]:
    """The rows without copies, and how many were dropped, by reason."""
    ranks = np.array([KEPT_FIRST.index(side) for side in range(NO_SIDE, len(SIDES))])
    order = numbers[np.lexsort((numbers, ranks[rows.side[numbers] - NO_SIDE]))]
    kept = order[firsts(*(key[order] for key in rows.exact))]
    dropped = Counter({"exact copy": len(order) - len(kept)})
    if 0 < similarity < 1:
        n = len(kept)
        kept = _without_similar(rows, kept, similarity, labelled)
        dropped["near-duplicate"] = n - len(kept)
    return np.sort(kept), dropped


def _without_similar(rows: Rows, order: Numbers, similarity: float, labelled: bool) -> Numbers:
    index = SimilarTexts(similarity)
    for conversation in rows.each(order):
        turns = (m.text for m in (*conversation.messages, *conversation.rejected) if m.role != "system")
        label = conversation.answer if labelled else ""
        index.append("\n".join(turns), "\n".join([*_system(conversation), label, beside(conversation)]))
    first = np.zeros(len(order), dtype=np.bool_)
    for i in range(len(order)):
        if next(index.matches(i), None) is None:
            index.add(i)
            first[i] = True
    return order[first]


def _system(conversation: Conversation) -> list[str]:
    # A system text that all rows share would make short rows look alike.
    return [m.content for m in conversation.messages if m.role == "system"]
