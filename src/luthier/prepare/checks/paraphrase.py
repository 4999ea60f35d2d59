"""Paraphrases: of many texts, those that say in other words what another one says.

A cosine of sentence embeddings alone does not tell: questions on one topic are as near as paraphrases are. Two texts
are taken for paraphrases if their numbers and negations are the same, and their cosine

- stands out: it is greater by a margin than those of both to their next neighbours (margin-based mining, Artetxe and
  Schwenk 2019; here the difference, and of the nearest only), or
- is so great that little but the wording can differ.

Misses the paraphrases that are asked among many of their kind, and takes for one what differs in one word that is
neither a number nor a negation: `benchmarks/checks_meaning.py` has the curve. English.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from luthier.embed import embed
from luthier.prepare.checks.vectors import Floats, Places, nearest

NEXT = 4
"""Neighbours that a pair is held against."""
MARGIN, LEAST, SURE = 0.15, 0.70, 0.93
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NOT = re.compile(r"\b(?:no|not|never|without|cannot|nor|none|neither)\b|n['’]t\b", re.IGNORECASE)


class Pair(NamedTuple):
    """Text `i` of the first list, and text `j` of the second, or of the same."""

    i: int
    j: int
    cosine: float


def across(texts: Sequence[str], others: Sequence[str], least: float = LEAST) -> list[Pair]:
    """Each text that is a paraphrase of the nearest of the others, with it; at least six others."""
    vectors, known = embed(texts), embed(others)
    if len(others) < NEXT + 2 or not texts:
        return []
    cosines, places = nearest(vectors, known, NEXT + 1)
    partners, at = np.unique(places[:, 0], return_inverse=True)
    theirs, around = nearest(known[partners], known, NEXT + 1)
    stands = _stands_out(cosines, _next(theirs, around, partners)[at])
    return [
        Pair(i, j, float(cosines[i, 0]))
        for i, j in enumerate(places[:, 0].tolist())
        if _alike(cosines[i, 0], stands[i], least) and _fixed(texts[i]) == _fixed(others[j])
    ]


def within(texts: Sequence[str], least: float = LEAST) -> list[Pair]:
    """Each two that are paraphrases and each other's nearest, the first before the second; of at least six."""
    if len(texts) < NEXT + 2:
        return []
    vectors = embed(texts)
    cosines, places = nearest(vectors, vectors, NEXT + 1, itself=True)
    stands = _stands_out(cosines, cosines[places[:, 0], 1:].mean(axis=1))
    return [
        Pair(i, j, float(cosines[i, 0]))
        for i, j in enumerate(places[:, 0].tolist())
        if i < j
        and places[j, 0] == i
        and _alike(cosines[i, 0], stands[i], least)
        and _fixed(texts[i]) == _fixed(texts[j])
    ]


def _next(cosines: Floats, places: Places, itself: Places) -> Floats:
    """(n,) Mean cosine of each to the nearest that are not itself."""
    found: Floats = np.nanmean(np.where(places == itself[:, None], np.nan, cosines), axis=1)
    return found


def _stands_out(cosines: Floats, theirs: Floats) -> Floats:
    """(n,) By how much the nearest is nearer than the next of both are, given the cosines of the one, greatest first,
    and the other's mean."""
    found: Floats = cosines[:, 0] - (cosines[:, 1:].mean(axis=1) + theirs) / 2
    return found


def _alike(cosine: float, stands_out: float, least: float) -> bool:
    return cosine > SURE or (cosine > least and stands_out > MARGIN)


def _fixed(text: str) -> tuple[list[str], bool]:
    """What a paraphrase keeps: its numbers, and whether something is denied."""
    return sorted(NUMBER.findall(text)), NOT.search(text) is not None
