"""A base in few bits computes what its dequantised weights do, is small from the first moment, and leaves an adapter
for the unchanged base."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import train_killed_once
from test_adapt import ALL, conversations, gap, gradients, make_recipe
from test_fused import LINEAR, in_full, unfused
from test_fused import run as run_layers
from test_models import FUSED, built, check_gradients, one_by_one, random_examples, with_decoder
from test_models import gradients as gradients_of
from torch import Tensor, nn

from luthier import lifecycle, quantized
from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.conversation import write_conversations
from luthier.decoder import Decoder, score
from luthier.encode import Encoded, Encoder
from luthier.errors import ModelError, RecipeError
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.quantized import BLOCK, QuantizedLinear, n_weights
from luthier.recipe import to_yaml
from luthier.release.evidence import method
from luthier.release.export import export
from luthier.saved import load_adapted, save_adapted
from luthier.settings import Quantize, Recipe
from luthier.tiny import write_tiny_model
from luthier.train import train
from luthier.train.optim import AdamW8bit, make_optimizer

CPU = torch.device("cpu")
FORMS: tuple[Quantize, ...] = ("8bit", "4bit")
by_form = pytest.mark.parametrize("form", FORMS)
TECHNIQUES = {
    name: how for name, how in ALL.items() if how["method"] != "partial" and how.get("init") not in ("pissa", "olora")
}
TECHNIQUES |= {name: {"method": name, "tokens": 3} for name in ("prompt", "p_tuning", "prefix")}


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("data"), conversations(20)
    for side, members in {"train": rows[:16], "validation": rows[16:]}.items():
        write_conversations(folder / f"{side}.jsonl", members)
    return folder


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dequantised(model: Any) -> Any:
    """The same model with dense layers of the weights that the quantised ones multiply by."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.weight, dense.bias = nn.Parameter(layer.weight, requires_grad=False), layer.bias
            model.set_submodule(name, dense)
    return model


def quantised(model: Any, form: Quantize) -> Any:
    """A model in memory with its layers' matrices in few bits."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            model.set_submodule(name, QuantizedLinear(layer.weight, layer.bias, form))
    return model


# -- one layer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bits", "allowed"), [("8bit", 8.5, 0.5 / 127), ("4bit", 4.5, 0.153)])
def test_a_weight_is_off_by_less_than_half_a_step_of_its_block(form: Quantize, bits: float, allowed: float) -> None:
    weight = drawn(96, 80)
    weight[:4] = 0
    layer = QuantizedLinear(weight, None, form)
    off = (layer.weight - weight).abs().view(-1, BLOCK)
    assert bool((off <= 1.0001 * allowed * weight.abs().view(-1, BLOCK).amax(1, keepdim=True)).all())
    assert not layer.weight[:4].any()
    assert 8 * sum(b.numel() * b.element_size() for b in layer.buffers()) == bits * weight.numel()
    assert n_weights(layer) == weight.numel() and not [*layer.parameters()]


@by_form
def test_bfloat16_costs_no_more_than_its_own_rounding(form: Quantize) -> None:
    weight = drawn(96, 80).bfloat16()
    few, more = (QuantizedLinear(w, None, form).weight for w in (weight, weight.float()))
    assert few.dtype is torch.bfloat16
    assert float((few - more).norm() / more.norm()) < 0.005


@by_form
def test_a_large_matrix_is_quantised_in_parts(form: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = QuantizedLinear(drawn(64, 64), None, form)
    monkeypatch.setattr(quantized, "PART", 4 * BLOCK)
    parts = QuantizedLinear(drawn(64, 64), None, form)
    assert torch.equal(parts.weight, whole.weight)


@by_form
def test_a_layer_multiplies_by_its_weight(form: Quantize) -> None:
    layer = QuantizedLinear(drawn(96, 64), nn.Parameter(drawn(96)), form)
    given, out = drawn(3, 5, 64, seed=1).requires_grad_(), drawn(3, 5, 96, seed=2)
    expected = nn.functional.linear(given, layer.weight, layer.bias)
    assert torch.equal(layer(given), expected)
    wanted = (given, layer.bias)
    found, dense = (torch.autograd.grad((y * out).sum(), wanted) for y in (layer(given), expected))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, dense, strict=True))


# -- loading ----------------------------------------------------------------------------------------------


@by_form
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_linear_layers_are_quantised_and_nothing_else(family: str, form: Quantize, tmp_path: Path) -> None:
    built(family).save_pretrained(tmp_path)
    source = find_base(str(tmp_path))
    plain, model = (load_model(source, CPU, torch.float32, how) for how in (None, form))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert {name.rpartition(".")[2] for name in layers} == {*LINEAR} and len(layers) == 2 * len(LINEAR)
    for name, parameter in plain.named_parameters():
        path, _, kind = name.rpartition(".")
        found = layers[path].weight if path in layers and kind == "weight" else model.get_parameter(name)
        assert torch.equal(
            found, QuantizedLinear(parameter, None, form).weight if path in layers and kind == "weight" else parameter
        )
    assert n_weights(model) == n_weights(plain)
    assert "quantization" not in json.dumps(model.config.to_dict()) and not getattr(model, "is_quantized", False)


def test_what_has_no_whole_blocks_stays_dense(tmp_path: Path) -> None:
    source = find_base(str(write_tiny_model(tmp_path, width=40)))
    model = load_model(source, CPU, torch.float32, "4bit")
    named = {name.rpartition(".")[2]: type(m) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert named["k_proj"] is nn.Linear and named["q_proj"] is QuantizedLinear  # 800 and 1600 weights
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


PEAK = """
import ctypes, re, sys, threading, time
import torch, bitsandbytes, accelerate, transformers.models.llama.modeling_llama
from luthier.models import find_base, load_model
base = find_base(sys.argv[1])
def held():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
def watch():
    while going:
        peak[0] = max(peak[0], held())
        time.sleep(0.001)
