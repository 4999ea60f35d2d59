"""What the page says of groups, suites and failures are the numbers of the records."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from evidence import FOUND, PASSES, SUITE_METRICS, SUITES, classified, evaluation, hostile, measured, rule
from test_report import Page

from luthier.page import words
from luthier.records import CoverageReport
from luthier.release import sections, wording
from luthier.release.evidence import TITLES, against_elsewhere, main_metrics, not_measured, of_kind, outcome_of, suites
from luthier.release.gate import judge
from luthier.release.report import report_html


def section(html: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]


def test_every_metric_has_one_place():
    report = measured().evaluation
    placed = [c.metric for c in main_metrics(report)] + [m for s in suites(report) for m in s.metrics]
    assert sorted(placed) == sorted(report.metrics)
    html = report_html(measured())
    for name in SUITE_METRICS:
        assert f"<h3>{name}" not in section(html, "metrics"), "it has left the main table"


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s.name)
def test_a_suite_is_shown_with_its_numbers_and_the_verdict_on_it(suite):
    made = measured()
    title = TITLES[suite.kind]
    text = Page(section(report_html(made), title.lower())).text
    assert words.sentence(suite.about) in text and f"n: {suite.n}" in text
    for name in suite.metrics:
        told = wording.told(SUITE_METRICS[name])
        assert all(part in text for part in (name, told.change, told.interval, f"{told.baseline} → {told.tuned}"))
        assert SUITE_METRICS[name].trouble is None or SUITE_METRICS[name].trouble in text
    assert ("UNDERPOWERED" in text) == (suite.kind == "retention"), "a rule stands on one of them"


def test_a_suite_takes_its_gap_off_the_list():
    assert not any(line.startswith(("Bias", "Robustness", "Forgetting")) for line in not_measured(measured()))
    assert [line.split(":")[0] for line in not_measured(PASSES)][-2:] == ["Bias", "Robustness"]
    only = evaluation(metrics=dict(SUITE_METRICS), suites=SUITES)
    assert [s.name for s in suites(only)] == [s.name for s in SUITES], "no general probe where none was measured"
    assert main_metrics(only) == [] and len(of_kind(only, "bias")) == 2


def test_the_forest_has_all_samples_on_top_and_the_limit_of_each_rule():
    made = measured()
    [first, *_] = sections.slices(made)[0]["metrics"]
    assert first["metric"] == "exact_match" and first["whole"]["c"] == made.evaluation.metrics["exact_match"]
    deltas = [row["c"].delta for row in first["rows"]]
    assert deltas == sorted(deltas)
    assert [(row["value"], row["outcome"]) for row in first["rows"]] == [("es", "UNDERPOWERED"), ("en", "PASS")]
    assert all("stroke-dasharray" in row["plot"] for row in (first["whole"], *first["rows"]))
    by_topic = sections.slices(made)[1]["metrics"][0]
    assert not any("stroke-dasharray" in row["plot"] for row in by_topic["rows"]), "no rule stands on the topics"


def test_dots_of_one_forest_lie_on_one_scale():
    """What is a larger change lies further right, in whichever row."""
    [first, *_] = sections.slices(measured())[1]["metrics"]
    at = [float(re.search(r'<circle cx="([\d.]+)"', row["plot"])[1]) for row in first["rows"]]
    assert at == sorted(at) and at[0] < at[-1]


def test_the_strictest_limit_of_a_place_is_drawn_and_its_worst_outcome_said():
    c = SUITE_METRICS["arc_easy_accuracy"]
    rules = [rule(c.metric, "not_regress", c, by_points=0.2), rule(c.metric, "not_regress", c, by_points=0.01)]
    made = replace(measured(), verdict=judge(rules))
    [_, arc_easy] = sections.suite_sections(made)[0]["tables"]
    assert [r.outcome for r in rules] == ["PASS", "FAIL"] and arc_easy["rows"][0]["outcome"] == "FAIL"
    assert "limit −0.01<" in arc_easy["rows"][0]["plot"]
    assert outcome_of(made.verdict, c.metric, "a=b") is None


def test_discovered_slices_are_told_by_what_is_bad_about_them():
    regression, shortfall = sections.discovered(measured().evaluation)
    assert regression["told"].change == wording.change(FOUND[0].comparison)
    assert shortfall["told"].change == "lower by 0.29 (worse)" and shortfall["told"].interval == "0.16 to 0.42 lower"
    assert against_elsewhere(FOUND[1]).baseline == FOUND[1].rest
    text = Page(section(report_html(measured()), "slices")).text
    assert all(found.condition in text for found in FOUND)
    assert "214 conditions looked at" in text and "confirmed on the other" in text


def test_a_search_without_success_is_said():
    searched = "No failing slice found: 214 conditions looked at, none confirmed"
    made = measured().evaluation.model_copy(update={"discovered": (), "searched": searched})
    assert sections.discovered(made) == []
    text = Page(section(report_html(replace(measured(), evaluation=made)), "slices")).text
    assert searched in text and "confirmed on the other" not in text


def test_kinds_of_failure_stand_on_the_page_with_their_rules():
    text = Page(section(report_html(measured()), "samples")).text
    for row in sections.failures(measured().evaluation):
        assert f"{row['kind'].name} {row['kind'].rule}" in text and row["shares"][1].replace("\xa0", " ") in text
    assert "An answer may have 128 tokens." in text


def test_the_most_frequent_wrong_label_is_named():
    html = report_html(classified())
    assert "the tuned model's most frequent: close account taken for card arrival, 18 of 48" in Page(html).text


def test_hostile_words_of_suites_labels_and_slices_stay_words():
    html = report_html(hostile())
    for name in ("labels", "slices", "bias"):
        assert "<script" not in section(html, name) and "&lt;script&gt;" in section(html, name)


def test_the_clean_part_stands_beside_the_whole_and_coverage_in_words():
    whole = evaluation()
    c = whole.metrics["exact_match"].model_copy(update={"n": 90, "value": 0.31})
    covered = CoverageReport(
        n_test=100, n_requests=900, p=0.01, half_width=0.1, regions=(), lines=("refunds are lacking",)
    )
    made = replace(PASSES, evaluation=evaluation(clean={"exact_match": c}, coverage=covered))
    text = Page(section(report_html(made), "testset")).text
    for part in ("Refunds are lacking.", "all rows", "clean rows", wording.told(c).tuned):
        assert part in text
    assert 'id="testset"' not in report_html(PASSES)
