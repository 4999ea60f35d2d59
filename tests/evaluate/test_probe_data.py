"""What the probe's README says of the question suites: counts, balance, minimal edits, and that nothing was copied."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from luthier.evaluate.metrics.text import words
from luthier.evaluate.suites.instructions import follows

Row = dict[str, Any]
FIELDS = {
    "knowledge": {"id", "topic", "question", "choices", "answer"},
    "instructions": {"id", "prompt", "check"},
    "safety": {"id", "kind", "prompt"},
    "stereotypes": {"id", "bias_type", "more_stereotyping", "less_stereotyping"},
    "coreference": {"id", "occupation", "pro", "anti"},
    "ambiguity": {"id", "category", "context", "question", "choices", "answer", "stereotyped", "unknown", "condition"},
}
COUNTS = {
    "knowledge": 160,
    "instructions": 40,
    "safety": 40,
    "stereotypes": 120,
    "coreference": 120,
    "ambiguity": 80,
}
REAL = (
    "crows_pairs",
    "winobias",
    "probe_arc_easy",
    "probe_truthfulqa",
    "probe_lambada",
    "self_instruct",
    "hh_harmless",
)
RUN = 6


def read(package: str, name: str) -> list[Row]:
    text = files("luthier").joinpath(package, f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def strings(value: Any) -> Iterator[str]:
    """All texts in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def runs(row: Row) -> set[tuple[str, ...]]:
    """The row's six-word sequences."""
    spoken = [words(text) for text in strings(row)]
    return {tuple(w[i : i + RUN]) for w in spoken for i in range(len(w) - RUN + 1)}


@pytest.fixture(scope="module")
def suites() -> dict[str, list[Row]]:
    return {name: read("probe", name) for name in FIELDS}


@pytest.fixture(scope="module")
def ours(suites: dict[str, list[Row]]) -> set[tuple[str, ...]]:
    return set().union(*(runs(row) for rows in suites.values() for row in rows))


@pytest.mark.parametrize("name", FIELDS)
def test_rows_are_whole_counted_and_unlike_one_another(name: str, suites: dict[str, list[Row]]) -> None:
    rows = suites[name]
    assert [row["id"] for row in rows] == [f"{name}-{i + 1:03d}" for i in range(COUNTS[name])]
    assert all(set(row) == FIELDS[name] for row in rows)
    assert all(text == text.strip() and text for row in rows for text in strings(row))
    contents = [json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True).casefold() for row in rows]
    assert len(set(contents)) == len(contents)


def test_nothing_is_in_what_the_starter_teaches_or_in_the_general_texts(ours: set[tuple[str, ...]]) -> None:
    taught = [*read("starter", "shop"), *read("starter", "general"), *read("probe", "general")]
    assert ours & set().union(*map(runs, taught)) == set()


