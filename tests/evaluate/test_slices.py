"""Failing slices: planted ones are found, noise is not, and neither samples' order nor gaps in a metric matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from luthier import stats
from luthier.evaluate.compare import Answers, compare_models
from luthier.evaluate.conditions import find_conditions
from luthier.evaluate.rules import tag_text
from luthier.evaluate.slices import _gap, _half, _halves, find_slices
from luthier.evaluate.suites.suite import general
from luthier.metric import Floats, MeanMetric, Metric, Sample, SumMetric
from luthier.records import DiscoveredSlice, EvalReport
from luthier.settings import Recipe

from .samples import sample

SCORE = MeanMetric("score", lambda s: float(s.answer))
LOSS = MeanMetric("loss", lambda s: float(s.answer), higher_is_better=False)
WORDS = (
    "kettle lamp chair table desk cable plug socket shelf drawer mirror carpet window curtain pillow blanket".split()
)
Scores = Sequence[float] | Floats


def items(n: int, cluster: int = 1, seed: int = 5) -> list[dict[str, Any]]:
    """What is asked: a topic (five), a language (three), a flag, and prompts of 2 to 9 words."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        prompt = [("how", "what", "please")[rng.integers(3)], *rng.choice(WORDS, size=rng.integers(1, 9))]
        made.append(
            {
                "id": f"i{i:04}",
                "cluster": f"c{i // cluster:04}",
                "prompt": "user: " + " ".join(prompt),
                "reference": "yes",
                "tags": {"topic": "abcde"[rng.integers(5)], "lang": ("en", "de", "fr")[i % 3], "vip": i % 4 == 0},
            }
        )
    return made


def search(
    of: list[dict[str, Any]], tuned: Scores, baseline: Scores, metric: Metric = SCORE, seed: int = 0
) -> tuple[tuple[DiscoveredSlice, ...], str]:
    ours, theirs = (
        [sample(repr(float(x)), **item) for item, x in zip(of, side, strict=True)] for side in (tuned, baseline)
    )
    return find_slices(metric, ours, theirs, confidence=0.95, seed=seed, tag_text=tag_text)


def having(of: list[dict[str, Any]], **tags: Any) -> Any:
    return np.array([all(item["tags"][key] == value for key, value in tags.items()) for item in of])


def right(rng: np.random.Generator, p: Any, n: int = 400) -> Floats:
    return (rng.random(n) < p).astype(float)


# -- what is found ------------------------------------------------------------------------------------------------


def test_a_planted_slice_is_found_in_most_simulations() -> None:
    """30 points worse in a fifth of 400 samples, base and tuned alike: a shortfall."""
    asked, hits, others = items(400), 0, 0
    p = np.where(having(asked, topic="b"), 0.5, 0.8)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found, _ = search(asked, right(rng, p), right(rng, p), seed=seed)
        hits += any(one.condition == "topic=b" and one.kind == "shortfall" for one in found)
        others += sum(one.condition != "topic=b" for one in found)
    assert hits >= 75 and others <= 30


def test_noise_gives_no_slice() -> None:
    """A list has any entry in at most 10 % of the runs."""
    asked, runs = items(200), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        theirs = right(rng, 0.8, 200)
        ours = np.where(right(rng, 0.3, 200) > 0, right(rng, 0.8, 200), theirs)
        runs += bool(search(asked, ours, theirs, seed=seed)[0])
    assert stats.wilson(runs, 200, 0.99)[0] <= 0.1


@pytest.mark.parametrize("metric", [SCORE, LOSS], ids=["a slice without the tail", "a slice with it"])
def test_skewness_gives_no_slice(metric: Metric) -> None:
    """Log-normal. Without the floor under a side's spread, scores of sigma 0.8 gave one in 13 % of 250 runs."""
    asked, runs = items(200), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        theirs = rng.lognormal(size=200)
        ours = theirs * np.exp(rng.normal(scale=0.3, size=200))
        runs += bool(search(asked, ours, theirs, metric, seed)[0])
    assert stats.wilson(runs, 60, 0.99)[0] <= 0.1


def test_a_regression_that_no_tag_names() -> None:
    asked = items(400)
    length = np.array([len(item["prompt"].split()) - 1 for item in asked])
    long = length > np.quantile(length, 0.75, method="lower")
    rng = np.random.default_rng(1)
    theirs = right(rng, 0.8)
    found, searched = search(asked, theirs * (1 - long * right(rng, 0.5)), theirs)
    assert [(one.kind, one.condition) for one in found] == [
        ("regression", f"prompt of {length[long].min()} words or more")
    ]
    assert found[0].comparison.high < 0 and found[0].gap_high < 0 and found[0].p_adjusted < 0.05
    assert searched.startswith("1 failing slice found by score: ") and "listed once" in searched


