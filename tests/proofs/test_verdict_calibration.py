"""The null check: a gate that should not open opens at most one time in twenty.

2,000 gates for each kind of score and rule, on pairs that really differ (never a model against itself) and whose true
difference lies exactly where the rule begins to be false. The exact 99 % interval of the false-PASS rate (Clopper &
Pearson) must reach down to 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from luthier.metric import Floats, MeanMetric, Sample
from luthier.records import RuleResult
from luthier.release.gate import judge_rule
from luthier.settings import Rule
from luthier.stats import compare

GATES = 2000
POINTS = 0.03
RELATIVE = 0.05

Pairs = tuple[Floats, Floats, Floats, np.ndarray]
"""Numerators of tuned and of baseline, the denominator of both, the cluster; `(n,)` each."""
Draw = Callable[[np.random.Generator, float], Pairs]


class Perplexity:
    name = "perplexity"
    higher_is_better = False

    def stats(self, sample: Sample) -> Sequence[float]:
        return sample.nats, float(sample.n_tokens)

    def combine(self, sums: Floats) -> Floats:
        return np.exp(sums[..., 0] / sums[..., 1])


SCORE = MeanMetric("score", lambda sample: sample.nats)


def right_or_wrong(n: int, discordant: float) -> Draw:
    def draw(rng: np.random.Generator, gain: float) -> Pairs:
        u = rng.random(n)
        won, lost = u < (discordant + gain) / 2, u > 1 - (discordant - gain) / 2
        both = (rng.random(n) < 0.6).astype(float)
        tuned, baseline = np.where(won, 1, np.where(lost, 0, both)), np.where(won, 0, np.where(lost, 1, both))
        return tuned, baseline, np.ones(n), np.arange(n)

    return draw


def rare_losses(n: int) -> Draw:
    """Most gain a little and few lose much: the mean lies, a symmetric interval believes it."""

    def draw(rng: np.random.Generator, gain: float) -> Pairs:
        u = rng.random(n)
        d = np.where(u < 0.5, 0.1, np.where(u > 1 - 1 / 14, -0.7, 0.0)) + gain
        return 0.5 + d, np.full(n, 0.5), np.ones(n), np.arange(n)

    return draw


def only_losses(n: int) -> Draw:
    """Nothing is won, and as many are lost as the margin allows; at times none of them is among the samples."""

    def draw(rng: np.random.Generator, gain: float) -> Pairs:
        lost = rng.random(n) < -gain
        return np.where(lost, 0.0, 1.0), np.ones(n), np.ones(n), np.arange(n)

    return draw


def clustered(n_clusters: int) -> Draw:
    """Graded answers in clusters of 1 to 6, half of the difference's variance shared within a cluster."""

    def draw(rng: np.random.Generator, gain: float) -> Pairs:
        cluster = np.repeat(np.arange(n_clusters), rng.integers(1, 7, n_clusters))
        n = len(cluster)
        d = 0.15 * (rng.standard_normal(n_clusters)[cluster] + rng.standard_normal(n)) / np.sqrt(2)
        baseline = rng.beta(2, 2, n)
        return baseline + d + gain, baseline, np.ones(n), cluster

    return draw


def nats(n: int, noise: Callable[[np.random.Generator, int], Floats]) -> Draw:
    """Nats over documents of very unequal length; `gain` is relative: 0.05 is a perplexity 5 % lower."""

    def draw(rng: np.random.Generator, gain: float) -> Pairs:
        tokens = rng.integers(5, 120, n).astype(float)
        baseline = rng.gamma(4, 0.6, n)  # nats a token
        return tokens * (baseline + np.log1p(-gain) + noise(rng, n)), tokens * baseline, tokens, np.arange(n)

    return draw


def heavy(rng: np.random.Generator, n: int) -> Floats:
    return 0.15 * rng.standard_t(3, n)


def skewed(rng: np.random.Generator, n: int) -> Floats:
    """Mean zero, rare large losses: skewness 2.3."""
    return 0.15 * (np.exp(0.6 * rng.standard_normal(n)) - np.exp(0.18))


