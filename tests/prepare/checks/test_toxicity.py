"""Offensive language: what is found, where, and what the page says is missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.prepare.checks.toxicity import toxicity

from .looking import looked_at, places

RUDE = "You are a fucking idiot."


def test_a_rude_sentence_is_found_on_either_side_within_a_long_text() -> None:
    pytest.importorskip("profanity_check")
    long = "The parcel left our house on Monday. " * 40
    rows = [("Where is my parcel?", long), (f"{long}{RUDE} {long}", "On its way."), ("Where?", RUDE)]
    found = toxicity(looked_at(rows))
    assert places(found) == {1, 2}
    assert "what is asked" in found.suspects[0].why and "what is answered" in found.suspects[1].why
    assert [r[:4] for r in found.tables[0].rows] == [("asked", 1, 0.3333, 1), ("answered", 1, 0.3333, 1)]
    assert not toxicity(looked_at([("a", RUDE)], labelled=True)).suspects


def test_real_requests_that_people_marked_as_offensive(data_dir: Path) -> None:
    pytest.importorskip("profanity_check")
    path = data_dir / "bitext_intents" / "train.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    marked = {i for i, row in enumerate(rows) if "W" in row["tags"]}
    found = places(toxicity(looked_at([(row["text"], row["intent"]) for row in rows], labelled=True)))
    assert len(found & marked) / len(found) > 0.97 and 0.4 < len(found & marked) / len(marked) < 0.6
