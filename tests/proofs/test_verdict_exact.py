"""Right-or-wrong answers, exactly: no sampling, all numbers of wins and losses by their probability."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.power import Gate, Pilot, power_of


@pytest.mark.parametrize("n", [20, 23, 30, 50, 100, 200])
@pytest.mark.parametrize("limit", [0.0, -0.02, -0.05, -0.1, 0.1, 0.3])
def test_a_true_gain_of_the_limit_passes_falsely_in_at_most_three_per_cent(n: int, limit: float) -> None:
    """The nominal share is 2.5 %; it holds on average over the shares that differ, and never above 2.83 %."""
    shares = np.linspace(max(abs(limit), 0.01), 1, 12)
    false = [power_of(Pilot.stated(float(differ)), n, limit, Gate(limit)) for differ in shares]
    assert max(false) < 0.03 and np.mean(false) < 0.025


@pytest.mark.parametrize("n", [20, 25, 30, 40])
def test_a_clear_gain_is_seen_on_few_answers(n: int) -> None:
    assert power_of(Pilot.stated(1.0), n, 0.9, Gate()) > 0.99
