"""Attention over a packed prefix tree: every token over its ancestors and what comes before it in its own segment.

    N tokens of a packed tree, K key/value heads with G query heads each, C size of a head

Queries come by key/value head, (K, N, G, C): all that reads the same keys lies side by side. On a CPU with compiled
kernels the scores are matrix products of one segment's keys with all queries that see them, which are neighbours
because the tree is packed depth first; a softmax over a query's blocks makes them probabilities, and the backward pass
computes them again. Only visible pairs are computed, but for the upper triangle of a segment's own. On a GPU it is
FlexAttention (`flex.py`), elsewhere torch's own attention, segment by segment. This module knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier import flex, kernels
from luthier.batch import Batch, Segment

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""One layer's attention, called layer by layer: (K, N, G, C), (K, N, C) twice, scaling -> (N, K * G * C)."""

TILE = 256
"""Queries whose scores are alive at once."""
CLUSTER = 64
"""Neighbouring segments that nothing continues are one block up to so many tokens: a block costs several calls."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries first..last against keys key..key + n_keys; `offset`: pairs of a head in the tile's blocks before it."""

    first: int
    last: int
    key: int
    n_keys: int
    offset: int

    @property
    def n_pairs(self) -> int:
        return (self.last - self.first) * self.n_keys


