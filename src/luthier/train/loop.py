"""The training loop: one function, no trainer class.

One step is one optimizer update over all its micro-batches. Terms return sums and are divided once, by the
count of their unit over the whole step, so the gradient does not depend on how examples were cut into
micro-batches. Learning rate, noise and examples are functions of (seed, step): a run resumed from a
checkpoint goes on as if it had never stopped, to the bit (same machine, threads, versions; where memory ran
out, but for rounding).

    M learned edges, D hidden size
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from luthier.batch import Batch
from luthier.decoder import Decoder, in_parts, score
from luthier.encode import Encoded
from luthier.errors import Stopped
from luthier.faults import reach
from luthier.interrupts import Interrupted, deferred
from luthier.progress import Reporter
from luthier.train.terms import Term, Unit
from luthier.train.world import ALONE, World

T = TypeVar("T")

NORMS, FEWEST_NORMS = 64, 16
"""Steps whose gradient norms say what is usual, and how few say nothing yet."""
MOST_BAD = 3
"""Steps in a row that may be bad before the run stops: then it is no single row's fault."""
NAMED_ROWS = 16
RANK_SEEDS = 2**32
"""Between the seeds of two processes' noise: the examples of one step shall not have the same."""
BadStep = Literal["stop", "skip", "roll_back"]


@dataclass(frozen=True, slots=True)
class Progress:
    """All that a resumed run must know beyond weights and optimizer moments."""

    step: int = 0
    n_tokens: int = 0  # learned tokens seen
    n_input_tokens: int = 0  # tokens of all examples seen
    n_computed_tokens: int = 0  # tokens that went through the layers that learn
    seconds: float = 0.0
    best_nll: float = math.inf
    best_step: int = 0
    n_worse: int = 0
    stopped: str | None = None  # the reason, in words
    checks: tuple[tuple[int, float], ...] = ()  # (step, validation nll)
    curve: tuple[tuple[int, float], ...] = ()  # (step, training nll)
    norms: tuple[float, ...] = ()  # of the last steps' gradients, before they were clipped
    bad: tuple[tuple[int, str], ...] = ()  # (step, why): what nothing was learned from

    def judged(self, nll: float, patience: int | None) -> Progress:
        """Progress after a validation: best so far, or one check worse."""
        checks = (*self.checks, (self.step, nll))
        if nll < self.best_nll:
            return replace(self, best_nll=nll, best_step=self.step, n_worse=0, checks=checks)
        n_worse = self.n_worse + 1
        stopped = self.stopped
        if patience is not None and n_worse >= patience:
            stopped = f"validation nll has not improved on {self.best_nll:.4f} for {n_worse} checks"
        return replace(self, n_worse=n_worse, stopped=stopped, checks=checks)


class Hook(Protocol):
    def before_update(self, model: nn.Module, progress: Progress) -> None:
        """Gradients are complete and not yet clipped: penalties on parameters add theirs here."""


class Data(Protocol):
    def examples(self, step: int) -> list[Encoded]:
        """All of a step."""

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of this process."""

    def valid(self) -> Iterable[Batch]:
        """This process's part of the validation side."""

    def spare(self) -> Batch:
        """One to run where nothing is left of them; see `World.rounds`."""


