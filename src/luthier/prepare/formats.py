"""Formats: how one row becomes one `Conversation`, or a `Fault` that says why it cannot.

A format is a name and its fields; a field is a column, or a template such as '{table}\\n\\n{question}'.
Values are never converted and never cut: what is of the wrong type is a fault. This module does not guess;
`detect.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from luthier.conversation import Conversation, Message, Role, Tokens, make_conversation
from luthier.errors import did_you_mean, printable
from luthier.prepare.chats import LEARN, ROLE_NAMES, chat, is_turn, kind, names_in, tools_of
from luthier.prepare.rows import Fault, Row, Warn

REQUIRED = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "rated": ("prompt", "completion", "rating"),
    "prompt_completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
    "tokens": ("input_ids",),
}
"""The fields that each format needs; in this order they are looked for."""
OPTIONAL = {
    "messages": ("system", "tools", "split"),
    "preference": ("prompt", "system", "tools", "split"),
    "rated": ("system", "history", "tools", "split"),
    "prompt_completion": ("system", "history", "tools", "split"),
    "classification": ("system", "split"),
    "text": ("split",),
    "tokens": ("labels", "attention_mask", "split"),
}
"""The fields that it may have."""
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
        made = MAKERS[self.name](self, row, warn)
        messages = made.messages
        if system := self._system(row, messages):
            messages = [Message(role="system", content=system), *messages]
        for column in sorted(set(row.data) - known):
            warn("LU-D028", f"{row.where}:{column}", "a column that the first rows do not have", "it is kept as a tag")
        tags = {column: value for column, value in row.data.items() if column not in self.columns}
        tools = tools_of(given, self.fields["tools"]) if (given := self._given(row, "tools")) else ()
        return make_conversation(
            messages, row.where, tags, tools=tools, rejected=made.rejected, rating=made.rating, tokens=made.tokens
        )

    def _given(self, row: Row, name: str) -> Any:
        """The value of an optional field; None where the row has none."""
        return row.data.get(self.fields[name]) if name in self.fields else None

    def _turns(self, row: Row, name: str, role: Role, if_blank: str = "LU-D026") -> list[Any]:
        """A field that holds a text, which `role` says, or a turn, or turns."""
        field = self.fields[name]
        value = None if is_template(field) else _column(row.data, field)
        if isinstance(value, list):
            return value
        if is_turn(value):
            return [value]
        return [{"role": role, "content": self._text(row, name, if_blank)}]

    def _text(self, row: Row, name: str, if_blank: str) -> str:
        field = self.fields[name]
        text = render(row.data, field) if is_template(field) else _column(row.data, field)
        place = name if is_template(field) else field
        if not isinstance(text, str):
            raise Fault(
                "LU-D027",
                place,
                f"{kind(text)} where a text is expected",
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
            raise Fault("LU-D027", field, f"{kind(text)} where a text is expected")
        return text if text and text.strip() else self.system


@dataclass(frozen=True, slots=True)
class Made:
    """What a format makes of a row."""

    messages: list[Message]
    rejected: tuple[Message, ...] = ()
    rating: bool | None = None
    tokens: Tokens | None = None


def _chat(format: Format, row: Row, warn: Warn) -> Made:
    field = format.fields["messages"]
    return Made(chat(_column(row.data, field), field, row.where, warn))


def _asked_and_answered(format: Format, row: Row, warn: Warn) -> Made:
    """What the prompt says is not learned, also where it holds answers; those of the history are."""
    history = list(_history(format._given(row, "history"), format.fields.get("history", "")))
    asked = _unlearned(format._turns(row, "prompt", "user"))
    answered = format._turns(row, "completion", "assistant", "LU-D030")
    return Made(chat([*history, *asked, *answered], format.fields["completion"], row.where, warn))


def _rated(format: Format, row: Row, warn: Warn) -> Made:
    field = format.fields["rating"]
    rating = _column(row.data, field)
    if not isinstance(rating, bool | int) or rating not in (0, 1):
        raise Fault("LU-D042", field, f"the rating {printable(repr(rating))}", "a rating is true or false")
    return replace(_asked_and_answered(format, row, warn), rating=bool(rating))


def _preferred(format: Format, row: Row, warn: Warn) -> Made:
    """Both answers may repeat the prompt, or be all that is there: what they share is then the prompt."""
    fields = format.fields
    chosen, rejected = (format._turns(row, name, "assistant", "LU-D030") for name in ("chosen", "rejected"))
    if "prompt" in fields:
        prompt = format._turns(row, "prompt", "user")
        n = len(prompt)
        chosen, rejected = (turns[n:] if turns[:n] == prompt else turns for turns in (chosen, rejected))
    else:
        others = rejected[:-1] if len(rejected) > 1 else chosen  # an answer alone belongs to the other one's prompt
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:-1], others, strict=False)))
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:] if len(rejected) > 1 else rejected
    if not prompt:
        raise Fault("LU-D025", fields.get("prompt", fields["chosen"]), "no prompt that both answers share", "add it")
    if chosen == rejected:
        raise Fault("LU-D041", fields["rejected"], "the chosen and the rejected answer are the same", "remove the row")
    given = _unlearned(prompt)
    better = chat([*given, *chosen], fields["chosen"], row.where, warn)
    worse = chat([*given, *rejected], fields["rejected"], row.where, warn)
    return Made(better, rejected=tuple(worse[len(better) - len(chosen) :]))


def _labelled(format: Format, row: Row, warn: Warn) -> Made:
    text, label = format._text(row, "text", "LU-D026"), format._text(row, "label", "LU-D030")
    return Made([Message(role="user", content=text), Message(role="assistant", content=label)])


def _plain(format: Format, row: Row, warn: Warn) -> Made:
    return Made([Message(role="text", content=format._text(row, "text", "LU-D030"))])


def _tokenised(format: Format, row: Row, warn: Warn) -> Made:
    """Ids as another tool made them. A label of -100 is not learned; any other is the id itself, as everywhere."""
    ids = _numbers(_column(row.data, format.fields["input_ids"]), format.fields["input_ids"])
    learn = [True] * len(ids)
    if (given := format._given(row, "labels")) is not None:
        labels = _numbers(given, format.fields["labels"])
        if len(labels) != len(ids) or any(label not in (id_, -100) for label, id_ in zip(labels, ids, strict=True)):
            advice = "a label is the id at its own place, or -100"
            raise Fault("LU-D111", format.fields["labels"], "labels that are not those of input_ids", advice)
        learn = [label != -100 for label in labels]
    if (mask := format._given(row, "attention_mask")) is not None and mask != [1] * len(ids):
        raise Fault("LU-D111", format.fields["attention_mask"], "hides tokens", "leave padding out of input_ids")
    text = " ".join(map(str, ids))
    return Made([Message(role="text", content=text)], tokens=Tokens(ids=tuple(ids), learn=tuple(learn)))


MAKERS: dict[str, Callable[[Format, Row, Warn], Made]] = {
    "messages": _chat,
    "preference": _preferred,
    "rated": _rated,
    "prompt_completion": _asked_and_answered,
    "classification": _labelled,
    "text": _plain,
    "tokens": _tokenised,
}


def _numbers(value: Any, field: str) -> list[int]:
    if not isinstance(value, list) or not value or any(type(one) is not int for one in value):
        raise Fault("LU-D027", field, f"{kind(value)} where a list of token ids is expected")
    return value


def _unlearned(turns: list[Any]) -> list[Any]:
    """Turns that are context: no answer among them is learned, unless it says so."""

    def answers(turn: Any) -> bool:
        if not isinstance(turn, dict) or any(turn.get(name) is not None for name in LEARN):
            return False
        return ROLE_NAMES.get(str(turn.get(names_in(turn)[0]))) == "assistant"

    return [turn | {"learn": False} if answers(turn) else turn for turn in turns]


def _history(value: Any, field: str) -> Iterator[Any]:
    """Earlier turns: pairs of question and answer, or turns."""
    if value is not None and not isinstance(value, list):
        raise Fault(
            "LU-D027", field, f"{kind(value)} where a list of pairs is expected", '[["question", "answer"], ...]'
        )
    for n, one in enumerate(value or ()):
        if is_turn(one):
            yield one
        elif isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one):
            yield from ({"role": role, "content": text} for role, text in zip(("user", "assistant"), one, strict=True))
        else:
            raise Fault("LU-D027", f"{field}[{n}]", f"{kind(one)} where a pair is expected", '["question", "answer"]')


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
