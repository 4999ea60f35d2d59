"""Coverage: whether the training rows are like the requests that people really make, and what to collect next.

The requests are put into topics by their sentence embeddings. Of each request the nearest five texts are looked at,
among the other requests and the training rows together: where both are drawn from the same source, a training row is
among them as often as there are training rows (the nearest-neighbour test of two samples: Schilling 1986, Henze 1988).
Where it is less often, training rows like these are too few: odds of neighbours over odds of all texts are the ratio of
the two densities. Shares of clusters alone see less: a training row beside a gap falls into the gap's cluster.

Shapes: R distinct requests, T distinct texts of training rows, D dimensions, k topics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from luthier.clusters import k_means, telling
from luthier.embed import PACKAGE, Vectors, embed
from luthier.errors import DataError
from luthier.prepare.checks.contract import Found, Looked, needs
from luthier.prepare.privacy import masked
from luthier.prepare.requests import read_requests
from luthier.records import FactTable
from luthier.similar import WORD
from luthier.stats import wilson

MAX_REQUESTS, MAX_TRAIN = 2_000, 10_000
PER_TOPIC, MAX_TOPICS = 25, 100
NEIGHBOURS = 5
CONFIDENCE = 0.95
NAME_WORDS = 4
TOLD = 3
BLOCK = 256
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    requests: int
    share: float
    """Of all requests."""
    trained: float
    """What share of the training rows is like these requests."""
    low: float
    high: float
    lacking: int
    """So many more rows would bring the topic's share to that of the requests; 0 where that is not shown."""
    nearest: float
    """The median over its requests of the cosine of the nearest training row."""


@needs("meaning", PACKAGE)
def coverage(looked: Looked, requests: str, near: Annotated[float, Field(gt=0, lt=1)] = 0.6) -> Found:
    """Topics of the requests, with the share that each has of requests and of training rows.

    Args:
        requests: File of what people asked, read as `evaluate.requests` is.
        near: Cosine below which the nearest training row is no help to a request.

    Raises DataError LU-D019 and those of data files, LU-D162 (under two requests).
    """
    read, notes = read_requests(requests, looked.folder, looked.cleaning)
    rng = np.random.default_rng(looked.seed)
    asked = Counter(c.asked_text for c in read)
    trained = list(dict.fromkeys(looked.rows[int(looked.numbers[i])].asked_text for i in looked.on("train")))
    if len(asked) < 2 or not trained:
        found = f"{len(asked)} different requests and {len(trained)} different training rows"
        raise DataError.of("LU-D162", f"data.checks: coverage: {requests}", found, "name a file of real requests")
    if len(asked) > MAX_REQUESTS or len(trained) > MAX_TRAIN:
        notes.append(f"at most {MAX_REQUESTS:,} requests and {MAX_TRAIN:,} training rows are looked at, drawn by seed")
    ours = _drawn(list(asked), MAX_REQUESTS, rng)
    vectors = embed(ours)  # (R, D)
    beside, nearest = _neighbours(vectors, embed(_drawn(trained, MAX_TRAIN, rng)))
    k = max(2, min(MAX_TOPICS, len(ours) // PER_TOPIC))
    of, _ = k_means(vectors.astype(np.float64), k, rng)
    times = np.array([asked[text] for text in ours])
    topics = _topics(ours, times, of, beside, nearest, len(trained))
    far = times[nearest < near].sum()
    low, high = wilson(float(far), float(times.sum()), CONFIDENCE)
    notes.append(
        f"{far / times.sum():.1%} of {times.sum():,} requests ({low:.1%} to {high:.1%}) have no training row within a"
        f" cosine of {near:g}"
    )
    return Found(tables=[_table(topics)], notes=[_to_collect(topics, len(trained)), *notes])


def _drawn(texts: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in np.sort(rng.permutation(len(texts))[:most])]


def _neighbours(requests: Vectors, trained: Vectors) -> tuple[Floats, Floats]:
    """(R,) The share of each request's nearest texts that are training rows, and the cosine of the nearest of those."""
    every = np.concatenate([requests, trained])
    n, count = len(requests), min(NEIGHBOURS, len(every) - 1)
    beside, nearest = np.zeros(n), np.zeros(n)
    for start in range(0, n, BLOCK):
        like = requests[start : start + BLOCK] @ every.T  # (b, R + T)
        like[np.arange(len(like)), start + np.arange(len(like))] = -2.0  # not itself
        beside[start : start + BLOCK] = (np.argpartition(-like, count - 1)[:, :count] >= n).mean(axis=1)
        nearest[start : start + BLOCK] = like[:, n:].max(axis=1)
    return beside, nearest


def _topics(
    texts: Sequence[str], times: NDArray[np.int64], of: NDArray[np.int64], beside: Floats, nearest: Floats, n: int
) -> list[Topic]:
    """From the one that lacks most; `n`: training rows, of which at most MAX_TRAIN are among the neighbours."""
    by_chance = min(n, MAX_TRAIN) / (min(n, MAX_TRAIN) + len(texts) - 1)
    used = np.unique(of)
    bags = [set(WORD.findall(masked(text).casefold())) for text in texts]
    counts = Counter(word for bag in bags for word in bag)
    found = []
    for topic in used:
        inside = np.flatnonzero(of == topic)
        asked = int(times[inside].sum())
        share, mean = asked / int(times.sum()), float(beside[inside].mean())
        ends = wilson(mean * len(inside), len(inside), 1 - (1 - CONFIDENCE) / len(used))  # five neighbours count as one
        least = 0.5 / (NEIGHBOURS * len(inside))  # half a neighbour
        trained, low, high = (min(1.0, share * _density(a, by_chance, least)) for a in (mean, *ends))
        lacks = ends[1] < by_chance
        found.append(
            Topic(
                name=telling([bags[i] for i in inside], counts, len(texts), NAME_WORDS),
                requests=asked,
                share=share,
                trained=trained,
                low=low,
                high=high,
                lacking=math.ceil(n * (share - trained) / (1 - share)) if lacks and share < 1 else 0,
                nearest=round(float(np.median(nearest[inside])), 3),
            )
        )
    return sorted(found, key=lambda topic: (-topic.lacking, -topic.share, topic.name))


def _density(beside: float, by_chance: float, least: float) -> float:
    """Of training rows, over that of requests, where such a share of the neighbours are training rows; of the other
    neighbours at least the share `least` is assumed."""
    return beside / max(1 - beside, least) * (1 - by_chance) / by_chance


def _table(topics: Sequence[Topic]) -> FactTable:
    columns = ("topic", "requests", "%", "training rows, %", "low", "high", "rows lacking", "nearest cosine")
    rows = tuple(
        (
            t.name,
            t.requests,
            _percent(t.share),
            _percent(t.trained),
            _percent(t.low),
            _percent(t.high),
            t.lacking,
            t.nearest,
        )
        for t in topics
    )
    return FactTable(title="Topics of the requests, and training rows like them", columns=columns, rows=rows)


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _to_collect(topics: Sequence[Topic], n: int) -> str:
    lacking = [t for t in topics if t.lacking]
    seen = f"{sum(t.requests for t in topics):,} requests in {len(topics)} topics, {n:,} training rows"
    if not lacking:
        return f"{seen}: no topic is shown to have a smaller share of the rows than of the requests"
    told = "; ".join(
        f"'{t.name}' ({t.share:.1%} of the requests, {t.trained:.1%} of the rows: {t.lacking:,} more)"
        for t in lacking[:TOLD]
    )
    return f"{seen}: {len(lacking)} topics have too few rows. What to collect next: {told}"
