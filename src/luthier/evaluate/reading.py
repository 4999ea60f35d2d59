"""A metric that has read its samples: each answer is read once, and every slice and rule reuses what was read.

Knows nothing of models, slices or rules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier import stats
from luthier.errors import EvaluationError
from luthier.metric import Floats, Metric, Sample, show
from luthier.records import Comparison
from luthier.settings import Recipe


@dataclass(frozen=True, slots=True)
class Known:
    """A metric that has read its samples: a `Metric` whose statistics are looked up."""

    name: str
    metric: Metric
    tuned: Sequence[Sample]
    baseline: Sequence[Sample]
    known: Mapping[int, Sequence[float] | None]
    """By the identity of the sample: one item has one sample of each model."""

    @property
    def higher_is_better(self) -> bool:
        return self.metric.higher_is_better

    def stats(self, sample: Sample) -> Sequence[float] | None:
        return self.known[id(sample)]

    def combine(self, sums: Floats) -> Floats:
        return self.metric.combine(sums)

    def n_usable(self, rows: Sequence[int]) -> int:
        """How many samples a comparison would rest on; 0 where they define no value: F1 of a label not among them."""
        both = ((self.stats(self.tuned[i]), self.stats(self.baseline[i])) for i in rows)
        usable = [pair for pair in both if None not in pair]
        if not usable:
            return 0
        with np.errstate(all="ignore"):
            values = self.combine(np.array(usable, dtype=np.float64).sum(axis=0))  # (n, 2, k) -> (2,)
        return len(usable) if np.isfinite(values).all() else 0

    def compare(self, rows: Sequence[int], recipe: Recipe) -> Comparison:
        tuned, baseline = [self.tuned[i] for i in rows], [self.baseline[i] for i in rows]
        return stats.compare(self, tuned, baseline, confidence=recipe.evaluate.confidence)

    def alone(self, samples: Sequence[Sample]) -> list[float | None]:
        """The value of each sample by itself; None where the metric does not apply or has none."""
        values: list[float | None] = [None] * len(samples)
        rows = [i for i, sample in enumerate(samples) if self.stats(sample) is not None]
        if rows:
            sums = np.array([self.stats(samples[i]) for i in rows], dtype=np.float64)  # (n, k)
            with np.errstate(all="ignore"):
                found = self.combine(sums)  # (n,)
            for i, value in zip(rows, found, strict=True):
                values[i] = float(value) if np.isfinite(value) else None
        return values


def read(name: str, metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample], notes: list[str]) -> Known:
    assert [s.id for s in tuned] == [s.id for s in baseline], "both models answer the same items in the same order"
    show(metric, (*tuned, *baseline))
    found = ((sample, metric.stats(sample)) for sample in (*tuned, *baseline))
    known = {id(sample): None if values is None else tuple(values) for sample, values in found}
    widths = {len(values) for values in known.values() if values is not None}
    if len(widths) > 1:
        ragged = f"gave {min(widths)} statistics for one sample and {max(widths)} for another"
        raise EvaluationError.of("LU-E005", f"metric '{name}'", ragged)
    one_sided = sum((known[id(t)] is None) != (known[id(b)] is None) for t, b in zip(tuned, baseline, strict=True))
    if one_sided:
        notes.append(f"{name} applies to only one of the two answers of {one_sided} samples, which it leaves out")
    return Known(name, metric, tuned, baseline, known)


def try_to_read(
    metric: Metric, tuned: Sequence[Sample], baseline: Sequence[Sample], ruled: Collection[str], notes: list[str]
) -> Known | None:
    """A metric that fails costs its own results only, and is said; unless a rule stands on it."""
    try:
        return read(metric.name, metric, tuned, baseline, notes)
    except EvaluationError as error:
        if metric.name in ruled:
            raise
        notes.append(f"{metric.name} is not reported, it failed: {error.problems[0]}")
        return None


def applies(metric: Known, notes: list[str]) -> bool:
    if metric.n_usable(range(len(metric.tuned))):
        return True
    notes.append(f"{metric.name} is not reported: it applies to no sample, or has no value on these")
    return False
