"""Groups of people in the rows: which are named, how often, with which labels, in what tone, and how often refused.

What rows say of one group is compared with what they say of the others of its kind, each pair by an interval of the
difference; the intervals hold together (Bonferroni over all that are compared), so that at `confidence` none of them
misses. A gap is a fact of the data, not yet a fault: what explains it is for people to find. No row is a suspect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from luthier import tone
from luthier.conversation import SIDES
from luthier.errors import extra
from luthier.gaps import Gap, Sums, of_mean, of_means, of_shares
from luthier.groups import Finder, Named, read_groups
from luthier.prepare.checks.contract import Found, Looked
from luthier.prepare.privacy import masked
from luthier.records import FactTable
from luthier.refusals import declines
from luthier.settings import located
from luthier.settings.section import Count
from luthier.stats import wilson

MOST_LABELS = 10
MOST_SHOWN = 100
WIDE = 0.4
"""An interval of a difference of shares that is wider tells too little, whatever is within; of tones, twice that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of each row that names a group."""

    name: str
    values: NDArray[np.float64]
    """(n,)"""
    is_share: bool
    """Whether values are 0 or 1."""


@dataclass(frozen=True, slots=True)
class Compared:
    kind: str
    group: str
    other: str
    outcome: Outcome
    rows: NDArray[np.bool_]
    """(n,) Those that name the group, and not the other."""
    other_rows: NDArray[np.bool_]

    def gap(self, confidence: float) -> Gap:
        one, other = self.outcome.values[self.rows], self.outcome.values[self.other_rows]
        if self.outcome.is_share:
            return of_shares(int(one.sum()), len(one), int(other.sum()), len(other), confidence)
        return of_means(_sums(one), _sums(other), confidence)


Sureness = Annotated[float, Field(gt=0, lt=1)]


def groups(looked: Looked, terms: str | None = None, least: Count = 30, confidence: Sureness = 0.95) -> Found:
    """Which groups rows name in what is asked or answered, and what goes along with naming them.

    With labels: the share of each of the ten commonest, and the tone of what is asked. Else: the share of answers that
    decline, and their tone. The group's own words are taken out before the tone is told.

    Args:
        terms: A file of groups that adds to the shipped ones or replaces some; `terms/groups_en.txt` says its form.
        least: Of groups that fewer rows name no more is said than how many.
        confidence: That all intervals of gaps hold at once; of one group's own values, that each does.

    Raises:
        DataError: LU-D174, the file cannot be read.
    """
    finder = Finder(read_groups(located(terms, looked.folder) if terms else None))
    places, members, outcomes = _read(looked, finder)  # members: (n, groups) whether row i names group j
    if not len(places):
        return Found(notes=["no row names a group of the lists, which are English"])
    compared = list(_pairs(finder, members, outcomes, max(least, 2)))
    of_all = 1 - (1 - confidence) / max(len(compared), 1)
    gaps = [(one, one.gap(of_all)) for one in compared]
    tables = [
        _named(finder, members, looked.sides[places], len(looked)),
        _values(finder, members, outcomes, max(least, 2), confidence),
        *([_gaps(gaps)] if gaps else ()),
    ]
    return Found(tables=tables, notes=list(_notes(finder, members, gaps, max(least, 2))))


def _read(looked: Looked, finder: Finder) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[Outcome]]:
    """The rows that name a group, which they name, and what else is known of them."""
    places, members, answers, declined, tones = [], [], [], [], []
    with_tone = tone.available()
    for place, conversation in enumerate(looked):
        said = conversation.prompt_text if looked.labelled else conversation.answer
        text = said if looked.labelled else f"{conversation.prompt_text}\n{said}"
        names = {found.group for found in finder.find(text)}
        if not names:
            continue
        places.append(place)
        members.append(np.isin(np.arange(len(finder.names)), list(names)))
        answers.append(conversation.answer if looked.labelled else "")
        declined.append(bool(conversation.prompt) and not looked.labelled and declines(said))
        if with_tone:
            tones.append(tone.tone_of(_without(said, finder.find(said))))
    outcomes = []
    if looked.labelled:
        labels = [label for label, _ in Counter(answers).most_common(MOST_LABELS)]
        shown = labels[:1] if len(labels) == 2 else labels  # the other's share is what is left
        outcomes += [
            Outcome(f"label {masked(one)}", np.array([a == one for a in answers], float), True) for one in shown
        ]
    elif any(declined):
        outcomes.append(Outcome("declined", np.array(declined, float), True))
    if with_tone:
        outcomes.append(Outcome("tone of what is asked" if looked.labelled else "tone", np.array(tones), False))
    return np.array(places, dtype=np.int64), np.array(members), outcomes


def _without(text: str, found: Iterator[Named]) -> str:
    """The text with a plain word for each group: that of a slur or of `widow` is no tone of what is said."""
    parts, at = [], 0
    for one in found:
        if one.start >= at:
            parts += [text[at : one.start], "person"]
        at = max(at, one.end)
    return "".join((*parts, text[at:]))


def _pairs(finder: Finder, members: NDArray[np.bool_], outcomes: Sequence[Outcome], least: int) -> Iterator[Compared]:
    """Two groups of one kind, by the rows that name one of them: at least `least` each."""
    often = np.flatnonzero(members.sum(axis=0) >= least).tolist()
    for a, b in combinations(often, 2):
        (kind, group), (other_kind, other) = finder.names[a], finder.names[b]
        of_one, of_other = members[:, a] & ~members[:, b], members[:, b] & ~members[:, a]
        if kind == other_kind and min(of_one.sum(), of_other.sum()) >= least:
            for outcome in outcomes:
                yield Compared(kind, group, other, outcome, of_one, of_other)


def _sums(values: NDArray[np.float64]) -> Sums:
    return Sums(len(values), float(values.sum()), float((values**2).sum()))


def _named(finder: Finder, members: NDArray[np.bool_], sides: NDArray[np.int8], n: int) -> FactTable:
    rows = []
    for (kind, group), of in zip(finder.names, members.T, strict=True):
        if of.any():
            by_side = np.bincount(sides[of], minlength=len(SIDES)).tolist()
            rows.append((kind, group, int(of.sum()), round(int(of.sum()) / n, 4), *by_side))
    return FactTable(title="groups named", columns=("kind", "group", "rows", "share", *SIDES), rows=tuple(rows))


def _values(
    finder: Finder, members: NDArray[np.bool_], outcomes: Sequence[Outcome], least: int, confidence: float
) -> FactTable:
    rows: list[tuple[str | int | float, ...]] = []
    for (kind, group), of in zip(finder.names, members.T, strict=True):
        for outcome in outcomes if of.sum() >= least else ():
            sums = _sums(outcome.values[of])
            low, high = wilson(sums.total, sums.n, confidence) if outcome.is_share else of_mean(sums, confidence)
            rows.append((kind, group, outcome.name, sums.n, *(round(value, 4) for value in (sums.mean, low, high))))
    columns = ("kind", "group", "what", "rows", "value", "low", "high")
    return FactTable(title="what goes along with each group", columns=columns, rows=tuple(rows))


def _gaps(gaps: Sequence[tuple[Compared, Gap]]) -> FactTable:
    """Those that are shown to be there first, then the larger ones."""
    order = sorted(gaps, key=lambda found: (_says(*found) != "gap", -abs(found[1].value)))
    return FactTable(
        title="gaps between groups of a kind",
        columns=("kind", "group", "other", "what", "rows", "other rows", "gap", "low", "high", "says"),
        rows=tuple(
            (
                one.kind,
                one.group,
                one.other,
                one.outcome.name,
                int(one.rows.sum()),
                int(one.other_rows.sum()),
                *(round(value, 4) for value in gap),
                _says(one, gap),
            )
            for one, gap in order[:MOST_SHOWN]
        ),
    )


def _says(one: Compared, gap: Gap) -> str:
    if gap.low > 0 or gap.high < 0:
        return "gap"
    wide = gap.high - gap.low > (WIDE if one.outcome.is_share else 2 * WIDE)
    return "too few rows to say" if wide else "none shown"


def _notes(
    finder: Finder, members: NDArray[np.bool_], gaps: Sequence[tuple[Compared, Gap]], least: int
) -> Iterator[str]:
    counted = members.sum(axis=0)
    if few := [f"{finder.names[i][1]} ({counted[i]})" for i in np.flatnonzero((counted > 0) & (counted < least))]:
        yield f"named in fewer than {least} rows, too few to compare: {', '.join(few)}"
    if gaps:
        says = Counter(_says(*found) for found in gaps)
        yield (
            f"{len(gaps)} gaps were looked at, and their intervals hold together: {says['gap']} are there, "
            f"{says['none shown']} are not shown, for {says['too few rows to say']} the rows are too few "
            f"(the interval is wider than {WIDE:g}, of a tone {2 * WIDE:g})"
        )
    if not tone.available():
        yield f"the tone was not told: {extra('sentiment')}"