def test_a_pair_is_found_where_neither_condition_tells() -> None:
    asked = items(900)
    both = having(asked, lang="de", vip=True)
    rng = np.random.default_rng(2)
    ours = right(rng, np.where(both, 0.2, 0.8), 900)
    found, _ = search(asked, ours, ours)
    assert [one.condition for one in found] == ["lang=de and vip=true"]
    assert found[0].comparison.delta == 0 and found[0].kind == "shortfall"


def test_a_loss_that_is_the_same_everywhere_is_no_slice() -> None:
    asked, runs = items(400), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        theirs = right(rng, 0.9)
        found, _ = search(asked, theirs * right(rng, 0.7), theirs, seed=seed)
        runs += bool(found)
    assert runs <= 5


def test_a_better_slice_is_no_failure() -> None:
    asked = items(400)
    rng = np.random.default_rng(3)
    theirs = right(rng, 0.5)
    found, _ = search(asked, np.where(having(asked, topic="c"), 1.0, theirs), theirs)
    assert not [one for one in found if one.condition == "topic=c" or one.kind == "regression"]


def test_lower_is_better_and_the_record_says_what_the_confirming_half_has() -> None:
    asked = items(400)
    slow = having(asked, topic="d")
    rng = np.random.default_rng(4)
    theirs = rng.normal(5, 1, 400)
    ours = theirs + 2 * slow
    (found,), _ = search(asked, ours, theirs, LOSS)
    assert (found.condition, found.kind) == ("topic=d", "regression")
    assert found.comparison.delta == pytest.approx(-2) and found.comparison.n < slow.sum()
    assert (
        found.gap == pytest.approx(found.rest - found.comparison.value) and found.gap_low < found.gap < found.gap_high
    )
    _, confirming = _halves(np.zeros((400, 2, 1)), np.arange(400), 0)
    rows = [i for i in confirming.rows if not slow[i]]
    assert found.rest == pytest.approx(ours[rows].mean())


# -- how it is searched -------------------------------------------------------------------------------------------


def test_the_order_of_samples_is_of_no_effect() -> None:
    asked = items(400, cluster=2)
    rng = np.random.default_rng(6)
    theirs = right(rng, 0.8)
    ours = right(rng, np.where(having(asked, topic="b"), 0.3, 0.8))
    first = search(asked, ours, theirs)
    assert first[0]
    order = rng.permutation(400)
    assert search([asked[i] for i in order], ours[order], theirs[order]) == first


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_never_cut(seed: int) -> None:
    clusters = np.sort(np.random.default_rng(seed).integers(0, 60, 300))
    clusters = np.unique(clusters, return_inverse=True)[1]
    halves = _halves(np.zeros((300, 2, 1)), clusters, seed)
    explored, confirmed = (set(clusters[half.rows]) for half in halves)
    assert not explored & confirmed and abs(len(explored) - len(confirmed)) <= 1
    assert sorted(np.concatenate([half.rows for half in halves])) == list(range(300))
    for half in halves:
        assert half.by_cluster(np.ones(len(half.rows))).tolist() == list(Counter(clusters[half.rows]).values())


def test_copies_within_clusters_are_no_evidence() -> None:
    """Each of 40 items ten times over: a slice of seven items that fails by chance is not confirmed by its copies."""
    runs = 0
    for seed in range(20):
        asked = [{**item, "id": f"{item['id']}-{j}"} for item in items(40, seed=seed) for j in range(10)]
        ours = np.repeat(right(np.random.default_rng(seed), 0.7, 40), 10)
        runs += bool(search(asked, ours, ours, seed=seed)[0])
    assert runs <= 5


def test_a_metric_without_a_value_for_some_samples() -> None:
    asked = items(600)
    rng = np.random.default_rng(7)
    ours = right(rng, np.where(having(asked, topic="b"), 0.2, 0.8), 600)
    partial = MeanMetric("partial", lambda s: float(s.answer) if int(s.id[1:]) % 3 else None)
    found, searched = search(asked, ours, ours, partial)
    assert found[0].condition == "topic=b" and found[0].comparison.metric == "partial"
    assert "looked at on 200 samples" in searched and "tested on the other 200" in searched


