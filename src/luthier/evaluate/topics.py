"""Topics: groups of texts that speak of like things, found without labels, named by their commonest own words.

Spherical k-means (Dhillon & Modha 2001) on sentence embeddings. A topic is a convenience of looking, no fact of the
world: another seed draws other borders. Knows nothing of tests, requests or models.

Shapes: n texts, D dimensions, k topics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from luthier.embed import embed
from luthier.evaluate.metrics.text import words
from luthier.metric import Floats

STARTS, ROUNDS = 4, 30
NAME_WORDS = 3


def topics(texts: Sequence[str], k: int, seed: int) -> tuple[list[int], list[str]]:
    """The topic of each text, and the topics' names; at most `k`, fewer where the texts are fewer.

    Raises ModelError LU-M002 where the embeddings' package is not installed.
    """
    vectors, rng = embed(texts).astype(np.float64), np.random.default_rng(seed)
    found = min((_k_means(vectors, k, rng) for _ in range(STARTS)), key=lambda one: one[0])[1]
    used = sorted(set(found))
    of_text = [used.index(topic) for topic in found]
    bags = [set(words(text)) for text in texts]
    return of_text, [_name(bags, [t == i for t in of_text]) for i in range(len(used))]


def _k_means(vectors: Floats, k: int, rng: np.random.Generator) -> tuple[float, list[int]]:
    """Loss, and the centre of each vector, by cosine; starts are drawn far from each other (k-means++)."""
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < k:
        far = np.maximum(0.0, 1 - (vectors @ centres.T).max(axis=1))
        if far.sum() <= 1e-6:
            break  # every text equals a centre
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
    return float(1 - (vectors @ centres.T).max(axis=1).mean()), nearest.tolist()


def _name(bags: Sequence[set[str]], inside: Sequence[bool]) -> str:
    """The words that most more of the topic's texts have than of the others."""
    n_in = sum(inside)
    lead: defaultdict[str, float] = defaultdict(float)
    for bag, is_in in zip(bags, inside, strict=True):
        for word in bag:
            lead[word] += 1 / n_in if is_in else -1 / max(1, len(bags) - n_in)
    named = sorted((-more, word) for word, more in lead.items() if more > 0)
    return ", ".join(word for _, word in named[:NAME_WORDS]) or "no words"
