"""Loss terms. A term names its unit and returns a *sum* over units; the loop divides once a step.

m learned edges of a chunk, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from luthier.kernels import nll, nll_grad

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
    """The sum of weights times -log p(target): its gradient, weights x (p - onehot), is made in one pass.

    Autograd's own would write three tensors of the logits' size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        nats, lse = nll(logits, targets)
        ctx.save_for_backward(logits, lse, targets, weights)
        return (nats * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, lse, targets, weights = ctx.saved_tensors
        return nll_grad(logits, lse, targets, weights.to(logits.dtype) * grad), None, None
