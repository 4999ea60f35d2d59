"""Which of many texts another text shares runs of n words with: hashes in sorted arrays, 12 bytes a run.

Texts of fewer words than n have no run. Runs that stand in more than ten of the texts are forms that many fill in, and
tell of none (as Brown et al. 2020, appendix C). Knows nothing of rows.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from luthier.similar import WORD

MOST_TEXTS = 10
_MIX = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def runs(text: str, n: int) -> Hashes:
    """The distinct runs of n words, in lower case and without punctuation, as sorted 64-bit hashes."""
    words = WORD.findall(unicodedata.normalize("NFC", text).casefold())
    of_words = np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64)
    count = max(len(words) - n + 1, 0)
    found = np.zeros(count, dtype=np.uint64)
    for k in range(n if count else 0):  # wraps around, as is meant
        found = (found ^ of_words[k : k + count]) * _MIX
        found ^= found >> np.uint64(29)
    return np.unique(found)


class Runs:
    """The runs of some texts."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        found = [runs(text, n) for text in texts]
        keys = np.concatenate([*found, np.zeros(0, dtype=np.uint64)])
        lengths = np.array([len(one) for one in found], dtype=np.int64)
        texts_of = np.repeat(np.arange(len(found), dtype=np.int32), lengths)
        _, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.lexsort((texts_of, keys))[: len(keys)]
        order = order[counts[at[order]] <= MOST_TEXTS]
        self._keys, self._texts = keys[order], texts_of[order]
        self._seen = np.zeros(len(order), dtype=np.bool_)
        self.lengths: Places = np.bincount(self._texts, minlength=len(found))
        """(n_texts,) How many runs of each are told by."""

    def shared(self, text: str) -> tuple[Places, NDArray[np.float64]]:
        """The texts that share a run with this one, and which share of their runs it has. Remembers them as seen."""
        mine = runs(text, self.n)
        start, stop = np.searchsorted(self._keys, mine), np.searchsorted(self._keys, mine, side="right")
        met = start < stop
        if not met.any():
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        at = np.concatenate([np.arange(i, j) for i, j in zip(start[met], stop[met], strict=True)])
        self._seen[at] = True
        found, counts = np.unique(self._texts[at], return_counts=True)
        return found.astype(np.int64), counts / self.lengths[found]

    @property
    def seen(self) -> NDArray[np.float64]:
        """(n_texts,) The share of each one's runs that was shared by any."""
        return np.bincount(self._texts, self._seen, len(self.lengths)) / np.maximum(self.lengths, 1)
