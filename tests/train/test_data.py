"""The order of the examples: a permutation each epoch, drawn evenly, by seed and epoch and nothing else."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, spearmanr

from luthier.batch import Batch
from luthier.documents import Examples
from luthier.encode import Encoded
from luthier.train.data import StepData


def numbered(n: int) -> list[Encoded]:
    return [Encoded([7, 8, i], [False, False, True], str(i), "") for i in range(n)]


def data_of(n: int, epochs: int, per_step: int, seed: int) -> StepData:
    rows = numbered(n)
    return StepData(rows, rows[:1], epochs, per_step, 4096, seed)


def steps_of(data: StepData) -> list[list[int]]:
    """The numbers of the rows that each step sees."""
    return [[int(e.id) for e in data.examples(step)] for step in range(data.n_steps)]


def order_of(n: int, epoch: int, seed: int) -> list[int]:
    seen = [row for step in steps_of(data_of(n, epoch + 1, n, seed)) for row in step]
    return seen[epoch * n :]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_every_row_is_seen_once_an_epoch_whatever_the_steps(n: int, epochs: int, per_step: int, seed: int) -> None:
    steps = steps_of(data_of(n, epochs, per_step, seed))
    assert [len(step) for step in steps[:-1]] == [per_step] * (len(steps) - 1)
    seen = [row for step in steps for row in step]
    assert len(seen) == n * epochs
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(1, 30), st.integers(1, 7), st.integers(0, 2**32 - 1), st.randoms())
def test_a_step_is_the_same_whichever_was_asked_for_before(n: int, per_step: int, seed: int, random: object) -> None:
    data = data_of(n, 3, per_step, seed)
    expected = steps_of(data)
    order = list(range(data.n_steps))
    random.shuffle(order)  # type: ignore[attr-defined]
    asked = {step: [int(e.id) for e in data_of(n, 3, per_step, seed).examples(step)] for step in order}
    assert [asked[step] for step in sorted(asked)] == expected


def test_the_size_of_a_step_does_not_change_the_order() -> None:
    orders = {tuple(row for step in steps_of(data_of(30, 2, k, seed=3)) for row in step) for k in (1, 7, 30, 60)}
    assert len(orders) == 1


@pytest.mark.parametrize("pairs", ["epochs", "seeds"])
def test_orders_of_two_epochs_and_of_two_seeds_have_nothing_in_common(pairs: str) -> None:
    n, orders = 1000, []
    for k in range(12):
        order = order_of(n, k, seed=5) if pairs == "epochs" else order_of(n, 1, seed=k)
        orders.append(np.argsort(order))  # where each row stands
    found = [spearmanr(a, b).statistic for a, b in combinations([np.arange(n), *orders], 2)]  # the file's order too
    worst = 4.5 / np.sqrt(n - 1)  # one rank correlation has a spread of 1 / sqrt(n - 1); 78 of them stay below 4.5
    assert np.abs(found).max() < worst
    assert abs(np.mean(found)) < 4.5 / np.sqrt(len(found) * (n - 1))


def test_each_row_stands_at_each_place_equally_often() -> None:
    n, n_seeds = 12, 3000
    counts = np.zeros((n, n))
    for seed in range(n_seeds):
        counts[np.arange(n), order_of(n, seed % 3, seed)] += 1
    expected = n_seeds / n
    # Rows and columns of a permutation sum to one: (n - 1)^2 degrees of freedom, and a factor for what they share.
    statistic = ((counts - expected) ** 2 / expected).sum() * (n - 1) / n
    assert 0.001 < chi2.cdf(statistic, (n - 1) ** 2) < 0.999


def test_rows_of_one_family_meet_in_a_step_as_often_as_chance_has_it() -> None:
    """Wordings of one fact, or questions under one system prompt, lie side by side in the file."""
    n, of_family, per_step, n_seeds = 240, 6, 12, 200
    met = [
        sum(a // of_family == b // of_family for step in steps_of(data_of(n, 2, per_step, s)) for a, b in pairs(step))
        for s in range(n_seeds)
    ]
    n_pairs = 2 * (n // of_family) * of_family * (of_family - 1) / 2
    expected = n_pairs * (per_step - 1) / (n - 1)
    error = np.std(met, ddof=1) / np.sqrt(n_seeds)
    assert error < 0.02 * expected, "else the test would see nothing"
    assert abs(np.mean(met) - expected) < 4 * error


def pairs(step: list[int]) -> combinations[tuple[int, int]]:
    return combinations(step, 2)


class Made(Examples):
    """Examples of given lengths, and how many of them were made."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths, self.n_made = np.array(lengths), 0

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self._lengths

    @property
    def weights(self) -> None:
        return None

    def make(self, i: int) -> Encoded:
        self.n_made += 1
        n = int(self._lengths[i])
        return Encoded([9, i + 10, *range(n - 2)], [False] + [True] * (n - 1), str(i), "")


LENGTHS = [2 + (7 * i) % 31 for i in range(60)]


def test_before_a_step_no_training_example_is_made_and_in_it_its_own_alone() -> None:
    train, validation = Made(LENGTHS), Made(LENGTHS[:5])
    data = StepData(train, validation, 1, 8, 64, seed=0)
    assert (data.n_steps, data.shortest, data.longest, data.most_tokens) == (8, 2, 32, 64)
    assert [e.id for group in data.homes() for e in group] == ["0", "1", "2", "3", "4"]
    assert train.n_made == 0
    assert len(data.examples(3)) == train.n_made == 8


def test_validation_in_parts_sees_every_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = StepData(Made(LENGTHS), Made(LENGTHS), 1, 8, 64, seed=0)
    whole = sum(b.n_targets for b in data.valid())
    monkeypatch.setattr("luthier.train.data.AT_ONCE", 100)
    validation = Made(LENGTHS)
    data.validation = validation
    parts, most = list[Batch](), 0
    for batch in data.valid():
        parts.append(batch)
        most = max(most, validation.n_made - sum(len(b.names) for b in parts))
    assert most <= 100 // min(LENGTHS) and most < 20, "examples that were made and not yet validated"
    assert sorted(name for b in parts for name in b.names) == sorted(map(str, range(60)))
    assert sum(b.n_targets for b in parts) == whole
    assert data.homes() == []


@given(st.integers(1, 20), st.integers(16, 200))
def test_the_most_micro_batches_of_a_step_are_found(per_step: int, at_once: int) -> None:
    data = StepData(Made(LENGTHS), Made([5]), 2, per_step, at_once, seed=0)
    most, step = data.most_groups()
    assert most == len(data.groups(step)) == max(len(data.groups(s)) for s in range(data.n_steps))
