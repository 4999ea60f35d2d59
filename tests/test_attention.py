"""Attention over a tree is that of a dense mask, by blocks as by segments, and each visible pair is computed once.

FlexAttention runs on a GPU (`tests/gpu`); here are its mask, and what it computes when it is not compiled.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import random_examples, saving
from threads import same_bits_by_one_and_two_threads
from torch import Tensor

from luthier import flex, kernels
from luthier.attention import CLUSTER, TILE, TreePlan
from luthier.batch import Segment, make_batch
from luthier.flex import BLOCK

needs_library = pytest.mark.skipif(kernels.library() is None, reason="no compiler")


def plan_of(lengths: list[int], parents: list[int]) -> TreePlan:
    """Segments in the order given, which must be depth first."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    segments = tuple(Segment(s, s + n, p) for s, n, p in zip(starts, lengths, parents, strict=True))
    above: list[tuple[int, ...]] = []
    for parent in parents:
        above.append((*above[parent], parent) if parent >= 0 else ())
    return TreePlan(segments, tuple(above), torch.device("cpu"))


@st.composite
def trees(draw: st.DrawFn) -> TreePlan:
    """Deep or wide, mostly of tiny segments, some at the bounds of a cluster or a tile, or beyond."""
    odd = st.sampled_from([CLUSTER - 1, CLUSTER, CLUSTER + 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 3])
    n = draw(st.integers(1, 14))
    n_long = draw(st.integers(0, 2))
    lengths = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    for at in draw(st.lists(st.integers(0, n - 1), max_size=n_long)):
        lengths[at] = draw(odd)
    parents, path = [], [-1]  # depth first: a segment continues the one before it or one of those above that
    for i in range(n):
        del path[draw(st.integers(1, len(path))) :]
        parents.append(path[-1])
        path.append(i)
    return plan_of(lengths, parents)


WIDE = plan_of([5] + [1] * 300, [-1] + [0] * 300)
DEEP = plan_of([2] * 150, list(range(-1, 149)))
CLUSTERS = plan_of([9, 60, 3, 1, 64, 64, 1, 65, 2], [-1, 0, 0, 0, 0, 0, 0, 0, -1])
EXACT = plan_of([TILE, TILE, CLUSTER, CLUSTER, TILE - 2 * CLUSTER, TILE + 1], [-1, 0, 1, 1, 0, -1])
TOKEN = plan_of([1], [-1])
by_tree = pytest.mark.parametrize(
    "plan", [WIDE, DEEP, CLUSTERS, EXACT, TOKEN], ids=["wide", "deep", "clusters", "exact", "token"]
)


def visible(plan: TreePlan) -> Tensor:
    """(N, N): whether a token sees another."""
    n = plan.segments[-1].stop
    sees = torch.zeros(n, n, dtype=torch.bool)
    for segment, above in zip(plan.segments, plan.ancestors, strict=True):
        rows = slice(segment.start, segment.stop)
        for a in above:
            sees[rows, plan.segments[a].start : plan.segments[a].stop] = True
        sees[rows, rows] = True
    return sees.tril()


