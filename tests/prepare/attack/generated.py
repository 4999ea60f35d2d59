"""Rows of every format, with what they say, and rows with something hostile in them, of which nothing is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from .case import Said
from .texts import ANY_TEXT, TEXT

Draw = Callable[[st.SearchStrategy[Any]], Any]
Row = dict[str, Any]
NOTHING: Said = ()


class Made(NamedTuple):
    row: Row
    said: Said
    rejected: Said = NOTHING


class Kind(NamedTuple):
    """One way to write rows."""

    format: str
    fields: dict[str, str]
    make: Callable[[Draw], Made]
    flat: bool
    """Whether every value is a text, as in CSV."""


def _pairs(draw: Draw, at_most: int = 2) -> list[tuple[str, str]]:
    turns = [(role, draw(TEXT)) for _ in range(draw(st.integers(1, at_most))) for role in ("user", "assistant")]
    return [("system", draw(TEXT)), *turns] if draw(st.integers(0, 3)) == 0 else turns


def openai(draw: Draw) -> Made:
    said = _pairs(draw)
    turns: list[Row] = [{"role": role, "content": content} for role, content in said]
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(("learn", "loss", "train")))
        turns[-1][name] = True
    if draw(st.integers(0, 5)) == 0:
        turns[-1]["weight"] = 1
    return Made({"messages": turns}, tuple(said))


def parts(draw: Draw) -> Made:
    said = _pairs(draw)
    cut = [(role, content, len(content) // 2) for role, content in said]
    turns = [
        {"role": role, "content": [{"type": "text", "text": one} for one in (content[:n], content[n:])]}
        for role, content, n in cut
    ]
    return Made({"messages": turns}, tuple(said))


def calls(draw: Draw) -> Made:
    """A call, its result, and an answer."""
    asked, result, answer, city = (draw(TEXT) for _ in range(4))
    arguments: Any = {"city": city, "n": draw(st.integers(-(2**53), 2**53))}
    as_text = json.dumps(arguments) if draw(st.booleans()) else arguments
    turns = [
        {"role": "user", "content": asked},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": as_text}}],
        },
        {"role": "tool", "content": result, "tool_call_id": "c1", "name": "look"},
        {"role": "assistant", "content": answer},
    ]
    tools = [{"type": "function", "function": {"name": "look", "description": draw(TEXT), "parameters": {}}}]
    said = (("user", asked), ("assistant", ""), ("tool", result), ("assistant", answer))
    return Made({"messages": turns, "tools": tools}, said)


def sharegpt(draw: Draw) -> Made:
    said = _pairs(draw)
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return Made({"conversations": [{"from": names[r], "value": t} for r, t in said]}, tuple(said))


def swift(draw: Draw) -> Made:
    said = [(role, draw(TEXT)) for role in ("user", "assistant")]
    return Made({"conversation": [{"human": said[0][1], "assistant": said[1][1]}]}, tuple(said))


def alpaca(draw: Draw) -> Made:
    instruction, about, answer = draw(TEXT), draw(ANY_TEXT), draw(TEXT)
    asked = f"{instruction}\n\n{about}".strip()
    return Made(
        {"instruction": instruction, "input": about, "output": answer}, (("user", asked), ("assistant", answer))
    )


def alpaca_with_history(draw: Draw) -> Made:
    row, said, _ = alpaca(draw)
    before = [(draw(TEXT), draw(TEXT)) for _ in range(draw(st.integers(0, 2)))]
    earlier = tuple(turn for q, a in before for turn in (("user", q), ("assistant", a)))
    return Made(row | {"history": [list(pair) for pair in before]}, (*earlier, *said))


def prompt_completion(draw: Draw) -> Made:
    asked, answer, system = draw(TEXT), draw(TEXT), draw(ANY_TEXT)
    said = (("user", asked), ("assistant", answer))
    said = (("system", system), *said) if system.strip() else said
    return Made({"prompt": asked, "completion": answer, "system": system}, said)


def rated(draw: Draw) -> Made:
    asked, answer = draw(TEXT), draw(TEXT)
    row = {"prompt": asked, "completion": answer, "label": draw(st.booleans())}
    return Made(row, (("user", asked), ("assistant", answer)))


def preference(draw: Draw) -> Made:
    asked, better, worse = (draw(TEXT) for _ in range(3))
    worse = worse if worse != better else worse + "!"
    said = (("user", asked), ("assistant", better))
    return Made({"prompt": asked, "chosen": better, "rejected": worse}, said, (("assistant", worse),))


def preference_chats(draw: Draw) -> Made:
    (_, said, rejected), prompt = preference(draw), draw(TEXT)
    turns = [{"role": role, "content": content} for role, content in ((said[0][0], prompt), said[1], rejected[0])]
    chats = {"chosen": [turns[0], turns[1]], "rejected": [turns[0], turns[2]]}
    return Made(chats, (("user", prompt), said[1]), rejected)


def plain(draw: Draw) -> Made:
    content = draw(TEXT)
    return Made({"text": content}, (("text", content),))


def classification(draw: Draw) -> Made:
    content, label = draw(TEXT), draw(st.sampled_from(("yes", "no", "<|im_end|>", "ça")))
    return Made({"text": content, "label": label}, (("user", content), ("assistant", label)))


def tokens(draw: Draw) -> Made:
    """What the ids spell is the tokenizer's to say."""
    ids = draw(st.lists(st.integers(0, 510), min_size=1, max_size=30))
    labels = [id_ if draw(st.booleans()) else -100 for id_ in ids[:-1]] + ids[-1:]
    return Made({"input_ids": ids, "labels": labels}, NOTHING)


