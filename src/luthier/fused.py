"""Decoder layers of the Llama family as few, large operations: what `Decoder` runs in place of the model's own layers.

    N tokens of a packed tree, D hidden size, O outputs of a projection, r rank of an adapter

A layer is four projections, each one function for autograd: something cheap first (a norm, a gate), one matrix product
with all its matrices side by side (queries, keys and values; gates and ups), then the residual sum. LoRA is merged into
the matrix, W + scale B A, for as long as the layers are entered; its gradients come from the low rank, never from a
gradient of the whole matrix. Only inputs of a projection are kept for the backward pass, not what the cheap part made.
Where the base is held in few bits (`quantized.py`), one projection's matrix is made, and merged, for each product.

In bfloat16 a merged weight would lose most of what its adapter has learned: there x A' B' is added to x W', with all A
of a projection in one product and all B in another, and W is not copied. A GPU computes float32 weights in bfloat16: a
copy is rounded at entry, and what is learned adds up in float32.

`FusedLayers` takes layers by their structure and refuses, in words, what it does not know; whether they compute what
the model's own layers do is checked by `Decoder` at load. Merged weights are those of the moment of entry: nothing may
learn between entry and exit, and no adapter be switched.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier import kernels
from luthier.attention import Attend, TreePlan
from luthier.batch import Segment
from luthier.kernels import product
from luthier.quantized import QuantizedLinear


class FusedLayers:
    """Stands for a model's layers. Raises ValueError if one of them has another structure, saying what is different."""

    def __init__(self, layers: Sequence[nn.Module], head: nn.Module) -> None:
        if any(_hooked(module) for module in (*layers, head)):
            raise ValueError("something hooks into them")  # an adapter perhaps: it would neither act nor learn
        self._entry = _Entry(_computed_in(layers))
        self._fused = {id(layer): _FusedLayer(layer, self._entry) for layer in layers}
        if self.dtype is torch.bfloat16:
            _check_in_full(layers[0])
        self._head = _Projection((head,), self._entry)

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""
        return self._entry.dtype

    def head(self, hidden: Tensor) -> Tensor:
        """What the output embeddings give: hidden states (m, D) -> (m, V)."""
        return self._head(hidden.to(self.dtype))

    def of(self, layers: Sequence[nn.Module]) -> list[nn.Module]:
        """These layers, fused where they are known."""
        return [self._fused.get(id(layer), layer) for layer in layers]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While this lasts, the weights that are met first stay those that are used."""
        self._entry.depth += 1
        try:
            yield
        finally:
            self._entry.depth -= 1
            if not self._entry.depth:
                self._entry.matrices.clear()


def _computed_in(layers: Sequence[nn.Module]) -> torch.dtype:
    """The weights' own type, bfloat16 if some are; on a GPU float32 becomes it. Raises ValueError for other types."""
    parameters = [tensor for layer in layers for tensor in _stored(layer)]
    dtypes = {p.dtype for p in parameters}
    if dtypes in ({torch.float32}, {torch.float64}):
        rounds = dtypes == {torch.float32} and parameters[0].is_cuda and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if rounds else parameters[0].dtype
    if torch.bfloat16 in dtypes and dtypes <= {torch.bfloat16, torch.float32}:
        return torch.bfloat16
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
    found = _FusedLayer(own, _Entry(torch.float64))(states, packed_attend=attend, **given)
    worst = float((found - expected).norm() / (expected - states).norm())
    if not worst <= 1e-5:  # their norms and softmax are float32 within, which gives about 1e-7
        raise ValueError(f"fused, their states differ by {worst:.1e}")


@dataclass(slots=True)
class _Entry:
    """How often the layers are entered at the moment, and the matrices of each projection that has run since."""

    dtype: torch.dtype
    depth: int = 0
    matrices: dict[int, _Entered] = field(default_factory=dict)


class _FusedLayer(nn.Module):
    """norm, queries keys values, rotation, attention, output and sum; norm, gate and up, down and sum."""

    def __init__(self, layer: Any, entry: _Entry) -> None:
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
        first, second = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self._projections = (
            _Projection((attention.q_proj, attention.k_proj, attention.v_proj), entry, first),
            _Projection((attention.o_proj,), entry),
            _Projection((mlp.gate_proj, mlp.up_proj), entry, second),
            _Projection((mlp.down_proj,), entry, _Gate()),
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
        x = states[0].to(qkv.entry.dtype)
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
    if not names <= found <= names | more:
        raise ValueError(f"{type(module).__name__} has {', '.join(sorted(found ^ names))}")


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


# -- what comes before a matrix product ------------------------------------------------------------------


class _Norm:
    def __init__(self, norm: Any) -> None:
        if not hasattr(norm, "variance_epsilon") or [name for name, _ in norm.named_parameters()] != ["weight"]:
            raise ValueError(f"{type(norm).__name__} is no plain root mean square")
        self._norm, self._eps = norm, float(norm.variance_epsilon)

    @property
    def weight(self) -> Tensor:
        return self._norm.weight  # type: ignore[no-any-return]

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight.detach(), self._eps)

    def grad(self, dy: Tensor, x: Tensor) -> Tensor:
        return kernels.rms_norm_grad(dy, x, self.weight.detach(), self._eps)

    def weight_grad(self, dy: Tensor, x: Tensor) -> Tensor:
        return kernels.rms_norm_weight_grad(dy, x, self._eps)


