"""By time: no training row is newer than a held-out one, and no family is on two sides."""

from __future__ import annotations

import datetime as dt
import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.conversation import SIDES, Message, make_conversation
from luthier.errors import DataError
from luthier.prepare.rows import Fault
from luthier.prepare.split import split
from luthier.prepare.table import NO_SIDE, Rows
from luthier.prepare.when import seconds
from luthier.settings import Split

from .lines import DATA, chat, run

BY_DAY = Split(time="day", valid_fraction=0.1, test_fraction=0.2)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), min_size=10, max_size=80), shuffle=st.randoms())
def test_no_training_row_is_newer_than_a_held_out_one(rows: list[tuple[int, int]], shuffle: object) -> None:
    """Rows of a day and a family each."""
    made = [
        make_conversation(
            [Message(role="user", content=f"n{n} asks for n{n}"), Message(role="assistant", content="Yes.")],
            f"{n}",
            {"day": day},
            f"f{family}",
        )
        for n, (day, family) in enumerate(rows)
    ]
    table = Rows.of(made)
    try:
        split(table, table.numbers, BY_DAY, 0)
    except DataError as error:
        assert error.problems[0].code == "LU-D106"
        return
    days, families = defaultdict(list), defaultdict(set)
    for c, side in zip(made, table.side, strict=True):
        if side != NO_SIDE:
            days[SIDES[side]].append(c.tags["day"])
            families[c.family].add(int(side))
    assert set(days) == set(SIDES) and all(len(found) == 1 for found in families.values())
    assert max(days["train"]) < min(days["validation"]) and max(days["validation"]) < min(days["test"])
    assert len(days["test"]) <= round(0.2 * len(rows)), "ties are on the earlier side"
    for c, side in zip(made, table.side, strict=True):
        if side == NO_SIDE:  # an older one of its family is kept
            kept = [o.tags["day"] for o, s in zip(made, table.side, strict=True) if o.family == c.family and s >= 0]
            assert min(kept) < c.tags["day"]
    before = {c.source: int(side) for c, side in zip(made, table.side, strict=True)}
    shuffle.shuffle(made)  # type: ignore[attr-defined]
    again = Rows.of(made)
    split(again, again.numbers, BY_DAY, 0)
    assert {c.source: int(side) for c, side in zip(made, again.side, strict=True)} == before


@pytest.mark.parametrize(
    ("value", "then"),
    [
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1970-01-01T00:00:00.5", 0.5),
        (dt.date(1970, 1, 2), 86400),
        (dt.datetime(1970, 1, 1, 1), 3600),
        (1_700_000_000, 1_700_000_000),
        ("1700000000", 1_700_000_000),
        (1_700_000_000_000, 1_700_000_000),
        (1_700_000_000_000_000, 1_700_000_000),
        (1_700_000_000_000_000_000, 1_700_000_000),
        (2013.5, 2013.5),
    ],
)
def test_times_are_read(value: object, then: float) -> None:
    assert seconds(value, "day") == then


@pytest.mark.parametrize("value", ["last week", "12/31/2013", "", "nan", "inf", True, [2013], {}, "2013-13-01"])
def test_what_is_no_time_is_a_fault(value: object) -> None:
    with pytest.raises(Fault) as caught:
        seconds(value, "day")
    assert (caught.value.code, caught.value.field) == ("LU-D058", "day")


def test_rows_without_a_time_are_rejected_with_their_place_and_given_ones_train(tmp_path: Path) -> None:
    lines = [chat(f"item {i} of {i * i}?", "Yes.", day=f"2024-01-{i + 1:02}") for i in range(20)]
    lines += [chat("And when?", "Never.", day="soon"), chat("Why?", "Because.", day=None)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "more.jsonl").write_text(chat("Who goes there?", "A friend."))
    done = run(
        tmp_path,
        sources=[{"path": "data.jsonl"}, {"path": "more.jsonl", "split": "train"}],
        split=BY_DAY.model_dump(exclude_defaults=True),
    )
    assert [(r["code"], r["where"]) for r in done.rejects()] == [
        ("LU-D058", "data.jsonl:21:day"),
        ("LU-D025", "data.jsonl:22:day"),
    ]
    assert [c.tags["day"] for c in done.side("test")] == [f"2024-01-{day}" for day in range(17, 21)]
    assert [c.tags["day"] for c in done.side("validation")] == ["2024-01-15", "2024-01-16"]
    assert "Who goes there?" in {c.prompt_text for c in done.side("train")}
    said = "\n".join(done.report.notes)
    assert "divided by day from 21 rows" in said
    assert "train ends with 2024-01-14, validation ends with 2024-01-16; 0 rows are left out" in said
    with pytest.raises(DataError, match=r"LU-D102 data\.split\.time: no column is called 'date'"):
        run(tmp_path, sources=[{"path": "data.jsonl"}], split={"time": "date"})


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    lines = [chat(f"item {i} of {i * i}?", "Yes.", day=i) for i in range(20)]
    lines += [chat("Where is my order?", f"There, {day}.", day=day) for day in (0.5, 30, 31)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    done = run(tmp_path, sources=[{"path": "data.jsonl"}], split=BY_DAY.model_dump(exclude_defaults=True))
    (step,) = (s for s in done.report.steps if s.name == "split")
    assert step.dropped == {"newer than the side of their group": 2} and len(done.all()) == 21
    assert any("2 rows are left out (8.7%)" in note for note in done.report.notes)


def test_real_comments_are_divided_by_time(tmp_path: Path) -> None:
    path = DATA / "youtube_spam" / "train.jsonl"
    if not path.is_file():
        pytest.skip("needs LUTHIER_DATA")
    lines = path.read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join(lines[::-1]))
    done = run(tmp_path, sources=[{"path": "data.jsonl"}], split={"time": "time"})
    times = {side: [c.tags["time"] for c in done.side(side)] for side in SIDES}
    assert max(times["train"]) < min(times["validation"]) and max(times["validation"]) < min(times["test"])
    assert len(times["train"]) > 0.8 * len(lines) and len(times["test"]) > 0.05 * len(lines)
    assert json.loads(lines[0])["time"] in times["train"]
