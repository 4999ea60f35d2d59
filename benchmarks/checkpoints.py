"""What do verified checkpoints cost?  python benchmarks/checkpoints.py [--steps 100] [--every 50] [--rounds 5] [--full]

The training of `luthier init` on SmolLM2 (LoRA in the upper half of the layers; with --full all weights), in three ways
that take turns in one process, each from the same weights:

    none     no checkpoint
    saves    one after every so many steps: a snapshot, written, synced, hashed and renamed beside the training
    waits    the same, and training waits until each is written

Share of the run: the time of `saves` and of `waits` over that of `none` in the same round, less one; mean of the rounds
with its 95 % interval (Student's t), and the rounds' range. Rounds differ by what else the machine does, so the share
that a checkpoint could take at most stands beside it: the seconds in which training stood still for it, and those that
the writer worked (on another core, or at the training's expense), over the run's. What is written is the same bits each
time, and training ends in the same bits each way.

Frozen layers are computed once, before the rounds: steps are as short as they get. A run of the demo itself saves less
often than every 50 steps: each 60 s, and after each validation that is the best so far.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy import stats

from luthier import lifecycle
from luthier.adapt import adapt, trainable
from luthier.decoder import Decoder
from luthier.machine import keeping_freed_memory
from luthier.models import Base, load_model, load_tokenizer
from luthier.progress import Quiet
from luthier.recipe import load
from luthier.settings import Recipe
from luthier.starter import write_starter
from luthier.target import base_of
from luthier.train import make_plan, read_data, repeatable
from luthier.train.checkpoint import Checkpoints
from luthier.train.data import StepData
from luthier.train.loop import Plan, Progress, fit
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy
from luthier.trunk import kept_trunk

WAYS = ("none", "saves", "waits")


class Timed(Checkpoints):
    """Checkpoints that count the seconds of their writer."""

    wrote_s = 0.0

    def _write(self, step: int, tensors: Any, *args: Any) -> None:
        began = time.monotonic()
        super()._write(step, tensors, *args)
        self.wrote_s += time.monotonic() - began


@dataclass
class Sometimes:
    """A keeper of every n-th step alone."""

    checkpoints: Timed
    way: str
    every: int
    stood_s: float = 0.0

    def save(self, step: int, progress: dict[str, Any], best_step: int) -> None:
        if self.way == "none" or step == 0 or step % self.every:
            return
        began = time.monotonic()
        self.checkpoints.save(step, progress, best_step)
        if self.way == "waits":
            self.checkpoints._settle()
        self.stood_s += time.monotonic() - began

    def restore(self, step: int) -> None:
        raise AssertionError("no step is bad")


@dataclass
class Short:
    """The recipe's steps, and one batch to validate on."""

    data: StepData

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def valid(self) -> Any:
        return islice(self.data.valid(), 1)


@dataclass
class Taken:
    seconds: float
    stood_s: float
    wrote_s: float
    n_bytes: int
    """Of a checkpoint."""
    last: dict[str, torch.Tensor]


@dataclass
class Training:
    recipe: Recipe
    decoder: Decoder
    data: StepData
    begun: dict[str, torch.Tensor]

    @classmethod
    def of(cls, recipe: Recipe, prepared: Path, base: Base) -> Training:
        repeatable()
        decoder = Decoder(adapt(load_model(base), recipe.model.adapt, base, recipe.seed))
        data = read_data(recipe, prepared, base, load_tokenizer(base), share=decoder.shares)
        return cls(recipe, decoder, data, _copy(decoder))

    def run(self, folder: Path, plan: Plan, way: str, every: int) -> Taken:
        parameters = trainable(self.decoder.model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.begun[name])
        optimizer = make_optimizer(parameters, self.recipe.train)
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        with Timed(folder, parameters, optimizer, print) as checkpoints, keeping_freed_memory():
            keeper = Sometimes(checkpoints, way, every)
            data = Short(self.data)
            fit(self.decoder, optimizer, [CrossEntropy()], data, plan, Progress(), keeper, Quiet())
            last_step = time.monotonic()
        ended = time.monotonic()  # the last one is waited for
        stood_s = keeper.stood_s + ended - last_step
        n_bytes = sum(file.stat().st_size for file in folder.glob(f"step-{plan.n_steps:08d}/*"))
        return Taken(ended - began, stood_s, checkpoints.wrote_s, n_bytes, _copy(self.decoder))


def _copy(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainable(decoder.model).items()}


def interval(values: list[float]) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.2%} ± {half:.2%} ({min(values):+.2%} to {max(values):+.2%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--workspace", type=Path, default=Path("runs/checkpoints"))
    given = parser.parse_args()
    shutil.rmtree(given.workspace, ignore_errors=True)
    write_starter(given.workspace / "demo")
    settings = ("model.adapt={method: full}",) if given.full else ()
    path = given.workspace / "demo" / "recipe.yaml"
    recipe = load(path, settings)
    run = lifecycle.run(path, overrides=settings, workspace=given.workspace / "runs", until="prepare")
    training = Training.of(recipe, run.folder / "prepare", base_of(recipe, path.parent))
    assert training.data.n_steps >= given.steps, f"the demo has {training.data.n_steps} steps"
    plan = replace(make_plan(recipe, training.data), n_steps=given.steps, save_every_s=0.0)
    taken: dict[str, list[Taken]] = {way: [] for way in WAYS}
    with kept_trunk(training.decoder, training.data.homes(), given.workspace) as said:
        print(f"{said}; {given.steps} steps, a checkpoint every {given.every}", flush=True)
        training.run(given.workspace / "kept", plan, "none", given.every)
        for i in range(given.rounds):
            for way in (*WAYS[i % 3 :], *WAYS[: i % 3]):
                taken[way].append(training.run(given.workspace / "kept", plan, way, given.every))
            print(f"round {i + 1}: " + ", ".join(f"{way} {taken[way][-1].seconds:.1f} s" for way in WAYS), flush=True)
    ends = [one.last for way in WAYS for one in taken[way]]
    assert all(torch.equal(tensor, end[name]) for end in ends for name, tensor in ends[0].items())
    print(f"\n{taken['saves'][0].n_bytes / 1e6:.0f} MB each\n")
    print("| way | share of the run | stood still | writer worked |\n|---|---|---|---|")
    for way in WAYS[1:]:
        shares = [t.seconds / none.seconds - 1 for t, none in zip(taken[way], taken["none"], strict=True)]
        stood, wrote = (mean(getattr(t, name) / t.seconds for t in taken[way]) for name in ("stood_s", "wrote_s"))
        print(f"| {way} | {interval(shares)} | {stood:.2%} | {wrote:.2%} |")


if __name__ == "__main__":
    main()
