"""Formats: how one row becomes one `Conversation`, or a `Fault` that says why it cannot.

A format is a name and its fields; a field is a column, or a template such as '{table}\\n\\n{question}'.
Values are never converted and never cut: what is of the wrong type is a fault. This module does not guess;
`detect.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from luthier.conversation import ROLES, Conversation, Message, make_conversation
from luthier.errors import did_you_mean, printable
from luthier.prepare.rows import Fault, Row, Warn

REQUIRED = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
}
"""The fields that each format needs."""
OPTIONAL = ("system", "split")
PLACEHOLDER = re.compile(r"\{([^{}?]+)(\??)\}")


def columns_of(field: str) -> list[str]:
    """The columns that a field reads."""
    return [m[1] for m in PLACEHOLDER.finditer(field)] if is_template(field) else [field]


def is_template(field: str) -> bool:
    return PLACEHOLDER.search(field) is not None


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    fields: dict[str, str]
    system: str | None = None
    """System text for conversations that have none."""

    @property
    def columns(self) -> set[str]:
        """Every column that a field reads; the others become tags."""
        return {column for field in self.fields.values() for column in columns_of(field)}

    def conversation(self, row: Row, known: Set[str], warn: Warn) -> Conversation:
        """The row's conversation; columns not in `known` are warned of. Raises Fault."""
        messages = list(self._messages(row, warn))
        if system := self._system(row, messages):
            messages.insert(0, Message(role="system", content=system))
        for column in sorted(set(row.data) - known):
            warn("LU-D028", f"{row.where}:{column}", "a column that the first rows do not have", "it is kept as a tag")
        tags = {column: value for column, value in row.data.items() if column not in self.columns}
        return make_conversation(messages, row.where, tags)

    def _messages(self, row: Row, warn: Warn) -> Iterator[Message]:
        if self.name == "messages":
            yield from _chat(_column(row.data, self.fields["messages"]), self.fields["messages"], row.where, warn)
        elif self.name == "text":
            yield Message(role="text", content=self._text(row, "text", "LU-D030"))
        else:
            asked, answered = REQUIRED[self.name]
            yield Message(role="user", content=self._text(row, asked, "LU-D026"))
            yield Message(role="assistant", content=self._text(row, answered, "LU-D030"))

    def _text(self, row: Row, name: str, if_blank: str) -> str:
        field = self.fields[name]
        text = render(row.data, field) if is_template(field) else _column(row.data, field)
        place = name if is_template(field) else field
        if not isinstance(text, str):
            raise Fault(
                "LU-D027",
                place,
                f"{_kind(text)} where a text is expected",
                f"a template renders it: {name}: '{{{field}}}'",
            )
        if not text.strip():
            raise Fault(if_blank, place, "is blank", "fill it in, or remove the row")
        return text

    def _system(self, row: Row, messages: list[Message]) -> str | None:
        if messages[0].role in ("system", "text"):
            return None
        if "system" not in self.fields:
            return self.system
        field = self.fields["system"]
        text = render(row.data, field) if is_template(field) else row.data.get(field)
        if text is not None and not isinstance(text, str):
            raise Fault("LU-D027", field, f"{_kind(text)} where a text is expected")
        return text if text and text.strip() else self.system


def render(data: dict[str, Any], template: str) -> str:
    """The template filled in; null is nothing, and so is an absent `{column?}`. Raises Fault LU-D025."""

    def value(match: re.Match[str]) -> str:
        return _shown(data.get(match[1])) if match[2] else _shown(_column(data, match[1], null=True))

    return PLACEHOLDER.sub(value, template).strip()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _column(data: dict[str, Any], name: str, null: bool = False) -> Any:
    if name not in data:
        raise Fault("LU-D025", name, "the column is missing", did_you_mean(name, data))
    if data[name] is None and not null:
        raise Fault("LU-D026", name, "is null", "fill it in, or remove the row")
    return data[name]


def _chat(value: Any, field: str, where: str, warn: Warn) -> list[Message]:
    """The messages of a chat row. Raises Fault LU-D025 to LU-D042."""
    if not isinstance(value, list):
        raise Fault("LU-D027", field, f"{_kind(value)} where a list of messages is expected")
    messages = [_message(one, f"{field}[{i}]", where, warn) for i, one in enumerate(value)]
    if all(m.role != "assistant" for m in messages):
        raise Fault("LU-D029", field, "no assistant turn: nothing to learn", "add the answer")
    for i, (before, after) in enumerate(pairwise(messages)):
        place = f"{field}[{i + 1}]"
        if after.role == "system":
            raise Fault("LU-D034", place, "a system turn that is not the first", "move it to the start")
        if before.role == after.role and after.role != "tool":
            raise Fault("LU-D032", place, f"two {after.role} turns in a row", "join them into one")
    if messages[-1].role != "assistant":
        found = f"the last turn is of the {messages[-1].role}, not the assistant"
        raise Fault("LU-D031", f"{field}[{len(messages) - 1}]", found, "add the answer, or remove the turn")
    return messages


def _message(value: Any, place: str, where: str, warn: Warn) -> Message:
    if not isinstance(value, dict):
        raise Fault("LU-D027", place, f"{_kind(value)} where a message is expected", '{"role": ..., "content": ...}')
    for name in ("role", "content"):
        if name not in value:
            raise Fault("LU-D025", f"{place}.{name}", "is missing", did_you_mean(name, value))
    role, content = value["role"], value["content"]
    if role not in ROLES[:4]:
        raise Fault(
            "LU-D033", f"{place}.role", f"unknown role {printable(repr(role))}", did_you_mean(str(role), ROLES[:4])
        )
    if value.get("tool_calls") or value.get("function_call"):
        raise Fault(
            "LU-D035", place, "a tool call", "calls are not learned yet: write the call as text, or remove the row"
        )
    if content is None:
        raise Fault("LU-D026", f"{place}.content", "is null", "fill it in, or remove the row")
    if not isinstance(content, str):
        raise Fault("LU-D027", f"{place}.content", f"{_kind(content)} where a text is expected")
    if not content.strip() and role in ("assistant", "user"):
        raise Fault(
            "LU-D030" if role == "assistant" else "LU-D026",
            f"{place}.content",
            "is blank",
            "fill it in, or remove the row",
        )
    for name in sorted(value.keys() - {"role", "content", "learn", "weight", "tool_calls", "function_call"}):
        warn("LU-D028", f"{where}:{place}.{name}", "a field that messages do not have", "it is left out")
    return Message(role=role, content=content, learn=_learn(value, place))


def _learn(value: dict[str, Any], place: str) -> bool | None:
    """`learn`, or OpenAI's `weight` of 0 or 1."""
    learn, weight = value.get("learn"), value.get("weight")
    if learn is not None and not isinstance(learn, bool):
        raise Fault("LU-D027", f"{place}.learn", f"{_kind(learn)} where true or false is expected")
    if weight is None or learn is not None:
        return learn
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Fault("LU-D042", f"{place}.weight", f"the weight {printable(repr(weight))}", "a weight is 0 or 1")
    return bool(weight)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
