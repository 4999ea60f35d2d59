"""The packed tree holds every example as it was, and every learned edge as often as it is learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier import batch as batches
from luthier.batch import Batch, common_prefix, make_batch, split_by_tokens
from luthier.encode import Encoded


@contextmanager
def saving(at_least: int) -> Iterator[None]:
    """How many tokens a branch must save: 1 makes the bushiest trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "MIN_SAVED_TOKENS", at_least)
        yield


def example(ids: Sequence[int], learn: Sequence[int] | None = None, name: str = "") -> Encoded:
    mask = [True] * len(ids) if learn is None else [bool(x) for x in learn]
    return Encoded(list(ids), mask, name or "-".join(map(str, ids)), "data.jsonl:1")


@st.composite
def examples(draw: st.DrawFn) -> list[Encoded]:
    """Short sequences over few ids, many with a common beginning, with random masks."""
    stems = draw(st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=3))
    made = []
    for i in range(draw(st.integers(1, 8))):
        ids = draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
        learn = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        made.append(example(ids, learn, f"example {i}"))
    return made


def path_of(batch: Batch, b: int) -> list[int]:
    """Where the tokens of example b lie, in order: its leaf's ancestors, then the leaf as far as it ends."""
    segment, stop = batch.leaf[b]
    places = list(range(batch.segments[segment].start, stop))
    while (segment := batch.segments[segment].parent) >= 0:
        places = [*range(batch.segments[segment].start, batch.segments[segment].stop), *places]
    return places


def learned_transitions(given_: Encoded) -> list[tuple[int, int]]:
    """(place of the predicting token, id to predict)."""
    return [(t - 1, given_.ids[t]) for t in range(1, len(given_.ids)) if given_.learn[t]]


def check(batch: Batch, given_: list[Encoded]) -> None:
    """Everything that a batch promises."""
    assert batch.names == tuple(e.id for e in given_)
    assert [s.start for s in batch.segments] == [0, *(s.stop for s in batch.segments[:-1])]
    assert batch.segments[-1].stop == batch.ids.numel() == batch.positions.numel()
    assert all(s.start < s.stop and s.parent < i for i, s in enumerate(batch.segments))
    pairs = list(zip(batch.edge.tolist(), batch.example.tolist(), strict=True))
    for b, one in enumerate(given_):
        places = path_of(batch, b)
        assert batch.ids[places].tolist() == one.ids
        assert batch.positions[places].tolist() == list(range(len(one.ids)))
        position = {place: t for t, place in enumerate(places)}
        edges = [e for e, of in pairs if of == b]
        learned = [(position[int(batch.predict_at[e])], int(batch.targets[e])) for e in edges]
        assert sorted(learned) == learned_transitions(one)
    assert len({*zip(batch.predict_at.tolist(), batch.targets.tolist(), strict=True)}) == len(batch.targets)
    assert batch.weights.tolist() == [Counter(e for e, _ in pairs)[e] for e in range(len(batch.weights))]
    assert batch.weights.sum() == batch.n_targets == sum(e.n_learned for e in given_)
    assert batch.n_input_tokens == sum(len(e.ids) for e in given_)
    assert batch.per_example(torch.ones(len(batch.targets))).tolist() == [e.n_learned for e in given_]
    check_rows(batch, given_)


def check_rows(batch: Batch, given_: list[Encoded]) -> None:
    rows, lengths, home = batch.unrolled()
    assert lengths.tolist() == [len(e.ids) for e in given_]
    assert [row[:n] for row, n in zip(rows.tolist(), lengths.tolist(), strict=True)] == [e.ids for e in given_]
    assert rows.flatten()[home].tolist() == batch.ids.tolist()
    assert (home % rows.shape[1]).tolist() == batch.positions.tolist()


@pytest.mark.parametrize("min_saved", [1, 3, batches.MIN_SAVED_TOKENS])
@settings(max_examples=100)
@given(given_=examples())
def test_a_tree_holds_every_example_and_every_learned_edge(min_saved: int, given_: list[Encoded]) -> None:
    with saving(min_saved):
        check(make_batch(given_), given_)


@settings(max_examples=40)
@given(given_=examples())
def test_unshared_examples_each_have_their_own_root(given_: list[Encoded]) -> None:
    batch = make_batch(given_, share=False)
    check(batch, given_)
    assert [s.parent for s in batch.segments] == [-1] * len(given_)
    assert batch.ids.numel() == batch.n_input_tokens


@settings(max_examples=60)
@given(given_=examples())
def test_no_token_with_the_same_past_stands_twice_where_every_saving_counts(given_: list[Encoded]) -> None:
    with saving(1):
        assert make_batch(given_).ids.numel() == n_distinct(given_)


def n_distinct(given_: Sequence[Encoded]) -> int:
    return len({tuple(e.ids[: t + 1]) for e in given_ for t in range(len(e.ids))})