SCORES: dict[str, Draw] = {
    "right or wrong, 60 of 10%": right_or_wrong(60, 0.10),
    "right or wrong, 150 of 5%": right_or_wrong(150, 0.05),
    "right or wrong, 150 of 30%": right_or_wrong(150, 0.30),
    "graded, 25 clusters": clustered(25),
    "graded, 40 clusters": clustered(40),
    "rare losses, 100": rare_losses(100),
}
PERPLEXITIES: dict[str, Draw] = {
    "perplexity, 30, heavy tails": nats(30, heavy),
    "perplexity, 100, heavy tails": nats(100, heavy),
    "perplexity, 100, rare losses": nats(100, skewed),
}


def gate(metric: MeanMetric | Perplexity, rule: Rule, pairs: Pairs) -> RuleResult:
    tuned, baseline, size, cluster = pairs
    labels = [str(c) for c in cluster]

    def side(model: str, values: Floats) -> list[Sample]:
        rows = zip(labels, values.tolist(), size.tolist(), strict=True)
        return [Sample(str(i), c, "", "", model, v, int(s), int(s)) for i, (c, v, s) in enumerate(rows)]

    return judge_rule(rule, compare(metric, side("tuned", tuned), side("baseline", baseline), confidence=0.95))


def false_passes(metric: MeanMetric | Perplexity, rule: Rule, draw: Draw, gain: float) -> int:
    rng = np.random.default_rng(20240607)
    return sum(gate(metric, rule, draw(rng, gain)).outcome == "PASS" for _ in range(GATES))


def reaches_down_to(count: int) -> float:
    """The low end of the exact 99 % interval of a rate seen `count` times in GATES."""
    from scipy.stats import beta

    return float(beta.ppf(0.005, count, GATES - count + 1)) if count else 0.0


@pytest.mark.parametrize("name", SCORES)
def test_no_difference_does_not_beat_the_baseline(name: str) -> None:
    count = false_passes(SCORE, Rule(metric="score", must="beat_baseline"), SCORES[name], 0.0)
    assert reaches_down_to(count) <= 0.05


@pytest.mark.parametrize("name", [*SCORES, "only losses, 60", "only losses, 200"])
def test_a_loss_of_the_margin_is_a_regression(name: str) -> None:
    draw = only_losses(int(name.split()[-1])) if name.startswith("only") else SCORES[name]
    count = false_passes(SCORE, Rule(metric="score", must="not_regress", by_points=POINTS), draw, -POINTS)
    assert reaches_down_to(count) <= 0.05


@pytest.mark.parametrize("name", PERPLEXITIES)
@pytest.mark.parametrize(
    ("rule", "gain"),
    [
        (Rule(metric="perplexity", must="beat_baseline"), 0.0),
        (Rule(metric="perplexity", must="not_regress", by_relative=RELATIVE), -RELATIVE),
    ],
    ids=["beat_baseline", "not_regress"],
)
def test_perplexity_at_the_edge(name: str, rule: Rule, gain: float) -> None:
    count = false_passes(Perplexity(), rule, PERPLEXITIES[name], gain)
    assert reaches_down_to(count) <= 0.05


@pytest.mark.parametrize(
    ("metric", "draw", "gain"),
    [
        (SCORE, right_or_wrong(300, 0.30), 0.12),
        (SCORE, clustered(80), 0.06),
        (Perplexity(), nats(100, heavy), 0.10),
        (Perplexity(), nats(100, skewed), 0.10),
    ],
)
def test_a_real_gain_passes(metric: MeanMetric | Perplexity, draw: Draw, gain: float) -> None:
    """A gate that never opens would be calibrated too."""
    rng = np.random.default_rng(5)
    beat, keep = (Rule(metric=metric.name, must=must) for must in ("beat_baseline", "not_regress"))  # type: ignore[arg-type]
    pairs = [draw(rng, gain) for _ in range(100)]
    for rule in (beat, keep):
        outcomes = [gate(metric, rule, p).outcome for p in pairs]
        assert outcomes.count("PASS") > 0.8 * len(pairs) and "FAIL" not in outcomes
