"""Strata: groups of rows dealt to sides so that each class has the same share of a side as of all rows.

Classes are dealt from the rarest to the commonest, as in iterative stratification (Sechidis, Tsoumakas & Vlahavas
2011); a group goes to a side where that brings the counts of its classes nearer, in squares, to what the side should
have of them. Where each group is of one class, no class misses its share of a side by more than its largest group.
Knows nothing of rows and their texts.

Shapes: G groups, C classes, S sides; P pairs of a group and a class that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LEARNED = -1


@dataclass(frozen=True, slots=True)
class Strata:
    """How many rows of each class each group holds."""

    starts: Ints
    """(G + 1,) Where the pairs of each group begin."""
    classes: Ints
    """(P,)"""
    counts: Ints
    """(P,)"""
    totals: Ints
    """(C,)"""

    @classmethod
    def of(cls, group_of: Ints, class_of: Ints) -> Strata:
        """Of n rows, with group and class (n,) of each, both counted from 0."""
        totals = np.bincount(class_of)
        pairs, counts = np.unique(group_of * len(totals) + class_of, return_counts=True)
        groups, classes = np.divmod(pairs, len(totals))
        return cls(np.searchsorted(groups, np.arange(groups[-1] + 2)), classes, counts, totals)

    def held(self, group: int) -> tuple[Ints, Ints]:
        """The classes of a group, and how many rows of each."""
        pairs = slice(self.starts[group], self.starts[group + 1])
        return self.classes[pairs], self.counts[pairs]

    def ordered(self, order: Ints) -> tuple[Ints, Ints]:
        """The groups, by their rarest classes and within each as they lie in `order`; and that class of each group."""
        by_rarity = np.lexsort((np.arange(len(self.totals)), self.totals))
        rank = np.argsort(by_rarity)
        rarest = np.minimum.reduceat(rank[self.classes], self.starts[:-1])  # (G,)
        return order[np.argsort(rarest[order], kind="stable")], by_rarity[rarest]

    def on(self, chosen: NDArray[np.bool_]) -> Ints:
        """(C,) Rows of each class in the chosen groups (G,)."""
        of_pair = np.repeat(chosen, np.diff(self.starts))
        return np.bincount(self.classes[of_pair], self.counts[of_pair], len(self.totals)).astype(np.int64)


def deal(strata: Strata, order: Ints, fractions: Sequence[float]) -> Ints:
    """(G,) For each group the number of its held-out side, or LEARNED; groups that are not in `order` too.

    The first group of each class is for training: what is learned of no row cannot be asked. What rounding leaves of a
    class is made up for by the next, half a row at most, so that sides of many small classes have their size too.
    """
    placed = np.full(len(strata.starts) - 1, LEARNED)
    need = np.outer(fractions, strata.totals)  # (S, C) rows
    trained = np.zeros(len(strata.totals), dtype=bool)
    groups, rarest = strata.ordered(order)
    before = None
    for g in groups:
        if (now := rarest[g]) != before:
            need[:, now] += 0.0 if before is None else need[:, before].clip(-0.5, 0.5)
            before = now
        classes, counts = strata.held(g)
        nearer = 2 * need[:, classes] @ counts >= counts @ counts  # (S,)
        nearer &= 2 * need[:, now] >= counts[classes == now]  # what it lacks of the others, later groups may have
        if trained[classes].all() and nearer.any():
            placed[g] = nearer.argmax()
            need[placed[g], classes] -= counts
        else:
            trained[classes] = True
    return placed


def folded(strata: Strata, order: Ints, k: int) -> Ints:
    """(G,) For each group its fold, from 0 to k - 1; no fold is empty where there are k groups."""
    fold = np.full(len(strata.starts) - 1, -1)
    need = np.tile(strata.totals, (k, 1))  # (k, C) k times the rows: whole numbers, so that ties are ties
    sizes = np.zeros(k)
    for g in strata.ordered(order)[0]:
        classes, counts = strata.held(g)
        fold[g] = np.lexsort((sizes, -(need[:, classes] @ counts)))[0]
        need[fold[g], classes] -= k * counts
        sizes[fold[g]] += counts.sum()
    return fold
