"""Random edits and noise: their rates, what they leave alone, and that a seed decides all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.conversation import Conversation, Message, make_conversation
from luthier.errors import DataError
from luthier.prepare.augment.contract import Unmade
from luthier.prepare.augment.noise import noise
from luthier.prepare.augment.random_edits import random_edits

from .rows import asked, made, needs_wordnet, plain

TEXT = "please tell me where the parcel that was sent last week has gone because nobody seems to know about it"  # 20


def edits(operation: str, rate: float = 0.1) -> list[str]:
    found = asked(random_edits(folder=Path(), operations=[operation], rate=rate), TEXT, n=200)
    return [text for text in found if text != "nothing to change"]  # two exchanges may undo each other


def test_a_swap_keeps_every_word_and_moves_as_many_as_the_rate_says() -> None:
    for text in edits("swap"):
        assert sorted(text.split()) == sorted(TEXT.split())
        assert sum(a != b for a, b in zip(text.split(), TEXT.split(), strict=True)) <= 4  # two exchanges


def test_deletion_takes_each_word_with_the_rate_as_its_chance() -> None:
    lengths = [len(text.split()) for text in edits("deletion")]
    assert max(lengths) == 19 and 17.4 < sum(lengths) / len(lengths) < 18.3  # 20 - 2, and one at least
    for text in edits("deletion", 1.0):
        assert text.strip(), "something is left"


@needs_wordnet
def test_insertion_adds_as_many_words_as_the_rate_says() -> None:
    for text in edits("insertion"):
        rest = iter(text.split())
        assert all(word in rest for word in TEXT.split()), "the old words are there, in their order"
        assert len(text.split()) >= 22


@pytest.mark.parametrize("kind", ["keyboard", "ocr"])
def test_noise_is_small_writes_no_digit_and_keeps_first_letters(kind: str) -> None:
    for text in asked(noise(kinds=[kind]), TEXT, n=200):
        pairs = [(a, b) for a, b in zip(TEXT.split(), text.split(), strict=True) if a != b]
        assert 1 <= len(pairs) <= 2
        assert all(a[0] == b[0] and len(a) >= 4 and b.isalpha() for a, b in pairs)


def test_models_do_not_learn_to_write_errors() -> None:
    answer = Message(role="assistant", content=TEXT)
    learned = make_conversation([Message(role="user", content=TEXT, learn=True), answer], "x")
    for method in (noise(), random_edits(folder=Path(), operations=["swap"])):
        for conversation in (plain(TEXT), learned):
            [found] = made(method, conversation)
            assert isinstance(found, Unmade)
        chat = make_conversation([Message(role="user", content=TEXT), answer], "x")
        [found] = made(method, chat)
        assert isinstance(found, Conversation) and found.messages[1] == chat.messages[1]


def test_a_seed_decides_everything() -> None:
    for method in (noise(), random_edits(folder=Path(), operations=["swap", "deletion"])):
        assert asked(method, TEXT, 5, seed=3) == asked(method, TEXT, 5, seed=3) != asked(method, TEXT, 5, seed=4)


WRONG = [{"operations": ["swop"]}, {"operations": []}, {"rate": 0}, {"rate": 1.5}, {"rate": "x"}]


@pytest.mark.parametrize("params", WRONG)
def test_wrong_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(DataError, match="LU-D146"):
        random_edits(folder=Path(), **params)  # type: ignore[arg-type]
