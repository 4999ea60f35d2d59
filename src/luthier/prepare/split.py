"""Split: each conversation goes to one side, and with it everything that it could leak to.

Families, and prompts that are nearly the same, stay together. The draw is a hash of the seed and of each
group's own key: it depends neither on the order of the rows nor on Python's hash. Sides that are given are
taken as given. `strata.py` keeps the shares of classes and makes folds, `when.py` goes by time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Conversation, Side
from luthier.errors import DataError, printable
from luthier.prepare.alike import join_alike
from luthier.prepare.engine import HERE, Engine
from luthier.prepare.near import asked_text, group_similar
from luthier.prepare.strata import Ints, Strata, deal, folded
from luthier.prepare.table import NO_SIDE, Numbers, Rows
from luthier.prepare.when import LEFT_OUT, parts, time_of
from luthier.settings import Split
from luthier.similar import Groups, join_equal

TRAIN = SIDES.index("train")
LISTED = 10


def split(rows: Rows, numbers: Numbers, how: Split, seed: int, engine: Engine = HERE) -> list[str]:
    """Give each row its side, or NO_SIDE to one that a split by time leaves out; notes on what was decided.

    Raises DataError LU-D106 where the sides that are asked for cannot be filled, ModelError LU-M002 where `cluster`
    needs a package.
    """
    sides = rows.side[numbers]
    given = {side: int((sides == n).sum()) for n, side in enumerate(SIDES)}
    test = 1 / how.folds if how.folds else how.test_fraction
    fractions: dict[Side, float] = {"validation": how.valid_fraction, "test": test}
    asked = {side: fraction for side, fraction in fractions.items() if fraction and not given[side]}
    pool = numbers[(sides == NO_SIDE) | (sides == TRAIN)]
    if not len(pool):
        advice = "add a source with split: train"
        raise DataError.of("LU-D106", "data.sources", "no row is for training: all are given to held-out sides", advice)
    if how.folds and given["test"]:
        found = f"{given['test']} rows are given to the test side, where each fold asks for its own"
        raise DataError.of("LU-D106", "data.split.folds", found, "leave those rows out, or the folds")
    notes = [f"sides given: {', '.join(f'{given[s]} {s}' for s in SIDES if given[s])}"] if any(given.values()) else []
    if asked:
        return notes + _draw(rows, pool, asked, how, seed, engine)
    rest = numbers[sides == NO_SIDE]
    rows.side[rest] = TRAIN
    return notes + ([f"{len(rest)} rows of no given side are for training"] if len(rest) else [])


def _draw(rows: Rows, pool: Numbers, asked: dict[Side, float], how: Split, seed: int, engine: Engine) -> list[str]:
    """Give each row of the pool a side: one of those asked for, by their fractions, or train."""
    group_of, n_groups = group(rows, pool, how.near_duplicate_similarity, how.cluster, engine)
    n_sides = max(len(asked) + 1, how.folds or 0)
    if n_groups < n_sides or sum(asked.values()) >= 1:
        found = f"{n_sides} sides cannot be drawn from {len(pool)} rows, which make {n_groups} groups of unlike prompts"
        raise _unfilled(found)
    if how.time:
        sides, notes = _by_time(rows, pool, asked, how.time, group_of)
    else:
        keys = [""] * n_groups  # the least name of a family in each group
        for g, conversation in zip(group_of.tolist(), rows.each(pool), strict=True):
            keys[g] = min(keys[g] or conversation.family, conversation.family)
        draws = np.fromiter((int.from_bytes(draw_key(seed, key)[:8], "big") for key in keys), np.uint64)
        of_group, notes = _by_seed(rows, pool, asked, how, group_of, np.argsort(draws))
        sides = of_group[group_of]
    if empty := [side for side in ("train", *asked) if not (sides == SIDES.index(side)).any()]:
        raise _unfilled(f"nothing is left for {' and '.join(empty)} of {len(pool)} rows; {'; '.join(notes)}")
    rows.side[pool] = sides
    done = f"divided by {printable(how.time)}" if how.time else "drawn"
    what = "families and near-duplicate prompts"
    what += f", and of prompts alike in meaning (cosine {how.cluster:g})" if how.cluster else ""
    note = f"{done} from {len(pool)} rows: {' and '.join(asked)}, by {n_groups} groups of {what}"
    return [f"{note}; the largest holds {np.bincount(group_of).max()} rows", *notes]


def _unfilled(found: str) -> DataError:
    advice = "add data, lower the fractions, raise near_duplicate_similarity, or give the sources their sides"
    return DataError.of("LU-D106", "data.split", found, advice)


def _by_seed(
    rows: Rows, pool: Numbers, asked: dict[Side, float], how: Split, group_of: Ints, order: Ints
) -> tuple[NDArray[np.int8], list[str]]:
    """(n_groups,) sides of the groups, which are drawn in this order; and notes."""
    sizes, notes = np.bincount(group_of), list[str]()
    if not how.stratify and not how.folds:
        return _place(sizes, order, asked, len(pool)), notes
    names, class_of = _classes(rows, pool, how.stratify)
    strata = Strata.of(group_of, class_of)
    sides = np.full(len(sizes), TRAIN, dtype=np.int8)
    if how.folds:
        test = folded(strata, order, how.folds) == how.fold
        sides[test] = SIDES.index("test")
        order, asked = order[~test[order]], {side: asked[side] for side in asked if side != "test"}
        notes.append(f"fold {how.fold} of {how.folds}, counted from 0, is the test side")
    if how.stratify:
        of_asked = np.array([*map(SIDES.index, asked), TRAIN], dtype=np.int8)
        fractions = [max(fraction, 1 / len(pool)) for fraction in asked.values()]
        sides[order] = of_asked[deal(strata, order, fractions)[order]]
        notes += _told(strata, names, sides, how)
    else:
        sides[order] = _place(sizes[order], np.arange(len(order)), asked, len(pool))
    return sides, notes


def _classes(rows: Rows, pool: Numbers, column: str | None) -> tuple[list[str], Ints]:
    """The names of the classes, sorted, and (n,) that of each row; one class where there is no column."""
    found: dict[str, int] = {}
    values = (_class(c, column) for c in rows.each(pool)) if column else ("" for _ in pool)
    class_of = np.fromiter((found.setdefault(value, len(found)) for value in values), np.int64, len(pool))
    names = sorted(found)
    rank = {name: n for n, name in enumerate(names)}
    return names, np.array([rank[name] for name in found])[class_of]


def _class(conversation: Conversation, column: str) -> str:
    value = conversation.tags.get(column, conversation.answer if column == "label" and conversation.prompt else None)
    return "" if value is None else str(value)


def _told(strata: Strata, names: list[str], sides: NDArray[np.int8], how: Split) -> Iterator[str]:
    """How well the classes' shares are kept, and which classes are on one side alone."""
    whole = strata.totals / strata.totals.sum()
    held = [strata.on(sides == side) for side in range(1, len(SIDES))]
    worst = max((float(np.abs(n / n.sum() - whole).max()) for n in held if n.sum()), default=0.0)
    kept = f"of a side and of all rows the shares of a class differ by at most {100 * worst:.2g} points"
    yield f"stratified by {printable(how.stratify or '')}: {len(names)} classes; {kept}"
    alone = [name for name, n in zip(names, np.bincount(strata.classes), strict=True) if n == 1]
    if alone:
        more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
        shown = ", ".join(printable(name, 60) or "no value" for name in alone[:LISTED]) + more
        fate = "each on one fold's test side, where nothing is learned of it" if how.folds else "for training alone"
        yield f"classes of a single group, {fate}: {shown}"


