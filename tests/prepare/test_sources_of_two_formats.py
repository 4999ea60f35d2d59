"""Chats to learn from and plain texts to replay, in one recipe: each source is read in its own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier import recipe as recipes
from luthier.conversation import read_conversations
from luthier.prepare import prepare

from .lines import OneByOne


def test_each_source_has_its_own_format(tmp_path: Path) -> None:
    chats: list[dict[str, Any]] = [
        {"prompt": f"Question {i} about {word}?", "completion": f"Answer {i}.", "split": side}
        for i, (word, side) in enumerate(zip("kettle lamp spade".split(), ("train", "validation", "test"), strict=True))
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats))
    (tmp_path / "texts.jsonl").write_text('{"text": "A text of its own.", "kind": "essay"}\n')
    texts = {"path": "texts.jsonl", "format": "text", "split": "train"}
    tree = {
        "name": "two",
        "data": {"sources": [{"path": "chats.jsonl"}, texts], "split": {"by": "given"}, "system": "Be brief."},
        "release": {"rules": [{"metric": "token_f1", "must": "beat_baseline"}]},
    }
    audit = prepare(recipes.validate(tree, "test", tmp_path), tmp_path, tmp_path / "out", OneByOne())
    assert (audit.task, audit.format, audit.sides) == (
        "answer",
        "prompt_completion",
        {"train": 2, "validation": 1, "test": 1},
    )
    roles = [[m.role for m in c.messages] for c in read_conversations(tmp_path / "out" / "train.jsonl")]
    assert sorted(roles) == [["system", "user", "assistant"], ["text"]]
