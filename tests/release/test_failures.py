"""Each kind of failure is met by the answers that have it, and by no others."""

from __future__ import annotations

import pytest
from evidence import PASSES, classified, evaluation, faulty, nothing

from luthier.release.failures import (
    is_empty,
    is_in_another_script,
    is_longer,
    is_shorter,
    kinds_of_failure,
    repeats,
    words,
)

REFERENCE = "The kettle holds two litres when it is filled up to the line."


@pytest.mark.parametrize(
    ("rule", "answer", "reference", "faulty"),
    [
        (is_empty, " \n", REFERENCE, True),
        (is_empty, "", "", False),
        (repeats, "a b c d " * 3, REFERENCE, True),
        (repeats, "a b c d " * 2, REFERENCE, False),
        (repeats, "la la la la " * 3, "la la la la " * 3, False),  # the reference does so too
        (repeats, "水壶可以装" * 3, "水壶可以装一升水", True),
        (is_longer, "word " * 27, REFERENCE, True),
        (is_longer, "word " * 23, REFERENCE, False),
        (is_longer, "yes it is so", "yes", False),  # over twice, but a few words
        (is_shorter, "Two.", REFERENCE, True),
        (is_shorter, "", REFERENCE, False),
        (is_shorter, "No", "Oh no", False),
        (is_in_another_script, "Два литра", REFERENCE, True),
        (is_in_another_script, "2 l (Чай)", REFERENCE, True),
        (is_in_another_script, "2.0", REFERENCE, False),
        (is_in_another_script, "Größe zwei", REFERENCE, False),
        (is_in_another_script, "ひらがなとカタカナ", "漢字仮名交じり文", False),
    ],
)
def test_rules(rule, answer, reference, faulty):
    assert rule(answer, reference) is faulty


def test_words_of_any_script():
    assert words("Don't: 水壶 holds 1 л") == ["don", "t", "水", "壶", "holds", "1", "л"]


def test_one_of_each_is_counted_once():
    kinds = {k.name: k for k in kinds_of_failure(evaluation(samples=faulty()))}
    assert list(kinds) == [
        "empty",
        "repetition",
        "much longer",
        "much shorter",
        "another script",
        "cut off",
        "unchanged",
    ]
    assert all(k.tuned == 1 and k.n == 6 for k in kinds.values())
    assert all(k.baseline == 0 for name, k in kinds.items() if name != "unchanged")
    assert kinds["unchanged"].baseline is None


def test_a_reference_repeated_has_no_fault():
    right = [s.model_copy(update={"tuned": s.reference, "baseline": s.reference}) for s in PASSES.evaluation.samples]
    assert all(k.tuned == 0 for k in kinds_of_failure(evaluation(samples=tuple(right))))


def test_of_labels_the_counts_are_those_of_the_confusion():
    report = classified().evaluation
    kinds = {k.name: k for k in kinds_of_failure(report)}
    assert list(kinds) == ["empty", "cut off", "no label", "wrong label", "unchanged"]
    for side in ("baseline", "tuned"):
        rows = report.confusion[side]
        none, wrong = getattr(kinds["no label"], side), getattr(kinds["wrong label"], side)
        assert none == sum(row[-1] for row in rows)
        assert none + wrong + sum(row[i] for i, row in enumerate(rows)) == kinds["wrong label"].n == sum(map(sum, rows))


def test_nothing_answered_is_nothing_to_count():
    assert kinds_of_failure(nothing().evaluation) == []
