"""Split: each conversation goes to one side, and with it everything that it could leak to.

Families, and prompts that are nearly the same, stay together. The draw is a hash of the seed and of each
group's own key: it depends neither on the order of the rows nor on Python's hash. Sides that are given are
taken as given.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Side
from luthier.errors import DataError
from luthier.prepare.table import NO_SIDE, Numbers, Rows
from luthier.settings import Split
from luthier.similar import Groups, join_equal, join_similar

TRAIN = SIDES.index("train")


def split(rows: Rows, numbers: Numbers, how: Split, seed: int) -> list[str]:
    """Give each row its side; notes on what was decided.

    Raises DataError LU-D106 where the sides that are asked for cannot be filled.
    """
    sides = rows.side[numbers]
    given = {side: int((sides == n).sum()) for n, side in enumerate(SIDES)}
    fractions: dict[Side, float] = {"validation": how.valid_fraction, "test": how.test_fraction}
    asked = {side: fraction for side, fraction in fractions.items() if fraction and not given[side]}
    pool = numbers[(sides == NO_SIDE) | (sides == TRAIN)]
    if not len(pool):
        advice = "add a source with split: train"
        raise DataError.of("LU-D106", "data.sources", "no row is for training: all are given to held-out sides", advice)
    notes = [f"sides given: {', '.join(f'{given[s]} {s}' for s in SIDES if given[s])}"] if any(given.values()) else []
    if asked:
        return notes + _draw(rows, pool, asked, how.near_duplicate_similarity, seed)
    rest = numbers[sides == NO_SIDE]
    rows.side[rest] = TRAIN
    return notes + ([f"{len(rest)} rows of no given side are for training"] if len(rest) else [])


def _draw(rows: Rows, pool: Numbers, asked: dict[Side, float], similarity: float, seed: int) -> list[str]:
    """Draw a side for each row of the pool: the sides asked for, by their fractions, and train."""
    group_of, n_groups = group(rows, pool, similarity)
    n_sides = len(asked) + 1
    if n_groups < n_sides or sum(asked.values()) >= 1:
        found = f"{n_sides} sides cannot be drawn from {len(pool)} rows, which make {n_groups} groups of unlike prompts"
        advice = "add data, lower the fractions, raise near_duplicate_similarity, or give the sources their sides"
        raise DataError.of("LU-D106", "data.split", found, advice)
    keys = [""] * n_groups  # the least name of a family in each group
    for g, conversation in zip(group_of.tolist(), rows.each(pool), strict=True):
        keys[g] = min(keys[g] or conversation.family, conversation.family)
    draws = np.fromiter((int.from_bytes(draw_key(seed, key)[:8], "big") for key in keys), np.uint64)
    sizes = np.bincount(group_of, minlength=n_groups)
    rows.side[pool] = _place(sizes, np.argsort(draws), asked, len(pool))[group_of]
    note = f"drawn from {len(pool)} rows: {' and '.join(asked)}, by {n_groups} groups"
    return [f"{note} of families and near-duplicate prompts; the largest holds {sizes.max()} rows"]


def _place(sizes: NDArray[np.int64], order: NDArray[np.int64], asked: dict[Side, float], n: int) -> NDArray[np.int8]:
    """(n_groups,) sides: in the drawn order, each group goes where it still fits, else to train."""
    room = {SIDES.index(side): max(1, round(fraction * n)) for side, fraction in asked.items()}
    placed = np.full(len(sizes), TRAIN, dtype=np.int8)
    for g in order:
        side = next((side for side in room if sizes[g] <= room[side]), None)
        if side is not None:
            placed[g] = side
            room[side] -= sizes[g]
    for side in (TRAIN, *room):
        if not (placed == side).any():  # every group was too large for it, or fitted elsewhere
            richest = np.bincount(placed, minlength=len(SIDES)).argmax()
            spare = order[placed[order] == richest]
            placed[spare[sizes[spare].argmin()]] = side
    return placed


def group(rows: Rows, numbers: Numbers, similarity: float) -> tuple[NDArray[np.int64], int]:
    """For each of the rows its group, in the order of their first rows, and how many groups there are.

    Rows of one group must stay on one side: they are of one family, or joined by prompts that are nearly the same.
    """
    groups = Groups(len(numbers))
    join_equal(groups, rows.family[numbers])
    first = join_equal(groups, rows.asked_text[numbers])
    if 0 < similarity < 1:
        join_similar(groups, (c.asked_text for c in rows.each(numbers[first])), first.tolist(), similarity)
    roots = np.array([groups.root(i) for i in range(len(numbers))], dtype=np.int64)
    found, group_of = np.unique(roots, return_inverse=True)
    return group_of, len(found)


def draw_key(seed: int, key: str) -> bytes:
    """A place in a random order that is the same everywhere."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def limit(rows: Rows, numbers: Numbers, at_most: int, seed: int) -> tuple[Numbers, Counter[str]]:
    """At most so many rows of each side, drawn by seed, in their order; and how many were left out."""
    kept = []
    for side in SIDES:
        members = rows.on(side, numbers)
        ids = [c.id for c in rows.each(members)] if len(members) > at_most else []
        order = sorted(range(len(ids)), key=lambda i: draw_key(seed, "limit:" + ids[i]))
        kept.append(members[order[:at_most]] if ids else members)
    found = np.sort(np.concatenate(kept))
    return found, Counter({"over data.limit": len(numbers) - len(found)})