def test_a_metric_without_a_value_in_a_slice_is_not_confirmed_there() -> None:
    """Recall of what the slice does not hold."""
    asked = items(200)
    rng = np.random.default_rng(8)
    positive = ~having(asked, topic="b")
    ids = {item["id"] for item, yes in zip(asked, positive, strict=True) if yes}
    recall = SumMetric(
        "recall", lambda s: (float(s.answer) * (s.id in ids), float(s.id in ids)), lambda x: x[..., 0] / x[..., 1]
    )
    with np.errstate(all="ignore"):
        found, searched = search(asked, right(rng, 0.7, 200), right(rng, 0.7, 200), recall)
    assert not [one for one in found if one.condition == "topic=b"] and "looked at" in searched


def test_too_few_clusters_are_not_searched() -> None:
    assert search(items(78, cluster=2), [1.0] * 78, [1.0] * 78) == (
        (),
        "Failing slices were not searched: 39 independent samples are too few; at least 40 are needed",
    )
    assert "looked at on 40 samples" in search(items(80, cluster=2), [1.0] * 80, [1.0] * 80)[1]


def test_nothing_to_look_at_and_nothing_that_differs() -> None:
    same = [{"id": f"i{i}", "cluster": f"c{i}", "prompt": "", "reference": "x"} for i in range(100)]
    assert search(same, [0.0, 1.0] * 50, [1.0] * 100) == (
        (),
        "No failing slice found by score: 0 conditions looked at on 50 samples, none worth a test",
    )
    assert search(items(100), [1.0] * 100, [1.0] * 100)[1].endswith("none worth a test")


# -- the two-sample test ------------------------------------------------------------------------------------------


def gap(scores: Floats, inside: Any, clusters: Any) -> stats.Estimate:
    values = np.stack([np.stack([scores, np.ones_like(scores)], axis=1)] * 2, axis=1)  # (m, 2, 2)
    half = _half(values, np.asarray(clusters), np.arange(len(scores)))
    found = _gap(lambda sums: (sums[..., 0] / sums[..., 1])[..., 0], inside, half)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: (rng.random(n) < 0.5).astype(float),
        lambda rng, n: (rng.random(n) < 0.2).astype(float),
        lambda rng, n: rng.lognormal(size=n),
        lambda rng, n: -rng.lognormal(size=n),
    ],
    ids=["half right", "a fifth right", "skewed up", "skewed down"],
)
@pytest.mark.parametrize("n_inside", [10, 30])
def test_the_gap_is_covered_and_its_claims_are_true(draw: Callable[..., Floats], n_inside: int) -> None:
    """Slice and rest of one distribution: 95 % of intervals hold 0, and 1 % of 'worse' claims hold at 1 %."""
    rng, inside, runs, covered, claimed = np.random.default_rng(9), np.arange(150) < n_inside, 1000, 0, 0
    for _ in range(runs):
        found = gap(draw(rng, 150), inside, np.arange(150))
        low, high = found.interval(0.95)
        covered += low <= 0 <= high
        claimed += found.value < 0 and found.p() / 2 <= 0.01
    assert stats.wilson(covered, runs, 0.99)[1] >= 0.95
    assert stats.wilson(claimed, runs, 0.99)[0] <= 0.01


def test_the_gap_is_welchs_on_independent_samples() -> None:
    from scipy.stats import ttest_ind

    rng, inside = np.random.default_rng(10), np.arange(4000) < 1000
    scores = rng.normal(size=4000) - 0.1 * inside
    found, welch = gap(scores, inside, np.arange(4000)), ttest_ind(scores[inside], scores[~inside], equal_var=False)
    assert found.value / found.error == pytest.approx(welch.statistic, rel=1e-2)
    assert found.dof == pytest.approx(welch.df, rel=1e-2) and found.p() == pytest.approx(welch.pvalue, rel=0.15)


