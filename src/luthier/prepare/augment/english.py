"""English words in their sentence: which part of speech a word is, in which form, and the same form of another word.

No tagger: WordNet says what a word may be, the word before it rules out most of that ("the" has no verb after it, "to"
and "can" have a base form), and of what is left the reading that was met far more often in WordNet's tagged texts is
taken. Where two are nearly as usual there is no reading: a wrong one costs more than a word left as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from luthier.prepare.augment.wordnet import POS, WordNet

CLEARLY = 3
"""How much more usual one part of speech must be than the next."""
_DETERMINERS = frozenset(
    """a an the my your his her its our their this that these those some any no each every another which whose much many
    several few both""".split()
)
_WITH_BASE = frozenset(
    """to can could will would shall should may might must do does did don't doesn't didn't can't cannot won't
    couldn't wouldn't shouldn't please let's i'll you'll we'll they'll he'll she'll i'd you'd we'd they'd""".split()
)
_SUBJECTS = frozenset("i you we they he she it who".split())
_BE = frozenset(
    """am is are was were be been being i'm you're we're they're he's she's it's isn't aren't wasn't weren't""".split()
)
_HAVE = frozenset("have has had having i've you've we've they've haven't hasn't hadn't".split())
_DEGREES = frozenset("very too so more most quite really extremely rather fairly pretty as".split())
_PASSED_OVER = frozenset("not just already never ever also still now been always only".split())
_INVARIANT = frozenset(
    """bet bid broadcast burst cast cost cut fit forecast hit hurt let put quit read rid set shed shut slit split spread
    thrust upset wed""".split()
)
"""Verbs whose past is their base form: only what stands before them tells which it is."""
_VOWELS = "aeiou"


class Reading(NamedTuple):
    lemma: str
    pos: str
    """n, v, a or r."""
    form: str
    """singular, plural, base, third, past, participle, ing; "" of adjectives and adverbs."""


def read(word: str, before: Sequence[str], wordnet: WordNet) -> Reading | None:
    """The word's reading after the words before it (lower case, nearest last); None where it cannot be told."""
    last = before[-1] if before else ""
    if word in _INVARIANT and last not in _WITH_BASE | _DETERMINERS:
        return None
    if word in wordnet.exceptions["a"] or word in wordnet.exceptions["r"]:  # better, worst
        return None
    readings = [r for r in _readings(word, before, wordnet) if _allowed(r, before)]
    counts: defaultdict[str, int] = defaultdict(int)
    for one in readings:
        counts[one.pos] = max(counts[one.pos], wordnet.count(one.lemma, one.pos))
    if not counts:
        return None
    best, *others = sorted(counts, key=lambda pos: (-counts[pos], pos))
    if others and counts[best] < CLEARLY * max(counts[others[0]], 1):
        return None
    return max((r for r in readings if r.pos == best), key=lambda r: wordnet.count(r.lemma, r.pos))


def _readings(word: str, before: Sequence[str], wordnet: WordNet) -> list[Reading]:
    found = []
    for pos in POS:
        for lemma in wordnet.lemmas(word, pos):
            if pos == "n":
                found.append(Reading(lemma, pos, "singular" if lemma == word else "plural"))
            elif pos == "v":
                found.append(Reading(lemma, pos, _verb_form(word, lemma, before, wordnet)))
            elif lemma == word:  # neither larger nor largest
                found.append(Reading(lemma, pos, ""))
    return found


def _verb_form(word: str, lemma: str, before: Sequence[str], wordnet: WordNet) -> str:
    if word == lemma:
        return "base"
    if word.endswith("ing"):
        return "ing"
    past, participle = _irregular(lemma, wordnet) or (None, None)
    if past != participle and word in (past, participle):
        return "past" if word == past else "participle"
    if word.endswith("s") and word != past:
        return "third"
    return "participle" if _last(before) in _HAVE | _BE | {"get", "got", "gets"} else "past"


