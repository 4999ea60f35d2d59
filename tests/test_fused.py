"""Fused layers compute what a model's own layers do, whatever learns; what they do not know, they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from test_kernels import needs_interpreter, run_as
from test_models import (
    ARCHITECTURES,
    FUSED,
    SHAPE,
    TREE,
    built,
    check_gradients,
    gradients,
    one_by_one,
    random_examples,
    with_decoder,
)
from torch import Tensor, nn

from luthier import fused, kernels, projections
from luthier.batch import Batch, make_batch
from luthier.decoder import Decoder
from luthier.fused import FusedLayers
from luthier.models import quiet_transformers

FAMILIES = [name for name, (*_, path) in ARCHITECTURES.items() if path == FUSED]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# -- models -----------------------------------------------------------------------------------------------


def _norm(self: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight  # type: ignore[no-any-return]


def _rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].to(x.dtype) * self.inv_freq.to(x.dtype)
    both = torch.cat([angles, angles], -1)
    return both.cos() * self.attention_scaling, both.sin() * self.attention_scaling


@contextmanager
def in_full(model: nn.Module) -> Iterator[None]:
    """While this lasts, norms and rotations of the model are float64 where transformers casts down to float32."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in {type(m) for m in model.modules()}:
            if kind.__name__.endswith("RMSNorm"):
                patch.setattr(kind, "forward", _norm)
            elif kind.__name__.endswith("RotaryEmbedding"):
                patch.setattr(kind, "forward", _rotary)
        yield


def drawn(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model of its own whose norms and biases are random too: as they are built, they would hide mistakes."""
    model = copy.deepcopy(built(family))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.to(dtype)


def only(model: Any, learns: Callable[[str], bool]) -> Any:
    for name, p in model.named_parameters():
        p.requires_grad_(learns(name))
    return model


def adapted(model: Any, **settings: Any) -> Any:
    """With LoRA whose B is not zero, begun in float32, as PiSSA demands."""
    from peft import LoraConfig, get_peft_model

    dtype = next(model.parameters()).dtype
    torch.manual_seed(2)
    with quiet_transformers():
        wrapped: Any = get_peft_model(
            model.float(), LoraConfig(**{"r": 3, "lora_alpha": 8, "target_modules": LINEAR} | settings)
        )
    generator = torch.Generator().manual_seed(2)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name and not p.any():
            p.data.copy_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return wrapped.to(dtype).eval()


WAYS: dict[str, Callable[[Any], Any]] = {
    "full": lambda model: model.requires_grad_(True),
    "norms": partial(only, learns=lambda name: "norm" in name),
    "biases": partial(only, learns=lambda name: name.endswith("bias")),
    "last layer": partial(only, learns=lambda name: ".layers.1." in name),
    "one matrix": partial(only, learns=lambda name: name.endswith("1.self_attn.k_proj.weight")),
    "embeddings": partial(only, learns=lambda name: "embed" in name),
    "lora": adapted,
    "lora on q and v": partial(adapted, target_modules=["q_proj", "v_proj"]),
    "lora on down": partial(adapted, target_modules=["down_proj"]),
    "rank patterns": partial(adapted, rank_pattern={"q_proj": 1, "up_proj": 5}, alpha_pattern={"v_proj": 1}),
    "rslora": partial(adapted, use_rslora=True),
    "pissa": partial(adapted, init_lora_weights="pissa"),
}
"""LoRA+ is another rate for B, of which layers know nothing."""


def run(decoder: Decoder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """States (N, D), and the gradients of a sum over all of them that is no likelihood."""
    states = decoder.tree_states(batch)
    found = gradients(decoder.model, (states.sin() * torch.arange(1, states.shape[1] + 1)).sum()[None])
    return states.detach(), found


@contextmanager
def unfused(decoder: Decoder) -> Iterator[None]:
    """While this lasts, the model's own layers run."""
    fused, decoder.fused = decoder.fused, None
    try:
        yield
    finally:
        decoder.fused = fused


def check_fused(decoder: Decoder, examples_of: int = 1) -> None:
    """States and every gradient are those of the model's own layers."""
    assert decoder.path == FUSED
    batch = make_batch(random_examples(examples_of))
    with in_full(decoder.model):
        found = run(decoder, batch)
        with unfused(decoder):
            expected = run(decoder, batch)
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) < 1e-9
    check_gradients(found[1], expected[1], 1e-6)


