"""Detection: which format the rows have, from the first of them and from what the recipe says.

A format is taken only where column names and types speak for it; where they do not, the error lists the
columns and shows what to write. This module makes no conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import DataError, Problem, did_you_mean, printable
from luthier.prepare.chats import is_turn
from luthier.prepare.formats import OPTIONAL, REQUIRED, Format, columns_of, is_template
from luthier.records import Task
from luthier.settings import Data

PROMPTS = ("prompt", "question", "query", "instruction", "dialogue", "input", "source", "article", "text", "document")
COMPLETIONS = ("completion", "answer", "response", "output", "target", "summary", "highlights", "note")
CONTEXTS = ("input", "context")
"""What an instruction may be about."""
TEXTS = ("text", "sentence", "message", "content", "review", "comment", "body", "utterance", "tweet", "document")
LABELS = ("label", "labels", "intent", "class", "sentiment", "category", "topic", "emotion", "spam")
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
RATINGS = ("rating", "label", "kto_tag", "desirable", "thumbs_up")
NOT_READ = {"image": "pictures", "images": "pictures"}
SAMPLE_ROWS = 1000
"""Of each file."""
MAX_LABELS = 200
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: str
    """The type of most of its values that are not null."""
    n: int
    n_distinct: int
    everywhere: bool

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def has_classes(self) -> bool:
        """Whether its values repeat as labels do."""
        return self.is_text and self.n_distinct <= MAX_LABELS and self.n >= REPEATS * self.n_distinct


Columns = dict[str, Column]


def detect(rows: Sequence[dict[str, Any]], data: Data) -> Format:
    """The format of the rows. Raises DataError LU-D101 (cannot be told), LU-D102 (no such column or field)."""
    columns = profile(rows)
    given = dict(data.fields)
    names = [data.format] if data.format != "auto" else _fitting(given)
    for name in names:
        found = FINDERS[name](columns) or {}
        fields = {**found, **given}
        if all(field in fields for field in REQUIRED[name]):
            if data.split.by == "given" and "split" in columns:
                fields.setdefault("split", "split")
            _check_fields(name, fields, columns)
            return Format(name, fields, data.system)
    raise _undecided(columns, given)


def task_of(format: Format, several_turns: bool) -> Task:
    """`several_turns`: whether any conversation has more than one answer."""
    if format.name == "classification":
        return "classification"
    if format.name in ("text", "tokens"):
        return "text"
    return "dialogue" if several_turns else "answer"


def profile(rows: Sequence[dict[str, Any]]) -> Columns:
    """What each column holds, over the sample."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: _column(name, found, len(rows)) for name, found in values.items()}


def _column(name: str, values: list[Any], n_rows: int) -> Column:
    kinds = [_kind(value) for value in values if value is not None]
    kind = max(sorted(set(kinds)), key=kinds.count) if kinds else "null"
    distinct = {value for value in values if isinstance(value, str)}
    return Column(name, kind, len(values), len(distinct), len(values) == n_rows)


def _kind(value: Any) -> str:
    if isinstance(value, list) and value and is_turn(value[0]):
        return "turns"
    if is_turn(value):
        return "turn"
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return "ids"
    return {str: "text", bool: "boolean", int: "number", float: "number", list: "list", dict: "object"}.get(
        type(value), type(value).__name__
    )


def _fitting(given: dict[str, str]) -> list[str]:
    """The formats that the given fields leave open, in order of precedence."""
    allowed = {name: {*REQUIRED[name], *OPTIONAL[name]} for name in REQUIRED}
    if unknown := given.keys() - set[str]().union(*allowed.values()):
        field = sorted(unknown)[0]
        advice = did_you_mean(field, set[str]().union(*allowed.values()))
        raise DataError.of("LU-D102", f"data.fields.{printable(field)}", "no such field", advice)
    fitting = [name for name in REQUIRED if given.keys() <= allowed[name]]
    if not fitting:
        raise DataError.of(
            "LU-D102", "data.fields", f"{', '.join(sorted(given))} do not belong to one format", str(REQUIRED)
        )
    # A column of true and false may be anything: who names fields names it, too, where rows are to go by it.
    return [name for name in fitting if name != "rated" or not given or "rating" in given]


