"""Properties of the comparison: what must hold for every metric and every sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.errors import UserError
from luthier.metric import Floats, MeanMetric, Sample
from luthier.records import Comparison
from luthier.stats import (
    FLIPS,
    MIN_CLUSTERS,
    benjamini_hochberg,
    compare,
    holm,
    kappa,
    mcnemar_exact,
    permutation_p,
    share_of_drawing,
    wilson,
)

untimed = settings(deadline=None)
SCORE = MeanMetric("score", lambda s: float(s.answer) if s.answer else None)


class Perplexity:
    name = "perplexity"
    higher_is_better = False

    def stats(self, sample: Sample) -> Sequence[float]:
        return sample.nats, float(sample.n_tokens)

    def combine(self, sums: Floats) -> Floats:
        return np.exp(sums[..., 0] / sums[..., 1])


class F1:
    """Of one label: `answer` and `reference` are '0' or '1'. Undefined (NaN) where neither ever says '1'."""

    name = "f1"
    higher_is_better = True

    def stats(self, sample: Sample) -> Sequence[float]:
        said, right = sample.answer == "1", sample.reference == "1"
        return float(said and right), float(said and not right), float(right and not said)

    def combine(self, sums: Floats) -> Floats:
        with np.errstate(all="ignore"):
            return 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def sample(
    i: int, answer: object = "", cluster: object = None, *, reference: str = "", nats: float = 1.0, tokens: int = 1
) -> Sample:
    text = "" if answer is None else str(answer)
    return Sample(str(i), str(i if cluster is None else cluster), "", reference, text, nats, tokens, tokens)


def scored(scores: Sequence[float | None], clusters: Sequence[object] | None = None) -> list[Sample]:
    return [sample(i, s, clusters[i] if clusters else None) for i, s in enumerate(scores)]


def compared(tuned: Sequence[Sample], baseline: Sequence[Sample], confidence: float = 0.95) -> Comparison:
    return compare(SCORE, tuned, baseline, confidence=confidence)


def numbers(c: Comparison) -> dict[str, float]:
    return {k: v for k, v in c.model_dump().items() if isinstance(v, int | float) and not isinstance(v, bool)}


GRADE = st.sampled_from([0.0, 1.0]) | st.floats(0, 1).map(lambda x: round(x, 3))
ROW = st.tuples(GRADE, GRADE, st.integers(0, 40))
ROWS = st.lists(ROW, min_size=1, max_size=60)


def sides(rows: Sequence[tuple[float, float, int]]) -> tuple[list[Sample], list[Sample]]:
    clusters = [c for _, _, c in rows]
    return scored([t for t, _, _ in rows], clusters), scored([b for _, b, _ in rows], clusters)


@untimed
@given(ROWS)
def test_swapping_the_models_mirrors_the_comparison(rows: list[tuple[float, float, int]]) -> None:
    tuned, baseline = sides(rows)
    there, back = compared(tuned, baseline), compared(baseline, tuned)
    close = {"rel": 1e-9, "abs": 1e-9}
    assert (there.delta, there.low, there.high) == pytest.approx((-back.delta, -back.high, -back.low), **close)
    assert there.p == pytest.approx(back.p, **close)
    assert (there.wins, there.losses, there.ties) == (back.losses, back.wins, back.ties)
    assert (there.value_low, there.value_high) == pytest.approx((back.baseline_low, back.baseline_high), **close)
    assert (there.trouble is None) == (back.trouble is None)


@untimed
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(rows: list[tuple[float, float, int]], random) -> None:  # type: ignore[no-untyped-def]
    pairs = list(zip(*sides(rows), strict=True))
    before = compared(*zip(*pairs, strict=True))
    random.shuffle(pairs)
    after = compared(*zip(*pairs, strict=True))
    assert numbers(after) == pytest.approx(numbers(before), rel=1e-9, abs=1e-9)


@untimed
@given(ROWS, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_p_value_and_the_interval_agree(rows: list[tuple[float, float, int]], confidence: float) -> None:
    c = compared(*sides(rows), confidence)
    assume(abs(c.p - (1 - confidence)) > 1e-9)
    assert (c.low > 0 or c.high < 0) == (c.p < 1 - confidence)
    assert c.low <= c.delta <= c.high and 0 <= c.p <= 1


@untimed
@given(ROWS)
def test_every_number_is_finite_and_survives_the_disk(rows: list[tuple[float, float, int]]) -> None:
    c = compared(*sides(rows))
    assert all(math.isfinite(v) for v in numbers(c).values())
    assert Comparison.model_validate_json(c.model_dump_json()) == c
    assert c.wins + c.losses + c.ties == c.n == len(rows)
    assert c.value_low <= c.value <= c.value_high and c.baseline_low <= c.baseline <= c.baseline_high


@untimed
@given(ROWS)
def test_twice_as_many_alike_clusters_narrow_the_interval(rows: list[tuple[float, float, int]]) -> None:
    once = compared(*sides(rows))
    twice = compared(*sides(rows + [(t, b, c + 1000) for t, b, c in rows]))
    assert twice.delta == pytest.approx(once.delta)
    assert twice.high - twice.low <= once.high - once.low + 1e-12
    assert twice.min_detectable <= once.min_detectable + 1e-12


def test_copies_within_a_cluster_add_no_evidence() -> None:
    rng = np.random.default_rng(0)
    rows = [(float(t), float(b), i) for i, (t, b) in enumerate(rng.random((40, 2)))]
    once, copied = compared(*sides(rows)), compared(*sides(rows * 3))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert (copied.n, copied.n_clusters) == (120, 40)


def test_one_metric_does_not_depend_on_what_was_compared_before() -> None:
    tuned, baseline = scored([0.2, 0.4, 0.9] * 10), scored([0.1, 0.5, 0.3] * 10)
    first = compared(tuned, baseline)
    compare(Perplexity(), tuned, baseline, confidence=0.95)
    assert compared(tuned, baseline) == first


@untimed
@given(st.lists(GRADE, min_size=1, max_size=50))
def test_identical_models_tie(scores: list[float]) -> None:
    c = compared(scored(scores), scored(scores))
    assert (c.delta, c.low, c.high, c.p) == (0, 0, 0, 1)
    assert (c.wins, c.losses, c.ties) == (0, 0, len(scores))
    assert (c.trouble is None) == (len(scores) >= MIN_CLUSTERS)


def test_as_good_is_not_the_same() -> None:
    """Two models that differ and are right on the same 60 samples: a loss of up to 6 % may be unseen."""
    baseline = scored([1, 0, 1] * 20)
    tuned = [dataclasses.replace(s, nats=s.nats + 0.1) for s in baseline]
    c = compared(tuned, baseline)
    assert (c.delta, c.p, c.ties, c.trouble) == (0, 1, 60, None)
    assert -c.low == pytest.approx(c.high) == pytest.approx(1 - 0.025 ** (1 / 60))


def test_the_same_gain_everywhere_is_a_gain_but_no_certainty() -> None:
    c = compared(scored([1] * 30), scored([0] * 30))
    assert 0 < c.low < c.delta == 1 and c.p < 1e-6 and c.trouble is None
    assert c.value_low < 1 and c.baseline_high > 0


def test_a_metric_applies_to_both_sides_or_not_at_all() -> None:
    c = compared(scored([1, None, 0, 1]), scored([0, 1, None, 1]))
    assert (c.n, c.value, c.baseline) == (2, 1.0, 0.5)


def test_an_empty_sample_has_no_mean() -> None:
    with pytest.raises(UserError, match="LU-E001 score: .*an empty sample has no mean"):
        compared(scored([None, 1]), scored([1, None]))
    with pytest.raises(UserError, match="LU-E001"):
        compared([], [])


def test_samples_must_face_each_other() -> None:
    one, other = scored([1, 0]), scored([1, 0])
    with pytest.raises(AssertionError, match="faces"):
        compared(one, other[::-1])
    with pytest.raises(AssertionError, match="faces"):
        compared(one, [dataclasses.replace(s, cluster="x") for s in other])


def test_a_value_that_is_undefined_is_an_error_not_a_zero() -> None:
    silent = [sample(i, "0", reference="0") for i in range(30)]
    with pytest.raises(UserError, match="LU-E002 f1"):
        compare(F1(), silent, silent, confidence=0.95)


def test_a_sample_without_a_value_of_its_own_is_a_tie() -> None:
    truth = ["1", "0"] * 20
    tuned = [sample(i, t, reference=t) for i, t in enumerate(truth)]
    baseline = [sample(i, "0", reference=t) for i, t in enumerate(truth)]
    c = compare(F1(), tuned, baseline, confidence=0.95)
    assert (c.wins, c.losses, c.ties) == (20, 0, 20)  # the twenty true negatives have no F1
    assert c.delta == 1.0


def test_a_value_that_hangs_on_one_sample_is_trouble() -> None:
    truth = ["1"] + ["0"] * 39
    tuned = [sample(i, t, reference=t) for i, t in enumerate(truth)]
    baseline = [sample(i, "1", reference=t) for i, t in enumerate(truth)]
    c = compare(F1(), tuned, baseline, confidence=0.95)
    assert c.trouble is not None and "no value without 1 of the 40" in c.trouble


def test_lower_perplexity_is_a_gain() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 50, 60)
    nats = tokens * rng.gamma(9, 0.3, 60)
    baseline = [sample(i, nats=x, tokens=int(t)) for i, (x, t) in enumerate(zip(nats, tokens, strict=True))]
    noise = 0.1 * rng.standard_normal(60)
    tuned = [dataclasses.replace(s, nats=s.nats - s.n_tokens * (0.2 + e)) for s, e in zip(baseline, noise, strict=True)]
    c = compare(Perplexity(), tuned, baseline, confidence=0.95)
    assert c.value < c.baseline and c.delta == pytest.approx(c.baseline - c.value)
    assert c.low > 0 and c.p < 0.05 and c.wins > c.losses
    # total over total, not a mean of means
    assert c.baseline == pytest.approx(math.exp(nats.sum() / tokens.sum()))


def test_an_infinite_perplexity_is_an_error() -> None:
    broken = [sample(i, nats=1e6) for i in range(30)]
    with pytest.raises(UserError, match="LU-E002"):
        compare(Perplexity(), broken, [sample(i) for i in range(30)], confidence=0.95)


@pytest.mark.parametrize(
    ("tuned", "says"),
    [
        ([1, 0, 1] * 6, "18 independent samples are too few"),
        ([0.5] * 2 + [0] * 98, "only 2 of 100 independent samples differ"),
        ([0.5] * 3 + [0] * 97, None),
        ([1] * 1 + [0] * 99, None),  # right or wrong: all differences have one size
        ([1000] + [0.1, -0.1] * 20, "(one alone carries 98% of it)"),
        ([1, -1] * 15, None),
    ],
)
def test_trouble_says_why_the_interval_is_not_to_be_relied_on(tuned: list[float], says: str | None) -> None:
    trouble = compared(scored(tuned), scored([0.0] * len(tuned))).trouble
    assert (trouble is None) if says is None else (says in str(trouble))


def test_a_single_sample_claims_nothing() -> None:
    c = compared(scored([1]), scored([0]))
    assert c.low < 0 < c.high and c.p > 0.05 and c.trouble is not None


@pytest.mark.parametrize("losses", [2, 3, 4, 6, 10, 20, 40])
def test_the_limit_for_rare_losses_is_the_exact_one(losses: int) -> None:
    from scipy.stats import beta

    c = compared(scored([-1] * losses + [0] * (400 - losses)), scored([0] * 400))
    assert -c.low == pytest.approx(beta.ppf(0.975, losses + 1, 400 - losses), rel=0.04)


def test_many_samples_agree_with_the_t_test() -> None:
    from scipy.stats import ttest_1samp

    gains = np.random.default_rng(2).normal(0.02, 0.3, 2000)
    c = compared(scored([float(x) for x in gains + 5]), scored([5] * 2000))
    reference = ttest_1samp(gains, 0)
    assert c.p == pytest.approx(reference.pvalue, rel=0.1)
    expected = reference.confidence_interval()
    assert (c.low, c.high) == pytest.approx((expected.low, expected.high), abs=3e-4)


def test_the_detectable_gain_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    gain = compared(scored([float(x) for x in rng.normal(0, 1, 200) + 5]), scored([5] * 200)).min_detectable
    draws = [scored([float(x) for x in row]) for row in rng.normal(gain, 1, (300, 200)) + 5]
    shown = [compared(draw, scored([5] * 200)).low > 0 for draw in draws]
    assert 0.7 < np.mean(shown) < 0.9


def test_wilson_against_the_published_interval() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3
    assert wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20, 0.95) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(29, 29, 0.95) == pytest.approx((0.8830, 1), abs=5e-5)
    with pytest.raises(UserError, match="LU-E001"):
        wilson(0, 0, 0.95)


def test_a_proportion_has_a_wilson_interval() -> None:
    c = compared(scored([1] * 70 + [0] * 30), scored([1] * 100))
    assert (c.value_low, c.value_high) == pytest.approx(wilson(70, 100, 0.95), abs=2e-3)
    assert (c.baseline_low, c.baseline_high) == wilson(100, 100, 0.95)


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@untimed
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_raises_every_p_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


@untimed
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_sign_test(wins: int, losses: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar_exact(wins, losses) == pytest.approx(expected)


@untimed
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_is_scipys(p_values: list[float]) -> None:
    from scipy.stats import false_discovery_control

    assert benjamini_hochberg(p_values) == pytest.approx(list(false_discovery_control(p_values)))


def test_benjamini_hochberg_of_nothing_is_nothing() -> None:
    assert benjamini_hochberg([]) == []


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_few_clusters_flip_in_every_way(differences: list[int]) -> None:
    from scipy.stats import permutation_test

    exact = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert permutation_p(differences, seed=0) == pytest.approx(exact.pvalue)


def test_many_clusters_flip_at_random() -> None:
    from scipy.stats import permutation_test

    differences = np.random.default_rng(4).standard_t(3, 150) + 0.2
    drawn = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1)
    p = permutation_p(differences.tolist(), seed=0)
    assert p == pytest.approx(drawn.pvalue, abs=0.015) and p == permutation_p(differences.tolist(), seed=0)


def test_a_permutation_p_is_never_0_and_needs_a_cluster() -> None:
    assert permutation_p([1.0] * 200, seed=0) == 1 / (1 + FLIPS)
    assert permutation_p([0.1, 0.2, -0.3], seed=0) == 1.0  # a sum that only rounding moves from 0
    with pytest.raises(UserError, match="LU-E001"):
        permutation_p([], seed=0)


def test_the_flips_agree_with_the_interval() -> None:
    gains = np.random.default_rng(6).normal(0.15, 1, 400)
    c = compared(scored([float(x) for x in gains + 5]), scored([5] * 400))
    assert permutation_p(gains.tolist(), seed=0) == pytest.approx(c.p, abs=0.01)


def test_the_detectable_gain_is_larger_where_losses_are_rare_and_large() -> None:
    rare = [0.1] * 90 + [-0.9] * 10
    there = compared(scored([5 + x for x in rare]), scored([5] * 100)).min_detectable
    back = compared(scored([5 - x for x in rare]), scored([5] * 100)).min_detectable
    assert there > back > 0


def test_the_share_of_drawing_is_that_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    for between, within, draws in ((1.0, 1.0, 4), (2.0, 0.5, 2), (0.0, 1.0, 3)):
        gains = between * rng.normal(size=(4000, 1)) + within * rng.normal(size=(4000, draws))
        true = (within**2 / draws) / (between**2 + within**2 / draws)
        assert share_of_drawing(gains.tolist()) == pytest.approx(true, abs=0.06)
    assert share_of_drawing([[1.0, 1.0], [0.0, 0.0]]) == 0.0


def test_kappa_is_that_of_a_peer() -> None:
    cohen_kappa_score = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    rng = np.random.default_rng(5)
    for _ in range(20):
        a, b = rng.integers(0, 3, size=(2, 40))
        table = np.zeros((3, 3))
        np.add.at(table, (a, b), 1)
        assert float(kappa(table)) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(kappa(np.array([np.zeros((3, 3)), np.diag([9.0, 0.0, 0.0])]))).all()
