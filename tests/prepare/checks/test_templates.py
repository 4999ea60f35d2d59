"""Templates: frames are found with what changes masked, and labels are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.prepare.checks.templates import templates

from .looking import looked_at, places, real

CITIES = ["Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Accra", "Sofia", "Paris", "Tunis"]
OTHERS = [
    ("Why does bread rise in the oven?", "Yeast makes gas."),
    ("Name a tall tree of the north.", "The spruce is one."),
    ("My screen stays black after a restart.", "Hold the power button."),
    ("Can cats see at night?", "Better than people."),
]


def framed(n: int) -> list[tuple[str, str]]:
    return [
        (f"What is the weather in {CITIES[i % 10]} on day {i}?", f"I looked it up for you: {i} degrees.")
        for i in range(n)
    ]


def test_names_numbers_and_quotes_are_masked() -> None:
    rows = [*framed(20), ("What is the weather in “New Delhi, old town” on day 7,5?", "I looked it up for you: hot.")]
    found = templates(looked_at(rows))
    frames = {(part, frame): n for part, frame, n, _ in found.tables[0].rows}
    assert frames["the whole prompt", "what is the weather in … on day …"] == 21
    assert frames["the answer's first words", "i looked it up for"] == 21


@pytest.mark.parametrize(("n", "others", "are_suspects"), [(10, 15, True), (10, 60, False), (60, 4, False)])
def test_rows_of_a_frame_that_many_have_are_suspects_unless_all_have_it(
    n: int, others: int, are_suspects: bool
) -> None:
    unlike = [(f"p{i} q{i} r{i}", "x") for i in range(others)]
    found = templates(looked_at([*framed(n), *unlike]))
    assert places(found) == (set(range(n)) if are_suspects else set())
    assert any("worded otherwise than 'what is the weather" in note for note in found.notes) == are_suspects
    assert any("is the task's own" in note for note in found.notes) == (n > others)


def test_only_the_beginning_or_the_end_may_be_shared() -> None:
    begun = [(f"Translate into French, please: {asked}", "x") for asked, _ in OTHERS]
    ended = [(f"{asked} Answer in a single short word.", "x") for asked, _ in OTHERS]
    frames = {(part, frame): n for part, frame, n, _ in templates(looked_at(begun + ended)).tables[0].rows}
    assert frames["its last words", "in a single short word"] == 4
    assert frames["its first words", "translate into … please …"] == 3  # of the fourth, that is all that is not masked


def test_labels_are_counted_and_it_is_said_which_to_collect() -> None:
    rows = (
        [(f"text {i} of many", "ham") for i in range(40)]
        + [("win", "spam")] * 4
        + [("mail me", "ann@shop.example")] * 12
    )
    found = templates(looked_at(rows, labelled=True))
    assert [r[:3] for r in found.tables[1].rows] == [("ham", 40, 0.7143), ("<EMAIL>", 12, 0.2143), ("spam", 4, 0.0714)]
    assert "3 labels: 'ham' has 40 rows, 'spam' 4 (1 : 10.0)" in found.notes
    assert any("collect rows of these labels first" in note and note.endswith("'spam' (4)") for note in found.notes)


def test_personal_data_is_in_no_frame() -> None:
    rows = [(f"Write to ann@shop.example about the order {i} please now", "x") for i in range(9)]
    assert "ann" not in str(templates(looked_at(rows)).tables)


def test_frames_of_real_rows(data_dir: Path) -> None:
    found = templates(looked_at(real(data_dir / "dstc9_faq" / "train.jsonl", "question", "answer")))
    assert ("the whole prompt", "do you have outdoor seating", 24, 0.0099) in found.tables[0].rows
    assert not found.suspects