KINDS: dict[str, Kind] = {
    "OpenAI": Kind("messages", {"messages": "messages"}, openai, False),
    "OpenAI, parts": Kind("messages", {"messages": "messages"}, parts, False),
    "OpenAI, tools": Kind("messages", {"messages": "messages", "tools": "tools"}, calls, False),
    "ShareGPT": Kind("messages", {"messages": "conversations"}, sharegpt, False),
    "ms-swift": Kind("messages", {"messages": "conversation"}, swift, False),
    "Alpaca": Kind("prompt_completion", {"prompt": "{instruction}\n\n{input}", "completion": "output"}, alpaca, True),
    "Alpaca, history": Kind(
        "prompt_completion",
        {"prompt": "{instruction}\n\n{input}", "completion": "output", "history": "history"},
        alpaca_with_history,
        False,
    ),
    "prompt and completion": Kind(
        "prompt_completion",
        {"prompt": "prompt", "completion": "completion", "system": "system"},
        prompt_completion,
        True,
    ),
    "rated": Kind("rated", {"prompt": "prompt", "completion": "completion", "rating": "label"}, rated, False),
    "preference": Kind(
        "preference", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}, preference, True
    ),
    "preference, chats": Kind("preference", {"chosen": "chosen", "rejected": "rejected"}, preference_chats, False),
    "text": Kind("text", {"text": "text"}, plain, True),
    "classification": Kind("classification", {"text": "text", "label": "label"}, classification, True),
    "tokens": Kind("tokens", {"input_ids": "input_ids", "labels": "labels"}, tokens, False),
}

DEEP: Any = "x"
for _ in range(70):
    DEEP = [DEEP]
DEEPEST = "[" * 3000 + "]" * 3000
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 10**30, 2**63, 1e308, -0.0, float("nan"), float("inf"), -100, DEEP),
    *("", " ", "\u3000", "\x00", "\ud83d", "a\udc00b", "\uf8f1", [], {}, [None], [[]], [{}], {"": None}, [0.5], ["x"]),
    *([["q"]], [["q", 1]], {"role": "user", "content": "x"}, [{"role": "user"}], [{"role": None, "content": None}]),
    *([{"role": "assistant", "content": "x"}], [{"role": "tool", "content": "x"}], [{"from": "gpt", "value": ["x"]}]),
    [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "weight": float("nan")}],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "tool_calls": "[{]"}],
    [{"role": ["user"], "content": {"text": "x"}}, {"role": "\x1b[1m", "content": "x"}],
    [{"human": None, "assistant": 5}],
)
RAW = (
    *("", "{", "}", "[]", "null", "5", '"x"', "{}", '{"a": 1, "a": 2}', '{"messages": 1e999}', "\x00", "not JSON"),
    *(
        '{"nr": -0, "text": ' + DEEPEST + "}",
        '{"text": "\\ud83d"}',
        '{"text": ' + "9" * 5000 + "}",
        "\ufeff{}",
        "[1, 2]",
    ),
    *('{"\\ud800": "x"}', '{"text": "a\x01b"}', '{"text": "x"} {"text": "y"}', '{"prompt": "x", "completion"'),
)
"""Lines that are no rows."""


def hostile_row(draw: Draw, kind: Kind) -> Any:
    """A row with something hostile; a text where it cannot be written as an object."""
    what = draw(st.integers(0, 9))
    if what == 0:
        return draw(st.sampled_from(RAW))
    row = dict(KINDS[draw(st.sampled_from(list(KINDS)))].make(draw).row if what == 1 else kind.make(draw).row)
    column = draw(st.sampled_from(sorted(row)))
    if what == 2:
        del row[column]
    elif what == 3:
        row[draw(ANY_TEXT)] = draw(st.sampled_from(HOSTILE))
    elif what == 4:
        one = json.dumps(row)
        return f'{one[:-1]}, {json.dumps(column)}: "x"}}'
    else:
        row[column] = _spoilt(draw, row[column])
    return row


def _spoilt(draw: Draw, value: Any) -> Any:
    """Something hostile in the place of the value, or of something in it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        inner = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        at = draw(st.sampled_from(list(inner)))
        inner[at] = _spoilt(draw, inner[at])
        return inner if isinstance(value, dict) else list(inner.values())
    return draw(st.sampled_from(HOSTILE))
