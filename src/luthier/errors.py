"""Errors for people. Every one carries a stable code, where it happened, what was found and what to do.

    LuthierError                 anything Luthier says on purpose
    |-- UserError      (exit 2)  the input, the recipe or the command must change
    |   |-- RecipeError          LU-R...  the recipe
    |   |-- DataError            LU-D...  data files and rows
    |   |-- ModelError           LU-M...  base models, adapters, tokenizers
    |   |-- EvaluationError      LU-E...  metrics, rules, comparisons
    |   `-- RunError             LU-U...  run folders and commands
    `-- Stopped        (exit 4)  LU-S...  a rule stopped the run: diverged, every checkpoint corrupt

Whatever else escapes is a defect of ours (exit 1). An error holds *all* problems found, not the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `LU-D012 data.jsonl:3:messages: found ...; advice`."""

    code: str
    where: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        text = f"{self.code} {self.where}: {self.found}" if self.where else f"{self.code} {self.found}"
        return f"{text}\n    -> {self.advice}" if self.advice else text


class LuthierError(Exception):
    """Base of the tree: one or more problems, and the exit code of a command that meets them."""

    exit_code = 1

    def __init__(self, *problems: Problem) -> None:
        assert problems, "an error names at least one problem"
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))

    def __reduce__(self) -> tuple[type[Self], tuple[Problem, ...]]:
        return type(self), self.problems  # by itself, one that comes from another process would hold its text instead

    @classmethod
    def of(cls, code: str, where: str, found: str, advice: str = "") -> Self:
        return cls(Problem(code, where, found, advice))


class UserError(LuthierError):
    exit_code = 2


class RecipeError(UserError):
    pass


class DataError(UserError):
    pass


class ModelError(UserError):
    pass


class EvaluationError(UserError):
    pass


class RunError(UserError):
    pass


class Stopped(LuthierError):
    exit_code = 4


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """'; did you mean 'x'?' for a likely typo, else the list of what is allowed."""
    allowed = sorted(allowed)
    close = get_close_matches(word, allowed, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"allowed: {', '.join(allowed)}" if allowed else ""


def extra(name: str) -> str:
    """How to install what an extra of this package brings, as README tells it."""
    return f"in Luthier's checkout: pip install -c constraints.txt '.[{name}]'"


def printable(text: str, limit: int = 120, keep: str = "") -> str:
    """Text as it may be shown: control, bidirectional and escape characters made visible but for those of `keep`, cut
    at `limit`."""
    shown = "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text[: limit + 1]
    )
    return shown if len(text) <= limit else shown[:limit] + "..."


def first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), type(error).__name__), 300)