class _Gate:
    weight = None

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.gate(x)

    def grad(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's output once more, and the gradient of `x`."""
        return kernels.gate_grad(dy, x)


# -- projections -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One linear layer as it is at entry: (O, D), its bias (O,), and perhaps scale B (O, r) A (r, D)."""

    linear: nn.Linear
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0

    @classmethod
    def of(cls, module: Any) -> _Matrix:
        """Raises ValueError if it is neither linear nor that with one plain LoRA adapter."""
        if type(module) in _LINEAR:
            return cls(module)
        from peft.tuners.lora import Linear as LoraLinear

        if type(module) is not LoraLinear or type(module.base_layer) not in _LINEAR:
            raise ValueError(f"it holds {type(module).__name__}")
        base, names = module.base_layer, module.active_adapters
        if module.disable_adapters or module.merged:
            return cls(base)
        if len(names) != 1 or names[0] in module.lora_variant or module.lora_bias[names[0]] or module.fan_in_fan_out:
            raise ValueError("its adapter is more than W + scale B A")
        if not isinstance(module.lora_dropout[names[0]], nn.Identity):
            raise ValueError("its adapter drops out")
        a, b = module.lora_A[names[0]].weight, module.lora_B[names[0]].weight
        return cls(base, a, b, module.scaling[names[0]])

    @torch.no_grad()
    def write(self, out: Tensor) -> None:
        """The merged weight into (O, D)."""
        if self.a is None or self.b is None:
            out.copy_(self.linear.weight)
        else:
            torch.addmm(self.linear.weight, self.b, self.a, alpha=self.scale, out=out)

    @property
    def rank(self) -> int:
        return 0 if self.a is None else len(self.a)

    @property
    def n_outputs(self) -> int:
        return self.linear.out_features

    @property
    def stored(self) -> Tensor:
        """What its weight is stored as; of one in few bits, the scales."""
        return self.linear.scales if isinstance(self.linear, QuantizedLinear) else self.linear.weight

    def tensors(self) -> tuple[Tensor | None, ...]:
        weight = None if isinstance(self.linear, QuantizedLinear) else self.linear.weight
        return weight, self.linear.bias, self.a, self.b


_LINEAR = {nn.Linear, QuantizedLinear}


@dataclass(slots=True)
class _Projection:
    """before(x) (N, D) @ the matrices (D, O) [+ biases] [+ residual (N, O)]."""

    modules: tuple[nn.Module, ...]
    entry: _Entry
    before: _Norm | _Gate | None = None
    sizes: list[int] = field(init=False)  # of each matrix's outputs

    def __post_init__(self) -> None:
        self.sizes = [_Matrix.of(module).n_outputs for module in self.modules]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        entered = self.entry.matrices.get(id(self))
        if entered is None:
            entered = _Entered.of([_Matrix.of(module) for module in self.modules], self.entry.dtype)
            if self.entry.depth:
                self.entry.matrices[id(self)] = entered
        learned = [tensor for matrix in entered.matrices for tensor in matrix.tensors()]
        norm = None if self.before is None else self.before.weight
        return _Projected.apply(self.before, entered, x, residual, norm, *learned)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Entered:
    """Matrices side by side, as they are at entry. All adapters together have rank R."""

    matrices: list[_Matrix]
    dtype: torch.dtype
    kept: list[Tensor] | None  # as `_parts`; None where one of them is in few bits
    bias: Tensor | None  # (O,)
    down: Tensor | None  # (R, D): every A
    up: Tensor | None  # (O, R): every scale B, in its rows and columns

    @classmethod
    @torch.no_grad()
    def of(cls, matrices: list[_Matrix], dtype: torch.dtype) -> _Entered:
        kept = None if any(isinstance(m.linear, QuantizedLinear) for m in matrices) else _parts(matrices, dtype)
        biases: list[Tensor] = [
            m.stored.new_zeros(m.n_outputs) if m.linear.bias is None else m.linear.bias for m in matrices
        ]
        bias = torch.cat(biases).to(dtype) if any(m.linear.bias is not None for m in matrices) else None
        if not any(m.rank for m in matrices):
            return cls(matrices, dtype, kept, bias, None, None)
        ups = [m.stored.new_empty(m.n_outputs, 0) if m.b is None else m.scale * m.b for m in matrices]
        down = torch.cat([m.a for m in matrices if m.a is not None])
        return cls(matrices, dtype, kept, bias, down.to(dtype), torch.block_diag(*ups).to(dtype))

    @property
    def parts(self) -> list[Tensor]:
        return _parts(self.matrices, self.dtype) if self.kept is None else self.kept

    def outputs(self, x: Tensor, plus: Tensor | None) -> Tensor:
        """Inputs (N, D) -> outputs (N, O), `plus` included."""
        parts = self.parts
        if len(parts) == 1:
            out = product(x, parts[0].T, plus)
        else:
            assert plus is None
            out = x.new_empty(len(x), sum(map(len, parts)))
            for part, columns in _by_columns(parts, out):
                torch.mm(x, part.T, out=columns)
        if _beside(self.dtype) and self.down is not None and self.up is not None:
            out.addmm_(x @ self.down.T, self.up.T)
        return out if self.bias is None else out.add_(self.bias)

    def inputs_grad(self, dy: Tensor) -> Tensor:
        """d loss / d outputs (N, O) -> d loss / d inputs (N, D)."""
        (part, columns), *more = _by_columns(self.parts, dy)
        dx = product(columns, part)
        for part, columns in more:
            dx.addmm_(columns, part)
        if _beside(self.dtype) and self.down is not None and self.up is not None:
            dx.addmm_(dy @ self.up, self.down)
        return dx

    def grads(self, x: Tensor, dy: Tensor, wanted: Sequence[bool]) -> Iterator[Tensor | None]:
        """Of each matrix's `tensors`, from inputs (N, D) and d loss / d outputs (N, O); all adapters at once.

        Products with few columns on the right take five times as long as those with few rows on the left.
        """
        d_down = d_up = x.new_empty(0, 0)
        if self.down is not None and self.up is not None and any(wanted[2::4]) | any(wanted[3::4]):
            d_down = product(product(dy, self.up).T, x)  # (R, D)
            d_up = product(product(x, self.down.T).T, dy)  # (R, O)
        row = column = 0
        for i, matrix in enumerate(self.matrices):
            weight, bias, a, b = wanted[4 * i : 4 * i + 4]
            rows, columns = slice(row, row + matrix.rank), slice(column, column + matrix.n_outputs)
            yield product(dy[:, columns].T, x) if weight else None
            yield dy[:, columns].sum(0) if bias else None
            yield d_down[rows] if a else None
            yield d_up[rows, columns].T * matrix.scale if b else None
            row, column = rows.stop, columns.stop


def _beside(dtype: torch.dtype) -> bool:
    """Whether adapters stay beside the weights: merged, bfloat16 would round most of what they have learned away."""
    return dtype is torch.bfloat16


def _by_columns(parts: list[Tensor], outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(parts, outputs.split([len(part) for part in parts], dim=1), strict=True)


def _parts(matrices: list[_Matrix], dtype: torch.dtype) -> list[Tensor]:
    """One below the other, (O, D): as they are where they can stay so, else in one, with their adapters if merged."""
    first, beside = matrices[0], _beside(dtype)
    if all(m.stored.dtype is dtype for m in matrices) and (beside or (len(matrices) == 1 and not first.rank)):
        return [m.linear.weight.detach() for m in matrices]
    sizes = [m.n_outputs for m in matrices]
    whole = first.stored.new_empty(sum(sizes), first.linear.in_features, dtype=dtype)
    for matrix, rows in zip(matrices, whole.split(sizes), strict=True):
        if beside:
            rows.copy_(matrix.linear.weight)
        else:
            matrix.write(rows)
    return [whole]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        before: _Norm | _Gate | None,
        entered: _Entered,
        x: Tensor,
        residual: Tensor | None,
        norm: Tensor | None,
        *learned: Tensor | None,
    ) -> Tensor:
        ctx.before, ctx.entered = before, entered
        ctx.save_for_backward(x)
        return entered.outputs(x if before is None else before(x), residual)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x,), before, entered = ctx.saved_tensors, ctx.before, ctx.entered
        _, _, wants_x, wants_residual, wants_norm, *wanted = ctx.needs_input_grad
        dy = dy.contiguous()
        d_given = entered.inputs_grad(dy) if wants_x or wants_norm else None
        given, dx, d_norm = x, d_given, None
        if isinstance(before, _Norm):
            given = before(x)
            dx = before.grad(d_given, x) if wants_x and d_given is not None else None
            d_norm = before.weight_grad(d_given, x) if wants_norm and d_given is not None else None
        elif isinstance(before, _Gate):
            given, dx = (before(x), None) if d_given is None else before.grad(d_given, x)
        return None, None, dx, dy if wants_residual else None, d_norm, *entered.grads(given, dy, wanted)


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
