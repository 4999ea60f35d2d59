"""Every technique: it learns, its gradient is that of one by one, and what is saved is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import train_killed_once
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.conversation import Conversation, Message, make_conversation, write_conversations
from luthier.decoder import Decoder
from luthier.encode import Encoded, Encoder
from luthier.errors import ModelError, RecipeError
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.recipe import validate
from luthier.release.export import MERGE_TOLERANCE, export
from luthier.saved import _settle, is_adapter, load_adapted, load_merged, save_adapted
from luthier.settings import Recipe
from luthier.techniques import TECHNIQUES, UNMERGED
from luthier.train import train
from luthier.train.loop import backward
from luthier.train.optim import make_optimizer
from luthier.train.terms import CrossEntropy, Unit

CPU = torch.device("cpu")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "lora_plus": {"lora_plus_ratio": 4.0},
    "patterns": {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"layers.1.*down_proj": 4.0}},
    "pissa rslora patterns": {
        "init": "pissa",
        "rslora": True,
        "rank_pattern": {"v_proj": 8},
        "alpha_pattern": {"q_proj": 4.0},
    },
    "last layer": {"last_layers": 1},
}
PEFT: dict[str, dict[str, Any]] = {
    "BEFT": {"target": ["v_proj"]},
    "BOFT": {"target": LINEAR},
    "C3A": {"target": LINEAR, "params": {"block_size": 16}},
    "DELORA": {"target": LINEAR, "params": {"r": 4}},
    "HRA": {"target": LINEAR, "params": {"r": 4}},
    "IA3": {},
    "LOHA": {"target": LINEAR, "params": {"r": 4}},
    "LOKR": {"target": LINEAR, "params": {"r": 4}},
    "MISS": {"target": LINEAR, "params": {"r": 4}},
    "OFT": {"target": LINEAR, "params": {"oft_block_size": 8}},
    "VBLORA": {"target": LINEAR, "params": {"r": 4, "num_vectors": 16, "vector_length": 16}},
    "VERA": {"target": ["q_proj", "v_proj"], "params": {"r": 16}},
}
PARTIAL: dict[str, dict[str, Any]] = {
    "norms": {"train": ".*norm.*"},
    "names": {"train": ["norm", "o_proj"]},
    "tied head": {"train": ["lm_head"]},
    "last layers": {"last_layers": 1},
}
BOTTLENECK: dict[str, dict[str, Any]] = {
    "houlsby": {"placement": "houlsby"},
    "pfeiffer": {"placement": "pfeiffer", "activation": "gelu"},
    "parallel": {"placement": "parallel", "activation": "silu"},
    "upper bottlenecks": {"placement": "houlsby", "last_layers": 1},
}
ALL = (
    {name: {"method": "lora", "rank": 4, **more} for name, more in LORA.items()}
    | {name: {"method": name.lower(), **more} for name, more in PEFT.items()}
    | {name: {"method": "partial", **more} for name, more in PARTIAL.items()}
    | {"adalora": {"method": "adalora", "target_rank": 2, "initial_rank": 4}}
    | {name: {"method": "bottleneck", "size": 8, **more} for name, more in BOTTLENECK.items()}
)
every_technique = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


def conversations(n: int) -> list[Conversation]:
    """Answers of several lengths; half of the prompts begin alike."""
    found = []
    for i in range(n):
        start = "You sell kettles. " if i % 2 else ""
        messages = [
            Message(role="user", content=f"{start}What does kettle number {i % 7} hold?"),
            Message(role="assistant", content="It holds " + "seven cups " * (1 + i % 4)),
        ]
        found.append(make_conversation(messages, f"rows.jsonl:{i + 1}"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = conversations(24)
    for side, members in {"train": rows[:16], "validation": rows[16:20], "test": rows[20:]}.items():
        write_conversations(folder / f"{side}.jsonl", members)
    return folder


def make_recipe(how: dict[str, Any], **sections: Any) -> Recipe:
    tree = {
        "name": "tiny",
        "data": {"sources": [{"path": "rows.jsonl"}]},
        "model": {"adapt": how},
        "train": {"epochs": 3, "examples_per_step": 8, "learning_rate": 2e-2, "save_every_s": 0.0, "keep": "last"},
        "release": {"rules": [{"metric": "perplexity", "must": "beat_baseline"}]},
    }
    return validate(tree | sections, "recipe.yaml", Path())


def adapted(base: Base, name: str, moved: float = 0.05) -> nn.Module:
    """The tiny model with a technique, each of whose weights is moved from where it begins, as training would."""
    model = adapt(load_model(base, CPU, torch.float32), make_recipe(ALL[name]).model.adapt, base, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(torch.arange(3, 40)[None]).logits[0]  # type: ignore[no-any-return]


def gap(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of logits, relative to the largest logit."""
    expected = logits(b)
    return float((logits(a) - expected).abs().max() / expected.abs().max())


