"""Is what we compute what the model computes alone?  python benchmarks/exactness.py

**Float64.** A random Llama with each technique: the loss of a packed tree of several levels, cut into micro-batches,
and the gradient of every tensor, against plain peft or transformers running one example after the other. Norms and
rotary embeddings are float64 too; transformers computes them in float32 whatever the model is, which would hide
differences below 1e-7. Largest difference of an example's nll, relative to it; largest of a tensor's gradient, relative
to its norm (or to a thousandth of the whole gradient's norm, where that is more: some gradients are zero but for
rounding).

**Float32.** SmolLM2 with LoRA, six draws of the adapters: how far from float64 are transformers one by one, our
trees over the model's own layers, and our fused layers? Rounding has no right answer, but ours must not be worse than
theirs. Root mean square difference of a token's nll; norm of the whole gradient's difference, and median of the
tensors', relative. Means over the draws (least and most).
"""

from __future__ import annotations

import argparse
import copy
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier import kernels
from luthier.adapt import adapt, trainable
from luthier.batch import make_batch, split_by_tokens
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.models import Base, find_base, load_model
from luthier.recipe import validate
from luthier.settings import Adapt
from luthier.techniques import TECHNIQUES
from luthier.tiny import write_tiny_model
from luthier.train import repeatable
from luthier.train.loop import backward
from luthier.train.terms import CrossEntropy

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMALL: dict[str, dict[str, Any]] = {
    "BEFT": {"target": ["v_proj"]},
    "C3A": {"target": ALL, "params": {"block_size": 16}},
    "IA3": {},
    "OFT": {"target": ALL, "params": {"oft_block_size": 8}},
    "BOFT": {"target": ALL},
    "VBLORA": {"target": ALL, "params": {"r": 4, "num_vectors": 16, "vector_length": 16}},
    "VERA": {"target": ["q_proj", "v_proj"], "params": {"r": 16}},
}
"""What these take; the others take a rank."""
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "norms": {"method": "partial", "train": ".*norm.*"},
    "last layer": {"method": "partial", "last_layers": 1},
    "LoRA": {"rank": 4},
    "rsLoRA": {"rank": 4, "rslora": True},
    "DoRA": {"rank": 4, "dora": True},
    "PiSSA": {"rank": 4, "init": "pissa"},
    "OLoRA": {"rank": 4, "init": "olora"},
    "LoRA, ranks by layer": {"rank": 4, "rank_pattern": {"v_proj": 8}},
    "LoRA, last layer": {"rank": 4, "last_layers": 1},
    "AdaLoRA": {"method": "adalora", "target_rank": 2, "initial_rank": 4},
    "bottleneck, Houlsby": {"method": "bottleneck", "size": 8, "placement": "houlsby"},
    "bottleneck, Pfeiffer": {"method": "bottleneck", "size": 8, "placement": "pfeiffer"},
    "bottleneck, parallel": {"method": "bottleneck", "size": 8, "placement": "parallel"},
    "prompt tuning": {"method": "prompt", "tokens": 5},
    "P-tuning": {"method": "p_tuning", "tokens": 5, "hidden": 24},
    "prefix tuning": {"method": "prefix", "tokens": 5},
} | {
    name: {"method": name.lower()} | SMALL.get(name, {"target": ALL, "params": {"r": 4}}) for name in sorted(TECHNIQUES)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the random model alone")
    asked = parser.parse_args()
    repeatable()
    with TemporaryDirectory() as folder:
        base = find_base(str(write_tiny_model(Path(folder) / "tiny")))
        print("| technique, float64 | fused layers: nll | gradient | the model's own layers: nll | gradient |")
        print("|---|---|---|---|---|")
        for name, settings in SETTINGS.items():
            print(f"| {name} | {' | '.join(in_float64(base, settings))} |", flush=True)
    if not asked.quick:
        print("\n| LoRA on SmolLM2, float32 against float64 | a token's nll, nats | gradient | a tensor's, median |")
        print("|---|---|---|---|")
        draws = [dict(in_float32(find_base("smollm2-135m-instruct"), seed)) for seed in range(6)]
        for way in draws[0]:
            cells = (f"{mean(x):.1e} ({min(x):.1e}-{max(x):.1e})" for x in zip(*(d[way] for d in draws), strict=True))
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


# -- the two comparisons -----------------------------------------------------------------------------------------


def in_float64(base: Base, settings: dict[str, Any]) -> list[str]:
    """Largest differences of nll and of gradients, by way; a dash where fused layers refuse the technique."""
    with whole_digits():
        model = moved(adapt(load_model(base, torch.device("cpu"), torch.float32), how(settings), base, 0)).double()
        examples = tree_of_examples(512)
        expected = alone(model, examples)
        decoder = Decoder(model)
        found = []
        for layers in (decoder.fused, None):
            if layers is None and not found:
                found += ["-", "-"]
                continue
            decoder.fused = layers
            nll, gradients = differences(packed(decoder, examples), expected)
            found += [f"{nll:.1e}", f"{max(gradients):.1e}"]
        return found


def in_float32(base: Base, seed: int) -> Iterator[tuple[str, tuple[float, float, float]]]:
    examples = tree_of_examples(40_000)
    single = moved(adapt(load_model(base, torch.device("cpu"), torch.float32), how({"rank": 8}), base, seed), 0.02)
    with whole_digits():
        expected = alone(copy.deepcopy(single).double(), examples)

    def gap(found: Found) -> tuple[float, float, float]:
        token = (torch.cat(found[0]) - torch.cat(expected[0])).square().mean().sqrt()
        return float(token), apart(flat(found[1]), flat(expected[1])), median(differences(found, expected)[1])

    yield "transformers and peft, one by one", gap(alone(single, examples))
    decoder = Decoder(single)
    fused, decoder.fused = decoder.fused, None
    yield "packed trees, the model's own layers", gap(packed(decoder, examples))
    decoder.fused = fused
    yield "packed trees, fused layers", gap(packed(decoder, examples))


# -- what is compared --------------------------------------------------------------------------------------------

Found = tuple[list[Tensor], dict[str, Tensor]]
"""The nll of each example's learned tokens, and the gradient of the mean of them all."""


def alone(model: Any, examples: Sequence[Encoded]) -> Found:
    """One example after the other, through nothing of ours."""
    model.eval().zero_grad(set_to_none=True)
    n, nats = sum(e.n_learned for e in examples), []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0, -len(example.ids) : -1]
        nll = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")[torch.tensor(example.learn[1:])]
        (nll.sum() / n).backward()
        nats.append(nll.detach())
    return nats, gradients_of(model)


