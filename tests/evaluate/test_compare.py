"""The report of two models on the same items: the whole, the slices, the rules' places, and what it leaves out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier import stats
from luthier.errors import UserError
from luthier.evaluate.compare import Answers, compare_models
from luthier.evaluate.metrics.build import build
from luthier.evaluate.rules import check_names, check_rules, check_values, comparisons_for, tag_text
from luthier.evaluate.suites.suite import general
from luthier.metric import MeanMetric, Metric, Sample
from luthier.records import EvalReport
from luthier.settings import Recipe, Rule, Use

from .samples import VOCABULARY, sample

RULE = {"metric": "exact_match", "must": "beat_baseline"}


def recipe(*rules: dict[str, Any], slices: tuple[str, ...] = ()) -> Recipe:
    data = {"sources": [{"path": "x.jsonl"}], "slices": list(slices)}
    return Recipe.model_validate({"name": "r", "data": data, "release": {"rules": list(rules or [RULE])}})


def built_in(*names: str, labels: tuple[str, ...] = ()) -> list[Metric]:
    return [build(Use(use=name), labels, None) for name in names]


def answers(side: str, n: int = 60, right: float = 0.5, **tags: Any) -> Answers:
    """`n` items of which the share `right` is answered with the reference; the same items whatever the side."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        reference = " ".join(rng.choice(VOCABULARY, size=8))
        wrong = "not " + " ".join(rng.choice(VOCABULARY, size=5))
        answer = reference if i % 10 < right * 10 else wrong
        item_tags = {"topic": ["returns", "products", "delivery"][i % 3], "kind": ["seen", "unseen_fact"][i % 2]}
        fields = {"id": f"i{i}", "cluster": f"f{i // 2}", "nats": 9.0 - 5 * right, "n_tokens": 4, "n_bytes": 20}
        samples.append(sample(answer, reference, **fields, tags=item_tags | tags))
    return Answers(side, samples)


def report(*metrics: Metric, of: Recipe | None = None, task: Any = "answer", **both: Any) -> EvalReport:
    return compare_models(
        answers("tuned", right=0.8, **both),
        answers("base", right=0.3, **both),
        metrics=metrics or built_in("exact_match", "perplexity"),
        recipe=of or recipe(),
        task=task,
    )


def retagged(of: Answers, tags: list[dict[str, Any]]) -> Answers:
    return replace(of, samples=[replace(s, tags=t) for s, t in zip(of.samples, tags, strict=True)])


def test_the_whole() -> None:
    found = report()
    assert (found.model, found.baseline, found.task, found.n, found.n_clusters) == ("tuned", "base", "answer", 60, 30)
    assert (found.cluster_by, found.confidence, found.notes) == ("family", 0.95, ())
    exact = found.metrics["exact_match"]
    assert (exact.value, exact.baseline, exact.delta) == pytest.approx((0.8, 0.3, 0.5))
    assert exact.low > 0 and (exact.wins, exact.losses, exact.ties) == (30, 0, 30)
    assert found.metrics["perplexity"].delta == pytest.approx(math.exp(7.5 / 4) - math.exp(5.0 / 4))
    assert EvalReport.model_validate_json(found.model_dump_json()) == found


def test_every_comparison_is_that_of_stats() -> None:
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    metrics = built_in("exact_match", "bleu", "perplexity")
    found = compare_models(ours, theirs, metrics=metrics, recipe=recipe(slices=("topic",)), task="answer")
    for metric in metrics:
        whole = stats.compare(metric, ours.samples, theirs.samples, confidence=0.95)
        assert found.metrics[metric.name] == whole
        rows = [i for i, s in enumerate(ours.samples) if s.tags["topic"] == "returns"]
        part = stats.compare(
            metric, [ours.samples[i] for i in rows], [theirs.samples[i] for i in rows], confidence=0.95
        )
        assert found.slices["topic"]["returns"][metric.name] == part


