"""The split: nothing that belongs together is parted, whatever the rows and their order."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.conversation import SIDES, Message, make_conversation
from luthier.encoded import packed
from luthier.errors import DataError
from luthier.prepare.rows import Item
from luthier.prepare.split import limit, split
from luthier.prepare.table import Rows
from luthier.settings import Split
from luthier.similar import Groups, SimilarTexts, join_equal, join_similar, shingles

WORDS = ["red", "green", "kettle", "pot", "where", "is", "my", "order", "please", "thanks"]
PROMPTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
ROWS = st.lists(st.tuples(PROMPTS, st.integers(0, 30)), min_size=8, max_size=60)


def item(prompt: str, family: int, side: str | None = None, n: int = 0) -> Item:
    turns = [Message(role="user", content=prompt), Message(role="assistant", content=f"answer {n}")]
    return Item(make_conversation(turns, f"data.jsonl:{n}", family=f"family-{family}"), side, packed([7], [True]))  # type: ignore[arg-type]


def table(items: list[Item]) -> Rows:
    rows = Rows()
    for one in items:
        rows.append(*one)
    return rows


def test_a_row_takes_66_bytes_however_long_it_is() -> None:
    rows = table([item("where is it? " * n, n, n=n) for n in range(1, 200)])
    held = (rows._ends, rows._side, rows._tokens, rows._flags, rows._hashes)
    assert sum(one.itemsize * len(one) for one in held) == 66 * len(rows)


def alike(a: str, b: str, similarity: float) -> bool:
    x, y = set(shingles(a)), set(shingles(b))
    return len(x & y) >= similarity * len(x | y) - 1e-9


def sides_of(items: list[Item], how: Split, seed: int) -> dict[str, str | None]:
    rows = table(items)
    split(rows, rows.numbers, how, seed)
    return {rows[i].source: None if (side := rows.side[i]) < 0 else SIDES[side] for i in range(len(rows))}


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 5), similarity=st.sampled_from([0.5, 0.8, 1.0]), shuffle=st.randoms())
def test_nothing_alike_is_parted_and_the_order_does_not_matter(
    rows: list[tuple[str, int]], seed: int, similarity: float, shuffle: random.Random
) -> None:
    how = Split(valid_fraction=0.1, test_fraction=0.2, near_duplicate_similarity=similarity)
    items = [item(prompt, family, n=n) for n, (prompt, family) in enumerate(rows)]
    try:
        sides = sides_of(items, how, seed)
    except DataError as error:
        assert error.problems[0].code == "LU-D106"
        return
    assert set(sides.values()) == {"train", "validation", "test"}
    for a, b in combinations(items, 2):
        x, y = a.conversation, b.conversation
        if x.family == y.family or alike(x.prompt_text, y.prompt_text, similarity):
            assert sides[x.source] == sides[y.source]
    shuffle.shuffle(items)
    assert sides_of(items, how, seed) == sides


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(PROMPTS, max_size=40), similarity=st.floats(0.1, 1.0))
def test_similar_texts_are_exactly_those_of_brute_force(texts: list[str], similarity: float) -> None:
    index = SimilarTexts(similarity, texts)
    found = set()
    for i in range(len(texts)):
        found |= {(j, i) for j in index.matches(i)}
        index.add(i)
    assert found == {(i, j) for i, j in combinations(range(len(texts)), 2) if alike(texts[i], texts[j], similarity)}


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(PROMPTS, max_size=40), similarity=st.sampled_from([0.3, 0.5, 0.8]))
def test_groups_are_the_connected_components(texts: list[str], similarity: float) -> None:
    fast, slow = Groups(len(texts)), Groups(len(texts))
    first = join_equal(fast, np.array([hash(text) & 0xFFFF_FFFF for text in texts], dtype=np.uint64)).tolist()
    join_similar(fast, [texts[i] for i in first], first, similarity)
    for i, j in combinations(range(len(texts)), 2):
        if texts[i] == texts[j] or alike(texts[i], texts[j], similarity):
            slow.join(i, j)
    assert [fast.root(i) for i in range(len(texts))] == [slow.root(i) for i in range(len(texts))]


def test_fractions_are_kept_where_groups_are_small() -> None:
    items = [item(f"item {i} is {i * 7} of {i * 13}", i, n=i) for i in range(1000)]
    sides = list(sides_of(items, Split(valid_fraction=0.05, test_fraction=0.10), seed=3).values())
    assert (sides.count("validation"), sides.count("test")) == (50, 100)


def test_another_seed_draws_other_rows() -> None:
    items = [item(f"item {i} is {i * 7} of {i * 13}", i, n=i) for i in range(100)]
    assert sides_of(items, Split(), 0) != sides_of(items, Split(), 1)


def test_thousands_of_like_prompts_are_one_group_and_take_no_time() -> None:
    text = (
        "please cancel my order number {} as soon as you can since "
        + "i do not want to wait any longer and would rather buy it in town on my way home"
    )
    items = [item(text.format(i), i, n=i) for i in range(3000)]
    with pytest.raises(DataError, match="make 1 groups of unlike prompts"):
        sides_of(items, Split(), 0)


def test_given_sides_stay_and_validation_is_carved_out_of_train() -> None:
    items = [item(f"item {i} is {i * 7}", i, "test" if i % 5 == 0 else "train", i) for i in range(100)]
    sides = sides_of(items, Split(by="given", valid_fraction=0.1), 0)
    assert all(sides[f"data.jsonl:{i}"] == "test" for i in range(0, 100, 5))
    assert list(sides.values()).count("validation") == 8  # a tenth of the 80 training rows


def test_only_held_out_rows() -> None:
    with pytest.raises(DataError, match=r"LU-D106 data\.sources"):
        sides_of([item("a b c", 1, "test")], Split(), 0)


def test_the_limit_is_drawn_by_seed_whatever_the_order() -> None:
    items = [item(f"item {i}", i, "train" if i % 3 else "test", i) for i in range(90)]

    def drawn(these: list[Item], seed: int) -> set[str]:
        rows = table(these)
        return {c.source for c in rows.each(limit(rows, rows.numbers, 20, seed)[0])}

    assert drawn(items, 1) == drawn(items[::-1], 1) != drawn(items, 2)
    rows = table(items)
    kept, dropped = limit(rows, rows.numbers, 20, 1)
    assert len(rows.on("test", kept)) == 20 and len(kept) == 40 and dropped.total() == 50
