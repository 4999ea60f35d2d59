"""Checks: what a person should look at in the good rows, by the recipe's `data.checks`. They drop nothing.

`look` runs each check on all sides once they are drawn. Its suspects are findings like any other, and each row's scores
are put together, so that the rows most worth a look come first.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.errors import DataError, LuthierError, extra, printable
from luthier.plugins import CHECKS
from luthier.prepare.audit import Audit
from luthier.prepare.checks.contract import Found, Looked, Suspect
from luthier.records import Checked, WorthALook
from luthier.settings import CheckUse

SHOWN_ROWS = 50


def check_extras(uses: Sequence[CheckUse], folder: Path) -> None:
    """Raises DataError LU-D175 for a check that can do nothing, because the package that it needs is not installed."""
    for use in uses:
        where = f"data.checks: {use.use}"
        name, package = getattr(CHECKS.find(use.use, where, folder), "needs", ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise DataError.of("LU-D175", where, f"needs the package {package}, which is not installed", extra(name))


def look(
    looked: Looked, uses: Sequence[CheckUse], audit: Audit, hide: Callable[[str], str]
) -> tuple[tuple[Checked, ...], tuple[WorthALook, ...]]:
    """What each check found, and the rows most worth a look.

    Args:
        hide: Keeps personal data out of what is shown.

    Raises DataError LU-D160 (a check raised), LU-D161 (it gave what no check gives).
    """
    records = []
    against = defaultdict[int, list[tuple[str, Suspect]]](list)
    for use in uses:
        found = _found(use, looked)
        for suspect in found.suspects:
            against[suspect.place].append((use.use, suspect))
        _tell(found, looked, audit)
        records.append(
            Checked(
                check=use.use,
                rows=len(looked),
                suspects=len(found.suspects),
                tables=tuple(found.tables),
                notes=tuple(hide(note) for note in found.notes),
            )
        )
    return tuple(records), _ranked(looked, against, hide)


def _found(use: CheckUse, looked: Looked) -> Found:
    where = f"data.checks: {use.use}"
    check = CHECKS.find(use.use, where, looked.folder)
    try:
        if next(iter(inspect.signature(check).parameters), None) == "conversation":
            return _by_row(partial(check, **use.params), looked, where)
        found = check(looked, **use.params)
    except LuthierError:
        raise
    except Exception as error:  # one's own check may raise anything
        said = f"raised {type(error).__name__}: {printable(str(error), 300)}"
        raise DataError.of("LU-D160", where, said) from error
    if not isinstance(found, Found):
        raise DataError.of("LU-D161", where, f"gave {_shown(found)}", "return Found: see docs/checks.md")
    return found


def _by_row(check: Callable[..., Any], looked: Looked, where: str) -> Found:
    suspects = []
    for place, conversation in enumerate(looked):
        why = check(conversation)
        if why is not None and not isinstance(why, str):
            advice = "return why the row is suspect, or None"
            raise DataError.of("LU-D161", where, f"gave {_shown(why)} for {conversation.source}", advice)
        if why:
            suspects.append(Suspect(place, 1.0, why))
    return Found(suspects)


def _shown(value: object) -> str:
    return f"{printable(repr(value), 60)} ({type(value).__name__})"


def _tell(found: Found, looked: Looked, audit: Audit) -> None:
    def tell(suspect: Suspect) -> tuple[str, str, str]:
        return looked.rows[int(looked.numbers[suspect.place])].source, suspect.why, found.advice

    by_code = defaultdict[str, list[Suspect]](list)
    for suspect in sorted(found.suspects, key=lambda s: (-s.score, s.place)):
        by_code[suspect.code or found.code].append(suspect)
    for code, suspects in by_code.items():
        audit.warn_each(code, suspects, tell)


def _ranked(
    looked: Looked, against: dict[int, list[tuple[str, Suspect]]], hide: Callable[[str], str]
) -> tuple[WorthALook, ...]:
    """Those most worth a look first: as if each check erred by itself, a row is in order only if all are wrong."""

    def score(place: int) -> float:
        fine = 1.0
        for _, suspect in against[place]:
            fine *= 1 - suspect.score
        return 1 - fine

    worst = sorted(against, key=lambda place: (-score(place), -len(against[place]), place))[:SHOWN_ROWS]
    found = []
    for place in worst:
        conversation = looked.rows[int(looked.numbers[place])]
        found.append(
            WorthALook(
                source=conversation.source,
                score=round(score(place), 4),
                why={name: printable(hide(suspect.why), 300) for name, suspect in against[place]},
                asked=printable(hide(conversation.prompt_text), 200),
                answer=printable(hide(conversation.answer), 200),
            )
        )
    return tuple(found)
