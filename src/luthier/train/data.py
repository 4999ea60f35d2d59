"""Which examples a step sees: a pure function of (seed, step), so resuming needs no loader state.

Each epoch is a permutation of the examples that are met in it, drawn evenly by seed and epoch alone: the size of a step
cuts it and does not change it. What lies side by side in the data meets in a step as often as chance has it (tested).
Examples are made when a step asks for them; in memory are up to 16 bytes of each for the orders of two epochs, and
24 more where some are met more or less often than once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.documents import Examples
from luthier.encode import Encoded
from luthier.train.mix import Mix
from luthier.train.world import part_of

AT_ONCE = 1 << 22
"""Tokens that are sorted together, of a side: more validation rows are validated part by part."""


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

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each training example."""
        return _lengths(self.train)

    @cached_property
    def shortest(self) -> int:
        """Tokens of the shortest example."""
        return int(min(self.lengths.min(), _lengths(self.validation).min()))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest training example."""
        return int(self.lengths.max())

    @property
    def most_tokens(self) -> int:
        """An upper bound for the distinct tokens of a step's micro-batch."""
        return max(self.longest, min(self.tokens_per_micro_batch, self.examples_per_step * self.longest))

    @property
    def n_steps(self) -> int:
        return math.ceil(self._mix.before(self.epochs) / self.examples_per_step)

    @property
    def steps_per_epoch(self) -> int:
        """Of the first one; later ones have a step more or less where weights are not whole."""
        return math.ceil(self._mix.before(1) / self.examples_per_step)

    def numbers(self, step: int) -> list[int]:
        """Which training examples the step sees."""
        start = step * self.examples_per_step
        stop = min(start + self.examples_per_step, self._mix.before(self.epochs))
        found: list[int] = []
        while start < stop:
            epoch = self._mix.epoch_of(start)
            began, ends = self._mix.before(epoch), self._mix.before(epoch + 1)
            order = _permutation(self.seed, epoch, ends - began)[start - began : min(stop, ends) - began]
            found += self._mix.members(epoch, order).tolist()
            start += len(order)
        return found

    def examples(self, step: int) -> list[Encoded]:
        return [self.train[i] for i in self.numbers(step)]

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of the step, each within the token budget."""
        return [make_batch(group, share=self.share) for group in self.groups(step)]

    def groups(self, step: int) -> list[list[Encoded]]:
        """The examples of each of them."""
        return self._groups(self._mine(self.examples(step)))

    def most_groups(self) -> tuple[int, int]:
        """The most micro-batches of a step, and a step that has them. Looks at those alone that may have several."""
        most = 1, 0
        for step in range(self.n_steps):
            if self.lengths[self.numbers(step)].sum() > self.tokens_per_micro_batch:
                most = max(most, (len(self.groups(step)), step))
        return most

    def valid(self) -> Iterator[Batch]:
        for part in _parts(self.validation):
            for group in self._groups(self._mine(part)):
                yield make_batch(group, share=self.share)

    def spare(self) -> Batch:
        """A small one, for a process that has nothing to do while others have."""
        return make_batch([self.train[0]], share=self.share)

    def homes(self) -> list[list[Encoded]]:
        """The groups in which each example that is met more than once is met first: see `trunk.kept_trunk`.

        The same for every process, so that states do not depend on how many there are. None where they hold more
        than AT_ONCE tokens, which would have to be known before the first step.
        """
        n_tokens = _lengths(self.validation).sum() + (self.lengths.sum() if self.epochs > 1 else 0)
        if n_tokens > AT_ONCE:
            return []
        n_steps = self.steps_per_epoch if self.epochs > 1 else 0
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

    @cached_property
    def _mix(self) -> Mix:
        weights = self.train.weights if isinstance(self.train, Examples) else None
        return Mix(len(self.train), weights, self.epochs, self.seed)


def _lengths(examples: Sequence[Encoded]) -> NDArray[np.int64]:
    return examples.lengths if isinstance(examples, Examples) else np.array([len(e.ids) for e in examples])


def _parts(examples: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Runs of about AT_ONCE tokens, or all."""
    if not examples:
        return
    ends = np.cumsum(_lengths(examples))
    cuts = np.searchsorted(ends, np.arange(AT_ONCE, ends[-1], AT_ONCE)).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(examples)], strict=True):
        if start < stop:
            yield examples[start:stop]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)
