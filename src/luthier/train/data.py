"""Which examples a step sees: a pure function of (seed, step), so resuming needs no loader state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.encode import Encoded


@dataclass(frozen=True)
class StepData:
    """Examples in an order that is a fresh permutation every epoch; the last step may be short."""

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    epochs: int
    examples_per_step: int
    tokens_per_micro_batch: int
    seed: int
    share: bool = True

    @property
    def n_steps(self) -> int:
        return math.ceil(len(self.train) * self.epochs / self.examples_per_step)

    def examples(self, step: int) -> list[Encoded]:
        start = step * self.examples_per_step
        stop = min(start + self.examples_per_step, len(self.train) * self.epochs)
        n = len(self.train)
        return [self.train[_permutation(self.seed, i // n, n)[i % n]] for i in range(start, stop)]

    def step(self, step: int) -> list[Batch]:
        """The step's micro-batches, each within the token budget."""
        groups = split_by_tokens(self.examples(step), self.tokens_per_micro_batch, share=self.share)
        return [make_batch(group, share=self.share) for group in groups]

    def valid(self) -> Iterator[Batch]:
        for group in split_by_tokens(self.validation, self.tokens_per_micro_batch, share=self.share):
            yield make_batch(group, share=self.share)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