@dataclass(frozen=True)
class TreePlan:
    """What the attention of one packed tree needs; made once a batch, used in every layer."""

    segments: tuple[Segment, ...]
    ancestors: tuple[tuple[int, ...], ...]
    device: torch.device
    _made: dict[torch.dtype, list[Tensor | None]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, batch: Batch) -> TreePlan:
        ancestors = tuple(tuple(batch.ancestors(i)) for i in range(len(batch.segments)))
        return cls(batch.segments, ancestors, batch.ids.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(K, N, G, C), (K, N, C) twice -> (N, K * G * C)."""
        if kernels.compiled(query, key, value):
            return _TreeAttention.apply(query, key, value, scaling, self)  # type: ignore[no-any-return]
        if flex.takes(query):
            return flex.attend(query, key, value, scaling, self.block_mask)
        return self._by_segments(query, key, value, scaling)

    def _by_segments(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One split per layer instead of a slice per use: the backward of a slice fills a tensor of the full size."""
        lengths = [s.stop - s.start for s in self.segments]
        queries = query.transpose(1, 2).flatten(0, 1).split(lengths, dim=1)  # (K * G, n, C) each
        keys, values = (x.split(lengths, dim=1) for x in (key, value))
        outs = []
        for i, (q, above, mask) in enumerate(zip(queries, self.ancestors, self._masks(query.dtype), strict=True)):
            k = torch.cat([keys[a] for a in (*above, i)], dim=1) if above else keys[i]
            v = torch.cat([values[a] for a in (*above, i)], dim=1) if above else values[i]
            out = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
            outs.append(out[0])
        return torch.cat(outs, dim=1).transpose(0, 1).flatten(1)

    def _masks(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Of each segment (n, ancestors' tokens + n), added to the scores; None for roots: plainly causal."""
        if dtype not in self._made:
            self._made[dtype] = [self._mask(i, dtype) if above else None for i, above in enumerate(self.ancestors)]
        return self._made[dtype]

    def _mask(self, segment: int, dtype: torch.dtype) -> Tensor:
        *before, own = (self.segments[i].stop - self.segments[i].start for i in (*self.ancestors[segment], segment))
        mask = torch.full((own, sum(before) + own), float("-inf"), dtype=dtype, device=self.device)
        return mask.triu(sum(before) + 1)

    @cached_property
    def begin(self) -> Tensor:
        """Where each token's own segment begins: (N,) int64."""
        lengths = torch.tensor([s.stop - s.start for s in self.segments])
        return torch.tensor([s.start for s in self.segments]).repeat_interleave(lengths)

    @cached_property
    def ends(self) -> list[int]:
        """Where what continues each segment ends: (S,)."""
        ends = [s.stop for s in self.segments]
        for i in reversed(range(len(self.segments))):
            if (parent := self.segments[i].parent) >= 0:
                ends[parent] = max(ends[parent], ends[i])
        return ends

    @cached_property
    def end(self) -> Tensor:
        """The same of each token: (N,) int32. What sees a token lies between it and there."""
        lengths = torch.tensor([s.stop - s.start for s in self.segments])
        return torch.tensor(self.ends, dtype=torch.int32).repeat_interleave(lengths)

    @cached_property
    def block_mask(self) -> Any:
        """For FlexAttention, on the tree's device."""
        return flex.block_mask(flex.padded_end(self.end).to(self.device))

    @cached_property
    def tiles(self) -> list[tuple[_Block, ...]]:
        """Blocks of runs of neighbouring queries; together they hold every visible pair once."""
        return [tuple(self._blocks(pieces)) for pieces in self._cut()]

    def _cut(self) -> Iterator[list[tuple[int, int, int]]]:
        """(segment, first, last): whole segments or parts of long ones, as many as fit a tile."""
        pieces: list[tuple[int, int, int]] = []
        for i, segment in enumerate(self.segments):
            for first in range(segment.start, segment.stop, TILE):
                last = min(first + TILE, segment.stop)
                if pieces and last - pieces[0][1] > TILE:
                    yield pieces
                    pieces = []
                pieces.append((i, first, last))
        yield pieces

    def _blocks(self, pieces: list[tuple[int, int, int]]) -> Iterator[_Block]:
        ends = self.ends
        first, last = pieces[0][1], pieces[-1][2]
        seen = dict.fromkeys(s for i, _, _ in pieces for s in (*self.ancestors[i], i))
        spans: list[tuple[int, int, int, int]] = []
        clustered = False
        for i in seen:
            segment = self.segments[i]
            span = (max(segment.start, first), min(ends[i], last), segment.start, min(segment.stop, last))
            alone = ends[i] == segment.stop and first <= segment.start and segment.stop <= last
            if alone and clustered and spans[-1][3] == span[2] and span[3] - spans[-1][2] <= CLUSTER:
                span = (spans[-1][0], span[1], spans[-1][2], span[3])
                spans.pop()
            spans.append(span)
            clustered = alone
        offset = 0
        for span in spans:
            block = _Block(span[0], span[1], span[2], span[3] - span[2], offset)
            offset += block.n_pairs
            yield block


class _TreeAttention(torch.autograd.Function):
    """Blocks of scores by matrix products, and one softmax over the blocks of a query (`kernels.cpp`)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, plan: TreePlan) -> Tensor:
        kv_heads, n, groups, size = query.shape
        queries, out = query.view(kv_heads, n * groups, size), torch.zeros_like(query)
        outs, lse = out.view_as(queries), query.new_empty(kv_heads, n, groups)
        room = query.new_empty(kv_heads * groups * max(n_pairs(tile) for tile in plan.tiles))
        for tile in plan.tiles:
            scores = [_scores(room, b, queries, key, scaling, groups) for b in tile]
            table = torch.tensor([(b.first, b.last, b.key, b.n_keys, kv_heads * groups * b.offset) for b in tile])
            span = tile[0].first, max(b.last for b in tile)
            kernels.call("softmax", room, room, lse, plan.begin, table, len(tile), *span, n, kv_heads, groups)
            for b, probabilities in zip(tile, scores, strict=True):
                outs[:, _rows(b, groups)].baddbmm_(probabilities, value[:, _keys(b)])
        attended = out.transpose(0, 1).contiguous()  # (N, K, G, C)
        ctx.save_for_backward(query, key, value, attended, lse)
        ctx.scaling, ctx.plan = float(scaling), plan  # a configuration may say 1, and kernels take it by its type
        return attended.view(n, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, attended, lse = ctx.saved_tensors
        kv_heads, n, groups, size = query.shape
        d_out, along = torch.empty_like(query), torch.empty_like(lse)
        kernels.call("by_heads", query, grad.contiguous(), attended, d_out, along, n, kv_heads, groups, size)
        queries, d_outs = query.view(kv_heads, n * groups, size), d_out.view(kv_heads, n * groups, size)
        d_query, d_key, d_value = torch.zeros_like(queries), torch.zeros_like(key), torch.zeros_like(value)
        blocks = [b for tile in ctx.plan.tiles for b in tile]
        room, d_room = (query.new_empty(kv_heads * groups * max(b.n_pairs for b in blocks)) for _ in range(2))
        for b in blocks:
            alone = _Block(b.first, b.last, b.key, b.n_keys, 0)
            rows, keys, table = _rows(b, groups), _keys(b), torch.tensor([b.first, b.last, b.key, b.n_keys, 0])
            scores = _scores(room, alone, queries, key, ctx.scaling, groups)
            d_scores = _scores(d_room, alone, d_outs, value, 1.0, groups)
            begin = ctx.plan.begin
            kernels.call("softmax_grad", room, room, d_room, lse, along, begin, table, ctx.scaling, n, kv_heads, groups)
            d_value[:, keys].baddbmm_(scores.transpose(1, 2), d_outs[:, rows])
            d_key[:, keys].baddbmm_(d_scores.transpose(1, 2), queries[:, rows])
            d_query[:, rows].baddbmm_(d_scores, key[:, keys])
        return d_query.view_as(query), d_key, d_value, None, None


def n_pairs(tile: tuple[_Block, ...]) -> int:
    """Of a query and a key that a tile's blocks compute, for each query head."""
    return sum(b.n_pairs for b in tile)


def _rows(block: _Block, groups: int) -> slice:
    return slice(block.first * groups, block.last * groups)


def _keys(block: _Block) -> slice:
    return slice(block.key, block.key + block.n_keys)


def _scores(room: Tensor, block: _Block, rows: Tensor, keys: Tensor, scaling: float, groups: int) -> Tensor:
    """scaling * rows @ keys^T of a block, at its place in `room`: (K, rows, n_keys)."""
    kv_heads, n_rows = len(keys), (block.last - block.first) * groups
    start = kv_heads * groups * block.offset
    scores = room[start : start + kv_heads * n_rows * block.n_keys].view(kv_heads, n_rows, block.n_keys)
    taken = rows[:, _rows(block, groups)], keys[:, _keys(block)].transpose(1, 2)
    return torch.baddbmm(scores, *taken, beta=0, alpha=scaling, out=scores)
