"""Cleaners: plain functions `clean(text, **parameters) -> str`, named in a recipe under `data.clean`.

One's own is `{use: "my_module:function"}`; its first parameter is called `text`. A parameter `seed` is filled with the
recipe's. What a cleaner needs besides stands in its traits:

    @traits(roles=("assistant",))
    def shorter(text: str, words: int = 100) -> str: ...

None of them knows rows, files or other cleaners; `clean.py` runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from luthier.conversation import ROLES


@dataclass(frozen=True, slots=True)
class Traits:
    """What a cleaner is besides a function of one text."""

    roles: tuple[str, ...] = ROLES
    """Whose messages it cleans where the recipe does not say."""
    survey: Callable[..., Mapping[str, Any]] | None = None
    """`survey(texts, **parameters) -> parameters`: looks at all texts of those roles before the first is cleaned."""
    count: Callable[[str, str], Counter[str]] | None = None
    """`count(before, after)`: what is counted beside rows and texts."""
    hides: bool = False
    """It takes out what nobody may read: columns that are kept as tags, rejects and messages go through it too."""


Function = TypeVar("Function", bound=Callable[..., str])


def traits(
    roles: tuple[str, ...] = ROLES,
    survey: Callable[..., Mapping[str, Any]] | None = None,
    count: Callable[[str, str], Counter[str]] | None = None,
    hides: bool = False,
) -> Callable[[Function], Function]:
    """Marks a cleaner with its `Traits`."""

    def marked(function: Function) -> Function:
        function.traits = Traits(roles, survey, count, hides)  # type: ignore[attr-defined]
        return function

    return marked


def traits_of(function: Callable[..., str]) -> Traits:
    found = getattr(function, "traits", None)
    return found if isinstance(found, Traits) else Traits()
