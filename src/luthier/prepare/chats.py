"""Chats: a list of turns, as OpenAI, ShareGPT or ms-swift write one, becomes messages, or a `Fault` says why not.

A turn is `{role, content}`, `{from, value}`, or a pair such as `{human, assistant}`. Other names of the four roles are
read as what they mean (`ROLE_NAMES`); nothing is converted, and what is left out is warned of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from luthier.conversation import ROLES, Message, Role, ToolCall
from luthier.errors import did_you_mean, printable
from luthier.prepare.rows import Fault, Warn
from luthier.strict_json import NotStrict, parse_json

ROLE_NAMES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function", "ipython"), "tool"),
}
"""How data sets call the four roles; what a `function_call` says is a call, as JSON."""
NAMES = (("role", "content"), ("from", "value"))
PAIRS = tuple((asked, answered) for asked in ("human", "user") for answered in ("assistant", "gpt", "bot"))
LEARN = ("learn", "weight", "loss", "train", "training")
"""Whether a turn is learned: Luthier's, OpenAI's, ms-swift's and Axolotl's names for it."""
KNOWN = {"tool_calls", "function_call", "tool_call_id", "name", *LEARN}


def is_turn(value: Any) -> bool:
    """Whether an object has the names of a turn."""
    return isinstance(value, dict) and any(all(n in value for n in names) for names in (*NAMES, *PAIRS))


def names_in(turn: Mapping[str, Any]) -> tuple[str, str]:
    """How a turn names its role and its text. In a table every turn has all names that any has, most of them null."""
    return NAMES[1] if "from" in turn and turn.get("role") is None else NAMES[0]


def chat(value: Any, field: str, where: str, warn: Warn) -> list[Message]:
    """The messages of a chat that ends with the assistant's. Raises Fault LU-D025 to LU-D042."""
    if not isinstance(value, list):
        raise Fault("LU-D027", field, f"{kind(value)} where a list of messages is expected")
    turns = list(_turns(value, field, where, warn))
    messages = [message for _, message in turns]
    if all(m.role != "assistant" for m in messages):
        raise Fault("LU-D029", field, "no assistant turn: nothing to learn", "add the answer")
    for (_, before), (place, after) in pairwise(turns):
        if after.role == "system":
            raise Fault("LU-D034", place, "a system turn that is not the first", "move it to the start")
        if before.role == after.role and after.role != "tool":
            raise Fault("LU-D032", place, f"two {after.role} turns in a row", "join them into one")
    _check_results(turns)
    if messages[-1].role != "assistant":
        found = f"the last turn is of the {messages[-1].role}, not the assistant"
        raise Fault("LU-D031", turns[-1][0], found, "add the answer, or remove the turn")
    return messages


def _check_results(turns: list[tuple[str, Message]]) -> None:
    """What a tool gives follows a call. Raises Fault LU-D036."""
    called: set[str | None] = set()
    for n, (place, message) in enumerate(turns):
        called |= {call.id for call in message.tool_calls}
        if message.role != "tool":
            continue
        unknown = message.tool_call_id is not None and message.tool_call_id not in called
        if unknown or n == 0 or turns[n - 1][1].role not in ("assistant", "tool"):
            found = f"no call has the id {printable(repr(message.tool_call_id))}" if unknown else "no call before it"
            raise Fault(
                "LU-D036", place, f"a tool's result, and {found}", "add the assistant's call, or remove the turn"
            )


def _turns(value: list[Any], field: str, where: str, warn: Warn) -> Iterator[tuple[str, Message]]:
    """Place and message of each."""
    for i, one in enumerate(value):
        place = f"{field}[{i}]"
        if not isinstance(one, dict):
            example = '{"role": ..., "content": ...}'
            raise Fault("LU-D027", place, f"{kind(one)} where a message is expected", example)
        unnamed = one.get("role") is None and one.get("from") is None
        if unnamed and (pair := next((names for names in PAIRS if all(name in one for name in names)), None)):
            for name in pair:
                turn = {"role": name, "content": one[name]}
                yield place, _message(turn, ("role", "content"), f"{place}.{name}", where, warn, name)
            _left_out(one, set(pair), place, where, warn)
            continue
        names = names_in(one)
        yield place, _message(one, names, place, where, warn)
        _left_out(one, {*names, *KNOWN}, place, where, warn)


def _left_out(turn: Mapping[str, Any], read: set[str], place: str, where: str, warn: Warn) -> None:
    for name in sorted(turn.keys() - read):
        if turn[name] is not None:
            warn("LU-D028", f"{where}:{place}.{name}", "a field that messages do not have", "it is left out")


