"""AdamW and the learning-rate schedule: both pure functions of the recipe and the progress made."""

from __future__ import annotations

import math

import torch
from torch import nn

from luthier.settings import Train


def make_optimizer(parameters: dict[str, nn.Parameter], settings: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices, not on norms and biases."""
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    rest = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate(settings: Train, fraction: float) -> float:
    """The rate when `fraction` of the run is done: linear warm-up, then cosine to zero, or constant."""
    warmup = settings.warmup_fraction
    if fraction < warmup:
        return settings.learning_rate * fraction / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min((fraction - warmup) / max(1 - warmup, 1e-12), 1.0)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
