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
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from luthier.batch import Batch
from luthier.decoder import Decoder, in_parts, score
from luthier.encode import Encoded
from luthier.errors import Stopped
from luthier.interrupts import deferred
from luthier.progress import Advance
from luthier.train.terms import Term, Unit

T = TypeVar("T")


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
    def examples(self, step: int) -> list[Encoded]: ...
    def step(self, step: int) -> list[Batch]: ...
    def valid(self) -> Iterable[Batch]: ...


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
    hooks: tuple[Hook, ...] = field(default=())

    def fraction(self, progress: Progress) -> float:
        """Of the run; 1 would be after the last step, so that this one still learns."""
        return max(progress.step / (self.n_steps + 1), min(self.time_share(progress), 1.0))

    def time_share(self, progress: Progress) -> float:
        return progress.seconds / self.max_s if self.max_s else 0.0


class Relieved(Protocol):
    def __call__(self, work: Callable[[], T], again: bool = True) -> T:
        """The result of `work`, tried `again` in less memory where that runs out."""


def as_it_is(work: Callable[[], T], again: bool = True) -> T:
    return work()


def fit(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    terms: Sequence[Term],
    data: Data,
    plan: Plan,
    progress: Progress,
    save: Callable[[Progress], None],
    advance: Advance,
    relieved: Relieved = as_it_is,
) -> Progress:
    """Train until the plan's end, its time, or until validation stops improving.

    `save` must leave a whole checkpoint. Parameters without a gradient after the backward pass are left as they are:
    something else has updated them (`optim.update_in_backward`). Raises Stopped LU-S001 on a gradient that is not
    finite, and Interrupted on a signal, after saving the last finished step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved_at = time.monotonic()
    began = saved_at - progress.seconds

    def timed(progress: Progress) -> Progress:
        return replace(progress, seconds=time.monotonic() - began)

    with deferred() as interrupted:
        if not progress.checks:
            progress = timed(progress.judged(relieved(lambda: mean_nll(decoder, data.valid())), plan.patience))
            save(progress)
        while progress.step < plan.n_steps and not progress.stopped:
            after = _step(decoder, optimizer, parameters, terms, data, plan, progress, interrupted, relieved)
            if after is None:
                save(progress)
                break  # `deferred` raises what interrupted us
            progress = _judge_when_due(decoder, data, plan, timed(after), relieved, timed)
            due = time.monotonic() - saved_at >= plan.save_every_s
            if due or progress.stopped or progress.best_step == progress.step or progress.step == plan.n_steps:
                save(progress)
                saved_at = time.monotonic()
            advance(
                1,
                nll=progress.curve[-1][1],
                valid=progress.checks[-1][1],
                tokens_per_s=after.n_input_tokens / max(progress.seconds, 1e-9),
            )
    return progress if progress.stopped else replace(progress, stopped="all planned steps are done")


def _step(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    terms: Sequence[Term],
    data: Data,
    plan: Plan,
    progress: Progress,
    interrupted: Callable[[], Any],
    relieved: Relieved,
) -> Progress | None:
    """One update; None if a signal came first, and then nothing has changed."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_ratio"] * plan.learning_rate(plan.fraction(replace(progress, step=progress.step + 1)))
    try:
        found = relieved(
            lambda: _gradient(decoder, optimizer, terms, data, plan.seed, progress.step, interrupted),
            again=not plan.in_backward,
        )
    except FloatingPointError as error:  # in the midst of the backward pass
        raise _diverged(str(error), plan, progress.step, data) from None
    if found is None:
        optimizer.zero_grad(set_to_none=True)
        return None
    batches, counts, nats = found
    for hook in plan.hooks:
        hook.before_update(decoder.model, progress)
    most = math.inf if plan.max_grad_norm is None else plan.max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    if not torch.isfinite(norm):
        raise _diverged(float(norm), plan, progress.step, data)
    relieved(optimizer.step, again=False)
    optimizer.zero_grad(set_to_none=True)
    return replace(
        progress,
        step=progress.step + 1,
        n_tokens=progress.n_tokens + counts["token"],
        n_input_tokens=progress.n_input_tokens + sum(b.n_input_tokens for b in batches),
        n_computed_tokens=progress.n_computed_tokens + sum(_n_computed(decoder, b) for b in batches),
        curve=(*progress.curve, (progress.step + 1, float(nats) / counts["token"])),
    )


