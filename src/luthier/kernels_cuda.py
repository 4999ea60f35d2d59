"""The functions of `kernels.py` that run on a GPU, in Triton: bfloat16, float16 or float32 in memory, float32 within.

    n rows (tokens), D hidden size, I inner size of the MLP, V vocabulary
    K key/value heads with G query heads each, C size of a head

Signatures and results are those of `kernels.py`, which calls them. Each reads its arguments once and writes its result
once; the bytes are all that they cost. Tensors are dense and row-major. With TRITON_INTERPRET=1, set before this module
is imported, they run on a CPU, slowly: so their sums can be tested without a GPU.
"""

# No annotations from the future here: Triton's interpreter looks for `tl.constexpr` itself, not for its name.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024
"""Numbers of a row that a program has at once, where a row is cut."""
SUMMED_ROWS = 128
"""Rows that a program sums up for the gradient of a norm's weight."""


def _warps(size: int) -> int:
    """A warp for 256 numbers."""
    return min(max(size // 256, 1), 16)


# -- root mean square norm -------------------------------------------------------------------------------


@triton.jit
def _rms_norm(x: Any, weight: Any, out: Any, d: Any, eps: Any, SIZE: tl.constexpr):
    start, at = tl.program_id(0).to(tl.int64) * d, tl.arange(0, SIZE)
    there = at < d
    a = tl.load(x + start + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + start + at, a * tl.rsqrt(tl.sum(a * a) / d + eps) * w, mask=there)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    n, d = x.shape
    out, size = torch.empty_like(x), triton.next_power_of_2(d)
    _rms_norm[(n,)](x, weight, out, d, eps, SIZE=size, num_warps=_warps(size))
    return out


@triton.jit
def _rms_norm_grad(dy: Any, x: Any, weight: Any, out: Any, d: Any, eps: Any, SIZE: tl.constexpr):
    start, at = tl.program_id(0).to(tl.int64) * d, tl.arange(0, SIZE)
    there = at < d
    a = tl.load(x + start + at, mask=there, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    towards = tl.load(dy + start + at, mask=there, other=0.0).to(tl.float32) * w
    scale = tl.rsqrt(tl.sum(a * a) / d + eps)
    along = tl.sum(towards * a) * scale * scale * scale / d
    tl.store(out + start + at, scale * towards - along * a, mask=there)


def rms_norm_grad(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    n, d = x.shape
    out, size = torch.empty_like(x), triton.next_power_of_2(d)
    _rms_norm_grad[(n,)](dy, x, weight, out, d, eps, SIZE=size, num_warps=_warps(size))
    return out


@triton.jit
def _rms_norm_weight_grad(dy: Any, x: Any, out: Any, n: Any, d: Any, eps: Any, ROWS: tl.constexpr, SIZE: tl.constexpr):
    at, first = tl.arange(0, SIZE), tl.program_id(0).to(tl.int64) * ROWS
    there = at < d
    total = tl.zeros([SIZE], dtype=tl.float32)
    for row in range(ROWS):
        here = there & (first + row < n)
        start = (first + row) * d
        a = tl.load(x + start + at, mask=here, other=0.0).to(tl.float32)
        g = tl.load(dy + start + at, mask=here, other=0.0).to(tl.float32)
        total += g * a * tl.rsqrt(tl.sum(a * a) / d + eps)
    tl.store(out + tl.program_id(0) * d + at, total, mask=there)


def rms_norm_weight_grad(dy: Tensor, x: Tensor, eps: float) -> Tensor:
    n, d = x.shape
    sums = x.new_empty(triton.cdiv(n, SUMMED_ROWS), d, dtype=torch.float32)
    size = triton.next_power_of_2(d)
    _rms_norm_weight_grad[(len(sums),)](dy, x, sums, n, d, eps, ROWS=SUMMED_ROWS, SIZE=size, num_warps=_warps(size))
    return sums.sum(0)


# -- gated linear unit -----------------------------------------------------------------------------------


@triton.jit
def _gate(gate_up: Any, out: Any, d: Any, SIZE: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    there, start = at < d, row * 2 * d
    g = tl.load(gate_up + start + at, mask=there, other=0.0).to(tl.float32)
    u = tl.load(gate_up + start + d + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * d + at, g * tl.sigmoid(g) * u, mask=there)


def gate(gate_up: Tensor) -> Tensor:
    n, d = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(n, d)
    _gate[(n, triton.cdiv(d, COLUMNS))](gate_up, out, d, SIZE=COLUMNS, num_warps=_warps(COLUMNS))
    return out


@triton.jit
def _gate_grad(dy: Any, gate_up: Any, out: Any, grad: Any, d: Any, SIZE: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    there, start = at < d, row * 2 * d
    g = tl.load(gate_up + start + at, mask=there, other=0.0).to(tl.float32)
    u = tl.load(gate_up + start + d + at, mask=there, other=0.0).to(tl.float32)
    towards = tl.load(dy + row * d + at, mask=there, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    silu = g * sigmoid
    tl.store(out + row * d + at, silu * u, mask=there)
    tl.store(grad + start + at, towards * u * (sigmoid + silu * (1 - sigmoid)), mask=there)
    tl.store(grad + start + d + at, towards * silu, mask=there)


def gate_grad(dy: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    n, d = dy.shape
    out, grad = torch.empty_like(dy), torch.empty_like(gate_up)
    _gate_grad[(n, triton.cdiv(d, COLUMNS))](dy, gate_up, out, grad, d, SIZE=COLUMNS, num_warps=_warps(COLUMNS))
    return out, grad


# -- rotary position embeddings --------------------------------------------------------------------------


@triton.jit
def _rotate(
    rows: Any,  # (n, (KG + 2K) C)
    cos: Any,
    sin: Any,
    q: Any,  # (K, n, G, C)
    k: Any,
    v: Any,
    n: Any,
    kv_heads: Any,
    groups: Any,
    size: Any,
    BACK: tl.constexpr,  # from q, k, v to rows, turned the other way
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token: all its heads, by the first and the second half of their numbers."""
    token, half = tl.program_id(0).to(tl.int64), size // 2
    head, at = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    n_queries, inside = kv_heads * groups, at < half
    is_q, is_k = head < n_queries, (head >= n_queries) & (head < n_queries + kv_heads)
    is_v = (head >= n_queries + kv_heads) & (head < n_queries + 2 * kv_heads)
    is_q, is_k, is_v = is_q & inside, is_k & inside, is_v & inside
    of_rows = rows + token * (groups + 2) * kv_heads * size + head * size + at
    of_q = q + ((head // groups * n + token) * groups + head % groups) * size + at
    of_k = k + ((head - n_queries) * n + token) * size + at
    of_v = v + ((head - n_queries - kv_heads) * n + token) * size + at
    turned, here = is_q | is_k, is_q | is_k | is_v
    cos_a = tl.load(cos + token * size + at, mask=turned, other=1.0).to(tl.float32)
    sin_a = tl.load(sin + token * size + at, mask=turned, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + token * size + half + at, mask=turned, other=1.0).to(tl.float32)
    sin_b = tl.load(sin + token * size + half + at, mask=turned, other=0.0).to(tl.float32)
    if BACK:
        a = tl.load(of_q, mask=is_q, other=0.0).to(tl.float32) + tl.load(of_k, mask=is_k, other=0.0)
        b = tl.load(of_q + half, mask=is_q, other=0.0).to(tl.float32) + tl.load(of_k + half, mask=is_k, other=0.0)
        a += tl.load(of_v, mask=is_v, other=0.0)
        b += tl.load(of_v + half, mask=is_v, other=0.0)
        tl.store(of_rows, a * cos_a + b * sin_b, mask=here)
        tl.store(of_rows + half, b * cos_b - a * sin_a, mask=here)
    else:
        a = tl.load(of_rows, mask=here, other=0.0).to(tl.float32)
        b = tl.load(of_rows + half, mask=here, other=0.0).to(tl.float32)
        first, second = a * cos_a - b * sin_a, b * cos_b + a * sin_b
        tl.store(of_q, first, mask=is_q)
        tl.store(of_q + half, second, mask=is_q)
        tl.store(of_k, first, mask=is_k)
        tl.store(of_k + half, second, mask=is_k)
        tl.store(of_v, first, mask=is_v)
        tl.store(of_v + half, second, mask=is_v)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    n, size = cos.shape
    groups = qkv.shape[1] // (size * kv_heads) - 2
    q, k, v = (qkv.new_empty(kv_heads, n, *shape) for shape in ((groups, size), (size,), (size,)))
    _run_rotate(False, qkv, cos, sin, q, k, v)
    return q, k, v


def rotate_grad(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    kv_heads, n, groups, size = dq.shape
    out = dq.new_empty(n, (groups + 2) * kv_heads * size)
    _run_rotate(True, out, cos, sin, dq, dk, dv)
    return out


def _run_rotate(back: bool, rows: Tensor, cos: Tensor, sin: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    kv_heads, n, groups, size = q.shape
    heads, half = (triton.next_power_of_2(x) for x in ((groups + 2) * kv_heads, size // 2))
    shape, tile = (n, kv_heads, groups, size), {"HEADS": heads, "HALF": half}
    _rotate[(n,)](rows, cos, sin, q, k, v, *shape, BACK=back, **tile, num_warps=_warps(heads * half))


# -- likelihoods -----------------------------------------------------------------------------------------


@triton.jit
def _nll(logits: Any, targets: Any, lse: Any, out: Any, size: tl.constexpr, SIZE: tl.constexpr):
    """The greatest logit so far, and the sum of exponentials from it, for each column of a program."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    most, total = tl.full([SIZE], float("-inf"), tl.float32), tl.zeros([SIZE], dtype=tl.float32)
    for start in range(0, size, SIZE):
        x = tl.load(logits + row * size + start + at, mask=start + at < size, other=float("-inf")).to(tl.float32)
        greater = tl.maximum(most, x)  # without a NaN; the sum has it
        since = tl.where(greater == float("-inf"), 0.0, greater)  # of a column that has no logit yet
        total = total * tl.exp(most - since) + tl.exp(x - since)
        most = greater
    top = tl.max(most)
    found = top + tl.log(tl.sum(total * tl.exp(most - top)))
    target = tl.load(logits + row * size + tl.load(targets + row)).to(tl.float32)
    tl.store(lse + row, found)
    tl.store(out + row, found - target)


def nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    lse, out = (logits.new_empty(len(logits)) for _ in range(2))
    size = min(triton.next_power_of_2(logits.shape[1]), 4 * COLUMNS)
    _nll[(len(logits),)](logits, targets, lse, out, logits.shape[1], SIZE=size, num_warps=_warps(size))
    return out, lse


@triton.jit
def _nll_grad(logits: Any, lse: Any, targets: Any, weights: Any, out: Any, size: Any, SIZE: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    there = at < size
    x = tl.load(logits + row * size + at, mask=there, other=0.0).to(tl.float32)
    p = tl.exp(x - tl.load(lse + row)) - tl.where(at == tl.load(targets + row), 1.0, 0.0)
    tl.store(out + row * size + at, p * tl.load(weights + row), mask=there)


def nll_grad(logits: Tensor, lse: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    n, size = logits.shape
    out = torch.empty_like(logits)
    grid = n, triton.cdiv(size, COLUMNS)
    _nll_grad[grid](logits, lse, targets, weights, out, size, SIZE=COLUMNS, num_warps=_warps(COLUMNS))
    return out
