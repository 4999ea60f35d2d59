"""Protected spans: the parts of a text that no augmentation may change, because a person or a program relies on them.

Code, tags, template slots, URLs, e-mail addresses, quoted strings, whatever holds a digit, handles, file paths and
names. A name is a word with a capital that does not begin a sentence, one with capitals inside (PayPal, USB), or a
first name of the shipped list wherever it stands; where most words begin with a capital, capitals say nothing. English
and its like: German writes every noun so, and all of them are protected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from luthier.swap import first_names


class Span(NamedTuple):
    start: int
    stop: int
    kind: str


_END = r"[^\s<>\".,;:!?)\]}']"
_FILES = "pdf|txt|csv|json|docx?|xlsx?|py|png|jpe?g"
# None of these goes over one stretch of a long text again and again: where each may begin is narrow, or its length is.
_KINDS = {
    "code": r"```.*?```|`[^`\n]+`",
    "slot": r"\{\{[^{}]*\}\}|\$?\{[^{}\n]*\}|%\(\w{1,60}\)[sdif]|%[sdif]\b|\[[A-Z][A-Z0-9_]{1,60}\]",
    "tag": r"</?[A-Za-z!][^<>\n]{0,200}>|<\|[^<>\n|]{1,60}\|>|&\#?\w{1,30};",
    "url": rf"(?:(?:https?|ftp)://|\bwww\.)[^\s<>\"]*{_END}"
    rf"|(?<![\w.-])(?:[\w-]{{1,63}}\.){{1,5}}(?:com|org|net|edu|gov|io|de|uk|eu|fr|es)\b(?:/[^\s<>\"]*{_END})?",
    "email": r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}",
    "quote": r"\"[^\"\n]{1,200}\"|“[^“”\n]{1,200}”|«[^«»\n]{1,200}»",
    "number": r"[$€£¥#]?(?<![^\W_])[^\W_]*\d(?:[^\W_]|[.,:/'’%°_-](?=\w))*(?:[ ]?[%°€£¥$](?![\w(]))?",
    "handle": r"(?<!\w)[@\#][^\W\d]\w*",
    "path": rf"(?<![\w/])(?:~|\.{{1,2}})?/[\w.-]+(?:/[\w.-]*)+|\b[A-Za-z]:\\\S+|(?<!\w)\w{{1,100}}\.(?:{_FILES})\b",
}
# An e-mail address must be found before the URL that it ends in, a URL before the numbers in it.
_ORDER = ("code", "slot", "tag", "email", "url", "quote", "path", "number", "handle")
_FIXED = re.compile("|".join(f"(?P<{kind}>{_KINDS[kind]})" for kind in _ORDER), re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?:[.!?…:]|\n|^|[-–—•*>])[\s\"'“‘(\[]*$")
_NO_NAMES = frozenset("i i'm i'd i'll i've ok okay".split())
WRITTEN_BY_RULE = frozenset({"code", "slot", "tag", "url", "email", "number"})
"""Kinds of which there may be no new ones either: a link that nobody gave is a change of facts."""


@lru_cache(maxsize=4096)
def protected(text: str) -> tuple[Span, ...]:
    """In the order of the text; none overlaps another."""
    fixed = [Span(m.start(), m.end(), m.lastgroup or "") for m in _FIXED.finditer(text)]
    return tuple(sorted([*fixed, *_whole(text, _names(text, fixed))]))


def _whole(text: str, names: Iterator[Span]) -> Iterator[Span]:
    """First and last name are one."""
    before: Span | None = None
    for name in names:
        if before and text[before.stop : name.start] == " ":
            name = Span(before.start, name.stop, "name")
        elif before:
            yield before
        before = name
    if before:
        yield before


def _names(text: str, fixed: list[Span]) -> Iterator[Span]:
    words = list(_outside(text, fixed))
    inner = [m for m in words if not _begins_sentence(text, m)]
    capitals = sum(m.group()[0].isupper() for m in inner)
    telling = 2 * capitals <= len(inner) or capitals <= 2
    shouted = sum(m.group().isupper() for m in words) > len(words) / 2
    begins = {m.start() for m in words} - {m.start() for m in inner}
    stop = -1  # of the last name
    for m in words:
        word = m.group()
        if word.replace("’", "'").lower() in _NO_NAMES or not any(c.isupper() for c in word):
            continue
        cased_inside = any(c.isupper() for c in word[1:]) and not (shouted and word.isupper())
        named = telling and word[0].isupper() and m.start() not in begins and not (shouted and word.isupper())
        follows = word[0].isupper() and text[stop : m.start()] == " " and stop > 0
        if cased_inside or named or follows or re.split(r"['’-]", word)[0] in first_names():
            stop = m.end()
            yield Span(m.start(), m.end(), "name")


def _outside(text: str, spans: list[Span]) -> Iterator[re.Match[str]]:
    """The words that touch no span."""
    taken = bytearray(len(text))
    for start, stop, _ in spans:
        taken[start:stop] = b"\1" * (stop - start)
    yield from (m for m in _WORD.finditer(text) if taken.find(1, m.start(), m.end()) < 0)


def _begins_sentence(text: str, word: re.Match[str]) -> bool:
    return _SENTENCE_END.search(text, max(0, word.start() - 8), word.start()) is not None or word.start() == 0


def free_words(text: str) -> list[re.Match[str]]:
    """The words that are not protected, in order."""
    return list(_outside(text, list(protected(text))))


def broken(before: str, after: str, may_change: frozenset[str] = frozenset()) -> str | None:
    """The kind of a protected span that was lost, changed or made up; None where all are intact.

    `may_change` may hold "names" and "quotes".
    """
    free = {kind for kind, of in (("name", "names"), ("quote", "quotes")) if of in may_change}
    old, new = (Counter((text[s.start : s.stop], s.kind) for s in protected(text)) for text in (before, after))
    for (span, kind), n in old.items():
        # What is a name depends on where it stands; the letters must be there all the same.
        if kind not in free and new[span, kind] < n and _count(span, after) < _count(span, before):
            return kind
    return next((kind for (_, kind), _ in (new - old).items() if kind in WRITTEN_BY_RULE), None)


def _count(span: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(span)}(?!\w)", text))
