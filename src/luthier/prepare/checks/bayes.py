"""Which answer the words of a prompt speak for: naive Bayes over the words that are there, each counted once.

Multinomial, with additive smoothing (Manning, Raghavan & Schütze 2008, chapter 13). Rows can be forgotten and learned
again, so that a row is told by what all others say.

Shapes: n rows, k of them, V words, C answers, t words of k rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.prepare.checks.phrases import Ints, Prompts

SMOOTHING = 0.5
AT_ONCE = 1 << 14
"""Words."""
Scores = NDArray[np.float64]


class Bayes:
    """Takes 4 V C bytes of memory."""

    def __init__(self, prompts: Prompts, answers: Ints, n_answers: int) -> None:
        self.answers = answers
        once = np.unique(prompts.rows * len(prompts.words) + prompts.ids)
        rows, self._ids = np.divmod(once, len(prompts.words))
        self._starts = np.searchsorted(rows, np.arange(len(prompts) + 1))  # (n + 1,)
        self._holding = np.zeros((len(prompts.words), n_answers), dtype=np.float32)  # (V, C) rows that hold a word
        self._words = np.zeros(n_answers)  # (C,) their sum over the words
        self._rows = np.zeros(n_answers)  # (C,)
        self.learn(np.arange(len(prompts)))

    def learn(self, rows: Ints, times: int = 1) -> None:
        """Times -1 forgets."""
        ids, of = self._words_of(rows)
        answers = self.answers[rows]
        np.add.at(self._holding, (ids, answers[of]), times)
        np.add.at(self._words, answers[of], times)
        np.add.at(self._rows, answers, times)

    def scores(self, rows: Ints, without: Sequence[int] = (), left_out: bool = False) -> Scores:
        """(k, C) Log probability of each row's words and each answer; -inf for an answer of no row.

        Args:
            without: Words that are not read.
            left_out: Each row is told as if it had not been learned.
        """
        ids, of = self._words_of(rows)
        read = ~np.isin(ids, without)
        ids, of = ids[read], of[read]
        answers, k = self.answers[rows], len(rows)
        holding = self._holding[ids].astype(np.float64)  # (t, C)
        words, n_rows = np.tile(self._words, (k, 1)), np.tile(self._rows, (k, 1))  # (k, C)
        if left_out:
            holding[np.arange(len(ids)), answers[of]] -= 1
            words[np.arange(k), answers] -= self._starts[rows + 1] - self._starts[rows]
            n_rows[np.arange(k), answers] -= 1
        sums = np.zeros_like(words)
        np.add.at(sums, of, np.log(holding + SMOOTHING))
        lengths = np.bincount(of, minlength=k)[:, None]
        with np.errstate(divide="ignore"):
            return sums - lengths * np.log(words + SMOOTHING * len(self._holding)) + np.log(n_rows)

    def each_left_out(self) -> Iterator[Scores]:
        """(k, C) of all rows, some at once."""
        row = 0
        while row < len(self.answers):
            end = max(int(np.searchsorted(self._starts, self._starts[row] + AT_ONCE)) - 1, row + 1)
            yield self.scores(np.arange(row, min(end, len(self.answers))), left_out=True)
            row = end

    def shared(self, rows: Ints, share: float) -> Ints:
        """The words that so many of k rows hold."""
        ids, counts = np.unique(self._words_of(rows)[0], return_counts=True)
        return ids[counts >= share * len(rows)]

    def alike(self, rows: Ints, without: Sequence[int] | Ints = ()) -> tuple[float, float]:
        """Of k >= 2 rows: the mean cosine of all pairs, words weighted by inverse document frequency; words in a row.

        An empty row is like none.
        """
        ids, of = self._words_of(rows)
        read = ~np.isin(ids, without)
        ids, of, k = ids[read], of[read], len(rows)
        weights = np.log(self._rows.sum() / self._holding[ids].sum(axis=1))
        norms = np.sqrt(np.bincount(of, weights**2, minlength=k))
        columns = np.unique(ids, return_inverse=True)[1]
        sums = np.bincount(columns, weights / np.where(norms > 0, norms, 1)[of])  # over the rows, of each word
        return float((sums @ sums - (norms > 0).sum()) / (k * (k - 1))), len(ids) / k

    def _words_of(self, rows: Ints) -> tuple[Ints, Ints]:
        """(t,) The words of these rows, and which of the k rows each is of."""
        lengths = self._starts[rows + 1] - self._starts[rows]
        of = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self._ids[self._starts[rows][of] + within], of


def margins(scores: Scores, answer: int) -> NDArray[np.float64]:
    """(k,) How much more the words speak for the likeliest other answer: below 0, for this one."""
    found: NDArray[np.float64] = np.delete(scores, answer, axis=1).max(axis=1) - scores[:, answer]
    return found
