"""How fast Luthier trains on a GPU: share of its matrix rate, against others, and what shared beginnings save.

    python benchmarks/gpu.py [--parts rate,peers,sharing] [--models 1b,8b] [--methods lora,full] [--rounds 6]
                             [--out FILE] [--device cpu --quick]

Random weights in the shapes of Llama 3.2 1B and Llama 3.1 8B, rows of 1,536 random tokens: nothing is fetched. LoRA
(rank 16, every linear layer) on bfloat16 weights, or full fine-tuning: float32 weights and moments with bfloat16
products, as `train` does it, where they fit into the memory, else all of it in bfloat16; the table says which. A step
goes from token ids to updated weights. All ways train one model with one optimizer and take turns; the first two rounds
(compilation) are not counted, the device is synchronised around each step, and figures are medians.

    rate     every token is learned. Useful operations as `engine.py` counts them, a second, over the rate of the
             products of all projections and of the head at the step's own numbers of rows, measured in turns with the
             steps in bfloat16; and over that of 8192 x 8192 x 8192
    peers    the last 512 tokens of a row are learned, nothing is shared. transformers: the model's own forward pass
             with labels and sdpa; trl: SFTTrainer.training_step; each also with Liger's kernels, if it is installed.
             Without gradient checkpointing, but where memory does not suffice
    sharing  the same with the first 0, 256 and 1,024 tokens in common: packed as one tree, and as rows of their own

`--quick` runs all of it on a tiny model, to see that it runs. Ratios are medians of the rounds' own, with their range.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products are not repeatable, and torch says so

import torch
from engine import line, listed, table
from engine_data import as_rows, head_weight, projections, useful_flops
from torch import Tensor

from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import first_line
from luthier.machine import describe
from luthier.models import Base, load_tokenizer, quiet_transformers
from luthier.settings import Full, Lora, Train
from luthier.tiny import write_tiny_model
from luthier.train import repeatable
from luthier.train.loop import backward
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy

SEED, WARM_UP = 7, 2
TRAIN = Train(learning_rate=1e-5, weight_decay=0.0, max_grad_norm=1.0)
METHODS: dict[str, Full | Lora] = {"lora": Lora(rank=16, alpha=32), "full": Full(method="full")}
Examples = list[Encoded]


class Size(NamedTuple):
    config: dict[str, Any]
    rows: int  # a step's
    length: int  # tokens of a row
    learned: int  # of them, where not all are
    prefixes: tuple[int, ...]


def _shape(hidden: int, inner: int, layers: int, heads: int, size: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "head_dim": size,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


SIZES = {
    "1b": Size(_shape(2048, 8192, 16, 32, 64, 128_256, True), 8, 1536, 512, (0, 256, 1024)),
    "8b": Size(_shape(4096, 14336, 32, 32, 128, 128_256, False), 4, 1536, 512, (0, 256, 1024)),
}
TINY = Size(_shape(64, 128, 2, 4, 16, 512, True), 4, 48, 16, (0, 8, 32))


class Setting(NamedTuple):
    device: torch.device
    rounds: int
    base: Base
    """Of a tiny model: for its tokenizer, which TRL asks for."""


class Way(NamedTuple):
    name: str
    step: Callable[[Examples], float]
    """One update; nats per learned token."""


def synthetic(size: Size, shared: int, learned: int, seed: int) -> Examples:
    """A step's rows, which begin with the same `shared` tokens; the last `learned` tokens are learned."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, size.config["vocab_size"], (size.rows, size.length), generator=generator)
    rows[:, :shared] = rows[0, :shared]
    learn = [i >= size.length - learned for i in range(size.length)]
    return [Encoded(row, learn, str(i), "") for i, row in enumerate(rows.tolist())]


# -- what is trained -------------------------------------------------------------------------------------


class Trained(NamedTuple):
    model: Any
    decoder: Decoder
    optimizer: torch.optim.Optimizer
    said: str
    """In which types."""


