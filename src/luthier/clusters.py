"""Clusters of unit vectors: spherical k-means (Dhillon & Modha 2001), with starts drawn by k-means++ (Arthur &
Vassilvitskii 2007). A cluster is a convenience of looking, no fact of the world: another seed draws other borders.

Shapes: n vectors, D dimensions, k clusters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
STARTS, ROUNDS = 4, 30
PRIOR = 10.0


def k_means(vectors: Floats, k: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
    """The cluster (n,) of each vector (n, D) of length 1, and the centres, at most k of them: the best of STARTS."""
    return min((_once(vectors, k, rng) for _ in range(STARTS)), key=lambda one: one[0])[1:]


def _once(vectors: Floats, k: int, rng: np.random.Generator) -> tuple[float, NDArray[np.int64], Floats]:
    """Loss, the nearest centre of each vector by cosine, and the centres; starts are drawn far from each other."""
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < k:
        far = np.maximum(0.0, 1 - (vectors @ centres.T).max(axis=1))
        if far.sum() <= 1e-6:
            break  # every vector equals a centre
        centres = np.vstack([centres, vectors[rng.choice(len(vectors), p=far / far.sum())]])
    nearest = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        before, nearest = nearest, (vectors @ centres.T).argmax(axis=1)
        if (before == nearest).all():
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres)
    return float(1 - (vectors @ centres.T).max(axis=1).mean()), nearest, centres


def telling(bags: Sequence[set[str]], counts: Counter[str], n: int, most: int) -> str:
    """The words that tell a cluster's texts from all others best, to name it by: log-odds over their standard error,
    with a prior of all texts (Monroe, Colaresi & Quinn 2008, "Fightin' Words"). A word that only one has may be a name.

    Args:
        bags: Words of each of the cluster's texts.
        counts: In how many of all n texts each word stands.
    """
    inside = Counter(word for bag in bags for word in bag)

    def told(word: str) -> float:
        prior = PRIOR * counts[word] / n
        here, there = inside[word] + prior, counts[word] - inside[word] + prior
        apart = math.log(here / (len(bags) + PRIOR - here)) - math.log(there / (n - len(bags) + PRIOR - there))
        return apart / math.sqrt(1 / here + 1 / there)

    scores = {word: told(word) for word, times in inside.items() if times > 1 and counts[word] < n}
    best = sorted((-score, word) for word, score in scores.items() if score > 0)
    return ", ".join(word for _, word in best[:most]) or "no word in common"
