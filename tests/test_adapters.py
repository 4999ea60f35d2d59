"""Several adapters at once: they act together while one learns, and what is saved is all of them on the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import train_killed_once
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from test_adapt import CPU, adapted, conversations, gap, make_recipe, untied
from torch import nn

from luthier import lifecycle
from luthier import train as training
from luthier.adapt import adapt, trainable
from luthier.conversation import write_conversations
from luthier.decoder import Decoder
from luthier.errors import ModelError, RecipeError
from luthier.joined import Low, add, join, read_adapter
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.records import EvalReport, TrainReport
from luthier.saved import load_adapted, load_merged, save_adapted
from luthier.store import folder_hash
from luthier.target import Run
from luthier.train import loop, train
from luthier.train.loop import Progress


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


@pytest.fixture(scope="module")
def given(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two adapters, of other ranks, targets and scales than those that are trained on top of them."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("rslora", "patterns"):
        save_adapted(adapted(base, name), folder / name, load_tokenizer(base))
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    rows = conversations(20)
    for side, members in {"train": rows[:16], "validation": rows[16:]}.items():
        write_conversations(folder / f"{side}.jsonl", members)
    return folder


def peft_sum(base: Base, folders: dict[Path, float]) -> nn.Module:
    """The base with all of them, each at its weight, by peft alone."""
    model: Any = load_model(base, CPU, torch.float32)
    for i, (folder, weight) in enumerate(folders.items()):
        name = f"adapter{i}"
        model = PeftModel.from_pretrained(model, folder, adapter_name=name) if i == 0 else model
        if i:
            model.load_adapter(folder, adapter_name=name)
        for module in model.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    model.base_model.set_adapter([f"adapter{i}" for i in range(len(folders))])
    return model.eval()  # type: ignore[no-any-return]


def test_adapters_that_are_added_act_as_they_do_in_peft(base: Base, given: Path) -> None:
    weights = {given / "rslora": 1.0, given / "patterns": 0.5}
    added = add(load_model(base, CPU), [read_adapter(folder, base, w) for folder, w in weights.items()])
    assert gap(added, peft_sum(base, weights)) < 1e-5
    assert gap(added, load_model(base, CPU)) > 1e-3


@pytest.mark.parametrize("name", ["lora", "pissa rslora patterns", "last layer", "adalora"])
def test_a_joined_adapter_does_what_all_do(base: Base, given: Path, tmp_path: Path, name: str) -> None:
    save_adapted(adapted(base, name), tmp_path / "own", load_tokenizer(base))
    save_adapted(adapted(base, name), tmp_path / "joined", load_tokenizer(base))
    join(tmp_path / "joined", [read_adapter(given / "rslora", base), read_adapter(given / "patterns", base, 0.5)])
    expected = peft_sum(base, {tmp_path / "own": 1.0, given / "rslora": 1.0, given / "patterns": 0.5})
    joined = load_adapted(load_model(base, CPU), tmp_path / "joined")
    assert gap(joined, expected) < 1e-5
    assert gap(load_merged(load_model(base, CPU), tmp_path / "joined"), expected) < 1e-5
    assert Decoder(joined).path.endswith("fused layers")


def test_equal_ranks_need_no_patterns(base: Base, given: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_adapted(adapted(base, "lora"), tmp_path / name, load_tokenizer(base))
    join(tmp_path / "one", [read_adapter(tmp_path / "two", base)])
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (8, 8, {}, {})


def test_an_adapter_of_the_embeddings_is_joined_too(base: Base, tmp_path: Path) -> None:
    other, folders = untied(base, tmp_path), [tmp_path / "own", tmp_path / "joined", tmp_path / "given"]
    for folder, target in zip(
        folders, (["embed_tokens", "v_proj"], ["embed_tokens", "v_proj"], ["v_proj"]), strict=True
    ):
        how = make_recipe({"rank": 4, "target": target}).model.adapt
        model = adapt(load_model(other, CPU), how, other, 0)
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter += 0.1
        save_adapted(model, folder, load_tokenizer(other))
    join(tmp_path / "joined", [read_adapter(tmp_path / "given", other)])
    joined = load_adapted(load_model(other, CPU), tmp_path / "joined")
    assert gap(joined, peft_sum(other, {tmp_path / "own": 1.0, tmp_path / "given": 1.0})) < 1e-5


@pytest.mark.parametrize("how", [{"rank": 4}, {"method": "full"}, {"rank": 4, "init": "pissa"}])
def test_training_begins_with_the_given_adapters_and_leaves_all_of_them(
    base: Base,
    given: Path,
    chats: Path,
    tmp_path: Path,
    how: dict[str, Any],
) -> None:
    weights = {"rslora": 1.0, "patterns": 0.5}
    listed = [{"path": str(given / name), "weight": weight} for name, weight in weights.items()]
    recipe = make_recipe({}, model={"adapters": listed, "adapt": how})
    done = train(recipe, chats, base, tmp_path / "long")
    assert done.checks[-1].nll < done.checks[0].nll
    assert [(Path(a.path).name, a.weight, len(a.sha256)) for a in done.adapters] == [
        ("rslora", 1.0, 64), ("patterns", 0.5, 64),
    ]  # fmt: skip
    still = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 1e-30})})
    train(still, chats, base, tmp_path / "still")
    begun = load_merged(load_model(base, CPU), tmp_path / "still" / "model")
    assert gap(begun, peft_sum(base, {given / name: weight for name, weight in weights.items()})) < 1e-5
    assert gap(load_merged(load_model(base, CPU), tmp_path / "long" / "model"), begun) > 1e-3


def test_the_record_names_the_adapters_that_were_used(
    base: Base, given: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = changed(given / "rslora", tmp_path / "mine")
    recipe = make_recipe({}, model={"adapters": ["mine"], "adapt": {"rank": 4}}, train={"epochs": 1})
    before = folder_hash(mine)

    def fit_and_change(*args: Any) -> Progress:
        (mine / "adapter_config.json").write_text("{}")
        return loop.fit(*args)

    monkeypatch.setattr(training, "fit", fit_and_change)
    assert train(recipe, chats, base, tmp_path / "out", folder=tmp_path).adapters[0].sha256 == before


def test_a_killed_run_goes_on_to_the_same_bits(
    base: Base,
    given: Path,
    chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe({}, model={"adapters": ["rslora", "patterns"], "adapt": {"rank": 4}})
    train(recipe, chats, base, tmp_path / "straight", folder=given)
    train_killed_once(recipe, chats, base, tmp_path / "killed", monkeypatch, given)
    [once], [twice] = (sorted((tmp_path / side / "model").glob("*.safetensors")) for side in ("straight", "killed"))
    assert once.read_bytes() == twice.read_bytes()


# -- the whole life ---------------------------------------------------------------------------------------------------

RECIPE = """
name: {name}
data:
  sources: [{{path: rows.jsonl}}]
  split: {{by: row, valid_fraction: 0.1, test_fraction: 0.3}}
