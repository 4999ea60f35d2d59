"""What the starter's README says of its data: checked here, so that the demo's figures mean what they seem to mean."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import product
from typing import Any

import pytest

from luthier.metric import Sample
from luthier.starter import shop_metrics

Row = dict[str, Any]


@pytest.fixture(scope="module")
def shop() -> list[Row]:
    lines = files("luthier.starter").joinpath("shop.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def question(row: Row) -> str:
    return plain(row["messages"][1]["content"])


def answer(row: Row) -> str:
    return plain(row["messages"][2]["content"])


def test_every_fact_is_asked_in_many_wordings_one_of_them_held_out_for_each_side(shop: list[Row]) -> None:
    sides: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in shop:
        if row["kind"] == "fact":
            sides[row["fact"]][row["split"]] += 1
    assert len(sides) == 80
    assert all(found == {"train": 6, "validation": 1, "test": 1} for found in sides.values())
    assert len({question(row) for row in shop}) == len(shop)


def test_the_readme_counts_the_rows(shop: list[Row]) -> None:
    readme = files("luthier.starter").joinpath("README.md").read_text(encoding="utf-8")
    counts = Counter((row["kind"], row["split"]) for row in shop)
    for kind in ("fact", "handover", "unseen_fact", "small_talk"):
        row = " | ".join(str(counts[kind, side]) for side in ("train", "validation", "test"))
        assert f"| {kind} | {row} |" in readme


def test_only_the_right_answer_holds_the_required_strings(shop: list[Row]) -> None:
    required = {row["fact"]: [plain(s) for s in row["must_contain"]] for row in shop if row["kind"] == "fact"}
    for row, (fact, strings) in product(shop, required.items()):
        if row["fact"] == fact and row["kind"] == "fact":
            assert all(s in answer(row) for s in strings), row
            assert not any(s in question(row) for s in strings), "style alone must not pass"
        else:
            assert not all(s in answer(row) for s in strings), (fact, row)


def test_facts_never_trained_have_a_subject_of_their_own_and_are_handed_over(shop: list[Row]) -> None:
    trained = {row["fact"] for row in shop if row["split"] != "test"}
    unseen = [row for row in shop if row["kind"] == "unseen_fact"]
    assert len(unseen) == 48 and all(row["split"] == "test" and row["fact"] not in trained for row in unseen)
    for row in shop:
        assert ("colleague" in answer(row)) == (row["kind"] in ("handover", "unseen_fact")), row


def test_the_reference_answers_are_right_by_the_shop_s_own_metrics(shop: list[Row]) -> None:
    for i, row in enumerate(shop):
        reference = row["messages"][2]["content"]
        sample = Sample(
            id=str(i), cluster="", prompt="?", reference=reference, answer=reference,
            nats=1.0, n_tokens=1, n_bytes=1, tags=row,
        )  # fmt: skip
        assert shop_metrics.fact_recall(sample) in (True, None) and shop_metrics.right_handover(sample)
