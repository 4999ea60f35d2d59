"""Conversations: what a model learns from and is asked. JSON in and out; no tensors, no tokens.

A row of any format becomes a `Conversation`. Plain text for self-supervised learning is one message of
role `text`, every token of which is learned. Columns that are neither messages nor known settings are
kept as `tags`: slices, custom metrics and `split.by` read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from luthier.faults import reach

Role = Literal["system", "user", "assistant", "tool", "text"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool", "text")
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


class ToolCall(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: dict[str, Any] = {}
    id: str | None = None


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str
    learn: bool | None = None
    """None: learned where the role is assistant or text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What the assistant calls, beside or instead of a text."""
    name: str | None = None
    """Of the tool that answers."""
    tool_call_id: str | None = None

    @property
    def learned(self) -> bool:
        return self.role in ("assistant", "text") if self.learn is None else self.learn

    @property
    def text(self) -> str:
        """The content and, a line each, what is called: what messages are compared by."""
        calls = [json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in self.tool_calls]
        return "\n".join([*([self.content] if self.content or not calls else ()), *calls])

    def as_openai(self) -> dict[str, Any]:
        """As the chat completions API writes it."""
        calls = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in self.tool_calls
        ]
        named = {key: value for key in ("name", "tool_call_id") if (value := getattr(self, key)) is not None}
        return {"role": self.role, "content": self.content, **({"tool_calls": calls} if calls else {}), **named}


class Tokens(BaseModel):
    """A text as another tool tokenised it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


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
    tools: tuple[dict[str, Any], ...] = ()
    """The functions that the assistant may call, each as OpenAI's API describes one."""
    rejected: tuple[Message, ...] = ()
    """In a preference pair, the worse answer to the same prompt; `messages` end with the better one."""
    rating: bool | None = None
    """Whether people found the answer good; None: nobody said."""
    tokens: Tokens | None = None
    """Where the data are token ids: these, and one message that spells them."""
    made_by: str | None = None
    """The augmentation that wrote it; None: it was read."""
    made_from: str | None = None
    """Id of the conversation that it was made of."""
    weight: float = 1.0
    """How often it is met in an epoch of training."""

    @property
    def is_document(self) -> bool:
        """Whether it is plain text, which may be of any length."""
        return self.messages[0].role == "text" and self.tokens is None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the last answer; empty for plain text."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last message: the assistant's reference answer, or the plain text."""
        return self.messages[-1].text

    @property
    def prompt_text(self) -> str:
        """What was asked, without the system text: the basis of near-duplicate and leakage checks."""
        return "\n".join(m.text for m in self.prompt if m.role != "system")

    @property
    def asked_text(self) -> str:
        """What two rows may not share across sides: the prompt, or the text itself where there is none."""
        return self.prompt_text or self.answer


def make_conversation(
    messages: Iterable[Message],
    source: str,
    tags: dict[str, Any] | None = None,
    family: str | None = None,
    **more: Any,
) -> Conversation:
    """A conversation with the id of its content; its own family unless one is given. `more`: its other fields."""
    draft = Conversation(id="", messages=tuple(messages), family="", source=source, tags=tags or {}, **more)
    said: list[Any] = [m.model_dump(exclude_defaults=True) | {"learn": m.learn} for m in draft.messages]
    beside = draft.model_dump(exclude_defaults=True, include={"tools", "rejected", "rating", "tokens"})
    text = json.dumps([*said, beside] if beside else said, ensure_ascii=False, sort_keys=True)
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return draft.model_copy(update={"id": key, "family": family or key})


KEPT = ("source", "tags", "family", "tools", "rejected", "rating", "weight")
"""Of a conversation that says something else."""


def with_messages(conversation: Conversation, messages: Iterable[Message], **changed: Any) -> Conversation:
    """The conversation saying something else, so with another id; `changed`: its other fields that are new."""
    kept = {name: getattr(conversation, name) for name in KEPT}
    return make_conversation(messages, **(kept | changed))


def by_answer(conversation: Conversation) -> list[Conversation]:
    """One for each answer that is learned, which is all that is learned of it; of one family."""
    learned = [i for i, m in enumerate(conversation.messages) if m.learned and m.role == "assistant"]
    parts = []
    for i in learned:
        before = [m.model_copy(update={"learn": False}) if m.learned else m for m in conversation.messages[:i]]
        rejected = conversation.rejected if i == learned[-1] else ()
        parts.append(with_messages(conversation, [*before, conversation.messages[i]], rejected=rejected))
    return parts


def line_of(conversation: Conversation) -> bytes:
    """As a file of conversations holds it."""
    return conversation.model_dump_json(exclude_defaults=True).encode("utf-8", "surrogatepass") + b"\n"


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    with path.open("wb") as out:
        out.writelines(map(line_of, conversations))


def read_conversations(path: Path, without: Set[str] = frozenset()) -> Iterator[Conversation]:
    """Reads what `write_conversations` wrote, but for rows that were made by the methods `without`."""
    reach("read")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            conversation = Conversation.model_validate_json(line)
            if conversation.made_by not in without:
                yield conversation
