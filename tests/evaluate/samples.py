"""Samples for the tests: made by hand, and drawn at random from a small vocabulary so that n-grams do meet."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from luthier.metric import Floats, Metric, Sample

# fmt: off
VOCABULARY = [
    "the", "a", "kettle", "holds", "1.35", "litres", "walked", "line,", "refund", "café", "Größe", "и", "вода", "水",
    ",", ".", "don't", "<b>", "&amp;", "12-13",
]
# fmt: on
REAL = [
    ("The Marrowby kettle holds 1.35 litres when filled to the line.", "It holds 1.35 litres, filled to the line."),
    ("You can return it within 30 days; we pay the postage.", "You can return it within 30 days."),
    ("Sorry, I do not know. I will hand you over to a colleague.", "I don't know -- I'll ask a colleague!"),
    ("Die Größe beträgt 12 cm.", "Die Groesse ist 12 cm"),
    ("Чайник вмещает 1,35 литра воды.", "Чайник вмещает литр воды."),
    ("水壶可以装一升水。", "这个水壶装两升水。"),
    ("Yes.", "No."),
    ("", "something"),
    ("something", ""),
]  # (reference, answer)


def sample(answer: str = "", reference: str = "", **fields: Any) -> Sample:
    given: dict[str, Any] = {"id": "s0", "cluster": "c0", "prompt": "?", "nats": 1.0, "n_tokens": 1, "n_bytes": 1}
    return Sample(answer=answer, reference=reference, **(given | fields))


def pairs(values: list[tuple[str, str]]) -> list[Sample]:
    """Samples of (reference, answer)."""
    return [sample(answer, reference, id=f"s{i}", cluster=f"c{i}") for i, (reference, answer) in enumerate(values)]


def text() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


def corpora() -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(text(), text()), min_size=1, max_size=8)


def stats(metric: Metric, samples: list[Sample]) -> Floats:
    """(n, k) over the samples to which the metric applies."""
    return np.array([s for s in map(metric.stats, samples) if s is not None], dtype=np.float64)


def value(metric: Metric, samples: list[Sample]) -> float:
    return float(metric.combine(stats(metric, samples).sum(axis=0)))
