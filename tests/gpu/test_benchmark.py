"""The GPU's benchmark runs, in small and on the CPU: what it measures there means nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_it_runs_and_writes_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    given = ["--device", "cpu", "--quick", "--rounds", "1", "--methods", "lora", "--out", str(out)]
    run = subprocess.run([sys.executable, str(BENCHMARK), *given], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    tables = [part.splitlines() for part in out.read_text().split("\n\n")[1:]]
    assert [len(rows) - 2 for rows in tables] == [1, 4, 6]
    assert all(row.count("|") == rows[0].count("|") for rows in tables for row in rows)
    assert run.stdout == out.read_text()
