"""The section on labels: counts add up, intervals are Wilson's, and what is not there is not shown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from evidence import HOSTILE, INTENTS, PASSES, classified, hostile, many_labels
from sklearn.metrics import precision_score, recall_score
from test_report import Page
from test_sections import section

from luthier.release.labels import (
    LISTED,
    MOST_IN_A_TABLE,
    SHADES,
    calibration_gap,
    confusions,
    label_scores,
    labels_section,
)
from luthier.release.report import report_html
from luthier.stats import wilson


def test_every_answer_is_in_one_cell():
    report = classified().evaluation
    made = labels_section(report)
    for side, rows in made["matrices"].items():
        counts = report.confusion["baseline" if side == "base" else side]
        assert [[n for n, *_ in row["cells"]] for row in rows] == [list(row) for row in counts]
        assert sum(n for row in rows for n, *_ in row["cells"]) == report.n
        assert all(0 <= shade <= SHADES and (shade > 0) == (n > 0) for row in rows for n, shade, _ in row["cells"])
        assert [[j for j, (*_, kind) in enumerate(r["cells"]) if kind == "right"] for r in rows] == [
            [i] for i in range(5)
        ]
    html = section(report_html(classified()), "labels")
    assert html.count('class="matrix"') == 2 and html.count("<tbody>") == 4
    shown = [int(n) for n in re.findall(r'<td class="(?:right|wrong) s\d">([\d,]+)</td>', html)]
    assert sum(shown) == 2 * report.n


def test_recall_and_precision_are_scikit_learns_with_wilsons_intervals():
    report = classified().evaluation
    counts = report.confusion["tuned"]
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    true, answered = zip(*pairs, strict=True)
    wanted = {"labels": range(len(INTENTS)), "average": None, "zero_division": 0}
    recall, precision = recall_score(true, answered, **wanted), precision_score(true, answered, **wanted)
    for i, row in enumerate(counts):
        scores = label_scores(counts, i, 0.95)
        assert scores.recall == (pytest.approx(recall[i]), *wilson(row[i], sum(row), 0.95))
        n_answered = sum(r[i] for r in counts)
        assert scores.precision == (pytest.approx(precision[i]), *wilson(row[i], n_answered, 0.95))


def test_labels_found_least_come_first_and_lost_ones_are_told():
    made = labels_section(classified().evaluation)
    least = [row["least"] for row in made["rows"]]
    assert least == sorted(least) and len(least) == len(INTENTS)
    assert made["rows"][0]["label"] == "close account" and made["rows"][0]["instead"].answered == "card arrival"


def test_a_label_that_nobody_asked_for_or_answered():
    counts = ((3, 0, 1), (0, 0, 0))
    assert label_scores(counts, 1, 0.95).recall is None and label_scores(counts, 1, 0.95).precision is None
    report = classified().evaluation.model_copy(
        update={"labels": ("a", "b"), "confusion": {"baseline": counts, "tuned": counts}}
    )
    made = labels_section(report)
    assert [row["label"] for row in made["rows"]] == ["a"] and made["absent"] == ["b"]
    text = Page(section(report_html(replace(classified(), evaluation=report)), "labels")).text
    assert "Not in the test set, so nothing is known of: b." in text


def test_many_labels_are_a_list_of_confusions():
    report = many_labels().evaluation
    assert len(report.labels) > MOST_IN_A_TABLE
    made = labels_section(report)
    assert made["matrices"] == {} and len(made["confusions"]["tuned"]) == LISTED
    counts = report.confusion["tuned"]
    found = confusions(report.labels, counts)
    assert sum(c.n for c in found) + sum(row[i] for i, row in enumerate(counts)) == report.n
    assert [c.n for c in found] == sorted((c.n for c in found), reverse=True)
    first = found[0]
    text = Page(section(report_html(many_labels()), "labels")).text
    assert f"{first.true} taken for {first.answered} : {first.n} of {first.of}" in text
    assert "65 more labels" in text


def test_reliability_is_drawn_from_the_bins():
    report = classified().evaluation
    made = labels_section(report)["reliability"]
    assert made["plot"].count("<circle") == 8 + 10 + 2, "a dot for each bin, and two in the legend"
    bins = report.reliability["tuned"]
    by_hand = sum(b.n * abs(b.accuracy - b.sureness) for b in bins) / report.n
    assert calibration_gap(bins) == pytest.approx(by_hand)
    assert [n for n, _ in made["counts"].values()] == [report.n, report.n]
    text = Page(section(report_html(classified()), "labels")).text
    assert "240 answers in 10 groups" in text and "The metric ece, over groups of equal width, says" in text


def test_without_likelihoods_there_is_no_reliability_and_without_labels_no_section():
    silent = classified().evaluation.model_copy(update={"reliability": {}})
    assert labels_section(silent)["reliability"] is None
    assert "how sure to be" not in report_html(replace(classified(), evaluation=silent))
    assert labels_section(PASSES.evaluation) is None and 'id="labels"' not in report_html(PASSES)


def test_clustered_samples_are_said_to_make_the_intervals_too_narrow():
    clustered = classified().evaluation.model_copy(update={"n_clusters": 100})
    assert "somewhat too narrow" in report_html(replace(classified(), evaluation=clustered))
    assert "somewhat too narrow" not in report_html(classified())


def test_a_hostile_label_is_shown_as_text():
    html = section(report_html(hostile()), "labels")
    assert "<script" not in html and HOSTILE not in html and 'title="&lt;script&gt;' in html
