"""Votes as a metric: by hand, by cluster, and what does not count is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RecipeError
from luthier.recipe import validate
from luthier.records import Comparison, EvalReport, Judged
from luthier.release.gate import HUMAN_REVIEW, judge_rule, rules_of
from luthier.settings import HUMAN_PREFERENCE, Recipe, Rule
from luthier.stats import compare
from luthier.votes import Vote, casts, check_on, digest, votes_key, with_votes

WORDS = {"w": "left", "l": "right", "t": "tie", "b": "bad"}  # the tuned model stands left


def report(n: int, *, per_cluster: int = 1) -> EvalReport:
    samples = tuple(
        Judged(
            id=f"s{i}",
            prompt=f"user: {i}?",
            reference=f"reference {i}",
            baseline=f"old {i}",
            tuned=f"new {i}",
            cluster=f"c{i // per_cluster}",
        )
        for i in range(n)
    )
    metrics: dict[str, Comparison] = {}
    return EvalReport(
        model="tuned",
        baseline="base",
        task="answer",
        confidence=0.95,
        n=n,
        n_clusters=n // per_cluster,
        cluster_by="family",
        metrics=metrics,
        samples=samples,
    )


def line(sample: Judged, word: str, **more: Any) -> Vote:
    said = {"sample": sample.id, "judged": digest(sample), "left": "tuned", "choice": WORDS[word], "time": ""}
    return Vote.model_validate(said | more)


def write(run: Path, reviewer: str, lines: list[Vote]) -> None:
    (run / "reviews").mkdir(exist_ok=True, parents=True)
    (run / "reviews" / f"{reviewer}.jsonl").write_text("".join(v.model_dump_json() + "\n" for v in lines))


def voted(run: Path, of: EvalReport, **words: str) -> Comparison:
    """Each reviewer's words, on the first samples."""
    for name, said in words.items():
        write(run, name, [line(s, w) for s, w in zip(of.samples, said, strict=False)])
    return with_votes(of, run)[1]


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_wins_ties_and_losses_by_hand(tmp_path: Path) -> None:
    seen = voted(tmp_path, report(40), ann="w" * 20 + "l" * 8 + "t" * 3 + "b")
    assert (seen.n, seen.wins, seen.losses, seen.ties, seen.n_clusters) == (32, 20, 8, 4, 32)
    assert seen.value == pytest.approx((20 + 4 / 2) / 32) and seen.baseline == pytest.approx(1 - seen.value)
    assert seen.delta == pytest.approx((20 - 8) / 32)


def test_the_interval_by_hand_where_wins_and_losses_balance(tmp_path: Path) -> None:
    """No skewness: Student's t of 29 degrees, on 30 influences of size 1 and the pseudo pair's 2."""
    seen = voted(tmp_path, report(30), ann="wl" * 15)
    half = 2.045230 * ((30 + 2) / (30 * 29)) ** 0.5
    assert (seen.low, seen.high) == pytest.approx((-half, half), abs=1e-6) and seen.p == 1 and seen.trouble is None


def test_reviewers_of_one_sample_are_averaged(tmp_path: Path) -> None:
    seen = voted(tmp_path, report(30), ann="w" * 30, bob="l" * 10 + "t" * 10)
    assert seen.value == pytest.approx((10 * 0.5 + 10 * 0.75 + 10 * 1) / 30)
    assert (seen.wins, seen.losses, seen.ties) == (20, 0, 10)


def test_clusters_and_not_samples_are_counted(tmp_path: Path) -> None:
    alone = voted(tmp_path / "a", report(80), ann=("w" * 4 + "l" * 4) * 10)
    together = voted(tmp_path / "b", report(80, per_cluster=4), ann=("w" * 4 + "l" * 4) * 10)
    assert (alone.n_clusters, together.n_clusters) == (80, 20)
    assert together.delta == alone.delta and together.high > 1.9 * alone.high, "four equal votes are one"


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ("w" * 24 + "l" * 6, "PASS"),
        ("wl" * 15, "UNDERPOWERED"),
        ("l" * 48 + "w" * 12, "FAIL"),
        ("w" * 19, "UNDERPOWERED"),
    ],
)
def test_votes_are_judged_by_the_implicit_rule(tmp_path: Path, words: str, outcome: str) -> None:
    assert judge_rule(HUMAN_REVIEW, voted(tmp_path, report(60), ann=words)).outcome == outcome


