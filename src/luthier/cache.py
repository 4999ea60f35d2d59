"""Keys and values of prompts that are continued together: what many of them share is kept, and read, once.

    n rows being written, N tokens of their packed prompts, P tokens of a shared segment, T own tokens of a row
    K key/value heads, H = K * G query heads, C size of a head, S columns of the scores

A row attends to the shared segments above it and to its own tokens. A shared segment is one matrix product for all
its rows, a row's own tokens are a product of their own, and one softmax goes over both. Rows of similar length lie in
one tensor with room for what they will write: nothing grows, and a row that ends gives its place to the last one.
This module knows nothing of models: it sees queries, keys and values, layer by layer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.batch import Batch, Segment

MIN_SHARED_TOKENS = 256
"""A segment is kept apart if that saves as many copies of tokens: each costs a few calls a layer and new token."""
MAX_PADDING = 32
"""Tokens, beside a quarter of its own, that a row is padded by at most: padding costs time, and so do more blocks."""


@dataclass(slots=True)
class _Shared:
    """A segment that several rows attend to, with columns of its own in their scores."""

    segment: Segment
    column: int
    members: frozenset[int]  # the prompts that go through it
    rows: Tensor = field(default_factory=lambda: torch.empty(0))  # (r,) where its members are among the rows
    keys: list[Tensor] = field(default_factory=list)  # of each layer (K, P, C)
    values: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Block:
    """Rows of similar length: their own tokens, padded on the left, and then what they write."""

    members: list[int]  # the prompt of each row
    home: Tensor  # (n, T) where a row's own tokens are among the N
    mask: Tensor  # (n, 1, 1, T + room) added to the scores: -inf at padding
    keys: list[Tensor] = field(default_factory=list)  # of each layer (n, K, T + room, C)
    values: list[Tensor] = field(default_factory=list)

    def keep(self, alive: list[int]) -> list[int]:
        """Drop the other rows; the last ones move into their places, so that little is copied. The new order."""
        order, n = list(range(len(alive))), len(alive)
        for gap, last in zip(sorted(set(order) - set(alive)), (i for i in alive if i >= n), strict=True):
            order[gap] = last
            for tensor in (self.mask, *self.keys, *self.values):
                tensor[gap] = tensor[last]
        self.members = [self.members[i] for i in order]
        return order


class RowCache:
    """`fill` takes the keys and values of the prompts, `attend` is the attention of one new token in each row.

    Both are called once a layer, in the layers' order.
    """

    def __init__(self, batch: Batch, room: int, dtype: torch.dtype) -> None:
        """`room`: how many tokens a row may be continued by."""
        paths = [[*batch.ancestors(segment), segment] for segment, _ in batch.leaf]
        lengths = [s.stop - s.start for s in batch.segments]
        through = [frozenset(i for i, path in enumerate(paths) if s in path) for s in range(len(lengths))]
        apart = {s for s, m in enumerate(through) if lengths[s] * (len(m) - 1) >= MIN_SHARED_TOKENS}
        above = [sum(lengths[a] for a in batch.ancestors(s) if a in apart) for s in range(len(lengths))]
        self._shared = [_Shared(batch.segments[s], above[s], through[s]) for s in sorted(apart)]
        self._own_column = max((above[s] + lengths[s] for s in apart), default=0)
        own = [[t for s in path if s not in apart for t in range(*_span(batch.segments[s]))] for path in paths]
        self._blocks = [_block(members, own, room, dtype, batch.ids.device) for members in _similar(own)]
        self._room, self._layer, self._n_new = room, 0, 0
        self._find_rows(batch.ids.device)

    @property
    def members(self) -> list[int]:
        """The prompt that each row continues."""
        return [member for block in self._blocks for member in block.members]

    def keep(self, alive: Collection[int]) -> list[int]:
        """Drop all rows but these. Returns, for each row from now on, where it was before."""
        order, start = [], 0
        for block in self._blocks:
            n = len(block.members)
            order += [start + i for i in block.keep([i for i in range(n) if start + i in alive])]
            start += n
        self._blocks = [block for block in self._blocks if block.members]
        if self._blocks:
            self._find_rows(self._blocks[0].home.device)
        return order

    def _find_rows(self, device: torch.device) -> None:
        members = self.members
        for shared in self._shared:
            rows = [row for row, member in enumerate(members) if member in shared.members]
            shared.rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self._shared = [shared for shared in self._shared if len(shared.rows)]

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Keys and values of the packed prompts in the next layer, (K, N, C)."""
        for shared in self._shared:
            start, stop = _span(shared.segment)
            shared.keys.append(key[:, start:stop].clone())
            shared.values.append(value[:, start:stop].clone())
        for block in self._blocks:
            for kept, given in ((block.keys, key), (block.values, value)):
                n, length = block.home.shape
                tensor = given.new_empty(n, given.shape[0], length + self._room, given.shape[2])
                own = given.index_select(1, block.home.flatten()).unflatten(1, (n, length))
                tensor[:, :, :length] = own.transpose(0, 1)
                kept.append(tensor)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(K, n, G, C), (K, n, C) twice -> (n, K * G * C), in the next layer."""
        at, self._layer = self._layer, (self._layer + 1) % len(self._blocks[0].keys)
        self._n_new += at == 0
        queries = query.transpose(0, 1) * scaling  # (n, K, G, C)
        weights = self._scores(at, queries, key.transpose(0, 1)).softmax(-1, dtype=torch.float32).to(query.dtype)
        out, values, start = queries.new_empty(*queries.shape[:3], value.shape[2]), value.transpose(0, 1), 0
        for block in self._blocks:
            rows, stop = slice(start, start + len(block.members)), block.home.shape[1] + self._n_new
            own = block.values[at][: len(block.members), :, :stop]
            own[:, :, -1] = values[rows]
            out[rows] = weights[rows, ..., self._own_column : self._own_column + stop] @ own
            start = rows.stop
        for shared in self._shared:
            columns = slice(shared.column, shared.column + shared.keys[at].shape[1])
            out.index_add_(0, shared.rows, _product(weights[..., columns], shared.rows, shared.values[at]))
        attended: Tensor = out.flatten(1)
        return attended

    def _scores(self, at: int, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, K, G, S): first the columns of shared segments, then those of own tokens; -inf where there is none."""
        width = self._own_column + max(block.home.shape[1] for block in self._blocks) + self._n_new
        scores = queries.new_full((*queries.shape[:3], width), float("-inf"))
        start = 0
        for block in self._blocks:
            n, stop = len(block.members), block.home.shape[1] + self._n_new
            rows, own = slice(start, start + n), block.keys[at][:n, :, :stop]
            own[:, :, -1] = keys[rows]
            found = queries[rows] @ own.transpose(2, 3) + block.mask[:n, ..., :stop]
            scores[rows, ..., self._own_column : self._own_column + stop] = found
            start = rows.stop
        for shared in self._shared:
            found = _product(queries, shared.rows, shared.keys[at].transpose(1, 2))
            scores[shared.rows, ..., shared.column : shared.column + found.shape[3]] = found
        return scores


