"""Group terms are swapped with the grammar kept; a list of one's own adds to the shipped one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import DataError
from luthier.swap import first_names, read_terms

SENTENCES = [line.split(" | ") for line in (Path(__file__).with_name("her.txt")).read_text().splitlines()]


@pytest.mark.parametrize(("text", "swapped"), SENTENCES, ids=lambda t: t[:40])
def test_her_and_his_are_told_by_what_stands_around_them(text: str, swapped: str) -> None:
    assert read_terms().swap(text) == swapped


def test_winobias_agrees(data_dir: Path) -> None:
    """Its pairs were written by people; some of them are slips of theirs (`the the physician`)."""
    rows = [json.loads(line) for line in (data_dir / "winobias" / "validation.jsonl").read_text().splitlines()]
    pairs: dict[str, dict[str, str]] = {}
    for row in rows:
        pairs.setdefault(row["id"], {})[row["condition"]] = row["text"].lower()
    both = [tuple(pair.values()) for pair in pairs.values() if len(pair) == 2]
    hers = [(x, y) for a, b in both for x, y in ((a, b), (b, a)) if {"her", "his"} & {*x.rstrip(".").split()}]
    agree = sum(read_terms().swap(x) == y for x, y in hers)
    assert len(hers) > 400 and agree / len(hers) > 0.92


def test_case_names_and_articles_follow() -> None:
    swap = read_terms().swap
    assert swap("HER mother's card, Mr. Smith") == "HIS father's card, Mrs. Smith"
    assert swap("John is an actor and a host.") == "Mary is an actress and a hostess."
    assert swap("He gave mark a rose.") == "She gave mark a rose."
    assert swap("an uncle, a heroine") == "an aunt, a hero"


@given(st.text(max_size=80))
def test_texts_without_terms_stay(text: str) -> None:
    terms = read_terms()
    words = {w.lower() for w in terms.words} | {n.lower() for n in terms.names}
    if not any(word in text.lower() for word in words):
        assert terms.swap(text) == text


def test_own_terms_come_before_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("nurse orderly  # a comment\nmother parent\nYoko Taro\n")
    swap = read_terms(tmp_path / "own.txt").swap
    assert swap("The nurse met Yoko and his mother.") == "The orderly met Taro and her parent."
    assert swap("Her father and a parent.") == "His father and a mother.", "whose counterpart went has none"


@pytest.mark.parametrize("content", [b"one\n", b"a b c\n", b"x1 y2\n", b"\xff\xfe\n", None])
def test_a_list_that_cannot_be_read_names_its_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "own.txt").write_bytes(b"# first\n" + content)
    with pytest.raises(DataError, match="LU-D145") as caught:
        read_terms(tmp_path / "own.txt")
    assert "own.txt" in caught.value.problems[0].where


def test_names_are_no_common_words() -> None:
    assert "Anna" in first_names() and not first_names() & {"Mark", "Will", "Grace", "May", "Rose", "Hope"}
