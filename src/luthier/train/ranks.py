"""AdaLoRA's budget: which ranks of which layers stay, decided anew while it trains.

    r initial rank; W + s B E A with A (r, D_in), E (r, 1), B (D_out, r); D_in, D_out the sides of a matrix

A triplet is a row of A, a value of E and a column of B. After each update the triplets' importance is smoothed, and the
least important ones of all layers together lose their E (Zhang et al. 2023, arXiv 2303.10512, section 3). The layers
are peft's; the allocator is ours, because all that it remembers lies in the optimizer's state: so it is in the
checkpoint, and a resumed run keeps the same triplets. This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from luthier.settings import AdaLora
from luthier.train.loop import Progress

Triplet = tuple[nn.Parameter, nn.Parameter, nn.Parameter]
"""All triplets of one matrix: A, E and B."""


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """A hook: adds the gradient of weight x the mean of |A A' - 1| and |B' B - 1| (Frobenius) over all matrices, as
    peft has it; the paper squares them."""

    weight: float

    def before_update(self, model: nn.Module, progress: Progress) -> None:
        found = {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}
        squares = [p @ p.T if ".lora_A." in n else p.T @ p for n, p in found.items()]  # (r, r)
        norms = [torch.linalg.matrix_norm(s - torch.eye(len(s), dtype=s.dtype, device=s.device)) for s in squares]
        (self.weight * torch.stack(norms).mean()).backward()


def budget(how: AdaLora, step: int, n_steps: int) -> float:
    """The mean rank that stays after update `step`, 1 to `n_steps`: from initial to target, as a cubic."""
    start, final = int(how.start_fraction * n_steps), n_steps - int(how.final_fraction * n_steps)
    left = min(max((final - step) / (final - start), 0.0), 1.0)
    return how.target_rank + (how.initial_rank - how.target_rank) * left**3


def allocator(
    how: AdaLora, parameters: Mapping[str, nn.Parameter], n_steps: int
) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """What is to be called after each of the optimizer's updates, while the gradients are still there."""
    final = n_steps - int(how.final_fraction * n_steps)
    triplets = [
        (parameters[name.replace(".lora_E.", ".lora_A.")], e, parameters[name.replace(".lora_E.", ".lora_B.")])
        for name, e in parameters.items()
        if ".lora_E." in name
    ]

    @torch.no_grad()
    def allocate(optimizer: torch.optim.Optimizer, args: Any, given: Any) -> None:
        step = int(optimizer.state[triplets[0][0]]["step"])
        if step <= final:
            for parameter in chain.from_iterable(triplets):
                _smooth(parameter, optimizer.state[parameter], how.smoothing)
            n_kept = int(budget(how, step, n_steps) * len(triplets))
            scores = torch.cat([_scores(triplet, optimizer.state) for triplet in triplets])  # (n r,)
            kept = torch.zeros_like(scores).index_fill_(0, scores.argsort(descending=True, stable=True)[:n_kept], 1)
            for (_, e, _), mask in zip(triplets, kept.view(len(triplets), -1, 1), strict=True):
                optimizer.state[e]["kept"] = mask
        for _, e, _ in triplets:
            e.mul_(optimizer.state[e]["kept"])

    return allocate


def _smooth(parameter: nn.Parameter, state: dict[str, Tensor], smoothing: float) -> None:
    """Running means of |weight x gradient| and of how far it is from its mean."""
    assert parameter.grad is not None
    now = (parameter * parameter.grad).abs()
    zero = torch.zeros_like(now)
    state["importance"] = torch.lerp(now, state.get("importance", zero), smoothing)
    away = (now - state["importance"]).abs()
    state["uncertainty"] = torch.lerp(away, state.get("uncertainty", zero), smoothing)


def _scores(triplet: Triplet, states: Mapping[Tensor, Any]) -> Tensor:
    """Of each triplet: that of E, and the means of those of A's row and B's column: (r,)."""
    a, e, b = (states[p]["importance"] * states[p]["uncertainty"] for p in triplet)
    scores: Tensor = e[:, 0] + a.mean(dim=1) + b.mean(dim=0)
    return scores
