"""How a training went."""

from __future__ import annotations

from luthier.records.record import Record


class Check(Record):
    """One validation during training."""

    step: int
    nll: float
    train_nll: float | None
    best: bool


class Given(Record):
    """An adapter that acts together with what was trained."""

    path: str
    """As in the recipe."""
    weight: float
    sha256: str
    """Over its files."""


class BadStep(Record):
    """One step from which nothing was learned."""

    step: int
    why: str


class TrainReport(Record):
    """What training did, for the report's curves and for the card."""

    method: str
    learning_rate: float
    """The highest one."""
    adapters: tuple[Given, ...] = ()
    n_trainable: int
    n_parameters: int
    steps_planned: int
    steps: int
    stopped: str
    """Why it ended, in words."""
    best_step: int
    """Of the lowest validation nll."""
    kept_step: int
    """Whose weights the run ended with."""
    n_tokens: int
    """Learned tokens seen."""
    n_input_tokens: int
    n_computed_tokens: int
    """Tokens that went through the layers that learn: fewer than the input tokens where prefixes were shared."""
    seconds: float
    path: str
    """Which forward path ran, and why."""
    checks: tuple[Check, ...]
    curve: tuple[tuple[int, float], ...]
    """(step, training nll), thinned to a few hundred points."""
    bad_steps: tuple[BadStep, ...] = ()
