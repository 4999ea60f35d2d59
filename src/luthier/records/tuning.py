"""What trials found, and what was decided by them."""

from __future__ import annotations

from typing import Literal

from luthier.records.evaluation import Comparison
from luthier.records.record import Record


class TrialRun(Record):
    """One training of a variant, measured."""

    variant: str
    seed: int
    rung: float
    """Fraction of the training rows."""
    part: Literal["choose", "report"]
    """The nested rows that it was asked."""
    run: str
    """Name of the run's folder."""
    value: float
    seconds: float
    """Of training and evaluation, wherever and whenever they ran."""


class CurvePoint(Record):
    """What a metric came to after training with so many rows."""

    rows: int
    values: tuple[float, ...]
    """One a seed."""


class LearningCurve(Record):
    """A metric at growing sizes of the training side, and what twice the rows would bring."""

    name: str
    metric: str
    higher_is_better: bool
    confidence: float
    asked: int
    """Nested rows that every model was asked."""
    points: tuple[CurvePoint, ...]
    rows: int
    """Of the recipe's own training side."""
    value: float
    """With `rows`, by the fitted law."""
    twice: float
    """With twice as many."""
    gain: float
    """Of the second over the first, positive is better, with its interval."""
    low: float
    high: float
    runs: tuple[TrialRun, ...]


class VariantResult(Record):
    """A variant on the rows by which is chosen, at the rung that it reached."""

    name: str
    settings: tuple[str, ...]
    rung: float
    value: float
    """Mean over the seeds."""
    comparison: Comparison | None
    """With the baseline at that rung, over the same rows and seeds; None for the baseline itself."""
    p_adjusted: float | None = None
    """After Holm, over all variants, those that were stopped too; None where none is claimed."""
    luck: float | None = None
    """Share of the difference's variance that is the luck of training; None with one seed."""
    seeds_needed: int | None = None
    """To show a difference of this size with 80 % power; None: over 100, or not known."""
    word: Literal["baseline", "stopped", "better", "worse", "not shown"]


class TrialsReport(Record):
    """Variants of a recipe on a nested split of its training side."""

    name: str
    metric: str
    higher_is_better: bool
    confidence: float
    seeds: tuple[int, ...]
    rungs: tuple[float, ...]
    n: dict[str, int]
    """Conversations to train, validation, choose and report."""
    variants: tuple[VariantResult, ...]
    """The baseline first, then as they were given."""
    winner: str
    """The best of the finished variants, if it is ahead of the baseline; else the baseline."""
    report_seeds: tuple[int, ...] = ()
    report: Comparison | None = None
    """The winner against the baseline on rows that took no part in choosing; None where the baseline won."""
    report_luck: float | None = None
    report_word: Literal["better", "worse", "not shown"] | None = None
    runs: tuple[TrialRun, ...]
    notes: tuple[str, ...] = ()


class Advised(Record):
    """One technique that the advice looked at."""

    name: str
    settings: tuple[str, ...]
    """Of a recipe that trains so: `model.adapt={...}`, `train.learning_rate=...`."""
    n_trainable: int = 0
    memory: dict[str, int] = {}
    """Predicted bytes at the peak, by what they are for."""
    minutes: float | None = None
    """Predicted for all of training, its validations included."""
    points: int = 0
    rules: tuple[str, ...] = ()
    """That are met."""
    out: str | None = None
    """Why it is no choice; None: it may be chosen."""
    gain: Comparison | None = None
    """In the short trials, over the candidate that the rules put first; None where it was not tried."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


class AdviceReport(Record):
    """Which technique to train with, and why: measurements, what the rules make of them, and short trials."""

    base: str
    facts: dict[str, float]
    """What the rules ask for, of machine, data and distance."""
    measured: dict[str, float]
    """The trial step: seconds, peak_bytes, and the machine's rates."""
    path: str
    """Which forward path the trial step ran."""
    candidates: tuple[Advised, ...]
    """The best first."""
    chosen: str
    settings: tuple[str, ...]
    """Of the chosen candidate."""
    why: tuple[str, ...]
    trials: str = ""
    """The file of the short trials' report; empty where there were none."""
    notes: tuple[str, ...] = ()


class KeptAugmentation(Record):
    """Which augmentations with `keep: if_it_helps` are learned from, and why."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    why: tuple[str, ...]
    trials: str
    """The file of the trials' report; empty where there were none."""