def gradients(decoder: Decoder, groups: list[list[Encoded]], share: bool) -> dict[str, Tensor]:
    decoder.model.zero_grad(set_to_none=True)
    batches = [make_batch(group, share=share) for group in groups]
    counts: dict[Unit, int] = {"token": sum(b.n_targets for b in batches), "sequence": len(groups)}
    for batch in batches:
        backward(decoder, [CrossEntropy()], batch, counts)
    return {n: p.grad.clone() for n, p in trainable(decoder.model).items() if p.grad is not None}


def test_all_techniques_are_tried_here() -> None:
    assert {*PEFT} == {*TECHNIQUES}


@every_technique
def test_the_gradient_of_the_packed_tree_is_that_of_one_by_one(base: Base, name: str) -> None:
    decoder = Decoder(adapted(base, name).double())
    assert decoder.shares
    encoder = Encoder(load_tokenizer(base))
    examples = [encoder(c) for c in conversations(6)]
    packed = gradients(decoder, [examples], share=True)
    single = gradients(decoder, [[e] for e in examples], share=False)
    assert packed.keys() == single.keys() and packed
    norm = sum(float(g.norm()) ** 2 for g in single.values()) ** 0.5
    assert sum(float((packed[n] - single[n]).norm()) ** 2 for n in single) ** 0.5 < 1e-6 * norm


@every_technique
def test_what_is_saved_is_what_was_trained(base: Base, tmp_path: Path, name: str) -> None:
    """The saved files on the unchanged base, merged and unmerged, by peft or transformers alone where these can."""
    model = adapted(base, name)
    save_adapted(model, tmp_path / "model", load_tokenizer(base))
    if name in BOTTLENECK:
        plain = load_adapted(load_model(base, CPU), tmp_path / "model")
    elif is_adapter(tmp_path / "model"):
        plain = PeftModel.from_pretrained(load_model(base, CPU), tmp_path / "model").eval()
        assert gap(load_adapted(load_model(base, CPU), tmp_path / "model"), plain) == 0
    else:
        plain = load_model(find_base(str(tmp_path / "model")), CPU)  # type: ignore[assignment]
    assert gap(plain, model) < (1e-5 if "pissa" in name or name in ("olora", "adalora") else 1e-9)
    assert gap(load_model(base, CPU), model) > 1e-3, "the technique changes something"
    merged = load_merged(load_model(base, CPU), tmp_path / "model")
    assert gap(merged, model) < MERGE_TOLERANCE
    assert hasattr(merged, "peft_config") == (name in UNMERGED)
    assert hasattr(merged, "bottleneck") == (name in BOTTLENECK)
    assert Decoder(merged).shares


