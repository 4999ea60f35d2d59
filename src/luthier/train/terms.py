"""Loss terms. A term names its unit and returns a *sum* over units; the loop divides once a step.

m learned edges of a chunk, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
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
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
