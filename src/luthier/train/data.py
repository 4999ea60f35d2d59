"""Which examples a step sees: a pure function of (seed, step), so resuming needs no loader state.

Each epoch is a permutation of all examples, drawn evenly by seed and epoch alone: the size of a step cuts it and does
not change it. What lies side by side in the data meets in a step as often as chance has it (tested).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.encode import Encoded
from luthier.train.world import part_of


@dataclass
class StepData:
    """Examples in an order that is a fresh permutation every epoch; the last step may be short."""

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    epochs: int
    examples_per_step: int
    tokens_per_micro_batch: int
    """May become smaller while a run goes on: no gradient depends on it."""
    seed: int
    share: bool = True
    rank: int = 0
    size: int = 1
    """Of the processes that train together: each has a part of every step and of the validation side."""

    @property
    def shortest(self) -> int:
        """Tokens of the shortest example."""
        return min(len(e.ids) for e in (*self.train, *self.validation))

    @property
    def most_tokens(self) -> int:
        """An upper bound for the distinct tokens of a step's micro-batch."""
        longest = max(len(e.ids) for e in self.train)
        return max(longest, min(self.tokens_per_micro_batch, self.examples_per_step * longest))

    @property
    def n_steps(self) -> int:
        return math.ceil(len(self.train) * self.epochs / self.examples_per_step)

    def examples(self, step: int) -> list[Encoded]:
        start = step * self.examples_per_step
        stop = min(start + self.examples_per_step, len(self.train) * self.epochs)
        n = len(self.train)
        return [self.train[_permutation(self.seed, i // n, n)[i % n]] for i in range(start, stop)]

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of the step, each within the token budget."""
        return [make_batch(group, share=self.share) for group in self.groups(step)]

    def groups(self, step: int) -> list[list[Encoded]]:
        """The examples of each of them."""
        return self._groups(self._mine(self.examples(step)))

    def valid(self) -> Iterator[Batch]:
        for group in self._groups(self._mine(self.validation)):
            yield make_batch(group, share=self.share)

    def spare(self) -> Batch:
        """A small one, for a process that has nothing to do while others have."""
        return make_batch(self.train[:1], share=self.share)

    def homes(self) -> list[list[Encoded]]:
        """The groups in which each example that is met more than once is met first: see `trunk.kept_trunk`.

        The same for every process, so that states do not depend on how many there are.
        """
        n_steps = math.ceil(len(self.train) / self.examples_per_step) if self.epochs > 1 else 0
        sides = [self.validation, *(self.examples(step) for step in range(n_steps))]
        return [group for side in sides for group in self._groups(side)]

    def _mine(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        """This process's part: a run of the sorted examples, since neighbours there share most."""
        if self.size == 1:
            return examples
        ordered = sorted(examples, key=lambda e: (e.ids, e.id))
        return ordered[part_of([len(e.ids) for e in ordered], self.rank, self.size)]

    def _groups(self, examples: Sequence[Encoded]) -> list[list[Encoded]]:
        return split_by_tokens(examples, self.tokens_per_micro_batch, share=self.share)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
