"""Topics: groups of texts that speak of like things, found without labels, named by the words that tell them apart.

Clusters of sentence embeddings. Knows nothing of tests, requests or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from luthier.clusters import k_means, telling
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
    counts = Counter(word for bag in bags for word in bag)
    inside = [[bag for bag, topic in zip(bags, of_text, strict=True) if topic == i] for i in range(len(used))]
    return of_text, [telling(of, counts, len(texts), NAME_WORDS) for of in inside]
