"""Attention over a packed tree on a GPU, by torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496).

    N tokens of a packed tree, P of them with padding, K key/value heads with G query heads each, C size of a head

The tree is packed depth first, so what continues a token lies behind it without a gap: query q sees key k if, and only
if, k <= q < end[k], where `end` is where the subtree of k's segment ends. One vector is thus the whole mask. Blocks of
128 x 128 pairs are skipped, computed, or computed and masked by the least and the greatest `end` of their keys: P / 128
squared comparisons, and never a matrix of all pairs.

A new length is a new compilation, of some ten seconds: lengths are padded to one of four an octave. A token of padding
sees itself alone, so 128 of them cost one block, where 128 tokens of a text cost half as many as stand before them;
they are a fifth of all at most, and only here: nothing but queries, keys and values is padded.

Lost: attention of variable lengths (flash), level by level of the tree and merged by log-sum-exp: as many calls as the
tree is deep, queries gathered anew for each, and a merge whose gradient passes through every level's own sums. This
module knows nothing of segments or models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
SIZES = range(16, 257)
"""Of a head: what the kernels take."""
MOST_COMPILATIONS = 256
"""Torch's own bound of 8 is passed by a few lengths, with and without gradients; beyond it there is an error."""


def takes(query: Tensor) -> bool:
    """Whether the compiled kernels run these queries, (K, N, G, C)."""
    digits = query.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return query.is_cuda and digits and query.shape[3] in SIZES and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def padded_length(n: int) -> int:
    """At least n: a multiple of BLOCK, and of an eighth of the power of two above n."""
    step = max(BLOCK, 1 << (n - 1).bit_length() >> 3)
    return -(-n // step) * step


def padded_end(end: Tensor) -> Tensor:
    """`end` (N,) int32 of a tree's tokens -> (P,), where each token of padding ends behind itself."""
    n, padded = len(end), padded_length(len(end))
    return torch.cat([end, torch.arange(n + 1, padded + 1, dtype=end.dtype, device=end.device)])


def visible(end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as FlexAttention asks for it: of batch, head, query and key."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    return sees


def block_mask(end: Tensor) -> Any:
    """Which blocks are computed, and which of those masked, by `end` (P,).

    The first query behind a block of keys sees one of them, if any does; the last one sees them all, if all do.
    """
    from torch.nn.attention.flex_attention import BlockMask

    ends, first = end.view(-1, BLOCK), torch.arange(0, len(end), BLOCK, device=end.device)[:, None]
    before = first > first.T
    full = before & (ends.amin(1) >= first + BLOCK)
    partial = before & (ends.amax(1) > first) & ~full | (first == first.T)
    (n_partial, at_partial), (n_full, at_full) = _ordered(partial), _ordered(full)
    return BlockMask.from_kv_blocks(n_partial, at_partial, n_full, at_full, BLOCK_SIZE=BLOCK, mask_mod=visible(end))


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(b, b) -> how many are set in each row, (1, 1, b), and the columns with the set ones first, (1, 1, b, b)."""
    columns = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None].contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Any, run: Any = None) -> Tensor:
    """(K, N, G, C), (K, N, C) twice -> (N, K * G * C). Key/value heads stand where FlexAttention has the batch.

    `run` is FlexAttention itself, else compiled.
    """
    n = query.shape[1]
    more = mask.shape[-1] - n
    queries = F.pad(query.transpose(1, 2), (0, 0, 0, more))  # (K, G, P, C)
    keys, values = (F.pad(x, (0, 0, 0, more))[:, None] for x in (key, value))  # (K, 1, P, C)
    out = (run or _compiled())(queries, keys, values, block_mask=mask, scale=float(scaling), enable_gqa=True)
    return out[:, :, :n].permute(2, 0, 1, 3).flatten(1)  # type: ignore[no-any-return]


@cache
def _compiled() -> Any:
    """`fullgraph`: beyond the bound an error, instead of scores of all pairs."""
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILATIONS)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
