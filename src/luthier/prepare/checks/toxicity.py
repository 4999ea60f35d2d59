"""Toxicity: offensive language, by the linear classifier of alt-profanity-check.

A support vector machine on single words, learned from 200,000 English comments and posts. It sees which words stand
there, not what is said with them: insults and threats without rude words are missed, and who quotes a rude word, or
asks about a sucking mosquito, is found. docs/checks.md has measures. Texts are judged a sentence at a time, and by
their worst: a rude one is not outvoted by a long page around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from luthier.conversation import SIDES
from luthier.prepare.checks.contract import Found, Looked, Suspect, needs
from luthier.records import FactTable
from luthier.settings.section import Fraction

ASKED, ANSWERED = "asked", "answered"
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
AT_ONCE = 4096
"""Sentences."""


@needs("toxicity", "profanity_check")
def toxicity(looked: Looked, least: Fraction = 0.7) -> Found:
    """Rows whose prompt or answer holds a sentence that is offensive with a probability of `least` or more. English."""
    from profanity_check import predict_prob

    worst = {side: np.zeros(len(looked)) for side in (ASKED, ANSWERED)}
    for part in _parts(_sentences(looked)):
        for (place, side, _), chance in zip(part, predict_prob([text for _, _, text in part]), strict=True):
            worst[side][place] = max(worst[side][place], float(chance))
    suspects = []
    for place in np.flatnonzero(np.maximum(worst[ASKED], worst[ANSWERED]) >= least).tolist():
        said = [
            f"what is {side} reads as offensive ({of[place]:.2f})" for side, of in worst.items() if of[place] >= least
        ]
        suspects.append(Suspect(place, float(max(of[place] for of in worst.values())), "; ".join(said)))
    rows = []
    for side, of in worst.items():
        by_side = np.bincount(looked.sides[of >= least], minlength=len(SIDES)).tolist()
        rows.append((side, sum(by_side), round(sum(by_side) / max(len(looked), 1), 4), *by_side))
    table = FactTable(title="offensive rows", columns=("what", "rows", "share", *SIDES), rows=tuple(rows))
    return Found(suspects, "LU-D171", "drop it, unless the model should know such language", [table])


def _sentences(looked: Looked) -> Iterator[tuple[int, str, str]]:
    """Place, side and sentence; labels are no answers."""
    for place, conversation in enumerate(looked):
        texts = {ASKED: conversation.prompt_text, ANSWERED: "" if looked.labelled else conversation.answer}
        for side, text in texts.items():
            for sentence in SENTENCE.split(text):
                if sentence.strip():
                    yield place, side, sentence


def _parts(sentences: Iterator[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    while part := [sentence for _, sentence in zip(range(AT_ONCE), sentences, strict=False)]:
        yield part