def packed(decoder: Decoder, examples: Sequence[Encoded]) -> Found:
    """As `train` does it, in micro-batches of 96 tokens."""
    decoder.model.eval().zero_grad(set_to_none=True)
    n = sum(e.n_learned for e in examples)
    nats: dict[str, Tensor] = {}
    for group in split_by_tokens(examples, 96, share=decoder.shares):
        batch = make_batch(group, share=decoder.shares)
        with torch.no_grad():
            nll, _ = kernels.nll(decoder.head(decoder.hidden(batch)), batch.targets)
        for i, name in enumerate(batch.names):
            edges = batch.edge[batch.example == i]
            nats[name] = nll[edges[batch.positions[batch.predict_at[edges]].argsort()]]
        backward(decoder, [CrossEntropy()], batch, {"token": n, "sequence": len(examples)})
    return [nats[e.id] for e in examples], gradients_of(decoder.model)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}


def differences(found: Found, expected: Found) -> tuple[float, list[float]]:
    """The largest of an example's nll, and those of all tensors, relative."""
    nll = max(apart(a.sum(), b.sum()) for a, b in zip(found[0], expected[0], strict=True))
    floor = 1e-3 * float(flat(expected[1]).norm())
    return nll, [apart(found[1][name], gradient, floor) for name, gradient in expected[1].items()]


def apart(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    return float((found.double() - expected).norm()) / max(float(expected.norm()), floor)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.double().flatten() for _, gradient in sorted(gradients.items())])


# -- models and examples -----------------------------------------------------------------------------------------


def how(settings: dict[str, Any]) -> Adapt:
    tree = {
        "name": "exactness",
        "data": {"sources": [{"path": "none.jsonl"}]},
        "model": {"adapt": settings},
        "release": {"rules": [{"metric": "perplexity", "must": "beat_baseline"}]},
    }
    return validate(tree, "exactness", Path()).model.adapt


def moved(model: nn.Module, by: float = 0.05) -> nn.Module:
    """Away from where training begins: a matrix that is zero would hide what is behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model


def tree_of_examples(vocabulary: int) -> list[Encoded]:
    """Twelve that continue each other's beginnings, with ragged masks; two are equal."""
    rng = random.Random(0)
    rows: list[list[int]] = [rng.choices(range(3, vocabulary), k=24)]
    while len(rows) < 11:
        stem = rng.choice(rows)[: rng.randint(8, 40)] if rng.random() < 0.8 else []
        rows.append(stem + rng.choices(range(3, vocabulary), k=rng.randint(4, 24)))
    rows.append(rows[3])
    masks = [[rng.random() < 0.5 for _ in row[:-1]] + [True] for row in rows]
    return [Encoded(row, mask, str(i), "") for i, (row, mask) in enumerate(zip(rows, masks, strict=True))]


@contextmanager
def whole_digits() -> Iterator[None]:
    """While this lasts, Llama's norms and rotations are as exact as the numbers that they are given."""
    from transformers.models.llama import modeling_llama as llama

    before = llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward
    llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = _norm, _rotary
    try:
        yield
    finally:
        llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = before


def _norm(self: Any, x: Tensor) -> Tensor:
    normed: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * normed


def _rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
    both = torch.cat([angles, angles], -1)
    return both.cos() * self.attention_scaling, both.sin() * self.attention_scaling


if __name__ == "__main__":
    main()
