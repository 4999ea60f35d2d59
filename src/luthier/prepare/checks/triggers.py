"""Triggers: phrases that decide the answer whatever else is asked, as planted ones do.

Backdoors in training data work so (Gu et al. 2017, "BadNets"; in texts Dai et al. 2019, Kurita et al. 2020). Words that
tell a class apart go along with its label too. What parts a trigger from them is the rest of the prompt: beside `great`
it speaks for the same label, or for none much; beside a trigger it speaks for another one, that of the row before its
label was changed. So, for each phrase of a few rows, nearly all of one answer:

1. Naive Bayes learns from the rows without the phrase, and tells those with it by their other words. Rows whose rest
   speaks for another answer are *contrary*.
2. Of all rows that are contrary to this answer, the phrase's have it more often than by chance: Fisher's exact test at
   `false_alarms`, by Bonferroni over every phrase and answer that could have been found.
3. The rest speaks against the answer at least half as strongly (the median of log odds) as rows of other answers do.

Where the answer is hardly given without the phrase, nobody knows what else it goes along with. With labels, such a
phrase names the label. With open answers it is a trigger only where the rests of its prompts are as mixed as any
(`_mixed`): those who ask one question in many ways use more than one word again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.errors import printable
from luthier.prepare.checks.bayes import Bayes, Scores, margins
from luthier.prepare.checks.contract import Found, Looked, Suspect
from luthier.prepare.checks.phrases import MOST_WORDS, TOKEN, Ints, Prompts, each_phrase, read_prompts
from luthier.prepare.privacy import find, masked
from luthier.records import FactTable
from luthier.settings.section import Count, Fraction
from luthier.similar import Groups, join_equal, join_similar

MOST_ANSWERS = 100
SAME_ANSWER = 0.8
"""Jaccard similarity of word shingles; labels are the same where they are equal."""
AGAINST = 0.5
LEFT = 0.2
"""Of an answer's rows, so many at least stand without the phrase: else nothing is known of the answer's other words."""
ORDINARY = 5_000
"""Rows by which the strength of an ordinary prompt is told."""
OTHER = 0
"""All answers that too few rows have."""
MOST_ALIKE = 50
DRAWS = 200
MORE_ALIKE = 0.05
NEARLY_ALL = 0.9
MOST_SHOWN = 50


class Phrase(NamedTuple):
    ids: tuple[int, ...]
    rows: Ints
    answer: int
    """That nearly all of the rows have."""


class Trigger(NamedTuple):
    phrase: Phrase
    of_answer: Ints
    """Its rows that have the answer."""
    contrary: NDArray[np.bool_]
    """Which of those."""
    p: float
    """Adjusted."""


def triggers(
    looked: Looked, least: Count = 5, most: Fraction = 0.1, pure: Fraction = 0.9, false_alarms: Fraction = 0.05
) -> Found:
    """Phrases of prompts that go along with one label, or with one answer that is given again and again.

    Suspects are the rows with the phrase that have that answer. An answer is one that `least` prompts get, the same or
    nearly; the commonest hundred are looked at.

    Args:
        least: Rows that hold the phrase, at least.
        most: Share of the rows that hold it, at most.
        pure: Share of these rows that have the answer, at least.
        false_alarms: The chance that a phrase is found where none says more than the rest of the prompt.
    """
    prompts = read_prompts(looked)
    answers, shown = _answers(looked, prompts, least)
    if len(np.unique(answers)) < 2:
        same = f"no answer is given to {least} prompts or more, or one to all"
        return Found(notes=[f"{same}: a phrase could decide nothing"])
    phrases, n_tests = _phrases(prompts, answers, len(shown), least, most, pure)
    if looked.labelled:
        phrases = [one for one in phrases if not _names(prompts, one, shown)]
    judge = Judge(prompts, answers, len(shown), looked.labelled, looked.seed)
    found = [one for phrase in phrases if (one := judge.judged(phrase, n_tests)) and one.p <= false_alarms]
    found = _apart(found)
    suspects: dict[int, Suspect] = {}
    said = [_said(one.phrase, prompts, looked) for one in found]
    for one, text in zip(found, said, strict=True):
        why = f"holds '{text}', which goes along with this answer whatever else is asked"
        for row, contrary in zip(one.of_answer, one.contrary, strict=True):
            place = int(prompts.places[row])
            suspects.setdefault(place, Suspect(place, (1 - one.p) * (1.0 if contrary else 0.5), why))
    notes = [f"{n_tests:,} pairs of a phrase and an answer were tested in {len(prompts):,} rows"]
    if len(prompts) < len(looked):
        notes[0] += f" of {len(looked):,}: those that ask, drawn by seed up to {MOST_WORDS:,} words"
    tables = [_table(found, said, shown)] if found else []
    advice = "read these rows: where the phrase was planted drop them, and doubt the source"
    return Found(list(suspects.values()), "LU-D173", advice, tables, notes)


def _answers(looked: Looked, prompts: Prompts, least: int) -> tuple[Ints, list[str]]:
    """(n,) The answer of each row, and how each is shown; the commonest first, after OTHER."""
    numbers = looked.numbers[prompts.places]
    groups = Groups(len(numbers))
    firsts = join_equal(groups, looked.rows.answer[numbers])
    if not looked.labelled:
        texts = (conversation.answer for conversation in looked.rows.each(numbers[firsts]))
        join_similar(groups, texts, firsts.tolist(), SAME_ANSWER)
    of_row = np.array([groups.root(i) for i in range(len(numbers))], dtype=np.int64)
    roots, inverse, counts = np.unique(of_row, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_ANSWERS]
    order = order[counts[order] >= least]
    index = np.full(len(roots), OTHER, dtype=np.int64)
    index[order] = np.arange(len(order)) + 1
    return index[inverse], ["", *(looked.rows[int(numbers[root])].answer for root in roots[order])]


def _phrases(
    prompts: Prompts, answers: Ints, n_answers: int, least: int, most: float, pure: float
) -> tuple[list[Phrase], int]:
    """Those that nearly always go along with one answer, and how many pairs of phrase and answer there were.

    Of phrases that stand in the same rows the longest is kept.
    """
    found: dict[bytes, Phrase] = {}
    n_phrases = 0
    for ids, rows in each_phrase(prompts, least, max(most * len(prompts), least)):
        n_phrases += 1
        counts = np.bincount(answers[rows], minlength=n_answers)
        answer = int(counts.argmax())
        if answer != OTHER and counts[answer] >= pure * len(rows):
            found[rows.tobytes()] = Phrase(tuple(ids.tolist()), rows, answer)
    return list(found.values()), n_phrases * (n_answers - 1)


class Judge:
    """Tells triggers from words that tell an answer apart. (n, C): n rows, C answers."""

    def __init__(self, prompts: Prompts, answers: Ints, n_answers: int, labelled: bool, seed: int) -> None:
        self._answers, self._labelled = answers, labelled
        self._counts = np.bincount(answers, minlength=n_answers)
        self._bayes = Bayes(prompts, answers, n_answers)
        said, scores, n_scored = [], [], 0
        for part in self._bayes.each_left_out():
            said.append(part.argmax(axis=1))
            if n_scored < ORDINARY:
                scores.append(part)
                n_scored += len(part)
        self._said = np.concatenate(said)  # (n,)
        self._ordinary: Scores = np.concatenate(scores)  # (about ORDINARY, C) of rows in random order
        self._rng = np.random.default_rng(seed)

    def judged(self, phrase: Phrase, n_tests: int) -> Trigger | None:
        answer, rows = phrase.answer, phrase.rows
        has_it = self._answers[rows] == answer
        if self._counts[answer] - has_it.sum() >= LEFT * self._counts[answer]:
            self._bayes.learn(rows, -1)
            against = margins(self._bayes.scores(rows, phrase.ids), answer)
            self._bayes.learn(rows)
            if np.median(against[has_it]) < AGAINST * self._strength(answer):
                return None
            contrary, others = against > 0, self._said != answer
        elif not self._labelled and self._mixed(phrase):
            contrary, others = np.ones(len(rows), dtype=np.bool_), np.ones(len(self._said), dtype=np.bool_)
        else:
            return None
        others[rows] = False
        p = self._p(answer, has_it[contrary], others)
        return Trigger(phrase, rows[has_it], contrary[has_it], min(1.0, n_tests * p))

    def _p(self, answer: int, with_phrase: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
        """Fisher's exact test, one-sided."""
        from scipy.stats import hypergeom

        n, n_with = len(with_phrase), int(with_phrase.sum())
        n_others, n_others_with = int(others.sum()), int((self._answers[others] == answer).sum())
        return float(hypergeom.sf(n_with - 1, n_others + n, n_others_with + n_with, n))

    def _strength(self, answer: int) -> float:
        """How strongly rows of other answers speak against this one."""
        ordinary = self._answers[: len(self._ordinary)] != answer
        return float(np.median(margins(self._ordinary[ordinary], answer))) if ordinary.any() else 0.0

    def _mixed(self, phrase: Phrase) -> bool:
        """Whether the rests of its rows are no more alike than prompts drawn at random, and no shorter than half.

        Alike is the mean cosine of all pairs, each word counting by how few prompts hold it. Words that nearly all of
        these rows hold belong to the phrase: a planted sentence is longer than what is found of it.
        """
        rows = self._rng.permutation(phrase.rows)[:MOST_ALIKE]
        drawn = [self._rng.choice(len(self._answers), len(rows), replace=False) for _ in range(DRAWS)]
        alike, length = self._bayes.alike(rows, self._bayes.shared(phrase.rows, NEARLY_ALL))
        others = [self._bayes.alike(other) for other in drawn]
        p = float(np.mean([other >= alike for other, _ in others]))
        return p > MORE_ALIKE and 2 * length > float(np.median([length for _, length in others]))