def test_samples_stand_side_by_side_with_their_scores() -> None:
    metrics = [*built_in("exact_match"), MeanMetric("long", lambda s: None if s.id == "i0" else len(s.answer) > 9)]
    found = report(*metrics)
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    for judged, new, old in zip(found.samples, ours.samples, theirs.samples, strict=True):
        assert (judged.id, judged.tuned, judged.baseline, judged.reference) == (
            new.id,
            new.answer,
            old.answer,
            new.reference,
        )
        assert judged.scores["exact_match"] == (float(old.answer == new.reference), float(new.answer == new.reference))
    assert found.samples[0].scores["long"] == (None, None)
    assert found.metrics["long"].n == 59


def test_slices_with_missing_and_odd_values() -> None:
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    tags = [
        [{}, {"vip": True}, {"vip": 1.5}, {"vip": ["a", "b"]}, {"vip": None}, {"vip": "yes"}][i % 6] for i in range(60)
    ]
    found = compare_models(
        retagged(ours, tags),
        retagged(theirs, tags),
        metrics=built_in("exact_match"),
        recipe=recipe(slices=("vip",)),
        task="answer",
    )
    assert {v: c["exact_match"].n for v, c in found.slices["vip"].items()} == {
        "(none)": 20,
        '["a", "b"]': 10,
        "1.5": 10,
        "true": 10,
        "yes": 10,
    }
    assert found.notes == ()


def test_a_small_slice_is_noted_and_not_compared() -> None:
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    tags = [{"shop": "big"}] * 53 + [{"shop": "four"}] * 4 + [{"shop": "one"}] + [{"shop": "two"}] * 2
    found = compare_models(
        retagged(ours, tags),
        retagged(theirs, tags),
        metrics=built_in("exact_match"),
        recipe=recipe({**RULE, "in_slices": ["shop"]}, slices=("shop",)),
        task="answer",
    )
    assert list(found.slices["shop"]) == ["big"]
    assert found.notes == ("not compared, under 5 samples: shop=four (4), shop=one (1), shop=two (2)",)
    assert list(comparisons_for(Rule(**RULE, in_slices=("shop",)), found)) == ["shop=big"]


def test_a_slice_with_too_many_values_is_noted_briefly() -> None:
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    tags = [{"customer": f"c{i:02}"} for i in range(60)]
    found = compare_models(
        retagged(ours, tags),
        retagged(theirs, tags),
        metrics=built_in("exact_match"),
        recipe=recipe(slices=("customer",)),
        task="answer",
    )
    assert found.slices == {"customer": {}}
    assert len(found.notes) == 1 and found.notes[0].endswith("customer=c09 (1) and 50 more")


def test_a_metric_that_applies_to_few_of_a_slice_is_noted_there() -> None:
    few = MeanMetric("few", lambda s: s.tags["topic"] == "returns" or s.id in ("i1", "i2") or None)
    found = report(
        *built_in("exact_match"),
        few,
        of=recipe({"metric": "few", "must": "not_regress", "in_slices": ["topic"]}, slices=("topic",)),
    )
    assert found.notes == ("few not compared, has a value on under 5 samples: topic=delivery (1), topic=products (1)",)
    assert set(found.slices["topic"]["returns"]) == {"few", "exact_match"}
    assert set(found.slices["topic"]["products"]) == {"exact_match"}


def test_a_label_that_a_slice_lacks_has_no_value_there() -> None:
    labels = ("a", "b")

    def side(name: str) -> Answers:
        made = [
            sample("a", "a" if i < 30 else "b", id=f"i{i}", cluster=f"c{i}", tags={"half": f"h{i // 30}"})
            for i in range(60)
        ]
        return Answers(name, made)

    metric = build(Use(use="luthier.evaluate.metrics.labels:f1", label="b"), labels, None)
    of = recipe({"metric": "f1", "must": "not_regress"}, slices=("half",))
    found = compare_models(side("tuned"), side("base"), metrics=[metric], recipe=of, task="classification")
    assert list(found.slices["half"]["h1"]) == ["f1"] and found.slices["half"]["h0"] == {}
    assert found.samples[0].scores == {"f1": (None, None)} and found.samples[30].scores == {"f1": (0.0, 0.0)}


