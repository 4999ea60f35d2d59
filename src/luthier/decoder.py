"""Run a causal language model over packed trees: its body where something is learned, its head in chunks.

    B examples, T tokens of a row, N tokens of a packed tree, M learned edges, D hidden size, V vocabulary
    H query heads, K key/value heads, C size of a head

The body runs a tree through the model's own layers with a registered attention function. At load both body and
head are compared with the model's ordinary forward pass; a model that does not agree runs row by row instead,
and says so. Logits exist only where they are needed. This module knows nothing of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luthier import kernels
from luthier.attention import Attend, TreePlan
from luthier.batch import Batch, make_batch, split_by_tokens
from luthier.encode import Encoded
from luthier.errors import ModelError, first_line
from luthier.fused import FusedLayers
from luthier.models import name_of_layers, quiet_transformers
from luthier.prompts import Root
from luthier.recompute import Within, recomputed
from luthier.vocabulary import parts_of_head

LOGITS_CHUNK = 512
"""Rows of logits alive at once: 512 x 49,152 floats are 100 MB."""


class Decoder:
    """A causal language model as body and head. `path` says which forward runs, and why.

    `products`: what fused layers multiply float32 weights in; None: bfloat16 on a GPU that has it, float32 elsewhere.
    """

    def __init__(self, model: nn.Module, products: torch.dtype | None = None) -> None:
        self.model = model
        self._products = products
        # peft wraps; Any, because torch types the attributes of a Module as Tensor | Module
        self._inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._root = Root.of(model)
        self._linear, self._learned_rows = parts_of_head(self._inner.get_output_embeddings())  # type: ignore[operator]
        config = self._inner.config
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self.shortcut: Callable[[Batch], Tensor] | None = None
        """What `tree_states` gives, in less time: `trunk.kept_trunk` puts it here, and takes it away."""
        self.fused: FusedLayers | None = None
        """What runs in place of the model's own layers; None: they do."""
        self.recompute = 0
        """So many layers, the last ones, are computed again in the backward pass: see `recompute.py`."""
        self._layers_name = name_of_layers(self.body)
        with quiet_transformers():
            disagreement = _disagreement(self)
            drops_out = _drops_out(self._inner)
            self._rows_only = "shared tokens would share their dropout" if drops_out else disagreement
            self._unfused = None if self._rows_only else _fuse(self)

    @property
    def path(self) -> str:
        parts = [f"row by row: {self._rows_only}"]
        if self.shares:
            missing = kernels.missing(self.device)
            parts = [
                "prefix tree, each shared token once",
                f"the model's own layers: {self._unfused}" if self._unfused else "fused layers",
                *([f"no compiled kernels: {missing}"] if missing else []),
            ]
        again = [f"{self.recompute} layers computed again in the backward pass"] if self.recompute else []
        return "; ".join([*parts, *again])

    @property
    def precision(self) -> str:
        """What it computes in, in words."""
        stored = next((p.dtype for p in self.body.parameters() if p.ndim == 2), torch.float32)
        products = self.fused.dtype if self.fused else stored
        name, other = (str(dtype).removeprefix("torch.") for dtype in (stored, products))
        return name if name == other else f"{name}, products in {other}"

    @property
    def body(self) -> Any:
        return self._inner.get_decoder()

    def layers(self) -> tuple[str, nn.ModuleList]:
        """The attribute that holds the body's layers, and they. Raises ValueError where they are not one list."""
        if self._layers_name is None:
            raise ValueError("its layers are not one list")
        return self._layers_name, getattr(self.body, self._layers_name)

    @property
    def recomputable(self) -> bool:
        """Whether `recompute` may be set: peft gives rows the keys of a prefix in a cache, which would grow again."""
        return self._layers_name is not None and (self.shares or self._root is None)

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

    @property
    def n_virtual(self) -> int:
        """Learned tokens that stand before every text; in a packed tree they are its root (`Batch.rooted`)."""
        return self._root.n if self._root else 0

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (m, D) -> logits (m, V) in float32 at least, with the family's scaling and soft cap."""
        logits: Tensor = (self.fused.head if self.fused else self._linear)(hidden)
        if self._learned_rows is not None:
            logits = self._learned_rows(logits, hidden)
        logits = logits if logits.dtype is torch.float64 else logits.float()
        if self._scale != 1.0:  # a multiplication by one of every logit, and of its gradient, was a twelfth of a step
            logits = logits * self._scale
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states (M, D) at the places that predict a learned token."""
        if self.shares:
            states = (self.shortcut or self.tree_states)(batch)
            return states.index_select(0, batch.predict_at)
        states, home = self._row_states(batch)
        return states.index_select(0, home.index_select(0, batch.predict_at))

    def tree_states(self, batch: Batch) -> Tensor:
        """A packed tree through the whole body: (N, D)."""
        rooted = batch.rooted(self.n_virtual)
        with self.packed() as run:
            return run(rooted.ids, rooted.positions, TreePlan.of(rooted).attend)

    def own_layers(self, why: str) -> None:
        """Let the model's own layers run from now on, where fused ones did."""
        if self.fused:
            self.fused, self._unfused = None, why

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While this lasts nothing learns: what runs may be prepared once for several batches."""
        with self.fused.entered() if self.fused else nullcontext():
            yield

    @contextmanager
    def packed(self) -> Iterator[Callable[[Tensor, Tensor, Attend], Tensor]]:
        """The body as a function: ids (N,), positions (N,), and what they attend to -> hidden states (N, D).

        Virtual tokens, at the beginning or not at all, get no states.
        For models that share only: in them attention is all by which one token sees another.
        """
        with self.entered(), self._packed_attention(), self._layers_replaced(self.fused, self._packed_attention):

            def run(ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
                if self._root is None or ids[0] >= 0:
                    given = {"input_ids": ids[None], "position_ids": positions[None], "packed_attend": attend}
                    return self.body(**given, use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]
                out = self.body(**self._root.tree(ids, positions, attend), use_cache=False)
                return out.last_hidden_state[0, self._root.n - len(ids) :]  # type: ignore[no-any-return]

            yield run

    @contextmanager
    def _packed_attention(self) -> Iterator[None]:
        previous = self._inner.config._attn_implementation
        self._inner.set_attn_implementation(_packed_attention_name())
        try:
            if self._inner.config._attn_implementation != _packed_attention_name():
                raise ValueError("it cannot be replaced")
            yield
        finally:
            self._inner.set_attn_implementation(previous)

    @contextmanager
    def _layers_replaced(self, fused: FusedLayers | None, within: Within) -> Iterator[None]:
        """By fused ones, and by those that are computed again, `within` what they need for it."""
        recompute = self.recompute if torch.is_grad_enabled() else 0
        if fused is None and not recompute:
            yield
            return
        name, layers = self.layers()
        running, within = (fused.of(list(layers)), nullcontext) if fused else (list(layers), within)
        setattr(self.body, name, nn.ModuleList(recomputed(running, recompute, within)))
        try:
            yield
        finally:
            setattr(self.body, name, layers)

    def _row_states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B*T, D) and where each of the N tokens is in it; rows are padded on the right."""
        rows, lengths, home = batch.unrolled()
        mask = torch.arange(rows.shape[1], device=rows.device)[None] < lengths[:, None]
        given = {"input_ids": rows, "attention_mask": mask.long()}
        with self._layers_replaced(None, nullcontext):
            out = self.body(**(self._root.rows(rows, mask.long()) if self._root else given), use_cache=False)
        return out.last_hidden_state[:, -rows.shape[1] :].flatten(0, 1), home


