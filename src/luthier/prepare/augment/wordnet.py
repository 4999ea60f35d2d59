"""WordNet's database files, read where they lie: which words a word may stand for, and how usual each sense is.

The files are those of WordNet 3.0 (Fellbaum 1998), as Debian's `wordnet-base` installs them; their form is documented
in wndb(5WN) and cntlist(5WN). Index and counts are sorted, so a look-up is a binary search in the mapped file: opening
reads nothing but the exceptions (0.2 MB). Parts of speech: n, v, a, r. Words are in lower case, with spaces.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from luthier.errors import DataError
from luthier.settings import located

POS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_NUMBER = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
_SATELLITE = 5
_ENDINGS = {
    "n": (("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
          ("s", "")),
    "v": (("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (), "r": (),
}  # fmt: skip
"""Rules of detachment, morphy(7WN); those of comparatives are left out, since we write none."""


class WordNet:
    """Synonyms by part of speech, the most usual sense first."""

    def __init__(self, folder: Path) -> None:
        self._index = {pos: _Sorted(folder / f"index.{name}") for pos, name in POS.items()}
        self._data = {pos: _mapped(folder / f"data.{name}") for pos, name in POS.items()}
        self._counts = _Sorted(folder / "cntlist.rev")
        self.exceptions = {pos: _exceptions(folder / f"{name}.exc") for pos, name in POS.items()}
        """Part of speech -> irregular form -> its lemmas."""
        self.count = lru_cache(1 << 16)(self._count)
        self.synonyms = lru_cache(1 << 16)(self._synonyms)

    def knows(self, lemma: str, pos: str) -> bool:
        return bool(self._offsets(lemma, pos))

    def lemmas(self, form: str, pos: str) -> list[str]:
        """Words of which `form` may be a form: by the exceptions, itself, by the rules."""
        ruled = [form.removesuffix(end) + new for end, new in _ENDINGS[pos] if form.endswith(end) and form != end]
        found = dict.fromkeys([*self.exceptions[pos].get(form, ()), form, *ruled, *_undoubled(form, pos)])
        return [lemma for lemma in found if self.knows(lemma, pos)]

    def _count(self, lemma: str, pos: str) -> int:
        """How often the lemma was met as this part of speech in texts tagged by sense; 0 for a rare one."""
        numbers = [_NUMBER[pos]] + [_SATELLITE] * (pos == "a")
        keys = [f"{lemma.replace(' ', '_')}%{number}:" for number in numbers]
        return sum(int(line.rsplit(" ", 1)[1]) for key in keys for line in self._counts.starting(key))

    def _synonyms(self, lemma: str, pos: str, n_senses: int) -> tuple[str, ...]:
        """Of its n most usual senses, in their order: words of lower case that are not the lemma itself."""
        found: dict[str, None] = {}
        for offset in self._offsets(lemma, pos)[:n_senses]:
            line = self._data[pos][offset : self._data[pos].find(b"\n", offset)].decode()
            fields = line.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            found |= dict.fromkeys(re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ") for word in words)
        return tuple(word for word in found if word != lemma and re.fullmatch(r"[a-z]+(?:[ '-][a-z]+)*", word))

    def _offsets(self, lemma: str, pos: str) -> list[int]:
        if not lemma or lemma[0].isspace():  # as the licence's lines begin
            return []
        for line in self._index[pos].starting(f"{lemma.replace(' ', '_')} "):
            fields = line.split()
            n_senses, n_pointers = int(fields[2]), int(fields[3])
            return [int(offset) for offset in fields[6 + n_pointers : 6 + n_pointers + n_senses]]
        return []


class _Sorted:
    """A file of sorted lines."""

    def __init__(self, path: Path) -> None:
        self._bytes = _mapped(path)

    def starting(self, beginning: str) -> Iterator[str]:
        """The lines that begin so."""
        key, at = beginning.encode(), self._first(beginning.encode())
        while self._bytes[at : at + len(key)] == key:
            end = self._bytes.find(b"\n", at)
            yield self._bytes[at:end].decode()
            at = end + 1

    def _first(self, key: bytes) -> int:
        """Where the first line that is not before `key` begins."""
        low, high = 0, len(self._bytes)
        while low < high:
            start = self._bytes.rfind(b"\n", 0, (low + high) // 2) + 1
            if self._bytes[start : start + len(key)] < key:
                low = self._bytes.find(b"\n", start) + 1
            else:
                high = start
        return low


def open_wordnet(folder: str | None, base: Path, method: str) -> WordNet:
    """The database in `folder`, else where it is usually installed. Raises DataError LU-D140 where it is not."""
    home = os.environ.get("WNHOME")
    usual = [os.environ.get("WNSEARCHDIR"), home and f"{home}/dict", "/usr/share/wordnet", "/usr/share/wordnet/dict"]
    for path in [located(folder, base)] if folder else [Path(one) for one in usual if one]:
        if all((path / f"{kind}.{name}").is_file() for kind in ("index", "data") for name in POS.values()):
            return _opened(path.resolve())
    where, found = f"data.augment: {method}", f"needs WordNet's files, which are not in {folder or usual[2]}"
    advice = "apt-get install wordnet-base; or wordnet: FOLDER with index.noun, data.noun and so on"
    raise DataError.of("LU-D140", where, found, advice)


@lru_cache(2)
def _opened(folder: Path) -> WordNet:
    try:
        return WordNet(folder)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        found = f"WordNet's files cannot be read: {error}"
        raise DataError.of("LU-D140", str(folder), found, "apt-get install --reinstall wordnet-base") from None


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _exceptions(path: Path) -> dict[str, list[str]]:
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {form.replace("_", " "): [lemma.replace("_", " ") for lemma in lemmas] for form, *lemmas in rows}


def _undoubled(form: str, pos: str) -> list[str]:
    """`stop` of stopped and stopping: the rules of morphy leave these to the exceptions, which lack some."""
    match = re.fullmatch(r"(\w*[aeiou]([bdgklmnprt]))\2(?:ed|ing)", form) if pos == "v" else None
    return [match[1]] if match else []