for form in ("4bit", "4bit", "8bit", None):  # the first one also imports
    ctypes.CDLL(None).malloc_trim(0)
    before, peak, going = held(), [0], True
    thread = threading.Thread(target=watch)
    thread.start()
    model = load_model(base, torch.device("cpu"), torch.float32, form)
    going = False
    thread.join()
    print(peak[0] - before)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell what a process holds")
def test_the_whole_model_is_never_in_memory(tmp_path: Path) -> None:
    """Of a checkpoint in bfloat16, as hubs have them; pages of its file are the system's to drop, and not counted."""
    from transformers import AutoModelForCausalLM

    write_tiny_model(tmp_path, layers=6, width=768)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    # A fixed threshold: large blocks go back to the system when they are freed, so that what is seen is what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    whole = 4 * sum(p.numel() for p in model.parameters())
    _, four, eight, all_of_it = (int(line) / whole for line in done.stdout.split())
    assert four < 0.25 and eight < 0.35 and all_of_it > 0.95  # found: 0.20, 0.30 and 1


# -- what is computed -------------------------------------------------------------------------------------


@by_form
@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_adapter_learns_as_beside_the_dequantised_weights(base: Base, name: str, form: Quantize) -> None:
    """To the bit; and the packed tree as one by one."""
    examples = [Encoder(load_tokenizer(base))(c) for c in conversations(6)]

    def made(whole: bool) -> Decoder:
        model = load_model(base, CPU, torch.float32, form)
        how = make_recipe(TECHNIQUES[name]).model.adapt
        model = adapt(dequantised(model) if whole else model, how, base, 0)
        for i, parameter in enumerate(trainable(model).values()):
            parameter.data += 0.05 * drawn(*parameter.shape, seed=i)
        return Decoder(model)

    few, whole = made(False), made(True)
    assert few.path == whole.path
    found, expected = (gradients(decoder, [examples], share=True) for decoder in (few, whole))
    assert found.keys() == expected.keys() and all(torch.equal(found[n], g) for n, g in expected.items())
    precise = Decoder(few.model.double())
    check_gradients(
        gradients(precise, [examples], share=True), gradients(precise, [[e] for e in examples], share=False), 1e-6
    )


