"""Rows as a check sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from luthier.conversation import Conversation, Message, make_conversation
from luthier.prepare.checks.contract import Found, Looked
from luthier.prepare.table import Rows


def row(asked: str, answer: str, source: str = "") -> Conversation:
    return make_conversation([Message(role="user", content=asked), Message(role="assistant", content=answer)], source)


def looked_at(rows: Iterable[tuple[str, str] | Conversation], labelled: bool = False, folder: Path = Path()) -> Looked:
    kept = Rows.of((one if isinstance(one, Conversation) else row(*one) for one in rows), "train")
    return Looked(kept, kept.numbers, labelled, 0, folder)


def real(path: Path, asked: str, answer: str) -> list[tuple[str, str]]:
    rows = (json.loads(line) for line in path.open(encoding="utf-8"))
    return [(one[asked], one[answer]) for one in rows]


def places(found: Found) -> set[int]:
    return {suspect.place for suspect in found.suspects}