def opened(setting: Setting, size: Size, method: str) -> Trained:
    import transformers

    gc.collect()
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(**size.config, attn_implementation="sdpa")
    with setting.device, quiet_transformers():
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    n = sum(p.numel() for p in model.parameters())
    said = ""
    if method == "lora" or 18 * n < 0.8 * memory_bytes(setting.device):
        model = adapt(model, METHODS[method], setting.base, SEED)
    else:  # float32 weights, their bfloat16 copy, gradients and two moments
        model, said = model.requires_grad_(True), f" (float32: {18 * n / 2**30:.0f} GiB)"
    decoder = Decoder(model)
    products_in = decoder.fused.dtype if decoder.fused else "its layers' own type"
    return Trained(
        model,
        decoder,
        make_optimizer(trainable(model), TRAIN),
        f"{decoder._inner.dtype}, products {products_in}{said}".replace("torch.", ""),
    )


def memory_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 2**40


def update(trained: Trained) -> None:
    parameters = [p for g in trained.optimizer.param_groups for p in g["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, TRAIN.max_grad_norm)
    trained.optimizer.step()
    trained.optimizer.zero_grad(set_to_none=True)


def own_way(trained: Trained, *, share: bool = True) -> Way:
    decoder = trained.decoder

    def step(examples: Examples) -> float:
        repeatable()
        batch = make_batch(examples, share=share).to(decoder.device)
        decoder.model.train()
        with decoder.entered():
            nats = backward(decoder, [CrossEntropy()], batch, {"token": batch.n_targets, "sequence": 1})
        update(trained)
        return float(nats) / batch.n_targets

    return Way("luthier" if share else "luthier, nothing shared", step)


def transformers_way(trained: Trained) -> Way:
    device = trained.decoder.device

    def step(examples: Examples) -> float:
        torch.use_deterministic_algorithms(False)
        rows = as_rows(examples)
        ids, labels = (torch.tensor([row[key] for row in rows], device=device) for key in ("input_ids", "labels"))
        trained.model.train()
        masters = trained.decoder._inner.dtype is torch.float32
        with torch.autocast(device.type, torch.bfloat16) if masters else nullcontext():
            loss = trained.model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        update(trained)
        return float(loss.detach())

    return Way("transformers", step)


def trl_way(setting: Setting, trained: Trained, folder: Path) -> Way:
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    rows = as_rows([Encoded([1, 2, 3], [True] * 3, "", "")])
    with quiet_transformers():
        trainer = SFTTrainer(
            model=trained.model,
            processing_class=load_tokenizer(setting.base),
            train_dataset=datasets.Dataset.from_list(rows),
            args=SFTConfig(
                output_dir=str(folder),
                max_length=None,
                bf16=True,
                gradient_checkpointing=False,
                use_cpu=setting.device.type == "cpu",
                report_to="none",
                disable_tqdm=True,
            ),
        )

    def step(examples: Examples) -> float:
        torch.use_deterministic_algorithms(False)
        batch = trainer.data_collator(as_rows(examples))
        n, trainer.current_gradient_accumulation_steps = batch["labels"][..., 1:].ne(-100).sum(), 1
        loss = float(trainer.training_step(trained.model, batch, n.to(setting.device)))
        update(trained)
        return loss

    return Way("trl", step)


def with_liger(trained: Trained, make: Callable[[], Way], *, head: bool) -> Way:
    """Changes the model's own layers for good, which ours do not call; `head`: its loss without logits, too.

    TRL has such a loss of its own, and applies Liger's kernels when `train` begins, which nobody calls here.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=trained.decoder._inner, fused_linear_cross_entropy=head)
    way = make()
    return Way(f"{way.name} + Liger", way.step)


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


# -- measuring -------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A figure a round."""

    seconds: list[float]
    gib: list[float]
    losses: list[float]


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, by the device's own clock where it has one: it runs behind the program."""
    if device.type != "cuda":
        started = time.perf_counter()
        return work(), time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    found = work()
    end.record()
    torch.cuda.synchronize()
    return found, begin.elapsed_time(end) / 1e3


def in_turns(setting: Setting, ways: Sequence[Way], steps: Sequence[Examples]) -> dict[str, Seen]:
    seen = {way.name: Seen([], [], []) for way in ways}
    for i, examples in enumerate(steps):
        for way in ways if i % 2 else ways[::-1]:
            if setting.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            loss, seconds = timed(setting.device, lambda way=way, examples=examples: way.step(examples))
            peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else 0
            if i >= WARM_UP:
                for figures, value in zip(seen[way.name], (seconds, peak / 2**30, loss), strict=True):
                    figures.append(value)
    return seen


def steps_of(setting: Setting, size: Size, shared: int, learned: int) -> list[Examples]:
    return [synthetic(size, shared, learned, SEED + i) for i in range(setting.rounds + WARM_UP)]


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f}-{max(found):.2f})"


