"""AdamW, when it updates, and the learning-rate schedule: pure functions of the recipe and the progress made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

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


def update_in_backward(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let each of these parameters be updated in the backward pass, and its gradient dropped (Lv et al. 2023).

    They must get their gradient at once, in one backward pass a step, which raises FloatingPointError for one that is
    not finite.
    """
    wanted = set(parameters)
    for group in optimizer.param_groups:
        for parameter in wanted.intersection(group["params"]):
            parameter.register_post_accumulate_grad_hook(_update(optimizer, group, parameter))


def _update(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> Callable[[Tensor], None]:
    """The optimizer's own update, of one parameter: the state is the optimizer's, and so is what checkpoints hold."""
    alone = copy(optimizer)
    alone.state, alone.param_groups = optimizer.state, [{**group, "params": [parameter]}]

    def update(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if not torch.isfinite(norm := parameter.grad.norm()):
            raise FloatingPointError(str(float(norm)))
        alone.param_groups[0]["lr"] = group["lr"]
        alone.step()
        parameter.grad = None

    return update


def learning_rate(settings: Train, fraction: float) -> float:
    """The rate when `fraction` of the run is done: linear warm-up, then cosine to zero, or constant."""
    warmup = settings.warmup_fraction
    if fraction < warmup:
        return settings.learning_rate * fraction / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min((fraction - warmup) / max(1 - warmup, 1e-12), 1.0)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
