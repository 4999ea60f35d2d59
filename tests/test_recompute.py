"""Layers that are computed again give the same bits, and keep less."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import IN_FLOAT32, built, gradients, random_examples
from test_prompts import PROMPTS
from test_prompts import adapted as with_prompt
from torch import Tensor, nn

from luthier.batch import make_batch
from luthier.decoder import Decoder
from luthier.models import Base, find_base
from luthier.recompute import kept_bytes


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


def found(decoder: Decoder, recompute: int, size: int = 4) -> tuple[int, Tensor, dict[str, Tensor]]:
    """Bytes kept, hidden states, and the gradients of a function of them."""
    batch = make_batch(random_examples(size), share=decoder.shares)
    decoder.recompute = recompute
    torch.manual_seed(0)  # dropout is the same, too
    kept = kept_bytes(lambda: decoder.hidden(batch), decoder.model.parameters())
    torch.manual_seed(0)
    states = decoder.hidden(batch)
    return kept, states.detach(), gradients(decoder.model, states.sin().sum()[None])


def check(decoder: Decoder) -> None:
    whole, *expected = found(decoder, 0)
    some, *_ = found(decoder, 1)
    least, states, grads = found(decoder, 2)
    assert least < some < whole
    assert torch.equal(states, expected[0]) and grads.keys() == expected[1].keys()
    assert all(torch.equal(grads[name], expected[1][name]) for name in grads)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "own layers"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
def test_a_tree(architecture: str, fused: bool) -> None:
    decoder = Decoder(copy.deepcopy(built(architecture)).requires_grad_(True))
    assert decoder.fused is not None
    if not fused:
        decoder.fused = None
    check(decoder)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_families_that_run_their_own_layers(architecture: str) -> None:
    dtype = torch.float32 if architecture in IN_FLOAT32 else torch.float64
    decoder = Decoder(copy.deepcopy(built(architecture, dtype)).requires_grad_(True))
    assert decoder.fused is None
    check(decoder)


def test_rows_with_dropout_draw_the_same_noise_again() -> None:
    model: Any = copy.deepcopy(built("llama")).requires_grad_(True).train()
    for layer in model.model.layers:
        layer.mlp.down_proj = nn.Sequential(layer.mlp.down_proj, nn.Dropout(0.3))
    decoder = Decoder(model)
    assert not decoder.shares
    check(decoder)


@pytest.mark.parametrize("name", PROMPTS)
def test_virtual_tokens(base: Base, name: str) -> None:
    """Keys and values of a prefix are another layer's each time a layer is computed: it must be its own again."""
    check(Decoder(with_prompt(base, name)))


def test_rows_with_a_prefix_are_not_recomputed(base: Base) -> None:
    decoder = Decoder(with_prompt(base, "prefix"))
    assert decoder.recomputable
    decoder._rows_only = "asked for"
    assert not decoder.recomputable


def test_the_path_says_it() -> None:
    decoder = Decoder(copy.deepcopy(built("llama")))
    decoder.recompute = 2
    assert decoder.path.endswith("; 2 layers computed again in the backward pass")


def test_nothing_of_what_was_measured_stays_in_memory() -> None:
    """An operation that keeps its own output, as exp does, would hold itself if that were kept as it is."""

    def measured() -> weakref.ref[Tensor]:
        model = nn.Linear(4, 4)
        assert kept_bytes(lambda: model(torch.ones(2, 4)).exp(), []) > 0
        return weakref.ref(model.weight)

    assert measured()() is None
