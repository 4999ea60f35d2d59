"""How fast Luthier trains, against TRL's SFTTrainer: steps, validation, memory, curves, losses, rate.

    python benchmarks/engine.py [--parts steps,validation,memory,curves,losses,rate] [--sets A,B] [--methods lora,full]
                                [--ways trl,learned,single,packed,generic,fused] [--rounds 8] [--quick]

SmolLM2-135M-Instruct in float32: LoRA (rank 8, alpha 16, every linear layer) or all weights. A step goes from token
ids to updated weights: batches are made, forward and backward pass, clipping at 1, AdamW at 2e-4. All ways get the same
examples (`engine_data.py`) with the same learned tokens, begin every step at the same weights and take turns in one
process; the first step of each is not counted. Ratios are medians of the rounds' own, TRL's time over the way's, with
their range, and how far the losses of a way ever were from TRL's stands beside them.

    trl      training_step without gradient checkpointing and bf16 (both slower here), sdpa attention, padded
    learned  the same with the head on learned tokens alone, as TRL has it on GPUs (on CPUs: on all, padding too)
    single   trl, one example at a time, gradients accumulated: no padding, small matrix products
    packed   trl, packing=True, packing_strategy="bfd", max_length=1024 (its default), one such row at a time: CPU
             attention computes a dense mask over it, so longer rows are slower
    generic  Luthier on the model's own layers        fused    Luthier on its fused layers, where it has them
    rounded  fused, products in bfloat16

Where a step's padded examples are more than 3,200 tokens (`curves` alone), TRL accumulates gradients, as memory asks.
`memory` is of a fresh process that trains in one way. `losses` trains with each way on its own, from the same weights.

`rate` divides the step's useful floating point operations by its time, and this by the rate of the matrix products of
all projections and of the head at the step's own numbers of rows (forward and gradient shapes, the model's weights),
which are measured in turns with the steps. N tokens of the tree, in which shared ones stand once, M learned places, P
weights of all projections, D x V of the head, r x E of LoRA's A and B together, pairs: which token sees which:

    LoRA    2NP forward, 2NP backward without the first layer's q, k, v (nothing before them learns), 4NrE, 4MDV
    full    2NP forward, 4NP backward, 6MDV           both    attention 12 H C for each of the pairs, in each layer

4NrE is what A and B need if they are merged for the forward pass. What is computed twice and what is element-wise does
not count. With `--methods full` all ways together hold 20 GiB; `--ways` takes fewer (the first is always trl).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import engine_data as data
import torch
from engine_data import SETS, Examples
from torch import Tensor, nn

from luthier.adapt import adapt, trainable
from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.machine import describe
from luthier.models import Base, find_base, load_model, load_tokenizer, quiet_transformers
from luthier.settings import Full, Lora, Train
from luthier.tiny import write_tiny_model
from luthier.train import repeatable
from luthier.train.loop import backward, nll_sums
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy
from luthier.train.world import ALONE

SEED = 7
METHODS: dict[str, Full | Lora] = {"lora": Lora(rank=8, alpha=16), "full": Full(method="full")}
TRAIN = Train(learning_rate=2e-4, weight_decay=0.0, max_grad_norm=1.0)
EXAMPLES_PER_STEP = 8
PREFIXES, STEP_SIZES = (0, 64, 256, 1024), (1, 2, 4, 8, 16)
MOST_APART = 1e-3
"""How far two loss curves may be apart."""


class Way(NamedTuple):
    """One way to train `model`."""

    model: nn.Module
    ready: Callable[[Examples], Any]
    """What is made of a step's examples before training begins, and not timed."""
    step: Callable[[Any], float]
    """One update; nats per learned token."""
    nll: Callable[[Any], float]


class Setting(NamedTuple):
    """What all parts need to know."""

    base: Base
    encoder: Encoder
    ways: tuple[str, ...]
    rounds: int
    quick: bool
    scratch: Path

    def steps(self, make: data.Make, n: int, size: int = EXAMPLES_PER_STEP) -> list[Examples]:
        rows = make(self.encoder, n * size, SEED)
        return [rows[i : i + size] for i in range(0, len(rows), size)]


# -- ways to train ---------------------------------------------------------------------------------------


def mean_nll(decoder: Decoder, batches: Sequence[Batch]) -> float:
    """Nats per learned token."""
    found = nll_sums(decoder, ALONE.rounds(batches, lambda: batches[0]))
    assert found is not None
    return found[0] / found[1]


