"""Group gaps: how much better the answers to one group are than those to another.

Any score function may be compared: `accuracy`, `exact_match`, `refusal`, one's own. Knows nothing of who the groups
are; a tag of the data says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import EvaluationError
from luthier.evaluate.metrics.build import build
from luthier.metric import Floats, Metric, Sample, SumMetric
from luthier.settings import Use


def group_gap(by: str, groups: list[str], of: Any, labels: tuple[str, ...] = (), folder: Path | None = None) -> Metric:
    """Distance between two groups' values of a metric; lower is better, 0 is none.

    Tells whether the model serves one group worse, and against the base whether tuning did that. Not why: one group's
    questions may be harder. It is never negative, so a small sample shows a gap where there is none; its interval and
    the base's gap are what to look at.

    Args:
        by: The tag that names the group of a sample.
        groups: The two values to compare; samples of other values are left out.
        of: The metric within a group, as `evaluate.metrics` names one: `accuracy`, `{use: refusal}`.
    """
    if len(set(groups)) != 2:
        raise EvaluationError.of("LU-E003", "metric 'group_gap'", f"compares two groups, given are {groups}")
    inner = build(Use.model_validate(of), labels, folder)

    def stats(sample: Sample) -> list[float] | None:
        if sample.tags.get(by) not in groups or (found := inner.stats(sample)) is None:
            return None
        here = [*found, 1.0]
        none = [0.0] * len(here)
        return here + none if sample.tags[by] == groups[0] else none + here

    def combine(sums: Floats) -> Floats:
        first, second = np.split(sums, 2, axis=-1)  # each the metric's own sums, and the count
        both = (first[..., -1] > 0) & (second[..., -1] > 0)
        values = [inner.combine(np.where(both[..., None], side, 1.0)[..., :-1]) for side in (first, second)]
        return np.where(both, np.abs(values[0] - values[1]), np.nan)

    return SumMetric("group_gap", stats, combine, higher_is_better=False)
