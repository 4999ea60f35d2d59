"""The Metric protocol: sufficient statistics per sample, and a combine.

Because a metric is a function of *sums*, the same few lines of `stats.py` give every metric its interval,
its paired difference, its slices. A metric knows nothing of models or tokens beyond the `Sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out item with what one model made of it."""

    id: str
    cluster: str
    """Samples that share it are not independent; intervals resample clusters."""
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


@runtime_checkable
class Metric(Protocol):
    name: str
    higher_is_better: bool

    def stats(self, sample: Sample) -> Sequence[float] | None:
        """Sufficient statistics `(k,)` of one sample, or None where the metric does not apply."""

    def combine(self, sums: Floats) -> Floats:
        """`(..., k)` sums over samples -> `(...)` values. NaN where the sums define no value."""


@dataclass(frozen=True, slots=True)
class MeanMetric:
    """A score per sample, averaged over the samples to which it applies."""

    name: str
    score: Callable[[Sample], float | bool | None]
    higher_is_better: bool = True

    def stats(self, sample: Sample) -> Sequence[float] | None:
        value = self.score(sample)
        return None if value is None else (float(value), 1.0)

    def combine(self, sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(sums[..., 0] / sums[..., 1])