def open_ways(setting: Setting, method: str, names: Sequence[str]) -> dict[str, Way]:
    """Two copies of the same weights, one for TRL's ways and one for ours; `fused` only where the decoder has it."""
    gc.collect()  # trainers refer to themselves and would keep their models until the next one is loaded
    found: dict[str, Way] = {}
    if peers := [name for name in names if name in TRL_WAYS]:
        model = load(setting.base, method)
        found |= {name: trl_way(setting, model, **TRL_WAYS[name]) for name in peers}
    if own := [name for name in names if name in OUR_WAYS]:
        decoder = Decoder(load(setting.base, method))
        fused = decoder.fused
        if "generic" in own:
            found["generic"] = our_way(decoder, None)
        if "fused" in own and fused is not None:
            found["fused"] = our_way(decoder, fused)
        if "rounded" in own and fused is not None:
            rounded = Decoder(decoder.model, torch.bfloat16)
            found["rounded"] = our_way(rounded, rounded.fused)
    return found


def load(base: Base, method: str) -> nn.Module:
    return adapt(load_model(base, torch.device("cpu"), torch.float32), METHODS[method], base, SEED)


def our_way(decoder: Decoder, fused: Any) -> Way:
    optimizer = make_optimizer(trainable(decoder.model), TRAIN)

    def batches(examples: Examples) -> list[Batch]:
        repeatable()
        decoder.fused = fused
        return packed_trees(decoder, examples)

    def step(examples: Examples) -> float:
        found = batches(examples)
        decoder.model.train()
        n = sum(b.n_targets for b in found)
        with decoder.entered():
            nats = sum(float(backward(decoder, [CrossEntropy()], b, {"token": n, "sequence": 1})) for b in found)
        update(optimizer)
        return nats / n

    return Way(decoder.model, lambda examples: examples, step, lambda examples: mean_nll(decoder, batches(examples)))


def packed_trees(decoder: Decoder, examples: Examples) -> list[Batch]:
    groups = split_by_tokens(examples, TRAIN.tokens_per_micro_batch, share=decoder.shares)
    return [make_batch(group, share=decoder.shares) for group in groups]


def update(optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], TRAIN.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


OUR_WAYS = ("generic", "fused", "rounded")
TRL_WAYS: dict[str, dict[str, bool]] = {
    "trl": {},
    "learned": {"only_learned": True},
    "single": {"single": True},
    "packed": {"single": True, "packing": True},
}


def trl_way(
    setting: Setting, model: Any, *, only_learned: bool = False, single: bool = False, packing: bool = False
) -> Way:
    from unittest.mock import patch

    trainer = sft_trainer(setting, model, packing)
    optimizer = trainer.create_optimizer()

    def head() -> AbstractContextManager[Any]:
        """`_use_triton` is how TRL 1.16 asks whether to run its head on learned tokens alone."""
        return patch("trl.trainer.utils._use_triton", lambda device: True) if only_learned else nullcontext()

    def batches(rows: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        torch.use_deterministic_algorithms(False)
        size = 1 if single else data.rows_at_once(rows)
        return [trainer.data_collator(rows[i : i + size]) for i in range(0, len(rows), size)]

    def step(rows: list[dict[str, Any]]) -> float:
        found = batches(rows)
        n, trainer.current_gradient_accumulation_steps = data.n_learned(found), len(found)
        with head():
            loss = sum(float(trainer.training_step(model, batch, n)) for batch in found)
        update(optimizer)
        return loss

    def nll(rows: list[dict[str, Any]]) -> float:
        """In batches of 8, TRL's own size, and total over total: `evaluate` takes the mean of the batches' means."""
        model.eval()
        found = [b for i in range(0, len(rows), 8) for b in batches(rows[i : i + 8])]
        with head():
            nats = [float(trainer.prediction_step(model, b, True)[0]) * int(data.n_learned([b])) for b in found]
        return sum(nats) / int(data.n_learned(found))

    return Way(model, data.pack if packing else data.as_rows, step, nll)


def sft_trainer(setting: Setting, model: Any, packing: bool) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    assert model.config._attn_implementation == "sdpa"
    with quiet_transformers():
        return SFTTrainer(
            model=model,
            processing_class=setting.encoder.tokenizer,
            train_dataset=datasets.Dataset.from_list(data.as_rows(SETS["A"](setting.encoder, 1, SEED))),
            args=SFTConfig(
                output_dir=str(setting.scratch / "trl"),
                per_device_train_batch_size=EXAMPLES_PER_STEP,
                learning_rate=TRAIN.learning_rate,
                weight_decay=TRAIN.weight_decay,
                max_length=data.PACKED_TOKENS if packing else None,
                packing=packing,
                packing_strategy="bfd",
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            ),
        )


# -- measuring -------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What was measured of one way, a figure a round."""

    seconds: list[float]
    values: list[float]


def in_turns(ways: Mapping[str, Way], steps: Sequence[Examples], work: str = "step") -> dict[str, Seen]:
    """Each way's steps, all of a round from the same weights, in alternating order; round 0 is not timed."""
    seen = {name: Seen([], []) for name in ways}
    names = list(ways)
    weights = copied(ways[names[0]].model)
    for i, examples in enumerate(steps):
        for name in names if i % 2 else names[::-1]:
            way = ways[name]
            put(weights, way.model)
            ready = way.ready(examples)
            started = time.perf_counter()
            value = getattr(way, work)(ready)
            seconds = time.perf_counter() - started
            if i:
                seen[name].seconds.append(seconds)
            seen[name].values.append(value)
        weights = copied(ways[names[0]].model)
    return seen


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainable(model).items()}