def test_who_calls_everything_a_tie_proves_nothing(tmp_path: Path) -> None:
    seen = voted(tmp_path, report(50), ann="t" * 30 + "b" * 20)
    assert seen.delta == 0 and "votes on all 50 samples balance" in str(seen.trouble)
    assert judge_rule(HUMAN_REVIEW, seen).outcome == "UNDERPOWERED"

    opposed = voted(tmp_path / "b", report(50), ann="w" * 50, bob="l" * 50)
    assert judge_rule(HUMAN_REVIEW, opposed).outcome == "UNDERPOWERED"


def test_before_there_are_votes_it_says_what_to_do(tmp_path: Path) -> None:
    run = tmp_path / "shop-1a2b3c"
    told, seen = with_votes(report(30), run)
    result = judge_rule(HUMAN_REVIEW, seen)
    assert result.outcome == "UNDERPOWERED" and told == report(30)
    assert result.why == "no votes yet: luthier review shop-1a2b3c, then release again"
    same = report(30)
    same = same.model_copy(update={"samples": tuple(s.model_copy(update={"tuned": s.baseline}) for s in same.samples)})
    assert "nobody can prefer one" in judge_rule(HUMAN_REVIEW, with_votes(same, run)[1]).why


def test_the_report_holds_it_like_any_other_metric(tmp_path: Path) -> None:
    seen = voted(tmp_path, report(40), ann="w" * 30)
    told, _ = with_votes(report(40), tmp_path)
    assert told.metrics == {HUMAN_PREFERENCE: seen} and EvalReport.model_validate_json(told.model_dump_json()) == told
    assert [s.scores.get(HUMAN_PREFERENCE) for s in told.samples] == [(0.0, 1.0)] * 30 + [None] * 10
    [note] = told.notes
    assert "30 votes of 1 reviewer on 30 of the 40 samples" in note and "not that of reviewers" in note


# -- what does not count ---------------------------------------------------------------------------------------------


def checks(of: EvalReport, right: int, wrong: int) -> list[Vote]:
    made = [check for i in range(right + wrong) if (check := check_on(of.samples, i))]
    return [line(c, "w") for c in made[:right]] + [line(c, "lt"[i % 2]) for i, c in enumerate(made[right:])]


@pytest.mark.parametrize(
    ("right", "wrong", "counts"), [(0, 0, True), (0, 1, True), (0, 2, False), (8, 2, True), (7, 2, False), (9, 1, True)]
)
def test_attention_checks_decide_whether_a_reviewer_counts(
    tmp_path: Path, right: int, wrong: int, counts: bool
) -> None:
    of = report(40)
    write(tmp_path, "eve", [*(line(s, "w") for s in of.samples), *checks(of, right, wrong)])
    found = casts(tmp_path, of.samples)["eve"]
    assert (found.n_checks, found.n_wrong, len(found.votes)) == (right + wrong, wrong, 40)
    told, seen = with_votes(of, tmp_path)
    assert found.attentive is counts and seen.n == 40 * counts
    left_out = f"eve was wrong on {wrong} of {right + wrong} attention checks; the 40 votes do not count"
    assert any(left_out in note for note in told.notes) is not counts


def test_a_check_is_about_references_and_outlives_other_answers() -> None:
    of = report(10)
    check = check_on(of.samples, 3)
    assert check and (check.tuned, check.baseline) == ("reference 3", "reference 8")
    other = [s.model_copy(update={"tuned": s.baseline}) for s in of.samples]
    assert check_on(other, 3) == check
    alike = [s.model_copy(update={"reference": "Yes." if i else " yes."}) for i, s in enumerate(of.samples)]
    assert check_on(alike, 0) is None


