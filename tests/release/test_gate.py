"""The verdict's table, edge by edge, and the words that come with it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from evidence import BEATS, UNDERPOWERED

from luthier.records import Comparison, Outcome, RuleResult
from luthier.release.card import model_card
from luthier.release.gate import judge, judge_rule, limit, observed
from luthier.release.report import found, headline, report_html
from luthier.settings import Rule

E = 1e-9


def seen(low: float, high: float, **changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "metric": "rouge", "higher_is_better": True, "value": 0.5 + (low + high) / 2, "baseline": 0.5,
        "delta": (low + high) / 2, "low": low, "high": high, "p": 0.5, "n": 200, "n_clusters": 200, "wins": 1,
        "losses": 1, "ties": 198, "min_detectable": 0.1, "value_low": 0.4, "value_high": 0.6, "baseline_low": 0.4,
        "baseline_high": 0.6,
    }  # fmt: skip
    return Comparison(**fields | changes)


def rule(must: str, **changes: Any) -> Rule:
    return Rule(metric="rouge", must=must, **changes)


@pytest.mark.parametrize(
    ("must", "settings", "low", "high", "outcome"),
    [
        ("beat_baseline", {}, 0.01, 0.05, "PASS"),
        ("beat_baseline", {}, 0.0, 0.05, "UNDERPOWERED"),
        ("beat_baseline", {}, E, 0.05, "PASS"),
        ("beat_baseline", {}, -0.01, 0.05, "UNDERPOWERED"),
        ("beat_baseline", {}, -0.05, 0.0, "FAIL"),
        ("beat_baseline", {}, -0.05, E, "UNDERPOWERED"),
        ("beat_baseline", {}, -0.05, -0.01, "FAIL"),
        ("beat_baseline", {"by_points": 0.02}, 0.02, 0.05, "UNDERPOWERED"),
        ("beat_baseline", {"by_points": 0.02}, 0.02 + E, 0.05, "PASS"),
        ("beat_baseline", {"by_points": 0.02}, 0.01, 0.02, "FAIL"),
        ("beat_baseline", {"by_relative": 0.1}, 0.05, 0.09, "UNDERPOWERED"),  # of the baseline, 0.5
        ("beat_baseline", {"by_relative": 0.1}, 0.05 + E, 0.09, "PASS"),
        ("beat_baseline", {"min_effect": 0.04}, -0.01, 0.03, "FAIL"),
        ("beat_baseline", {"min_effect": 0.04}, -0.01, 0.04, "UNDERPOWERED"),
        ("beat_baseline", {"min_effect": 0.04}, 0.01, 0.03, "PASS"),  # a shown gain is one, however small
        ("not_regress", {}, E, 0.05, "PASS"),
        ("not_regress", {}, 0.0, 0.05, "UNDERPOWERED"),
        ("not_regress", {}, -0.05, 0.0, "UNDERPOWERED"),
        ("not_regress", {}, -0.05, -E, "FAIL"),
        ("not_regress", {"by_points": 0.03}, -0.03 + E, -0.01, "PASS"),  # worse, and shown to be by less than m
        ("not_regress", {"by_points": 0.03}, -0.03, 0.01, "UNDERPOWERED"),
        ("not_regress", {"by_points": 0.03}, -0.05, -0.03, "UNDERPOWERED"),
        ("not_regress", {"by_points": 0.03}, -0.05, -0.03 - E, "FAIL"),
        ("not_regress", {"by_relative": 0.06}, -0.03 + E, 0.0, "PASS"),
        ("not_regress", {"by_points": 0.03}, 0.0, 0.0, "PASS"),  # identical models
        ("not_regress", {}, 0.0, 0.0, "UNDERPOWERED"),
        ("beat_baseline", {}, 0.0, 0.0, "FAIL"),
    ],
)
def test_the_table(must: str, settings: dict[str, float], low: float, high: float, outcome: Outcome) -> None:
    assert judge_rule(rule(must, **settings), seen(low, high)).outcome == outcome


@pytest.mark.parametrize("must", ["beat_baseline", "not_regress"])
@pytest.mark.parametrize("ends", [(0.1, 0.2), (-0.2, 0.1), (-0.2, -0.1)])
def test_trouble_leaves_every_rule_open_and_says_why(must: str, ends: tuple[float, float]) -> None:
    result = judge_rule(rule(must), seen(*ends, trouble="12 independent samples are too few"))
    assert result.outcome == "UNDERPOWERED"
    assert result.why == "the interval cannot be relied on: 12 independent samples are too few"


def test_the_margin_is_relative_to_the_size_of_the_baseline() -> None:
    below_zero = seen(-0.04, 0.1, baseline=-0.5)
    for must in ("not_regress", "beat_baseline"):
        result = judge_rule(rule(must, by_relative=0.1), below_zero)
        assert (result.must, result.margin, result.place) == (must, pytest.approx(0.05), "")


def test_the_limit_is_the_margin_on_its_side_of_zero() -> None:
    assert (limit("beat_baseline", 0.05), limit("not_regress", 0.05)) == (0.05, -0.05)
    assert math.copysign(1, limit("not_regress", 0.0)) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (rule("beat_baseline"), "rouge must beat the baseline"),
        (rule("beat_baseline", by_points=0.02), "rouge must beat the baseline by more than 0.02"),
        (
            rule("beat_baseline", by_relative=0.05, min_effect=0.1),
            "rouge must beat the baseline by more than 5% of the baseline (a gain below 0.1 does not count)",
        ),
        (rule("not_regress"), "rouge must not get worse"),
        (rule("not_regress", by_points=0.03), "rouge must not get worse by 0.03 or more"),
        (rule("not_regress", by_relative=0.05), "rouge must not get worse by 5% of the baseline or more"),
    ],
)
def test_a_rule_in_words(given: Rule, words: str) -> None:
    assert judge_rule(given, seen(-0.1, 0.1)).rule == words
    somewhere = judge_rule(given, seen(-0.1, 0.1), "language=de")
    assert (somewhere.rule, somewhere.place) == (f"{words}, where language=de", "language=de")


def test_what_was_observed_in_one_line() -> None:
    assert observed(judge_rule(rule("beat_baseline"), seen(-0.012, 0.056))) == (
        "0.522 against 0.5, a gain of 0.022 (signed so that more is better, between -0.012 and +0.056; n = 200)"
    )


@pytest.mark.parametrize(
    ("given", "ends", "why"),
    [
        (rule("beat_baseline"), (0.012, 0.056), "the low end, +0.012, is above the limit 0"),
        (rule("beat_baseline", by_points=0.3), (0.30004, 0.5), "the low end, +0.30004, is above the limit +0.3"),
        (rule("beat_baseline"), (-0.1, 0.0), "the high end, 0, is not above the limit 0"),
        (rule("not_regress", by_points=0.03), (-0.1, -0.05), "the high end, -0.05, is below the limit -0.03"),
        (rule("not_regress", by_points=2000), (-4000, -3000), "the high end, -3,000, is below the limit -2,000"),
        (
            rule("beat_baseline", min_effect=0.2),
            (-0.1, 0.1),
            "the high end, +0.1, is below the least gain that counts, +0.2",
        ),
    ],
)
def test_the_reason_is_the_end_of_the_interval_and_the_limit(given: Rule, ends: tuple[float, float], why: str) -> None:
    assert judge_rule(given, seen(*ends)).why == why


@pytest.mark.parametrize(
    ("must", "points", "ends", "says"),
    [  # in each, the gap to the margin is a fifth of what 200 samples detect: 25 times as many, 5,000 in all
        ("beat_baseline", 0.0, (-0.01, 0.05), "about 5,000 samples in all would likely settle it as PASS"),
        ("beat_baseline", 0.0, (-0.05, 0.01), "about 5,000 samples in all would likely settle it as FAIL"),
        ("not_regress", 0.03, (-0.05, 0.03), "about 5,000 samples in all would likely settle it as PASS"),
        ("not_regress", 0.0, (-0.1, 0.1), "too close"),
    ],
)
def test_an_open_rule_says_how_many_samples_would_settle_it(
    must: str, points: float, ends: tuple[float, float], says: str
) -> None:
    assert says in judge_rule(rule(must, by_points=points), seen(*ends)).why


@pytest.mark.parametrize(
    ("must", "points", "says"),
    [
        ("beat_baseline", 0.0, "do the same on every sample"),
        ("not_regress", 0.03, "a change in fewer than about 1.5% of cases can go unseen"),
        ("not_regress", 0.0, "give by_points"),
    ],
)
def test_identical_models_in_words(must: str, points: float, says: str) -> None:
    same = seen(0, 0, wins=0, losses=0, ties=200)
    assert says in judge_rule(rule(must, by_points=points), same).why


def test_no_change_of_models_that_differ_is_not_called_identity() -> None:
    """A skill that is cut off at 0 for both, say, while samples were won."""
    assert judge_rule(rule("beat_baseline"), seen(0, 0, wins=38)).why == "the high end, 0, is not above the limit 0"


def test_one_failure_fails_and_one_open_rule_leaves_it_open() -> None:
    results: dict[str, RuleResult] = {
        "PASS": judge_rule(rule("beat_baseline"), seen(0.1, 0.2)),
        "FAIL": judge_rule(rule("beat_baseline"), seen(-0.2, -0.1)),
        "UNDERPOWERED": judge_rule(rule("beat_baseline"), seen(-0.2, 0.1)),
    }
    for outcomes in product(results, repeat=3):
        expected = next(o for o in ("FAIL", "UNDERPOWERED", "PASS") if o in outcomes)
        verdict = judge([results[o] for o in outcomes])
        assert verdict.outcome == expected
        assert [r.outcome for r in verdict.rules] == list(outcomes)


def test_a_rule_is_judged_on_its_own_metric() -> None:
    with pytest.raises(AssertionError, match="a rule on rouge judged by bleu"):
        judge_rule(rule("beat_baseline"), seen(0, 1, metric="bleu"))


def test_what_nobody_has_judged_is_open_and_told_as_it_is() -> None:
    nothing = seen(-1, 1, value=0.5, n=0, n_clusters=0, trouble="no votes yet: luthier review RUN")
    result = judge_rule(rule("not_regress", by_points=0.1), nothing)
    assert (result.outcome, result.why) == ("UNDERPOWERED", "no votes yet: luthier review RUN")
    assert observed(result) == "nothing to go by"
    told = replace(UNDERPOWERED, verdict=judge((BEATS, result)))
    assert headline(told).startswith("1 of 2 rules cannot be decided before people have judged the answers.")
    assert len(found(told)) == 1, "nothing was found by a rule that had nothing to go by"
    assert all("o votes yet: luthier review RUN" in page for page in (report_html(told), model_card(told)))