def test_a_cluster_on_both_sides_cancels() -> None:
    """What a cluster adds to slice and rest alike is no difference between them."""
    rng = np.random.default_rng(11)
    both = np.repeat(rng.normal(size=50), 2) + 0.1 * rng.normal(size=100)
    inside = np.arange(100) % 2 == 0
    assert gap(both, inside, np.arange(100) // 2).error < 0.5 * gap(both, inside, np.arange(100)).error


def test_ten_wrong_of_ten_are_no_certainty() -> None:
    scores = np.r_[np.zeros(10), np.ones(45), np.zeros(45)]
    found = gap(scores, np.arange(100) < 10, np.arange(100))
    assert 1e-3 < found.p() / 2 < 0.02  # 0.5^10 is 0.001


# -- conditions ---------------------------------------------------------------------------------------------------


def in_words(samples: list[Sample], at_least: int = 1) -> dict[str, int]:
    found = find_conditions(samples, at_least=at_least, seed=0, tag_text=tag_text)
    assert len({c.words for c in found}) == len(found)
    return {c.words: int(c.members.sum()) for c in found}


def test_conditions_read_the_last_turn() -> None:
    turns = [
        "user: Hello there\nassistant: How may I help?\nuser: What is 5?",
        "user: Сколько?",
        "user: 水は",
        "user: so",
    ]
    found = in_words([sample(prompt=p, reference=str(i), id=str(i)) for i, p in enumerate(turns)])
    assert found["prompt that starts with 'what'"] == found["prompt with 'what'"] == found["prompt with digits"] == 1
    assert "prompt with 'how'" not in found
    assert found["prompt in CYRILLIC script"] == 1 and found["prompt in LATIN script"] == 2
    assert found["prompt of 3 words or more"] == 1  # 9, of all turns


def test_tags_of_a_kind_and_tags_that_name_items() -> None:
    made = [
        sample(id=str(i), tags={"row": i, "kind": "xy"[i % 2], **({"vip": True} if i < 9 else {})}) for i in range(40)
    ]
    found = in_words(made, at_least=5)
    assert (found["kind=x"], found["kind=y"], found["vip=true"], found["vip=(none)"]) == (20, 20, 9, 31)
    assert not [words for words in found if words.startswith("row")]


def test_labels_are_conditions_and_texts_are_not() -> None:
    labelled = in_words([sample(reference="spam" if i < 10 else "ham") for i in range(40)])
    assert (labelled["reference 'spam'"], labelled["reference 'ham'"]) == (10, 30)
    assert not [words for words in in_words([sample(reference=f"text {i}") for i in range(40)]) if "'" in words]


def test_quarters_of_lengths() -> None:
    made = [sample(prompt="user: " + "word " * (i % 20 + 1)) for i in range(200)]
    found = {words: n for words, n in in_words(made).items() if words.startswith("prompt of")}
    assert sum(found.values()) == 200 and len(found) == 4 and found["prompt of 5 words or fewer"] == 50


def test_topics_are_found_and_named() -> None:
    rng = np.random.default_rng(12)
    groups = ["refund money return", "delivery parcel courier", "password login account"]
    made = [sample(prompt="user: my " + " ".join(rng.permutation(groups[i % 3].split()))) for i in range(150)]
    topics = {words: n for words, n in in_words(made).items() if words.startswith("prompt about")}
    assert {frozenset(words.removeprefix("prompt about ").split(", ")): n for words, n in topics.items()} == {
        frozenset(group.split()): 50 for group in groups
    }


# -- in the report ------------------------------------------------------------------------------------------------


def recipe(*metrics: str) -> Recipe:
    rules = [{"metric": name, "must": "not_regress"} for name in metrics]
    return Recipe.model_validate({"name": "r", "data": {"sources": [{"path": "x"}]}, "release": {"rules": rules}})


def test_the_report_goes_by_the_first_rule_on_held_out_items() -> None:
    asked = items(400)
    bad = having(asked, topic="b")
    suites = {"general": [sample(id=f"g{i}", cluster=f"g{i}") for i in range(30)]}
    theirs = Answers("base", [sample("1.0", **item) for item in asked], suites)
    ours = Answers("tuned", [sample(f"{float(not x)}", **item) for item, x in zip(asked, bad, strict=True)], suites)

    def compared(metrics: list[Metric], *rules: str) -> EvalReport:
        asked = {"suites": [general([])], "recipe": recipe(*rules)}
        return compare_models(ours, theirs, metrics=metrics, task="answer", **asked)

    metrics: list[Metric] = [MeanMetric("one", lambda s: 1.0), SCORE]
    found = compared(metrics, "general_perplexity", "score")
    assert [one.condition for one in found.discovered] == ["topic=b"] and "found by score" in found.searched
    only = compared(metrics, "general_perplexity")
    assert not only.discovered and "found by one" in only.searched
    none = compared([MeanMetric("never", lambda s: None)], "general_perplexity")
    assert (none.discovered, none.searched) == ((), "")
