"""The forecast finds the law that made the values, and its interval holds the truth about as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.metric import MeanMetric, Sample
from luthier.tune.power_law import forecast

SIZES = (100, 200, 400, 800)


def law(n: float, a: float = 0.9, b: float = 4.0, c: float = 0.5) -> float:
    return a - b * n**-c


def answers(rng: np.random.Generator, values: list[list[float]], n_items: int) -> list[list[list[Sample]]]:
    """Right or wrong on items that are easier or harder; `values`: the share right by size and seed."""
    ease = rng.normal(0, 0.15, n_items)
    return [
        [[sample(i, str(int(rng.random() < p + e))) for i, e in enumerate(ease)] for p in of_size] for of_size in values
    ]


def sample(i: int, answer: str) -> Sample:
    return Sample(str(i), str(i), "?", "1", answer, 0.0, 1, 1)


RIGHT = MeanMetric("right", lambda s: s.answer == s.reference)


def test_without_noise_the_law_itself_is_found() -> None:
    exact = MeanMetric("exact", lambda s: float(s.answer))
    runs = [[[sample(i, repr(law(n))) for i in range(20)]] for n in SIZES]
    found = forecast(exact, SIZES, runs, now=800, then=1600, confidence=0.9, seed=1)
    assert found.now == pytest.approx(law(800), abs=2e-3) and found.then == pytest.approx(law(1600), abs=2e-3)
    assert found.high - found.low < 1e-9, "equal items leave no doubt but for the law itself"


def test_less_is_better_and_a_law_that_gets_worse_promises_nothing() -> None:
    loss = MeanMetric("loss", lambda s: float(s.answer), higher_is_better=False)
    runs = [[[sample(i, repr(1.2 + 4 * n**-0.5)) for i in range(20)]] for n in SIZES]
    found = forecast(loss, SIZES, runs, now=800, then=1600, confidence=0.9, seed=1)
    assert found.gain == pytest.approx(4 * (800**-0.5 - 1600**-0.5), abs=2e-3) and found.then < found.now
    worse = forecast(loss, SIZES, runs[::-1], now=800, then=1600, confidence=0.9, seed=1)
    assert worse.gain == worse.low == worse.high == 0


def test_a_share_stays_below_one() -> None:
    exact = MeanMetric("exact", lambda s: float(s.answer))
    runs = [[[sample(i, repr(v)) for i in range(20)]] for v in (0.2, 0.5, 0.8, 0.98)]
    assert forecast(exact, SIZES, runs, now=800, then=80_000, confidence=0.9, seed=1).then <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """60 simulated curves of 3 seeds whose luck has a spread of 0.02, on 120 items; nominal 90 %."""
    rng, held, true = np.random.default_rng(5), 0, law(1600) - law(800)
    for k in range(60):
        values = [[law(n) + rng.normal(0, 0.02) for _ in range(3)] for n in SIZES]
        found = forecast(RIGHT, SIZES, answers(rng, values, 120), now=800, then=1600, confidence=0.9, seed=k)
        held += found.low <= true <= found.high
    assert held >= 51, f"{held} of 60"
