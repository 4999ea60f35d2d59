"""What processes of a world do that a test has launched: the steps of a training, in float64.

    python together.py TINY OUT

The first process writes OUT/<adapt>-<way>-<size>.pt, way being ddp or fsdp: the gradient of the first step and the
weights after 20, whole. The rate is small: at ten times it, rounding grows tenfold a step.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rows import NoKeeper, conversations, make_recipe
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.adapt import adapt, trainable
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.models import find_base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.settings import Full, Lora
from luthier.train.data import StepData
from luthier.train.loop import Plan, Progress, fit
from luthier.train.optim import make_optimizer
from luthier.train.shards import Shards, shard
from luthier.train.terms import CrossEntropy
from luthier.train.world import ALONE, Replicas, World, joined

ADAPT: dict[str, Any] = {"lora": Lora(rank=2), "full": Full(method="full"), "recomputed": Full(method="full")}
STEPS = 20


class FirstGradient:
    """A hook that keeps it."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters, self.found = parameters, dict[str, Tensor]()

    def before_update(self, model: nn.Module, progress: Progress) -> None:
        if not self.found:
            self.found = {n: whole(p.grad) for n, p in self.parameters.items() if p.grad is not None}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def in_full(norm: Any, x: Tensor) -> Tensor:
    out: Tensor = norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return out


def steps(tiny: Path, how: str, world: World) -> dict[str, dict[str, Tensor]]:
    base = find_base(str(tiny))
    model = adapt(load_model(base, torch.device("cpu"), torch.float64), ADAPT[how], base, 0).double()
    for norm in (m for m in model.modules() if "RMSNorm" in type(m).__name__):
        norm.forward = partial(in_full, norm)  # the family's computes in float32, and Adam makes steps of its rounding
    decoder = Decoder(model)
    decoder.own_layers("so that both ways compute the same")
    decoder.recompute = 2 if how == "recomputed" else 0
    if world.sharded:
        shard(decoder, torch.device("cpu"), None)
    encoder = Encoder(load_tokenizer(base))
    examples = encoder.all(conversations(40))
    data = StepData(examples[8:], examples[:8], 10, 8, 96, seed=0, share=True, rank=world.rank, size=world.size)
    assert len(StepData(examples[8:], examples[:8], 10, 8, 96, seed=0).groups(0)) > 2, "micro-batches are accumulated"
    parameters = trainable(model)
    first = FirstGradient(parameters)
    plan = Plan(STEPS, lambda _: 1e-3, 0, 0.5, 5, None, 1e9, hooks=(first,))
    optimizer = make_optimizer(parameters, make_recipe(learning_rate=1e-3).train)
    done = fit(decoder, optimizer, [CrossEntropy()], data, plan, Progress(), NoKeeper(), Quiet(), world=world)
    told = {
        "nll": torch.tensor([v for _, v in (*done.curve, *done.checks)], dtype=torch.float64),
        "norm": torch.tensor(done.norms, dtype=torch.float64),
    }
    return {"gradient": first.found, "weights": {n: whole(p) for n, p in parameters.items()}, "told": told}


def main(tiny: str, out: str) -> None:
    with joined(Replicas, timedelta(minutes=5)) as replicas:
        for way, world in (("ddp", replicas), ("fsdp", Shards())):
            for how in ADAPT:
                found = steps(Path(tiny), how, world)
                if world.rank == 0:
                    torch.save(found, Path(out) / f"{how}-{way}-{world.size}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

__all__ = ["ALONE", "steps"]