def _drops_out(model: nn.Module) -> bool:
    """Whether the model draws noise while it is trained; transformers keeps some rates as plain numbers."""
    modules = list(model.modules())
    rates = [v for m in modules for k, v in vars(m).items() if "dropout" in k and isinstance(v, float)]
    return any(rate > 0 for rate in (*rates, *(m.p for m in modules if isinstance(m, nn.Dropout))))


@torch.no_grad()
def _disagreement(decoder: Decoder) -> str | None:
    """Why this model cannot run packed trees: None if body and head agree with its own forward pass.

    Raises ModelError LU-M005 where even the head differs: then no path would train what is served.
    """
    model, config = decoder._inner, decoder._inner.config
    if decoder.device.type == "meta":  # shapes without numbers: see `cost.py`
        return _not_attending(config)
    rows = probe_rows(decoder)
    batch = make_batch(rows).to(decoder.device)
    was_training = model.training
    model.eval()
    try:
        alone = [decoder.model(torch.tensor([r.ids], device=decoder.device)).logits[0] for r in rows]
        expected = torch.cat([logits[-len(r.ids) : -1].float() for r, logits in zip(rows, alone, strict=True)])
        order = [(e, b) for e, b in zip(batch.edge.tolist(), batch.example.tolist(), strict=True)]
        by_example = torch.tensor(
            [e for e, _ in sorted(order, key=lambda p: (p[1], batch.positions[batch.predict_at[p[0]]]))]
        )
        scale = expected.abs().max()

        def gap(states: Tensor) -> float:
            logits = decoder.head(states).index_select(0, by_example.to(states.device))
            return float((logits - expected).abs().max() / scale)

        # Where they agree, fp32 differs by about 1e-6 (the built-in model) and bf16 by 2e-2.
        tolerance = ROUNDED_TOLERANCE if next(model.parameters()).dtype in (torch.bfloat16, torch.float16) else 1e-4
        states, home = decoder._row_states(batch)
        if gap(states.index_select(0, home.index_select(0, batch.predict_at))) > tolerance:
            raise ModelError.of(
                "LU-M005",
                type(model).__name__,
                "its head does not follow the usual form",
                "this architecture is not supported",
            )
        if other := _not_attending(config):
            return other
        try:
            worst = gap(decoder.tree_states(batch).index_select(0, batch.predict_at))
        except CANNOT_RUN as error:
            return f"its attention is not plain: {first_line(error)}"
        return None if worst <= tolerance else f"packed and single logits differ by {worst:.1e}"
    finally:
        model.train(was_training)