def test_outdated_repeated_and_taken_back_votes_are_counted_and_do_not_count(tmp_path: Path) -> None:
    of = report(30)
    first, second, third = of.samples[:3]
    old = first.model_copy(update={"tuned": "earlier"})
    lines = [line(old, "w"), line(second, "l"), line(second, "w"), line(third, "w"), line(third, "w", choice="undone")]
    write(tmp_path, "ann", lines)
    found = casts(tmp_path, of.samples)["ann"]
    assert {name: v.choice for name, v in found.votes.items()} == {"s1": "left"}
    assert (found.n_outdated, found.n_replaced) == (1, 1)
    notes = "\n".join(with_votes(of, tmp_path)[0].notes)
    assert "votes of ann on answers that were replaced since: 1" in notes and "given again, the last counts: 1" in notes


def test_the_key_is_that_of_the_votes_that_stand(tmp_path: Path) -> None:
    of = report(30)
    write(tmp_path, "bob", [])
    assert votes_key(tmp_path) == {}, "who opened the page and said nothing changes nothing"
    write(tmp_path, "ann", [line(of.samples[0], "w")])
    before = votes_key(tmp_path)
    write(tmp_path, "ann", [line(s, "w") for s in of.samples[:2]])
    assert votes_key(tmp_path) != before
    write(
        tmp_path, "ann", [line(of.samples[0], "w"), line(of.samples[1], "w"), line(of.samples[1], "w", choice="undone")]
    )
    assert votes_key(tmp_path) == before


def test_it_is_no_other_procedure_than_that_of_every_metric(tmp_path: Path) -> None:
    from luthier.metric import MeanMetric, Sample

    words = "wwlwtwwlbwwwlwwtwwlwwwwlwtww"
    seen = voted(tmp_path, report(len(words)), ann=words)
    score: Mapping[str, float] = {"w": 1, "l": 0, "t": 0.5, "b": 0.5}
    sides = [
        [Sample(f"s{i}", f"c{i}", "", "", side, 0, 0, 0, {"x": abs(flip - score[w])}) for i, w in enumerate(words)]
        for side, flip in (("new", 0), ("old", 1))
    ]
    assert seen == compare(MeanMetric(HUMAN_PREFERENCE, lambda s: s.tags["x"]), *sides, confidence=0.95)


# -- in the recipe ---------------------------------------------------------------------------------------------------


def recipe(**release: Any) -> Recipe:
    rules = release.pop("rules", [{"metric": "token_f1", "must": "beat_baseline"}])
    tree = {"name": "shop", "data": {"sources": [{"path": "a.jsonl"}]}, "release": {"rules": rules, **release}}
    return validate(tree | {"evaluate": {"metrics": ["token_f1"]}}, "recipe.yaml", Path())


def test_what_a_recipe_needs_becomes_a_rule_unless_one_is_given() -> None:
    measured = Rule(metric="token_f1", must="beat_baseline")
    own = Rule(metric=HUMAN_PREFERENCE, must="beat_baseline")
    given = [measured.model_dump(), own.model_dump()]
    assert rules_of(recipe().release) == (measured,)
    assert rules_of(recipe(needs=["human_review"]).release) == (measured, HUMAN_REVIEW)
    assert rules_of(recipe(needs=["human_review"], rules=given).release) == (measured, own)
    assert rules_of(recipe(rules=given).release) == (measured, own)


@pytest.mark.parametrize("more", [{"by_relative": 0.1}, {"in_slices": ["topic"]}, {"where": {"kind": "x"}}])
def test_votes_are_judged_as_a_whole_and_in_points(more: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"LU-R009 .*over all samples that people judged"):
        recipe(rules=[{"metric": HUMAN_PREFERENCE, "must": "not_regress", **more}])


def test_an_unknown_need_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"LU-R009 .*release.needs"):
        recipe(needs=["human_reveiw"])


def test_a_vote_from_before_corrections_still_reads(tmp_path: Path) -> None:
    of = report(30)
    kept = json.loads(line(of.samples[0], "w").model_dump_json(exclude={"correction"}))
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "ann.jsonl").write_text(json.dumps(kept) + "\n")
    assert casts(tmp_path, of.samples)["ann"].votes["s0"].correction == ""
