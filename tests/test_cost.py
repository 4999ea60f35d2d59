"""What a step takes, told from shapes: parts that add up, and the same operations and tensors as a real step has."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from luthier.adapt import adapt, trainable
from luthier.batch import Batch, make_batch
from luthier.cost import Rates, StepCost, Work, on_shapes, step_cost
from luthier.decoder import Decoder
from luthier.encode import Encoded
from luthier.errors import ModelError
from luthier.models import Base, find_base, load_model
from luthier.settings import (
    AdaLora,
    Adapt,
    Bottleneck,
    Full,
    Lora,
    Partial,
    Peft,
    Prefix,
    Prompt,
    PTuning,
)
from luthier.tune.advise_trial import gradient

FULL, LORA = Full(method="full"), Lora(rank=4)
TECHNIQUES: dict[str, Adapt] = {
    "lora": LORA,
    "upper": Lora(rank=4, last_layers=1),
    "dora": Lora(rank=4, dora=True),
    "pissa": Lora(rank=4, init="pissa"),
    "full": FULL,
    "last layer": Partial(method="partial", last_layers=1),
    "adalora": AdaLora(method="adalora", target_rank=2, initial_rank=4),
    "ia3": Peft(method="peft", type="IA3"),
    "loha": Peft(method="peft", type="LOHA", target="all-linear", params={"r": 2}),
    "bottleneck": Bottleneck(method="bottleneck", size=8),
    "prompt": Prompt(method="prompt", tokens=4),
    "p_tuning": PTuning(method="p_tuning", tokens=4),
    "prefix": Prefix(method="prefix", tokens=4),
}


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


def batch(length: int = 48, n: int = 3) -> Batch:
    learn = [t >= length // 2 for t in range(length)]
    rows = [[(37 * i + 11 * t) % 400 for t in range(length)] for i in range(n)]
    return make_batch([Encoded(ids, learn, str(i), "") for i, ids in enumerate(rows)])


def told(base: Base, how: Adapt, *batches: Batch, own_layers: bool = False) -> StepCost:
    decoder = on_shapes(base, how)
    if own_layers:
        decoder.fused = None
    return step_cost(decoder, batches or [batch()], gradient)


def real(base: Base, how: Adapt) -> Decoder:
    decoder = Decoder(adapt(load_model(base), how, base, 0))
    decoder.model.train()
    return decoder


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_technique_has_a_cost(base: Base, name: str) -> None:
    how = TECHNIQUES[name]
    cost, decoder = told(base, how), real(base, how)
    assert cost.n_trainable == sum(p.numel() for p in trainable(decoder.model).values())
    assert cost.fused == (decoder.fused is not None)
    assert cost.memory.peak == sum(asdict(cost.memory).values())
    parameters = {p.data_ptr(): p.nbytes for p in decoder.model.parameters()}
    assert cost.memory.weights == pytest.approx(sum(parameters.values()), rel=0.02)  # and a few constants
    assert cost.memory.moments == 8 * cost.n_trainable
    assert cost.memory.kept > 0 and cost.work.product_flops > 0 and cost.work.attention_flops > 0


def test_more_tokens_take_more(base: Base) -> None:
    for how in (LORA, FULL, TECHNIQUES["ia3"]):
        for sizes in ([(24, 2), (24, 4), (24, 8)], [(16, 3), (48, 3), (144, 3)]):
            costs = [told(base, how, batch(*size)) for size in sizes]
            for figures in ([c.memory.peak for c in costs], [c.memory.kept for c in costs]):
                assert figures == sorted(set(figures))
            works = [asdict(c.work) for c in costs]
            assert all(a[k] < b[k] for a, b in pairwise(works) for k in a)


def test_a_second_micro_batch_adds_its_work_and_meets_the_gradients(base: Base) -> None:
    one, two = told(base, FULL, batch()), told(base, FULL, batch(), batch())
    assert two.work.attention_flops == 2 * one.work.attention_flops and two.n_tokens == 2 * one.n_tokens
    assert two.memory.gradients == one.memory.gradients == 4 * one.n_trainable
    assert two.memory.peak > one.memory.peak, "the first one's gradients are there at the second one's peak"


@pytest.mark.parametrize("how", [LORA, FULL], ids=["lora", "full"])
def test_the_products_are_those_of_a_real_step(base: Base, how: Adapt) -> None:
    """Counted by torch on the model's own layers, whose products all go through it."""
    decoder = real(base, how)
    decoder.fused = None
    with FlopCounterMode(display=False) as counter:
        gradient(decoder, batch())
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    products = sum(counted.get(f"aten.{op}", 0) for op in ("mm", "addmm", "bmm"))
    assert told(base, how, own_layers=True).work.product_flops == products


