"""Every check with answers, written by hand, that pass it and that do not; mistakes in a check are errors."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import EvaluationError
from luthier.evaluate.suites.instructions import _CHECKS, follows

CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"words_at_most": 3},
        ["One two three.", "Rome", "- one - two\n- three"],
        ["one two three four", "It don't do this"],
    ),
    ({"words_at_least": 3}, ["One two three.", "one two\nthree four"], ["one - two", "two words", "..."]),
    (
        {"sentences": 2},
        ["It snows. We ski!", "Really?! Yes", 'He said "Come." She came.', "It costs 3.50. That is much."],
        ["It snows", "It snows. We ski. We fall.", "One... two... three.", "See e.g. this. And that."],
    ),
    ({"lines": 2}, ["a\nb", "\na\n\nb\n"], ["a", "a\nb\nc", "a b"]),
    ({"bullets": 2}, ["- a\n- b", "Here:\n* a\n • b"], ["-a\n-b", "- a", "1. a\n2. b", "- a\n- b\n- c", "a - b\n- c"]),
    ({"lowercase": True}, ["quiet 24 words.", "größe"], ["Quiet", "LOUD", "24"]),
    ({"lowercase": False}, ["Quiet", "24"], ["quiet"]),
    ({"uppercase": True}, ["LOUD 24!", "ÉTÉ"], ["Loud", "loud", "!!"]),
    (
        {"contains": ["river", "bridge"]},
        ["The River has a bridge.", "bridges, rivers"],
        ["The river.", "", "rive bridge"],
    ),
    ({"excludes": ["white", "snow"]}, ["It is cold."], ["WHITE it is", "a snowman"]),
    ({"starts_with": "In my opinion"}, ["In my opinion, tea.", "  in my opinion tea"], ["Tea, in my opinion", "In my"]),
    (
        {"ends_with": "that is all"},
        ["Fish swim, and that is all.", 'X. "That is ALL!"'],
        ["That is all, folks", "that is"],
    ),
    ({"ends_with": "?"}, ["How was it? ", "Well?!?"], ["How was it.", "How? Well"]),
    ({"one_of": ["yes", "no"]}, ["Yes.", "no", "**NO**"], ["Yes, it is.", "maybe", "yes no"]),
    ({"numbers_only": True}, ["4", "1, 2, 3", "3.50", "-7"], ["four", "4 legs", ", .", "4!"]),
    (
        {"json": True},
        ['{"a": 1}', " [1, 2, 3]\n", "{}"],
        ["{'a': 1}", '```json\n{"a": 1}\n```', "3", "[NaN]", "[" * 99999],
    ),
    ({"json_keys": ["a", "b"]}, ['{"a": 1, "b": null}', '{"b": 1, "a": 2, "c": 3}'], ['{"a": 1}', '["a", "b"]', "a b"]),
    ({"sentences": 1, "excludes": ["e"]}, ["Cats jump."], ["Cats leap.", "Cats jump. Dogs bark."]),
]


@pytest.mark.parametrize(("check", "passing", "failing"), CASES, ids=lambda x: str(x)[:40])
def test_answers_that_pass_and_answers_that_do_not(
    check: dict[str, Any], passing: list[str], failing: list[str]
) -> None:
    assert [a for a in passing if not follows(a, check)] == []
    assert [a for a in failing if follows(a, check)] == []


def test_every_check_has_its_cases() -> None:
    assert {name for check, _, _ in CASES for name in check} == set(_CHECKS)


@pytest.mark.parametrize("check", [{"words_at_most": 5}, {"excludes": ["x"]}, {"lowercase": False}, {"sentences": 0}])
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_follows_nothing(check: dict[str, Any], answer: str) -> None:
    assert not follows(answer, check)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"word_at_most": 5}, "check.word_at_most: no such check\n    -> did you mean 'words_at_most'?"),
        ({}, "is empty\n    -> allowed: bullets, contains"),
        ({"lines": "two"}, "check.lines: found 'two'\n    -> give a whole number from 0"),
        ({"lines": True}, "found True"),
        ({"lines": -1}, "found -1"),
        ({"json": 1}, "give true or false"),
        ({"contains": "river"}, "give a list of texts"),
        ({"contains": []}, "give a list of texts"),
        ({"ends_with": " "}, "give a text that is not empty"),
    ],
)
def test_a_check_that_cannot_be_read_is_an_error(check: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        follows("An answer.", check)
    assert "LU-E020" in str(caught.value) and said in str(caught.value)


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(EvaluationError) as caught:
        follows("", {"lines": "two", "poem": True, "words_at_most": 3})
    assert len(caught.value.problems) == 2
