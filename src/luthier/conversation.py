"""Conversations: what a model learns from and is asked. JSON in and out; no tensors, no tokens.

A row of any format becomes a `Conversation`. Plain text for self-supervised learning is one message of
role `text`, every token of which is learned. Columns that are neither messages nor known settings are
kept as `tags`: slices, custom metrics and `split.by` read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant", "tool", "text"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool", "text")
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    learn: bool | None = None
    """None: learned where the role is assistant or text."""

    @property
    def learned(self) -> bool:
        return self.role in ("assistant", "text") if self.learn is None else self.learn


class Conversation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Hash of the messages: equal conversations have equal ids."""
    messages: tuple[Message, ...]
    family: str
    """Id of the oldest ancestor. Members of a family are never on two sides of a split."""
    source: str
    """file:line"""
    tags: dict[str, Any] = {}
    made_by: str | None = None
    """The augmentation that wrote it; None: it was read."""
    made_from: str | None = None
    """Id of the conversation that it was made of."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the last answer; empty for plain text."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last message: the assistant's reference answer, or the plain text."""
        return self.messages[-1].content

    @property
    def prompt_text(self) -> str:
        """What was asked, without the system text: the basis of near-duplicate and leakage checks."""
        return "\n".join(m.content for m in self.prompt if m.role != "system")

    @property
    def asked_text(self) -> str:
        """What two rows may not share across sides: the prompt, or the text itself where there is none."""
        return self.prompt_text or self.answer


def make_conversation(
    messages: Iterable[Message], source: str, tags: dict[str, Any] | None = None, family: str | None = None
) -> Conversation:
    """A conversation with the id of its content; its own family unless one is given."""
    messages = tuple(messages)
    content = json.dumps([m.model_dump() for m in messages], ensure_ascii=False, sort_keys=True)
    key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Conversation(id=key, messages=messages, family=family or key, source=source, tags=tags or {})


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for conversation in conversations:
            out.write(conversation.model_dump_json() + "\n")


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Reads what `write_conversations` wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Conversation.model_validate_json(line)