def test_a_metric_that_applies_nowhere_is_noted_and_no_rule_may_need_it() -> None:
    never = MeanMetric("never", lambda s: None)
    found = report(*built_in("exact_match"), never)
    assert list(found.metrics) == ["exact_match"]
    assert found.notes == ("never is not reported: it applies to no sample, or has no value on these",)
    assert found.samples[0].scores["never"] == (None, None)
    with pytest.raises(UserError, match=r"LU-E008 release.rules: no comparison of 'never'"):
        report(never, of=recipe({"metric": "never", "must": "not_regress"}))


def test_a_metric_that_applies_to_one_answer_only() -> None:
    one_sided = MeanMetric("exact_match", lambda s: None if s.answer != s.reference else True)
    found = report(one_sided)
    assert found.metrics["exact_match"].n == 18
    assert found.notes == ("exact_match applies to only one of the two answers of 30 samples, which it leaves out",)


# -- rules --------------------------------------------------------------------------------------------------------


def test_a_rule_on_all_samples() -> None:
    found = report()
    assert comparisons_for(Rule(**RULE), found) == {"": found.metrics["exact_match"]}


def test_a_rule_where() -> None:
    rule = {**RULE, "where": {"kind": "unseen_fact"}}
    found = report(of=recipe(rule))
    assert list(found.rule_comparisons) == ["exact_match|kind=unseen_fact"]
    ((place, comparison),) = comparisons_for(Rule(**rule), found).items()
    assert place == "kind=unseen_fact" and comparison.n == 30 and comparison.n_clusters == 30


def test_a_rule_where_two_tags_agree() -> None:
    rule = {**RULE, "where": {"topic": "returns", "kind": "seen"}}
    found = report(of=recipe(rule))
    assert {p: c.n for p, c in comparisons_for(Rule(**rule), found).items()} == {"kind=seen, topic=returns": 10}


def test_a_rule_where_few_match_is_compared_and_distrusted() -> None:
    rule = {**RULE, "where": {"only": "here"}}
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    tags = [{"only": "here"}, *({} for _ in range(59))]
    found = compare_models(
        retagged(ours, tags),
        retagged(theirs, tags),
        metrics=built_in("exact_match"),
        recipe=recipe(rule),
        task="answer",
    )
    comparison = comparisons_for(Rule(**rule), found)["only=here"]
    assert comparison.n == 1 and comparison.trouble


def test_a_rule_in_slices() -> None:
    rule = {**RULE, "in_slices": ["topic", "kind"]}
    found = report(of=recipe(rule, slices=("topic", "kind")))
    assert {p: c.n for p, c in comparisons_for(Rule(**rule), found).items()} == {
        "topic=delivery": 20,
        "topic=products": 20,
        "topic=returns": 20,
        "kind=seen": 30,
        "kind=unseen_fact": 30,
    }


def test_a_rule_where_and_in_slices() -> None:
    rule = {**RULE, "where": {"kind": "seen"}, "in_slices": ["topic"]}
    found = report(of=recipe(rule, slices=("topic",)))
    assert {p: c.n for p, c in comparisons_for(Rule(**rule), found).items()} == {
        "kind=seen; topic=delivery": 10,
        "kind=seen; topic=products": 10,
        "kind=seen; topic=returns": 10,
    }


def test_a_rule_is_not_judged_by_another_rules_place() -> None:
    both = {**RULE, "where": {"kind": "seen"}, "in_slices": ["topic"]}
    other = {**RULE, "where": {"kind": "seen", "topic": "returns", "zone": "(none)"}}
    found = report(of=recipe(both, other, {**RULE, "in_slices": ["topic"]}, slices=("topic",)))
    assert len(comparisons_for(Rule(**both), found)) == 3
    assert list(comparisons_for(Rule(**other), found)) == ["kind=seen, topic=returns, zone=(none)"]
    assert len(comparisons_for(Rule(**RULE, in_slices=("topic",)), found)) == 3