@dataclass(frozen=True, slots=True)
class Plan:
    n_steps: int
    learning_rate: Callable[[float], float]  # fraction of the run that is done -> rate
    seed: int
    max_grad_norm: float | None
    validate_every: int  # steps
    patience: int | None  # checks without improvement
    save_every_s: float
    max_s: float | None = None  # wall clock, validations included; the schedule ends with it
    in_backward: bool = False  # layers are updated while gradients are computed: such a step cannot be tried again
    on_bad_step: BadStep = "stop"
    spike: float | None = None  # a gradient so many times the usual one is bad; None: one that is not finite alone
    hooks: tuple[Hook, ...] = field(default=())

    def fraction(self, progress: Progress) -> float:
        """Of the run; 1 would be after the last step, so that this one still learns."""
        return max(progress.step / (self.n_steps + 1), min(self.time_share(progress), 1.0))

    def time_share(self, progress: Progress) -> float:
        return progress.seconds / self.max_s if self.max_s else 0.0

    def validates(self, progress: Progress) -> bool:
        """Whether the weights are to be judged now; a step that was interrupted before it was judged still is."""
        if progress.checks and progress.checks[-1][0] == progress.step:
            return False
        at_an_end = progress.step == self.n_steps or self.time_share(progress) >= 1
        return progress.step % self.validate_every == 0 or at_an_end

    def in_time(self, progress: Progress) -> Progress:
        """Progress, stopped where its time is over."""
        if self.time_share(progress) < 1 or progress.step == self.n_steps or progress.stopped:
            return progress
        over = f"the time limit was reached after {progress.step} of {self.n_steps} steps"
        return replace(progress, stopped=over)

    def bad(self, norm: float, usual: Sequence[float]) -> str:
        """Why a gradient of this norm should teach nothing, in words; empty where it should."""
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self.spike is None or len(usual) < FEWEST_NORMS or norm <= self.spike * median(usual):
            return ""
        return f"the gradient norm is {norm:.3g}, {norm / median(usual):.3g} times the usual one"

    def is_bad(self, progress: Progress) -> bool:
        """Whether the last step was."""
        return bool(progress.bad) and progress.bad[-1][0] == progress.step


class Relieved(Protocol):
    def __call__(self, work: Callable[[], T], again: bool = True) -> T:
        """The result of `work`, tried `again` in less memory where that runs out."""


def as_it_is(work: Callable[[], T], again: bool = True) -> T:
    return work()


class Keeper(Protocol):
    """Keeps the state of a training: weights, moments and progress."""

    def save(self, step: int, progress: dict[str, Any], best_step: int) -> None:
        """Return when training may go on."""

    def restore(self, step: int) -> None:
        """Put weights and moments back to those of a step that was saved and is the last, the one before it or the
        best."""


def fit(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    terms: Sequence[Term],
    data: Data,
    plan: Plan,
    progress: Progress,
    keeper: Keeper,
    report: Reporter,
    relieved: Relieved = as_it_is,
    world: World = ALONE,
) -> Progress:
    """Train until the plan's end, its time, or until validation stops improving.

    All processes of the `world` run it with their parts of the data, and return the same.
    Parameters without a gradient after the backward pass are left as they are: something else has updated them
    (`optim.update_in_backward`). Raises Stopped LU-S001 on a bad step, where the plan says so or they follow each
    other, and Interrupted on a signal, after saving the last finished step.
    """
    step_of = _Steps(decoder, optimizer, terms, data, plan, keeper, report, relieved, world)
    saved, began = progress, time.monotonic() - progress.seconds

    def timed(progress: Progress) -> Progress:
        return replace(progress, seconds=world.first(time.monotonic() - began))

    ended = False
    with deferred() as interrupted, report.bar("train", plan.n_steps, progress.step) as advance:
        while True:
            if plan.validates(progress):
                nll = step_of.validation(interrupted)
                if nll is None:
                    break
                progress = plan.in_time(timed(progress.judged(nll, plan.patience)))
            ended = progress.stopped is not None or progress.step == plan.n_steps
            if progress is not saved and (
                ended or progress.best_step == progress.step or progress.seconds - saved.seconds >= plan.save_every_s
            ):
                keeper.save(progress.step, to_json(progress), progress.best_step)
                saved = progress
            if ended:
                break
            after = step_of(progress, interrupted)
            if after is None:
                break
            progress = timed(after)
            advance(
                1,
                nll=math.nan if plan.is_bad(progress) else progress.curve[-1][1],
                valid=progress.checks[-1][1],
                tokens_per_s=progress.n_input_tokens / max(progress.seconds, 1e-9),
            )
        if not ended:  # a signal came, to this process or to another one
            if progress is not saved:
                keeper.save(progress.step, to_json(progress), progress.best_step)
            raise Interrupted(signal.SIGTERM)  # or this process's own, by `deferred`
    return progress if progress.stopped else replace(progress, stopped="all planned steps are done")


