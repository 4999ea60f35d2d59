"""Rows that ask in other words what another row asks: training rows twice over, and leaks of held-out rows.

`paraphrase.py` says what a paraphrase is. Copies and near-duplicates across sides are LU-D039's, and not told here.
"""

from __future__ import annotations

import numpy as np

from luthier.conversation import SIDES
from luthier.embed import PACKAGE
from luthier.prepare.checks.contract import Found, Looked, Suspect, needs
from luthier.prepare.checks.paraphrase import LEAST, across, within
from luthier.prepare.checks.vectors import MOST_ROWS, drawn, texts_of, told
from luthier.prepare.table import firsts
from luthier.settings.section import Count, Fraction
from luthier.similar import shingles

CODE, LEAK = "LU-D178", "LU-D179"
ADVICE = "keep one of the two, and of a leak the held-out one"


@needs("meaning", PACKAGE)
def same_meaning(looked: Looked, least: Fraction = LEAST, near: Fraction = 0.8, rows: Count = MOST_ROWS) -> Found:
    """Args:
    least: Cosine of a pair that stands out from its neighbours.
    near: Pairs across sides whose shingles are at least this similar are known as leaks: as the recipe's
        `data.split.near_duplicate_similarity`.
    rows: At most so many of different prompts are looked at; held-out ones are half of them at most.
    """
    asked = looked.rows.asked_text[looked.numbers]
    all_train, all_rest = looked.on("train"), np.flatnonzero(looked.sides != SIDES.index("train"))
    all_train, all_rest = all_train[firsts(asked[all_train])], all_rest[firsts(asked[all_rest])]
    all_rest = all_rest[~np.isin(asked[all_rest], asked[all_train])]
    rest = drawn(all_rest, rows // 2, looked.seed)
    train = drawn(all_train, rows - len(rest), looked.seed)
    texts, held_out = texts_of(looked, train), texts_of(looked, rest)
    suspects = [
        _suspect(looked, train[pair.j], train[pair.i], pair.cosine / 2, CODE)
        for pair in within(texts, least)
        if _may_be(looked, train[pair.i], train[pair.j])
    ]
    leaks = [
        _suspect(looked, rest[pair.i], train[pair.j], pair.cosine, LEAK)
        for pair in across(held_out, texts, least)
        if _may_be(looked, rest[pair.i], train[pair.j]) and _jaccard(held_out[pair.i], texts[pair.j]) < near
    ]
    notes = told(len(train) + len(rest), len(all_train) + len(all_rest))
    if len(rest):
        notes.append(f"leak: {len(leaks)} of {len(rest)} held-out prompts seem to be asked in other words in train")
    return Found(suspects + leaks, CODE, ADVICE, notes=notes)


def _suspect(looked: Looked, place: np.int64, other: np.int64, score: float, code: str) -> Suspect:
    source = looked.rows[int(looked.numbers[other])].source
    why = f"asks in other words what {source}{' in train' * (code == LEAK)} asks"
    return Suspect(int(place), min(score, 1.0), why, code)  # a cosine is rounded


def _may_be(looked: Looked, one: np.int64, other: np.int64) -> bool:
    """Not of one family, whose rows are alike on purpose; and where answers are labels, of one label."""
    i, j = looked.numbers[one], looked.numbers[other]
    rows = looked.rows
    return bool(rows.family[i] != rows.family[j] and (not looked.labelled or rows.answer[i] == rows.answer[j]))


def _jaccard(one: str, other: str) -> float:
    a, b = set(shingles(one)), set(shingles(other))
    return len(a & b) / len(a | b)