@every_technique
def test_it_learns_and_a_killed_run_goes_on_to_the_same_bits(
    base: Base, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = make_recipe(ALL[name])
    straight = train(recipe, data, base, tmp_path / "straight")
    assert straight.checks[-1].nll < straight.checks[0].nll
    assert straight.n_trainable < straight.n_parameters
    train_killed_once(recipe, data, base, tmp_path / "killed", monkeypatch)
    folders = (tmp_path / "straight" / "model", tmp_path / "killed" / "model")
    [once], [twice] = (sorted(folder.glob("*.safetensors")) for folder in folders)
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("name", ["pissa", "dora", "BEFT", "norms", "houlsby", "adalora"])
def test_the_export_behaves_as_what_was_trained(base: Base, tmp_path: Path, name: str) -> None:
    save_adapted(adapted(base, name), tmp_path / "model", load_tokenizer(base))
    kinds = [] if name in (*UNMERGED, *BOTTLENECK) else ["merged"]
    parity = export(base, tmp_path / "model", tmp_path, kinds, [[5, 6, 7, 8]])
    assert parity.pop("adapter" if name != "norms" else "model") == 0
    assert all(value < MERGE_TOLERANCE for value in parity.values())


# -- LoRA's settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_an_adapter_that_begins_with_base_weights_begins_as_the_base(base: Base, tmp_path: Path, name: str) -> None:
    model = adapted(base, name, moved=0.0)
    assert gap(model, load_model(base, CPU)) < 1e-5
    save_adapted(model, tmp_path, load_tokenizer(base))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)


def test_an_adapter_in_the_last_layers_leaves_the_others_alone(base: Base) -> None:
    assert {name.split(".")[4] for name in trainable(adapted(base, "last layer"))} == {"1"}


def test_lora_plus_makes_b_learn_faster_than_a(base: Base) -> None:
    model = adapted(base, "lora_plus")
    optimizer = make_optimizer(trainable(model), make_recipe({}).train, 8.0)
    names = {id(p): name for name, p in trainable(model).items()}
    ratios = {names[id(p)]: group["lr_ratio"] for group in optimizer.param_groups for p in group["params"]}
    assert {*ratios} == {*trainable(model)}
    assert all(ratio == (8.0 if ".lora_B." in name else 1.0) for name, ratio in ratios.items())


def test_lora_plus_reaches_b_of_embeddings(tmp_path: Path, base: Base) -> None:
    how = make_recipe({"rank": 4, "target": ["embed_tokens"]}).model.adapt
    parameters = trainable(adapt(load_model(untied(base, tmp_path), CPU), how, base, 0))
    groups = make_optimizer(parameters, make_recipe({}).train, 8.0).param_groups
    assert [(group["lr_ratio"], [p.shape[1] for p in group["params"]]) for group in groups][1:] == [(8.0, [4])]


def test_an_adapter_is_written_alike_by_every_process(base: Base, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"feedforward_modules": ["up_proj", "down_proj"]}))
    _settle(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "feedforward_modules": ["down_proj", "up_proj"]
    }


def test_dropout_still_makes_a_model_run_row_by_row(base: Base) -> None:
    how = make_recipe({"method": "vera", "params": {"vera_dropout": 0.1}}).model.adapt
    assert "dropout" in Decoder(adapt(load_model(base, CPU), how, base, 0)).path


# -- a part of the weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("norms", {"input_layernorm", "post_attention_layernorm", "norm"}),
        ("names", {"o_proj", "norm"}),
        ("tied head", {"embed_tokens"}),
        ("last layers", {*LINEAR, "input_layernorm", "post_attention_layernorm"}),
    ],
)
def test_only_what_is_named_is_trained(base: Base, name: str, trained: set[str]) -> None:
    names = trainable(adapted(base, name))
    assert {n.split(".")[-2] for n in names} == trained
    assert name != "last layers" or all(".layers.1." in n for n in names)


def test_bitfit_trains_every_bias_and_nothing_else(tmp_path: Path) -> None:
    base = with_biases(tmp_path)
    how = make_recipe({"method": "partial", "bitfit": True}).model.adapt
    names = trainable(adapt(load_model(base, CPU), how, base, 0))
    assert len(names) == 6 and all(n.endswith("_proj.bias") for n in names)


def with_biases(folder: Path) -> Base:
    """A tiny Qwen2: q, k and v have biases."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2", vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return find_base(str(folder))


def untied(base: Base, folder: Path) -> Base:
    """A model of its shape with output embeddings of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.folder)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "untied")
    load_tokenizer(base).save_pretrained(folder / "untied")
    return find_base(str(folder / "untied"))


