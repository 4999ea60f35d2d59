"""Documents: how encoded rows become examples, when texts are longer or much shorter than what is learned from at once.

    n rows, W tokens of a window

- A row is an example. A document of more than W tokens is several: windows, each of which begins with the last token of
  the one before, so that every token is learned exactly once and none without a token before it.
- Joined, the documents lie one after the other in an order drawn by seed, and the windows are cut of all of them: full
  ones, whose tokens see those of the documents before.

Nothing is made before it is asked for; at hand are up to 32 bytes a row. This module knows nothing of steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import overload

import numpy as np
from numpy.typing import NDArray

from luthier.encode import Encoded
from luthier.encoded import NO_TOKENS, EncodedRows, unpacked

Ints = NDArray[np.int64]
JOIN = 0x10D0
"""Makes the order of joined documents another draw than those of the epochs."""


def n_windows(lengths: Ints, most: int) -> Ints:
    """(n,) Windows of `most` tokens in documents of these lengths (n,)."""
    step = _step(most)
    return np.maximum((lengths - 1 + step - 1) // step, 1)


def _step(most: int) -> int:
    """From the beginning of a window to that of the next one."""
    return max(most - 1, 1)


def windows(encoded: Encoded, most: int | None) -> list[Encoded]:
    """A document's windows of `most` tokens; None: the whole."""
    n = int(n_windows(np.array([len(encoded.ids)]), most)[0]) if most else 1
    if n == 1 or most is None:
        return [encoded]
    starts = range(0, n * _step(most), _step(most))
    cut = ((start, start + _step(most) + 1) for start in starts)
    return [
        Encoded(encoded.ids[a:b], encoded.learn[a:b], _of_window(encoded.id, k), encoded.source)
        for k, (a, b) in enumerate(cut)
    ]


def _of_window(id: str, k: int) -> str:
    return f"{id} #{k + 1}" if k else id


def examples_of(rows: EncodedRows, *, joined: bool = False, seed: int = 0) -> Examples:
    """The rows as examples, with the documents joined or each by itself."""
    if not joined or not rows.max_tokens:
        return Separate(rows)
    documents = rows.is_document
    weights = np.unique(rows.weights[documents])  # of one weight each: a window is met as often as its documents
    streams = [Joined(rows, np.flatnonzero(documents & (rows.weights == w)), seed) for w in weights]
    return Chained([*streams, Separate(rows, np.flatnonzero(~documents))])


class Examples(Sequence[Encoded]):
    """Examples that are made when they are asked for."""

    @property
    def lengths(self) -> Ints:
        """(len,) Tokens of each."""
        raise NotImplementedError

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """(len,) How often each is met in an epoch; None: once."""
        raise NotImplementedError

    def make(self, i: int) -> Encoded:
        """The example number i, which is not negative."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> Encoded: ...
    @overload
    def __getitem__(self, i: slice) -> list[Encoded]: ...
    def __getitem__(self, i: int | slice) -> Encoded | list[Encoded]:
        numbers = range(len(self))[i]
        return self.make(numbers) if isinstance(numbers, int) else [self.make(k) for k in numbers]

    def __iter__(self) -> Iterator[Encoded]:
        return map(self.make, range(len(self)))


class Separate(Examples):
    """Each row by itself, a longer document in windows."""

    def __init__(self, rows: EncodedRows, some: Ints | None = None) -> None:
        self._rows, self._some = rows, some
        lengths = rows.lengths if some is None else rows.lengths[some]
        self._of_row = lengths
        self._ends: Ints | None = None  # of each row's windows, where any has several
        if rows.max_tokens and len(lengths) and lengths.max() > rows.max_tokens:
            documents = rows.is_document if some is None else rows.is_document[some]
            counts = np.where(documents, n_windows(lengths, rows.max_tokens), 1)
            self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self._of_row) if self._ends is None else int(self._ends[-1])

    @cached_property
    def lengths(self) -> Ints:
        if self._ends is None:
            return self._of_row
        assert self._rows.max_tokens
        counts = np.diff(self._ends, prepend=0)
        step = _step(self._rows.max_tokens)
        lengths = np.full(len(self), step + 1)
        lengths[self._ends - 1] = self._of_row - (counts - 1) * step
        return lengths

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        weights = self._rows.weights if self._some is None else self._rows.weights[self._some]
        if (weights == 1).all():
            return None
        return weights if self._ends is None else np.repeat(weights, np.diff(self._ends, prepend=0))

    def make(self, i: int) -> Encoded:
        row, k, n = i, 0, 1
        if self._ends is not None:
            row = int(np.searchsorted(self._ends, i, side="right"))
            first = int(self._ends[row - 1]) if row else 0
            k, n = i - first, int(self._ends[row]) - first
        number = row if self._some is None else int(self._some[row])
        id, source = self._rows.name(number)
        if n == 1:
            return unpacked(self._rows.tokens(number), id, source)
        assert self._rows.max_tokens
        start = k * _step(self._rows.max_tokens)
        tokens = self._rows.tokens(number, start, start + _step(self._rows.max_tokens) + 1)
        return unpacked(tokens, _of_window(id, k), source)


class Joined(Examples):
    """Documents of one weight, one after the other, cut into windows."""

    def __init__(self, rows: EncodedRows, documents: Ints, seed: int) -> None:
        assert rows.max_tokens and len(documents)
        self._rows, self._step = rows, _step(rows.max_tokens)
        self._documents = np.random.default_rng([seed, JOIN]).permutation(documents)
        self._ends = np.cumsum(rows.lengths[self._documents])  # of each document among all tokens
        self._n = int(n_windows(self._ends[-1:], rows.max_tokens)[0])

    def __len__(self) -> int:
        return self._n

    @cached_property
    def lengths(self) -> Ints:
        lengths = np.full(self._n, self._step + 1)
        lengths[-1] = self._ends[-1] - (self._n - 1) * self._step
        return lengths

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        weight = self._rows.weights[self._documents[0]]
        return None if weight == 1 else np.full(self._n, weight)

    def make(self, i: int) -> Encoded:
        start = i * self._step
        stop = min(start + self._step + 1, int(self._ends[-1]))
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        parts = [NO_TOKENS]
        for n in range(first, last + 1):
            begins = int(self._ends[n - 1]) if n else 0
            parts.append(self._rows.tokens(int(self._documents[n]), max(start - begins, 0), stop - begins))
        (id, source), (_, end) = (self._rows.name(int(self._documents[n])) for n in (first, last))
        named = source if first == last else f"{source} to {end}"
        return unpacked(np.concatenate(parts), f"{id} @{i}", named)


class Chained(Examples):
    """Examples of several kinds, one kind after the other."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def lengths(self) -> Ints:
        return np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in self._parts)])

    @cached_property
    def weights(self) -> NDArray[np.float32] | None:
        if all(part.weights is None for part in self._parts):
            return None
        ones = (np.ones(len(part), dtype=np.float32) if part.weights is None else part.weights for part in self._parts)
        return np.concatenate([*ones])

    def make(self, i: int) -> Encoded:
        n = bisect_right(self._ends, i)
        return self._parts[n].make(i - (self._ends[n - 1] if n else 0))
