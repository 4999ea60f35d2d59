"""Intervals of differences between two groups, against published values and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.gaps import Sums, of_mean, of_means, of_shares


def sums(values: np.ndarray) -> Sums:
    return Sums(len(values), float(values.sum()), float((values**2).sum()))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_a_difference_of_shares_is_newcombes(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = of_shares(*counts, 0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])


def test_a_difference_of_means_is_welchs() -> None:
    from scipy.stats import ttest_1samp, ttest_ind

    draw = np.random.default_rng(0)
    one, other = draw.normal(0.3, 1, 40), draw.normal(0, 3, 25)
    expected = ttest_ind(one, other, equal_var=False).confidence_interval(0.9)
    found = of_means(sums(one), sums(other), 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    alone = ttest_1samp(one, 0).confidence_interval(0.9)
    assert of_mean(sums(one), 0.9) == pytest.approx((alone.low, alone.high))


def test_values_that_do_not_vary_have_no_interval() -> None:
    assert of_means(Sums(5, 5.0, 5.0), Sums(4, 0.0, 0.0), 0.95) == (1.0, 1.0, 1.0)