def products(decoder: Decoder, n: int, m: int, method: str) -> tuple[float, float]:
    """Of n rows by each projection and m by the head: seconds in bfloat16, on random numbers, and flops."""
    device, seconds, flops = decoder.device, 0.0, 0.0
    jobs = [(tuple(w.shape), n) for w in projections(decoder).values()] + [(tuple(head_weight(decoder).shape), m)]
    for job in dict.fromkeys(jobs):
        (wide, narrow), rows = job
        x, w, y = (drawn(device, *s) for s in ((rows, narrow), (wide, narrow), (rows, wide)))
        calls: list[Callable[[], Tensor]] = [lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w]
        calls += [lambda x=x, y=y: y.T @ x] if method == "full" else []
        for call in calls:
            seconds += jobs.count(job) * once(device, call)
            flops += jobs.count(job) * 2.0 * rows * wide * narrow
    return seconds, flops


def drawn(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def once(device: torch.device, call: Callable[[], Any], times: int = 3) -> float:
    """Seconds of a call, among as many that follow each other."""
    call()
    return timed(device, lambda: [call() for _ in range(times)])[1] / times


# -- parts -----------------------------------------------------------------------------------------------


def rate(setting: Setting, name: str, size: Size, method: str, folder: Path) -> Iterator[str]:
    trained = opened(setting, size, method)
    way, rounds = own_way(trained), []
    large = [drawn(setting.device, 8192, 8192) for _ in range(2)] if setting.device.type == "cuda" else []
    for examples in steps_of(setting, size, 0, size.length):
        tree = make_batch(examples)
        alone, flops = products(trained.decoder, tree.ids.numel(), tree.predict_at.numel(), method)
        most = 2 * 8192**3 / once(setting.device, lambda: large[0] @ large[1]) if large else flops / alone
        seen = in_turns(setting._replace(rounds=1), [way], [examples] * (WARM_UP + 1))["luthier"]
        useful = useful_flops(trained.decoder, [tree], method)
        rounds.append((seen.seconds[0], seen.gib[0], useful, flops / alone, most))
    seconds, gib, useful, alone, most = (median(column) for column in zip(*rounds, strict=True))
    shares = [f / s / a for s, _, f, a, _ in rounds]
    n = size.rows * size.length
    figures = (n, f"{seconds:.3f}", f"{n / seconds:,.0f}", f"{gib:.1f}", f"{useful / seconds / 1e12:.1f}")
    layers = trained.decoder.path.rpartition("; ")[2]
    of_their = f"{median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})"
    yield line(
        name, method, trained.said, *figures, f"{alone / 1e12:.1f}", of_their, f"{useful / seconds / most:.0%}", layers
    )


def peers(setting: Setting, name: str, size: Size, method: str, folder: Path) -> Iterator[str]:
    trained = opened(setting, size, method)
    has_trl, has_liger = installed("trl", "datasets"), installed("liger_kernel") and setting.device.type == "cuda"

    def plain() -> Way:
        return transformers_way(trained)

    def trl() -> Way:
        return trl_way(setting, trained, folder)

    others: list[Callable[[], Way]] = [plain, *[trl] * has_trl]
    others += [lambda: with_liger(trained, trl, head=False)] * (has_trl and has_liger)
    others += [lambda: with_liger(trained, plain, head=True)] * has_liger
    for other in others:
        try:
            yield from _against(setting, name, size, method, other(), trained)
        except Exception as error:  # another's mistake must not cost the tables that follow
            yield line(name, method, "cannot run", f"{type(error).__name__}: {first_line(error)}", *[""] * 4)


def _against(setting: Setting, name: str, size: Size, method: str, other: Way, trained: Trained) -> Iterator[str]:
    """In turns with ours; where memory does not suffice, with gradient checkpointing."""
    ways, steps = [own_way(trained), other], steps_of(setting, size, 0, size.learned)
    labels, seen = [way.name for way in ways], None
    try:
        seen = in_turns(setting, ways, steps)
    except torch.OutOfMemoryError:  # what it holds is freed behind this block
        labels[1] += ", checkpointing"
    if seen is None:
        trained.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        trained.decoder._inner.gradient_checkpointing_enable({"use_reentrant": False})
        seen = in_turns(setting, ways, steps)
        trained.decoder._inner.gradient_checkpointing_disable()
    ours, n = seen[ways[0].name], size.rows * size.length
    for label, one in zip(labels, seen.values(), strict=True):
        gap = max(abs(a / b - 1) for a, b in zip(one.losses, ours.losses, strict=True))
        seconds = median(one.seconds)
        figures = f"{seconds:.3f}", f"{n / seconds:,.0f}", f"{max(one.gib):.1f}", ratio(one.seconds, ours.seconds)
        yield line(name, method, label, *figures, f"{gap:.0e}")


def sharing(setting: Setting, name: str, size: Size, method: str, folder: Path) -> Iterator[str]:
    trained = opened(setting, size, method)
    ways = [own_way(trained, share=False), own_way(trained)]
    for shared in size.prefixes:
        steps = steps_of(setting, size, shared, size.learned)
        seen = in_turns(setting, ways, steps)
        for way, one in seen.items():
            started = time.perf_counter()
            n = make_batch(steps[0], share=way == "luthier").ids.numel()
            making = time.perf_counter() - started
            figures = (
                f"{median(one.seconds):.3f}",
                f"{max(one.gib):.1f}",
                ratio(seen[ways[0].name].seconds, one.seconds),
            )
            yield line(name, method, shared, way, n, *figures, f"{making:.3f}")


# -- the command -----------------------------------------------------------------------------------------

PARTS = {part.__name__: part for part in (rate, peers, sharing)}
COLUMNS = {
    "rate": "method weights tokens_a_step s_a_step tokens/s peak_GiB TFLOP/s its_products_alone of_their_rate "
    "of_a_large_product's layers",
    "peers": "method way s_a_step tokens/s peak_GiB its_time_over_ours losses_differ_by",
    "sharing": "method shared way tokens_computed s_a_step peak_GiB unshared_time_over_it making_a_batch,_s",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=listed(PARTS), default=list(PARTS))
    parser.add_argument("--models", type=listed(SIZES), default=list(SIZES))
    parser.add_argument("--methods", type=listed(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="where the tables go, too")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it runs")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    sizes = {"tiny": TINY} if given.quick else {name: SIZES[name] for name in given.models}

    def say(text: str) -> None:
        print(text, flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(text + "\n")

    machine = describe()
    missing = [package for package in ("trl", "datasets", "liger_kernel") if not installed(package)]
    say(f"{machine['device']}, {machine['processor']}, torch {machine['torch version']}")
    say(f"Not installed: {', '.join(missing) or 'nothing'}.")
    with TemporaryDirectory() as scratch:
        folder = write_tiny_model(Path(scratch) / "tiny")
        base = Base("random", folder, "random/random", "")
        setting = Setting(torch.device(given.device), min(given.rounds, 2) if given.quick else given.rounds, base)
        for part in given.parts:
            say(table(part, *(column.replace("_", " ") for column in COLUMNS[part].split())))
            for name, size in sizes.items():
                for method in given.methods:
                    for text in PARTS[part](setting, name, size, method, Path(scratch) / "trl"):
                        say(text)


if __name__ == "__main__":
    main()