model: {{base: "{base}", {adapters} adapt: {{rank: 4}}}}
train: {{epochs: 2, examples_per_step: 8, learning_rate: 1e-2}}
evaluate: {{max_new_tokens: 8, probe_documents: 24, metrics: [perplexity, token_f1]}}
release:
  rules: [{{metric: perplexity, must: beat_baseline}}]
  export: [merged]
"""


def test_a_run_goes_on_top_of_another(tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is order {i}?", "completion": f"{i % 5} kettles, {i} lids"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = run_of(tmp_path, RECIPE.format(name="first", base=tiny, adapters=""))
    on_top = f'adapters: ["{first.folder.relative_to(tmp_path)}"],'
    second = run_of(tmp_path, RECIPE.format(name="second", base=tiny, adapters=on_top))
    [before] = [TrainReport.read(first.folder / "train" / "train.json").checks[-1].nll]
    checks = TrainReport.read(second.folder / "train" / "train.json").checks
    assert checks[0].nll == pytest.approx(before, abs=1e-5) and checks[-1].nll < before
    evaluation = EvalReport.read(second.folder / "evaluate" / "evaluation.json")
    assert any("asked without the adapter that training began with" in note for note in evaluation.notes)
    [given] = TrainReport.read(second.folder / "train" / "train.json").adapters
    assert given.sha256 in (second.folder / "release" / "MODEL_CARD.md").read_text()
    assert given.sha256[:12] in (second.folder / "release" / "report.html").read_text()
    assert (second.folder / "release" / "merged").is_dir()


def test_a_changed_adapter_is_trained_on_anew(base: Base, given: Path, tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is order {i}?", "completion": f"{i % 5} kettles"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_adapted(adapted(base, "lora"), tmp_path / "mine", load_tokenizer(base))
    recipe = RECIPE.format(name="mine", base=tiny, adapters="adapters: [mine],")
    first = run_of(tmp_path, recipe, until="train")
    before = (first.folder / "train" / "record.json").read_bytes()
    assert (run_of(tmp_path, recipe, until="train").folder / "train" / "record.json").read_bytes() == before
    save_adapted(adapted(base, "rslora"), tmp_path / "mine", load_tokenizer(base))
    assert (run_of(tmp_path, recipe, until="train").folder / "train" / "record.json").read_bytes() != before


def run_of(folder: Path, recipe: str, until: Any = "release") -> Run:
    (folder / "recipe.yaml").write_text(recipe)
    return lifecycle.run(folder / "recipe.yaml", workspace=folder / "runs", until=until)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_what_is_no_plain_lora_is_refused(base: Base, given: Path, tmp_path: Path) -> None:
    for name in ("dora", "IA3", "norms"):
        save_adapted(adapted(base, name), tmp_path / name, load_tokenizer(base))
    said = {
        "dora": "use_dora: True",
        "IA3": "its type is IA3",
        "norms": "holds no adapter",
        "nowhere": "holds no adapter",
    }
    for name, found in said.items():
        with pytest.raises(ModelError, match=f"LU-M030 .*{found}"):
            read_adapter(tmp_path / name, base)
    begun = changed(given / "rslora", tmp_path / "begun", init_lora_weights="pissa")
    with pytest.raises(ModelError, match="LU-M030 .*init_lora_weights: pissa"):
        read_adapter(begun, base)
    (begun / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="LU-M030"):
        read_adapter(begun, base)


def test_an_adapter_of_another_base_is_refused(base: Base, given: Path, tmp_path: Path) -> None:
    other = changed(given / "rslora", tmp_path / "other", base_model_name_or_path="someone/else")
    with pytest.raises(ModelError, match="LU-M031 .*was trained on someone/else, not on"):
        read_adapter(other, base)


def test_an_adapter_of_another_shape_is_refused(base: Base, given: Path, tmp_path: Path) -> None:
    other = changed(given / "rslora", tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(weights | {name: weights[name][:, :8].contiguous()}, other / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"LU-M032 .*q_proj: an adapter of a matrix of \(32, 8\); .* \(32, 32\)"):
        add(load_model(base, CPU), [read_adapter(other, base)])


def test_an_adapter_of_a_head_that_is_the_embeddings_is_refused(base: Base) -> None:
    n_tokens, width = load_model(base, CPU).get_output_embeddings().weight.shape
    of_head = {"lm_head": Low(torch.zeros(1, width), torch.zeros(n_tokens, 1))}
    with pytest.raises(ModelError, match="LU-M032 model.adapters: lm_head: is both input and output embeddings"):
        add(load_model(base, CPU), [of_head])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "its configuration is no mapping"),
        ({"lora_alpha": "16"}, "lora_alpha: .*valid number"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern.*regular expression"),
    ],
)  # fmt: skip
def test_a_configuration_that_says_no_scale_is_refused(
    base: Base, given: Path, tmp_path: Path, content: Any, said: str
) -> None:
    other = changed(given / "rslora", tmp_path / "other", **(content or {}))
    if not content:
        (other / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=f"LU-M030 .*holds no adapter that can be read: {said}"):
        read_adapter(other, base)


def test_a_configuration_without_alpha_has_that_of_peft(base: Base, given: Path, tmp_path: Path) -> None:
    of_8, without = (changed(given / "rslora", tmp_path / name, lora_alpha=8) for name in ("eight", "none"))
    config = json.loads((without / "adapter_config.json").read_text())
    (without / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "lora_alpha"}))
    pairs = zip(read_adapter(of_8, base).values(), read_adapter(without, base).values(), strict=True)
    assert all(torch.equal(a.b, b.b) for a, b in pairs)


def changed(folder: Path, copy: Path, **settings: Any) -> Path:
    copy.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | settings))
    (copy / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    return copy


@pytest.mark.parametrize("how", [{"dora": True}, {"method": "ia3"}, {"method": "prompt"}])
def test_a_technique_that_cannot_be_joined_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="adapters act together with method full"):
        make_recipe({}, model={"adapters": ["mine"], "adapt": how})


def test_servers_are_not_asked_for_what_they_cannot_load() -> None:
    servers = {"servers": {"url": "http://127.0.0.1:8000/v1", "model": "m"}}
    for model in ({"adapters": ["mine"]}, {"new_tokens": ["<a>"]}):
        with pytest.raises(RecipeError, match=r"evaluate.servers load no new_tokens"):
            make_recipe({}, model=model, evaluate=servers)
