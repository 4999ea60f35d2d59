"""Calls of tools: whether the answer makes the calls that the reference makes, compared as data and not as text.

A call is a JSON object with a name and arguments, in the shapes that are in use: `{"name", "arguments"}`, with
`parameters` or `input` for `arguments`; OpenAI's `{"function": {...}}`, whose arguments are a JSON text; one object,
a list, or `{"tool_calls": [...]}`; bare, or each between `<tool_call>` and `</tool_call>`, with any prose around it.
Knows nothing of the tools themselves: an argument that the tool would refuse is wrong only if it differs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Literal, NamedTuple

from luthier.evaluate.metrics.form import read_json
from luthier.metric import MeanMetric, Metric, Sample

Part = Literal["name", "arguments", "all"]
_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ARGUMENTS = ("arguments", "parameters", "input")


class Call(NamedTuple):
    name: str
    arguments: str
    """Canonical JSON: keys sorted, 1.0 as 1."""


def read_calls(text: str) -> list[Call] | None:
    """The calls in a text, in its order; None where it makes none that a program could read."""
    try:
        values = [read_json(one) for one in _TAGGED.findall(text) or [text]]
        return [call for value in values for call in _calls(value)] or None
    except (ValueError, RecursionError):
        return None


def _calls(value: Any) -> list[Call]:
    """Raises ValueError where the value is no call, and no list of calls."""
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    if isinstance(value, list):
        return [call for one in value for call in _calls(one)]
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments: Any = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")
    return [Call(value["name"], json.dumps(_canonical(arguments), sort_keys=True))]


def _canonical(value: Any) -> Any:
    """JSON knows one kind of number: 1.0 is 1. True is not 1."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tool_call(part: Part = "all") -> Metric:
    """Share of answers that make exactly the calls of the reference: names, arguments (values equal as JSON) or both.

    The order of parallel calls is free; one call too many or too few is wrong. Texts must be equal to the letter, so
    "NYC" for "New York" is wrong, and a default that is written out differs from one that is left out. Applies where
    the reference makes a call: it does not see calls that nobody asked for, nor what the tool would have answered.
    """
    if part not in ("name", "arguments", "all"):
        raise ValueError(f"part: {part!r}; allowed: name, arguments, all")

    def asked(text: str) -> Counter[object] | None:
        calls = read_calls(text)
        return None if calls is None else Counter(call if part == "all" else getattr(call, part) for call in calls)

    def right(sample: Sample) -> bool | None:
        expected = asked(sample.reference) if sample.prompt else None
        return None if expected is None else asked(sample.answer) == expected

    return MeanMetric("tool_call", right)
