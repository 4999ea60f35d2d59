"""Training steps and validations with frozen layers run once per example, against all layers every time.

    python benchmarks/trunk.py [--steps 10] [--rounds 3] [--threads 2]

The starter's recipe and data: steps of the second epoch and the validation, in turns in one process, with the states
that they need computed before. Ratios are medians of the steps' own, all layers' time over ours: of wall time, and of
processor time, which other work on the machine disturbs less. The weights stay as they are, so that the losses of
both ways can be compared.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from luthier import recipe as recipes
from luthier.adapt import adapt, trainable
from luthier.batch import Batch
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.models import find_base, load_model, load_tokenizer
from luthier.prepare import prepare
from luthier.settings import Recipe
from luthier.starter import write_starter
from luthier.train import read_data
from luthier.train.data import StepData
from luthier.train.loop import backward, nll_sums
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy
from luthier.train.world import ALONE
from luthier.trunk import kept_trunk

Way = Callable[[], float]


def loaded(scratch: Path) -> tuple[Recipe, Decoder, StepData]:
    """The starter, as `luthier train` would begin with it."""
    write_starter(scratch / "starter")
    recipe = recipes.load(scratch / "starter" / "recipe.yaml")
    base = find_base(recipe.model.base)
    tokenizer = load_tokenizer(base)
    prepare(recipe, scratch / "starter", scratch / "prepared", Encoder(tokenizer, recipe.data.max_tokens))
    model = load_model(base, torch.device("cpu"), torch.float32)
    decoder = Decoder(adapt(model, recipe.model.adapt, base, recipe.seed))
    return recipe, decoder, read_data(recipe, scratch / "prepared", tokenizer, share=decoder.shares)


def step(decoder: Decoder, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> float:
    """One step as `fit` makes it, at a learning rate of 0: nats per learned token."""
    decoder.model.train()
    n = sum(b.n_targets for b in batches)
    nats = sum(float(backward(decoder, [CrossEntropy()], b, {"token": n, "sequence": 1})) for b in batches)
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return nats / n


def in_turns(decoder: Decoder, work: Way, ours_first: bool) -> dict[bool, tuple[float, float, float]]:
    """(wall s, processor s, value) with the kept states (True) and with all layers (False)."""
    shortcut, found = decoder.shortcut, {}
    for ours in (ours_first, not ours_first):
        decoder.shortcut = shortcut if ours else None
        wall, processor = time.perf_counter(), time.process_time()
        value = work()
        found[ours] = (time.perf_counter() - wall, time.process_time() - processor, value)
    decoder.shortcut = shortcut
    return found


def line(title: str, rounds: list[dict[bool, tuple[float, float, float]]]) -> str:
    cells = []
    for kind in (0, 1):
        whole, ours = (median(r[side][kind] for r in rounds) for side in (False, True))
        cells.append(f"{whole:.2f} | {ours:.2f} | {median(r[False][kind] / r[True][kind] for r in rounds):.2f}")
    gap = max(abs(r[True][2] / r[False][2] - 1) for r in rounds)
    return f"| {title} | {' | '.join(cells)} | {gap:.0e} |"


def measure(n_steps: int, n_rounds: int, scratch: Path) -> Iterator[str]:
    """The lines of the table."""
    recipe, decoder, data = loaded(scratch)
    optimizer = make_optimizer(trainable(decoder.model), recipe.train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    second = math.ceil(len(data.train) / data.examples_per_step)
    steps = [data.step(second + i) for i in range(n_steps)]
    with kept_trunk(decoder, data.homes(), scratch) as path:
        assert decoder.shortcut is not None, path
        with torch.no_grad():
            for batch in (*data.valid(), *(b for batches in steps for b in batches)):
                decoder.shortcut(batch)
        yield f"{path}\n"
        yield "| what | all layers, wall s | ours | ratio | all layers, processor s | ours | ratio | losses differ by |"
        yield "|---|---|---|---|---|---|---|---|"
        found = [in_turns(decoder, lambda b=b: step(decoder, optimizer, b), bool(i % 2)) for i, b in enumerate(steps)]
        yield line(f"step, {n_steps} of them", found)

        def validated() -> object:
            return nll_sums(decoder, ALONE.rounds(data.valid(), data.spare))

        found = [in_turns(decoder, validated, bool(i % 2)) for i in range(n_rounds)]
        yield line(f"validation, {n_rounds} of them", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as scratch:
        for text in measure(arguments.steps, arguments.rounds, Path(scratch)):
            print(text, flush=True)


if __name__ == "__main__":
    main()
