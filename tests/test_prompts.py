"""Prompt learning: plain peft loads what is saved and agrees, one row at a time; a packed tree learns the same."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed import train_killed_once
from peft import PeftModel
from safetensors.torch import load_file
from test_adapt import CPU, conversations, gradients, make_recipe
from test_generate import NEVER, documents, ours, own
from test_models import built, random_examples
from torch import Tensor, nn

from luthier import cache
from luthier.adapt import adapt, trainable
from luthier.batch import make_batch
from luthier.conversation import write_conversations
from luthier.decoder import Decoder, score_all
from luthier.encode import Encoded, Encoder
from luthier.errors import ModelError, RecipeError
from luthier.generate import generate
from luthier.models import Base, find_base, load_model, load_tokenizer
from luthier.release.export import export
from luthier.saved import load_adapted, load_merged, save_adapted
from luthier.train import train

PROMPTS: dict[str, dict[str, Any]] = {
    "prompt": {"method": "prompt", "tokens": 5},
    "prompt, text": {"method": "prompt", "tokens": 12, "text": "You sell kettles."},
    "p_tuning": {"method": "p_tuning", "tokens": 5, "hidden": 24},
    "prefix": {"method": "prefix", "tokens": 5},
    "prefix, text": {"method": "prefix", "tokens": 12, "text": "You sell kettles."},
    "prefix, hidden": {"method": "prefix", "tokens": 5, "hidden": 24},
}
every_prompt = pytest.mark.parametrize("name", PROMPTS)


@pytest.fixture(scope="module")
def base(tiny: Path) -> Base:
    return find_base(str(tiny))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("data"), conversations(24)
    write_conversations(folder / "train.jsonl", rows[:16])
    write_conversations(folder / "validation.jsonl", rows[16:])
    return folder


def adapted(base: Base, name: str, model: nn.Module | None = None, moved: float = 0.3) -> Any:
    """A model with virtual tokens that are moved from where they begin, as training would."""
    model = model or load_model(base, CPU, torch.float32)
    found = adapt(model, make_recipe(PROMPTS[name]).model.adapt, base, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(found).values():
            parameter += moved * torch.randn(parameter.shape, generator=generator)
    return found.eval()


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    """Of the real tokens, by the model's own forward pass."""
    return model(torch.tensor([ids])).logits[0, -len(ids) :]  # type: ignore[no-any-return]


def encoded(base: Base) -> list[Encoded]:
    encoder = Encoder(load_tokenizer(base))
    return [encoder(c) for c in conversations(6)]


def nats(model: Any, example: Encoded) -> Tensor:
    """What an example's learned tokens cost by the model's own forward pass."""
    logits = model(torch.tensor([example.ids])).logits[0, -len(example.ids) : -1]
    each = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
    return each[torch.tensor(example.learn[1:])].sum()


def test_a_rooted_tree_holds_every_example_after_the_virtual_tokens() -> None:
    for seed in range(3):
        given = random_examples(seed)
        batch = make_batch(given)
        rooted = batch.rooted(4)
        assert batch.rooted(0) is batch
        for i, example in enumerate(given):
            places = rooted.places(i)
            assert rooted.ids[places].tolist() == [-1] * 4 + example.ids
            assert rooted.positions[places].tolist() == list(range(4 + len(example.ids)))
        assert torch.equal(rooted.ids[rooted.predict_at], batch.ids[batch.predict_at])


# -- as peft itself ---------------------------------------------------------------------------------------------------


