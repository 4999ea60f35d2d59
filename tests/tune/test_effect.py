"""What an interval over items and seeds promises, by simulation: nothing here trains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import stats
from luthier.errors import EvaluationError
from luthier.evaluate.metrics.likelihood import perplexity
from luthier.metric import Floats, MeanMetric, Sample
from luthier.stats import holm
from luthier.tune.effect import Effect, compare_seeds, value_of

SCORE = MeanMetric("score", lambda s: s.nats)


def answers(scores: Floats, clusters: int | None = None) -> list[list[Sample]]:
    """Of scores `(G, S)`: for each seed, a sample an item."""
    return [
        [Sample(str(i), str(i % (clusters or len(scores))), "?", "", "", x, 1, 1) for i, x in enumerate(of_seed)]
        for of_seed in scores.T.tolist()
    ]


def effect(scores: Floats, baseline: Floats | None = None) -> Effect:
    theirs = np.zeros_like(scores) if baseline is None else baseline
    return compare_seeds(SCORE, answers(scores), answers(theirs), confidence=0.95)


def draw(rng: np.random.Generator, n_items: int, n_seeds: int, items: float, seeds: float, rest: float) -> Floats:
    """Differences `(G, S)` of mean 0 from the model in `effect.py`."""
    noise = rng.normal(0, rest, (n_items, n_seeds))
    return np.asarray(rng.normal(0, items, (n_items, 1)) + rng.normal(0, seeds, n_seeds) + noise)


def naive(scores: Floats) -> stats.Comparison:
    """Over the items alone, of the mean over the seeds: what a single pair of models would be judged by."""
    [mean], [zero] = (answers(x.mean(axis=1, keepdims=True)) for x in (scores, 0 * scores))
    return stats.compare(SCORE, mean, zero, confidence=0.95)


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("parts", [(1.0, 0.0, 1.0), (1.0, 0.3, 1.0), (0.3, 1.0, 1.0)])
def test_the_interval_covers_as_promised(n_seeds: int, parts: tuple[float, float, float]) -> None:
    rng, n = np.random.default_rng([n_seeds, int(10 * parts[1])]), 400
    draws = [draw(rng, 40, n_seeds, *parts) for _ in range(n)]
    found = [effect(d).comparison for d in draws]
    covered = np.mean([c.low <= 0 <= c.high for c in found])
    assert covered >= 0.93, covered  # 400 draws of 95 %: standard error 1.1 %
    if parts[1]:
        items_alone = np.mean([(c := naive(d)).low <= 0 <= c.high for d in draws])
        assert items_alone < 0.9, items_alone
    assert all((c.low > 0 or c.high < 0) == (c.p < 0.05) for c in found)


def test_a_false_better_among_six_stays_under_5_percent() -> None:
    """Six variants that change nothing share a baseline: its luck is in all their differences."""
    rng, n = np.random.default_rng(1), 200
    false, naively = 0, 0
    for _ in range(n):
        baseline, *variants = (draw(rng, 30, 3, 0.0, 0.4, 1.0) for _ in range(7))
        item = rng.normal(0, 1, (30, 1))
        found = [effect(item + v, item + baseline).comparison for v in variants]
        false += any(p < 0.05 and c.delta > 0 for p, c in zip(holm([c.p for c in found]), found, strict=True))
        alone = [naive(v - baseline) for v in variants]
        naively += any(p < 0.05 and c.delta > 0 for p, c in zip(holm([c.p for c in alone]), alone, strict=True))
    assert false / n <= 0.05 < 0.25 < naively / n, (false, naively)


def test_the_best_of_eight_is_flattered_by_what_it_was_chosen_on() -> None:
    """None is better. New rows alone do not undo the choice where luck is large: new trainings do."""
    rng, n, shape = np.random.default_rng(2), 150, (30, 3)
    chosen_on, new_rows, both_new = [], [], []
    for _ in range(n):
        luck = rng.normal(0, 0.3, (8, 3))
        found = [effect(one + draw(rng, *shape, 1.0, 0.0, 1.0)).comparison for one in luck]
        best = max(range(8), key=lambda i: found[i].low)
        chosen_on.append(found[best].delta)
        new_rows.append((luck[best] + rng.normal(0, 1, shape)).mean())
        both_new.append(draw(rng, *shape, 1.0, 0.3, 1.0).mean())
    bias = [float(np.mean(x) / (np.std(x) / n**0.5)) for x in (chosen_on, new_rows, both_new)]  # in standard errors
    assert bias[0] > 10 and bias[1] > 3 and abs(bias[2]) < 3, bias


def test_the_luck_is_a_share_of_the_variance() -> None:
    rng = np.random.default_rng(3)
    shares = [effect(draw(rng, 50, 5, 1.0, 1.0, 1.0)).luck for _ in range(20)]
    none = [effect(draw(rng, 50, 5, 1.0, 0.0, 1.0)).luck for _ in range(20)]
    # seeds: 1 / 5; items: 1 / 50 + 1 / 250
    assert np.median([s for s in shares if s is not None]) == pytest.approx(0.2 / 0.224, abs=0.08)
    assert np.median([s for s in none if s is not None]) < 0.1


def test_the_seeds_that_are_said_to_be_needed_have_the_power() -> None:
    rng, true = np.random.default_rng(4), 0.4
    planned = [effect(true + draw(rng, 60, 8, 0.5, 0.3, 1.0)).seeds_needed for _ in range(60)]
    n_seeds = int(np.median([n for n in planned if n is not None]))
    shown = [effect(true + draw(rng, 60, n_seeds, 0.5, 0.3, 1.0)).comparison.low > 0 for _ in range(200)]
    assert 3 <= n_seeds <= 20 and 0.7 <= np.mean(shown) <= 0.95, (n_seeds, np.mean(shown))
    assert effect(0.001 + draw(rng, 60, 3, 1.0, 1.0, 1.0) * 1e3).seeds_needed is None


def test_one_seed_is_an_ordinary_comparison_and_says_nothing_of_luck() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = (answers(rng.gamma(2.0, 1.0, (50, 1)), clusters=30) for _ in range(2))
    found = compare_seeds(perplexity(), ours, theirs, confidence=0.9)
    assert found == Effect(stats.compare(perplexity(), ours[0], theirs[0], confidence=0.9), None, None)


def test_a_metric_that_is_no_mean_and_clusters_of_several_items() -> None:
    """Perplexity of small losses is about linear in them: the parts then are those of the mean of the clusters."""
    rng = np.random.default_rng(6)
    losses = 1 + 0.01 * draw(rng, 60, 4, 1.0, 0.5, 1.0)
    ours, theirs = answers(losses, clusters=30), answers(np.ones_like(losses), clusters=30)
    curved = compare_seeds(perplexity(), ours, theirs, confidence=0.95)
    straight = compare_seeds(SCORE, ours, theirs, confidence=0.95)
    assert curved.comparison.n_clusters == 30 and curved.luck == pytest.approx(straight.luck, rel=0.05)
    scale = -np.e  # d exp(x) at 1, and less perplexity is better
    assert curved.comparison.delta == pytest.approx(scale * straight.comparison.delta, rel=0.05, abs=1e-3)
    assert curved.comparison.high - curved.comparison.low == pytest.approx(
        np.e * (straight.comparison.high - straight.comparison.low), rel=0.05
    )


def test_models_that_do_the_same_do_not_differ() -> None:
    same = effect(np.ones((30, 3)), np.ones((30, 3)))
    assert (same.comparison.delta, same.comparison.p, same.luck) == (0.0, 1.0, 0.0)


def test_a_sample_without_a_value_after_one_seed_is_left_out_of_all() -> None:
    metric = MeanMetric("some", lambda s: s.nats if s.nats >= 0 else None)
    scores = np.ones((30, 2))
    scores[3, 1] = -1.0
    assert compare_seeds(metric, answers(scores), answers(0 * scores), confidence=0.95).comparison.n == 29
    with pytest.raises(EvaluationError, match="LU-E001"):
        value_of(metric, answers(-scores)[0])
    scores[:, 1] = -1.0
    with pytest.raises(EvaluationError, match="LU-E001"):
        compare_seeds(metric, answers(scores), answers(0 * scores), confidence=0.95)


@given(
    st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(0, 3), st.sampled_from([0.8, 0.95, 0.99]), st.integers(2, 6)
)
def test_interval_and_p_agree_whatever_the_luck(
    seed: int, seeds: float, mean: float, confidence: float, n: int
) -> None:
    scores = mean + draw(np.random.default_rng(seed), 25, n, 1.0, seeds, 0.5)
    c = compare_seeds(SCORE, answers(scores), answers(0 * scores), confidence=confidence).comparison
    assert (c.low > 0 or c.high < 0) == (c.p < 1 - confidence)
    assert c.low <= c.delta <= c.high and c.min_detectable > 0
