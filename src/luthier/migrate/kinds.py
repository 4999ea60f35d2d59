"""What a peer takes a value for: texts are numbers and switches where its parser reads them so (`1e-4`, `no`, `"8"`).

Each kind returns the value as the peer uses it, or raises ValueError that says what is expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Kind = Callable[[Any], Any]

YES = frozenset({"yes", "true", "t", "y", "1", "on"})
NO = frozenset({"no", "false", "f", "n", "0", "off"})


def anything(value: Any) -> Any:
    return value


def text(value: Any) -> str:
    """A YAML number is a fine name."""
    if isinstance(value, bool | list | dict) or value is None:
        raise ValueError("a text is expected")
    return str(value)


def number(value: Any) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError("a number is expected")
    return found


def whole(value: Any) -> int:
    try:
        found = number(value)
    except ValueError:
        found = math.nan
    if not found.is_integer():
        raise ValueError("a whole number is expected")
    return int(found)


def flag(value: Any) -> bool:
    word = str(value).lower()
    if isinstance(value, list | dict) or word not in YES | NO:
        raise ValueError("true or false is expected")
    return word in YES


def names(value: Any) -> list[str]:
    """A list of texts, or one text in which commas part them."""
    if isinstance(value, list):
        return [text(one) for one in value]
    return [one.strip() for one in text(value).split(",") if one.strip()]


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a mapping is expected")
    return value


def mappings(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of mappings is expected")
    return [mapping(one) for one in value]


def either(*kinds: Kind) -> Kind:
    """The first of the kinds that takes the value."""

    def kind(value: Any) -> Any:
        said = []
        for one in kinds:
            try:
                return one(value)
            except ValueError as error:
                said.append(str(error).removesuffix(" is expected"))
        raise ValueError(f"{' or '.join(said)} is expected")

    return kind


def or_none(kind: Kind) -> Kind:
    """For keys of which a peer takes null for a value of its own."""
    return lambda value: None if value is None else kind(value)
