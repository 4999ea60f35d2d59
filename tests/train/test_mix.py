"""Weights: how often each example is met, over a run and in each epoch, whatever the seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from luthier.documents import Examples
from luthier.encode import Encoded
from luthier.train.data import StepData
from luthier.train.mix import Mix

WEIGHTS = st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=1, max_size=40)


class Weighted(Examples):
    def __init__(self, weights: list[float]) -> None:
        self._weights = np.array(weights, dtype=np.float32)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.full(len(self), 3)

    @property
    def weights(self) -> NDArray[np.float32]:
        return self._weights

    def make(self, i: int) -> Encoded:
        return Encoded([7, 8, i], [False, False, True], str(i), "")


def epochs_of(weights: list[float], epochs: int, seed: int, per_step: int = 7) -> list[Counter[int]]:
    """How often each example is met in each epoch."""
    examples = Weighted(weights)
    data = StepData(examples, examples[:1], epochs, per_step, 4096, seed)
    seen = [int(e.id) for step in range(data.n_steps) for e in data.examples(step)]
    mix = Mix(len(weights), examples.weights, epochs, seed)
    return [Counter(seen[mix.before(e) : mix.before(e + 1)]) for e in range(epochs)]


@given(WEIGHTS, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_over_a_run_each_is_met_as_often_as_its_weight_says(weights: list[float], epochs: int, seed: int) -> None:
    met = sum(epochs_of(weights, epochs, seed), Counter())
    for i, weight in enumerate(weights):
        assert abs(met[i] - weight * epochs) < 1 + 1e-6


@given(WEIGHTS, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_each_epoch_meets_as_many_of_a_weight_as_any_other_but_for_one(
    weights: list[float], epochs: int, seed: int
) -> None:
    for met in epochs_of(weights, epochs, seed):
        for weight in set(weights):
            of = [i for i, w in enumerate(weights) if w == weight]
            assert abs(sum(met[i] for i in of) - weight * len(of)) <= 1 + 1e-6


def test_half_are_met_and_then_the_other_half() -> None:
    first, second = epochs_of([0.5] * 10, 2, seed=3)
    assert len(first) == len(second) == 5 and not first & second
    assert {*first} != {*epochs_of([0.5] * 10, 2, seed=4)[0]}, "drawn by seed"


def test_weights_of_one_change_nothing() -> None:
    ones = Weighted([1.0] * 20)
    plain = StepData(list(ones), list(ones)[:1], 3, 6, 4096, seed=2)
    weighted = StepData(ones, list(ones)[:1], 3, 6, 4096, seed=2)
    assert [plain.examples(s) for s in range(10)] == [weighted.examples(s) for s in range(10)]


@given(WEIGHTS, st.integers(1, 5), st.integers(1, 9), st.randoms())
def test_a_step_is_the_same_whichever_was_asked_for_before(
    weights: list[float], epochs: int, per_step: int, random: object
) -> None:
    examples = Weighted(weights)

    def data() -> StepData:
        return StepData(examples, examples[:1], epochs, per_step, 4096, seed=1)

    one = data()
    expected = [one.numbers(step) for step in range(one.n_steps)]
    order = list(range(one.n_steps))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = data()
    asked = {step: other.numbers(step) for step in order}
    assert [asked[step] for step in range(one.n_steps)] == expected


def test_the_order_is_that_of_numpy_by_seed_and_epoch() -> None:
    """Recipes that were run must see their rows in the same order for ever."""
    rows = [Encoded([7, 8, i], [False, False, True], str(i), "") for i in range(10)]
    data = StepData(rows, rows[:1], 2, 5, 4096, seed=11)
    expected = [np.random.default_rng([11, epoch]).permutation(10).tolist() for epoch in (0, 1)]
    assert [data.numbers(step) for step in range(4)] == [o[k : k + 5] for o in expected for k in (0, 5)]
    assert expected[0] == [8, 5, 6, 1, 9, 3, 4, 2, 7, 0], "as ever"
