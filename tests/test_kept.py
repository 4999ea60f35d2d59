"""What is kept for later is there as it was written, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier import kept

ROWS = [{"key": "a", "said": ["Tea é.", True], "nats": 0.1}, {"key": "b", "said": [1, 2, 3]}, {"key": "c", "said": ""}]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kept.jsonl"
    assert kept.rows(path) == []
    kept.append(path, ROWS[:1])
    kept.append(path, ROWS[1:])
    assert kept.rows(path) == ROWS


def test_of_a_row_that_any_bit_changed_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    kept.append(path, ROWS)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = kept.rows(path)
        at = sum(len(line) <= bit // 8 for line in [lines[0], lines[0] + lines[1]])
        if found == ROWS:  # \u00E9 is \u00e9
            assert whole[bit // 8 : bit // 8 + 1].isalpha()
            continue
        assert all(row in ROWS for row in found) and ROWS[at] not in found, bit
        assert len(found) >= 1 and kept.rows(path) == found, bit
        assert len(path.read_bytes().splitlines()) == len(found)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_a_row_is_taken_away_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "kept.jsonl"
    kept.append(path, ROWS[:2])
    path.write_bytes(path.read_bytes()[:-cut])
    assert kept.rows(path) == ROWS[:1]
    kept.append(path, ROWS[2:])
    assert kept.rows(path) == [ROWS[0], ROWS[2]]


def test_a_whole_result_is_as_it_was_written_or_none(tmp_path: Path) -> None:
    path = tmp_path / "result"
    assert kept.read(path) is None
    content = b"line\nanother\n\x00\xff"
    kept.write(path, content)
    assert kept.read(path) == content
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert kept.read(path) is None, bit
    path.write_bytes(b"")
    assert kept.read(path) is None