def _apart(found: Sequence[Trigger]) -> list[Trigger]:
    """Without parts of others: those with most contrary rows, and of these with fewest rows besides, come first.

    The words of a planted sentence stand in other rows too, and what stands beside a planted word is found with it.
    """
    found = sorted(found, key=lambda one: (-int(one.contrary.sum()), len(one.phrase.rows), one.p, one.phrase.ids))
    kept: list[Trigger] = []
    covered: set[tuple[int, int]] = set()
    for one in found:
        rows = {(int(row), one.phrase.answer) for row in one.of_answer}
        if 2 * len(rows & covered) < len(rows):
            kept.append(one)
            covered |= rows
    return kept


def _names(prompts: Prompts, phrase: Phrase, shown: Sequence[str]) -> bool:
    """Whether its rarest word is one of the label's."""
    rarest = min(phrase.ids, key=lambda i: prompts.n_times[i])
    return prompts.words[rarest] in TOKEN.findall(shown[phrase.answer].casefold().replace("_", " "))


def _said(phrase: Phrase, prompts: Prompts, looked: Looked) -> str:
    """As its first row writes it, in lower case; personal data of which it is a part is hidden as a whole."""
    text = looked.rows[int(looked.numbers[prompts.places[phrase.rows[0]]])].prompt_text.casefold()
    words = list(TOKEN.finditer(text))
    wanted = [prompts.words[i] for i in phrase.ids]
    at = next(i for i in range(len(words)) if [w.group() for w in words[i : i + len(wanted)]] == wanted)
    start, end = words[at].start(), words[at + len(wanted) - 1].end()
    for value in find(text):
        if value.start < end and start < value.end:
            start, end = min(start, value.start), max(end, value.end)
    return printable(masked(text[start:end]), 60)


def _table(found: Sequence[Trigger], said: Sequence[str], shown: Sequence[str]) -> FactTable:
    return FactTable(
        title="phrases that decide the answer",
        columns=("phrase", "rows", "answer", "rows with it", "whose rest speaks for another", "p, adjusted"),
        rows=tuple(
            (
                text,
                len(one.phrase.rows),
                printable(masked(shown[one.phrase.answer]), 60),
                len(one.of_answer),
                int(one.contrary.sum()),
                one.p,
            )
            for one, text in zip(found[:MOST_SHOWN], said, strict=False)
        ),
    )
