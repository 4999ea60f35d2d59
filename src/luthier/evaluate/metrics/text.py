"""How texts are read before they are compared: normal forms, words, scripts, and the label that an answer names.

Knows nothing of models or metrics. Each reading is fixed and public, because a score means nothing without it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

_OUTER = ".,;:!?\"'`*_()[]{}<>|/\\ "
"""ASCII that may surround a label without being part of it: `**Refund**.`, but not `c++`."""
_UNSPACED = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff"))
"""Kana and Han: written without spaces, so that each character counts as a word."""
_EAST_ASIAN = {"HIRAGANA": "JAPANESE", "KATAKANA": "JAPANESE", "KATAKANA-HIRAGANA": "JAPANESE", "CJK": "HAN"}


class _Table(dict[int, str]):
    """A table for `str.translate` that decides each character when it first meets it."""

    def __init__(self, decide: Callable[[str], str]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, code: int) -> str:
        self[code] = self._decide(chr(code))
        return self[code]


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def _is_unspaced(char: str) -> bool:
    return any(first <= char <= last for first, last in _UNSPACED)


def _word_char(char: str) -> str:
    if _is_unspaced(char):
        return f" {char} "
    return char if char.isalnum() or unicodedata.category(char).startswith("M") else " "


_WITHOUT_PUNCTUATION = _Table(lambda char: "" if _is_punctuation(char) else char)
_PUNCTUATION_TO_SPACE = _Table(lambda char: " " if _is_punctuation(char) else char)
_SPACED = _Table(lambda char: f" {char} " if _is_unspaced(char) else char)
_WORDS = _Table(_word_char)


def squad(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces.

    Punctuation is Unicode's, as in MLQA's evaluation script; on ASCII text the two agree. A text that is nothing but
    articles or punctuation keeps them: the answer "A" to a multiple choice must not equal the empty answer.
    NOTE that "1.35" and "135" have the same normal form.
    """
    lower = text.lower()
    bare = lower.translate(_WITHOUT_PUNCTUATION)
    for reading in (re.sub(r"\b(a|an|the)\b", " ", bare), bare):
        if words := reading.split():
            return " ".join(words)
    return " ".join(lower.split())


def squad_tokens(text: str) -> list[str]:
    """The words of SQuAD's normal form; Chinese and Japanese text gives one token per character, as in MLQA."""
    return squad(text).translate(_SPACED).split()


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, in lower case; one word per Chinese or Japanese character.

    Equal to rouge-score's default on ASCII text, which would cut "café" to "caf" and drop Cyrillic altogether.
    """
    return text.lower().translate(_WORDS).split()


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _trimmed(text: str) -> str:
    return _folded(text).strip(_OUTER)


def _bare(text: str) -> str:
    return " ".join(_folded(text).translate(_PUNCTUATION_TO_SPACE).split())


_READINGS: tuple[Callable[[str], str], ...] = (str.strip, _folded, _trimmed, _bare)
"""From strict to loose."""


@lru_cache(maxsize=64)
def _label_tables(labels: tuple[str, ...]) -> tuple[dict[str, str], ...]:
    """For each reading, text -> the one label that reads so; labels that read alike are told apart more strictly."""
    tables = []
    for reading in _READINGS:
        read = [reading(label) for label in labels]
        tables.append({text: label for text, label in zip(read, labels, strict=True) if text and read.count(text) == 1})
    return tuple(tables)


def read_label(text: str, labels: tuple[str, ...]) -> str | None:
    """The label that `text` is, up to case, spaces and punctuation; None where it is none of them.

    The strictest reading that names a label wins. A sentence that mentions a label is no label: what a program would
    have to parse out of the answer, the model has not learned to say.
    """
    for reading, table in zip(_READINGS, _label_tables(labels), strict=True):
        if label := table.get(reading(text)):
            return label
    return None


def script(text: str) -> str | None:
    """The script of most of the letters: "LATIN", "CYRILLIC", "ARABIC" ..., by Unicode's names; None without letters.

    Kana make a text Japanese, though most of its letters may be Han. Greek formulas or a brand's Latin name do not
    change it, unless they are most of the text.
    """
    letters = filter(str.isalpha, unicodedata.normalize("NFKC", text))  # full-width ABC are Latin
    names = (unicodedata.name(letter, "").split(" ")[0] for letter in letters)
    counts = Counter(_EAST_ASIAN.get(name, name) for name in names)
    if counts["JAPANESE"]:
        counts["JAPANESE"] += counts.pop("HAN", 0)
    return max(sorted(counts), key=counts.__getitem__, default=None)
