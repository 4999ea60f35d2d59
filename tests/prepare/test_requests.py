"""Requests of any shape are read; what cannot be is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.prepare.requests import read_requests

ASKED = ["Where is my parcel?", "Is the lid dishwasher-safe?"]


def write(folder: Path, name: str, *rows: object) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def chat(text: str, *answers: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}, *({"role": "assistant", "content": a} for a in answers)]}


@pytest.mark.parametrize(
    "shape",
    [
        lambda at: write(at, "log.txt", ASKED[0], "", "  " + ASKED[1]),
        lambda at: write(at, "log.jsonl", *({"prompt": text} for text in ASKED)),
        lambda at: write(at, "log.jsonl", *({"text": text, "channel": "mail"} for text in ASKED)),
        lambda at: write(at, "log.jsonl", *({"question": text, "answer": "It is."} for text in ASKED)),
        lambda at: write(at, "log.jsonl", chat(ASKED[0]), chat(ASKED[1], "It is.")),
        lambda at: write(at, "log.jsonl", *({"conversations": [{"from": "human", "value": text}]} for text in ASKED)),
        lambda at: write(at, "log.csv", "query,channel", *(f"{text},mail" for text in ASKED)),
    ],
    ids=["txt", "prompts", "texts", "pairs", "chats", "ShareGPT", "csv"],
)
def test_shapes(shape: object, tmp_path: Path) -> None:
    found, notes = read_requests(shape(tmp_path), tmp_path)  # type: ignore[operator]
    assert [c.asked_text for c in found] == ASKED and notes == []


def test_columns_are_tags_and_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": text, "channel": "mail"} for text in ASKED]
    found, notes = read_requests(write(tmp_path, "log.jsonl", *rows, "{not json", {"prompt": "  "}), tmp_path)
    assert [c.tags for c in found] == [{"channel": "mail"}] * 2
    assert notes[0].startswith("requests: 2 rows of log.jsonl were left out; the first is log.jsonl:3: not JSON")


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    write(tmp_path, "numbers.jsonl", {"a": 1, "b": 2})
    for name, code in (
        ("none.txt", "LU-D019"),
        ("latin.txt", "LU-D005"),
        (".", "LU-D019"),
        ("numbers.jsonl", "LU-D101"),
    ):
        with pytest.raises(DataError, match=code):
            read_requests(name, tmp_path)
