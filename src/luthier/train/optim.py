"""AdamW and the learning-rate schedule: both pure functions of the recipe and the progress made."""

from __future__ import annotations

import math

import torch
from torch import nn

from luthier.settings import Train


def make_optimizer(
    parameters: dict[str, nn.Parameter], settings: Train, lora_plus_ratio: float = 1.0
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); weight decay on matrices, not on norms and biases.

    LoRA's B learns `lora_plus_ratio` times as fast as the rest (LoRA+, Hayou et al. 2024): the loop multiplies each
    group's `lr_ratio` into the schedule's rate.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): []}  # matrices come first
    for name, p in parameters.items():
        ratio = lora_plus_ratio if ".lora_B." in name else 1.0
        groups.setdefault((p.ndim >= 2, ratio), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": settings.weight_decay if matrices else 0.0, "lr_ratio": ratio}
            for (matrices, ratio), members in groups.items()
            if members
        ],
        lr=settings.learning_rate,
        fused=True,  # one pass over a tensor and its moments instead of ten
    )


def learning_rate(settings: Train, fraction: float) -> float:
    """The rate when `fraction` of the run is done: linear warm-up, then cosine to zero, or constant."""
    warmup = settings.warmup_fraction
    if fraction < warmup:
        return settings.learning_rate * fraction / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min((fraction - warmup) / max(1 - warmup, 1e-12), 1.0)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
