"""Decoder layers of the Llama family as few, large operations: what `Decoder` runs in place of the model's own layers.

    N tokens of a packed tree, D hidden size, O outputs of a projection

A layer is four projections (`projections.py`), rotation and attention. `FusedLayers` takes layers by their structure
and refuses, in words, what it does not know; whether they compute what the model's own layers do is checked by
`Decoder` at load. Merged weights are those of the moment of entry: nothing may learn between entry and exit, and no
adapter be switched. Float32 weights may be multiplied in bfloat16: copies are rounded, what is learned adds up in
float32. On a GPU states are bfloat16 then too; on a CPU they stay float32, and so does the head.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from luthier import kernels
from luthier.attention import Attend, TreePlan
from luthier.batch import Segment
from luthier.projections import Entry, Gate, Norm, Projection
from luthier.quantized import QuantizedLinear


class FusedLayers:
    """Stands for a model's layers. Raises ValueError if one of them has another structure, saying what is different.

    `products`: what float32 weights are multiplied in; None: in bfloat16 on a GPU that has it.
    """

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module, products: torch.dtype | None = None) -> None:
        if any(_hooked(module) for module in (*layers, head)):
            raise ValueError("something hooks into them")  # an adapter perhaps: it would neither act nor learn
        self._entry = _computed_in(layers, products)
        self._fused = {id(layer): _FusedLayer(layer, self._entry) for layer in layers}
        if self.dtype is torch.bfloat16:
            _check_in_full(layers[0])
        self._head = Projection((head,), self._entry, in_full=True)

    @property
    def dtype(self) -> torch.dtype:
        """What they multiply in."""
        return self._entry.products

    def head(self, hidden: Tensor) -> Tensor:
        """What the output embeddings give: hidden states (m, D) -> (m, V)."""
        return self._head(hidden.to(self._entry.states))

    def of(self, layers: Sequence[nn.Module]) -> list[nn.Module]:
        """These layers, fused where they are known."""
        return [self._fused.get(id(layer), layer) for layer in layers]

    def entered(self) -> AbstractContextManager[None]:
        """While this lasts, the weights that are met first stay those that are used."""
        return self._entry.entered()


def _computed_in(layers: Sequence[nn.Module], products: torch.dtype | None) -> Entry:
    """The weights' own type, bfloat16 if some are; float32 as is asked. Raises ValueError for other types."""
    parameters = [tensor for layer in layers for tensor in _stored(layer)]
    dtypes, on_gpu = {p.dtype for p in parameters}, parameters[0].is_cuda
    if dtypes == {torch.float64}:
        return Entry(torch.float64, torch.float64)
    if dtypes == {torch.float32}:
        products = products or (torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32)
        return Entry(products if on_gpu else torch.float32, products)
    if torch.bfloat16 in dtypes and dtypes <= {torch.bfloat16, torch.float32}:
        return Entry(torch.bfloat16, torch.bfloat16)
    raise ValueError(f"their weights are {', '.join(sorted(map(str, dtypes)))}")


def _stored(layer: nn.Module) -> list[Tensor]:
    """Parameters, and the scales of weights in few bits."""
    return [*layer.parameters(), *(m.scales for m in layer.modules() if isinstance(m, QuantizedLinear))]


