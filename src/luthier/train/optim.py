"""AdamW and the learning-rate schedule: both pure functions of the recipe and the progress made."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from luthier.quantized import check_bitsandbytes
from luthier.settings import Train


def make_optimizer(
    parameters: dict[str, nn.Parameter], settings: Train, lora_plus_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), in 8 bits if so set; weight decay on matrices, not on norms and biases.

    LoRA's B learns `lora_plus_ratio` times as fast as the rest (LoRA+, Hayou et al. 2024): the loop multiplies each
    group's `lr_ratio` into the schedule's rate.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): []}  # matrices come first
    for name, p in parameters.items():
        ratio = lora_plus_ratio if ".lora_B." in name else 1.0
        groups.setdefault((p.ndim >= 2, ratio), []).append(p)
    made = [
        {"params": members, "weight_decay": settings.weight_decay if matrices else 0.0, "lr_ratio": ratio}
        for (matrices, ratio), members in groups.items()
        if members
    ]
    if settings.optimizer == "adamw_8bit":
        return AdamW8bit(made, settings.learning_rate)
    # fused: one pass over a tensor and its moments instead of ten
    return torch.optim.AdamW(made, lr=settings.learning_rate, fused=True)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits, each block of 256 with a scale (Dettmers et al. 2022, arXiv 2110.02861).

    Tensors of fewer than 4096 numbers have theirs in float32, as with the authors. The update is bitsandbytes', on CPUs
    and GPUs; its own optimizer is not used because it puts the table of the 256 values into each parameter's state.
    """

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float) -> None:
        """Raises ModelError LU-M002 where bitsandbytes is not installed."""
        check_bitsandbytes()
        from bitsandbytes import functional

        super().__init__(groups, {"lr": learning_rate})
        self._functional = functional
        self._values = [functional.create_dynamic_map(signed=signed) for signed in (True, False)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.contiguous(), group["lr"], group["weight_decay"])

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float, decay: float) -> None:
        state, betas = self.state[p], self.betas
        if not state:
            state.update(_no_moments(p))
        state["step"] += 1
        first, second, step = state["moment1"], state["moment2"], int(state["step"])
        if first.dtype is torch.float32:
            self._functional.optimizer_update_32bit(
                "adam", grad, p, first, betas[0], self.eps, step, lr, second, betas[1], weight_decay=decay
            )
            return
        self._values = [values.to(p.device) for values in self._values]
        tables = (*self._values, state["scales1"], state["scales2"])
        self._functional.optimizer_update_8bit_blockwise(
            "adam", grad, p, first, second, *betas, 0.0, 0.0, self.eps, step, lr, *tables, decay
        )


def _no_moments(p: nn.Parameter) -> dict[str, Tensor]:
    """The state before the first step; each moment in blocks of 256 that share a scale."""
    state, kind = {"step": torch.tensor(0.0)}, torch.float32 if p.numel() < 4096 else torch.uint8
    for moment in ("1", "2"):
        state[f"moment{moment}"] = torch.zeros_like(p, dtype=kind)
        if kind is torch.uint8:
            state[f"scales{moment}"] = p.new_zeros(math.ceil(p.numel() / 256), dtype=torch.float32)
    return state


def learning_rate(settings: Train, fraction: float) -> float:
    """The rate when `fraction` of the run is done: linear warm-up, then cosine to zero, or constant."""
    warmup = settings.warmup_fraction
    if fraction < warmup:
        return settings.learning_rate * fraction / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = min((fraction - warmup) / max(1 - warmup, 1e-12), 1.0)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