@pytest.mark.parametrize("name", REAL)
def test_no_six_words_in_a_row_are_those_of_a_known_set(name: str, data_dir: Path, ours: set[tuple[str, ...]]) -> None:
    for path in sorted((data_dir / name).glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                assert ours & runs(json.loads(line)) == set(), line


# -- knowledge ----------------------------------------------------------------------------------------------------


def test_knowledge_has_twelve_topics_and_every_question_once(suites: dict[str, list[Row]]) -> None:
    topics = Counter(row["topic"] for row in suites["knowledge"])
    assert len(topics) == 12 and min(topics.values()) >= 13
    assert len({row["question"].casefold() for row in suites["knowledge"]}) == 160
    assert all(len({c.casefold() for c in row["choices"]}) == 4 == len(row["choices"]) for row in suites["knowledge"])


def test_neither_place_nor_length_gives_the_answer_away(suites: dict[str, list[Row]]) -> None:
    rows = suites["knowledge"]
    assert Counter(row["answer"] for row in rows) == dict.fromkeys(range(4), 40)
    for length in (len, lambda text: len(text.split())):
        lengths = [[length(c) for c in row["choices"]] for row in rows]
        right = sum(n[row["answer"]] for n, row in zip(lengths, rows, strict=True)) / 160
        wrong = (sum(map(sum, lengths)) / 160 - right) / 3
        assert abs(right / wrong - 1) < 0.05
    for extreme in (max, min):  # what always taking the longest choice, or the shortest, scores; ties are shared
        taken = [[i for i in range(4) if len(c[i]) == extreme(map(len, c))] for c in (row["choices"] for row in rows)]
        score = sum((row["answer"] in t) / len(t) for t, row in zip(taken, rows, strict=True)) / 160
        assert 0.2 <= score <= 0.3


# -- instructions and safety --------------------------------------------------------------------------------------


def test_every_check_can_be_read_and_the_prompt_alone_rarely_follows_it(suites: dict[str, list[Row]]) -> None:
    echoes = [row["id"] for row in suites["instructions"] if follows(row["prompt"], row["check"])]
    assert len(echoes) <= 10
    assert len({name for row in suites["instructions"] for name in row["check"]}) == 15


def test_every_harmful_request_is_followed_by_a_harmless_one(suites: dict[str, list[Row]]) -> None:
    assert [row["kind"] for row in suites["safety"]] == ["harmful", "benign"] * 20


# -- bias ---------------------------------------------------------------------------------------------------------


def edit(a: str, b: str) -> tuple[list[str], list[str]]:
    """What is left of two sentences without the words they begin with and end with alike."""
    x, y = a.split(), b.split()
    while x and y and x[0] == y[0]:
        x, y = x[1:], y[1:]
    while x and y and x[-1] == y[-1]:
        x, y = x[:-1], y[:-1]
    return x, y


def test_stereotype_pairs_differ_in_the_group_alone(suites: dict[str, list[Row]]) -> None:
    kinds = Counter(row["bias_type"] for row in suites["stereotypes"])
    assert len(kinds) == 9 and min(kinds.values()) >= 13
    for row in suites["stereotypes"]:
        more, less = edit(row["more_stereotyping"], row["less_stereotyping"])
        assert 1 <= len(more) == len(less) <= 3, row["id"]


PRONOUNS = [("he", "she"), ("his", "her"), ("him", "her")]


def test_coreference_pairs_differ_in_one_pronoun(suites: dict[str, list[Row]]) -> None:
    """Each occupation once in each case, and each case as often for "he" as for "she"."""
    seen: Counter[tuple[str, str]] = Counter()
    for row in suites["coreference"]:
        (pro,), (anti,) = edit(row["pro"], row["anti"])
        assert (pro, anti) in PRONOUNS or (anti, pro) in PRONOUNS, row["id"]
        assert row["occupation"] in row["pro"].lower()
        others = re.findall(r"\b(?:s?he|his|hers?|him)\b", row["pro"])
        assert others == [pro], row["id"]
        seen[pro, anti] += 1
    assert seen == {pair: 20 for p in PRONOUNS for pair in (p, p[::-1])}
    occupations: dict[str, set[bool]] = {}
    for row in suites["coreference"]:
        male = edit(row["pro"], row["anti"])[0][0] in ("he", "his", "him")
        occupations.setdefault(row["occupation"], set()).add(male)
    assert len(occupations) == 40 and all(len(sides) == 1 for sides in occupations.values())
    assert sum(True in sides for sides in occupations.values()) == 20


def test_ambiguity_is_twenty_situations_asked_twice_without_and_with_the_facts(suites: dict[str, list[Row]]) -> None:
    rows = suites["ambiguity"]
    for i in range(0, 80, 4):
        vague, vague_too, clear, clear_too = rows[i : i + 4]
        assert [r["condition"] for r in rows[i : i + 4]] == ["ambiguous"] * 2 + ["disambiguated"] * 2
        assert vague["context"] == vague_too["context"] and clear["context"] == clear_too["context"]
        assert clear["context"].startswith(vague["context"] + " ")
        assert vague["question"] == clear["question"] != vague_too["question"] == clear_too["question"]
        people = {chosen(r, x) for r in rows[i : i + 4] for x in range(3) if x != r["unknown"]}
        assert len(people) == 2 and all(p.lower() in vague["context"].lower() for p in people)
        assert {chosen(vague, vague["stereotyped"]), chosen(vague_too, vague_too["stereotyped"])} == people
        assert {chosen(clear, clear["answer"]), chosen(clear_too, clear_too["answer"])} == people


def test_the_right_answer_and_the_stereotype_stand_everywhere_and_agree_by_half(suites: dict[str, list[Row]]) -> None:
    rows = suites["ambiguity"]
    vague, clear = ([r for r in rows if r["condition"] == c] for c in ("ambiguous", "disambiguated"))
    assert all(r["answer"] == r["unknown"] != r["stereotyped"] for r in vague)
    assert all(r["answer"] != r["unknown"] != r["stereotyped"] for r in clear)
    assert sum(r["answer"] == r["stereotyped"] for r in clear) == 20
    for key in ("answer", "stereotyped", "unknown"):
        for side in (vague, clear):
            assert sorted(Counter(r[key] for r in side).values()) == [13, 13, 14]
    assert len({chosen(r, r["unknown"]) for r in rows}) == 8
    blamed_first = [first_named(r) == chosen(r, r["stereotyped"]).lower() for r in rows[::4]]
    assert sum(blamed_first) == 10


def chosen(row: Row, index: int) -> str:
    return str(row["choices"][index])


def first_named(row: Row) -> str:
    people = [c.lower() for i, c in enumerate(row["choices"]) if i != row["unknown"]]
    return min(people, key=row["context"].lower().index)
