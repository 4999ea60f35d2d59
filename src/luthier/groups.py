"""Groups of people that a text names: by gender, orientation, religion, ethnicity, nationality, age and disability.

By lists of terms; `terms/groups_en.txt` ships and says its form, and a file of one's own adds to it. English. A list
knows words, not who is meant: "Mr Black", "kid" for a young goat and a quoted slur are beyond it, and so is everybody
whom a text names by name alone. Knows nothing of conversations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from luthier.errors import DataError, Problem, printable

SHIPPED = Path(__file__).with_name("terms") / "groups_en.txt"
MAX_BYTES = 1 << 20
ANYBODY = "PERSON"
_WORD = re.compile(r"[^\W\d_]+")
_KIND = re.compile(r"\[([^\[\]]+)\]")

Groups = dict[tuple[str, str], tuple[str, ...]]
"""Kind and name -> terms."""


class Named(NamedTuple):
    """A term in a text, at `text[start:end]`."""

    group: int
    start: int
    end: int


class Finder:
    """Finds the groups that a text names, each by its place in `names`."""

    def __init__(self, groups: Groups) -> None:
        self.names = list(groups)
        """Kind and name of each group; those of one kind lie together."""
        self._by_first: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for i, terms in enumerate(groups.values()):
            for term in terms:
                words = tuple(_WORD.findall(term))
                self._by_first.setdefault(words[0].lower(), []).append((words, i))

    def find(self, text: str) -> Iterator[Named]:
        """Every term, in the text's order."""
        found = list(_WORD.finditer(text))
        for at, first in enumerate(found):
            for words, group in self._by_first.get(first.group().lower(), ()):
                there = found[at : at + len(words)]
                if len(there) == len(words) and all(map(_is, there, words)):
                    yield Named(group, first.start(), there[-1].end())


def _is(there: re.Match[str], word: str) -> bool:
    return there.group() == word if word[0].isupper() else there.group().lower() == word


def read_groups(path: Path | None = None) -> Groups:
    """The shipped groups and those of a file of one's own, which replaces those that it names again.

    Raises DataError LU-D174 for a file that cannot be read, with every line that is none of a kind, a group or PERSON.
    """
    groups, anybody = _read(SHIPPED, ())
    if path is not None:
        groups |= _read(path, anybody)[0]
    kinds = list(dict.fromkeys(kind for kind, _ in groups))
    return {key: groups[key] for key in sorted(groups, key=lambda key: kinds.index(key[0]))}


def _read(path: Path, anybody: Sequence[str]) -> tuple[Groups, Sequence[str]]:
    """Groups in the order of the file, and what PERSON stands for."""
    groups: Groups = {}
    problems: list[Problem] = []
    kind = ""
    for number, line in enumerate(_lines(path), 1):
        line = line.partition("#")[0].strip()
        if found := _KIND.fullmatch(line):
            kind = found[1].strip()
            continue
        name, _, listed = (part.strip() for part in line.partition(":"))
        terms = [term.strip() for term in listed.split(",")]
        if name == ANYBODY and all(map(_WORD.fullmatch, terms)):
            anybody = terms
        elif kind and name and all(map(_WORD.search, terms)):
            groups[kind, name] = tuple(term for written in terms for term in _spelled(written, anybody))
        elif line:
            said = f"'{printable(line, 60)}' is neither a kind nor a group of one"
            problems.append(Problem("LU-D174", f"{path}:{number}", said, "[kind], then lines `group: term, term`"))
    if problems:
        raise DataError(*problems)
    return groups, anybody


def _spelled(term: str, anybody: Sequence[str]) -> list[str]:
    """With each word that PERSON stands for."""
    return [term.replace(ANYBODY, word) for word in anybody] if ANYBODY in term.split() else [term]


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else None
        if content is not None:
            return content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        pass
    advice = f"a text file in UTF-8 of at most {MAX_BYTES >> 20} MiB, as terms/groups_en.txt is"
    raise DataError.of("LU-D174", str(path), "no list of groups can be read there", advice)
