"""The gate: a rule and a comparison give PASS, FAIL or UNDERPOWERED, with the reason in words.

It judges by the ends of the interval, never by the mean. It is pure: it knows nothing of models, samples or files.
Every rule must hold (an intersection-union test: Berger 1982, Technometrics 24:295), so the false PASS of the whole
is at most that of one rule and nothing is corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.records import Comparison, Outcome, RuleResult, Verdict
from luthier.settings import HUMAN_PREFERENCE, Release, Rule

HUMAN_REVIEW = Rule(metric=HUMAN_PREFERENCE, must="not_regress", by_points=0.1)
"""What `needs: [human_review]` asks where no rule says it."""


def rules_of(release: Release) -> tuple[Rule, ...]:
    """The rules by which a run is judged: those of the recipe, and what it needs besides."""
    said = any(rule.metric == HUMAN_PREFERENCE for rule in release.rules)
    return release.rules if said or "human_review" not in release.needs else (*release.rules, HUMAN_REVIEW)


def judge(results: Sequence[RuleResult]) -> Verdict:
    """Any FAIL fails; else any UNDERPOWERED leaves it open; else it passes."""
    outcomes = {result.outcome for result in results}
    outcome: Outcome = "FAIL" if "FAIL" in outcomes else "UNDERPOWERED" if "UNDERPOWERED" in outcomes else "PASS"
    return Verdict(outcome=outcome, rules=tuple(results))


def judge_rule(rule: Rule, comparison: Comparison, place: str = "") -> RuleResult:
    """One rule on one comparison: that of the whole evaluation, or of one slice.

    Args:
        rule: What is required.
        comparison: Its metric on the samples that the rule speaks of.
        place: Which samples, e.g. "language=de"; empty for all.
    """
    assert rule.metric == comparison.metric, f"a rule on {rule.metric} judged by {comparison.metric}"
    margin = rule.by_relative * abs(comparison.baseline) if rule.by_relative else rule.by_points
    required = limit(rule.must, margin)
    outcome = _outcome(rule, comparison, required)
    return RuleResult(
        rule=_in_words(rule, place),
        must=rule.must,
        margin=margin,
        place=place,
        outcome=outcome,
        why=_reason(rule, comparison, required, outcome),
        comparison=comparison,
    )


def limit(must: str, margin: float) -> float:
    """What the whole interval of the change must lie above."""
    return margin if must == "beat_baseline" else 0.0 - margin  # 0 - 0, because -0.0 prints as such


def observed(result: RuleResult) -> str:
    """What was measured, in one line for a terminal; `result.why` goes on from it."""
    seen = result.comparison
    if not seen.n:
        return "nothing to go by"
    return (
        f"{_number(seen.value)} against {_number(seen.baseline)}, a {'gain' if seen.delta >= 0 else 'loss'} of "
        f"{_number(abs(seen.delta))} (signed so that more is better, between {_signed(seen.low)} and "
        f"{_signed(seen.high)}; n = {seen.n})"
    )


def _outcome(rule: Rule, seen: Comparison, required: float) -> Outcome:
    if seen.trouble is not None:
        return "UNDERPOWERED"
    if seen.low > required:
        return "PASS"
    if rule.must == "beat_baseline":
        return "FAIL" if seen.high <= required or seen.high < rule.min_effect else "UNDERPOWERED"
    return "FAIL" if seen.high < required else "UNDERPOWERED"


def _in_words(rule: Rule, place: str) -> str:
    """The rule as a sentence: 'rouge must not get worse by 0.03 or more, where language=de'."""
    amount = f"{rule.by_relative * 100:g}% of the baseline" if rule.by_relative else f"{rule.by_points:g}"
    if rule.must == "beat_baseline":
        words = f"{rule.metric} must beat the baseline"
        words += f" by more than {amount}" if rule.by_relative or rule.by_points else ""
        words += f" (a gain below {rule.min_effect:g} does not count)" if rule.min_effect else ""
    elif rule.by_relative or rule.by_points:
        words = f"{rule.metric} must not get worse by {amount} or more"
    else:
        words = f"{rule.metric} must not get worse"
    return words + (f", where {place}" if place else "")


def _reason(rule: Rule, seen: Comparison, required: float, outcome: Outcome) -> str:
    if seen.trouble is not None:
        return f"the interval cannot be relied on: {seen.trouble}" if seen.n else seen.trouble
    if seen.low == seen.high == 0 and not seen.wins and not seen.losses:
        return _reason_identical(seen, outcome)
    if outcome == "PASS":
        return _against("low", seen.low, "above", "the limit", required)
    if outcome == "UNDERPOWERED":
        return f"the limit {_signed(required)} lies inside the interval; {_needed(seen, required)}"
    if seen.high > required:
        return _against("high", seen.high, "below", "the least gain that counts,", rule.min_effect)
    return _against("high", seen.high, "below" if seen.high < required else "not above", "the limit", required)


def _against(end: str, value: float, side: str, what: str, mark: float) -> str:
    """'the low end, +0.598, is above the limit +0.3', with the digits that tell the two apart."""
    digits = next((d for d in range(3, 17) if _signed(value, d) != _signed(mark, d)), 3)
    return f"the {end} end, {_signed(value, digits)}, is {side} {what} {_signed(mark, digits)}"


def _reason_identical(seen: Comparison, outcome: Outcome) -> str:
    if outcome == "FAIL":
        return "the two models do the same on every sample"
    if outcome == "PASS":  # the rule of three, at 95 %: (1 - 3/n)^n is about 0.05
        return (
            f"the two models do the same on every sample (a change in fewer than about "
            f"{min(1.0, 3 / seen.n_clusters):.1%} of cases can go unseen)"
        )
    return "the two models do the same on every sample; a rule without a margin asks more than that: give by_points"


def _needed(seen: Comparison, required: float) -> str:
    """How many samples would settle it with 80 % power, were the difference to stay: errors shrink as 1/sqrt(n)."""
    gap = seen.delta - required
    if abs(gap) <= 1e-3 * seen.min_detectable:  # a million times as many samples is no advice
        return "the difference is too close to it for any sensible number of samples"
    needed = _rounded_up(seen.n * (seen.min_detectable / gap) ** 2)
    outcome = "PASS" if gap > 0 else "FAIL"
    return f"about {needed:,} samples in all would likely settle it as {outcome}, if the difference stays"


def _rounded_up(count: float) -> int:
    """To two digits: 1234.5 -> 1300, and at least 1."""
    count = max(count, 1.0)
    unit = 10.0 ** max(0, math.floor(math.log10(count)) - 1)
    return int(math.ceil(count / unit - 1e-9) * unit)


def _number(value: float, digits: int = 3) -> str:
    """Three significant digits, and every one before the point: 0.0123, 4.57, 12,346."""
    return f"{value:,.0f}" if 10 ** (digits - 1) <= abs(value) < 1e9 else f"{value:.{digits}g}"


def _signed(value: float, digits: int = 3) -> str:
    return _number(value, digits) if value <= 0 else f"+{_number(value, digits)}"
