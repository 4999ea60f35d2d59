"""New tokens: found whoever writes them, begun as what they replace, learned alone, and in what leaves the house."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES, Family, tokenizer_of
from killed import train_killed_once
from peft import PeftModel
from safetensors.torch import load_file
from test_adapt import CPU, gap, gradients, make_recipe
from test_lifecycle import Said
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from luthier import finished, lifecycle
from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.conversation import Conversation, Message, make_conversation, write_conversations
from luthier.decoder import Decoder
from luthier.encode import Encoder
from luthier.errors import ModelError, RecipeError
from luthier.fused import FusedLayers
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.records import AuditReport, EvalReport
from luthier.release.export import MERGE_TOLERANCE, export
from luthier.saved import load_adapted, load_merged, save_adapted
from luthier.settings import Adapt
from luthier.train import train
from luthier.vocabulary import add_tokens, rows_of

TOKENS = ("<order>", "</order>", *(f"<item {i}>" for i in range(8)))
"""More than the tiny model's embeddings have room for."""
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4, "dora": True},
    "pissa": {"rank": 4, "init": "pissa"},
    "adalora": {"method": "adalora", "target_rank": 2, "initial_rank": 4},
    "full": {"method": "full"},
    "embeddings": {"method": "partial", "train": ["embed_tokens", "lm_head"]},
}
every_way = pytest.mark.parametrize("way", WAYS)
every_shape = pytest.mark.parametrize("shape", ["tied", "untied"])


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    config = AutoConfig.from_pretrained(tiny)
    config.tie_word_embeddings = False
    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    found = {"tied": find_base(str(tiny)), "untied": find_base(str(folder))}
    return {name: replace(base, new_tokens=TOKENS) for name, base in found.items()}


@pytest.fixture(scope="module")
def orders_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orders")
    rows = orders(20)
    for side, members in {"train": rows[:16], "validation": rows[16:]}.items():
        write_conversations(folder / f"{side}.jsonl", members)
    return folder


def how(way: str) -> Adapt:
    return make_recipe(WAYS[way]).model.adapt


def orders(n: int) -> list[Conversation]:
    return [
        make_conversation(
            [
                Message(role="user", content=f"Order <item {i % 8}>, please."),
                Message(role="assistant", content=f"<order>kettle {i % 5}, <item {i % 8}></order>"),
            ],
            f"orders.jsonl:{i + 1}",
        )
        for i in range(n)
    ]


def moved(base: Base, way: str) -> nn.Module:
    """As a training would leave it: all that learns is moved from where it begins."""
    model = adapt(load_model(base, CPU, torch.float32), how(way), base, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# -- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_new_tokens_are_found_in_what_anyone_writes_and_control_tokens_are_not(family: Family, tiny: Path) -> None:
    tokenizer = tokenizer_of(family, tiny)
    forged = next(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 3)
    add_tokens(tokenizer, TOKENS)
    order, end, item = rows_of(tokenizer, ("<order>", "</order>", "<item 3>"))
    asked = f"Take <item 3>{forged}<order>"
    turns = [Message(role="user", content=asked), Message(role="assistant", content="<order>Yes</order>")]
    ids = Encoder(tokenizer, new_tokens=TOKENS)(make_conversation(turns, "")).ids
    assert [id_ for id_ in ids if id_ in (order, end, item)] == [item, order, order, end]
    plain = [m.model_copy(update={"content": m.content.replace(forged, "")}) for m in turns]
    forged_id = tokenizer.convert_tokens_to_ids(forged)
    without = Encoder(tokenizer, new_tokens=TOKENS)(make_conversation(plain, "")).ids
    assert ids.count(forged_id) == without.count(forged_id), "a forged control token is text"
    rendered = tokenizer.apply_chat_template([m.model_dump(include={"role", "content"}) for m in plain], tokenize=False)
    assert without == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_what_is_answered_keeps_its_new_tokens(bases: dict[str, Base]) -> None:
    tokenizer = load_tokenizer(bases["tied"])
    ids = tokenizer("<order>two</order>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<order>two</order>"
    assert [ids[0], ids[-1]] == rows_of(tokenizer, ("<order>", "</order>"))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (("kettle<|im_end|>",), "LU-M021 model.new_tokens: kettle<|im_end|>: holds <|im_end|>"),
        (("<think>", "e"), "LU-M021 model.new_tokens: e: is a token of the base model already"),
    ],
)
def test_what_a_tokenizer_cannot_take_is_refused(tiny: Path, tokens: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError) as error:
        load_tokenizer(replace(find_base(str(tiny)), new_tokens=tokens))
    assert said in str(error.value) and len(error.value.problems) == len(tokens)


# -- weights ----------------------------------------------------------------------------------------------------------


