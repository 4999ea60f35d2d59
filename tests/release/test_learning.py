"""Overfitting is told where validation rose and training fell, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence import training

from luthier.records import Check, TrainReport
from luthier.release.learning import RISE, gap_in_words, learning, overfitting_in_words


def trained(validation: list[float], train: list[float], best: int) -> TrainReport:
    """A validation every 10 steps from step 0, each with this training nll around it."""
    steps = 10 * (len(validation) - 1)
    curve = tuple((s, train[min(round(s / 10 - 1e-9), len(train) - 1)]) for s in range(1, steps + 1))
    checks = tuple(Check(step=10 * i, nll=v, train_nll=None, best=i == best) for i, v in enumerate(validation))
    return training().model_copy(
        update={"curve": curve, "checks": checks, "best_step": 10 * best, "kept_step": 10 * best, "steps": steps}
    )


def test_it_opens_at_the_first_validation_that_rose_enough() -> None:
    found = learning(
        trained([2.0, 1.5, 1.0, 1.0 + RISE - 0.001, 1.0 + RISE + 0.001, 1.3], [2, 1.5, 1, 0.8, 0.6, 0.4], 2)
    )
    assert found.overfitting is not None and (found.overfitting.step, found.best_step) == (40, 20)
    assert found.overfitting.validation_rose == pytest.approx(RISE + 0.001)
    assert 0.3 < found.overfitting.training_fell < 0.5
    text = overfitting_in_words(found)
    assert "from step 40 on" in text and "0.021 above its best" in text and "of step 20, from before" in text
    kept = overfitting_in_words(replace(found, kept_step=50))
    assert "released weights are those of step 50; the best were those of 20" in kept


@pytest.mark.parametrize(
    ("validation", "train", "best"),
    [
        ([2.0, 1.5, 1.2, 1.1], [2, 1.4, 1.0, 0.7], 3),  # validation still falls
        ([2.0, 1.0, 1.3, 1.6], [2, 1.0, 1.3, 1.6], 1),  # both rise: training diverges, it does not learn by heart
        ([2.0, 1.0, 1.01, 1.015], [2, 1.0, 0.6, 0.3], 1),  # a rise within RISE
        ([2.0], [2], 0),  # nothing was trained
    ],
)
def test_what_is_no_overfitting(validation: list[float], train: list[float], best: int) -> None:
    found = learning(trained(validation, train, best))
    assert found.overfitting is None and "no overfitting by this measure" in overfitting_in_words(found)


def test_a_base_that_training_only_made_worse() -> None:
    found = learning(trained([1.0, 1.2, 1.4, 1.6], [1.5, 1.2, 0.9, 0.6], 0))
    assert found.overfitting is not None and found.best_step == 0 < found.overfitting.step


def test_the_gap_is_told_from_where_it_was_narrowest() -> None:
    widening = learning(trained([2.0, 1.5, 1.2, 1.2], [2, 1.5, 1.0, 0.6], 2))
    assert widening.gaps[-1][1] == pytest.approx(0.6, abs=0.05)
    assert "0.60 nats a token above training nll; the gap has widened since step 0," in gap_in_words(widening)
    still = learning(trained([2.5, 2.0, 1.7, 1.5], [2, 1.5, 1.2, 1.0], 3))
    assert "the gap has not widened by more than 0.02 nats" in gap_in_words(still)
    below = learning(trained([2.0, 1.0, 0.9, 0.8], [2, 1.9, 1.5, 1.0], 3))
    assert gap_in_words(below) == "At step 30 validation nll was 0.20 nats a token below training nll."
    assert gap_in_words(learning(trained([2.0], [2], 0))) == ""
