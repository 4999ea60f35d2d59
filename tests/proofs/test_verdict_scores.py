"""The published list of score distributions, in small: false PASS, a loss of the margin, coverage.

The table of `benchmarks/verdict.py` has 10,000 gates a cell; these 1,000 see that it still holds. The exact
99 % interval of a false-PASS rate must reach down to 5 %, that of the coverage up to 94 %.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import beta

GATES = 1000
NAMES = [
    "right or wrong, 5 % discordant",
    "right or wrong, 20 % discordant",
    "right or wrong, 50 % discordant",
    "bounded",
    "log-normal (sigma 1) losses",
    "Student t, 2.5 degrees",
    "clusters of 1 to 3",
]


@pytest.fixture(scope="module")
def verdict() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "verdict.py"
    spec = importlib.util.spec_from_file_location("benchmark_verdict", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def reaches_down_to(seen: np.ndarray) -> float:
    return float(beta.ppf(0.005, seen.sum(), len(seen) - seen.sum() + 1)) if seen.any() else 0.0


def test_the_list_is_the_published_one(verdict: ModuleType) -> None:
    assert list(verdict.SCORES) == NAMES


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("name", NAMES)
def test_gates_open_seldom_and_intervals_cover(verdict: ModuleType, name: str, n: int) -> None:
    scores = verdict.SCORES[name]
    loss = -verdict.MARGIN * scores.mean
    none, lost = (verdict.simulate(scores, n, GATES, gain, (1, n)) for gain in (0.0, loss))
    assert reaches_down_to(none["beat"]) <= 0.05
    assert reaches_down_to(lost["keep"]) <= 0.05
    missed = np.concatenate([~side["covered"][side["used"]] for side in (none, lost)])
    assert reaches_down_to(missed) <= 0.06


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_gain_that_they_claim(verdict: ModuleType, name: str) -> None:
    scores, rng = verdict.SCORES[name], np.random.default_rng(2)
    for gain in (-0.01, 0.0, 0.12):
        tuned, baseline = scores.draw(rng, (400, 500), gain)
        error = (tuned - baseline).std() / np.sqrt(200_000)
        assert abs((tuned - baseline).mean() - gain) < 6 * error
        assert abs(baseline.mean() - scores.mean) < 0.006
