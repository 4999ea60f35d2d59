"""Labels: rows that a model of the other rows would label otherwise, with confidence.

Confident learning (Northcutt, Jiang and Chuang 2021): out-of-fold probabilities and each class's own threshold say *how
many* labels are wrong; which ones is said by rank. The rank is by how many times likelier another label is than the
given one, which no other class's probability dilutes as their margin does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from luthier.embed import available, embed
from luthier.prepare.checks.classifier import Floats, Places, out_of_fold
from luthier.prepare.checks.contract import Found, Looked, Suspect
from luthier.prepare.checks.vectors import MOST_ROWS, by_spelling, drawn, texts_of, told
from luthier.prepare.privacy import masked
from luthier.prepare.split import group
from luthier.records import FactTable
from luthier.settings.section import Count

CODE = "LU-D176"
STRENGTH = 3.0
LEAST_SKILL = 0.2
"""Cohen's kappa of out-of-fold labels and given ones; what is below is "slight agreement" to Landis and Koch (1977)."""
MOST_NUMBERS = 20_000_000
"""Rows times classes."""
SHOWN_CLASSES = 50
LESS = "labels were not checked: "

Folds = Annotated[int, Field(ge=2, le=50)]


def labels(looked: Looked, folds: Folds = 5, rows: Count = MOST_ROWS) -> Found:
    """Args:
    folds: Each row is judged by a model of the other folds; a label of fewer rows is not judged.
    rows: At most so many are looked at.
    """
    if not looked.labelled:
        return Found(notes=[LESS + "the answers are no labels"])
    given = looked.rows.answer[looked.numbers]
    found, label_of, counts = np.unique(given, return_inverse=True, return_counts=True)
    judged = np.flatnonzero(counts[label_of] >= folds)
    if len(np.unique(label_of[judged])) < 2:
        return Found(notes=[f"{LESS}fewer than two labels have {folds} rows"])
    places = drawn(judged, min(rows, MOST_NUMBERS // len(found)), looked.seed)
    _, first, label = np.unique(given[places], return_index=True, return_inverse=True)
    names = [c.answer for c in looked.rows.each(looked.numbers[places[first]])]
    texts = texts_of(looked, places)
    features = embed(texts) if available() else by_spelling(texts)
    groups, _ = group(looked.rows, looked.numbers[places], 1.0)
    likely = out_of_fold(features, label, groups, STRENGTH, folds, looked.seed)
    notes = told(len(places), len(judged))
    if len(judged) < len(looked):
        notes.append(f"{len(looked) - len(judged)} rows, whose labels have fewer than {folds}, were not judged")
    if not available():
        notes.append("texts were compared by spelling: with the extra meaning, fewer suspects are wrong")
    table = _by_class(names, label, likely)
    if (skill := kappa(label, likely.argmax(axis=1), len(names))) < LEAST_SKILL:
        said = f"the labels cannot be told from the texts (agreement beyond chance {skill:.2f}): none is suspected"
        return Found(notes=[*notes, said], tables=[table])
    doubts = doubt(label, likely)
    most = np.argsort(-doubts, kind="stable")[: wrong(label, likely)]
    notes.append(f"about {len(most) / len(places):.1%} of the labels seem wrong")

    def suspect(i: int) -> Suspect:
        own, other = int(label[i]), int(likely[i].argmax())
        odds = f"{likely[i, other]:.2f} against {likely[i, own]:.2f}"
        why = f"labelled '{names[own]}'; by the other rows it is '{names[other]}' ({odds})"
        return Suspect(int(places[i]), float(doubts[i]), why)

    suspects = [suspect(i) for i in np.sort(most[doubts[most] > 0]).tolist()]
    return Found(suspects, CODE, "mend the label, or keep it if the text is only an unusual one", [table], notes)


def wrong(label: Places, likely: Floats) -> int:
    """How many labels are off the diagonal of the confident joint.

    A row counts for the likeliest of the classes that are at least as likely of it as of their own rows on average.
    """
    n_classes = likely.shape[1]
    own = np.bincount(label, likely[np.arange(len(label)), label], n_classes) / np.bincount(label, minlength=n_classes)
    confident = np.where(likely >= own, likely, -1)
    return int(((confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != label)).sum())


def doubt(label: Places, likely: Floats) -> NDArray[np.float32]:
    """(n,) 0 where the given label is the likeliest, near 1 where another is many times likelier."""
    found: NDArray[np.float32] = 1 - likely[np.arange(len(label)), label] / likely.max(axis=1)
    return found


def kappa(one: Places, other: Places, n_classes: int) -> float:
    """Agreement beyond chance (Cohen 1960)."""
    chance = float(np.bincount(one, minlength=n_classes) @ np.bincount(other, minlength=n_classes)) / len(one) ** 2
    return (float((one == other).mean()) - chance) / (1 - chance) if chance < 1 else 0.0


def _by_class(names: Sequence[str], label: Places, likely: Floats) -> FactTable:
    found = likely.argmax(axis=1)
    rows = []
    for k, name in enumerate(names):
        of = found[label == k]
        confused = np.bincount(of[of != k], minlength=len(names))
        most = masked(names[int(confused.argmax())]) if confused.any() else None
        rows.append((masked(name), len(of), round(float((of == k).mean()), 3), most, int(confused.max())))
    rows.sort(key=lambda row: row[2])
    columns = ("label", "rows", "accuracy", "most confused with", "times")
    return FactTable(title="labels, the hardest to tell first", columns=columns, rows=tuple(rows[:SHOWN_CLASSES]))
