"""Templates: prompts that share a frame, answers that begin alike, and how many rows each label has.

A frame is what is left of a text where numbers, quoted parts, names and rare words are masked: the whole of it, its
first words, or its last ones. Names are words with a capital that begin no sentence, so frames are coarser in German
and in headlines; words of scripts without spaces are whole sentences here, so only equal ones share a frame.

Memory: 32 bytes a row, and 4 MB for how often words are met.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Conversation
from luthier.errors import printable
from luthier.prepare.checks.contract import Found, Looked, Suspect
from luthier.prepare.privacy import masked
from luthier.records import FactTable
from luthier.settings.section import Fraction

EDGE_WORDS = 5
KNOWN_WORDS = 3
"""That are not masked, at least, in a frame that begins or ends a text."""
FEW = 10
"""Rows of a label from which it is hardly learned."""
UNEVEN = 10
"""Times as many rows of the largest label as of the smallest, from which a note says so."""
SHOWN_FRAMES, SHOWN_LABELS = 10, 200
COUNTERS = 1 << 20
RARE = 0.005
"""Share of the rows below which a word is rare; in under three rows all are."""
OWN = 0.9
"""Share of the rows from which a frame is the task's own."""
SCORE = 0.1
"""Of each suspect: one row of a frame is as good as the next, and which to drop is for people to say."""
TOKEN = re.compile(
    r'(?P<end>[.!?:\n]+)|(?P<mask>"[^"\n]{1,200}"|“[^”\n]{1,200}”|«[^»\n]{1,200}»|<[A-Z]+>|\d[\d.,:]*)|(?P<word>\w+)'
)
MASK = "…"
PARTS = ("the whole prompt", "its first words", "its last words", "the answer's first words")


class Frame(NamedTuple):
    part: str
    text: str
    places: Sequence[int]


def templates(looked: Looked, most: Fraction = 0.2) -> Found:
    """The commonest frames of prompts and openings of answers; with labels, how many rows each has.

    Suspects are the rows of a prompt's frame that more than `most` of the rows have: what a model learns of them may be
    the frame. A frame of nine rows in ten is the task's own, and none of its rows is a suspect.
    """
    frames = list(_frames(looked))
    often = [f for f in frames if f.part != PARTS[-1] and most < len(f.places) / len(looked) < OWN]
    often.sort(key=lambda frame: len(frame.places))
    suspects = {place: Suspect(place, SCORE, _why(frame, looked)) for frame in often for place in frame.places}
    notes = [f"collect prompts that are worded otherwise than '{f.text}': {_share(f, looked)}" for f in often[:-4:-1]]
    notes += [
        f"'{f.text}' is the task's own: {_share(f, looked)}" for f in frames if len(f.places) >= OWN * len(looked)
    ]
    tables = [_table(frames, looked)]
    if looked.labelled:
        labels, balance = _labels(looked)
        tables.append(labels)
        notes += balance
    advice = "drop some of these rows, or add prompts that are worded otherwise"
    return Found([suspects[place] for place in sorted(suspects)], "LU-D172", advice, tables, notes)


def _frames(looked: Looked) -> Iterator[Frame]:
    """The commonest of each part, each of two rows at least."""
    n_rows = np.zeros(COUNTERS, dtype=np.uint32)  # that hold a word; those that share a counter only seem less rare
    for conversation in looked:
        for text in _texts(conversation, looked.labelled):
            words = {_counter(match["word"]) for match in TOKEN.finditer(text) if match["word"]}
            n_rows[list(words)] += 1
    common = n_rows >= max(RARE * len(looked), 3)
    keys = np.zeros((len(looked), len(PARTS)), dtype=np.uint64)  # 0: none
    for place, conversation in enumerate(looked):
        found = _parts(conversation, looked.labelled, common)
        keys[place] = [_hash64(frame) if frame else 0 for frame in found]
    for part, name in enumerate(PARTS):
        values, first, counts = np.unique(keys[:, part], return_index=True, return_counts=True)
        counts[(values == 0) | (counts < 2)] = 0
        for i in np.argsort(-counts, kind="stable")[:SHOWN_FRAMES]:
            if counts[i]:
                conversation = looked.rows[int(looked.numbers[first[i]])]
                text = _parts(conversation, looked.labelled, common)[part]
                yield Frame(name, printable(text, 100), np.flatnonzero(keys[:, part] == values[i]).tolist())


