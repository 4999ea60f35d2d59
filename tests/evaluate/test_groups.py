"""The gap between two groups is that of the metric computed on each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluate.metrics.build import build
from luthier.metric import Sample
from luthier.settings import Use
from luthier.stats import compare

from .samples import sample, stats, value


def gap(of: Any = "exact_match", groups: tuple[str, ...] = ("f", "m"), labels: tuple[str, ...] = ()) -> Any:
    use = Use.model_validate({"use": "group_gap", "by": "gender", "groups": list(groups), "of": of})
    return build(use, labels, None)


def asked(right: dict[str, tuple[int, int]]) -> list[Sample]:
    """Group -> (right, all)."""
    return [
        sample("a" if i < good else "b", "a", id=f"{g}{i}", cluster=f"{g}{i}", tags={"gender": g})
        for g, (good, n) in right.items()
        for i in range(n)
    ]


def test_the_gap_is_that_of_the_two_groups_alone() -> None:
    samples = asked({"f": (3, 4), "m": (1, 5), "x": (0, 9)})
    assert value(gap(), samples) == pytest.approx(abs(3 / 4 - 1 / 5))
    assert value(gap(groups=("m", "f")), samples) == pytest.approx(abs(3 / 4 - 1 / 5))
    assert len(stats(gap(), samples)) == 9, "other groups are left out"


def test_a_metric_that_is_no_mean_may_be_compared() -> None:
    labels = ("a", "b")
    samples = asked({"f": (3, 4), "m": (1, 5)})
    f1 = build(Use(use="f1"), labels, None)
    alone = [value(f1, [s for s in samples if s.tags["gender"] == g]) for g in ("f", "m")]
    assert value(gap("f1", labels=labels), samples) == pytest.approx(abs(alone[0] - alone[1]))


def test_a_group_that_is_missing_has_no_gap() -> None:
    assert np.isnan(value(gap(), asked({"f": (3, 4)})))


def test_it_has_an_interval_against_the_base() -> None:
    tuned, base = asked({"f": (60, 80), "m": (20, 80)}), asked({"f": (50, 80), "m": (50, 80)})
    found = compare(gap(), tuned, base, confidence=0.95)
    assert (found.value, found.baseline) == (0.5, 0.0) and found.delta == -0.5 and found.high < 0


def test_two_groups_are_needed() -> None:
    with pytest.raises(UserError, match="LU-E003 .*two groups"):
        gap(groups=("f", "f"))
