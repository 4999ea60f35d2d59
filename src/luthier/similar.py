"""Similar texts: every pair of at least some Jaccard similarity of word shingles, exactly.

Prefix filtering (Chaudhuri et al. 2006; AllPairs, Bayardo et al. 2007): with each text's shingles in one
global order, rarest first, two texts of Jaccard similarity s share one of the first |x| - ceil(s |x|) + 1.
Only those are indexed, and each candidate is verified, so nothing is missed and nothing is invented; no
random draw is needed. `benchmarks/dedupe.py` measures this against MinHash.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache

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


class SimilarTexts:
    """A fixed list of texts, spoken of by position, and an index to which they are added one by one.

    `space`: texts of different spaces are never similar (e.g. of different system texts).
    """

    def __init__(self, texts: Sequence[str], similarity: float, space: Sequence[str] | None = None) -> None:
        assert 0 < similarity <= 1
        self.similarity = similarity
        ids: dict[str, int] = {}
        spaces = {name: f"{i} " for i, name in enumerate(dict.fromkeys(space or ()))}
        texts_ids = []
        for i, text in enumerate(texts):
            prefix = spaces[space[i]] if space else ""
            texts_ids.append(array("L", [ids.setdefault(prefix + s, len(ids)) for s in shingles(text)]))
        frequency = Counter(shingle for one in texts_ids for shingle in one)
        rank = {shingle: i for i, shingle in enumerate(sorted(frequency, key=frequency.__getitem__))}
        self._ranks = [array("L", sorted(rank[s] for s in one)) for one in texts_ids]
        self._holders: dict[int, list[int]] = {}

    def prefix(self, i: int) -> array[int]:
        """The rarest shingles of a text; similar texts share one of theirs."""
        n = len(self._ranks[i])
        return self._ranks[i][: n - math.ceil(self.similarity * n - TINY) + 1]

    def similar_to(self, i: int) -> Callable[[int], bool]:
        """Whether another text is similar to text `i`."""
        mine, n = set(self._ranks[i]), len(self._ranks[i])
        least, most = self.similarity * n - TINY, n / self.similarity + TINY

        def similar(j: int) -> bool:
            theirs = self._ranks[j]
            if not least <= len(theirs) <= most:
                return False
            shared = len(mine.intersection(theirs))
            return shared >= self.similarity * (n + len(theirs) - shared) - TINY

        return similar

    def jaccard(self, i: int, j: int) -> float:
        mine, theirs = set(self._ranks[i]), set(self._ranks[j])
        return len(mine & theirs) / len(mine | theirs)

    def add(self, i: int) -> None:
        for shingle in self.prefix(i):
            self._holders.setdefault(shingle, []).append(i)

    def matches(self, i: int) -> Iterator[int]:
        """The added texts that are similar to text `i`; which comes first depends on nothing but the texts' order."""
        candidates = dict.fromkeys(j for shingle in self.prefix(i) for j in self._holders.get(shingle, ()))
        return filter(self.similar_to(i), candidates)


class Groups:
    """Union-find: members that were joined, directly or by way of others, have one root."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self._parent[max(i, j)] = min(i, j)


def join_similar(groups: Groups, texts: Sequence[str], similarity: float) -> None:
    """Join the positions of equal texts and, where 0 < similarity < 1, of similar ones."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        groups.join(i, first.setdefault(normalised(text), i))
    if 0 < similarity < 1:
        _join_near(groups, list(first), list(first.values()), similarity)


def _join_near(groups: Groups, texts: list[str], at: list[int], similarity: float) -> None:
    # Thousands of copies of one letter are all candidates of each other. Each shingle's holders are therefore
    # kept by group, and a group that a text is already in is passed over as a whole.
    index = SimilarTexts(texts, similarity)
    holders: dict[int, dict[int, list[int]]] = {}
    for i in range(len(texts)):
        similar = cache(index.similar_to(i))
        for shingle in index.prefix(i):
            by_root = holders.get(shingle, {})
            kept: dict[int, list[int]] = {}
            holders[shingle] = kept
            for old, members in by_root.items():
                if groups.root(old) != groups.root(at[i]) and any(map(similar, members)):
                    groups.join(at[i], old)
                same = kept.setdefault(groups.root(old), members)
                if same is not members:
                    same += members
            kept.setdefault(groups.root(at[i]), []).append(i)
