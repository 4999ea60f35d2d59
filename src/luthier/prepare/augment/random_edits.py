"""Random edits: a synonym put in, a word left out, or two words exchanged, as in EDA (Wei & Zou 2019, section 2).

Of l words that may change, max(1, rate l) are edited; with deletion each is left out with the probability `rate`. The
paper's rate is 0.1, and 0.05 for 2,000 training rows or fewer. Its fourth operation, replacement, is the method
`synonyms`, which also minds the context. Only what users say is edited: a model must not learn to write so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from luthier.conversation import Conversation
from luthier.prepare.augment.contract import (
    Augment,
    Unmade,
    changeable,
    check_choice,
    check_fraction,
    replaced,
)
from luthier.prepare.augment.protected import free_words
from luthier.prepare.augment.wordnet import POS, WordNet, open_wordnet

Edit = Callable[[str, float, Random], str]

STOP_WORDS = frozenset(
    """i me my we our you your he him his she her it its they them their what which who whom this that these those am is
    are was were be been being have has had having do does did doing a an the and but if or because as until while of at
    by for with about against between into through during before after above below to from up down in out on off over
    under again further then once here there when where why how all any both each few more most other some such no nor
    not only own same so than too very can will just don should now would could may might must shall please like lot
    lots thing things one two three four five six seven eight nine ten first second else etc""".split()
)
"""Function words and their like: they have no synonyms that fit."""


def random_edits(
    *,
    folder: Path,
    operations: Sequence[str] = ("insertion", "deletion", "swap"),
    rate: float = 0.1,
    wordnet: str | None = None,
) -> Augment:
    """One of the operations for each candidate, drawn.

    Args:
        folder: The recipe's.
        operations: Of insertion, deletion and swap. Insertion needs WordNet.
        rate: Share of the words that are edited.
        wordnet: The folder of WordNet's files; None: where Debian installs them.

    Raises DataError LU-D140, LU-D146.
    """
    check_choice("random_edits", "operations", operations, ("insertion", "deletion", "swap"))
    check_fraction("random_edits", "rate", rate)
    edits: dict[str, Edit] = {"deletion": _delete, "swap": _swap}
    if "insertion" in operations:
        edits["insertion"] = _insertion(open_wordnet(wordnet, folder, "random_edits"))

    def augment(conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        places = changeable(conversation, errors=True)
        while True:
            edit = edits[rng.choice(list(operations))]
            yield replaced(conversation, {i: edit(conversation.messages[i].content, rate, rng) for i in places})

    return augment


def _n(words: int, rate: float) -> int:
    return max(1, int(rate * words))


def _insertion(wordnet: WordNet) -> Edit:
    def insert(text: str, rate: float, rng: Random) -> str:
        """A synonym of some word of the text, before any other word."""
        words = free_words(text)
        with_meaning = [m.group().lower() for m in words if m.group().lower() not in STOP_WORDS]
        for _ in range(_n(len(words), rate)):
            if (places := free_words(text)) and (synonym := _any_synonym(wordnet, with_meaning, rng)):
                at = rng.choice(places[1:] or places).start()
                text = f"{text[:at]}{synonym} {text[at:]}"
        return text

    return insert


def _any_synonym(wordnet: WordNet, words: Sequence[str], rng: Random) -> str | None:
    """Of a word that has one, drawn from its senses alike, as the paper does."""
    for word in rng.sample(words, len(words)):
        found = [s for pos in POS for lemma in wordnet.lemmas(word, pos) for s in wordnet.synonyms(lemma, pos, 3)]
        if found:
            return rng.choice(found)
    return None


def _delete(text: str, rate: float, rng: Random) -> str:
    words = free_words(text)
    gone = [m for m in words if rng.random() < rate] or rng.sample(words, min(1, len(words)))
    if len(gone) == len(text.split()):  # something must be left
        return text
    for match in reversed(gone):
        before, after = text[: match.start()], text[match.end() :]
        text = before + after.lstrip(" ") if not before or before.endswith((" ", "\n")) else before + after
    return text


def _swap(text: str, rate: float, rng: Random) -> str:
    for _ in range(_n(len(free_words(text)), rate)):
        words = free_words(text)
        if len(words) < 2:
            return text
        a, b = sorted(rng.sample(words, 2), key=lambda m: m.start())
        first, second = b.group(), a.group()
        if a.start() == 0 and second != "I" and second[1:].islower():  # what begins the text has its capital
            first, second = first[0].upper() + first[1:] if second[0].isupper() else first, second.lower()
        text = text[: a.start()] + first + text[a.end() : b.start()] + second + text[b.end() :]
    return text