def test_the_products_of_full_training_are_the_formula(base: Base) -> None:
    """2NP forward and 4NP backward, 6MDV of the head: on fused layers too."""
    tree, config = batch(), real(base, FULL).body.config
    names = real(base, FULL).body.named_parameters()
    p = sum(w.numel() for name, w in names if w.ndim == 2 and "embed" not in name)
    n, m = tree.ids.numel(), tree.predict_at.numel()
    formula = 6 * n * p + 6 * m * config.hidden_size * config.vocab_size
    cost = told(base, FULL, tree)
    assert cost.fused and cost.work.product_flops == pytest.approx(formula, rel=2e-3)  # angles are products too
    assert cost.forward_flops == formula // 3


@pytest.mark.parametrize("own_layers", [False, True], ids=["fused", "own layers"])
@pytest.mark.parametrize("name", ["lora", "full", "upper", "ia3"])
def test_what_is_kept_is_what_autograd_saves(base: Base, name: str, own_layers: bool) -> None:
    """Of a real forward pass: the distinct tensors that it saves, without weights and merged matrices."""
    decoder, tree = real(base, TECHNIQUES[name]), batch(96, 4)
    if own_layers:
        decoder.fused = None
    weights = {p.untyped_storage().data_ptr() for p in decoder.model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with decoder.entered(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        states = decoder.tree_states(tree)
    n_bytes = sum(t.untyped_storage().nbytes() for t in saved.values())
    assert states.requires_grad
    assert told(base, TECHNIQUES[name], tree, own_layers=own_layers).memory.kept == pytest.approx(n_bytes, rel=0.15)


def test_layers_below_all_that_learns_are_found(base: Base) -> None:
    cost = told(base, TECHNIQUES["upper"])
    assert cost.n_frozen == 1 and 0 < cost.frozen_flops < cost.forward_flops
    assert told(base, LORA).n_frozen == 0


def test_a_smaller_optimizer_state_is_an_argument(base: Base) -> None:
    cost = step_cost(on_shapes(base, FULL), [batch()], gradient, moment_bytes=2)
    assert cost.memory.moments == 2 * cost.n_trainable


def test_row_by_row_is_not_foretold_and_said(base: Base) -> None:
    with pytest.raises(ModelError, match=r"LU-M022 .*dropout"):
        on_shapes(base, Lora(rank=4, dropout=0.1))
    with pytest.raises(ModelError, match="LU-M012"):
        on_shapes(base, Lora(rank=64))


@pytest.mark.parametrize("made", ["BloomConfig", "GPTJConfig", "Gemma2Config"])
def test_attention_that_shapes_show_not_to_be_plain_is_said(made: str, tmp_path: Path) -> None:
    config = getattr(transformers, made)(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    if made == "Gemma2Config":
        config.layer_types = ["full_attention"] * 2
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"LU-M022 .*(cannot be replaced|softcap)"):
        on_shapes(Base(made, tmp_path, made, ""), FULL)


def test_seconds_add_up() -> None:
    rates: Any = Rates(product_flops=100.0, attention_flops=10.0, moved_bytes=1.0)
    assert rates.seconds(Work(200, 10, 3)) == 2 + 1 + 3
    assert rates.seconds(Work(1, 2, 3) + Work(1, 0, 1)) == pytest.approx(0.02 + 0.2 + 4)
