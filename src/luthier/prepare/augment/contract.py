"""What an augmentation is: `augment(conversation, rng) -> conversations`, and what it may do besides.

A recipe's `{use: NAME, ...}` names either such a function itself, whose first parameter is called `conversation`,

    def shout(conversation: Conversation, rng: Random, mark: str = "!") -> Iterator[Conversation]: ...

or a *factory* `(**params) -> augment`, called once; its parameters `folder` (the recipe's), `seed` and `labelled`
(whether answers are labels) are filled in. What a factory returns may

- be a context manager: entered before the data is read and left after the last row, it holds a translator's process;
- have `ahead(asked, train)`: told all rows that will be asked for, it works on many at once;
- have `told() -> Told`: what it has to say at the end, such as tokens that were paid for;
- have `may_change`, of "answers", "names" and "quotes": what the filters else hold it to keep.

`rng` is a function of recipe seed, method and conversation id alone, so a row's results depend on no other row. As many
candidates are taken as the recipe asks of the row, one after another; an `Unmade` among them says why there is none.
Name, family, source and tags of what is made are set by the caller. This module knows none of the methods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Protocol

from luthier.conversation import Conversation, with_messages
from luthier.errors import DataError


@dataclass(frozen=True, slots=True)
class Unmade:
    """In the place of a candidate: why there is none, in words that are counted."""

    reason: str


NOTHING = Unmade("nothing to change")


class Augment(Protocol):
    def __call__(self, conversation: Conversation, rng: Random) -> Iterable[Conversation | Unmade]: ...


class Asked(NamedTuple):
    conversation: Conversation
    rng: Random
    """In the state in which `augment` will be given it."""
    n: int
    """Candidates that will be taken."""


class Ahead(Protocol):
    def ahead(self, asked: Sequence[Asked], train: Sequence[Conversation]) -> None: ...


@dataclass(frozen=True, slots=True)
class Told:
    """What a method says of its work; equal runs say the same."""

    notes: Sequence[str] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Read and written by a language model, cached replies included: "prompt", "reply"."""


def changeable(conversation: Conversation, *, errors: bool = False) -> list[int]:
    """Positions of the messages that a method may write anew: what users say, and plain text.

    With `errors`, of those that are not learned: a model must not learn to write errors.
    """
    return [
        i
        for i, m in enumerate(conversation.messages)
        if m.role in ("user", "text") and m.content.strip() and not (errors and m.learned)
    ]


def replaced(conversation: Conversation, texts: Mapping[int, str]) -> Conversation | Unmade:
    """The conversation with the messages at these positions written anew; NOTHING where none is different."""
    messages = list(conversation.messages)
    for i, text in texts.items():
        messages[i] = messages[i].model_copy(update={"content": text})
    if tuple(messages) == conversation.messages:
        return NOTHING
    return with_messages(conversation, messages)


def check_choice(method: str, parameter: str, found: Collection[str], allowed: Collection[str]) -> None:
    """Raises DataError LU-D146 for a value that a parameter of a method does not take."""
    if wrong := [one for one in found if one not in allowed] or ([] if found else ["nothing"]):
        known = f"of {', '.join(sorted(allowed))}"
        raise DataError.of("LU-D146", f"data.augment: {method}.{parameter}", f"found {', '.join(wrong)}", known)


def check_fraction(method: str, parameter: str, found: float) -> None:
    """Raises DataError LU-D146 for what is not above 0 and at most 1."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= 1:
        where = f"data.augment: {method}.{parameter}"
        raise DataError.of("LU-D146", where, f"found {found!r}", "a number above 0, at most 1")