@every_prompt
def test_plain_peft_loads_what_is_saved_and_agrees(base: Base, tmp_path: Path, name: str) -> None:
    model = adapted(base, name)
    save_adapted(model, tmp_path, load_tokenizer(base))
    plain = PeftModel.from_pretrained(load_model(base, CPU, torch.float32), tmp_path).double().eval()
    ids = list(range(3, 40))
    expected = logits(model.double(), ids)
    assert (logits(plain, ids) - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (logits(load_model(base, CPU, torch.float32).double(), ids) - expected).abs().max() > 1e-2
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == ["prompt_embeddings"]
    assert str(base.folder) not in (tmp_path / "adapter_config.json").read_text().replace(base.public_name, "")


@every_prompt
def test_what_is_loaded_scores_and_writes_as_plain_peft(base: Base, tmp_path: Path, name: str) -> None:
    save_adapted(adapted(base, name), tmp_path, load_tokenizer(base))
    plain = PeftModel.from_pretrained(load_model(base, CPU, torch.float32), tmp_path).eval()
    decoder = Decoder(load_adapted(load_model(base, CPU, torch.float32), tmp_path))
    assert decoder.path == "prefix tree, each shared token once; fused layers"
    given = encoded(base)
    with torch.no_grad():
        expected = torch.stack([nats(plain, e) for e in given])
    assert torch.allclose(torch.tensor(score_all(decoder, given, 100)), expected.float(), rtol=1e-5)
    asked = [e.ids[: -3 - i] for i, e in enumerate(given)]
    alone: Any = SimpleNamespace(model=plain)
    assert ours(decoder, asked, 12, {NEVER}) == [own(alone, a, 12, {NEVER}) for a in asked]


@pytest.mark.parametrize(("least_shared", "padding"), [(1, 0), (10_000, 100)])
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_the_root_is_kept_once_or_in_each_row(
    base: Base, name: str, least_shared: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And computed once in either case: the prompts are one tree under it."""
    monkeypatch.setattr(cache, "MIN_SHARED_TOKENS", least_shared)
    monkeypatch.setattr(cache, "MAX_PADDING", padding)
    filled: set[int] = set()
    fill = cache.RowCache.fill

    def count_and_fill(kept: cache.RowCache, key: Tensor, value: Tensor) -> None:
        filled.add(key.shape[1])
        fill(kept, key, value)

    monkeypatch.setattr(cache.RowCache, "fill", count_and_fill)
    decoder, given = Decoder(adapted(base, name)), documents(0)
    assert ours(decoder, given, 12, {NEVER}) == [own(decoder, p, 12, {NEVER}) for p in given]
    examples = [Encoded(p, [False] * len(p), str(i), "") for i, p in enumerate(given)]
    assert filled == {5 + make_batch(examples).ids.numel()}


FAMILIES = [
    "qwen3",
    "gpt2",
    "granite",
    "gemma",
    "cohere",
    "gemma2, full",
    "mistral, sliding",
    "gemma2",
    "lfm2",
    "bloom",
]
REFUSED = {
    ("prompt", "mamba"): "peft cannot adapt this model so",
    ("prefix", "mamba"): "peft cannot adapt this model so",
    ("prefix", "lfm2"): "peft cannot run this model so",
    ("prefix", "gemma2"): "peft cannot run this model so: a sliding window is shorter than the virtual tokens",
    ("prefix", "mistral, sliding"): "peft cannot run this model so: a sliding window is shorter",
}


@pytest.mark.parametrize(("name", "architecture"), REFUSED)
def test_what_peft_cannot_run_is_refused(base: Base, name: str, architecture: str) -> None:
    with pytest.raises(ModelError, match=f"LU-M013 model.adapt: {name}: {REFUSED[name, architecture]}"):
        adapted(base, name, deepcopy(built(architecture, torch.float32)))


@pytest.mark.parametrize(
    ("name", "architecture"), sorted({(n, a) for n in ("prompt", "p_tuning", "prefix") for a in FAMILIES} - {*REFUSED})
)
def test_families_agree_with_plain_peft(base: Base, name: str, architecture: str) -> None:
    """Trees, fused or not, and what runs row by row."""
    decoder = Decoder(adapted(base, name, deepcopy(built(architecture, torch.float32))))
    given = [Encoded(ids, [True] * len(ids), str(i), "") for i, ids in enumerate(documents(0))]
    with torch.no_grad():
        expected = torch.stack([nats(decoder.model, e) for e in given])
    assert torch.allclose(torch.tensor(score_all(decoder, given, 200)), expected.float(), rtol=1e-4)
    asked = documents(1)[:5]
    assert ours(decoder, asked, 10, {NEVER}) == [own(decoder, p, 10, {NEVER}) for p in asked]


# -- learning ---------------------------------------------------------------------------------------------------------


@every_prompt
def test_the_gradient_of_the_packed_tree_is_that_of_one_by_one(base: Base, name: str) -> None:
    """Packed, one tree each, and by peft's own forward pass."""
    decoder = Decoder(adapted(base, name).double())
    assert decoder.shares
    given = encoded(base)
    packed = gradients(decoder, [given], share=True)
    single = gradients(decoder, [[e] for e in given], share=False)
    decoder.model.zero_grad(set_to_none=True)
    (sum(nats(decoder.model, e) for e in given) / sum(sum(e.learn[1:]) for e in given)).backward()  # type: ignore[union-attr]
    by_peft = {n: p.grad for n, p in trainable(decoder.model).items() if p.grad is not None}
    assert packed.keys() == single.keys() == by_peft.keys() and packed
    norm = sum(float(g.norm()) ** 2 for g in by_peft.values()) ** 0.5
    for other in (single, by_peft):
        assert sum(float((packed[n] - other[n]).norm()) ** 2 for n in packed) ** 0.5 < 1e-6 * norm


def test_row_by_row_learns_the_same(base: Base) -> None:
    for name in ("prompt", "prefix"):
        tree = Decoder(adapted(base, name).double())
        rows = Decoder(tree.model)
        rows._rows_only = "for the test"
        packed, single = (gradients(d, [encoded(base)], share=True) for d in (tree, rows))
        assert all((packed[n] - single[n]).norm() < 1e-6 * single[n].norm() for n in packed)


@every_prompt
def test_it_learns_and_a_killed_run_goes_on_to_the_same_bits(
    base: Base, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = make_recipe(PROMPTS[name])
    straight = train(recipe, data, base, tmp_path / "straight")
    assert straight.checks[-1].nll < straight.checks[0].nll
    assert straight.path == "prefix tree, each shared token once; fused layers; in float32"
    train_killed_once(recipe, data, base, tmp_path / "killed", monkeypatch)
    once, twice = (tmp_path / run / "model" / "adapter_model.safetensors" for run in ("straight", "killed"))
    assert once.read_bytes() == twice.read_bytes()


@every_prompt
def test_only_the_virtual_tokens_learn(base: Base, name: str) -> None:
    model = adapted(base, name, moved=0.0)
    assert all(n.startswith("prompt_encoder.default.") for n in trainable(model))
    assert all(p.dtype == torch.float32 for p in trainable(model).values())
    untouched = load_model(base, CPU, torch.float32).state_dict()
    assert all(torch.equal(weight, untouched[n]) for n, weight in model.get_base_model().state_dict().items())


# -- where they begin -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompt, text", "prefix, text"])
def test_a_prompt_begins_as_its_text_before_what_is_asked(base: Base, name: str) -> None:
    ids = load_tokenizer(base)(PROMPTS[name]["text"], add_special_tokens=False)["input_ids"]
    started = (ids * 12)[:12]
    model, asked = adapted(base, name, moved=0.0), list(range(3, 40))
    expected = logits(load_model(base, CPU, torch.float32), started + asked)[12:]
    assert torch.allclose(logits(model, asked), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_without_a_text_tokens_are_drawn_by_seed(base: Base, name: str) -> None:
    how = make_recipe(PROMPTS[name]).model.adapt
    models = [adapt(load_model(base, CPU, torch.float32), how, base, seed) for seed in (0, 0, 1)]
    first, again, other = (logits(model, [5, 6, 7]) for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


# -- what else reads a model ------------------------------------------------------------------------------------------


@every_prompt
def test_it_is_exported_and_evaluated_beside_the_base(base: Base, tmp_path: Path, name: str) -> None:
    save_adapted(adapted(base, name), tmp_path / "model", load_tokenizer(base))
    assert export(base, tmp_path / "model", tmp_path, [], [[5, 6, 7, 8]]) == {"adapter": 0.0}
    left = load_merged(load_model(base, CPU, torch.float32), tmp_path / "model")
    assert hasattr(left, "peft_config") and Decoder(left).n_virtual == PROMPTS[name]["tokens"]
    assert generate(Decoder(left), [[5, 6]], max_new_tokens=2, end_ids={NEVER}, advance=lambda *_, **__: None)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "peft", "type": "PREFIX_TUNING"}, "LU-R009 .*PREFIX_TUNING: it is `method: prefix`"),
        ({"method": "prefix", "text": "a", "hidden": 8}, "LU-R009 .*begins at random"),
        ({"method": "prompt", "tokens": 0}, "LU-R009 recipe.yaml: model.adapt.tokens: .*greater than or equal to 1"),
        ({"method": "prompt", "text": ""}, "LU-R009 recipe.yaml: model.adapt.text"),
        ({"method": "p_tuning", "hiden": 8}, r"LU-R008 recipe.yaml: model.adapt.hiden: .*\s+-> did you mean 'hidden'"),
        ({"method": "prompt", "tokns": 8}, r"LU-R008 recipe.yaml: model.adapt.tokns: .*\s+-> did you mean 'tokens'"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_ask_for_is_said(how: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(how)


def test_what_cannot_be_merged_or_served_is_said_before_anything_runs() -> None:
    rules = [{"metric": "perplexity", "must": "beat_baseline"}]
    for how, technique in (("prompt", "PROMPT_TUNING"), ("p_tuning", "P_TUNING"), ("prefix", "PREFIX_TUNING")):
        with pytest.raises(RecipeError, match=f"release.export: {technique} cannot be merged"):
            make_recipe({"method": how}, release={"rules": rules, "export": ["merged"]})
        with pytest.raises(RecipeError, match="LU-R009 .*evaluate.servers load"):
            make_recipe({"method": how}, evaluate={"servers": {"url": "http://127.0.0.1:1/v1", "model": "m"}})