def _gradient(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    terms: Sequence[Term],
    data: Data,
    seed: int,
    step: int,
    interrupted: Callable[[], Any],
) -> tuple[list[Batch], dict[Unit, int], Tensor] | None:
    """A step's whole gradient, its micro-batches, their counts, and the first term's sum; None if a signal came.

    What an earlier attempt has left is dropped first.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(_mix(seed, step))
    batches = data.step(step)
    counts: dict[Unit, int] = {
        "token": sum(b.n_targets for b in batches),
        "sequence": sum(len(b.names) for b in batches),
    }
    decoder.model.train()
    nats = torch.zeros((), dtype=torch.float64)
    with decoder.entered():
        for batch in batches:
            if interrupted():
                return None
            nats += backward(decoder, terms, batch.to(decoder.device), counts).cpu()
    return batches, counts, nats


def backward(decoder: Decoder, terms: Sequence[Term], batch: Batch, counts: dict[Unit, int]) -> Tensor:
    """Add a micro-batch's gradient; returns its first term's sum in nats, (), float64.

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
        loss.backward()
        first += sums[0].detach()
    assert leaf.grad is not None
    if hidden.requires_grad:  # not where the head alone is trained
        hidden.backward(leaf.grad)
    return first


def mean_nll(decoder: Decoder, batches: Iterable[Batch]) -> float:
    """Nats per learned token: total over total, never a mean of means."""
    decoder.model.eval()
    nats, n = 0.0, 0
    with decoder.entered():
        for batch in batches:
            nats += float(score(decoder, batch.to(decoder.device)).sum())
            n += batch.n_targets
    return nats / n


def _judge_when_due(
    decoder: Decoder,
    data: Data,
    plan: Plan,
    progress: Progress,
    relieved: Relieved,
    timed: Callable[[Progress], Progress],
) -> Progress:
    due = progress.step % plan.validate_every == 0 or progress.step == plan.n_steps or plan.time_share(progress) >= 1
    if not due:
        return progress
    progress = timed(progress.judged(relieved(lambda: mean_nll(decoder, data.valid())), plan.patience))
    if plan.time_share(progress) < 1 or progress.step == plan.n_steps or progress.stopped:
        return progress
    return replace(progress, stopped=f"the time limit was reached after {progress.step} of {plan.n_steps} steps")


def _n_computed(decoder: Decoder, batch: Batch) -> int:
    return batch.ids.numel() if decoder.shares else batch.n_input_tokens


def _diverged(norm: float | str, plan: Plan, step: int, data: Data) -> Stopped:
    weights = f"the weights are still those of step {step}"
    if plan.in_backward:
        weights = "some layers may be updated already: what counts is the last checkpoint"
    names = ", ".join(e.source for e in data.examples(step)[:16])
    return Stopped.of(
        "LU-S001",
        f"step {step + 1}",
        f"the gradient norm is {norm}; {weights}",
        f"lower train.learning_rate, or look at the rows of this step: {names}",
    )


def _mix(seed: int, step: int) -> int:
    """A 63-bit seed for (seed, step); consecutive steps share no structure (splitmix64's constants)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def to_json(progress: Progress) -> dict[str, Any]:
    return asdict(progress)


def from_json(data: dict[str, Any]) -> Progress:
    pairs = {k: tuple(tuple(p) for p in data[k]) for k in ("checks", "curve")}
    return Progress(**{**data, **pairs})
