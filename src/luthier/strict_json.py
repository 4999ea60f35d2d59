"""JSON as RFC 8259 means it: no name twice in an object, no NaN or infinity, no half of a character, no endless depth.

Python's own reader takes the last of two equal names, knows NaN, and lets half of a surrogate pair through, which no
file can hold afterwards.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from luthier.errors import printable

MAX_DEPTH = 64
Why = Literal["syntax", "surrogate", "twice", "number", "depth"]


class NotStrict(ValueError):
    """Why a text is not taken, in words; `key` is the name in an object that it concerns, where there is one."""

    def __init__(self, why: Why, found: str, key: str = "", advice: str = "") -> None:
        super().__init__(found)
        self.why, self.found, self.key, self.advice = why, found, key, advice


def parse_json(text: str) -> Any:
    """Raises NotStrict."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise NotStrict("depth", f"nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise NotStrict("syntax", f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except NotStrict:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise NotStrict("syntax", f"not JSON: {printable(str(error))}") from None
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise NotStrict("depth", f"nested deeper than {MAX_DEPTH}")
    if "\\ud" in text or "\\uD" in text:
        _no_lone_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotStrict("twice", "the key stands twice in one object", twice, "keep one of the two")
    return value


def _no_constant(name: str) -> float:
    raise NotStrict("number", f"{name} is not JSON", advice="write null, or leave the field out")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [v for values in inner for v in values]
    return depth - 1


def _no_lone_surrogates(value: Any) -> None:
    for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
        try:
            json.dumps({name: inner}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            advice = "half of a character; the text was cut in the middle of an emoji"
            shown = name.encode(errors="replace").decode()
            raise NotStrict("surrogate", "a lone surrogate", shown, advice) from None
