"""An encoder may take in rows ahead of those that it gives back: the audit and the rejects stay in the rows' order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from luthier.conversation import Conversation
from luthier.encode import Encoder
from luthier.errors import DataError
from luthier.models import find_base, load_tokenizer
from luthier.prepare import prepare
from luthier.recipe import validate

from .lines import GOOD, OneByOne, Words, chat, encode_words

RULES = [{"metric": "token_f1", "must": "beat_baseline"}]
KINDS = [
    lambda i: chat(f"Question number {i}?", f"Answer {i}."),
    lambda i: "",  # a finding that rejects nothing
    lambda i: chat(f"With\u200b something invisible {i}?", "Yes."),
    lambda i: chat(f"Too long {i}?", "word " * 80),
    lambda i: "{broken",
    lambda i: chat(f"Nothing to learn {i}?", ""),
    lambda i: chat("", "no question") if i % 2 else chat(f"Question number {i - 6}?", f"Answer {i - 6}."),
]


class Ahead(OneByOne):
    """Takes in everything before it gives anything back."""

    def many(self, conversations: Iterable[Conversation]) -> Iterator[Words | DataError]:
        yield from list(OneByOne(limited).many(list(conversations)))


def limited(conversation: Conversation) -> Words:
    return encode_words(conversation, max_tokens=60)


def files_after(folder: Path, encoder: object) -> dict[str, bytes]:
    """What preparing dirty rows leaves."""
    data = {"sources": [{"path": "data.jsonl"}], "max_rejected_fraction": 0.99}
    recipe = validate({"name": "test", "data": data, "release": {"rules": RULES}}, "recipe.yaml", folder)
    prepare(recipe, folder, folder / "out", encoder)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    lines = [KINDS[i % len(KINDS)](i) for i in range(900)]
    (tmp_path / "data.jsonl").write_text("\n".join([*GOOD, *lines, ""]), encoding="utf-8")
    return tmp_path


def test_nothing_depends_on_how_far_ahead_the_encoder_is(dirty: Path) -> None:
    assert files_after(dirty, OneByOne(limited)) == files_after(dirty, Ahead())


def test_nor_with_the_real_one(dirty: Path, tiny: Path) -> None:
    encoder = Encoder(load_tokenizer(find_base(str(tiny))), 120)
    alone: Callable[[Conversation], object] = encoder
    one_by_one = OneByOne(alone, encoder.max_tokens)  # type: ignore[arg-type]
    one_by_one.fingerprint = encoder.fingerprint  # type: ignore[method-assign]
    found = files_after(dirty, encoder)
    assert found == files_after(dirty, one_by_one)
    assert found["rejects.jsonl"].count(b"LU-D046") > 50


def test_an_error_of_all_rows_stops_at_the_first_of_them(dirty: Path) -> None:
    def refuse(conversation: Conversation) -> Words:
        raise DataError.of("LU-D054", conversation.source, "no chat template")

    for encoder in (OneByOne(refuse), type("", (Ahead,), {"many": lambda _, c: OneByOne(refuse).many(list(c))})()):
        with pytest.raises(DataError) as caught:
            files_after(dirty, encoder)
        assert str(caught.value).startswith("LU-D054 data.jsonl:1")