@dataclass(frozen=True, slots=True)
class _Steps:
    """One update after another."""

    decoder: Decoder
    optimizer: torch.optim.Optimizer
    terms: Sequence[Term]
    data: Data
    plan: Plan
    keeper: Keeper
    report: Reporter
    relieved: Relieved
    world: World

    def __call__(self, progress: Progress, interrupted: Callable[[], Any]) -> Progress | None:
        """Progress after one step; None if a signal came first, and then nothing has changed."""
        reach("step")
        self._set_rates(progress)
        try:
            again = not self.plan.in_backward and not self.world.sharded
            found = self.relieved(lambda: self._gradient(progress.step, interrupted), again)
        except FloatingPointError as error:  # in the midst of the backward pass
            return self._bad(progress, f"the gradient norm is {error}")
        dropped, nats, n_input, n_computed = self.world.sums(found is None, *(found or (0.0, 0, 0)))
        if dropped:
            self.optimizer.zero_grad(set_to_none=True)
            return None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.world.add_up(parameters)
        for hook in self.plan.hooks:
            hook.before_update(self.decoder.model, progress)
        most = math.inf if self.plan.max_grad_norm is None else self.plan.max_grad_norm
        norm = float(self.world.clip(parameters, most))
        if why := self.plan.bad(norm, progress.norms):
            return self._bad(progress, why)
        self.relieved(self.optimizer.step, again=False)
        self.optimizer.zero_grad(set_to_none=True)
        n_tokens = self._counts(progress.step)["token"]
        return replace(
            progress,
            step=progress.step + 1,
            n_tokens=progress.n_tokens + n_tokens,
            n_input_tokens=progress.n_input_tokens + int(n_input),
            n_computed_tokens=progress.n_computed_tokens + int(n_computed),
            curve=(*progress.curve, (progress.step + 1, nats / n_tokens)),
            norms=(*progress.norms, norm)[-NORMS:],
        )

    def validation(self, interrupted: Callable[[], Any]) -> float | None:
        """Nats per learned token of the validation side: total over total, never a mean of means.

        None if a signal came first.
        """

        def scored() -> tuple[float, int] | None:
            batches = self.world.rounds(self.data.valid(), self.data.spare)
            return nll_sums(self.decoder, batches, self._at_once(interrupted))

        found = self.relieved(scored, again=not self.world.sharded)
        dropped, nats, n = self.world.sums(found is None, *(found or (0.0, 0)))
        return None if dropped else nats / n

    def _at_once(self, interrupted: Callable[[], Any]) -> Callable[[], Any]:
        """Between two micro-batches too, unless others would wait for this process's part of a layer."""
        return (lambda: None) if self.world.sharded else interrupted

    def _counts(self, step: int) -> dict[Unit, int]:
        """Over the examples of all processes."""
        examples = self.data.examples(step)
        return {"token": sum(e.n_learned for e in examples), "sequence": len(examples)}

    def _set_rates(self, progress: Progress) -> None:
        for group in self.optimizer.param_groups:
            at = self.plan.fraction(replace(progress, step=progress.step + 1))
            group["lr"] = group["lr_ratio"] * self.plan.learning_rate(at)

    def _gradient(self, step: int, interrupted: Callable[[], Any]) -> tuple[float, int, int] | None:
        """This process's part of a step's gradient.

        Returns the first term's sum in nats, tokens of all its examples, and those that went through layers that learn;
        None if a signal came. What an earlier attempt has left is dropped first.
        """
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(_mix(self.plan.seed + self.world.rank * RANK_SEEDS, step))
        counts, batches = self._counts(step), self.data.step(step)
        decoder, nats, stops = self.decoder, 0.0, self._at_once(interrupted)
        decoder.model.train()
        with decoder.entered():
            for batch, counted in self.world.rounds(batches, self.data.spare):
                if stops():
                    return None
                found = backward(decoder, self.terms, batch.to(decoder.device), counts, float(counted))
                nats += float(found) if counted else 0.0
        if self.world.sharded and interrupted():
            return None
        n_computed = sum(_n_computed(decoder, b) for b in batches)
        return nats, sum(b.n_input_tokens for b in batches), n_computed

    def _bad(self, progress: Progress, why: str) -> Progress:
        """Progress past a step from which nothing is learned. Raises Stopped LU-S001."""
        self.optimizer.zero_grad(set_to_none=True)
        step = progress.step + 1
        after = replace(progress, step=step, bad=(*progress.bad, (step, why)))
        in_a_row = [at for at, _ in after.bad[-MOST_BAD:]] == [*range(step - MOST_BAD + 1, step + 1)]
        rows = ", ".join(e.source for e in self.data.examples(progress.step)[:NAMED_ROWS])
        if self.plan.on_bad_step == "stop" or in_a_row:
            left = f"the weights are still those of step {progress.step}"
            if self.plan.in_backward:
                left = "some layers may be updated already: what counts is the last checkpoint"
            found = f"{why}; {left}" + (f"; so were the {MOST_BAD - 1} before it" if in_a_row else "")
            advice = f"lower train.learning_rate, or look at the rows of this step: {rows}"
            raise Stopped.of("LU-S001", f"step {step}", found, advice)
        done = "nothing is learned from it"
        if self.plan.on_bad_step == "roll_back":
            self.keeper.restore(progress.best_step)
            done = f"back to the weights of step {progress.best_step}, and on with the next step"
        self.report.say(f"step {step}: {why}; {done}; its rows: {rows}")
        return after


