"""Split: each conversation goes to one side, and with it everything that it could leak to.

Families, and prompts that are nearly the same, stay together. The draw is a hash of the seed and of each
group's own key: it depends neither on the order of the rows nor on Python's hash. Sides that are given are
taken as given.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from luthier.conversation import SIDES, Conversation, Side
from luthier.errors import DataError
from luthier.prepare.rows import Item
from luthier.settings import Split
from luthier.similar import Groups, join_similar


def split(items: Sequence[Item], how: Split, seed: int) -> tuple[list[Item], list[str]]:
    """The items, each with a side, and notes on what was decided.

    Raises DataError LU-D106 where the sides that are asked for cannot be filled.
    """
    given = Counter(item.side for item in items if item.side)
    fractions: dict[Side, float] = {"validation": how.valid_fraction, "test": how.test_fraction}
    asked = {side: fraction for side, fraction in fractions.items() if fraction and not given[side]}
    pool = [i for i, item in enumerate(items) if item.side in (None, "train")]
    if not pool:
        advice = "add a source with split: train"
        raise DataError.of("LU-D106", "data.sources", "no row is for training: all are given to held-out sides", advice)
    notes = [f"sides given: {', '.join(f'{given[s]} {s}' for s in SIDES if given[s])}"] if given else []
    if not asked:
        rest = sum(item.side is None for item in items)
        notes += [f"{rest} rows of no given side are for training"] if rest else []
        return [replace(item, side=item.side or "train") for item in items], notes
    drawn, drawing = _draw([items[i].conversation for i in pool], asked, how.near_duplicate_similarity, seed)
    sides = dict(zip(pool, drawn, strict=True))
    return [replace(item, side=sides.get(i, item.side)) for i, item in enumerate(items)], notes + drawing


def _draw(
    pool: list[Conversation], asked: dict[Side, float], similarity: float, seed: int
) -> tuple[list[Side], list[str]]:
    """A side for each conversation of the pool: the sides asked for, by their fractions, and train."""
    groups = group(pool, similarity)
    n_sides = len(asked) + 1
    if len(groups) < n_sides or sum(asked.values()) >= 1:
        found = (
            f"{n_sides} sides cannot be drawn from {len(pool)} rows, which make {len(groups)} groups of unlike prompts"
        )
        advice = "add data, lower the fractions, raise near_duplicate_similarity, or give the sources their sides"
        raise DataError.of("LU-D106", "data.split", found, advice)
    keys = [min(pool[i].family for i in members) for members in groups]
    order = sorted(range(len(groups)), key=lambda g: draw_key(seed, keys[g]))
    placed = _place([len(members) for members in groups], order, asked, len(pool))
    side_of = {i: placed[g] for g, members in enumerate(groups) for i in members}
    largest = max(map(len, groups))
    note = f"drawn from {len(pool)} rows: {' and '.join(asked)}, by {len(groups)} groups"
    return [side_of[i] for i in range(len(pool))], [
        f"{note} of families and near-duplicate prompts; the largest holds {largest} rows"
    ]


def _place(sizes: list[int], order: list[int], asked: dict[Side, float], n: int) -> dict[int, Side]:
    """Group -> side: in the drawn order, each group goes where it still fits, else to train."""
    room = {side: max(1, round(fraction * n)) for side, fraction in asked.items()}
    placed: dict[int, Side] = {}
    for g in order:
        placed[g] = next((side for side in room if sizes[g] <= room[side]), "train")
        if placed[g] in room:
            room[placed[g]] -= sizes[g]
    for side in ("train", *asked):
        if side not in placed.values():  # every group was too large for it, or fitted elsewhere
            n_groups = Counter(placed.values())
            richest = max(SIDES, key=lambda s: n_groups[s])
            placed[min((g for g in order if placed[g] == richest), key=lambda g: sizes[g])] = side
    return placed


def group(conversations: Sequence[Conversation], similarity: float) -> list[list[int]]:
    """Positions that must stay on one side: of one family, or joined by prompts that are nearly the same."""
    groups = Groups(len(conversations))
    first: dict[str, int] = {}
    for i, conversation in enumerate(conversations):
        groups.join(i, first.setdefault(conversation.family, i))
    join_similar(groups, [c.asked_text for c in conversations], similarity)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(len(conversations)):
        members[groups.root(i)].append(i)
    return list(members.values())


def draw_key(seed: int, key: str) -> bytes:
    """A place in a random order that is the same everywhere."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def limit(items: Sequence[Item], at_most: int, seed: int) -> tuple[list[Item], Counter[str]]:
    """At most so many items of each side, drawn by seed, in their order; and how many were left out."""
    by_side: defaultdict[str | None, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        by_side[item.side].append(i)
    kept = set()
    for members in by_side.values():
        kept.update(sorted(members, key=lambda i: draw_key(seed, "limit:" + items[i].conversation.id))[:at_most])
    return [items[i] for i in sorted(kept)], Counter({"over data.limit": len(items) - len(kept)})
