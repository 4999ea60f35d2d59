"""The processes that train together, and what they tell each other.

Each computes the gradient of its part of a step's examples. Sums are divided by counts over the whole step, which every
process knows, so the step's gradient is the sum of all parts, whatever the parts are: one process, or many, learn the
same but for rounding. What decides (norms, clocks, signals, validation) is agreed upon, so that all decide alike.

    Alone       one process
    Replicas    each holds the whole model; gradients are added up once a step (data parallel, "DDP")
    Shards      each holds a part of every layer: `train/shards.py` ("FSDP2")

This module knows nothing of models, steps or checkpoints.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luthier.errors import Stopped

B = TypeVar("B")

BUCKET = 2**25
"""Bytes of gradients that are sent at once."""
ROLL_CALL = timedelta(seconds=5)
"""For all that have waited in vain to say so."""


class World(Protocol):
    rank: int
    size: int
    sharded: bool
    """Whether layers are computed together, so that no process may leave out a micro-batch."""

    def sums(self, *values: float) -> list[float]:
        """Of each value over all processes."""

    def first(self, value: float) -> float:
        """The first process's value. Returns when all have come here."""

    def rounds(self, batches: Iterable[B], spare: Callable[[], B]) -> Iterator[tuple[B, bool]]:
        """What this process runs, and whether it counts: its batches, and `spare` ones while others have some left."""

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make each gradient the sum over all processes; one that none of them has stays None."""

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale gradients whose norm is larger down to it; returns the norm before that, ()."""


class Alone:
    rank, size, sharded = 0, 1, False

    def sums(self, *values: float) -> list[float]:
        return [*values]

    def first(self, value: float) -> float:
        return value

    def rounds(self, batches: Iterable[B], spare: Callable[[], B]) -> Iterator[tuple[B, bool]]:
        return ((batch, True) for batch in batches)

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        pass

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, most)


ALONE = Alone()


class Replicas(Alone):
    """Processes of `torch.distributed`'s default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def sums(self, *values: float) -> list[float]:
        """Raises Stopped LU-S005 where a process is lost."""
        told = torch.tensor(values, dtype=torch.float64, device=self._device)
        with _telling_who_is_lost(self.rank, self.size):
            dist.all_reduce(told)
            return [float(value) for value in told.tolist()]

    def first(self, value: float) -> float:
        return self.sums(value if self.rank == 0 else 0.0)[0]

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """The same bits everywhere: each part of a sum is made by one process and sent to all."""
        has = self.sums(*(float(p.grad is not None) for p in parameters))
        learned = [p for p, n in zip(parameters, has, strict=True) if n]
        for p in learned:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in learned if p.grad is not None]):
            flat = torch.cat([grad.flatten() for grad in bucket])
            with _telling_who_is_lost(self.rank, self.size):
                dist.all_reduce(flat)
            parts = flat.split([grad.numel() for grad in bucket])
            for grad, part in zip(bucket, parts, strict=True):
                grad.copy_(part.view_as(grad))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of one dtype, of BUCKET bytes or one gradient at most."""
    bucket: list[Tensor] = []
    for grad in gradients:
        if bucket and (bucket[0].dtype is not grad.dtype or sum(g.nbytes for g in bucket) + grad.nbytes > BUCKET):
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket


@contextmanager
def _telling_who_is_lost(rank: int, size: int) -> Iterator[None]:
    """Whoever waits in vain says so in the store, and who does not within ROLL_CALL is named. The store is the first
    process's: where it does not answer, that one is lost."""
    try:
        yield
    except RuntimeError as error:
        lost = [0]
        with suppress(RuntimeError):
            store = dist.distributed_c10d._get_default_store()
            store.set_timeout(ROLL_CALL)
            store.set(f"here/{rank}", "")
            time.sleep(ROLL_CALL.total_seconds())
            lost = [other for other in range(size) if not store.check([f"here/{other}"])]
        named = ", ".join(f"process {other} of {size}" for other in lost) or "another process"
        advice = "the same command goes on from the last checkpoint; --max-restarts lets it begin again by itself"
        raise Stopped.of("LU-S005", named, "does not answer any more", advice) from error


@contextmanager
def joined(made: Callable[[], World], wait: timedelta) -> Iterator[World]:
    """The world, once `made`, of the processes that a launcher (torchrun, or ours) has named in the environment.

    They `wait` so long for one that does not answer.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=wait)
    try:
        yield made()
    finally:
        dist.destroy_process_group()


def part_of(lengths: Sequence[int], rank: int, size: int) -> slice:
    """A run of about one `size`-th of the sum: each item lies in the part where its middle does.

    Items of length n_i; every item is in exactly one of the parts 0 to size - 1, which may be empty.
    """
    total, before, owners = sum(lengths), 0, []
    for length in lengths:
        owners.append(min(math.floor(size * (before + length / 2) / total), size - 1))
        before += length
    return slice(sum(o < rank for o in owners), sum(o <= rank for o in owners))