@by_form
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fused_layers_compute_what_the_models_own_do(family: str, form: Quantize) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, target_modules=[*LINEAR], init_lora_weights="gaussian")
    model: Any = get_peft_model(quantised(copy.deepcopy(built(family)), form), config).double().eval()
    for i, parameter in enumerate(trainable(model).values()):
        parameter.data += 0.2 * drawn(*parameter.shape, seed=i)
    decoder, examples = Decoder(model), random_examples(1)
    assert decoder.path == FUSED
    with in_full(model):
        found = run_layers(decoder, make_batch(examples))
        with unfused(decoder):
            expected = run_layers(decoder, make_batch(examples))
        check_gradients(found[1], expected[1], 1e-6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", lambda x: x)  # the head's logits, which are float32 otherwise
            nats, alone = with_decoder(decoder, make_batch(examples)), one_by_one(model, examples)
        check_gradients(gradients_of(model, nats), gradients_of(model, alone), 1e-6)


def test_one_dense_weight_lives_at_a_time(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward and in the backward pass, by fused layers and by the model's own."""
    made: list[weakref.ref[Tensor]] = []
    weight = QuantizedLinear.weight.fget  # type: ignore[attr-defined]

    def watched(layer: QuantizedLinear) -> Tensor:
        assert not [w for w in made if w() is not None]
        out: Tensor = weight(layer)
        made.append(weakref.ref(out))
        return out

    decoder = Decoder(
        adapt(load_model(base, CPU, torch.float32, "8bit"), make_recipe({"rank": 4}).model.adapt, base, 0)
    )
    assert decoder.path == FUSED and decoder.fused is not None
    monkeypatch.setattr(QuantizedLinear, "weight", property(watched))
    batch = make_batch([Encoder(load_tokenizer(base))(c) for c in conversations(4)])
    with decoder.entered():
        found = run_layers(decoder, batch)
        kept = decoder.fused._entry.matrices.values()
        assert len(kept) == 8 and not [entered for entered in kept if entered.kept is not None]
    n_fused = len(made)
    with unfused(decoder):
        check_gradients(found[1], run_layers(decoder, batch)[1], 1e-5)
    assert n_fused == 14 + 11 and len(made) == 2 * n_fused  # nothing below the first queries, keys and values learns


def test_what_stays_whole_is_counted() -> None:
    model = nn.Sequential(quantized.QuantizedLinear(torch.randn(4, 64), None, "8bit"), nn.Linear(3, 5))
    assert quantized.in_few_bits(model) == "1 of 2 linear layers are held in few bits"


# -- training, saving, releasing --------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "4bit": {"model": {"quantize": "4bit", "adapt": {"rank": 16}}},
    "8bit, moments too": {"model": {"quantize": "8bit", "adapt": {"rank": 16}}, "optimizer": "adamw_8bit"},
    "moments alone": {"model": {"adapt": {"method": "full"}}, "optimizer": "adamw_8bit"},
    "moments of adalora": {
        "model": {"adapt": {"method": "adalora", "target_rank": 12, "initial_rank": 16}},
        "optimizer": "adamw_8bit",
    },
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Of a width at which A and B have 4096 numbers, so that their moments are in 8 bits."""
    return find_base(str(write_tiny_model(tmp_path_factory.mktemp("wide"), width=256)))


def recipe_of(way: str) -> Recipe:
    settings = {"epochs": 2, "examples_per_step": 8, "learning_rate": 2e-3, "save_every_s": 0.0, "keep": "last"}
    optimizer = {"optimizer": WAYS[way]["optimizer"]} if "optimizer" in WAYS[way] else {}
    return make_recipe({}, model=WAYS[way]["model"], train=settings | optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_and_a_killed_run_goes_on_to_the_same_bits(
    wide: Base, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    recipe = recipe_of(way)
    straight = train(recipe, data, wide, tmp_path / "straight")
    assert straight.checks[-1].nll < straight.checks[0].nll
    if recipe.model.quantize:
        assert straight.n_parameters == straight.n_trainable + n_weights(load_model(wide, CPU))
    train_killed_once(recipe, data, wide, tmp_path / "killed", monkeypatch)
    once, twice = (
        [p.read_bytes() for p in sorted((tmp_path / run / "model").glob("*.safetensors"))]
        for run in ("straight", "killed")
    )
    assert once == twice


def test_the_adapter_is_saved_for_the_unchanged_base(base: Base, tmp_path: Path) -> None:
    """What is exported is the adapter on the base as it is, which is also what the evaluation loads."""
    model = adapt(load_model(base, CPU, torch.float32, "4bit"), make_recipe({"rank": 4}).model.adapt, base, 0)
    for i, parameter in enumerate(trainable(model).values()):
        parameter.data += 0.05 * drawn(*parameter.shape, seed=i)
    save_adapted(model, tmp_path / "model", load_tokenizer(base))
    served = load_adapted(load_model(base, CPU, torch.float32), tmp_path / "model")
    theirs = {n: p for n, p in served.named_parameters() if "lora" in n}
    assert theirs and all(torch.equal(p, theirs[n]) for n, p in trainable(model).items())
    assert 1e-3 < gap(model, served) < 1
    parity = export(base, tmp_path / "model", tmp_path, ["merged"], [[5, 6, 7, 8]])
    assert parity["adapter"] == 0


def test_the_report_says_it() -> None:
    assert method(recipe_of("4bit")) == "LoRA of rank 16, beside a base held in 4 bits"
    assert "quantize: 4bit" in to_yaml(recipe_of("4bit"))


# -- moments in 8 bits ------------------------------------------------------------------------------------


def trained_for(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> None:
    for step in range(steps):
        for i, p in enumerate(parameters):
            p.grad = (p.detach() - drawn(*p.shape, seed=i)) + 0.1 * drawn(*p.shape, seed=1000 + step)
        optimizer.step()


def test_moments_take_a_quarter_and_learn_alike() -> None:
    def ended(kind: str) -> tuple[list[nn.Parameter], int]:
        settings = make_recipe({}, train={"optimizer": kind, "weight_decay": 0.1, "learning_rate": 0.01}).train
        parameters = {"large": nn.Parameter(torch.zeros(96, 128)), "small": nn.Parameter(torch.zeros(9, 7))}
        optimizer = make_optimizer(parameters, settings)
        trained_for(optimizer, [*parameters.values()], 30)
        state = optimizer.state[parameters["large"]].values()
        return [*parameters.values()], sum(t.numel() * t.element_size() for t in state if t.ndim)

    (full, n_bytes), (few, n_few) = ended("adamw"), ended("adamw_8bit")
    assert n_bytes == 8 * 96 * 128 and n_few / n_bytes < 0.26
    assert torch.allclose(full[1], few[1], atol=1e-6)  # too small for 8 bits
    off = float((full[0] - few[0]).detach().norm() / full[0].detach().norm())
    assert 0 < off < 0.05


def test_moments_in_8_bits_are_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.optim import AdamW8bit as Theirs

    def ended(make: Any) -> Tensor:
        parameter = nn.Parameter(torch.zeros(96, 128))
        trained_for(make([{"params": [parameter], "weight_decay": 0.1}]), [parameter], 10)
        return parameter.detach()

    ours = ended(lambda groups: AdamW8bit(groups, 0.01))
    assert torch.equal(ours, ended(lambda groups: Theirs(groups, lr=0.01)))


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"method": "full"}, "method full trains the base's own weights"),
        ({"method": "partial", "bitfit": True}, "method partial trains the base's own weights"),
        ({"init": "pissa"}, "init pissa takes a part out of the base's weights"),
        ({"init": "olora"}, "init olora takes a part out of the base's weights"),
    ],
)
def test_what_changes_the_base_is_refused(how: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe({}, model={"quantize": "4bit", "adapt": how})
    [problem] = refused.value.problems
    assert problem.code == "LU-R009" and why in str(problem)


def test_a_missing_package_is_said_before_anything_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = recipe_of("4bit").model_copy(
        update={"model": recipe_of("4bit").model.model_copy(update={"base": str(tiny)})}
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError) as refused:
        lifecycle.run(tmp_path / "recipe.yaml", workspace=tmp_path / "runs")
    assert "LU-M002" in str(refused.value) and "pip install -c constraints.txt '.[quantized]'" in str(refused.value)


# -- a real model -----------------------------------------------------------------------------------------


@pytest.mark.smollm2
def test_a_real_model_stays_itself(smollm2: Base) -> None:
    """Nats per token of a sentence: 8 bits change nothing that matters, 4 bits little."""
    tokenizer = load_tokenizer(smollm2)
    ids = tokenizer("The kettle boils at one hundred degrees, and then the tea is made.").input_ids
    batch = make_batch([Encoded(ids, [False] + [True] * (len(ids) - 1), "0", "")])

    def nll(form: Quantize | None) -> float:
        decoder = Decoder(load_model(smollm2, CPU, torch.float32, form))
        assert decoder.path == FUSED
        return float(score(decoder, batch)[0]) / batch.n_targets

    whole = nll(None)
    assert abs(nll("8bit") - whole) < 0.03 and abs(nll("4bit") - whole) < 0.8
