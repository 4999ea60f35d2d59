"""Instructions that a program can verify: does an answer keep to "at most five words" or "only JSON"?

Promises that a check which cannot be read is an error, never one that holds. Knows form alone: an answer may follow
every instruction and be nonsense. The idea is IFEval's (Zhou et al. 2023); checks and questions are our own. How each
check reads an answer stands beside its name below, because a score means nothing without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from luthier.errors import EvaluationError, Problem, did_you_mean, printable
from luthier.evaluate.metrics.form import read_json
from luthier.evaluate.metrics.text import read_label

_BULLET = re.compile(r"\s*[-*•]\s+\S")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)")
_NUMBERS = re.compile(r"[\s\d.,;+-]*\d[\s\d.,;+-]*")
_CLOSING = " \n\t.,;:!?\"'”’)*_`"


def follows(answer: str, check: Mapping[str, Any]) -> bool:
    """Whether `answer` passes every one of the checks, such as `{"sentences": 2, "contains": ["river"]}`.

    An empty answer passes none. White space around the answer does not count. Raises EvaluationError LU-E020 for a
    check of no known name, for a value of the wrong kind, and where there is nothing to check.
    """
    if problems := _problems(check):
        raise EvaluationError(*problems)
    answer = answer.strip()
    return bool(answer) and all(_CHECKS[name][1](answer, value) for name, value in check.items())


def _problems(check: Mapping[str, Any]) -> list[Problem]:
    if not check:
        return [Problem("LU-E020", "check", "is empty", did_you_mean("", _CHECKS))]
    found = []
    for name, value in check.items():
        where = f"check.{printable(name)}"
        if name not in _CHECKS:
            found.append(Problem("LU-E020", where, "no such check", did_you_mean(name, _CHECKS)))
        elif not _CHECKS[name][0].holds(value):
            advice = f"give {_CHECKS[name][0].words}"
            found.append(Problem("LU-E020", where, f"found {printable(repr(value))}", advice))
    return found


class _Kind(NamedTuple):
    """What a check's value may be."""

    words: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_COUNT = _Kind("a whole number from 0", lambda value: type(value) is int and value >= 0)
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = _Kind("a text that is not empty", _is_text)
_TEXTS = _Kind("a list of texts, none empty", lambda v: isinstance(v, list) and bool(v) and all(map(_is_text, v)))


def _n_words(answer: str) -> int:
    """Runs without white space that hold a letter or digit: "don't" is one word, a bullet's hyphen none."""
    return sum(any(map(str.isalnum, run)) for run in answer.split())


def _n_sentences(answer: str) -> int:
    """Pieces that end in . ! or ? before white space or the end; an unfinished last one counts, "e.g. so" is two."""
    return sum(any(map(str.isalnum, piece)) for piece in _SENTENCE_END.split(answer))


def _n_lines(answer: str) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in answer.splitlines())


def _n_bullets(answer: str) -> int:
    """Lines that begin with -, * or • and a space."""
    return sum(_BULLET.match(line) is not None for line in answer.splitlines())


def _ends_with(answer: str, end: str) -> bool:
    """Blind to case, and to punctuation after a wanted word; a wanted punctuation mark must be there."""
    answer, end = answer.casefold(), end.casefold()
    return answer.endswith(end) or answer.rstrip(_CLOSING).endswith(end)


def _parsed(answer: str) -> Any:
    """The answer as JSON (RFC 8259) with nothing around it, no Markdown fence either; None where it is not."""
    try:
        return read_json(answer)
    except (ValueError, RecursionError):
        return None


def _has_keys(answer: str, keys: list[str]) -> bool:
    """An object with at least these keys, in their case."""
    found = _parsed(answer)
    return isinstance(found, dict) and set(keys) <= set(found)


_CHECKS: dict[str, tuple[_Kind, Callable[[str, Any], bool]]] = {
    "words_at_most": (_COUNT, lambda answer, n: _n_words(answer) <= n),
    "words_at_least": (_COUNT, lambda answer, n: _n_words(answer) >= n),
    "sentences": (_COUNT, lambda answer, n: _n_sentences(answer) == n),
    "lines": (_COUNT, lambda answer, n: _n_lines(answer) == n),
    "bullets": (_COUNT, lambda answer, n: _n_bullets(answer) == n),
    # Case: some letter has it, and none has the other.
    "lowercase": (_FLAG, lambda answer, wanted: answer.islower() is wanted),
    "uppercase": (_FLAG, lambda answer, wanted: answer.isupper() is wanted),
    # Blind to case, and parts of words count: "cat" is in "category".
    "contains": (_TEXTS, lambda answer, texts: all(t.casefold() in answer.casefold() for t in texts)),
    "excludes": (_TEXTS, lambda answer, texts: not any(t.casefold() in answer.casefold() for t in texts)),
    "starts_with": (_TEXT, lambda answer, text: answer.casefold().startswith(text.casefold())),
    "ends_with": (_TEXT, _ends_with),
    # The whole answer is one of these, up to case, spaces and punctuation around it.
    "one_of": (_TEXTS, lambda answer, texts: read_label(answer, tuple(texts)) is not None),
    "numbers_only": (_FLAG, lambda answer, wanted: (_NUMBERS.fullmatch(answer) is not None) is wanted),
    # An object or a list: a bare number or word is JSON too, but nobody who asks for JSON means that.
    "json": (_FLAG, lambda answer, wanted: isinstance(_parsed(answer), dict | list) is wanted),
    "json_keys": (_TEXTS, _has_keys),
}
