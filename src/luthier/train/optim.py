"""AdamW, when it updates, and the learning-rate schedule: pure functions of the recipe and the progress made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.quantized import check_bitsandbytes
from luthier.settings import Train

MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""Of a weight that learns, in the optimizer."""


def make_optimizer(
    parameters: dict[str, nn.Parameter], settings: Train, lora_plus_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), in 8 bits if so set; weight decay on matrices, not on norms and biases.

    LoRA's B learns `lora_plus_ratio` times as fast as the rest (LoRA+, Hayou et al. 2024): the loop multiplies each
    group's `lr_ratio` into the schedule's rate.
    """
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {(True, 1.0, False): []}  # matrices come first
    for name, p in parameters.items():
        ratio = lora_plus_ratio if ".lora_B." in name or ".lora_embedding_B." in name else 1.0
        groups.setdefault((p.ndim >= 2, ratio, isinstance(p, DTensor)), []).append(p)  # fused with its like alone
    made = [
        {"params": members, "weight_decay": settings.weight_decay if matrices else 0.0, "lr_ratio": ratio}
        for (matrices, ratio, _), members in groups.items()
        if members
    ]
    if settings.optimizer == "adamw_8bit":
        return AdamW8bit(made, settings.rate)
    # fused: one pass over a tensor and its moments instead of ten
    return torch.optim.AdamW(made, lr=settings.rate, fused=True)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits, each block of 256 with a scale (Dettmers et al. 2022, arXiv 2110.02861).

    Tensors of fewer than 4096 numbers have theirs in float32, as with the authors. The update is bitsandbytes', on CPUs
    and GPUs; its own optimizer is not used because it puts the table of the 256 values into each parameter's state.
    """

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        """Raises ModelError LU-M002 where bitsandbytes is not installed."""
        check_bitsandbytes()
        super().__init__(groups, {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.contiguous(), group["lr"], group["weight_decay"])

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float, decay: float) -> None:
        from bitsandbytes import functional

        state, betas = self.state[p], self.betas
        if not state:
            state.update(_no_moments(p))
        state["step"] += 1
        first, second, step = state["moment1"], state["moment2"], int(state["step"])
        if first.dtype is torch.float32:
            functional.optimizer_update_32bit(
                "adam", grad, p, first, betas[0], self.eps, step, lr, second, betas[1], weight_decay=decay
            )
            return
        tables = (*_values(p.device), state["scales1"], state["scales2"])
        functional.optimizer_update_8bit_blockwise(
            "adam", grad, p, first, second, *betas, 0.0, 0.0, self.eps, step, lr, *tables, decay
        )


@cache
def _values(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values that a number of 8 bits stands for, with a sign and without."""
    from bitsandbytes import functional

    signed, unsigned = (functional.create_dynamic_map(signed=signed).to(device) for signed in (True, False))
    return signed, unsigned


def _no_moments(p: nn.Parameter) -> dict[str, Tensor]:
    """The state before the first step; each moment in blocks of 256 that share a scale."""
    state, kind = {"step": torch.tensor(0.0)}, torch.float32 if p.numel() < 4096 else torch.uint8
    for moment in ("1", "2"):
        state[f"moment{moment}"] = torch.zeros_like(p, dtype=kind)
        if kind is torch.uint8:
            state[f"scales{moment}"] = p.new_zeros(math.ceil(p.numel() / 256), dtype=torch.float32)
    return state


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
        return settings.rate * fraction / warmup
    if settings.schedule == "constant":
        return settings.rate
    done = min((fraction - warmup) / max(1 - warmup, 1e-12), 1.0)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * done))
