"""Similar texts: every pair of at least some Jaccard similarity of word shingles, exactly.

Prefix filtering (Chaudhuri et al. 2006; AllPairs, Bayardo et al. 2007): with each text's shingles in one
global order, rarest first, two texts of Jaccard similarity s share one of the first |x| - ceil(s |x|) + 1.
Only those are indexed, and each candidate is verified, so nothing is missed and nothing is invented; no
random draw is needed. `benchmarks/dedupe.py` measures this against MinHash.

Memory: the texts are not kept. Their shingles, as 64-bit hashes, lie in a temporary file; in memory are 4 bytes for
each indexed shingle, about 0.8 bytes a word at s = 0.8, and what other texts share of them.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 3
TINY = 1e-9  # against rounding: 0.8 * 5 must not need 5
# Letters of scripts written without spaces each count as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def normalised(text: str) -> str:
    """The text as a reader sees it: composed characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def shingles(text: str) -> list[str]:
    """Distinct runs of three words, in lower case and without punctuation; a shorter text is one shingle."""
    words = WORD.findall(unicodedata.normalize("NFC", text).casefold())
    if len(words) <= SHINGLE_WORDS:
        return [" ".join(words) or normalised(text)]
    runs = (" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))
    return list(dict.fromkeys(runs))


Hashes = NDArray[np.uint64]
SEEN = 1 << 20
"""Counters of how often shingles are met; those that share one only make the order a little worse."""
_HELD_BYTES = 16 << 20
"""So much of the shingles stays in memory before there is a file."""
_FIRST, _NONE = 0xF0000000, 0xFFFFFFFF
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


def hashed(text: str, space: str = "") -> Hashes:
    """(n,) The distinct shingles as sorted 64-bit hashes; equal ones of different spaces differ."""
    words = WORD.findall(unicodedata.normalize("NFC", text).casefold())
    if len(words) < SHINGLE_WORDS:
        runs = np.array([_hash64(" ".join(words) or normalised(text))], dtype=np.uint64)
    else:
        encoded = "\0".join(words).encode("utf-8", "surrogatepass").split(b"\0")  # at once: no word holds a NUL
        of_words = np.fromiter(map(zlib.crc32, encoded), np.uint64, len(words))
        n = len(words) - SHINGLE_WORDS + 1
        runs = np.zeros(n, dtype=np.uint64)
        for k in range(SHINGLE_WORDS):  # wraps around, as is meant
            runs = (runs ^ of_words[k : k + n]) * _MIX[k]
            runs ^= runs >> np.uint64(29)
    return np.unique(runs ^ np.uint64(_hash64(space)) if space else runs)


def rarest(found: Hashes, seen: NDArray[np.uint32], similarity: float) -> NDArray[np.uint32]:
    """Of a text's shingles those of which every similar text has one, rarest first, as keys of 32 bits.

    `seen`: (SEEN,) how often the shingles of all texts are met.
    """
    n = len(found) - math.ceil(similarity * len(found) - TINY) + 1
    first = found[np.lexsort((found, seen[found % SEEN]))[:n]]
    return (first >> np.uint64(32)).astype(np.uint32)


def similar_to_any(texts: Sequence[Hashes], similarity: float) -> Callable[[Hashes], bool]:
    """Whether another text may be similar to one of these: of its shingles it shares so many with them all."""
    known = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *texts]))

    def may_match(found: Hashes) -> bool:
        if not len(known):
            return False
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        return bool((known[at] == found).sum() >= similarity * len(found) - TINY)

    return may_match