@torch.no_grad()
def _fuse(decoder: Decoder) -> str | None:
    """Let fused layers run, where they can; else why not, in words."""
    batch = make_batch(probe_rows(decoder)).to(decoder.device)
    expected = None if decoder.device.type == "meta" else decoder.tree_states(batch)
    try:
        _, layers = decoder.layers()
        decoder.fused = FusedLayers(list(layers), decoder._linear, decoder._products)
        if expected is None:
            return None
        worst = float((decoder.tree_states(batch) - expected).norm() / expected.norm())
        if not worst <= (ROUNDED_TOLERANCE if decoder.fused.dtype is torch.bfloat16 else FUSED_TOLERANCE):
            raise ValueError(f"fused, their states differ by {worst:.1e}")
    except CANNOT_RUN as error:
        decoder.fused = None
        return first_line(error)
    return None


FUSED_TOLERANCE = 1e-4
"""Rounding alone gives about 1e-6 in the built-in model."""
ROUNDED_TOLERANCE = 5e-2
"""The same in bfloat16. It would hide small differences: `FusedLayers` compares one layer in float64 before."""
CANNOT_RUN = (TypeError, ValueError, KeyError, RuntimeError, AttributeError)
"""What a body raises that is run in a way that it was not made for."""


def probe_rows(decoder: Decoder) -> list[Encoded]:
    """Three short examples that begin alike: what a way to run the model is compared on at load."""
    v = int(decoder.body.config.get_text_config().vocab_size)
    rows = [[(7 * i + 3) % v for i in range(20)] + tail for tail in ([5 % v, 6 % v, 7 % v], [8 % v, 9 % v], [])]
    return [Encoded(row, [True] * len(row), str(i), "") for i, row in enumerate(rows)]


_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}


def _not_attending(config: Any) -> str | None:
    """Which layers are no full attention, in words."""
    other = _layers(config) - {"full_attention"}
    return f"its layers are not all full attention, but {', '.join(sorted(other))}" if other else None


def _layers(config: Any) -> set[str]:
    """The kinds of layers that a configuration states; where it states none, full or sliding attention."""
    config = config.get_text_config()
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return set(getattr(config, "layer_types", None) or ["sliding_attention" if slides else "full_attention"])


_PLAIN = {"dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "is_causal"}
"""What transformers passes to every attention and what changes nothing here (dropout makes a model run row by row)."""


def packed_attention(
    module: nn.Module,
    query: Tensor,  # (1, H, N, C)
    key: Tensor,  # (1, K, N, C)
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    packed_attend: Attend | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What the model's layers call; the attention itself comes as a keyword.

    Raises ValueError where the model asks for more than plain attention: soft caps, sinks, windows.
    """
    if packed_attend is None:
        raise ValueError("it does not pass `packed_attend` on")
    if more := sorted(name for name, value in settings.items() if value is not None and name not in _PLAIN):
        raise ValueError(f"it asks for {', '.join(more)}")
    kv_heads, size = key.shape[1], key.shape[3]
    queries = query[0].unflatten(0, (kv_heads, -1)).transpose(1, 2).contiguous()  # (K, N, G, C)
    scaling = size**-0.5 if scaling is None else scaling
    attended = packed_attend(queries, key[0].contiguous(), value[0].contiguous(), scaling)
    return attended.unflatten(1, (-1, size))[None], None


@cache
def _packed_attention_name() -> str:
    """Registers the attention with transformers on first use."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("luthier_packed", packed_attention)
    AttentionMaskInterface.register("luthier_packed", lambda *args, **kwargs: None)
    return "luthier_packed"


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (M, ...) side by side, in equal parts of at most LOGITS_CHUNK rows: a product of a small rest is slow."""
    n_parts = max(math.ceil(len(tensors[0]) / LOGITS_CHUNK), 1)
    return zip(*(t.split(max(math.ceil(len(t) / n_parts), 1)) for t in tensors), strict=True)


@torch.no_grad()
def score(decoder: Decoder, batch: Batch) -> Tensor:
    """Negative log-likelihood in nats of each example's learned tokens, summed: (B,) float64."""
    parts = in_parts(decoder.hidden(batch), batch.targets)
    return batch.per_example(torch.cat([kernels.nll(decoder.head(h), t)[0].double() for h, t in parts]))


def score_all(
    decoder: Decoder,
    examples: Sequence[Encoded],
    tokens_at_once: int,
    advance: Callable[[int], object] = lambda n: None,
) -> list[float]:
    """`score` of any number of examples, in their order; at most `tokens_at_once` distinct tokens in a forward pass.

    What examples begin with alike is computed once: 77 labels cost their own tokens, not 77 prompts. `advance` is told
    of each group that is done.
    """
    decoder.model.eval()
    place = {id(e): i for i, e in enumerate(examples)}
    nats = [0.0] * len(examples)
    with decoder.entered():
        for group in split_by_tokens(examples, tokens_at_once, share=decoder.shares):
            batch = make_batch(group, share=decoder.shares).to(decoder.device)
            for example, value in zip(group, score(decoder, batch).tolist(), strict=True):
                nats[place[id(example)]] = value
            advance(len(group))
    return nats
