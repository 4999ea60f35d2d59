"""Dedupe: drop copies of conversations, the first is kept; a held-out copy is kept before a training copy.

Exact copies have the same turns but for white space, a pair's rejected answer among them, the same tools and rating.
Near-duplicates have the same system text, tools and rating and, where answers are labels, the same label. Rows that
share only the prompt are no copies of each other.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from luthier.conversation import SIDES, Conversation
from luthier.prepare.engine import HERE, Engine
from luthier.prepare.near import first_of_each
from luthier.prepare.table import NO_SIDE, Numbers, Rows, beside, firsts

KEPT_FIRST = (SIDES.index("test"), SIDES.index("validation"), SIDES.index("train"), NO_SIDE)
"""Of copies on several sides."""


def dedupe(
    rows: Rows, numbers: Numbers, similarity: float, labelled: bool, engine: Engine = HERE
) -> tuple[Numbers, Counter[str]]:
    """The rows without copies, and how many were dropped, by reason."""
    ranks = np.array([KEPT_FIRST.index(side) for side in range(NO_SIDE, len(SIDES))])
    order = numbers[np.lexsort((numbers, ranks[rows.side[numbers] - NO_SIDE]))]
    kept = order[firsts(*(key[order] for key in rows.exact))]
    dropped = Counter({"exact copy": len(order) - len(kept)})
    if 0 < similarity < 1:
        n = len(kept)
        kept = kept[first_of_each(rows, kept, partial(_compared, labelled), similarity, engine)]
        dropped["near-duplicate"] = n - len(kept)
    return np.sort(kept), dropped


def _compared(labelled: bool, conversation: Conversation) -> tuple[str, str]:
    """The turns; only rows that are equal in what else there is can be near-duplicates."""
    turns = (m.text for m in (*conversation.messages, *conversation.rejected) if m.role != "system")
    label = conversation.answer if labelled else ""
    return "\n".join(turns), "\n".join([*_system(conversation), label, beside(conversation)])


def _system(conversation: Conversation) -> list[str]:
    # A system text that all rows share would make short rows look alike.
    return [m.content for m in conversation.messages if m.role == "system"]