# -- the same numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "way"), [(f, w) for f in FAMILIES for w in WAYS if w != "biases" or f == "qwen2"])
def test_states_and_gradients_are_those_of_the_models_own_layers(family: str, way: str) -> None:
    check_fused(Decoder(WAYS[way](drawn(family))))


@pytest.mark.parametrize("way", ["full", "lora"])
def test_in_torch_too(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", lambda *tensors: False)
    check_fused(Decoder(WAYS[way](drawn("qwen3"))))


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_gives_what_one_by_one_gives(family: str, way: str) -> None:
    model = WAYS[way](drawn(family))
    with in_full(model):
        decoder, examples = Decoder(model), random_examples(2)
        assert decoder.path == FUSED
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", lambda x: x)  # the head's logits, which are float32 otherwise
            found = with_decoder(decoder, make_batch(examples))
            expected = one_by_one(model, examples)
        assert torch.allclose(found, expected, rtol=1e-9)
        check_gradients(gradients(model, found), gradients(model, expected), 1e-6)


Run = tuple[Tensor, dict[str, Tensor]]


def errors(found: Run, exact: Run) -> Tensor:
    """Of the states and of all gradients together, relative: (2,)."""
    total = torch.stack([g.norm() for g in exact[1].values()]).norm()
    gaps = torch.stack([(found[1][name].double() - g).norm() for name, g in exact[1].items()]).norm()
    return torch.stack([(found[0].double() - exact[0]).norm() / exact[0].norm(), gaps / total])


def three_errors(model: Any, seeds: range) -> tuple[Tensor, Tensor]:
    """Of the fused layers and of the model's own, each from float64: sums over some batches."""
    exact, decoder = copy.deepcopy(model).double(), Decoder(model)
    assert decoder.path == FUSED
    with in_full(exact):
        exactly = Decoder(exact)
    ours, theirs = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for batch in (make_batch(random_examples(seed)) for seed in seeds):
        with in_full(exact):
            expected = run(exactly, batch)
        ours += errors(run(decoder, batch), expected)
        with unfused(decoder):
            theirs += errors(run(decoder, batch), expected)
    return ours, theirs


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_as_close_to_float64_as_transformers_is(family: str, way: str) -> None:
    ours, theirs = three_errors(WAYS[way](drawn(family, torch.float32)), range(3, 4))
    assert (ours <= 2 * theirs).all() and (theirs < 5e-6).all(), (ours, theirs)


# -- bfloat16 -------------------------------------------------------------------------------------------------


def rounded(family: str, way: str) -> Any:
    """In bfloat16, but for its adapters, as `adapt` leaves them."""
    model = WAYS[way](drawn(family, torch.bfloat16))
    for name, p in model.named_parameters():
        p.data = p.data.float() if "lora_" in name else p.data
    return model


@pytest.mark.parametrize("way", ["full", "lora", "lora on q and v", "rank patterns", "norms", "biases"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_close_to_float64_as_transformers_is(family: str, way: str) -> None:
    """But for float32 adapters, rounded as autocast rounds them: where they outweigh their weights it shows."""
    if way == "biases" and family != "qwen2":
        return
    ours, theirs = three_errors(rounded(family, way), range(5))
    most = 1.5 if way == "rank patterns" else 1.15
    assert (ours <= most * theirs).all() and (theirs < 5 * 0.05).all(), (ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_weights_in_bfloat16_products(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU makes of full fine-tuning: as good as bfloat16 weights, and gradients come in float32."""
    model, batch = drawn(family, torch.float32).requires_grad_(True), make_batch(random_examples(1))
    expected = run(Decoder(model), batch)
    monkeypatch.setattr(fused, "_computed_in", lambda *_: projections.Entry(torch.bfloat16, torch.bfloat16))
    decoder = Decoder(model)
    assert decoder.path == FUSED and decoder.fused is not None and decoder.fused.dtype is torch.bfloat16
    found = run(decoder, batch)
    assert {g.dtype for g in found[1].values()} == {torch.float32}
    assert (errors(found, expected) > 1e-4).all() and (errors(found, expected) < 0.1).all()


def test_in_bfloat16_frozen_weights_are_not_copied_and_adapters_not_rounded_into_them() -> None:
    decoder, batch = Decoder(rounded("llama", "lora")), make_batch(random_examples(1))
    assert decoder.fused is not None
    with decoder.entered():
        decoder.tree_states(batch)
        parts = {part.data_ptr() for one in decoder.fused._entry.matrices.values() for part in one.parts}
    assert parts <= {p.data_ptr() for p in decoder.model.parameters()}

    signs = torch.tensor([1.0, -1.0]).repeat(32)[None]
    linear, a, b = nn.Linear(64, 1, bias=False, dtype=torch.bfloat16), signs.clone(), torch.full((1, 1), 2.0**-10)
    nn.init.ones_(linear.weight)
    matrices = [projections._Matrix(linear, a, b, 1.0)]
    parts = projections._parts(matrices, torch.bfloat16)
    entered = projections._Entered.of(matrices, torch.bfloat16, torch.bfloat16, parts)
    assert entered.outputs(signs.bfloat16(), None).item() == 64 * 2.0**-10  # 1 + 2**-10 is 1 in bfloat16


@pytest.mark.parametrize("way", ["full", "lora", "rank patterns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_products_between_float32_states(family: str, way: str) -> None:
    """What a CPU makes of `precision: bfloat16`: as close to float64 as bfloat16 throughout; logits are float32."""
    whole = WAYS[way](drawn(family, torch.float64))
    with in_full(whole):
        exactly = Decoder(whole)
    decoder, all_rounded = Decoder(copy.deepcopy(whole).float(), torch.bfloat16), Decoder(rounded(family, way))
    assert decoder.path == FUSED and decoder.precision == "float32, products in bfloat16"
    ours, theirs = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for batch in (make_batch(random_examples(seed)) for seed in range(5)):
        with in_full(whole):
            exact = run(exactly, batch)
        found = run(decoder, batch)
        ours, theirs = ours + errors(found, exact), theirs + errors(run(all_rounded, batch), exact)
    assert {found[0].dtype, decoder.head(found[0]).dtype, *(g.dtype for g in found[1].values())} == {torch.float32}
    assert (ours > 5e-3).all(), "products are in bfloat16"
    assert (ours < 1.1 * theirs).all(), (ours, theirs)


def test_frozen_weights_are_rounded_once_and_others_at_each_entry() -> None:
    decoder = Decoder(WAYS["last layer"](drawn("llama", torch.float32)), torch.bfloat16)
    batch = make_batch(random_examples(1))

    def entry() -> tuple[list[int], Tensor]:
        assert decoder.fused is not None
        with decoder.entered():
            states = decoder.tree_states(batch).detach()
            parts = [part.data_ptr() for one in decoder.fused._entry.matrices.values() for part in one.parts]
        return parts, states

    (first, states), (second, again) = entry(), entry()
    assert first[:4] == second[:4] and torch.equal(states, again)
    for i, layer in enumerate(decoder.layers()[1]):
        with torch.no_grad():
            layer.mlp.down_proj.weight.mul_(2)  # type: ignore[union-attr, operator]
        before, states = states, entry()[1]
        assert not torch.equal(states, before), f"layer {i} was changed in place, and its copy is the old one"


@needs_interpreter
@pytest.mark.parametrize("way", ["full", "lora"])
def test_layers_that_run_kernels_in_triton(way: str) -> None:
    with run_as("triton"):
        ours, theirs = three_errors(rounded("qwen2", way), range(1))
    assert (ours <= 4 * theirs).all()  # its interpreter cuts digits off, where a GPU rounds


def test_without_its_adapter_a_model_gives_the_bases_states() -> None:
    base, model = drawn("llama", torch.float32), adapted(drawn("llama", torch.float32))
    batch, decoder = make_batch(random_examples(1)), Decoder(model)
    expected, tuned = Decoder(base).tree_states(batch), decoder.tree_states(batch)
    with model.disable_adapter():
        assert torch.equal(decoder.tree_states(batch), expected)
    assert torch.equal(decoder.tree_states(batch), tuned) and not torch.allclose(tuned, expected, rtol=1e-3)


# -- entering, learning, leaving ----------------------------------------------------------------------------------


def moved_by_optimizer(model: Any) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05).step()


def moved_by_data(model: Any) -> None:
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data * 1.1


@pytest.mark.parametrize("move", [moved_by_optimizer, moved_by_data])
@pytest.mark.parametrize("way", ["full", "lora"])
def test_what_is_learned_between_two_entries_is_seen(way: str, move: Callable[[Any], None]) -> None:
    model = WAYS[way](drawn("qwen2"))
    decoder, batch = Decoder(model), make_batch(random_examples(1))
    with decoder.entered():
        before = decoder.tree_states(batch)
    move(model)
    assert float((decoder.tree_states(batch) - before).detach().abs().max()) > 1e-2
    check_fused(decoder)


def test_weights_are_merged_once_an_entry() -> None:
    decoder, batch = Decoder(adapted(drawn("llama"))), make_batch(random_examples(1))
    assert decoder.fused is not None
    merged = decoder.fused._entry.matrices
    with decoder.entered():
        decoder.tree_states(batch)
        kept = dict(merged)
        with decoder.entered():
            decoder.tree_states(batch)
        assert len(kept) == 4 * len(decoder.fused._fused) and all(merged[at] is one for at, one in kept.items())
    assert not merged


def appearance(model: Any) -> tuple[Any, ...]:
    layers = model.get_decoder().layers
    modules = [(name, id(m)) for name, m in model.named_modules()]
    return (
        modules,
        [n for n, _ in model.named_parameters()],
        model.config._attn_implementation,
        id(layers),
        model.training,
    )


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was(fails: bool) -> None:
    model = drawn("llama").train()
    before = appearance(model)
    decoder, batch = Decoder(model), make_batch(random_examples(1))
    assert appearance(model) == before

    def attend(*given: Any) -> Tensor:
        raise ArithmeticError("for the test")

    if fails:
        with pytest.raises(ArithmeticError), decoder.packed() as packed:
            packed(batch.ids, batch.positions, attend)
    else:
        run(decoder, batch)
    assert appearance(model) == before
    assert decoder.fused is not None and decoder.fused._entry.depth == 0 and not decoder.fused._entry.matrices
    assert not [name for layer in decoder.fused._fused.values() for name, _ in layer.named_parameters()]


@pytest.mark.parametrize("way", ["full", "lora"])
def test_two_forward_passes_before_one_backward_pass(way: str) -> None:
    """As a distillation does, with a step of another batch, and the adapter switched off, in between."""
    model = WAYS[way](drawn("llama"))
    decoder, first, second = Decoder(model), *(make_batch(random_examples(s)) for s in (1, 2))

    def found() -> dict[str, Tensor]:
        with decoder.entered():
            a = decoder.tree_states(first)
            b = decoder.tree_states(second)
        with model.disable_adapter() if way == "lora" else torch.no_grad():
            teacher = decoder.tree_states(first).detach()
        return gradients(model, ((a - 2 * teacher).square().sum() * b.sin().sum())[None])

    with in_full(model):
        fused = found()
        with unfused(decoder):
            check_gradients(fused, found(), 1e-6)


# -- what is refused ------------------------------------------------------------------------------------------------


def own_layers(model: Any) -> str:
    path = Decoder(model).path
    assert path.startswith(f"{TREE}; the model's own layers: "), path
    return path.removeprefix(f"{TREE}; the model's own layers: ")


def test_adapters_that_are_more_than_two_matrices_are_refused() -> None:
    from peft import IA3Config, LoHaConfig, get_peft_model

    assert own_layers(adapted(drawn("llama"), use_dora=True)) == "its adapter is more than W + scale B A"
    assert (
        own_layers(adapted(drawn("qwen2"), target_modules=["q_proj"], lora_bias=True))
        == "its adapter is more than W + scale B A"
    )
    with quiet_transformers():
        loha = get_peft_model(drawn("llama"), LoHaConfig(target_modules=["q_proj"]))
        ia3 = get_peft_model(drawn("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert own_layers(loha).startswith("it holds ") and own_layers(ia3).startswith("it holds ")
    with_dropout = adapted(drawn("llama"), lora_dropout=0.1)
    assert Decoder(with_dropout).path == "row by row: shared tokens would share their dropout"


@pytest.mark.parametrize("part", ["lm_head", "model.layers.1.mlp.up_proj"])
def test_what_is_hooked_is_refused(part: str) -> None:
    model = drawn("llama")
    handle = model.get_submodule(part).register_forward_hook(lambda module, args, out: 2 * out)
    assert own_layers(model) == "something hooks into them"
    handle.remove()
    assert Decoder(model).fused is not None


def test_digits_of_other_kinds_are_refused() -> None:
    assert own_layers(drawn("llama", torch.float16)) == "their weights are torch.float16"
    mixed = drawn("llama", torch.float32)
    mixed.model.layers[1].mlp.down_proj.to(torch.float64)
    with pytest.raises(ValueError, match=r"their weights are torch.float32, torch.float64"):
        FusedLayers(list(mixed.model.layers), nn.Linear(2, 2))


def other(config: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**SHAPE | settings)
    with quiet_transformers():
        return transformers.AutoModelForCausalLM.from_config(made).float().eval()


def test_what_short_examples_would_not_show_is_refused() -> None:
    """Ministral scales queries by their position, from one far beyond the examples that are compared at load."""
    assert own_layers(other("Ministral3Config", sliding_window=None)).startswith("Ministral3Attention uses dtype, get")
    granite = other("GraniteConfig", residual_multiplier=0.5)
    assert own_layers(granite) == "its residual sums are scaled by 0.5"


@pytest.mark.parametrize(
    ("config", "settings", "why"),
    [
        ("SmolLM3Config", {"no_rope_layers": [1, 0]}, "SmolLM3Attention uses use_rope"),
        ("OlmoConfig", {}, "OlmoAttention uses clamp_, clip_qkv"),
        ("HeliumConfig", {"head_dim": 4}, "fused, their states differ by"),
        ("Ernie4_5Config", {"head_dim": 4}, "fused, their states differ by"),
        ("SeedOssConfig", {"head_dim": 4, "residual_dropout": 0.0, "attention_dropout": 0.0}, "SeedOssAttention uses"),
        ("HunYuanDenseV1Config", {"head_dim": 4}, "HunYuanDenseV1Attention has key_layernorm, query_layernorm"),
        ("LlamaConfig", {"hidden_act": "gelu"}, "its MLP is gated by"),
    ],
)
def test_relatives_that_compute_something_else_are_refused(config: str, settings: dict[str, Any], why: str) -> None:
    """Also as transformers initialises them, with small weights: there they differ least. Bfloat16 hides nothing."""
    for size in (0.02, 0.2):
        for dtype in (torch.float32, torch.bfloat16):
            assert own_layers(other(config, **settings, initializer_range=size).to(dtype)).startswith(why)


def test_scores_and_rotations_that_are_scaled_are_the_same() -> None:
    """By the layers' `scaling` and the body's rotations; a whole number among them is taken as one."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    for model in (
        other("GraniteConfig", attention_multiplier=2),
        other("LlamaConfig", rope_parameters=yarn),
        other("LlamaConfig", attention_bias=True, mlp_bias=True),
        other("LlamaConfig", head_dim=10),
    ):
        check_fused(Decoder(model.double()))