def _find_messages(columns: Columns) -> dict[str, str] | None:
    plain = columns.get("messages")
    if plain and plain.kind == "list":  # the rows will say what is wrong with them
        return {"messages": "messages"}
    column = _first(columns, CHATS, "turns")
    return {"messages": column, **_beside(columns, tools=("list", "text", "turns"))} if column else None


def _find_preference(columns: Columns) -> dict[str, str] | None:
    if "chosen" in columns and "rejected" in columns:
        prompt = _first(columns, PROMPTS) or _first(columns, (*CHATS, "prompt"), "turns")
        pair = {"chosen": "chosen", "rejected": "rejected"}
        if not prompt and columns["chosen"].is_text:
            return None  # nobody asked
        return {**({"prompt": prompt} if prompt else {}), **pair, **_beside(columns, tools=("list", "text"))}
    worse = next((name for name in ("rejected_response", "rejected_messages") if name in columns), None)
    chat, answered = _first(columns, CHATS, "turns"), _first(columns, COMPLETIONS)
    if worse and chat:
        return {"chosen": chat, "rejected": worse, **_beside(columns, tools=("list", "text"))}
    asked = _first(columns, PROMPTS)
    if not (worse and asked and answered):
        return None
    return {"prompt": asked, "chosen": answered, "rejected": worse, **_beside(columns, tools=("list",))}


def _find_rated(columns: Columns) -> dict[str, str] | None:
    rating = next((name for name in RATINGS if name in columns and columns[name].kind == "boolean"), None)
    return {**(_find_pair(columns) or {}), **({"rating": rating} if rating else {})}


def _find_tokens(columns: Columns) -> dict[str, str] | None:
    if "input_ids" not in columns or columns["input_ids"].kind != "ids":
        return None
    return {"input_ids": "input_ids", **_beside(columns, labels=("ids",), attention_mask=("ids",))}


def _find_pair(columns: Columns) -> dict[str, str] | None:
    if NOT_READ.keys() & columns.keys():
        return None
    beside = _beside(columns, history=("list", "turns"), tools=("list",))
    if all(name in columns and columns[name].kind in ("turns", "turn") for name in ("prompt", "completion")):
        return {"prompt": "prompt", "completion": "completion", **_beside(columns, tools=("list", "text"))}
    asked = _first(columns, PROMPTS)
    answered = _first(columns, COMPLETIONS)
    if not asked or not answered:
        return None
    context = _first(columns, CONTEXTS) if asked == "instruction" else None
    if context is None:
        return {"prompt": asked, "completion": answered, **beside}
    mark = "" if columns[context].everywhere else "?"
    return {"prompt": f"{{instruction}}\n\n{{{context}{mark}}}", "completion": answered, **beside}


def _beside(columns: Columns, **kinds: tuple[str, ...]) -> dict[str, str]:
    """The optional fields that have a column of their own name and kind; a system text is one everywhere."""
    kinds = {"system": ("text",), **kinds}
    return {name: name for name, fits in kinds.items() if name in columns and columns[name].kind in fits}


def _find_classes(columns: Columns) -> dict[str, str] | None:
    text = _first(columns, TEXTS)
    if text is None or NOT_READ.keys() & columns.keys():
        return None
    classes = [c.name for c in columns.values() if c.has_classes and c.name != text]
    named = [
        n for n in LABELS if n in columns and columns[n].is_text and 2 * columns[n].n_distinct <= max(4, columns[n].n)
    ]
    label = named[0] if named else classes[0] if len(classes) == 1 and len(columns) == 2 else None
    return {"text": text, "label": label} if label and label != text else None


