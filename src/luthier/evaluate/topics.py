"""Topics: groups of texts that speak of like things, found without labels, named by their commonest own words.

Clusters of sentence embeddings. Knows nothing of tests, requests or models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from luthier.clusters import k_means
from luthier.embed import embed
from luthier.evaluate.metrics.text import words

NAME_WORDS = 3


def topics(texts: Sequence[str], k: int, seed: int) -> tuple[list[int], list[str]]:
    """The topic of each text, and the topics' names; at most `k`, fewer where the texts are fewer.

    Raises ModelError LU-M002 where the embeddings' package is not installed.
    """
    found = k_means(embed(texts).astype(np.float64), k, np.random.default_rng(seed))[0].tolist()
    used = sorted(set(found))
    of_text = [used.index(topic) for topic in found]
    bags = [set(words(text)) for text in texts]
    return of_text, [_name(bags, [t == i for t in of_text]) for i in range(len(used))]


def _name(bags: Sequence[set[str]], inside: Sequence[bool]) -> str:
    """The words that most more of the topic's texts have than of the others."""
    n_in = sum(inside)
    lead: defaultdict[str, float] = defaultdict(float)
    for bag, is_in in zip(bags, inside, strict=True):
        for word in bag:
            lead[word] += 1 / n_in if is_in else -1 / max(1, len(bags) - n_in)
    named = sorted((-more, word) for word, more in lead.items() if more > 0)
    return ", ".join(word for _, word in named[:NAME_WORDS]) or "no words"