def _allowed(reading: Reading, before: Sequence[str]) -> bool:
    last, (_, pos, form) = before[-1] if before else "", reading
    if last in _DETERMINERS:
        return pos in ("n", "a") or (pos == "v" and form == "participle")
    if last in _WITH_BASE:
        return (pos, form) == ("v", "base") or pos == "r"
    if last in _SUBJECTS:
        return pos in ("v", "r")
    if _last(before) in _BE:
        return pos in ("a", "r") or form in ("ing", "participle")
    if _last(before) in _HAVE:
        return pos != "v" or form == "participle"
    return pos in ("a", "r") if last in _DEGREES else True


def _last(before: Sequence[str]) -> str:
    """The nearest word before that is no adverb of the auxiliaries."""
    return next((word for word in reversed(before) if word not in _PASSED_OVER), "")


def inflect(lemma: str, pos: str, form: str, wordnet: WordNet) -> str | None:
    """A word in a form; None where that is not known, and for what is not one word of letters.

    What takes two is mostly narrower than what it would replace ("hard cash", "send out").
    """
    if not lemma.isalpha():
        return None
    if form in ("", "singular", "base"):
        return lemma
    return _plural(lemma, wordnet) if pos == "n" else _verb(lemma, form, wordnet)


def _plural(noun: str, wordnet: WordNet) -> str:
    forms = _forms(wordnet, "n").get(noun)
    if forms:
        return forms[0]
    if re.search(r"(?:[sxz]|ch|sh)$", noun):
        return noun + "es"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _verb(verb: str, form: str, wordnet: WordNet) -> str | None:
    if verb in ("be", "have", "do", "can"):
        return None
    if form == "third":
        if re.search(r"(?:[sxzo]|ch|sh)$", verb):
            return verb + "es"
        return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"
    if form == "ing":
        irregular = next((f for f in _forms(wordnet, "v").get(verb, ()) if f.endswith("ing")), None)
        return irregular or _stem(verb, "ing") + "ing"
    both = _irregular(verb, wordnet)
    if both is None:
        return None
    past, participle = both
    return past if form == "past" else participle


def _stem(verb: str, ending: str) -> str:
    """Before -ed and -ing."""
    if ending == "ing" and verb.endswith("ie"):
        return verb[:-2] + "y"
    if verb.endswith("e") and not (ending == "ing" and verb.endswith(("ee", "oe", "ye"))):
        return verb[:-1]
    if ending == "ed" and re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "i"
    one_syllable = re.fullmatch(r"[^aeiou]*(?:qu)?[aeiou][^aeiouwxy]", verb)
    return verb + verb[-1] if one_syllable else verb


def _irregular(verb: str, wordnet: WordNet) -> tuple[str, str] | None:
    """Past and participle, also of regular verbs; None where the exceptions leave open which is which."""
    if verb in _INVARIANT:
        return verb, verb
    regular = _stem(verb, "ed") + "ed"
    forms = [f for f in _forms(wordnet, "v").get(verb, ()) if not f.endswith(("ing", "s")) and " " not in f]
    match forms:
        case []:
            return regular, regular
        case [only] if only.endswith("ed"):
            return only, only
        case [only] if re.search(r"(?:wn|en|rn)$", only) and not re.search(r"(?:urn|arn|earn)$", verb):
            return regular, only  # showed, shown
        case [only]:
            return only, verb if re.search(r"(?:come|run)$", verb) else only
        case [one, two]:
            for participle in (r"u[nm]|unk$", r"ne?$"):  # sung beside sang, written beside wrote
                match [bool(re.search(participle, f)) for f in (one, two)]:
                    case [True, False]:
                        return two, one
                    case [False, True]:
                        return one, two
    return None


@lru_cache(4)
def _forms(wordnet: WordNet, pos: str) -> dict[str, list[str]]:
    """Lemma -> its irregular forms."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for form, lemmas in wordnet.exceptions[pos].items():
        for lemma in lemmas:
            found[lemma].append(form)
    return found


def with_article(text: str, at: int, word: str) -> tuple[int, str]:
    """Where a replacement begins that takes the place of what stands at `at`, and it: `a` and `an` before it agree."""
    article = re.search(r"\b(an?)[ ]+$", text[:at], re.IGNORECASE)
    if article is None:
        return at, word
    old = text[at].lower() in _VOWELS
    new = word[0].lower() in _VOWELS
    if old == new:
        return at, word
    said = article.group(1)[0] + ("n" if new else "")
    return article.start(), f"{said} {word}"
