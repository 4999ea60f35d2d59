"""A way to prepare a few lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .lines import GOOD, Prepared, run


@pytest.fixture
def prepare_lines(tmp_path: Path) -> Callable[..., Prepared]:
    """Prepare `data.jsonl` of these lines (text or bytes), good rows first."""

    def prepare_these(*lines: str | bytes, good: list[str] = GOOD, **settings: Any) -> Prepared:
        content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in [*good, *lines])
        (tmp_path / "data.jsonl").write_bytes(content + b"\n")
        return run(tmp_path, sources=[{"path": "data.jsonl"}], **settings)

    return prepare_these
