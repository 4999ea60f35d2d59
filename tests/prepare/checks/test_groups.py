"""Groups in the rows: who is named, what goes along with it, and which gaps are there beyond chance."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luthier import tone
from luthier.prepare.checks.contract import Found
from luthier.prepare.checks.groups import groups

from .looking import looked_at, real

Row = tuple[str, str]
REFUSAL = "I'm sorry, but I can't help with that."


def table(found: Found, title: str) -> list[dict[str, object]]:
    [one] = [table for table in found.tables if table.title == title]
    return [dict(zip(one.columns, row, strict=True)) for row in one.rows]


def asked(n: int, group: str, share: float, one: str, other: str) -> list[Row]:
    return [(f"A question of {group} number {i}", one if i < share * n else other) for i in range(n)]


def test_rows_are_counted_by_group_and_side() -> None:
    found = groups(looked_at([("She asked.", "Yes."), ("Who?", "My sister and a muslim."), ("Nobody", "none")]))
    rows = table(found, "groups named")
    assert [(r["kind"], r["group"], r["rows"], r["share"], r["train"], r["test"]) for r in rows] == [
        ("gender", "women", 2, 0.6667, 2, 0),
        ("religion", "Muslims", 1, 0.3333, 1, 0),
    ]
    assert "fewer than 30 rows, too few to compare: women (2), Muslims (1)" in found.notes[0]
    assert not found.suspects and groups(looked_at([("Nobody", "none")])).notes == [
        "no row names a group of the lists, which are English"
    ]


def test_a_gap_of_labels_is_shown_with_its_interval() -> None:
    rows = asked(200, "muslims", 0.3, "yes", "no") + asked(200, "christians", 0.7, "yes", "no")
    found = groups(looked_at(rows, labelled=True))
    [label] = [r for r in table(found, "gaps between groups of a kind") if r["what"] == "label yes"]
    assert (label["group"], label["other"], label["gap"], label["says"]) == ("Christians", "Muslims", 0.4, "gap")
    assert 0.25 < label["low"] < 0.31 < 0.48 < label["high"] < 0.52  # type: ignore[operator]
    values = table(found, "what goes along with each group")
    assert {(r["group"], r["value"]) for r in values if r["what"] == "label yes"} == {
        ("Christians", 0.7),
        ("Muslims", 0.3),
    }


def test_equal_groups_have_no_gap_and_few_rows_say_nothing() -> None:
    rows = asked(300, "muslims", 0.5, "yes", "no") + asked(300, "christians", 0.5, "yes", "no")
    rows += asked(32, "hindus", 0.5, "yes", "no") + asked(29, "sikhs", 1, "yes", "no")
    found = groups(looked_at(rows, labelled=True))
    says = {
        (r["group"], r["other"]): r["says"]
        for r in table(found, "gaps between groups of a kind")
        if r["what"] == "label yes"
    }
    assert says["Christians", "Muslims"] == "none shown"
    assert says["Christians", "Hindus"] == "too few rows to say"
    assert not any("Sikhs" in pair for pair in says) and "Sikhs (29)" in found.notes[0]


def test_rows_that_name_both_groups_are_of_neither() -> None:
    rows = asked(60, "muslims", 1, "yes", "no") + asked(60, "christians", 0, "yes", "no")
    found = groups(looked_at([*rows, *asked(80, "muslims and christians", 0.5, "yes", "no")], labelled=True))
    first = table(found, "gaps between groups of a kind")[0]
    assert (first["rows"], first["other rows"], first["gap"]) == (60, 60, -1.0)


def test_refusals_are_compared_where_answers_are_open() -> None:
    rows = asked(100, "muslims", 0.4, REFUSAL, "Gladly.") + asked(100, "christians", 0.05, REFUSAL, "Gladly.")
    [gap] = [r for r in table(groups(looked_at(rows)), "gaps between groups of a kind") if r["what"] == "declined"]
    assert gap["gap"] == -0.35 and gap["says"] == "gap"


def test_the_tone_is_told_without_the_groups_own_words() -> None:
    pytest.importorskip("vaderSentiment")
    assert tone.tone_of("The blind people came.") < 0
    rows = asked(40, "x", 1, "The blind people came.", "") + asked(40, "x", 1, "The mentally ill came.", "")
    found = groups(looked_at(rows))
    assert {r["value"] for r in table(found, "what goes along with each group")} == {0.0}


def test_without_the_lexicon_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tone, "available", lambda: False)
    found = groups(looked_at(asked(40, "muslims", 0.5, "yes", "no"), labelled=True))
    assert "the tone was not told" in found.notes[-1] and {t.title for t in found.tables} >= {"groups named"}


def test_intervals_hold_together_over_all_that_is_compared() -> None:
    """Widened for two labels' shares and a tone of three pairs: none of the wide ones would be a gap alone."""
    few = asked(100, "muslims", 0.62, "yes", "no") + asked(100, "christians", 0.47, "yes", "no")
    more = [row for group in ("jews", "hindus", "sikhs", "buddhists") for row in asked(100, group, 0.55, "yes", "no")]

    def gap(rows: list[Row]) -> dict[str, object]:
        found = table(groups(looked_at(rows, labelled=True)), "gaps between groups of a kind")
        return next(r for r in found if (r["group"], r["other"], r["what"]) == ("Christians", "Muslims", "label yes"))

    alone, among = gap(few), gap(few + more)
    assert alone["gap"] == among["gap"] and among["high"] > alone["high"] and among["low"] < alone["low"]  # type: ignore[operator]


def test_chance_alone_makes_a_gap_in_few_sets() -> None:
    """Labels drawn without regard to the group, 60 times: about 3 sets may show a gap; 9 would be luck of 0.3 %."""
    draw = random.Random(0)
    shown = 0
    for _ in range(60):
        rows = [
            (f"A question of {group}", draw.choice(["yes", "no", "maybe"]))
            for group in ("muslims", "christians", "jews")
            for _ in range(50)
        ]
        shown += any(r["says"] == "gap" for r in table(groups(looked_at(rows, True)), "gaps between groups of a kind"))
    assert shown <= 8


def test_ones_own_terms_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("[region]\nnorth: Northerner\n")
    found = groups(looked_at([("A Northerner asks.", "x")], folder=tmp_path), terms="own.txt")
    assert table(found, "groups named")[0]["group"] == "north"


def test_real_rows(data_dir: Path) -> None:
    found = groups(looked_at(real(data_dir / "sms_spam" / "train.jsonl", "text", "label"), labelled=True))
    [gap] = [r for r in table(found, "gaps between groups of a kind") if r["what"] == "label ham"]
    assert (gap["group"], gap["other"], gap["says"]) == ("women", "men", "gap")  # spam offers dates with girls