PROMPT = [9, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_dialogues_that_share_a_learned_answer_learn_it_twice() -> None:
    shared, mask = [*PROMPT, 20, 21, 22], [0] * len(PROMPT) + [1, 1, 1]
    given_ = [example([*shared, 30, 31], [*mask, 0, 1], "a"), example([*shared, 40, 41], [*mask, 0, 1], "b")]
    batch = make_batch(given_)
    check(batch, given_)
    weight = dict(zip(batch.targets.tolist(), batch.weights.tolist(), strict=True))
    assert weight == {20: 2, 21: 2, 22: 2, 31: 1, 41: 1}
    assert batch.ids.numel() == len(shared) + 4


def test_a_shared_answer_that_only_one_dialogue_learns_is_learned_once() -> None:
    shared = [*PROMPT, 20, 21]
    given_ = [
        example([*shared, 30], [0] * len(PROMPT) + [1, 1, 0], "a"),
        example([*shared, 40], [0] * len(PROMPT) + [0, 0, 1], "b"),
    ]
    batch = make_batch(given_)
    check(batch, given_)
    assert batch.weights.tolist() == [1, 1, 1]


def test_two_answers_to_one_prompt_are_predicted_at_the_same_place() -> None:
    mask = [0] * len(PROMPT) + [1, 1]
    given_ = [example([*PROMPT, 20, 2], mask, "a"), example([*PROMPT, 30, 2], mask, "b")]
    batch = make_batch(given_)
    check(batch, given_)
    at = [p for p, t in zip(batch.predict_at.tolist(), batch.targets.tolist(), strict=True) if t in (20, 30)]
    assert at == [len(PROMPT) - 1] * 2
    assert len(batch.segments) == 3


def test_identical_examples_stand_once_and_count_as_often_as_they_are() -> None:
    given_ = [
        example([5, 6, 7], [0, 1, 1], "a"),
        example([5, 6, 7], [0, 1, 1], "b"),
        example([5, 6, 7], [0, 0, 1], "c"),
    ]
    batch = make_batch(given_)
    check(batch, given_)
    assert batch.ids.tolist() == [5, 6, 7] and batch.weights.tolist() == [2, 3]


def test_an_example_that_is_the_beginning_of_another_ends_inside_the_tree() -> None:
    given_ = [example([*PROMPT, 20, 21]), example(PROMPT), example([*PROMPT, 20])]
    batch = make_batch(given_)
    check(batch, given_)
    assert batch.leaf[1] == (0, len(PROMPT))


def test_examples_of_one_token_and_of_no_learned_token_are_carried() -> None:
    given_ = [example([4], [1]), example([4, 5], [1, 0]), example([4, 5, 6], [0, 0, 1])]
    check(make_batch(given_), given_)


def test_a_branch_that_would_save_too_little_is_not_shared() -> None:
    given_ = [example([1, 2, 3, 4]), example([1, 2, 3, 5])]
    assert len(make_batch(given_).segments) == 2


def test_few_tokens_are_shared_where_many_examples_have_them() -> None:
    many = [example([1, 2, 3, *range(10 * i, 10 * i + 9)]) for i in range(1, 6)]
    assert len(make_batch(many).ids) == 3 + 5 * 9
    alike = [example([1, 2, *range(30, 40), 40 + i]) for i in range(2)]
    other = example([1, 2, 50, 51])
    assert len(make_batch([*alike, other]).segments) == 4, "two share twelve tokens, the third shares too few"


def test_the_tree_does_not_depend_on_the_order_of_the_examples() -> None:
    given_ = [example([*PROMPT, i % 3, i]) for i in range(6)]
    there, back = make_batch(given_), make_batch(given_[::-1])
    assert there.ids.tolist() == back.ids.tolist() and there.segments == back.segments
    assert there.leaf == back.leaf[::-1]


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [1], 1), ([1, 2, 3], [1, 9, 3], 1)]
)
def test_common_prefix(a: list[int], b: list[int], n: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == n


# -- micro-batches ----------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(given_=examples(), max_tokens=st.integers(1, 60), share=st.booleans(), room=st.integers(0, 9))
def test_micro_batches_hold_every_example_once_within_the_budget(
    given_: list[Encoded], max_tokens: int, share: bool, room: int
) -> None:
    groups = split_by_tokens(given_, max_tokens, share=share, room=room)
    assert Counter(id(e) for g in groups for e in g) == Counter(id(e) for e in given_)
    for group in groups:
        n_tokens = n_distinct(group) if share else sum(len(e.ids) for e in group)
        assert len(group) == 1 or n_tokens + room * len(group) <= max_tokens


@settings(max_examples=60)
@given(given_=examples(), max_tokens=st.integers(1, 60))
def test_a_packed_micro_batch_exceeds_its_budget_by_little(given_: list[Encoded], max_tokens: int) -> None:
    """A prefix that is too short to be shared is computed once more: less than MIN_SAVED_TOKENS an example."""
    for group in split_by_tokens(given_, max_tokens):
        slack = (batches.MIN_SAVED_TOKENS - 1) * (len(group) - 1)
        assert len(group) == 1 or make_batch(group).ids.numel() <= max_tokens + slack


def test_micro_batches_do_not_depend_on_the_order_of_the_examples() -> None:
    given_ = [example([i % 4, i, 7, 8], name=str(i)) for i in range(9)]
    assert split_by_tokens(given_, 12) == split_by_tokens(given_[::-1], 12)


def test_no_examples_make_no_micro_batch() -> None:
    assert split_by_tokens([], 10) == []
