"""What cost something and is kept for later: answers, replies, readings. What is damaged is not there.

Rows are lines of JSON, each with a hash of itself, appended as they arrive: a line that has changed, or that a kill has
left half there, is dropped, and what it said is asked for again. A whole result is one file, begun by its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.files import write_atomically

SEAL = "sha256"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, made of what JSON has. One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.writelines(_line(row) for row in rows)


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows, none if there is no file; the others are taken out of it."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found = [row for line in lines if (row := _row(line)) is not None]
    if len(found) < len(lines):
        write_atomically(path, b"".join(map(_line, found)))
    return found


def write(path: Path, content: bytes) -> None:
    """A whole result, atomically."""
    write_atomically(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def read(path: Path) -> bytes | None:
    """A whole result; None if there is none, or not as it was written."""
    with suppress(OSError):
        seal, _, content = path.read_bytes().partition(b"\n")
        if seal.decode("ascii", "replace") == hashlib.sha256(content).hexdigest():
            return content
    return None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps({**row, SEAL: _seal(row)}).encode() + b"\n"


def _row(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, TypeError, LookupError, AttributeError):
        row: dict[str, Any] = json.loads(line)
        if line.endswith(b"\n") and row.pop(SEAL) == _seal(row):
            return row
    return None


def _seal(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