def _texts(conversation: Conversation, labelled: bool) -> tuple[str, str]:
    return conversation.prompt_text, "" if labelled else conversation.answer


def _parts(conversation: Conversation, labelled: bool, common: NDArray[np.bool_]) -> tuple[str, str, str, str]:
    """A frame for each of PARTS; empty: there is none."""
    asked, answered = (_masked_words(text, common) for text in _texts(conversation, labelled))
    whole = " ".join(asked) if any(word != MASK for word in asked) else ""
    return (
        whole,
        _edge(asked[:EDGE_WORDS], asked),
        _edge(asked[-EDGE_WORDS:], asked),
        _edge(answered[:EDGE_WORDS], answered),
    )


def _edge(words: Sequence[str], of: Sequence[str]) -> str:
    known = sum(word != MASK for word in words)
    return " ".join(words) if len(of) > len(words) and known >= KNOWN_WORDS else ""


def _masked_words(text: str, common: NDArray[np.bool_]) -> list[str]:
    """In lower case; runs of what is masked are one, and personal data is."""
    found: list[str] = []
    begins = True
    for match in TOKEN.finditer(masked(text)):
        word = match["word"]
        if match["end"]:
            begins = True
            continue
        is_name = word is not None and word[0].isupper() and not begins and word != "I"
        if word is None or is_name or not common[_counter(word)]:
            word = MASK
        begins = False
        if word != MASK or found[-1:] != [MASK]:
            found.append(word.lower())
    return found


def _counter(word: str) -> int:
    return zlib.crc32(word.lower().encode("utf-8", "surrogatepass")) % COUNTERS


def _hash64(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _share(frame: Frame, looked: Looked) -> str:
    return f"{frame.part} in {len(frame.places)} of {len(looked)} rows ({len(frame.places) / len(looked):.1%})"


def _why(frame: Frame, looked: Looked) -> str:
    return f"'{frame.text}' is {_share(frame, looked)}"


def _table(frames: Sequence[Frame], looked: Looked) -> FactTable:
    rows = ((f.part, f.text, len(f.places), round(len(f.places) / len(looked), 4)) for f in frames)
    return FactTable(title="commonest frames", columns=("part", "frame", "rows", "share"), rows=tuple(rows))


def _labels(looked: Looked) -> tuple[FactTable, list[str]]:
    counts: Counter[str] = Counter()
    by_side: Counter[tuple[str, int]] = Counter()
    for conversation, side in zip(looked, looked.sides.tolist(), strict=True):
        label = printable(masked(conversation.answer), 60)
        counts[label] += 1
        by_side[label, side] += 1
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    rows: list[tuple[str | int | float, ...]] = []
    for label in ordered[:SHOWN_LABELS]:
        n = counts[label]
        rows.append((label, n, round(n / len(looked), 4), *(by_side[label, side] for side in range(len(SIDES)))))
    largest, smallest = ordered[0], ordered[-1]
    ratio = counts[largest] / counts[smallest]
    sizes = f"'{largest}' has {counts[largest]} rows, '{smallest}' {counts[smallest]} (1 : {ratio:.1f})"
    notes = [f"{len(counts)} labels: {sizes}"]
    if few := [f"'{label}' ({counts[label]})" for label in reversed(ordered) if counts[label] < FEW]:
        listed = ", ".join(few[:SHOWN_FRAMES]) + (f" and {len(few) - SHOWN_FRAMES} more" if few[SHOWN_FRAMES:] else "")
        notes.append(f"collect rows of these labels first, of fewer than {FEW} rows: {listed}")
    elif ratio > UNEVEN:
        notes.append(f"collect rows of '{smallest}' first")
    return FactTable(title="labels", columns=("label", "rows", "share", *SIDES), rows=tuple(rows)), notes