def test_rules_of_several_metrics_in_one_place_keep_apart() -> None:
    rules = [{"metric": m, "must": "not_regress", "where": {"kind": "seen"}} for m in ("exact_match", "perplexity")]
    found = report(of=recipe(*rules))
    assert [c.metric for rule in rules for c in comparisons_for(Rule(**rule), found).values()] == [
        "exact_match",
        "perplexity",
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({**RULE, "metric": "exact_mach"}, "LU-E008 release.rules.0: no metric measures 'exact_mach'\n.*'exact_match'"),
        ({**RULE, "where": {"kind": "nowhere"}}, "LU-E007 release.rules.0: .* has kind=nowhere\n.*: seen, unseen_fact"),
        ({**RULE, "where": {"knd": "seen"}}, r"LU-E007 release.rules.0: .* has knd=seen\n.*: \(none\)"),
        ({**RULE, "metric": "general_perplexity"}, "LU-E008 release.rules.0: no metric measures 'general_perplexity'"),
        ({**RULE, "metric": "seen_only", "where": {"kind": "unseen_fact"}}, "LU-E007 .*judged by in kind=unseen_fact"),
        ({**RULE, "in_slices": ["cluster"]}, "LU-E007 .*judged by in cluster="),
    ],
)
def test_a_rule_that_cannot_be_judged(rule: dict[str, Any], message: str) -> None:
    seen_only = MeanMetric("seen_only", lambda s: True if s.tags["kind"] == "seen" else None)
    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.3)
    tags = [{**s.tags, "cluster": s.id} for s in ours.samples]
    with pytest.raises(UserError, match=message):
        compare_models(
            retagged(ours, tags),
            retagged(theirs, tags),
            metrics=[*built_in("exact_match"), seen_only],
            recipe=recipe(rule, slices=("topic", "cluster")),
            task="answer",
        )


def test_check_rules_tells_all_problems_before_any_model_runs() -> None:
    rules = [Rule(**RULE), Rule(**{**RULE, "metric": "blue"}), Rule(**RULE, where={"kind": "x"})]
    check_rules(rules[:1], ["exact_match"], [], [])
    with pytest.raises(UserError) as caught:
        check_rules(rules, ["exact_match", "bleu"], [], [{"kind": "seen"}])
    assert [(p.code, p.where) for p in caught.value.problems] == [
        ("LU-E008", "release.rules.1"),
        ("LU-E007", "release.rules.2"),
    ]


def test_a_rule_that_an_old_report_did_not_foresee() -> None:
    with pytest.raises(UserError, match="LU-E007"):
        comparisons_for(Rule(**RULE, where={"kind": "seen"}), report())


# -- the general probe and the plug-ins ---------------------------------------------------------------------------


def probe(nats: float) -> list[Sample]:
    made = [
        sample(prompt="", id=f"g{i}", cluster=f"g{i}", nats=nats + i % 3, n_tokens=10, n_bytes=40) for i in range(25)
    ]
    return made


def with_probe(*rules: dict[str, Any]) -> EvalReport:
    ours, theirs = (
        replace(answers("tuned", right=0.8), suites={"general": probe(31.0)}),
        replace(answers("base"), suites={"general": probe(30.0)}),
    )
    asked = {"metrics": built_in("exact_match"), "suites": [general([])]}
    return compare_models(ours, theirs, recipe=recipe(*rules), task="answer", **asked)


def test_general_perplexity_is_measured_on_its_own_samples() -> None:
    rule = {"metric": "general_perplexity", "must": "not_regress", "by_relative": 0.05}
    found = with_probe(rule)
    forgotten = comparisons_for(Rule(**rule), found)[""]
    assert (forgotten.metric, forgotten.n, forgotten.n_clusters, forgotten.higher_is_better) == (
        "general_perplexity",
        25,
        25,
        False,
    )
    assert forgotten.baseline < forgotten.value and forgotten.delta < 0
    assert found.n == 60 and "general_perplexity" not in found.samples[0].scores


