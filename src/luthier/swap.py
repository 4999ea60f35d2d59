"""Group terms swapped, with the grammar kept: she for he, her for him or his, mother for father, Mary for John.

Terms are pairs in a text file, one a line; `terms/gender_en.txt` ships and says its form, and a file of one's own adds
to it or overrides it. Three pronouns have two counterparts each, which the words around them decide: `her` is `him` or
`his`, `his` is `her` or `hers`. The rule is stated at `_possesses`. English; knows nothing of conversations.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from luthier.errors import DataError, Problem, printable

SHIPPED = Path(__file__).with_name("terms") / "gender_en.txt"
MAX_BYTES = 1 << 20
_WORD = re.compile(r"[^\W\d_]+")

# After `her`, these show an object: articles, prepositions, conjunctions, auxiliaries, adverbs of time and place.
_NO_NOUN = frozenset(
    """a an the to for with without and or but nor if that this these those at in into on onto of off by from about
    as than is are was were be been being am has had have will would can could shall should may might must do does did
    when where why how what who whom which because since while until unless so then there here now again too either not
    yes no never ever always yes please up down out over under before after during through around back away alone
    together along aside apart forward today tonight tomorrow yesterday later soon it me us them you him i he she we
    they my our your their his her its all any some anything something everything nothing everyone anyone
    home less instead though although yet just only very really quite also however""".split()
)
_TIMES = frozenset(
    """week month year night time monday tuesday wednesday thursday friday saturday sunday summer winter spring autumn
    fall morning evening weekend""".split()
)
# "let her go", "saw her leave": what follows the object is a verb.
_WITH_BARE_VERB = frozenset(
    """let lets letting make makes made making help helps helped helping see sees saw seen seeing hear hears heard
    hearing watch watches watched watching feel feels felt notice noticed""".split()
)
_PERCEIVED = _WITH_BARE_VERB | frozenset("catch caught find found keep kept leave left remember stop stopped".split())
_BARE_VERBS = frozenset(
    """go come leave do be have know take get see say cry work run walk talk speak sing smile laugh feel think try stay
    play eat drink sleep drive sit stand win lose fall finish start begin stop move wait look understand learn read
    write find keep pay buy sell choose decide become believe realize remember forget enter return join identify fix
    open close solve build carry get feel improve reach""".split()
)
# "gave her two cards", "asked her several questions": with these verbs a number or quantity opens a second object.
_GIVEN = frozenset(
    """give gives gave given giving tell tells told telling show shows showed shown send sends sent offer offers offered
    ask asks asked bring brings brought buy buys bought lend lent owe owes owed pay pays paid teach taught hand handed
    award awarded grant granted wish wished cost costs charge charged provide provided""".split()
)
_QUANTITIES = frozenset(
    """one two three four five six seven eight nine ten several many much more most enough another each every both half
    hundred advice information money permission happy""".split()
)


class Terms:
    """Which word stands for which."""

    def __init__(self, words: dict[str, str], names: dict[str, str]) -> None:
        self.words, self.names = words, names

    def swap(self, text: str) -> str:
        """The text with every term swapped, in the case of the word that it replaces; `a` and `an` agree."""
        found = list(_WORD.finditer(text))
        others = [self._other(text, found, i) for i in range(len(found))]
        parts, at = [], 0
        for i, (match, other) in enumerate(zip(found, others, strict=True)):
            following = others[i + 1] if i + 1 < len(found) and _adjacent(text, match, found[i + 1]) else None
            if other is None and following and match.group().lower() in ("a", "an"):
                other = _article(match.group(), found[i + 1].group(), following)
            parts += [text[at : match.start()], match.group() if other is None else other]
            at = match.end()
        return "".join([*parts, text[at:]])

    def _other(self, text: str, found: list[re.Match[str]], i: int) -> str | None:
        """What stands for a word, None where it stays."""
        word = found[i].group()
        if name := self.names.get(word) or (self.names.get(word.title()) if word.isupper() and len(word) > 2 else None):
            return in_case_of(word, name)
        lower = word.lower()
        if lower in ("her", "his") and lower in self.words:
            possesses = _possesses(text, found, i)
            other = ("his" if possesses else "him") if lower == "her" else ("her" if possesses else "hers")
        elif lower in self.words:
            other = self.words[lower]
        else:
            return None
        return in_case_of(word, other)


def read_terms(path: Path | None = None) -> Terms:
    """The shipped terms and, before them, those of a file of one's own.

    Raises DataError LU-D145 for a file that cannot be read, with every line that is no pair.
    """
    words, names = _read(SHIPPED)
    if path is not None:
        more_words, more_names = _read(path)
        words, names = _over(words, more_words), _over(names, more_names)
    return Terms(words, names)


def _over(shipped: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """Whoever had a counterpart that now has another one has none."""
    return {a: b for a, b in shipped.items() if a not in own and b not in own} | own


def first_names() -> frozenset[str]:
    """Those of the shipped list; none of them is also a common English word."""
    return frozenset(_read(SHIPPED)[1])


@cache
def _read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else None
        lines = content.decode("utf-8-sig").splitlines() if content is not None else None
    except (OSError, UnicodeDecodeError):
        lines = None
    if lines is None:
        advice = f"a text file in UTF-8 of at most {MAX_BYTES >> 20} MiB, one pair of terms a line"
        raise DataError.of("LU-D145", str(path), "no list of terms can be read there", advice)
    words: dict[str, str] = {}
    names: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not (fields := line.partition("#")[0].split()):
            continue
        if len(fields) != 2 or not all(_WORD.fullmatch(field) for field in fields):
            found = f"'{printable(line, 60)}' is no pair of words"
            problems.append(Problem("LU-D145", f"{path}:{number}", found, "two words of letters, separated by a space"))
            continue
        a, b = fields
        kept = str if a[0].isupper() and b[0].isupper() else str.lower
        into = names if kept is str else words
        into.setdefault(kept(a), kept(b))
        into.setdefault(kept(b), kept(a))
    if problems:
        raise DataError(*problems)
    return words, names


def _possesses(text: str, found: list[re.Match[str]], i: int) -> bool:
    """Whether `her` or `his` owns what follows ("her card"), or stands for a person or a thing ("met her", "is his").

    It owns where a word follows on the same line without punctuation between, or a quoted one, unless that word
    - is an article, preposition, conjunction, auxiliary, pronoun or adverb ("met her at", "told her that"), or ends
      in -ly;
    - is `last` or `next` before a time ("met her last week");
    - is a verb after one that takes object and verb ("let her go", "saw her leaving");
    - is a quantity after a verb of giving ("gave her two").
    """
    if i + 1 == len(found) or not _adjacent(text, found[i], found[i + 1]):
        return re.match(r'[ \t]+["“\d]', text[found[i].end() :]) is not None
    following = found[i + 1].group().lower()
    before = found[i - 1].group().lower() if i and _adjacent(text, found[i - 1], found[i]) else ""
    after = found[i + 2].group().lower() if i + 2 < len(found) and _adjacent(text, *found[i + 1 : i + 3]) else ""
    if following in ("last", "next") and after in _TIMES:
        return False
    if following in _NO_NOUN or (following.endswith("ly") and following not in ("family", "only", "early", "elderly")):
        return False
    if before in _WITH_BARE_VERB and following in _BARE_VERBS:
        return False
    if before in _PERCEIVED and following.endswith("ing") and (not after or after in _NO_NOUN):
        return False
    return not (before in _GIVEN and following in _QUANTITIES)


def _adjacent(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    return re.fullmatch(r"[ \t]+", text[first.end() : second.start()]) is not None


def _article(word: str, before: str, after: str) -> str | None:
    """`a` or `an` before a word that was swapped, None where it may stay: by the first letter, as it was before."""
    vowels = "aeiou"
    if (before[0].lower() in vowels) == (after[0].lower() in vowels):
        return None
    return in_case_of(word, "an" if after[0].lower() in vowels else "a")


def in_case_of(word: str, other: str) -> str:
    """`other` in capitals, with a capital or as it is, as `word` is."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other
