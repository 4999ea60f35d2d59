"""Dedupe: drop copies of conversations, the first is kept; a held-out copy is kept before a training copy.

Exact copies have the same turns but for white space. Near-duplicates have the same system text and, where
answers are labels, the same label. Rows that share only the prompt are no copies of each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.conversation import Conversation
from luthier.prepare.rows import Item
from luthier.similar import SimilarTexts, normalised

KEPT_FIRST = ("test", "validation", "train", None)
"""Of copies on several sides."""


def dedupe(items: Sequence[Item], similarity: float, labelled: bool) -> tuple[list[Item], Counter[str]]:
    """The items without copies, in their order, and how many were dropped, by reason."""
    dropped: Counter[str] = Counter()
    exact: dict[object, int] = {}
    order = sorted(range(len(items)), key=lambda i: (KEPT_FIRST.index(items[i].side), i))
    for i in order:
        exact.setdefault(exact_key(items[i].conversation), i)
    kept = list(exact.values())
    dropped["exact copy"] = len(items) - len(kept)
    if 0 < similarity < 1:
        n = len(kept)
        kept = _without_similar([items[i].conversation for i in kept], kept, similarity, labelled)
        dropped["near-duplicate"] = n - len(kept)
    return [items[i] for i in sorted(kept)], dropped


def _without_similar(
    conversations: list[Conversation], kept: list[int], similarity: float, labelled: bool
) -> list[int]:
    index = SimilarTexts(
        ["\n".join(m.text for m in c.messages if m.role != "system") for c in conversations],
        similarity,
        space=["\n".join([*_system(c), c.answer if labelled else ""]) for c in conversations],
    )
    first: list[int] = []
    for i in range(len(conversations)):
        if next(index.matches(i), None) is None:
            index.add(i)
            first.append(kept[i])
    return first


def _system(conversation: Conversation) -> list[str]:
    # A system text that all rows share would make short rows look alike.
    return [m.content for m in conversation.messages if m.role == "system"]


def exact_key(conversation: Conversation) -> tuple[tuple[str, str], ...]:
    """Equal for exact copies."""
    return tuple((m.role, normalised(m.text)) for m in conversation.messages)