def _by_time(
    rows: Rows, pool: Numbers, asked: dict[Side, float], column: str, group_of: Ints
) -> tuple[NDArray[np.int8], list[str]]:
    """(n,) sides of the rows; and notes."""
    times = np.fromiter((time_of(c, column) for c in rows.each(pool)), np.float64, len(pool))
    part, cuts = parts(times, group_of, [max(1, round(fraction * len(pool))) for fraction in asked.values()])
    sides = np.array([TRAIN, *map(SIDES.index, asked), NO_SIDE], dtype=np.int8)[part]  # LEFT_OUT is the last
    notes = []
    for side, cut in zip(("train", *asked), cuts, strict=False):
        last = rows[int(pool[(times == cut).argmax()])].tags.get(column)
        notes.append(f"{side} ends with {printable(str(last), 40)}")
    left_out = int((part == LEFT_OUT).sum())
    why = "newer than the side of the oldest row of their group"
    return sides, [f"{', '.join(notes)}; {left_out} rows are left out ({left_out / len(pool):.1%}): {why}"]


def _place(sizes: Ints, order: Ints, asked: dict[Side, float], n: int) -> NDArray[np.int8]:
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


def group(
    rows: Rows, numbers: Numbers, similarity: float, cosine: float | None = None, engine: Engine = HERE
) -> tuple[Ints, int]:
    """For each of the rows its group, in the order of their first rows, and how many groups there are.

    Rows of one group must stay on one side: they are of one family, or joined by prompts that are nearly the same, or
    whose embeddings have this cosine. Raises ModelError LU-M002 for the latter where their package is missing.
    """
    groups = Groups(len(numbers))
    join_equal(groups, rows.family[numbers])
    first = join_equal(groups, rows.asked_text[numbers])
    if 0 < similarity < 1:
        roots = first[group_similar(rows, numbers[first], asked_text, similarity, engine)]
        for i, root in zip(first.tolist(), roots.tolist(), strict=True):
            groups.join(i, root)
    if cosine:
        join_alike(groups, (c.asked_text for c in rows.each(numbers[first])), first.tolist(), cosine)
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