def _find_text(columns: Columns) -> dict[str, str] | None:
    text = _first(columns, TEXTS)
    others = COMPLETIONS + LABELS + PROMPTS[:4] + tuple(NOT_READ)
    return {"text": text} if text and not any(name in columns for name in others) else None


def _first(columns: Columns, names: Sequence[str], kind: str = "text") -> str | None:
    """The first of the names that is a column of that kind."""
    return next((name for name in names if name in columns and columns[name].kind == kind), None)


FINDERS: dict[str, Callable[[Columns], dict[str, str] | None]] = {
    "messages": _find_messages,
    "preference": _find_preference,
    "rated": _find_rated,
    "prompt_completion": _find_pair,
    "classification": _find_classes,
    "text": _find_text,
    "tokens": _find_tokens,
}
KINDS: dict[str, tuple[str, ...]] = {
    "messages": ("list", "turns"),
    "input_ids": ("ids",),
    "labels": ("ids",),
    "attention_mask": ("ids",),
    "tools": ("list", "text", "turns"),
    "history": ("list", "turns"),
    "rating": ("boolean", "number"),
    **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), ("text", "turns", "turn")),
}
"""What a field's column may hold; all others hold texts."""


def _check_fields(name: str, fields: dict[str, str], columns: Columns) -> None:
    allowed = (*REQUIRED[name], *OPTIONAL[name])
    for field, value in fields.items():
        if field not in allowed:
            raise DataError.of(
                "LU-D102",
                f"data.fields.{printable(field)}",
                f"format {name} has no such field",
                did_you_mean(field, allowed),
            )
        for column in columns_of(value):
            if column not in columns:
                raise DataError.of(
                    "LU-D102",
                    f"data.fields.{field}",
                    f"no column is called '{printable(column)}'",
                    did_you_mean(column, map(printable, columns)),
                )
        one, expected = columns.get(value), KINDS.get(field, ("text",))
        if not is_template(value) and field != "split" and one and one.kind not in (*expected, "null"):
            shown = printable(value)
            advice = f"a template renders it: {field}: '{{{shown}}}'" if "text" in expected else ""
            found = f"column '{shown}' holds a {one.kind}, not a {' or '.join(expected)}"
            raise DataError.of("LU-D102", f"data.fields.{field}", found, advice)


def _undecided(columns: Columns, given: dict[str, str]) -> DataError:
    unread = [f"{what} (column {name})" for name, what in NOT_READ.items() if name in columns and not given]
    listed = ", ".join(f"{printable(c.name, 40)} ({c.kind})" for c in columns.values())
    found = (
        f"{unread[0]} are not read by this version"
        if unread
        else f"the format cannot be told from the columns {listed}"
    )
    return DataError(
        Problem("LU-D101", "data.fields", found, "" if unread else f"write, for example, {_example(columns)}")
    )


def _example(columns: Columns) -> str:
    """What to write into the recipe, with this data's own columns."""
    known = {*PROMPTS, *CONTEXTS, *TEXTS}
    texts = [
        c.name for c in columns.values() if c.is_text and c.name != "id" and (c.name in known or 2 * c.n_distinct > c.n)
    ]
    names = ("prompt", "completion")
    answered = next((c for c in columns if c.split("_")[-1] in COMPLETIONS), None)
    if "label" in columns:
        names, answered = ("text", "label"), "label"
    answered = answered or (texts[-1] if texts else "answer")
    asked = [name for name in texts if name != answered] or ["question"]
    prompt = asked[0] if len(asked) == 1 else "\\n\\n".join(f"{{{name}}}" for name in asked)
    plain = answered not in columns or columns[answered].is_text
    completion = answered if plain else f"{{{answered}}}"
    return f'data.fields: {{{names[0]}: "{printable(prompt)}", {names[1]}: "{printable(completion)}"}}'