@torch.no_grad()
def put(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, p in trainable(model).items():
        p.copy_(weights[name])


def ratio(seen: Mapping[str, Seen], name: str) -> str:
    """TRL's time over that of a way: the median of the rounds' ratios, and their range."""
    found = [a / b for a, b in zip(seen["trl"].seconds, seen[name].seconds, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def table(*header: str) -> str:
    return f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}"


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


# -- parts -----------------------------------------------------------------------------------------------


def steps(setting: Setting, method: str, sets: Sequence[str]) -> Iterator[str]:
    yield table("steps", "method", "way", "s a step", "TRL's time over it", "losses differ by at most")
    ways = open_ways(setting, method, setting.ways)
    for name in sets:
        yield from compared(in_turns(ways, setting.steps(SETS[name], setting.rounds + 1)), f"set {name}", method)


def validation(setting: Setting, method: str, sets: Sequence[str]) -> Iterator[str]:
    yield table("validation", "method", "way", "s", "TRL's time over it", "nll differs by at most")
    n = 2 * EXAMPLES_PER_STEP if setting.quick else 40
    ways = open_ways(setting, method, [way for way in setting.ways if way != "packed"])  # it evaluates as trl does
    for name in sets:
        rounds = [SETS[name](setting.encoder, n, SEED)] * (setting.rounds + 1)
        yield from compared(in_turns(ways, rounds, "nll"), f"set {name}, {n} examples", method)


def compared(seen: Mapping[str, Seen], title: str, method: str) -> Iterator[str]:
    for name, one in seen.items():
        gap = max(abs(a / b - 1) for a, b in zip(one.values, seen["trl"].values, strict=True))
        yield line(title, method, name, f"{median(one.seconds):.2f}", ratio(seen, name), f"{gap:.0e}")


def curves(setting: Setting, method: str, _: Sequence[str]) -> Iterator[str]:
    """TRL against the fastest of our ways."""
    sizes = STEP_SIZES[:3] if setting.quick else STEP_SIZES
    yield table(f"TRL's time over ours, {method}", *(f"{n} a step" for n in sizes))
    ways = open_ways(setting, method, ("trl", "generic", "fused"))
    ours = list(ways)[-1]
    for prefix in PREFIXES[:2] if setting.quick else PREFIXES:
        cells = []
        for size in sizes:
            found = setting.steps(data.chats_sharing(prefix), min(setting.rounds, 3) + 1, size)
            cells.append(ratio(in_turns({n: ways[n] for n in ("trl", ours)}, found), ours))
        shared = data.in_common([e for step in found for e in step])
        yield line(f"{shared} shared tokens, {ours}", *cells)


def losses(setting: Setting, method: str, sets: Sequence[str]) -> Iterator[str]:
    yield table("losses", "method", "way", "first", "last", "apart by at most", f"within {MOST_APART:g}")
    for name in sets:
        found = setting.steps(SETS[name], 6 if setting.quick else 60)
        theirs: list[float] = []
        for way in setting.ways:
            if curve := trained(setting, method, way, found):
                theirs = theirs or curve
                gap = max(abs(a - b) for a, b in zip(curve, theirs, strict=True))
                figures = (f"{curve[0]:.5f}", f"{curve[-1]:.5f}", f"{gap:.1e}", "yes" if gap <= MOST_APART else "NO")
                yield line(f"set {name}, {len(found)} steps", method, way, *figures)


def trained(setting: Setting, method: str, name: str, found: Sequence[Examples]) -> list[float]:
    """The losses of a way from the first weights on; none where there is no such way."""
    return [way.step(way.ready(examples)) for way in open_ways(setting, method, [name]).values() for examples in found]


def memory(setting: Setting, method: str, sets: Sequence[str]) -> Iterator[str]:
    yield table(
        "memory, GiB", "method", "way", "before the first step", "at most until then", "peak", "TRL's peak over it"
    )
    for name in sets:
        seen: dict[str, list[float]] = {}
        for way in setting.ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", f"{name} {method} {way}"]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if figures := json.loads(said.splitlines()[-1]):  # none: no such way
                seen[way] = figures
                cells = [f"{gib:.2f}" for gib in figures]
                yield line(f"set {name}", method, way, *cells, f"{seen['trl'][-1] / figures[-1]:.2f}")


def child(setting: Setting, what: str) -> None:
    """Trains in one way, and prints what it held: before the first step, at most until then, at most."""
    name, method, way_name = what.split()
    found = setting.steps(SETS[name], min(setting.rounds, 4))
    ways = open_ways(setting, method, [way_name])
    before = [held_gib("VmRSS"), held_gib("VmHWM")]
    for way in ways.values():
        for examples in found:
            way.step(way.ready(examples))
    print(json.dumps([*before, held_gib("VmHWM")] if ways else []))


def held_gib(key: str) -> float:
    """Resident memory now (VmRSS) or at most (VmHWM); `ru_maxrss` would begin with what the parent process held."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 2**20


# -- rate ------------------------------------------------------------------------------------------------


def rate(setting: Setting, method: str, sets: Sequence[str]) -> Iterator[str]:
    header = ("TFLOP a step", "s a step", "GFLOP/s", "matrix products alone, GFLOP/s", "of their rate")
    yield table("rate", "method", "way", *header)
    ways = open_ways(setting, method, [way for way in setting.ways if way in OUR_WAYS])
    decoder = Decoder(load(setting.base, method))
    for name in sets:
        for way_name, way in ways.items():
            rounds = []
            for examples in setting.steps(SETS[name], setting.rounds + 1):
                trees = packed_trees(decoder, examples)
                alone = data.products_rate(decoder, trees, method)
                started = time.perf_counter()
                way.step(examples)
                rounds.append((data.useful_flops(decoder, trees, method), time.perf_counter() - started, alone))
            work, seconds, alone = (median(column) for column in zip(*rounds[1:], strict=True))
            share = [f / s / a for f, s, a in rounds[1:]]
            figures = (f"{work / 1e12:.3f}", f"{seconds:.2f}", f"{work / seconds / 1e9:.0f}", f"{alone / 1e9:.0f}")
            yield line(
                f"set {name}", method, way_name, *figures, f"{median(share):.0%} ({min(share):.0%}-{max(share):.0%})"
            )


# -- the command -----------------------------------------------------------------------------------------

WAYS = (*TRL_WAYS, *OUR_WAYS)
PARTS = {f.__name__: f for f in (steps, validation, memory, curves, losses, rate)}


def listed(known: Collection[str]) -> Callable[[str], list[str]]:
    """Names from the command line, with commas between them."""

    def parse(given: str) -> list[str]:
        if unknown := set(given.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))} among {', '.join(known)}")
        return given.split(",")

    return parse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS))
    parser.add_argument("--sets", type=listed(SETS), default=list(SETS))
    parser.add_argument("--methods", type=listed(METHODS), default=["lora"])
    parser.add_argument("--ways", type=listed(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, to see that it runs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        name = str(write_tiny_model(folder / "tiny")) if given.quick else "smollm2-135m-instruct"
        base = find_base(name)
        ways = tuple(dict.fromkeys(["trl", *given.ways]))
        rounds = min(given.rounds, 2) if given.quick else given.rounds
        setting = Setting(base, Encoder(load_tokenizer(base)), ways, rounds, given.quick, folder)
        if given.child:
            return child(setting, given.child)
        machine = describe()
        print(f"{machine['processor']}, {given.threads} threads, torch {machine['torch version']}", flush=True)
        for part in given.parts:
            for method in given.methods:
                for text in PARTS[part](setting, method, given.sets):
                    print(text, flush=True)


if __name__ == "__main__":
    main()