@every_shape
def test_new_rows_begin_as_the_mean_of_what_they_replace(bases: dict[str, Base], shape: str) -> None:
    base = bases[shape]
    before, after = load_model(base.unchanged, CPU), load_model(base, CPU)
    pieces = load_tokenizer(base.unchanged)("<order>", add_special_tokens=False)["input_ids"]
    [row] = rows_of(load_tokenizer(base), ("<order>",))
    for end in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(model, end)().weight for model in (before, after))
        assert torch.equal(new[row], old[pieces].mean(0)) and len(pieces) > 1
        known = len(load_tokenizer(base.unchanged))
        assert torch.equal(new[:known], old[:known]) and len(new) == len(load_tokenizer(base)) > len(old)


def test_embeddings_with_room_are_not_resized(bases: dict[str, Base]) -> None:
    few = replace(bases["tied"], new_tokens=TOKENS[:2])
    assert load_model(few, CPU).get_input_embeddings().num_embeddings == 520  # type: ignore[operator]


@every_shape
@every_way
def test_the_gradient_of_the_packed_tree_is_that_of_one_by_one(bases: dict[str, Base], shape: str, way: str) -> None:
    base = bases[shape]
    decoder = Decoder(moved(base, way).double())
    assert decoder.shares and (decoder.fused is not None) == (way != "dora" and way != "adalora"), decoder.path
    encoder = Encoder(load_tokenizer(base), new_tokens=TOKENS)
    examples = [encoder(c) for c in orders(6)]
    packed = gradients(decoder, [examples], share=True)
    single = gradients(decoder, [[e] for e in examples], share=False)
    assert packed.keys() == single.keys() == trainable(decoder.model).keys()
    norm = sum(float(g.norm()) ** 2 for g in single.values()) ** 0.5
    assert sum(float((packed[n] - single[n]).norm()) ** 2 for n in single) ** 0.5 < 1e-6 * norm


@every_shape
def test_the_gradient_of_new_rows_is_autograds_through_peft(bases: dict[str, Base], shape: str) -> None:
    """Without our head and packing: the loss of one text by the wrapped model itself."""
    base = bases[shape]
    model = moved(base, "lora").double()
    encoded = Encoder(load_tokenizer(base), new_tokens=TOKENS)(orders(1)[0])
    found = gradients(Decoder(model), [[encoded]], share=True)
    model.zero_grad(set_to_none=True)
    ids = torch.tensor([encoded.ids])
    labels = torch.where(torch.tensor([encoded.learn]), ids, -100)
    model(input_ids=ids, labels=labels).loss.backward()
    tokens = {n: p.grad for n, p in trainable(model).items() if "trainable_tokens" in n}
    assert len(tokens) == (1 if shape == "tied" else 2)
    for name, expected in tokens.items():
        assert float((found[name] - expected).norm() / expected.norm()) < 1e-6, name


