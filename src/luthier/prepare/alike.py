"""Prompts alike in meaning: every pair of texts whose sentence embeddings have at least some cosine, joined.

All pairs are compared, n^2 / 2 of them, block by block. The vectors, 1.5 KB a text, lie in a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from luthier.embed import Vectors, embed
from luthier.similar import Groups

BLOCK = 1024


def join_alike(groups: Groups, texts: Iterable[str], at: Sequence[int], cosine: float) -> None:
    """Join the positions `at` of such texts. Raises ModelError LU-M002 where the embeddings' package is missing."""
    with tempfile.TemporaryFile() as file:
        vectors = _written(texts, file)  # (n, D)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            for other in range(0, start + 1, BLOCK):
                like = block @ vectors[other : other + BLOCK].T >= cosine  # (a, b)
                _join(groups, at[start : start + BLOCK], at[other : other + BLOCK], like)


def _join(groups: Groups, ours: Sequence[int], theirs: Sequence[int], like: NDArray[np.bool_]) -> None:
    """Join by components: a block may hold a million pairs, but no more components than texts."""
    from scipy.sparse import bmat, csr_array  # type: ignore[import-untyped, unused-ignore]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped, unused-ignore]

    both = [*ours, *theirs]
    _, component = connected_components(bmat([[None, csr_array(like)], [csr_array(like.T), None]]), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    for i in np.flatnonzero(first[inverse] != np.arange(len(both))):
        groups.join(both[int(first[inverse[i]])], both[i])


def _written(texts: Iterable[str], file: BinaryIO) -> Vectors:
    left, n, width = iter(texts), 0, 0
    while some := list(islice(left, BLOCK)):
        found = embed(some, remember=False)
        file.write(found.tobytes())
        n, width = n + len(found), found.shape[1]
    file.flush()
    return np.memmap(file, dtype=np.float32, shape=(n, width)) if n else np.zeros((0, 1), dtype=np.float32)
