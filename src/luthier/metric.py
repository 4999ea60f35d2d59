"""The Metric protocol: sufficient statistics per sample, and a combine.

Because a metric is a function of *sums*, the same few lines of `stats.py` give every metric its interval,
its paired difference, its slices. A metric knows nothing of models or tokens beyond the `Sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out item with what one model made of it."""

    id: str
    cluster: str
    """Samples that share it are not independent: intervals count clusters, not samples."""
    prompt: str
    reference: str
    answer: str
    """Generated greedily; empty where nothing was generated (plain text)."""
    nats: float
    """Negative log-likelihood of the learned tokens, summed."""
    n_tokens: int
    n_bytes: int
    """UTF-8 bytes of the learned text, for bits per byte."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, float] | None = None
    """Of a label task: nats of each label as the whole answer, its end of turn included."""
    cut: bool = False
    """Whether the answer had not ended after the most tokens that it may have."""
    read: tuple[float, int] | None = None
    """Nats and tokens of the answer under the base model, as a text by itself; None where nobody asked."""


@runtime_checkable
class Metric(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def stats(self, sample: Sample) -> Sequence[float] | None:
        """Sufficient statistics `(k,)` of one sample, or None where the metric does not apply."""

    def combine(self, sums: Floats) -> Floats:
        """`(..., k)` sums over samples -> `(...)` values. NaN where the sums define no value."""


@dataclass(frozen=True, slots=True)
class SumMetric:
    """A metric of two functions: the statistics of one sample, and the value of their sums."""

    name: str
    stats: Callable[[Sample], Sequence[float] | None]
    combine: Callable[[Floats], Floats]
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class MeanMetric:
    """A score per sample, averaged over the samples to which it applies."""

    name: str
    score: Callable[[Sample], float | bool | None]
    higher_is_better: bool = True
    prepare: Callable[[Sequence[Sample]], object] | None = None
    """See `show`."""

    def stats(self, sample: Sample) -> Sequence[float] | None:
        value = self.score(sample)
        return None if value is None else (float(value), 1.0)

    def combine(self, sums: Floats) -> Floats:
        return ratio(sums)


def ratio(sums: Floats) -> Floats:
    """`(..., 2)` sums -> `(...)`, the first by the second; NaN for none by none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def show(metric: Metric, samples: Sequence[Sample]) -> None:
    """Give a metric that has a `prepare` all samples before its first `stats`: it may work on many texts at once."""
    if prepare := getattr(metric, "prepare", None):
        prepare(samples)


Score = TypeVar("Score", bound=Callable[..., float | bool | None])


def lower_is_better(score: Score) -> Score:
    """Marks a score function: less of it is an improvement."""
    score.higher_is_better = False  # type: ignore[attr-defined]
    return score