def _hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class SimilarTexts:
    """Texts, spoken of by position, that are first all appended; then an index to which they are added one by one.

    `space`: texts of different spaces are never similar (e.g. of different system texts).
    """

    def __init__(self, similarity: float, texts: Iterable[str] = ()) -> None:
        assert 0 < similarity <= 1
        self.similarity = similarity
        self._file = tempfile.SpooledTemporaryFile(_HELD_BYTES)  # noqa: SIM115  closed with the index
        self._ends = array("Q")  # of each text's shingles in the file, counted in shingles
        self._seen = np.zeros(SEEN, dtype=np.uint32)
        self._starts: NDArray[np.int64] | None = None  # (n + 1,) of each text's buckets
        self._buckets = np.zeros(0, dtype=np.uint32)
        self._first: NDArray[np.int64]  # (n_buckets,) the text that was added first; -1: none
        self._more: dict[int, list[int]] = {}  # bucket -> those added after it
        for text in texts:
            self.append(text)

    def append(self, text: str, space: str = "") -> None:
        self.append_hashed(hashed(text, space))

    def append_hashed(self, found: Hashes) -> None:
        assert self._starts is None, "all texts come before the first question"
        self._file.seek(0, 2)
        self._file.write(found.tobytes())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(found))
        self._seen[found % SEEN] += 1

    def __len__(self) -> int:
        return len(self._ends)

    def _shingles(self, i: int) -> Hashes:
        start = self._ends[i - 1] if i else 0
        self._file.seek(8 * start)
        return np.frombuffer(self._file.read(8 * (self._ends[i] - start)), dtype=np.uint64)

    def _index(self) -> None:
        """For each text the buckets of its rarest shingles: of those that are another text's too."""
        keys, starts = array("I"), array("q", [0])
        for i in range(len(self)):
            keys.frombytes(rarest(self._shingles(i), self._seen, self.similarity).tobytes())
            starts.append(len(keys))
        held = np.frombuffer(keys, dtype=np.uint32) if keys else self._buckets
        n_buckets = _number(held)
        shared = np.flatnonzero(held != _NONE)
        of_text = np.searchsorted(shared, np.frombuffer(starts, dtype=np.int64))
        self.put(of_text, held[shared] - np.uint32(_FIRST), n_buckets)

    def put(self, starts: NDArray[np.int64], buckets: NDArray[np.uint32], n_buckets: int) -> None:
        """Put the texts into these buckets instead of those that they share: text i into `buckets[starts[i] :
        starts[i + 1]]`. Pairs that share none of them are not found."""
        self._starts, self._buckets = starts, buckets
        self._first = np.full(n_buckets, -1, dtype=np.int64)

    def buckets(self, i: int) -> list[int]:
        """What text `i` shares with others, rarest first; similar texts share a bucket."""
        if self._starts is None:
            self._index()
        assert self._starts is not None
        found: list[int] = self._buckets[self._starts[i] : self._starts[i + 1]].tolist()
        return found

    def similar_to(self, i: int) -> Callable[[int], bool]:
        """Whether another text is similar to text `i`."""
        mine = self._shingles(i)
        n = len(mine)
        least, most = self.similarity * n - TINY, n / self.similarity + TINY

        def similar(j: int) -> bool:
            n_theirs = self._ends[j] - (self._ends[j - 1] if j else 0)
            if not least <= n_theirs <= most:
                return False
            shared = len(np.intersect1d(mine, self._shingles(j), assume_unique=True))
            return shared >= self.similarity * (n + n_theirs - shared) - TINY

        return similar

    def jaccard(self, i: int, j: int) -> float:
        mine, theirs = self._shingles(i), self._shingles(j)
        shared = len(np.intersect1d(mine, theirs, assume_unique=True))
        return shared / (len(mine) + len(theirs) - shared)

    def add(self, i: int) -> None:
        for bucket in self.buckets(i):
            if self._first[bucket] < 0:
                self._first[bucket] = i
            else:
                self._more.setdefault(bucket, []).append(i)

    def matches(self, i: int) -> Iterator[int]:
        """The added texts that are similar to text `i`; which comes first depends on nothing but the texts' order."""
        candidates: dict[int, None] = {}
        for bucket in self.buckets(i):
            if (first := int(self._first[bucket])) >= 0:
                candidates[first] = None
                candidates.update(dict.fromkeys(self._more.get(bucket, ())))
        return filter(self.similar_to(i), candidates) if candidates else iter(())


def _number(keys: NDArray[np.uint32]) -> int:
    """Replace each key by _FIRST and the number of its bucket, by _NONE where no other place has it; how many buckets.

    By parts of the range and in place, so that what this needs beside the keys stays small. What replaces a key lies in
    the part that is done first.
    """
    n_buckets = 0
    parts = keys.view(np.uint8).reshape(-1, 4)[:, 3 if sys.byteorder == "little" else 0]
    for part in range(15, -1, -1):
        at = np.flatnonzero(parts >> 4 == part)
        if not len(at):
            continue
        at = at[np.argsort(keys[at], kind="stable")]
        same = np.concatenate([[False], keys[at][1:] == keys[at][:-1], [False]])
        begins = same[1:] & ~same[:-1]  # the first of several
        numbers = (np.cumsum(begins) - 1 + n_buckets + _FIRST).astype(np.uint32)
        keys[at] = np.where(same[1:] | same[:-1], numbers, np.uint32(_NONE))
        n_buckets += int(begins.sum())
    return n_buckets


class Groups:
    """Union-find: members that were joined, directly or by way of others, have one root."""

    def __init__(self, n: int) -> None:
        self._parent = array("q", range(n))

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self._parent[max(i, j)] = min(i, j)


def join_equal(groups: Groups, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Join the positions of equal keys; the first position of each key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    for i in np.flatnonzero(first[inverse] != np.arange(len(keys))):
        groups.join(int(i), int(first[inverse[i]]))
    return np.sort(first)


def join_similar(groups: Groups, texts: Iterable[str], at: Sequence[int], similarity: float) -> None:
    """Join the positions `at` of similar texts."""
    join_shared(groups, SimilarTexts(similarity, texts), at)


def join_shared(groups: Groups, index: SimilarTexts, at: Sequence[int]) -> None:
    """Join the positions `at` of the index's texts that are similar."""
    # Thousands of copies of one letter are all candidates of each other. Each bucket's texts are therefore
    # kept by group, and a group that a text is already in is passed over as a whole.
    holders: dict[int, dict[int, list[int]]] = {}
    for i in range(len(index)):
        similar = cache(index.similar_to(i))
        for bucket in index.buckets(i):
            by_root = holders.get(bucket, {})
            kept: dict[int, list[int]] = {}
            holders[bucket] = kept
            for old, members in by_root.items():
                if groups.root(old) != groups.root(at[i]) and any(map(similar, members)):
                    groups.join(at[i], old)
                same = kept.setdefault(groups.root(old), members)
                if same is not members:
                    same += members
            kept.setdefault(groups.root(at[i]), []).append(i)