def test_an_untied_head_alone_can_be_trained(base: Base, data: Path, tmp_path: Path) -> None:
    other = untied(base, tmp_path)
    done = train(make_recipe({"method": "partial", "train": ["lm_head"]}), data, other, tmp_path / "out")
    assert done.checks[-1].nll < done.checks[0].nll
    before, after = (load_file(f / "model.safetensors") for f in (other.folder, tmp_path / "out" / "model"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def odd(**params: Any) -> dict[str, Any]:
    return {"target": ["q_proj", "v_proj"], "params": params}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"target": ["v_porj"]}, r"LU-M010 model.adapt.target: v_porj: .*\s+-> did you mean 'v_proj'"),
        ({"target": "q_prj"}, r"LU-M010 model.adapt.target: q_prj.*\s+-> did you mean 'q_proj'"),
        ({"method": "loha", "target": ["v_porj"]}, "LU-M010 model.adapt.target"),
        ({"rank_pattern": {"q_prj": 4}}, r"LU-M010 model.adapt.rank_pattern: q_prj.*\s+-> did you mean 'q_proj'"),
        ({"method": "partial", "train": ".*nrom.*"}, "LU-M010 model.adapt.train"),
        ({"method": "partial", "bitfit": True}, "LU-M010 model.adapt.bitfit"),
        ({"target": ["q_proj", "v_porj", "k_prj"]}, r"target: v_porj(.|\n)*target: k_prj"),
        ({"method": "ia3", "target": ["k_proj", "dwn_proj"]}, "LU-M010 model.adapt.target: dwn_proj"),
        ({"method": "partial", "train": ["norm", "lm_haed"]}, "LU-M010 model.adapt.train: lm_haed"),
        ({"method": "partial", "last_layers": 1, "train": ".*nrom.*"}, "LU-M010 model.adapt.train"),
        ({"method": "partial", "last_layers": 1, "bitfit": True}, "LU-M010 model.adapt.bitfit"),
        ({"rank": 17}, r"LU-M012 model.adapt.rank: 17 is more than k_proj has: 32 x 16\s+-> 16 at most"),
        ({"last_layers": 3}, "LU-M012 model.adapt.last_layers: there are 2 layers, not 3"),
        ({"method": "partial", "last_layers": 3}, "LU-M012 model.adapt.last_layers"),
        ({"target": ["input_layernorm"]}, "LU-M013 model.adapt: lora: peft cannot adapt this model so"),
        ({"target": ["lm_head"]}, "LU-M013 model.adapt: lora: input and output embeddings are one tensor"),
        ({"method": "ia3", "target": ["norm"]}, "LU-M013 model.adapt: IA3"),
        ({"method": "oft", "target": ["q_proj", "norm"]}, "LU-M013 model.adapt: OFT"),
        ({"method": "c3a", "target": ["q_proj"]}, "LU-M013 model.adapt: C3A: .*block size"),
        ({"method": "oft", **odd(oft_block_size=5)}, r"LU-M013 model.adapt: OFT: .*Adjusted `oft_block_size` to \(4\)"),
        ({"method": "hra", **odd(r=3)}, "LU-M013 model.adapt: HRA: .*symmetric initialization"),
        ({"method": "boft", **odd(boft_n_butterfly_factor=2)}, "LU-M013 model.adapt: BOFT: .*factor to 1"),
        ({"method": "boft", **odd(bias="nope")}, "LU-M013 model.adapt: BOFT"),
        ({"method": "vera", **odd(r=0)}, "LU-M013 model.adapt: VERA: .*division by zero"),
        ({"method": "vera", **odd(r=-2)}, "LU-M013 model.adapt: VERA: .*negative dimension"),
        ({"method": "loha", **odd(rank_pattern={"[": 3})}, "LU-M013 model.adapt: LOHA: .*character set"),
        ({"method": "loha", **odd(layers_to_transform=[99])}, r"LU-M013 .*'layers_to_transform': \[99\]"),
        ({"method": "adalora"}, "LU-M012 model.adapt.initial_rank: 24 is more than k_proj has: 32 x 16"),
        ({"method": "adalora", "target": ["v_porj"]}, "LU-M010 model.adapt.target: v_porj"),
        ({"method": "bottleneck", "reduction": 33}, "LU-M012 model.adapt.reduction: 33 is more than .* 32"),
        ({"method": "bottleneck", "last_layers": 3}, "LU-M012 model.adapt.last_layers: there are 2 layers, not 3"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_said(base: Base, how: dict[str, Any], said: str) -> None:
    settings = make_recipe({"rank": 4, **how} if how.get("method") is None else how).model.adapt
    with pytest.raises(ModelError, match=said):
        adapt(load_model(base, CPU), settings, base, 0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "peft", "type": "CPT"}, "LU-R009 .*model.adapt: CPT: .*only `method: prompt`"),
        ({"method": "peft", "type": "ADALORA"}, "LU-R009 .*it is `method: adalora`"),
        ({"method": "adalora", "target_rank": 24}, "LU-R009 .*target_rank must be below initial_rank"),
        ({"method": "adalora", "start_fraction": 0.7}, "LU-R009 .*leave no steps in which ranks are taken"),
        ({"method": "adalora", "rank": 4}, "LU-R008 .*model.adapt.rank: no such setting"),
        ({"method": "peft", "type": "VEERA"}, "LU-R009 .*no such technique; did you mean 'VERA'"),
        ({"method": "peft", "type": "vera"}, "LU-R009 .*no such technique; did you mean 'VERA'"),
        ({"method": "vblora", "params": {"topk": 300}}, "LU-R009 .*topk 300 is more than num_vectors 256"),
        ({"method": "vera", "params": {"rr": 4}}, r"LU-R008 .*model.adapt.params.rr: .*\s+-> did you mean 'r'"),
        ({"method": "vera", "params": {"r": "4"}}, "LU-R009 .*model.adapt.params.r: .*integer, found '4'"),
        ({"method": "vera", "params": {"target_modules": ["a"]}}, r"LU-R008 .*\s+-> `model.adapt.target`"),
        ({"method": "oft", "params": {"r": 4}}, "LU-R009 .*model.adapt.params: You can only specify either"),
        ({"method": "partial"}, "LU-R009 .*say what to train"),
        ({"method": "partial", "train": "*"}, "LU-R009 .*model.adapt.train: is no regular expression"),
        ({"target": "("}, "LU-R009 .*model.adapt.target: is no regular expression"),
        ({"dora": True, "init": "pissa"}, "LU-R009 .*dora with init pissa"),
        ({"rank": 3, "init": "orthogonal"}, "LU-R009 .*even ranks"),
        ({"method": "bottleneck", "size": 8, "reduction": 4}, "LU-R009 .*size or reduction, not both"),
        ({"method": "bottleneck", "reducton": 4}, r"LU-R008 .*model.adapt.reducton: .*\s+-> did you mean 'reduction'"),
        ({"method": "bottleneck", "placement": "both"}, "LU-R009 .*model.adapt.placement: .*'houlsby'"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_ask_for_is_said(how: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(how)


def test_what_cannot_be_merged_or_served_is_said_before_anything_runs() -> None:
    rules = [{"metric": "perplexity", "must": "beat_baseline"}]
    for method, name in (("beft", "BEFT"), ("bottleneck", "bottleneck")):
        with pytest.raises(RecipeError, match=f"release.export: {name} cannot be merged"):
            make_recipe({"method": method}, release={"rules": rules, "export": ["merged"]})
    servers = {"servers": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    others = ({"method": "ia3"}, {"method": "partial", "bitfit": True}, {"method": "bottleneck"})
    for how in (*others, {"dora": True}, {"rank_pattern": {"a": 1}}):
        with pytest.raises(RecipeError, match="LU-R009 .*evaluate.servers load"):
            make_recipe(how, evaluate=servers)
    assert make_recipe({"rslora": True, "init": "pissa"}, evaluate=servers)
