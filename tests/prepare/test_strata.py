"""Stratified sides and folds: classes keep their shares, families stay whole, and every row is tested once."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.conversation import SIDES, Conversation, Message, make_conversation, read_conversations
from luthier.errors import DataError
from luthier.prepare.split import split
from luthier.prepare.table import Rows
from luthier.settings import Split

from .lines import DATA, chat, run

FAMILIES = st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abcde")), min_size=8, max_size=60)
"""Rows and class of each."""


def row(name: str, label: str, family: str, **tags: str) -> Conversation:
    turns = [Message(role="user", content=f"{name} asks for {name}"), Message(role="assistant", content=label)]
    return make_conversation(turns, name, tags, family)


def rows_of(families: list[tuple[int, str]]) -> list[Conversation]:
    return [row(f"n{f}x{i}", label, f"f{f}", kind=label) for f, (n, label) in enumerate(families) for i in range(n)]


def sides_of(rows: list[Conversation], how: Split, seed: int = 0) -> dict[str, str]:
    table = Rows.of(rows)
    split(table, table.numbers, how, seed)
    return {c.source: SIDES[int(side)] for c, side in zip(rows, table.side, strict=True)}


@settings(max_examples=150, deadline=None)
@given(families=FAMILIES, seed=st.integers(0, 3), by=st.sampled_from(["label", "kind"]), shuffle=st.randoms())
def test_each_class_has_its_share_of_a_side_to_within_one_family(
    families: list[tuple[int, str]], seed: int, by: str, shuffle: random.Random
) -> None:
    how = Split(valid_fraction=0.1, test_fraction=0.3, stratify=by)
    rows = rows_of(families)
    try:
        sides = sides_of(rows, how, seed)
    except DataError as error:
        assert error.problems[0].code == "LU-D106"
        return
    of_family = defaultdict(set)
    for c in rows:
        of_family[c.family].add(sides[c.source])
    assert all(len(found) == 1 for found in of_family.values())
    held = Counter((c.answer, sides[c.source]) for c in rows)
    for label in {label for _, label in families}:
        sizes = [n for n, one in families if one == label]
        for side, fraction in (("validation", 0.1), ("test", 0.3)):
            assert abs(held[label, side] - fraction * sum(sizes)) <= max(sizes) + 1e-9
        assert held[label, "train"], "what is not learned cannot be asked"
        assert len(sizes) > 1 or held[label, "train"] == sizes[0]
    shuffle.shuffle(rows)
    assert sides_of(rows, how, seed) == sides


def test_sides_of_many_small_classes_have_their_size() -> None:
    """By itself each class of five would give the test side one row of five, or none."""
    rows = rows_of([(1, f"class {n % 100}") for n in range(500)])
    sides = Counter(sides_of(rows, Split(stratify="label")).values())
    assert abs(sides["test"] - 50) <= 1 and abs(sides["validation"] - 25) <= 1


def test_a_family_of_several_classes_counts_for_each() -> None:
    rows = [row(f"n{f}x{i}", "ab"[i], f"f{f}") for f in range(100) for i in range(2)]
    rows += [row(f"m{f}", "b", f"m{f}") for f in range(100)]
    sides = sides_of(rows, Split(valid_fraction=0.0, test_fraction=0.2, stratify="label"))
    tested = Counter(c.answer for c in rows if sides[c.source] == "test")
    assert abs(tested["a"] - 20) <= 1 and abs(tested["b"] - 40) <= 2


@settings(max_examples=100, deadline=None)
@given(
    families=FAMILIES,
    seed=st.integers(0, 3),
    k=st.integers(2, 6),
    by=st.sampled_from([None, "label"]),
    shuffle=st.randoms(),
)
def test_the_test_sides_of_the_folds_part_the_rows(
    families: list[tuple[int, str]], seed: int, k: int, by: str | None, shuffle: random.Random
) -> None:
    rows = rows_of(families)
    folds = []
    for fold in range(k):
        how = Split(valid_fraction=0.1, folds=k, fold=fold, stratify=by)
        try:
            folds.append(sides_of(rows, how, seed))
        except DataError as error:  # the rest is too little for a validation side
            assert error.problems[0].code == "LU-D106"
            return
        shuffled = shuffle.sample(rows, len(rows))
        assert sides_of(shuffled, how, seed) == folds[-1]
    tested = [{c.source for c in rows if sides[c.source] == "test"} for sides in folds]
    assert sorted(name for fold in tested for name in fold) == sorted(c.source for c in rows)
    largest = max(n for n, _ in families)
    assert all(tested) and max(map(len, tested)) - min(map(len, tested)) <= largest * (5 if by else 1)
    for sides in folds:
        assert set(sides.values()) == set(SIDES)
        assert all(len({sides[c.source] for c in rows if c.family == f"f{n}"}) == 1 for n in range(len(families)))
    for label, fold in product({label for _, label in families} if by else (), tested):
        sizes = [n for n, one in families if one == label]
        assert abs(sum(c.answer == label for c in rows if c.source in fold) - sum(sizes) / k) <= max(sizes)


def test_a_large_family_of_one_class_moves_no_other_class() -> None:
    rows = rows_of([(4, "a"), *[(1, "b")] * 20])
    sides = sides_of(rows, Split(folds=2, fold=0, stratify="label"))
    assert Counter(c.answer for c in rows if sides[c.source] == "test")["b"] == 10


def test_existing_splits_stay_what_they_were() -> None:
    """Drawn before there were strata."""
    rows = [row(f"n{i}", f"class {i % 7}", f"f{i // 3}") for i in range(300)]
    drawn = "".join(sides_of(rows, Split(), 3)[c.source][1] for c in rows)
    assert (drawn.count("a"), drawn.count("e")) == (15, 30)
    assert hashlib.sha256(drawn.encode()).hexdigest()[:12] == "9434f78fe857"


def test_what_was_drawn_is_said(tmp_path: Path) -> None:
    lines = [chat(f"How much is item {i} of {i * i}?", "It is dear.", kind="ab"[i % 2]) for i in range(100)]
    lines += [chat("What is it for?", "It is for tea.", kind="rare")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    done = run(tmp_path, sources=[{"path": "data.jsonl"}], split={"stratify": "kind"})
    said = "\n".join(done.report.notes)
    assert "stratified by kind: 3 classes; of a side and of all rows the shares of a class differ by at most" in said
    assert "classes of a single group, for training alone: rare" in said
    done = run(tmp_path, sources=[{"path": "data.jsonl"}], split={"folds": 4, "fold": 3})
    assert "fold 3 of 4, counted from 0, is the test side" in done.report.notes
    assert len(done.side("test")) in (25, 26)
    with pytest.raises(DataError, match=r"LU-D102 data\.split\.stratify: no column is called 'label'"):
        run(tmp_path, sources=[{"path": "data.jsonl"}], split={"stratify": "label"})


def test_classes_of_one_row_each_cannot_be_divided() -> None:
    rows = rows_of([(1, f"class {n}") for n in range(50)])
    with pytest.raises(DataError, match="nothing is left for validation and test of 50 rows"):
        sides_of(rows, Split(stratify="label"))


def test_folds_and_given_test_rows_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(chat(f"item {i} of {i * i}?", "Yes.") for i in range(30)))
    (tmp_path / "test.jsonl").write_text(chat("Is it?", "No."))
    with pytest.raises(DataError, match=r"LU-D106 data\.split\.folds: 1 rows are given to the test side"):
        run(
            tmp_path,
            sources=[{"path": "data.jsonl"}, {"path": "test.jsonl", "split": "test"}],
            split={"folds": 3, "fold": 0},
        )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"folds": 5}, "set both"),
        ({"fold": 0}, "set both"),
        ({"folds": 5, "fold": 5}, "counted from 0 to 4"),
        ({"folds": 2, "fold": 1, "valid_fraction": 0.5}, "valid_fraction and folds leave nothing"),
        ({"folds": 5, "fold": 1, "by": "given"}, "folds says each row's side, and so does by: given"),
        ({"time": "day", "by": "given"}, "time says each row's side, and so does by: given"),
        ({"time": "day", "stratify": "label"}, "time says each row's side, and so does stratify"),
        ({"time": "day", "folds": 5, "fold": 1}, "time says each row's side, and so does folds"),
    ],
)
def test_what_does_not_fit_together_is_said_when_the_recipe_loads(how: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Split.model_validate(how)


def test_real_intents(tmp_path: Path) -> None:
    """banking77 has 35 to 187 rows an intent."""
    if not (DATA / "banking77").is_dir():
        pytest.skip("needs LUTHIER_DATA")
    source = {"path": str(DATA / "banking77" / "train.jsonl"), "split": None}
    lines = (DATA / "banking77" / "train.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join(lines[::2]))
    source["path"] = "data.jsonl"
    worst = {}
    for by in (None, "label"):
        out = run(tmp_path, sources=[source], split={"stratify": by}).out
        sides = {side: Counter(c.answer for c in read_conversations(out / f"{side}.jsonl")) for side in SIDES}
        whole = sum(sides.values(), Counter())
        share = {label: n / whole.total() for label, n in whole.items()}
        worst[by] = max(abs(sides["test"][label] / sides["test"].total() - share[label]) for label in whole)
    assert worst["label"] < 0.004 < worst[None]
