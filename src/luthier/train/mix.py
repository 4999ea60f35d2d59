"""How often each example is met: weights become counts in each epoch, a pure function of (seed, epoch).

An example of weight w has a place u in [0, 1), drawn by seed; after e epochs it was met floor(e w + u) times. So over a
run it is met as often as its weight says, but for less than one. Examples of one weight have their places spread
evenly, so that every epoch meets equally many of them, but for one: of weight 0.5 one half, and then the other half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIX = 0x313
"""Makes the places another draw than the orders of the epochs."""


class Mix:
    def __init__(self, n: int, weights: NDArray[np.float32] | None, epochs: int, seed: int) -> None:
        """Weights (n,) of the examples; None: each is met once an epoch."""
        self._n, self._weights = n, None if weights is None else weights.astype(np.float64).round(6)
        self._members: tuple[int, NDArray[np.int64]] | None = None  # of the last epoch that was asked for
        sizes = [n] * epochs
        if self._weights is not None:
            self._places = _places(self._weights, seed)
            sizes = [int(self._counts(epoch).sum()) for epoch in range(epochs)]
        self._before = np.cumsum([0, *sizes])

    def before(self, epoch: int) -> int:
        """Examples that are met before an epoch, repeated ones counted each time."""
        return int(self._before[epoch])

    def epoch_of(self, i: int) -> int:
        """The epoch in which the run's example number i is met."""
        return int(np.searchsorted(self._before, i, side="right")) - 1

    def members(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those at some places of the list of all that are met in an epoch, by number."""
        if self._weights is None:
            return places
        if self._members is None or self._members[0] != epoch:
            self._members = epoch, np.repeat(np.arange(self._n), self._counts(epoch))
        return self._members[1][places]

    def _counts(self, epoch: int) -> NDArray[np.int64]:
        """(n,) How often each is met in the epoch."""
        assert self._weights is not None
        after, before = (np.floor(e * self._weights + self._places) for e in (epoch + 1, epoch))
        return (after - before).astype(np.int64)


def _places(weights: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(n,) Where each begins in [0, 1): those of one weight spread evenly, in an order drawn by seed."""
    places = np.zeros(len(weights))
    for k, weight in enumerate(np.unique(weights)):
        of = np.flatnonzero(weights == weight)
        places[np.random.default_rng([seed, MIX, k]).permutation(of)] = (np.arange(len(of)) + 0.5) / len(of)
    return places