def _product(left: Tensor, rows: Tensor, right: Tensor) -> Tensor:
    """(n, K, G, a), (r,), (K, a, b) -> (r, K, G, b): those rows' heads by the one matrix of their key/value head."""
    picked = left.index_select(0, rows).transpose(0, 1)  # (K, r, G, a)
    product: Tensor = (picked.flatten(1, 2) @ right).unflatten(1, picked.shape[1:3])  # (K, r, G, b)
    return product.transpose(0, 1)


def _span(segment: Segment) -> tuple[int, int]:
    return segment.start, segment.stop


def _similar(own: list[list[int]]) -> list[list[int]]:
    """Rows of about the same number of own tokens, shorter ones first."""
    blocks: list[list[int]] = []
    for row in sorted(range(len(own)), key=lambda i: len(own[i])):
        if not blocks or len(own[row]) > 1.25 * len(own[blocks[-1][0]]) + MAX_PADDING:
            blocks.append([])
        blocks[-1].append(row)
    return blocks


def _block(members: list[int], own: list[list[int]], room: int, dtype: torch.dtype, device: torch.device) -> _Block:
    length = len(own[members[-1]])
    home = torch.zeros(len(members), length, dtype=torch.int64)
    mask = torch.zeros(len(members), 1, 1, length + room, dtype=dtype)
    for row, member in enumerate(members):
        n_padding = length - len(own[member])
        home[row, n_padding:] = torch.tensor(own[member], dtype=torch.int64)
        mask[row, ..., :n_padding] = float("-inf")
    return _Block(members, home.to(device), mask.to(device))
