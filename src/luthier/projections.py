"""Projections of fused layers: something cheap first, one matrix product, then a sum; each one function for autograd.

    N tokens of a packed tree, D hidden size, O outputs of a projection, r rank of an adapter

All matrices of a projection stand side by side (queries, keys and values; gates and ups). LoRA is merged into them,
W + scale B A, for as long as they are entered; its gradients come from the low rank, never from a gradient of the whole
matrix. Only inputs are kept for the backward pass, not what the cheap part made of them. Where the base is held in few
bits (`quantized.py`), a projection's matrix is made, and merged, for each product.

In bfloat16 a merged weight would lose most of what its adapter has learned: there x A' B' is added to x W', with all A
of a projection in one product and all B in another, and W is not copied. States, adapters and sums may stay in float32
beside products in bfloat16: then what does not learn is rounded once. This module knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier import kernels
from luthier.quantized import QuantizedLinear


@dataclass(slots=True)
class Entry:
    """How often the layers are entered at the moment, and the matrices of each projection that has run since."""

    states: torch.dtype
    """Of what goes from one projection to the next."""
    products: torch.dtype
    """What matrices are multiplied in."""
    depth: int = 0
    matrices: dict[int, _Entered] = field(default_factory=dict)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While this lasts, the weights that are met first stay those that are used."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.matrices.clear()


# -- what comes before a matrix product ------------------------------------------------------------------


class Norm:
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


class Gate:
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
class Projection:
    """before(x) (N, D) @ the matrices (D, O) [+ biases] [+ residual (N, O)]."""

    modules: tuple[nn.Module, ...]
    entry: Entry
    before: Norm | Gate | None = None
    in_full: bool = False  # multiplied in what states are in
    sizes: list[int] = field(init=False)  # of each matrix's outputs
    _rounded: list[Tensor] | None = field(init=False, default=None)
    _rounded_from: list[tuple[Tensor, int]] = field(init=False, default_factory=list)  # weights and their versions

    def __post_init__(self) -> None:
        self.sizes = [_Matrix.of(module).n_outputs for module in self.modules]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        entered = self.entry.matrices.get(id(self))
        if entered is None:
            entered = self._entered()
            if self.entry.depth:
                self.entry.matrices[id(self)] = entered
        learned = [tensor for matrix in entered.matrices for tensor in matrix.tensors()]
        norm = None if self.before is None else self.before.weight
        return _Projected.apply(self.before, entered, x, residual, norm, *learned)  # type: ignore[no-any-return]

    def _entered(self) -> _Entered:
        states, dtype = self.entry.states, self.entry.states if self.in_full else self.entry.products
        matrices = [_Matrix.of(module) for module in self.modules]
        weights = [m.linear.weight for m in matrices if not isinstance(m.linear, QuantizedLinear)]
        if len(weights) < len(matrices):
            return _Entered.of(matrices, dtype, states, None)
        if not _beside(dtype) or any(w.requires_grad or w.dtype is dtype for w in weights):
            return _Entered.of(matrices, dtype, states, _parts(matrices, dtype))
        same = all(w is old and w._version == v for w, (old, v) in zip(weights, self._rounded_from, strict=False))
        if self._rounded is None or not same:
            self._rounded, self._rounded_from = _parts(matrices, dtype), [(w, w._version) for w in weights]
        return _Entered.of(matrices, dtype, states, self._rounded)


@dataclass(frozen=True, slots=True)
class _Entered:
    """Matrices side by side, as they are at entry. All adapters together have rank R."""

    matrices: list[_Matrix]
    dtype: torch.dtype  # of their products
    kept: list[Tensor] | None  # as `_parts`; None where one of them is in few bits
    bias: Tensor | None  # (O,)
    down: Tensor | None  # (R, D): every A
    up: Tensor | None  # (O, R): every scale B, in its rows and columns

    @classmethod
    @torch.no_grad()
    def of(
        cls, matrices: list[_Matrix], dtype: torch.dtype, states: torch.dtype, kept: list[Tensor] | None
    ) -> _Entered:
        biases: list[Tensor] = [
            m.stored.new_zeros(m.n_outputs) if m.linear.bias is None else m.linear.bias for m in matrices
        ]
        bias = torch.cat(biases).to(states) if any(m.linear.bias is not None for m in matrices) else None
        if not any(m.rank for m in matrices):
            return cls(matrices, dtype, kept, bias, None, None)
        ups = [m.stored.new_empty(m.n_outputs, 0) if m.b is None else m.scale * m.b for m in matrices]
        down = torch.cat([m.a for m in matrices if m.a is not None])
        return cls(matrices, dtype, kept, bias, down.to(states), torch.block_diag(*ups).to(states))

    @property
    def parts(self) -> list[Tensor]:
        return _parts(self.matrices, self.dtype) if self.kept is None else self.kept

    def outputs(self, x: Tensor, plus: Tensor | None) -> Tensor:
        """Inputs (N, D) -> outputs (N, O), `plus` included."""
        given, parts = x.to(self.dtype), self.parts
        if len(parts) > 1:
            out = given.new_empty(len(given), sum(map(len, parts)))
            for part, columns in _by_columns(parts, out):
                torch.mm(given, part.T, out=columns)
        elif plus is not None and plus.dtype is self.dtype:
            out, plus = torch.addmm(plus, given, parts[0].T), None
        else:
            out = given @ parts[0].T
        out = out.to(x.dtype)
        if plus is not None:
            out += plus
        if _beside(self.dtype) and self.down is not None and self.up is not None:
            out.addmm_(x @ self.down.T, self.up.T)
        return out if self.bias is None else out.add_(self.bias)

    def inputs_grad(self, dy: Tensor) -> Tensor:
        """d loss / d outputs (N, O) -> d loss / d inputs (N, D)."""
        (part, columns), *more = _by_columns(self.parts, dy.to(self.dtype))
        dx = columns @ part
        for part, columns in more:
            dx.addmm_(columns, part)
        dx = dx.to(dy.dtype)
        if _beside(self.dtype) and self.down is not None and self.up is not None:
            dx.addmm_(dy @ self.up, self.down)
        return dx

    def grads(self, x: Tensor, dy: Tensor, wanted: Sequence[bool]) -> Iterator[Tensor | None]:
        """Of each matrix's `tensors`, from inputs (N, D) and d loss / d outputs (N, O); all adapters at once.

        Products with few columns on the right take five times as long as those with few rows on the left.
        """
        d_down = d_up = x.new_empty(0, 0)
        if self.down is not None and self.up is not None and any(wanted[2::4]) | any(wanted[3::4]):
            d_down = (dy @ self.up).T @ x  # (R, D)
            d_up = (x @ self.down.T).T @ dy  # (R, O)
        row = column = 0
        for i, matrix in enumerate(self.matrices):
            weight, bias, a, b = wanted[4 * i : 4 * i + 4]
            rows, columns = slice(row, row + matrix.rank), slice(column, column + matrix.n_outputs)
            yield dy[:, columns].to(self.dtype).T @ x.to(self.dtype) if weight else None
            yield dy[:, columns].sum(0) if bias else None
            yield d_down[rows] if a else None
            yield d_up[rows, columns].T * matrix.scale if b else None
            row, column = rows.stop, columns.stop


def _beside(dtype: torch.dtype) -> bool:
    """Whether adapters stay beside the weights: merged, bfloat16 would round most of what they have learned away."""
    return dtype is torch.bfloat16


def _by_columns(parts: list[Tensor], outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(parts, outputs.split([len(part) for part in parts], dim=1), strict=True)


@torch.no_grad()
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
        before: Norm | Gate | None,
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
        if isinstance(before, Norm):
            given = before(x)
            dx = before.grad(d_given, x) if wants_x and d_given is not None else None
            d_norm = before.weight_grad(d_given, x) if wants_norm and d_given is not None else None
        elif isinstance(before, Gate):
            given, dx = (before(x), None) if d_given is None else before.grad(d_given, x)
        return None, None, dx, dy if wants_residual else None, d_norm, *entered.grads(given, dy, wanted)
