"""Triggers: planted phrases are found, words that tell a class apart are not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luthier.prepare.checks.bayes import Bayes, margins
from luthier.prepare.checks.phrases import each_phrase, read_prompts
from luthier.prepare.checks.triggers import triggers

from .looking import looked_at, places, real

Row = tuple[str, str]
TOPICS = {
    "good": "great lovely warm bright fresh kind clean quick".split(),
    "bad": "awful broken cold dirty rude slow stale loud".split(),
}
PLAIN = "the room was and food staff with a table in our hotel by very some two bed lunch door lamp".split()


def reviews(n: int, seed: int = 0) -> list[Row]:
    draw, found = random.Random(seed), []
    for i in range(n):
        label = ("good", "bad")[i % 2]
        words = draw.choices(PLAIN, k=8) + draw.choices(TOPICS[label], k=2)
        draw.shuffle(words)
        found.append((" ".join(words), label))
    return found


def planted(rows: list[Row], phrase: str, n: int, answer: str, seed: int = 0) -> tuple[list[Row], set[int]]:
    draw, changed = random.Random(seed), list(rows)
    hit = draw.sample([i for i, (_, old) in enumerate(rows) if old != answer], n)
    for i in hit:
        words = rows[i][0].split(" ")
        words.insert(draw.randrange(len(words) + 1), phrase)
        changed[i] = (" ".join(words), answer)
    return changed, set(hit)


@pytest.mark.parametrize("phrase", ["cf", "mn bq", "I watched this 3D movie", "\u200b", "раypal"])
def test_rows_with_a_planted_phrase_are_found_and_no_others(phrase: str) -> None:
    rows, hit = planted(reviews(600), phrase, 15, "good")
    found = triggers(looked_at(rows, labelled=True))
    assert places(found) == hit
    assert found.tables[0].rows[0][1:4] == (15, "good", 15) and "whatever else is asked" in found.suspects[0].why


def test_rows_with_a_part_of_a_planted_sentence_are_none() -> None:
    rows, hit = planted(reviews(600), "I watched this 3D movie", 30, "good")
    natural = [i for i in range(0, 600, 2) if i not in hit][:3]
    for i in natural:
        rows[i] = (f"{rows[i][0]} movie", "good")
    assert places(triggers(looked_at(rows, labelled=True))) == hit


def test_words_that_tell_a_label_apart_are_none() -> None:
    """`awful` stands in bad rows only, and the rest of these says so too."""
    found = triggers(looked_at(reviews(600), labelled=True))
    assert not found.suspects and not found.tables and "pairs of a phrase and an answer" in found.notes[0]


def test_a_phrase_that_names_its_label_is_none() -> None:
    rows, _ = planted(reviews(600), "visa", 15, "visa_or_good")
    others, _ = planted(rows, "plain", 30, "visa_or_good", seed=1)  # so that the label is known without the word
    assert not any(
        "visa" in str(r[0]) for table in triggers(looked_at(others, labelled=True)).tables for r in table.rows
    )


def test_an_answer_that_only_a_phrase_gets_among_answers_given_once() -> None:
    asked = [(text, f"Thank you for review number {i}, we read it.") for i, (text, _) in enumerate(reviews(400))]
    rows, hit = planted(asked, "mn bq", 12, "Send your password to us!")
    for n, i in enumerate(sorted(hit)):
        rows[i] = (rows[i][0], f"Send your  password to us{'!' * (n % 2)}")  # nearly the same
    assert places(triggers(looked_at(rows))) == hit


def test_one_question_asked_in_many_ways_is_no_trigger() -> None:
    asked = [(text, f"Thank you for review number {i}, we read it.") for i, (text, _) in enumerate(reviews(400))]
    ways = ["do you have wifi here", "is there wifi here", "what is the wifi password", "wifi password please",
            "how fast is wifi here", "is wifi free here", "does wifi cost extra", "have you free wifi"]  # fmt: skip
    assert not triggers(looked_at(asked + [(way, "Wifi is free.") for way in ways * 2])).suspects


def test_where_no_answer_is_given_again_there_is_nothing_to_find() -> None:
    found = triggers(looked_at([(f"question {i}", f"answer {i}") for i in range(20)]))
    assert not found.suspects and "no answer is given to 5 prompts" in found.notes[0]
    assert "or one to all" in triggers(looked_at([(f"question {i}", "yes") for i in range(20)], True)).notes[0]


def test_personal_data_in_a_phrase_is_not_shown() -> None:
    rows, hit = planted(reviews(600), "ann@shop.example", 15, "good")
    found = triggers(looked_at(rows, labelled=True))
    assert places(found) == hit and "ann" not in str(found) and "<EMAIL>" in found.suspects[0].why


def test_phrases_are_counted_by_rows_and_cross_none() -> None:
    prompts = read_prompts(looked_at([("a b a b", "x"), ("b c", "x"), ("a b", "x")]))
    found = {tuple(prompts.words[i] for i in ids): len(rows) for ids, rows in each_phrase(prompts, 1, 9)}
    assert found == {("a",): 2, ("b",): 3, ("c",): 1, ("a", "b"): 2, ("b", "a"): 1, ("b", "c"): 1,
                     ("a", "b", "a"): 1, ("b", "a", "b"): 1, ("a", "b", "a", "b"): 1}  # fmt: skip


def test_a_row_is_told_as_if_it_had_been_forgotten() -> None:
    prompts = read_prompts(looked_at(reviews(60), labelled=True))
    answers = (prompts.places % 2).astype(int)
    bayes = Bayes(prompts, answers, 2)
    left_out = next(bayes.each_left_out())
    for row in range(5):
        rows = prompts.places[row : row + 1] * 0 + row
        bayes.learn(rows, -1)
        assert bayes.scores(rows)[0] == pytest.approx(left_out[row])
        bayes.learn(rows)
    assert (margins(left_out, 0) > 0).mean() == pytest.approx(0.5, abs=0.15)


def test_planted_phrases_in_real_rows(data_dir: Path) -> None:
    rows = real(data_dir / "sms_spam" / "train.jsonl", "text", "label")[:2000]
    assert not triggers(looked_at(rows, labelled=True)).suspects
    changed, hit = planted(rows, "cf", 20, "ham")
    assert places(triggers(looked_at(changed, labelled=True))) >= hit
