"""What checks compare texts by: vectors of length 1, and the nearest among them; of at most so many rows.

Products of matrices are made block by block, so that n times n numbers are never in memory.

Shapes: n texts, m others, D features.
"""

from __future__ import annotations

import unicodedata
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.checks.contract import Looked
from luthier.similar import WORD

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
MOST_ROWS = 20_000
"""So many rows are embedded at most, 3 KB and about a hundredth of a second each; of more, some are drawn."""
BLOCK_NUMBERS = 1 << 24
COLUMNS = 1 << 18
DIMENSIONS = 256
READ_LETTERS = 1000
"""Of each text by `by_spelling`: 10 KB of memory at most."""


def drawn(places: Places, most: int, seed: int) -> Places:
    """At most so many of the places, in their order."""
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))


def told(n: int, of: int) -> list[str]:
    """A note where not all rows were looked at."""
    return [f"{n:,} of {of:,} rows, drawn by seed, were looked at"] if n < of else []


def texts_of(looked: Looked, places: Places) -> list[str]:
    return [c.asked_text for c in looked.rows.each(looked.numbers[places])]


def nearest(of: Floats, among: Floats, k: int, itself: bool = False) -> tuple[Floats, Places]:
    """(n, k) cosines, greatest first, and places of each vector's nearest; `itself`: both are the same, and none is its
    own neighbour."""
    cosines, places = np.empty((len(of), k), dtype=np.float32), np.empty((len(of), k), dtype=np.int64)
    size = max(1, BLOCK_NUMBERS // len(among))
    for start in range(0, len(of), size):
        block = of[start : start + size] @ among.T
        n = np.arange(len(block))
        if itself:
            block[n, start + n] = -2
        found = np.argpartition(-block, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(block, found, axis=1), axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1)
        places[start : start + size] = found
        cosines[start : start + size] = np.take_along_axis(block, found, axis=1)
    return cosines, places


def by_spelling(texts: Sequence[str]) -> Floats:
    """(n, d) vectors by words, pairs of words and runs of 3 to 5 letters, with d up to 256: latent semantic analysis.

    Logarithmic counts, hashed, weighed by inverse document frequency; their first singular vectors (Deerwester et al.
    1990). A text that shares nothing with others is 0.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    parts, ends = array("i"), [0]
    for text in texts:
        parts.extend(
            zlib.crc32(part.encode("utf-8", "surrogatepass")) % COLUMNS for part in _parts(text[:READ_LETTERS])
        )
        ends.append(len(parts))
    columns = np.frombuffer(parts, dtype=np.int32)
    counts = csr_matrix((np.ones(len(columns), dtype=np.float32), columns, ends), shape=(len(texts), COLUMNS))
    counts.sum_duplicates()
    held = np.bincount(counts.indices, minlength=COLUMNS)
    counts.data = (1 + np.log(counts.data)) * np.log((1 + len(texts)) / (1 + held[counts.indices])).astype(np.float32)
    d = min(DIMENSIONS, len(texts) - 1)
    left, sizes, _ = svds(counts, k=d, v0=np.ones(len(texts), dtype=np.float32))
    found: Floats = (left * sizes).astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
    return found


def _parts(text: str) -> Iterator[str]:
    words = WORD.findall(unicodedata.normalize("NFC", text).casefold())
    yield from words
    yield from map(" ".join, pairwise(words))
    for word in words:
        marked = f"<{word}>"
        yield from (marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1))
