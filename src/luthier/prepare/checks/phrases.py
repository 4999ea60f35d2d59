"""Phrases of prompts: every run of one to four words, in how many rows it stands and which.

Odd characters are words: those of no width, letters of another alphabet within a word, whatever is no letter or digit.
Knows nothing of answers.

Shapes: n rows, T words of all of them, V different ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.checks.contract import Looked

Ints = NDArray[np.int64]
TOKEN = re.compile(r"[a-z0-9_]+|[^\Wa-z0-9_]+|[^\w \n\r\t]")
"""Of texts in lower case."""
LONGEST = 4
MOST_WORDS = 2_000_000
"""Of all prompts that are looked at; of larger sets a part is drawn. They take about 100 bytes of memory each."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows, in random order, and their words as numbers."""

    places: Ints
    """(n,) Of the rows in `Looked`."""
    words: list[str]
    """Number -> word."""
    ids: Ints
    """(T,) The words of all rows, one row after another."""
    rows: Ints
    """(T,) The row of each."""

    n_times: Ints
    """(V,) How often each word stands."""

    def __len__(self) -> int:
        return len(self.places)


def read_prompts(looked: Looked) -> Prompts:
    """Those with any word, up to MOST_WORDS of them."""
    numbers: dict[str, int] = {}
    places: list[int] = []
    ids: list[int] = []
    lengths: list[int] = []
    for place in np.random.default_rng(looked.seed).permutation(len(looked)):
        text = looked.rows[int(looked.numbers[place])].prompt_text
        of_row = [numbers.setdefault(word, len(numbers)) for word in TOKEN.findall(text.casefold())]
        if len(ids) + len(of_row) > MOST_WORDS:
            break
        if of_row:
            places.append(place)
            ids += of_row
            lengths.append(len(of_row))
    rows = np.repeat(np.arange(len(places)), lengths)
    of_all = np.array(ids, dtype=np.int64)
    return Prompts(np.array(places, dtype=np.int64), list(numbers), of_all, rows, np.bincount(of_all))


def each_phrase(prompts: Prompts, least: int, most: float) -> Iterator[tuple[Ints, Ints]]:
    """The words of each phrase that `least` to `most` rows hold, and those rows; the shorter phrases first."""
    key = np.zeros(len(prompts.ids), dtype=np.uint64)
    for length in range(1, min(LONGEST, len(prompts.ids)) + 1):
        ends = len(prompts.ids) - length + 1
        key = (key[:ends] * _MIX) ^ (prompts.ids[length - 1 :].astype(np.uint64) + np.uint64(1))  # wraps, as is meant
        key ^= key >> np.uint64(31)
        starts = np.flatnonzero(prompts.rows[:ends] == prompts.rows[length - 1 :])
        starts = starts[np.lexsort((prompts.rows[starts], key[starts]))]
        starts = starts[_changes(key[starts]) | _changes(prompts.rows[starts])]  # each row once
        bounds = np.append(np.flatnonzero(_changes(key[starts])), len(starts))
        sizes = np.diff(bounds)
        for i in np.flatnonzero((sizes >= least) & (sizes <= most)):
            at = starts[bounds[i] : bounds[i + 1]]
            yield prompts.ids[at[0] : at[0] + length], prompts.rows[at]


def _changes(values: NDArray[np.uint64] | Ints) -> NDArray[np.bool_]:
    """(n,) Whether each is another than the one before it."""
    found = np.ones(len(values), dtype=np.bool_)
    found[1:] = values[1:] != values[:-1]
    return found
