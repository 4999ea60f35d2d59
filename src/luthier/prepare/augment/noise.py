"""Noise: the slips of people who type, and of programs that read scanned pages.

A letter becomes its neighbour on a QWERTY keyboard, or what OCR takes it for. No slip writes a digit: a number that was
not there would be a change of facts. First letters stay, so that the word can still be read. Only what users say gets
noise: a model must not learn to write so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

LEAST_LETTERS = 4
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_OCR = {
    "rn": ("m",), "m": ("rn", "nn"), "cl": ("d",), "d": ("cl",), "vv": ("w",), "w": ("vv",), "li": ("h",),
    "h": ("b", "li"), "e": ("c",), "c": ("e",), "l": ("I", "i"), "i": ("l", "j"), "u": ("ii", "v"), "n": ("ri", "u"),
    "f": ("t",), "t": ("f",), "a": ("o",), "o": ("a",), "nn": ("m",), "ri": ("n",), "b": ("h",), "g": ("q",),
    "q": ("g",), "v": ("y",), "y": ("v",),
}  # fmt: skip


def _keyboard() -> dict[str, str]:
    """Each letter's neighbours; a row is set off by half a key from the one above."""
    found = {}
    for r, row in enumerate(_ROWS):
        for c, letter in enumerate(row):
            around = [(r, c - 1), (r, c + 1), (r - 1, c), (r - 1, c + 1), (r + 1, c - 1), (r + 1, c)]
            inside = [(i, j) for i, j in around if 0 <= i < len(_ROWS) and 0 <= j < len(_ROWS[i])]
            found[letter] = "".join(_ROWS[i][j] for i, j in inside)
    return found


_NEIGHBOURS = _keyboard()


def noise(*, kinds: Sequence[str] = ("keyboard", "ocr"), rate: float = 0.1) -> Augment:
    """One kind of slips for each candidate, drawn.

    Args:
        kinds: Of keyboard and ocr.
        rate: Share of the words of four letters or more that get one slip; one word at least.

    Raises DataError LU-D146.
    """
    check_choice("noise", "kinds", kinds, ("keyboard", "ocr"))
    check_fraction("noise", "rate", rate)
    slips = {"keyboard": _mistype, "ocr": _misread}

    def augment(conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        places = changeable(conversation, errors=True)
        while True:
            slip = slips[rng.choice(list(kinds))]
            texts = {}
            for i in places:
                text = conversation.messages[i].content
                words = [m for m in free_words(text) if len(m.group()) >= LEAST_LETTERS]
                chosen = rng.sample(words, min(len(words), max(1, round(rate * len(words)))))
                for m in sorted(chosen, key=lambda m: -m.start()):
                    text = text[: m.start()] + slip(m.group(), rng) + text[m.end() :]
                texts[i] = text
            yield replaced(conversation, texts)

    return augment


def _mistype(word: str, rng: Random) -> str:
    places = [i for i in range(1, len(word)) if word[i].lower() in _NEIGHBOURS]
    if not places:
        return word
    at = rng.choice(places)
    key = rng.choice(_NEIGHBOURS[word[at].lower()])
    return word[:at] + (key.upper() if word[at].isupper() else key) + word[at + 1 :]


def _misread(word: str, rng: Random) -> str:
    places = [(i, seen) for seen in _OCR for i in range(1, len(word)) if word.startswith(seen, i)]
    if not places:
        return word
    at, seen = rng.choice(places)
    return word[:at] + rng.choice(_OCR[seen]) + word[at + len(seen) :]
