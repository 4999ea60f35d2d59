"""Bottleneck adapters begin as the base, stand where they say in every decoder that has the place, and load again."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_models import ARCHITECTURES, TREE, built, by_architecture, random_examples
from torch import Tensor, nn

from luthier.bottleneck import CONFIG, WEIGHTS, Shape, insert, load, save
from luthier.decoder import Decoder
from luthier.errors import ModelError
from luthier.files import sha256_of
from luthier.trunk import kept_trunk

SHAPE = Shape("acme/base", "houlsby", size=4, activation="gelu", scale=1.0, first_layer=0)
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")
NO_PLACE = {
    ("bloom", "houlsby"): "MLP adds the residual itself; `placement: parallel` may fit",
    ("bloom", "pfeiffer"): "MLP adds the residual itself; `placement: parallel` may fit",
    **{("mamba", placement): "layer 0 has no one MLP; its parts are mixer" for placement in PLACEMENTS},
}

OWN_LAYERS = f"{TREE}; the model's own layers: something hooks into them"


def fresh(architecture: str = "llama") -> nn.Module:
    return copy.deepcopy(built(architecture))


def with_adapters(shape: Shape, architecture: str = "llama", moved: float = 0.1) -> Any:
    """A random model whose adapters are moved from where they begin, as training would."""
    model = insert(fresh(architecture), shape).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += moved * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(torch.arange(3, 30)[None]).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("placement", PLACEMENTS)
@by_architecture
def test_it_begins_as_the_base_and_every_adapter_learns(architecture: str, placement: str) -> None:
    """In each decoder of the tests; or the place is missing, which is said, and nothing has changed."""
    shape, model = replace(SHAPE, placement=placement), fresh(architecture)
    if reason := NO_PLACE.get((architecture, placement)):
        with pytest.raises(ModelError, match=f"LU-M013 model.adapt: bottleneck, {placement}: .*{reason}"):
            insert(model, shape)
        assert all(p.requires_grad for p in model.parameters())
        return
    expected = logits(model)
    adapted = insert(model, shape)
    assert torch.equal(logits(adapted), expected)
    moved = with_adapters(shape, architecture)
    F.cross_entropy(moved(torch.arange(3, 30)[None]).logits[0], torch.arange(4, 31)).backward()
    learning = {n: p for n, p in moved.named_parameters() if p.requires_grad}
    assert len(learning) == 4 * 2 * (2 if placement == "houlsby" else 1)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learning.values())
    assert all(p.grad is None for n, p in moved.named_parameters() if n not in learning)


def test_what_each_placement_computes() -> None:
    """One layer of a Llama, written out."""
    for placement in PLACEMENTS:
        shape = replace(SHAPE, placement=placement, scale=2.0, activation="silu")
        model = with_adapters(shape)
        [layer, _] = model.model.layers
        x, rotary = (
            torch.randn(1, 5, 16).double(),
            model.model.rotary_emb(torch.zeros(1).double(), torch.arange(5)[None]),
        )
        plain: Any = fresh()
        of_base = plain.model.layers[0]

        def adapter(name: str, h: Tensor, layer: Any = layer) -> Tensor:
            a = getattr(layer, f"bottleneck_{name}")
            hidden = F.silu(h @ a.down.weight.T + a.down.bias)
            return 2.0 * (hidden @ a.up.weight.T + a.up.bias)  # type: ignore[no-any-return]

        with torch.no_grad():
            attended = of_base.self_attn(of_base.input_layernorm(x), rotary, None)[0]
            if placement == "houlsby":
                attended = attended + adapter("self_attn", attended)
            h = x + attended
            normed = of_base.post_attention_layernorm(h)
            out = of_base.mlp(normed)
            expected = h + out + adapter("mlp", normed if placement == "parallel" else out)
            assert torch.allclose(layer(x, position_embeddings=rotary), expected, rtol=1e-12, atol=1e-12)


def test_a_copy_of_the_model_calls_its_own_adapters() -> None:
    model = with_adapters(SHAPE)
    twin, before = copy.deepcopy(model), logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(twin), before)


def test_adapters_keep_their_precision_on_a_model_of_another() -> None:
    model = insert(copy.deepcopy(built("llama")).bfloat16(), SHAPE)
    kept = {str(p.dtype) for n, p in model.named_parameters() if "bottleneck" in n}
    assert kept == {"torch.float32"} and logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_is_saved_loads_to_the_bit_and_to_the_same_files(placement: str, tmp_path: Path) -> None:
    shape = replace(SHAPE, placement=placement, first_layer=1)
    model = with_adapters(shape).float()
    for name in ("one", "two"):
        save(model, tmp_path / name)
    again = load(fresh().float(), tmp_path / "one")
    assert torch.equal(logits(again), logits(model)) and again.bottleneck == shape
    save(again, tmp_path / "three")
    for file in (WEIGHTS, CONFIG):
        assert len({sha256_of(tmp_path / name / file) for name in ("one", "two", "three")}) == 1
    assert json.loads((tmp_path / "one" / CONFIG).read_text())["base_model"] == "acme/base"


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    save(with_adapters(SHAPE), tmp_path)
    with pytest.raises(ModelError, match="LU-M011 .*not for a model of this architecture"):
        load(fresh("gpt2"), tmp_path)


def test_layers_below_the_first_adapter_run_once_per_example(tmp_path: Path) -> None:
    decoder = Decoder(with_adapters(replace(SHAPE, first_layer=1)))
    with kept_trunk(decoder, [random_examples(1)], tmp_path) as path:
        assert path == f"{OWN_LAYERS}; layer 0 once per example"


def test_the_check_at_load_takes_the_packed_path_wherever_the_base_does() -> None:
    for architecture, (_, _, path) in ARCHITECTURES.items():
        if path.startswith(TREE):
            assert Decoder(with_adapters(SHAPE, architecture)).path.startswith(f"{TREE}; the model's own layers: ")