def test_a_suite_has_no_slices_of_the_test_set() -> None:
    for place in ({"in_slices": ["topic"]}, {"where": {"kind": "seen"}}):
        with pytest.raises(UserError, match="LU-E007 .* has no slices"):
            check_rules(
                [Rule(metric="general_perplexity", must="not_regress", **place)],
                ["exact_match"],
                [general([])],
                [{"kind": "seen"}],
            )


def test_each_sample_is_read_once_a_metric_and_model() -> None:
    calls: Counter[tuple[str, str]] = Counter()

    def count(s: Sample) -> float:
        calls[s.id, s.answer] += 1
        return 1.0

    ours, theirs = answers("tuned", right=0.8), answers("base", right=0.0)
    theirs = replace(theirs, samples=[replace(s, answer="x") for s in theirs.samples])
    rules = {"metric": "count", "must": "not_regress", "where": {"kind": "seen"}}
    of = recipe(rules, slices=("topic", "kind"))
    compare_models(ours, theirs, metrics=[MeanMetric("count", count)], recipe=of, task="answer")
    assert set(calls.values()) == {1} and len(calls) == 120


def test_two_metrics_of_one_name() -> None:
    with pytest.raises(UserError, match=r"LU-E009 evaluate.metrics: two metrics are called exact_match"):
        report(*built_in("exact_match", "exact_match"))
    with pytest.raises(UserError, match="LU-E009"):
        check_names([MeanMetric("general_perplexity", lambda s: 1.0)], [general([])])


def test_statistics_of_different_lengths() -> None:
    class Ragged:
        name, higher_is_better = "exact_match", True

        def stats(self, s: Sample) -> tuple[float, ...]:
            return (1.0,) * (1 + len(s.answer) % 2)

        def combine(self, sums: Any) -> Any:
            return sums[..., 0]

    with pytest.raises(UserError, match="LU-E005 metric 'exact_match': gave 1 statistics for one sample and 2"):
        report(Ragged())


@pytest.mark.parametrize(
    ("does", "code"), [("return 'no'", "LU-E005"), ("return float('nan')", "LU-E005"), ("return 1 / 0", "LU-E004")]
)
def test_a_metric_that_fails_is_named_with_its_sample_and_costs_no_other(does: str, code: str, tmp_path: Any) -> None:
    (tmp_path / "own.py").write_text(f"def bad(sample):\n    if sample.id == 'i7':\n        {does}\n    return 1\n")
    bad = build(Use(use="own:bad"), (), tmp_path)
    found = report(*built_in("exact_match"), bad)
    assert set(found.metrics) == {"exact_match"} and all("bad" not in s.scores for s in found.samples)
    [note] = [n for n in found.notes if n.startswith("bad is not reported, it failed")]
    assert f"{code} sample i7" in note
    ours, theirs = answers("tuned", right=0.8), answers("base")
    with pytest.raises(UserError, match=f"{code} sample i7"):  # a rule cannot do without it
        compare_models(ours, theirs, metrics=[bad], recipe=recipe({**RULE, "metric": "bad"}), task="answer")


def test_a_rule_whose_metric_can_have_no_value_is_foreseen() -> None:
    rule = Rule(metric="choice_skill", must="beat_baseline")
    metrics = [build(Use(use="choice_skill"), ("ham", "spam"), None)]

    def right(labels: tuple[str, ...]) -> list[Sample]:
        return [
            sample(x, x, id=f"i{n}", choices={y: float(y != x) for y in ("ham", "spam")}) for n, x in enumerate(labels)
        ]

    check_values([rule], metrics, right(("ham", "spam")))
    with pytest.raises(UserError, match="LU-E008 release.rules.0: 'choice_skill' would have no value"):
        check_values([rule], metrics, right(("ham", "ham")))


@pytest.mark.parametrize(
    ("tag", "text"), [("Returns", "Returns"), (None, "(none)"), (True, "true"), (1, "1"), (["é"], '["é"]'), ("", "")]
)
def test_tag_text(tag: Any, text: str) -> None:
    assert tag_text(tag) == text