def backward(
    decoder: Decoder, terms: Sequence[Term], batch: Batch, counts: dict[Unit, int], weight: float = 1.0
) -> Tensor:
    """Add a micro-batch's gradient, `weight` times; returns its first term's sum in nats, (), float64.

    The logits live a chunk at a time: each chunk's graph ends at the hidden states and is freed by its own
    backward, then the body's backward runs once.
    """
    hidden = decoder.hidden(batch)  # (M, D)
    leaf = hidden.detach().requires_grad_()
    first = torch.zeros((), dtype=torch.float64, device=leaf.device)
    for h, targets, weights in in_parts(leaf, batch.targets, batch.weights):
        logits = decoder.head(h)
        sums = [term(logits, targets, weights) for term in terms]
        loss = torch.stack([t.weight * s / counts[t.unit] for t, s in zip(terms, sums, strict=True)]).sum()
        (loss if weight == 1.0 else weight * loss).backward()
        first += sums[0].detach()
    assert leaf.grad is not None
    if hidden.requires_grad:  # not where the head alone is trained
        hidden.backward(leaf.grad)
    return first


def nll_sums(
    decoder: Decoder, batches: Iterable[tuple[Batch, bool]], interrupted: Callable[[], Any] = lambda: None
) -> tuple[float, int] | None:
    """Nats of all learned tokens, and how many these are, of the batches that count. None if a signal came first."""
    decoder.model.eval()
    nats, n = 0.0, 0
    with decoder.entered():
        for batch, counted in batches:
            if interrupted():
                return None
            found = float(score(decoder, batch.to(decoder.device)).sum())
            nats, n = (nats + found, n + batch.n_targets) if counted else (nats, n)
    return nats, n


def _n_computed(decoder: Decoder, batch: Batch) -> int:
    return batch.ids.numel() if decoder.shares else batch.n_input_tokens


def _mix(seed: int, step: int) -> int:
    """A 63-bit seed for (seed, step); consecutive steps share no structure (splitmix64's constants)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def to_json(progress: Progress) -> dict[str, Any]:
    return asdict(progress)


def from_json(data: dict[str, Any]) -> Progress:
    pairs = {k: tuple(tuple(p) for p in data[k]) for k in ("checks", "curve", "bad")}
    return Progress(**{**data, **pairs, "norms": tuple(data["norms"])})
