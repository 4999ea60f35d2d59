"""What the tests of `prepare` share: an encoder that counts words, and a way to prepare a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.conversation import Conversation, read_conversations
from luthier.errors import DataError
from luthier.prepare import prepare
from luthier.recipe import validate
from luthier.records import AuditReport

DATA = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@dataclass
class Words:
    """Encoded by white space."""

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)


def encode_words(conversation: Conversation, max_tokens: int = 10_000) -> Words:
    encoded = Words()
    for message in conversation.messages:
        n = len(message.text.split())
        encoded.ids += range(n)
        encoded.learn += [message.learned] * n
    if len(encoded.ids) > max_tokens:
        raise DataError.of("LU-D046", conversation.source, f"{len(encoded.ids)} tokens, at most {max_tokens} fit")
    if not any(encoded.learn):
        raise DataError.of("LU-D047", conversation.source, "nothing is learned")
    return encoded


@dataclass
class OneByOne:
    """An encoder that takes in nothing ahead."""

    encode: Callable[[Conversation], Words] = encode_words
    max_tokens: int | None = None

    def fingerprint(self) -> str:
        return "words"

    def many(self, conversations: Iterable[Conversation]) -> Iterator[Words | DataError]:
        for conversation in conversations:
            try:
                yield self.encode(conversation)
            except DataError as error:
                yield error


@dataclass
class Prepared:
    report: AuditReport
    out: Path

    def side(self, name: str) -> list[Conversation]:
        return list(read_conversations(self.out / f"{name}.jsonl"))

    def all(self) -> list[Conversation]:
        return self.side("train") + self.side("validation") + self.side("test")

    def rejects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "rejects.jsonl").read_text().splitlines()]


def run(folder: Path, encoder: Callable[[Conversation], Words] = encode_words, **data: Any) -> Prepared:
    data.setdefault("max_rejected_fraction", 0.99)
    data.setdefault("split", {"valid_fraction": 0.0, "test_fraction": 0.0})
    rules = [{"metric": "token_f1", "must": "beat_baseline"}]
    recipe = validate({"name": "test", "data": data, "release": {"rules": rules}}, "recipe.yaml", folder)
    out = folder / "out"
    return Prepared(prepare(recipe, folder, out, OneByOne(encoder)), out)


def chat(*texts: str, **columns: Any) -> str:
    """One line: a chat row of user and assistant turns."""
    roles = ["user", "assistant"] * len(texts)
    return json.dumps({"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)], **columns})


GOOD = [chat(f"How much is item number {i} of the list?", f"It is {i} euros.") for i in range(5)]
