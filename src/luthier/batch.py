"""Encoded examples -> one packed prefix tree, in which every shared token stands once.

    N tokens of the packed tree, M learned edges (token -> next token), S segments, E (edge, example) pairs

Examples are merged into a radix tree: a segment is a run of tokens without branching, its keys are those of
its ancestors and its own earlier tokens, so every example sees exactly what it would see alone. A branching
token has several next tokens, and an edge learned by k examples counts k times; therefore what is learned
is three aligned vectors `predict_at`, `targets`, `weights` instead of one shifted target per token.

Sharing is exact for deterministic layers. With dropout shared tokens would share their noise, and the
caller must unroll (`unrolled`). This module knows nothing of models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.encode import Encoded

MIN_SAVED_TOKENS = 8
"""A branch is shared only if that saves at least this many tokens: each segment costs an attention call."""


@dataclass(frozen=True, slots=True)
class Segment:
    start: int
    stop: int
    parent: int  # index of the segment it continues; -1 for a root


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64, each token's place in its own example
    segments: tuple[Segment, ...]  # (S,) parents before children, covering 0..N in order
    predict_at: Tensor  # (M,) int64 into the N tokens
    targets: Tensor  # (M,) int64 token ids
    weights: Tensor  # (M,) float32, how many examples learn this edge
    edge: Tensor  # (E,) int64 into the M edges
    example: Tensor  # (E,) int64, which example learns that edge
    leaf: tuple[tuple[int, int], ...]  # per example: (segment, stop) where it ends
    names: tuple[str, ...]  # per example: its id

    @property
    def n_targets(self) -> int:
        """Learned tokens, counted once for each example that learns them."""
        return int(self.edge.numel())

    @property
    def n_input_tokens(self) -> int:
        """Tokens of all examples, shared ones counted every time."""
        return sum(int(self.positions[stop - 1]) + 1 for _, stop in self.leaf)

    def to(self, device: torch.device) -> Batch:
        moved = {
            n: getattr(self, n).to(device)
            for n in ("ids", "positions", "predict_at", "targets", "weights", "edge", "example")
        }
        return Batch(**moved, segments=self.segments, leaf=self.leaf, names=self.names)

    def per_example(self, per_edge: Tensor) -> Tensor:
        """Sums a value per learned edge (M,) to a value per example (B,)."""
        out = torch.zeros(len(self.names), dtype=per_edge.dtype, device=per_edge.device)
        return out.index_add_(0, self.example, per_edge.index_select(0, self.edge))

    def ancestors(self, segment: int) -> list[int]:
        """Segments above `segment`, root first."""
        above = []
        while (segment := self.segments[segment].parent) >= 0:
            above.append(segment)
        return above[::-1]

    def rooted(self, n: int) -> Batch:
        """The same examples after `n` virtual tokens, which are one root for all; their ids are -1."""
        if n == 0:
            return self
        segments = (Segment(s.start + n, s.stop + n, s.parent + 1) for s in self.segments)
        return replace(
            self,
            ids=F.pad(self.ids, (n, 0), value=-1),
            positions=torch.cat([torch.arange(n, device=self.ids.device), self.positions + n]),
            segments=(Segment(0, n, -1), *segments),
            predict_at=self.predict_at + n,
            leaf=tuple((segment + 1, stop + n) for segment, stop in self.leaf),
        )

    def unrolled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows for models that cannot take a tree: ids (B, T), lengths (B,), and where in B*T each token is (N,)."""
        paths = [self.places(i) for i in range(len(self.names))]
        length = max(map(len, paths))
        rows = torch.zeros(len(paths), length, dtype=torch.int64)
        home = torch.zeros(self.ids.numel(), dtype=torch.int64)
        ids = self.ids.cpu()
        for b, path in reversed(list(enumerate(paths))):
            rows[b, : len(path)] = ids[path]
            home[path] = b * length + torch.arange(len(path))
        lengths = torch.tensor([len(p) for p in paths])
        return rows.to(self.ids.device), lengths.to(self.ids.device), home.to(self.ids.device)

    def places(self, example: int) -> Tensor:
        """Where each token of an example is among the N: (T,)."""
        segment, stop = self.leaf[example]
        above = [self.segments[i] for i in self.ancestors(segment)]
        spans = [*((s.start, s.stop) for s in above), (self.segments[segment].start, stop)]
        return torch.cat([torch.arange(*span) for span in spans])


def make_batch(examples: Sequence[Encoded], *, share: bool = True) -> Batch:
    """Pack examples into one tree; `share=False` gives each its own root."""
    return _Builder(examples, share).batch()


