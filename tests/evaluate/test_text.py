"""Normal forms, words, and the label that an answer names."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from luthier.evaluate.metrics.text import read_label, squad, squad_tokens, words

ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
LABELS = ("refund", "not_found", "C++", "C", "A", "a/b", "Größe")


def official_squad(text: str) -> str:
    """`normalize_answer` of the official evaluate-v1.1.py."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(ASCII)
def test_squad_is_the_official_normal_form_unless_that_leaves_nothing(text: str) -> None:
    assert squad(text) == (official_squad(text) or squad(text))


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Cat's hat!", "cats hat"), ("«Да», да…", "да да"), ("A", "a"), ("the a", "the a"), ("?!", "?!"), (" ", "")],
)
def test_squad_examples(text: str, normal: str) -> None:
    assert squad(text) == normal


def test_the_choice_a_is_not_the_empty_answer() -> None:
    assert squad("A") != squad("") and squad("A") != squad("the")


@given(ASCII)
def test_words_of_ascii_text_are_those_of_rouge_score(text: str) -> None:
    assert words(text) == DefaultTokenizer().tokenize(text)


def test_words_of_other_scripts() -> None:
    assert words("Café Größe, и вода!") == ["café", "größe", "и", "вода"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("水壶 ok") == ["水", "壶", "ok"]
    assert squad_tokens("The 水壶!") == ["水", "壶"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("refund", "refund"),
        ("  Refund.\n", "refund"),
        ("**REFUND**", "refund"),
        ("not found", "not_found"),
        ("Not-Found!", "not_found"),
        ("c++", "C++"),
        ("C++.", "C++"),
        ("c", "C"),
        ("a", "A"),
        ("A/B", "a/b"),
        ("GRO\u0308SSE", "Größe"),
        ("refund please", None),
        ("", None),
        ("...", None),
        ("c+", None),
    ],
)
def test_read_label(answer: str, label: str | None) -> None:
    assert read_label(answer, LABELS) == label


def test_labels_that_differ_only_in_case_are_told_apart_exactly_or_not_at_all() -> None:
    assert [read_label(text, ("US", "us")) for text in ("US", "us", "Us", "us.")] == ["US", "us", None, None]


def test_labels_of_punctuation() -> None:
    assert [read_label(text, ("+", "-", "?")) for text in ("+", "- ", "+.", "?", "!")] == ["+", "-", "+", "?", None]


@given(st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=6, unique_by=str.strip))
def test_every_label_reads_as_itself(labels: list[str]) -> None:
    assert [read_label(label, tuple(labels)) for label in labels] == labels
