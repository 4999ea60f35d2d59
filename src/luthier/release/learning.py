"""Whether the model began to learn by heart, by the numbers of its validations, and that in words.

Overfitting has opened where validation nll stands more than RISE above its best while training nll has fallen on.
Knows the steps and their losses only: why a model learns by heart, and how another seed would have done, it cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.page.words import number
from luthier.records import TrainReport

RISE = 0.02
"""Nats per token by which validation must rise above its best: a perplexity 2 % higher."""


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Where it opened: the first such validation, and since the best how far one nll rose and the other fell."""

    step: int
    validation_rose: float
    training_fell: float


@dataclass(frozen=True, slots=True)
class Learning:
    """A gap is validation nll minus training nll, in nats a token.

    Training nll is the mean over the steps around a validation, to half way to the next: that of one step is noise, and
    that of the steps before lags where the curve is steep.
    """

    best_step: int
    kept_step: int
    gaps: tuple[tuple[int, float], ...]
    """(step, gap) of every validation that has steps of training around it."""
    overfitting: Overfitting | None


def learning(training: TrainReport) -> Learning:
    """What the curves show, from the records of training."""
    best = next(c for c in training.checks if c.step == training.best_step)
    trained = _trained(training)
    since = [c for c in training.checks if c.step >= best.step and c.step in trained]
    start = trained[since[0].step] if since else 0.0
    opened = (
        Overfitting(c.step, c.nll - best.nll, start - trained[c.step])
        for c in since
        if c.nll - best.nll > RISE and trained[c.step] < start
    )
    gaps = tuple((c.step, c.nll - trained[c.step]) for c in training.checks if c.step in trained)
    return Learning(best.step, training.kept_step, gaps, next(opened, None))


def _trained(training: TrainReport) -> dict[int, float]:
    """Step of a validation -> mean training nll around it."""
    half = training.checks[-1].step / max(2 * (len(training.checks) - 1), 1)
    found = {}
    for check in training.checks:
        if losses := [nll for step, nll in training.curve if abs(step - check.step) < half]:
            found[check.step] = sum(losses) / len(losses)
    return found


def in_words(found: Learning) -> list[str]:
    """Whether it overfitted, and how far validation ended from training."""
    return [text for text in (overfitting_in_words(found), gap_in_words(found)) if text]


def gap_in_words(found: Learning) -> str:
    """How the gap between training and validation went; empty where there was none to look at."""
    if not found.gaps:
        return ""
    (narrow_step, narrow), (last_step, last) = min(found.gaps, key=lambda g: g[1]), found.gaps[-1]
    text = f"At step {last_step:,} validation nll was {_stands(last)} training nll"
    if last <= RISE:
        return f"{text}."
    if last - narrow <= RISE:
        return f"{text}; the gap has not widened by more than {RISE} nats."
    return f"{text}; the gap has widened since step {narrow_step:,}, where it was {_stands(narrow)}."


def _stands(gap: float) -> str:
    return f"{number(abs(gap), 2)} nats a token {'above' if gap >= 0 else 'below'}"


def overfitting_in_words(found: Learning) -> str:
    """Whether overfitting opened, where, and what that means for the released weights."""
    if found.overfitting is None:
        return (
            f"Validation nll never stood more than {RISE} nats above its best while training nll had fallen on: "
            "no overfitting by this measure."
        )
    o = found.overfitting
    kept = f"The weights of step {found.best_step:,}, from before that, were restored and are the released ones."
    if found.kept_step != found.best_step:
        kept = (
            f"The released weights are those of step {found.kept_step:,}; the best were those of {found.best_step:,}."
        )
    return (
        f"Overfitting from step {o.step:,} on: validation nll was {number(o.validation_rose, 3)} above its best while "
        f"training nll had fallen by {number(o.training_fell, 3)} more. {kept}"
    )