def _message(
    value: dict[str, Any], names: tuple[str, str], place: str, where: str, warn: Warn, at: str | None = None
) -> Message:
    by, said = names
    places = {name: place if at else f"{place}.{name}" for name in (by, said)}
    calls = [one for one in (value.get("tool_calls"), value.get("function_call")) if one]
    for name in names:
        if name not in value and not (calls and name == said):
            raise Fault("LU-D025", places[name], "is missing", did_you_mean(name, value))
    given, content = value[by], value.get(said)
    role = ROLE_NAMES.get(given) if isinstance(given, str) else None
    if role is None:
        found = f"unknown role {printable(repr(given))}"
        raise Fault("LU-D033", places[by], found, did_you_mean(str(given), ROLES[:4]))
    tool_calls = tuple(call for one in calls for call in _calls(one, place))
    if given == "function_call":
        tool_calls, content = (*tool_calls, *_calls(content, places[said])), None
    if tool_calls and role != "assistant":
        raise Fault("LU-D035", place, f"a tool call of the {role}", "only the assistant calls tools")
    return Message(
        role=role,
        content=_content(content, role, places[said], may_be_blank=bool(tool_calls)),
        learn=_learn(value, place),
        tool_calls=tool_calls,
        **{name: _named(value, name, place, where, warn) for name in ("name", "tool_call_id")},
    )


def _named(value: dict[str, Any], name: str, place: str, where: str, warn: Warn) -> str | None:
    """Names are kept of tools; who else has one loses it, and that is said."""
    found = value.get(name)
    if found is None:
        return None
    if not isinstance(found, str):
        raise Fault("LU-D027", f"{place}.{name}", f"{kind(found)} where a text is expected")
    if ROLE_NAMES.get(str(value.get(names_in(value)[0]))) == "tool":
        return found
    warn("LU-D028", f"{where}:{place}.{name}", "a field that only a tool's messages have", "it is left out")
    return None


def _content(content: Any, role: Role, place: str, may_be_blank: bool) -> str:
    if isinstance(content, list):
        content = "".join(_part(one, f"{place}[{n}]") for n, one in enumerate(content))
    if content is None and may_be_blank:
        return ""
    if content is None:
        raise Fault("LU-D026", place, "is null", "fill it in, or remove the row")
    if not isinstance(content, str):
        raise Fault("LU-D027", place, f"{kind(content)} where a text is expected")
    if not content.strip() and role in ("assistant", "user") and not may_be_blank:
        code = "LU-D030" if role == "assistant" else "LU-D026"
        raise Fault(code, place, "is blank", "fill it in, or remove the row")
    return content


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return cast(str, part["text"])
    found = f"a part of type {printable(repr(part.get('type')))}" if isinstance(part, dict) else kind(part)
    raise Fault("LU-D027", place, f"{found} where a part of text is expected", "pictures and sound are not read")


def _learn(value: dict[str, Any], place: str) -> bool | None:
    """True, false, 1 or 0 under any of the names; null is nothing. Raises Fault LU-D027, LU-D042."""
    found: dict[str, bool] = {}
    for name in LEARN:
        given = value.get(name)
        if given is None:
            continue
        if name == "learn" and not isinstance(given, bool):
            raise Fault("LU-D027", f"{place}.learn", f"{kind(given)} where true or false is expected")
        if given not in (0, 1) or (name == "weight" and isinstance(given, bool)):
            raise Fault("LU-D042", f"{place}.{name}", f"the weight {printable(repr(given))}", "a weight is 0 or 1")
        found[name] = bool(given)
    if "learn" in found:
        return found["learn"]
    if len(set(found.values())) > 1:
        raise Fault("LU-D042", place, f"{' and '.join(found)} say different things", "keep one of them")
    return next(iter(found.values()), None)


# -- tools -----------------------------------------------------------------------------------------------


def tools_of(value: Any, field: str) -> list[dict[str, Any]]:
    """The functions that may be called, each as OpenAI describes it; also as JSON in a text. Raises Fault LU-D035."""
    value = _parsed(value, field)
    tools = []
    for n, one in enumerate(value if isinstance(value, list) else [value]):
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Fault("LU-D035", f"{field}[{n}]", "a tool without a name", '{"name": ..., "parameters": {...}}')
        tools.append({"type": "function", "function": function})
    return tools


def _calls(value: Any, place: str) -> Iterator[ToolCall]:
    """Of OpenAI's list, its older single call, or JSON in a text."""
    value = _parsed(value, place)
    for one in value if isinstance(value, list) else [value]:
        function = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Fault("LU-D035", place, "a tool call without a name", '{"name": ..., "arguments": {...}}')
        arguments = _parsed(function.get("arguments") or {}, place)
        if not isinstance(arguments, dict):
            raise Fault("LU-D035", place, f"the arguments of a call are {kind(arguments)}", "write an object")
        given = one.get("id")
        yield ToolCall(name=function["name"], arguments=arguments, id=given if isinstance(given, str) else None)


def _parsed(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except NotStrict as error:
        found = f"'{printable(error.key)}': {error.found}" if error.key else error.found
        raise Fault("LU-D035", place, found, error.advice or "write the call as JSON") from None


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
