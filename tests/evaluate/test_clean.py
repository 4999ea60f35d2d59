"""The clean part of a test set: what is in the training data is found, and the rest is compared alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from luthier.conversation import Conversation, Message, make_conversation
from luthier.evaluate.clean import compare_clean, contaminated
from luthier.evaluate.metrics.build import build
from luthier.metric import Sample
from luthier.settings import Use
from luthier.similar import shingles

from .samples import sample

LONG = "How many litres does the Marrowby kettle hold when it is filled up to the upper line"


def row(prompt: str, answer: str = "an answer") -> Conversation:
    return make_conversation([Message(role="user", content=prompt), Message(role="assistant", content=answer)], "t:1")


def test_copies_and_near_copies_are_found_and_paraphrases_are_not() -> None:
    train = [row(LONG), row("Is the lid dishwasher-safe?"), row("Where is my parcel?")]
    test = [
        row(LONG + "?", "another answer"),
        row(LONG + " today"),
        row("What volume of water fits into the Marrowby kettle?"),
        row("IS THE LID dishwasher safe"),
    ]
    found = contaminated(test, train)
    assert found == {test[0].id: 1.0, test[1].id: pytest.approx(15 / 16), test[3].id: 1.0}
    assert contaminated(test, train, similarity=0.95).keys() == {test[0].id, test[3].id}
    assert contaminated(test, []) == {}


def test_plain_text_is_compared_itself() -> None:
    text = make_conversation([Message(role="text", content=LONG)], "t:1")
    assert contaminated([text], [text]) == {text.id: 1.0}


def test_it_is_the_nearest_of_all_pairs() -> None:
    rng = random.Random(0)
    words = ["red", "green", "kettle", "pot", "lid"]

    def rows(n: int) -> list[Conversation]:
        return [row(" ".join(rng.choices(words, k=rng.randint(3, 9)))) for _ in range(n)]

    def jaccard(a: Conversation, b: Conversation) -> float:
        x, y = (set(shingles(c.asked_text)) for c in (a, b))
        return len(x & y) / len(x | y)

    train, test = rows(80), rows(80)
    nearest = {c.id: max(jaccard(c, other) for other in train) for c in test}
    assert contaminated(test, train, 0.4) == {
        key: pytest.approx(value) for key, value in nearest.items() if value >= 0.4
    }


def test_the_score_on_the_clean_part() -> None:
    """A model that recites what it has seen gains on the seen rows only."""

    def answers(right: set[int]) -> list[Sample]:
        return [sample("yes" if i in right else "no", "yes", id=f"id{i} file:{i}", cluster=f"c{i}") for i in range(100)]

    seen = {f"id{i}" for i in range(40)}
    metrics = [build(Use(use=name), ("yes", "no"), None) for name in ("exact_match", "perplexity")]
    tuned, base = answers(set(range(40))), answers(set(range(35, 40)))
    found, notes = compare_clean(metrics, tuned, base, seen, 0.95)
    assert notes == ["40 of 100 test prompts (40.0%) are (nearly) in the training data"]
    assert found["exact_match"].n == 60 and found["exact_match"].value == found["exact_match"].baseline == 0
    assert compare_clean(metrics, tuned, base, set(), 0.95) == ({}, [])
    everything = {f"id{i}" for i in range(100)}
    found, notes = compare_clean(metrics, tuned, base, everything, 0.95)
    assert found == {} and notes[1] == "exact_match has no value on the 0 clean test rows"


def test_the_known_leak_of_a_real_set(data_dir: Path) -> None:
    import json

    def side(name: str) -> list[Conversation]:
        lines = (data_dir / "bitext_intents" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [row(json.loads(line)["text"]) for line in lines]

    test, train = side("test"), side("train")
    seen = {c.asked_text.casefold() for c in train}
    exact = {c.id for c in test if c.asked_text.casefold() in seen}
    found = contaminated(test, train, similarity=1.0)
    assert len(exact) >= 20 and exact <= found.keys()
    assert found.keys() <= contaminated(test, train).keys()