@torch.no_grad()
def _check_in_full(layer: Any) -> None:
    """Raises ValueError if a layer, in float64, is not what it is fused: bfloat16 would hide a small difference."""
    own = copy.deepcopy(layer).cpu().double()
    own.self_attn.config._attn_implementation = "eager"
    settings: Any = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    n, size = 16, own.self_attn.head_dim
    states = torch.randn(1, n, len(own.input_layernorm.weight), **settings)
    angles = 3 * torch.rand(1, n, size // 2, **settings).repeat(1, 1, 2)
    given = {"position_embeddings": (angles.cos(), angles.sin())}
    expected = own(states, attention_mask=torch.full((1, 1, n, n), -torch.inf, dtype=torch.float64).triu(1), **given)
    attend = TreePlan((Segment(0, n, -1),), ((),), states.device).attend
    found = _FusedLayer(own, Entry(torch.float64, torch.float64))(states, packed_attend=attend, **given)
    worst = float((found - expected).norm() / (expected - states).norm())
    if not worst <= 1e-5:  # their norms and softmax are float32 within, which gives about 1e-7
        raise ValueError(f"fused, their states differ by {worst:.1e}")


class _FusedLayer(nn.Module):
    """norm, queries keys values, rotation, attention, output and sum; norm, gate and up, down and sum."""

    def __init__(self, layer: Any, entry: Entry) -> None:
        super().__init__()
        _expect(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
        attention, mlp = layer.self_attn, layer.mlp
        _expect(attention, {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"})
        _expect(mlp, {"gate_proj", "up_proj", "down_proj"}, {"act_fn"})
        for module, names in ((layer, _LAYER), (attention, _ATTENTION), (mlp, _MLP)):
            _expect_uses(module, names)
        if getattr(layer, "residual_multiplier", 1.0) != 1.0:
            raise ValueError(f"its residual sums are scaled by {layer.residual_multiplier}")
        if type(mlp.act_fn).__name__ not in {"SiLU", "SiLUActivation"}:
            raise ValueError(f"its MLP is gated by {type(mlp.act_fn).__name__}")
        self._size, self._scaling = attention.head_dim, attention.scaling
        # Behind a tuple, so that the model's weights do not become this module's.
        self._head_norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        first, second = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self._projections = (
            Projection((attention.q_proj, attention.k_proj, attention.v_proj), entry, first),
            Projection((attention.o_proj,), entry),
            Projection((mlp.gate_proj, mlp.up_proj), entry, second),
            Projection((mlp.down_proj,), entry, Gate()),
        )
        self._kv_heads = self._projections[0].sizes[1] // self._size

    def forward(
        self,
        states: Tensor,  # (1, N, D)
        position_embeddings: tuple[Tensor, Tensor],
        packed_attend: Attend,
        **settings: Any,
    ) -> Tensor:
        qkv, output, gate_up, down = self._projections
        cos, sin = (x[0].contiguous() for x in position_embeddings)
        x = states[0].to(qkv.entry.states)
        heads = self._normed(qkv(x), cos.shape[-1])
        query, key, value = _Rotated.apply(heads, cos, sin, self._kv_heads)
        attended = packed_attend(query, key, value, self._scaling)
        x = output(attended, x)
        return down(gate_up(x), x)[None]

    def _normed(self, heads: Tensor, rotated: int) -> Tensor:
        """Heads (N, O) through the norms of queries and keys, where there are such (Qwen3)."""
        if rotated != self._size:
            raise ValueError(f"{rotated} of a head's {self._size} numbers are rotated")
        query_norm, key_norm = self._head_norms
        if query_norm is None or key_norm is None:
            return heads
        query, key, value = heads.split(self._projections[0].sizes, dim=1)
        normed = (norm(x.unflatten(1, (-1, self._size))) for norm, x in ((query_norm, query), (key_norm, key)))
        return torch.cat([*(x.flatten(1) for x in normed), value], dim=1).to(heads.dtype)


def _hooked(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def _expect(module: nn.Module, names: set[str], more: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    found = {name for name, _ in module.named_children()}
    strange = {"has": found - names - more, "lacks": names - found}
    if said := [f"{verb} {', '.join(sorted(which))}" for verb, which in strange.items() if which]:
        raise ValueError(f"{type(module).__name__} {' and '.join(said)}")


def _expect_uses(module: nn.Module, names: set[str]) -> None:
    """No name in its forward pass but these.

    A scale by position, or a clip of what is large, changes nothing in the short examples that are compared at load.
    """
    forward: Any = inspect.unwrap(type(module).forward)
    if more := sorted(set(forward.__code__.co_names) - names):
        raise ValueError(f"{type(module).__name__} uses {', '.join(more)}")


_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "residual_multiplier"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_ATTENTION = set(
    "q_proj k_proj v_proj o_proj q_norm k_norm apply_rotary_pos_emb head_dim scaling shape view transpose reshape "
    "contiguous training attention_dropout sliding_window getattr update layer_idx config _attn_implementation "
    "ALL_ATTENTION_FUNCTIONS get_interface eager_attention_forward".split()
)
"""All names that the forward passes of Llama, Qwen2, Qwen3, Mistral and Granite use."""


class _Rotated(torch.autograd.Function):
    """Rows of all heads to queries, keys and values by head, the first two rotated."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return kernels.rotate(qkv, cos, sin, kv_heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return kernels.rotate_grad(dq.contiguous(), dk.contiguous(), dv.contiguous(), cos, sin), None, None, None