@every_shape
@every_way
def test_what_is_saved_is_what_was_trained(bases: dict[str, Base], tmp_path: Path, shape: str, way: str) -> None:
    base = bases[shape]
    model = moved(base, way)
    save_adapted(model, tmp_path, load_tokenizer(base))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    if way in ("full", "embeddings"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    else:
        plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
        plain.resize_token_embeddings(len(tokenizer))  # whose new rows are random: the adapter has them all
        plain = PeftModel.from_pretrained(plain, tmp_path)
        assert gap(load_adapted(load_model(base, CPU), tmp_path), plain) == 0
    assert gap(plain.eval(), model) < (1e-5 if way in ("pissa", "adalora") else 1e-9)
    merged = load_merged(load_model(base, CPU), tmp_path)
    assert gap(merged, model) < MERGE_TOLERANCE
    assert not hasattr(merged, "peft_config") and Decoder(merged).path.endswith("fused layers")


def test_only_the_new_rows_learn(bases: dict[str, Base], tmp_path: Path) -> None:
    base = bases["tied"]
    merged = tmp_path / "merged"
    save_adapted(moved(base, "lora"), tmp_path, load_tokenizer(base))
    load_merged(load_model(base, CPU), tmp_path).save_pretrained(merged)  # type: ignore[operator]
    name = "model.embed_tokens.weight"
    before, after = load_model(base, CPU).state_dict()[name], load_file(merged / "model.safetensors")[name]
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == rows_of(load_tokenizer(base), TOKENS)


@pytest.mark.parametrize("way", ["lora", "full"])
def test_exports_behave_as_what_was_trained(bases: dict[str, Base], tmp_path: Path, way: str) -> None:
    base = bases["tied"]
    save_adapted(moved(base, way), tmp_path / "model", load_tokenizer(base))
    parity = export(base, tmp_path / "model", tmp_path, ["merged"], [rows_of(load_tokenizer(base), TOKENS)])
    assert parity.pop("model" if way == "full" else "adapter") == 0
    assert all(value < MERGE_TOLERANCE for value in parity.values())
    if way == "lora":
        assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 523


def test_fused_layers_are_those_that_train(bases: dict[str, Base]) -> None:
    decoder = Decoder(moved(bases["untied"], "lora"))
    assert isinstance(decoder.fused, FusedLayers)
    batch = make_batch([Encoder(load_tokenizer(bases["untied"]), new_tokens=TOKENS)(orders(1)[0])])
    with torch.no_grad(), decoder.model.disable_adapter():  # type: ignore[operator]
        without = decoder.head(decoder.hidden(batch))
    base = Decoder(load_model(bases["untied"], CPU))
    with torch.no_grad():
        assert torch.allclose(without, base.head(base.hidden(batch)), atol=1e-6)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"new_tokens": ["<a>", "<b>", "<a>"]}, "new_tokens names '<a>' twice"),
        ({"new_tokens": [""]}, "more than white space"),
        ({"new_tokens": [" <a>"]}, "none at its edges"),
        ({"new_tokens": ["<a>"], "adapt": {"method": "ia3"}}, "full, partial, lora or adalora only"),
    ],
)
def test_a_recipe_says_what_it_cannot_mean(model: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe({}, model=model)


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ("tied", {"method": "partial", "train": ".*norm.*"}, "LU-M013 model.adapt: partial: the embeddings"),
        ("untied", {"method": "partial", "train": ["embed_tokens"]}, "LU-M013 model.adapt: partial: the embeddings"),
        ("untied", {"rank": 4, "target": ["lm_head", "q_proj"]}, "LU-M013 model.adapt: lora"),
    ],
)
def test_new_tokens_that_could_not_be_learned_are_refused(
    bases: dict[str, Base], shape: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        adapt(load_model(bases[shape], CPU), make_recipe(settings).model.adapt, bases[shape], 0)


# -- the whole life ---------------------------------------------------------------------------------------------------


RECIPE = """
name: orders
data:
  sources: [{{path: rows.jsonl}}]
  split: {{by: row, valid_fraction: 0.1, test_fraction: 0.3}}
model: {{base: "{base}", new_tokens: ["<order>", "</order>", "<never>"], adapt: {{rank: 4}}}}
train: {{epochs: 3, examples_per_step: 8, learning_rate: 1e-2}}
evaluate: {{max_new_tokens: 12, probe_documents: 24, metrics: [perplexity, token_f1]}}
release:
  rules: [{{metric: perplexity, must: beat_baseline}}]
  export: [merged]
"""


def test_the_whole_life_with_new_tokens(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is order {i}?", "completion": f"<order>{i % 5} kettles, {i} lids</order>"} for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    said = Said()
    run = lifecycle.run(tmp_path / "recipe.yaml", workspace=tmp_path / "runs", report=said)
    audit = AuditReport.read(run.folder / "prepare" / "audit.json")
    assert "rows that hold the new token <order>: 36 train, 6 validation, 18 test" in audit.notes
    assert audit.counts["LU-D107"] == 1
    evaluation = EvalReport.read(run.folder / "evaluate" / "evaluation.json")
    assert any("without the 3 new tokens" in note for note in evaluation.notes)
    base, tuned = (
        [json.loads(line) for line in (run.folder / "evaluate" / f"{side}.jsonl").open()] for side in ("base", "tuned")
    )
    assert [row["n_tokens"] for row in base] == [row["n_tokens"] for row in tuned], "one unit for both"
    assert evaluation.metrics["perplexity"].delta > 0
    card = (run.folder / "release" / "MODEL_CARD.md").read_text()
    assert 'AutoTokenizer.from_pretrained("model")' in card and "LoRA of rank 4 with 3 new tokens" in card
    assert len(AutoTokenizer.from_pretrained(run.folder / "release" / "merged")) == 516
    assert isinstance(finished.talk(run.folder)("What is order 3?"), str)
    assert isinstance(finished.talk(run.folder, base=True)("What is order 3?"), str)


@every_way
def test_it_learns_and_a_killed_run_goes_on_to_the_same_bits(
    bases: dict[str, Base], orders_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    recipe = make_recipe({}, model={"new_tokens": list(TOKENS), "adapt": WAYS[way]})
    straight = train(recipe, orders_data, bases["tied"], tmp_path / "straight")
    assert straight.checks[-1].nll < straight.checks[0].nll
    train_killed_once(recipe, orders_data, bases["tied"], tmp_path / "killed", monkeypatch)
    [once], [twice] = (sorted((tmp_path / side / "model").glob("*.safetensors")) for side in ("straight", "killed"))
    assert once.read_bytes() == twice.read_bytes()
