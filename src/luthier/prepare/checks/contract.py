"""What a check is: it looks at the good rows, and says which of them a person should look at, and what all are like.

A recipe's `{use: NAME, ...}` names either a function of one row, whose first parameter is called `conversation`,

    def shouts(conversation: Conversation, least: int = 3) -> str | None: ...

which says why the row is suspect, if it is; or a function of all rows, whose first parameter is called `looked`:

    def outliers(looked: Looked, most: float = 0.02) -> Found: ...

Checks change nothing, and drop no row: what is wrong in the eyes of a check may be what a person wants.
This module knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Conversation, Side
from luthier.prepare.table import Numbers, Rows
from luthier.records import FactTable

if TYPE_CHECKING:
    from luthier.prepare.clean import Cleaning

OWN = "LU-D169"
C = TypeVar("C", bound=Callable[..., "Found"])


@dataclass(frozen=True)
class Looked:
    """The good rows, as a check sees them."""

    rows: Rows
    numbers: Numbers
    """(n,) The rows, ascending; all that is said of row i is said of `numbers[i]`."""
    labelled: bool
    """Whether answers are labels."""
    seed: int
    folder: Path
    """The recipe's."""
    cleaning: Cleaning | None = None
    """What was done to the rows, for texts that they are compared with."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Conversation]:
        return self.rows.each(self.numbers)

    @property
    def sides(self) -> NDArray[np.int8]:
        """(n,) Into SIDES."""
        found: NDArray[np.int8] = self.rows.side[self.numbers]
        return found

    def on(self, side: Side) -> NDArray[np.int64]:
        """The places, from 0 to n - 1, of one side's rows."""
        return np.flatnonzero(self.sides == SIDES.index(side))


class Suspect(NamedTuple):
    """A row that a person should look at."""

    place: int
    """From 0 to n - 1, in the order of `Looked`."""
    score: float
    """From 0 to 1: how sure it is that the row is what the check looks for."""
    why: str
    """Of the row; texts that it quotes are hidden where they hold personal data."""
    code: str = ""
    """Its own, where it is a finding of another kind than `Found.code` says."""


@dataclass(frozen=True, slots=True)
class Found:
    suspects: Sequence[Suspect] = ()
    code: str = OWN
    advice: str = ""
    """What to do about each suspect."""
    tables: Sequence[FactTable] = ()
    notes: Sequence[str] = ()


def needs(name: str, package: str) -> Callable[[C], C]:
    """Marks a check that can do nothing without the package of an extra, which is said before a row is read."""

    def mark(check: C) -> C:
        check.needs = (name, package)  # type: ignore[attr-defined]
        return check

    return mark
