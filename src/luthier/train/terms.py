"""Loss terms. A term names its unit and returns a *sum* over units; the loop divides once a step.

m learned edges of a chunk, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Unit = Literal["token", "sequence"]


class Term(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def unit(self) -> Unit: ...

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Logits (m, V) float32, targets (m,), how many examples learn each (m,) -> () nats, summed."""


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    name: str = "nll"
    weight: float = 1.0
    unit: Unit = "token"

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return _WeightedNll.apply(logits, targets, weights)  # type: ignore[no-any-return]


class _WeightedNll(torch.autograd.Function):
    """The sum of weights times -log p(target): its gradient, weights x (p - onehot), is made in place.

    Autograd's own would write three tensors of the logits' size where this one reuses the log-probabilities.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        log_p = logits.log_softmax(dim=-1)  # (m, V)
        ctx.save_for_backward(log_p, targets, weights)
        return -(log_p.gather(1, targets[:, None])[:, 0] * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        log_p, targets, weights = ctx.saved_tensors
        scale = (weights * grad).to(log_p.dtype)[:, None]  # (m, 1)
        grad_logits = log_p.exp_().mul_(scale)
        return grad_logits.scatter_add_(1, targets[:, None], -scale), None, None
