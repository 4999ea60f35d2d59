"""Windows lose no token and learn each once; joined documents are all there; rows that are no documents stay whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.conversation import Message, Tokens, line_of, make_conversation
from luthier.documents import Examples, examples_of, n_windows, windows
from luthier.encode import Encoded
from luthier.encoded import EncodedRows, packed, read_side, write_side

Pair = tuple[int, int]
ROWS = st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.sampled_from([1.0, 0.5])), min_size=1, max_size=12)


class Numbered:
    """Encodes nothing: the rows are written as they are."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens

    def fingerprint(self) -> str:
        return "numbered"


def stored(folder: Path, rows: list[tuple[int, bool, float]], window: int | None) -> EncodedRows:
    """Rows of so many tokens, each with ids of its own, of which the first is not learned; documents or not."""
    pairs = []
    for i, (n, document, weight) in enumerate(rows):
        n = n if document or not window else min(n, window)
        given_ = None if document else Tokens(ids=(1,), learn=(True,))
        message = Message(role="text", content=f"row {i}")
        conversation = make_conversation([message], f"rows:{i}", tokens=given_).model_copy(update={"weight": weight})
        pairs.append((line_of(conversation), packed(range(100 * i, 100 * i + n), [False] + [True] * (n - 1))))
    write_side(folder, "train", pairs, Numbered(window))
    return read_side(folder, "train", Numbered(window))  # type: ignore[arg-type]


def learned(examples: Examples | list[Encoded]) -> Counter[Pair]:
    """(token before it, learned token), and how often it is learned."""
    found: Counter[Pair] = Counter()
    for e in examples:
        found.update((a, b) for a, b, learn in zip(e.ids, e.ids[1:], e.learn[1:], strict=False) if learn)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS, st.none() | st.integers(2, 20))
def test_by_itself_each_token_is_learned_once_after_the_one_before_it(
    tmp_path: Path, rows: list[tuple[int, bool, float]], window: int | None
) -> None:
    given_ = stored(tmp_path, rows, window)
    examples = examples_of(given_)
    assert learned(examples) == learned(list(given_))
    assert examples.lengths.tolist() == [len(e.ids) for e in examples]
    assert len({e.id for e in examples}) == len(examples)
    assert max(examples.lengths) <= (window or 40)
    flat = [window_ for row in given_ for window_ in windows(row, window)]
    assert list(examples) == flat, "as documents are scored"
    if window:
        assert n_windows(given_.lengths, window).sum() == len(examples)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS, st.integers(2, 20), st.integers(0, 3))
def test_joined_every_document_is_there_whole_and_windows_are_full(
    tmp_path: Path, rows: list[tuple[int, bool, float]], window: int, seed: int
) -> None:
    given_ = stored(tmp_path, rows, window)
    examples = examples_of(given_, joined=True, seed=seed)
    weights = examples.weights if examples.weights is not None else [1.0] * len(examples)
    assert examples.lengths.tolist() == [len(e.ids) for e in examples]
    assert len({e.id for e in examples}) == len(examples)
    for weight in (1.0, 0.5):
        mine = [e for e, w in zip(examples, weights, strict=True) if w == weight]
        members = [e for e, (_, _, w) in zip(given_, rows, strict=True) if w == weight]
        documents = [e for e, (_, is_one, w) in zip(given_, rows, strict=True) if is_one and w == weight]
        cut = [e for e in mine if "@" in e.id]
        assert [e for e in mine if "@" not in e.id] == [e for e in members if e not in documents]
        assert not learned(members) - learned(mine), "no learned token is lost"
        assert [len(e.ids) for e in cut[:-1]] == [window] * (len(cut) - 1)
        stream = [id_ for k, e in enumerate(cut) for id_ in (e.ids[1:] if k else e.ids)]
        assert sorted(stream) == sorted(id_ for e in documents for id_ in e.ids)


def test_joined_documents_see_those_before_them_and_their_order_is_drawn_by_seed(tmp_path: Path) -> None:
    given_ = stored(tmp_path, [(6, True, 1.0)] * 8, 24)
    orders = set()
    for seed in (0, 0, 1):
        first = examples_of(given_, joined=True, seed=seed)[0]
        assert len(first.ids) == 24 and len({id_ // 100 for id_ in first.ids}) == 4
        orders.add(tuple(first.ids))
    assert len(orders) == 2


def test_a_window_says_where_it_is_from(tmp_path: Path) -> None:
    given_ = stored(tmp_path, [(3, True, 1.0), (9, True, 1.0)], 5)
    apart = examples_of(given_)
    assert [e.source for e in apart] == ["rows:0", "rows:1", "rows:1"]
    assert apart[1].id == given_[1].id and apart[2].id == f"{given_[1].id} #2"
    joined = {e.source for e in examples_of(given_, joined=True)}
    assert any(" to " in source for source in joined)


def test_without_a_limit_nothing_is_cut_or_joined(tmp_path: Path) -> None:
    given_ = stored(tmp_path, [(3, True, 1.0), (9, True, 1.0)], None)
    assert list(examples_of(given_, joined=True)) == list(given_)


def test_examples_are_a_sequence(tmp_path: Path) -> None:
    examples = examples_of(stored(tmp_path, [(9, True, 1.0)] * 3, 5))
    assert examples[-1] == list(examples)[-1] and examples[1:3] == list(examples)[1:3]
    with pytest.raises(IndexError):
        examples[len(examples)]