def dense(plan: TreePlan, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    scores = torch.einsum("kngc,kmc->kngm", query, key) * scaling
    p = scores.masked_fill(~visible(plan)[None, :, None], -torch.inf).softmax(-1)
    return torch.einsum("kngm,kmc->nkgc", p, value).flatten(1)


def drawn(plan: TreePlan, kv_heads: int, groups: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value, and d loss / d out."""
    generator = torch.Generator().manual_seed(0)
    n = plan.segments[-1].stop
    shapes = (kv_heads, n, groups, size), (kv_heads, n, size), (kv_heads, n, size), (n, kv_heads * groups * size)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def with_gradients(attend: object, given: list[Tensor], scaling: float) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    leaves = [x.detach().clone().requires_grad_() for x in given[:3]]
    out = attend(*leaves, scaling)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad((out * given[3]).sum(), leaves)]


def check(plan: TreePlan, groups: int, size: int = 4, kv_heads: int = 2, scaling: float = 0.5) -> None:
    given = drawn(plan, kv_heads, groups, size, torch.float64)
    expected = with_gradients(lambda q, k, v, s: dense(plan, q, k, v, s), given, scaling)
    for attend in (plan.attend, plan._by_segments):
        for found, wanted in zip(with_gradients(attend, given, scaling), expected, strict=True):
            assert found.shape == wanted.shape
            assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-11)


def count(plan: TreePlan) -> Tensor:
    """How often each pair that a query sees is in a block: (N, N). Says what `kernels.cpp` says of `seen`."""
    n = plan.segments[-1].stop
    times, begin = torch.zeros(n, n, dtype=torch.int64), plan.begin.tolist()
    for tile in plan.tiles:
        first, last, offset = tile[0].first, max(b.last for b in tile), 0
        assert last - first <= TILE
        for b in tile:
            assert first <= b.first < b.last <= last and b.n_keys > 0 and b.offset == offset
            offset += b.n_pairs
            for t in range(b.first, b.last):
                own = begin[t] < b.key + b.n_keys
                seen = slice(begin[t], t + 1) if own else slice(b.key, b.key + b.n_keys)
                assert b.key <= seen.start < seen.stop <= b.key + b.n_keys
                times[t, seen] += 1
    return times


@settings(max_examples=40)
@given(trees())
def test_each_visible_pair_is_in_one_block(plan: TreePlan) -> None:
    assert torch.equal(count(plan), visible(plan).long())


@by_tree
def test_each_visible_pair_is_in_one_block_of_odd_trees(plan: TreePlan) -> None:
    assert torch.equal(count(plan), visible(plan).long())
    assert [t for tile in plan.tiles for t in range(tile[0].first, max(b.last for b in tile))] == list(
        range(plan.segments[-1].stop)
    )


@needs_library
@settings(max_examples=25)
@given(trees(), st.sampled_from([1, 2, 3, 7]), st.sampled_from([2, 4, 10]))
def test_outputs_and_gradients_are_those_of_a_dense_mask(plan: TreePlan, groups: int, size: int) -> None:
    check(plan, groups, size)


@needs_library
@pytest.mark.parametrize("groups", [1, 3])
@by_tree
def test_odd_trees_too(plan: TreePlan, groups: int) -> None:
    check(plan, groups, kv_heads=1)


@needs_library
@pytest.mark.parametrize("at_least", [1, 8])
def test_packed_examples_too(at_least: int) -> None:
    for seed in range(3):
        with saving(at_least):
            check(TreePlan.of(make_batch(random_examples(seed))), groups=2)


@needs_library
def test_few_neighbouring_leaves_are_few_blocks() -> None:
    """300 leaves of a token, five times 64 of them a block: not 300 blocks."""
    assert sum(len(tile) for tile in WIDE.tiles) < 12


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scaling", [80.0, 1e4])
def test_scores_that_are_large(dtype: torch.dtype, scaling: float) -> None:
    """Near to one key each: a score is only known to its last digit, and so is a probability."""
    given = drawn(CLUSTERS, 2, 2, 4, dtype)
    given[:3] = [x.clamp(-1, 1) for x in given[:3]]
    found = with_gradients(CLUSTERS.attend, given, scaling)
    wanted = with_gradients(lambda q, k, v, s: dense(CLUSTERS, q, k, v, s), [x.double() for x in given], scaling)
    slack = 20 * torch.finfo(dtype).eps * 4 * scaling
    for a, b in zip(found, wanted, strict=True):
        assert float((a.double() - b).abs().max()) <= slack * float(b.abs().max())


@needs_library
def test_float32_is_close_to_float64_and_no_further_than_torch() -> None:
    given = drawn(CLUSTERS, 2, 2, 64, torch.float32)
    exact = with_gradients(lambda q, k, v, s: dense(CLUSTERS, q, k, v, s), [x.double() for x in given], 0.125)

    def errors(attend: object) -> list[float]:
        found = with_gradients(attend, given, 0.125)
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    for ours, theirs in zip(errors(CLUSTERS.attend), errors(CLUSTERS._by_segments), strict=True):
        assert ours <= 2 * theirs < 1e-6


@needs_library
def test_a_scaling_that_is_a_whole_number() -> None:
    given = drawn(CLUSTERS, 1, 2, 4, torch.float64)
    pairs = zip(*(with_gradients(CLUSTERS.attend, given, s) for s in (1, 1.0)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@needs_library
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_is_seen(which: int) -> None:
    """By all that see the token. A value also meets what does not see it, in its block: zero times NaN is NaN."""
    given = drawn(CLUSTERS, 1, 1, 4, torch.float32)
    at = random.Random(0).randrange(9, 60)
    given[which].select(1, at)[:] = torch.nan
    out = CLUSTERS.attend(*given[:3], 0.5)
    spoilt = out.isnan().any(1)
    if which == 0:
        assert spoilt[at] and spoilt.sum() == 1
    elif which == 1:
        assert torch.equal(spoilt, visible(CLUSTERS)[:, at])
    else:
        assert spoilt[visible(CLUSTERS)[:, at]].all() and not spoilt[:9].any()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    """To the bit; what lies between them, products of matrices, is torch's."""
    n, tile = CLUSTERS.segments[-1].stop, CLUSTERS.tiles[0]
    table = torch.tensor([(b.first, b.last, b.key, b.n_keys, 6 * b.offset) for b in tile])
    scores = torch.randn(6 * sum(b.n_pairs for b in tile), generator=torch.Generator().manual_seed(0)).to(dtype)
    query, _, _, grad = drawn(CLUSTERS, 2, 3, 10, dtype)
    span = tile[0].first, max(b.last for b in tile)

    def results() -> list[Tensor]:
        p, lse, along, heads = scores.clone(), query.new_zeros(2, n, 3), query.new_zeros(2, n, 3), query.clone()
        kernels.call("softmax", p, p, lse, CLUSTERS.begin, table, len(tile), *span, n, 2, 3)
        kernels.call("by_heads", grad, grad, grad.flip(0).contiguous(), heads, along, n, 2, 3, 10)
        s, d = scores.clone(), scores.flip(0).contiguous()
        kernels.call("softmax_grad", s, s, d, lse, along, CLUSTERS.begin, table[0], 0.5, n, 2, 3)
        return [p, lse, heads, along, s, d]

    assert same_bits_by_one_and_two_threads(results)


@needs_library
def test_results_do_not_depend_on_what_shares_the_memory() -> None:
    """Scores lie in memory that is not cleared: NaN that lay there must not come back."""
    given = drawn(CLUSTERS, 1, 2, 4, torch.float32)
    before = with_gradients(CLUSTERS.attend, given, 0.5)
    real = torch.Tensor.new_empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", lambda self, *size: real(self, *size).fill_(torch.nan))
        assert all(map(torch.equal, before, with_gradients(CLUSTERS.attend, given, 0.5)))


# -- FlexAttention ------------------------------------------------------------------------------------------


def seen_by_flex(plan: TreePlan) -> Tensor:
    """(P, P): whether a token sees another, padding included, by the mask that FlexAttention is given."""
    places = torch.arange(plan.block_mask.shape[-1])
    return plan.block_mask.mask_mod(None, None, places[:, None], places[None])


def check_mask(plan: TreePlan) -> None:
    """Pair by pair as `visible`; block by block as torch finds by looking at all pairs."""
    from torch.nn.attention.flex_attention import create_block_mask

    n, seen, mask = plan.segments[-1].stop, seen_by_flex(plan), plan.block_mask
    size = len(seen)
    assert n <= size <= max(1.25 * n + BLOCK, BLOCK) and size % BLOCK == 0
    assert torch.equal(seen[:n, :n], visible(plan)) and not seen[:n, n:].any()
    assert torch.equal(seen[n:], torch.eye(size, dtype=torch.bool)[n:])
    wanted = create_block_mask(mask.mask_mod, 1, 1, size, size, device="cpu", BLOCK_SIZE=BLOCK)
    assert mask.shape == wanted.shape and mask.BLOCK_SIZE == wanted.BLOCK_SIZE
    names = [f"{full}{of}_{what}" for full in ("", "full_") for of in ("kv", "q") for what in ("num_blocks", "indices")]
    for name in names:
        assert torch.equal(getattr(mask, name), getattr(wanted, name)), name


@settings(max_examples=40)
@given(trees())
def test_flex_sees_what_is_visible(plan: TreePlan) -> None:
    check_mask(plan)


@by_tree
def test_flex_sees_what_is_visible_in_odd_trees(plan: TreePlan) -> None:
    check_mask(plan)


@pytest.mark.parametrize("n_virtual", [0, 1, 5, 130])
def test_flex_sees_virtual_tokens(n_virtual: int) -> None:
    for seed in range(3):
        plan = TreePlan.of(make_batch(random_examples(seed)).rooted(n_virtual))
        check_mask(plan)
        assert n_virtual == 0 or seen_by_flex(plan)[n_virtual : plan.segments[-1].stop, :n_virtual].all()


def test_lengths_are_few() -> None:
    lengths = {flex.padded_length(n) for n in range(1, 2**15 + 1)}
    assert len([n for n in lengths if n > 2**10]) == 4 * 5 and max(lengths) == 2**15
    assert all(n <= flex.padded_length(n) <= max(1.25 * n, n + BLOCK) for n in range(1, 2**15 + 1))


@pytest.mark.filterwarnings("ignore:.*flex_attention called without:UserWarning")
@pytest.mark.parametrize("groups", [1, 3])
@by_tree
def test_flex_gives_what_segments_give(plan: TreePlan, groups: int) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value, _ = drawn(plan, 2, groups, 16, torch.float32)
    found = flex.attend(query, key, value, 0.25, plan.block_mask, run=flex_attention)
    expected = plan._by_segments(query, key, value, 0.25)
    assert found.shape == expected.shape and found.is_contiguous()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
