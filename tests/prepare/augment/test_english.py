"""WordNet's files are read right, words are told by their sentence, and forms are made right."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.prepare.augment.english import inflect, read, with_article
from luthier.prepare.augment.wordnet import POS, WordNet, open_wordnet

from .rows import WORDNET, needs_wordnet

pytestmark = needs_wordnet


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return open_wordnet(None, Path(), "test")


def test_every_hundredth_lemma_is_found(wordnet: WordNet) -> None:
    for pos, name in POS.items():
        lines = (WORDNET.parent / f"index.{name}").read_text().splitlines()
        for line in [*lines[29::100], lines[-1]]:
            assert wordnet.knows(line.split()[0].replace("_", " "), pos), line
    assert not any(wordnet.knows(word, "n") for word in ("xyzzy", "", "  1", "zzzzzz", "car "))


def test_synonyms_come_by_sense(wordnet: WordNet) -> None:
    assert wordnet.synonyms("big", "a", 1) == ("large",)
    assert "auto" in wordnet.synonyms("car", "n", 1) and "railcar" not in wordnet.synonyms("car", "n", 1)
    assert "railcar" in wordnet.synonyms("car", "n", 2)
    assert wordnet.count("run", "v") > wordnet.count("run", "n") > 0


@pytest.mark.parametrize(
    ("before", "word", "reading"),
    [
        ("the", "cards", ("card", "n", "plural")),
        ("you", "lost", ("lose", "v", "past")),
        ("i have", "lost", ("lose", "v", "participle")),
        ("they have", "gone", ("go", "v", "participle")),
        ("he", "went", ("go", "v", "past")),
        ("to", "return", ("return", "v", "base")),
        ("my", "return", ("return", "n", "singular")),
        ("she", "buys", ("buy", "v", "third")),
        ("is", "waiting", ("wait", "v", "ing")),
        ("a very", "large", ("large", "a", "")),
        ("the", "children", ("child", "n", "plural")),
        ("", "better", None),
        ("i", "put", None),  # past or present: nobody can say
    ],
)
def test_words_are_read_by_what_stands_before_them(
    wordnet: WordNet, before: str, word: str, reading: tuple[str, str, str] | None
) -> None:
    assert read(word, before.split(), wordnet) == reading


@pytest.mark.parametrize(
    ("lemma", "forms"),
    [
        ("stop", ("stops", "stopped", "stopped", "stopping")),
        ("go", ("goes", "went", "gone", "going")),
        ("take", ("takes", "took", "taken", "taking")),
        ("begin", ("begins", "began", "begun", "beginning")),
        ("show", ("shows", "showed", "shown", "showing")),
        ("run", ("runs", "ran", "run", "running")),
        ("try", ("tries", "tried", "tried", "trying")),
        ("lie", ("lies", "lay", "lain", "lying")),
        ("agree", ("agrees", "agreed", "agreed", "agreeing")),
        ("prefer", ("prefers", "preferred", "preferred", "preferring")),
        ("visit", ("visits", "visited", "visited", "visiting")),
        ("put", ("puts", "put", "put", "putting")),
        ("panic", ("panics", "panicked", "panicked", "panicking")),
    ],
)
def test_verbs_are_inflected(wordnet: WordNet, lemma: str, forms: tuple[str, ...]) -> None:
    assert tuple(inflect(lemma, "v", f, wordnet) for f in ("third", "past", "participle", "ing")) == forms


def test_nouns_are_inflected(wordnet: WordNet) -> None:
    plurals = {"card": "cards", "box": "boxes", "city": "cities", "day": "days", "child": "children", "knife": "knives"}
    assert {n: inflect(n, "n", "plural", wordnet) for n in plurals} == plurals
    assert inflect("brother-in-law", "n", "plural", wordnet) is None


def test_articles_agree() -> None:
    assert with_article("I want an apple", 10, "pear") == (7, "a pear")
    assert with_article("A car", 2, "auto") == (0, "An auto")
    assert with_article("the car", 4, "auto") == (4, "auto")


def test_missing_files_are_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install wordnet-base") as caught:
        open_wordnet(str(tmp_path), tmp_path, "synonyms")
    assert caught.value.problems[0].code == "LU-D140"
    for name in POS.values():
        for kind in ("index", "data"):
            (tmp_path / f"{kind}.{name}").write_text("")
    with pytest.raises(DataError, match="LU-D140"):
        open_wordnet(str(tmp_path), tmp_path, "synonyms")
