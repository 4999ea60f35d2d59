"""Generated inputs give no traceback, no hang and no uncounted change; `benchmarks/attack.py` tries thousands more."""

from __future__ import annotations

from pathlib import Path

from .attack.rounds import attack


def test_no_case_is_a_finding(tiny: Path, tmp_path: Path) -> None:
    judged = attack(0, 160, tiny, tmp_path / "cases")
    assert not [(path.name, one.kind, one.finding) for path, one in judged if one.finding]
    assert sum(not one.refused for _, one in judged) > len(judged) / 8, "too few cases get beyond a refusal"