class _Builder:
    """Grows the tree depth first; `order` is the order in which examples lie in the tree."""

    def __init__(self, examples: Sequence[Encoded], share: bool) -> None:
        assert examples and all(e.ids for e in examples)
        self.examples, self.share = examples, share
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.leaf: dict[int, tuple[int, int]] = {}
        self.edges: dict[tuple[int, int], int] = {}  # (token's place, next id) -> edge
        self.pairs: list[tuple[int, int]] = []  # (edge, example)

    def batch(self) -> Batch:
        members = sorted(range(len(self.examples)), key=lambda i: (self.examples[i].ids, i))
        if self.share:
            self._grow(members, 0, -1, -1)
        else:
            for member in members:
                self._grow([member], 0, -1, -1)
        weights = torch.zeros(len(self.edges))
        for edge, _ in self.pairs:
            weights[edge] += 1
        return Batch(
            ids=torch.tensor(self.ids),
            positions=torch.tensor(self.positions),
            segments=tuple(self.segments),
            predict_at=torch.tensor([at for at, _ in self.edges], dtype=torch.int64),
            targets=torch.tensor([target for _, target in self.edges], dtype=torch.int64),
            weights=weights,
            edge=torch.tensor([e for e, _ in self.pairs], dtype=torch.int64),
            example=torch.tensor([b for _, b in self.pairs], dtype=torch.int64),
            leaf=tuple(self.leaf[i] for i in range(len(self.examples))),
            names=tuple(e.id for e in self.examples),
        )

    def _grow(self, members: list[int], depth: int, parent: int, before: int) -> None:
        """Add the subtree of `members` (sorted), which agree on their first `depth` ids.

        `before` is the place of the token that precedes the subtree, -1 at a root.
        """
        for group in self._groups(members, depth):
            first = self.examples[group[0]].ids
            length = common_prefix(first, self.examples[group[-1]].ids)
            segment, start = len(self.segments), len(self.ids)
            self.segments.append(Segment(start, start + length - depth, parent))
            self.ids += first[depth:length]
            self.positions += range(depth, length)
            for member in group:
                self._learn(member, depth, length, start, before)
            ended = [m for m in group if len(self.examples[m].ids) == length]
            for member in ended:
                self.leaf[member] = (segment, len(self.ids))
            if rest := group[len(ended) :]:
                self._grow(rest, length, segment, start + length - depth - 1)

    def _groups(self, members: list[int], depth: int, at: int | None = None) -> Iterator[list[int]]:
        """Runs of sorted members that go on together, from `depth`, for long enough to be worth a segment.

        They agree on their first `at` ids, `depth` of which are in the tree already.
        """
        at = depth if at is None else at
        for _, run in groupby(members, key=lambda member: self.examples[member].ids[at : at + 1]):
            group = list(run)
            first, last = (self.examples[member].ids for member in (group[0], group[-1]))
            length = common_prefix(first, last)
            if (length - depth) * (len(group) - 1) >= MIN_SAVED_TOKENS or len(first) == len(last) == length:
                yield group
            else:
                yield from self._groups(group, depth, length)

    def _learn(self, member: int, depth: int, length: int, start: int, before: int) -> None:
        """Record the learned edges that end inside [depth, length)."""
        example = self.examples[member]
        for t in range(max(depth, 1), length):
            if example.learn[t]:
                at = before if t == depth else start + t - depth - 1
                edge = self.edges.setdefault((at, example.ids[t]), len(self.edges))
                self.pairs.append((edge, member))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def split_by_tokens(
    examples: Sequence[Encoded], max_tokens: int, *, share: bool = True, room: int = 0
) -> list[list[Encoded]]:
    """Cut a step's examples into groups of at most `max_tokens` distinct tokens (a longer example is alone).

    Where examples part, fewer than MIN_SAVED_TOKENS of these may lie in a tree more than once. Neighbours in sorted
    order share most, so the groups are runs of the sorted examples. With `share=False` every token counts: for examples
    that will each have a root of their own, or a row. Each example also takes `room`, tokens to come.
    """
    groups: list[list[Encoded]] = []
    n_tokens = 0
    for example in sorted(examples, key=lambda e: (e.ids, e.id)):
        shared = common_prefix(groups[-1][-1].ids, example.ids) if groups and share else 0
        new = len(example.ids) - shared + room
        if not groups or n_tokens + new > max_tokens:
            groups.append([])
            n_tokens, new = 0, len(example.ids) + room
        groups[-1].append(example)
        n_tokens += new
    return groups
