"""The audit: what was read, rejected, dropped and noticed. Nothing vanishes uncounted.

Rejected rows go to `rejects.jsonl` as they are met, with their raw text; findings are counted by code and
the first few of each are kept. This module judges nothing but the fraction of rejected rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from luthier.errors import DataError, Problem, printable
from luthier.prepare.rows import Fault, Row
from luthier.records import Finding, Severity, Step

KEPT_OF_EACH = 5
SHOWN = 10


class Audit:
    """Collects while the rows flow by."""

    def __init__(self, rejects: TextIO) -> None:
        self._rejects = rejects
        self.counts: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._first_rejects: list[Problem] = []
        self._rejected: Counter[str] = Counter()

    def find(self, code: str, severity: Severity, where: str, found: str, advice: str = "") -> None:
        """Count one finding, and keep it, made printable, if it is among the first of its code."""
        self.counts[code] += 1
        where, found, advice = printable(where, 400), printable(found, 400), printable(advice, 400)
        if self.counts[code] <= KEPT_OF_EACH:
            self.findings.append(Finding(code=code, severity=severity, where=where, found=found, advice=advice))

    def warn(self, code: str, where: str, found: str, advice: str = "") -> None:
        self.find(code, "warning", where, found, advice)

    def reject(self, row: Row, fault: Fault) -> None:
        """Put the row into quarantine: into the rejects, with everything it held."""
        where = f"{row.where}:{fault.field}" if fault.field else row.where
        self.find(fault.code, "row", where, fault.found, fault.advice)
        self._rejected[fault.code] += 1
        if len(self._first_rejects) < SHOWN:
            self._first_rejects.append(
                Problem(fault.code, *(printable(t, 400) for t in (where, fault.found, fault.advice)))
            )
        entry = {"code": fault.code, "where": where, "found": fault.found, "raw": row.kept_raw()}
        self._rejects.write(json.dumps(entry) + "\n")  # ASCII: escaped bytes stay what they are

    def step(self, name: str, n_in: int, n_out: int, dropped: Counter[str] | None = None, added: int = 0) -> None:
        dropped = +(dropped or Counter())
        assert n_in + added - n_out == dropped.total(), f"step {name}: {n_in} in, {n_out} out, dropped {dropped}"
        assert not self.steps or self.steps[-1].n_out == n_in, f"step {name} takes in what {self.steps[-1].name} gave"
        self.steps.append(Step(name=name, n_in=n_in, n_out=n_out, dropped=dict(sorted(dropped.items()))))

    def check_rejected(self, n_read: int, allowed: float) -> None:
        """Raise DataError LU-D110 (too many rows rejected), LU-D015 (all), LU-D048 (all: nothing to learn)."""
        n = self._rejected.total()
        if n <= allowed * n_read and n < n_read:
            return
        by_code = ", ".join(f"{code} {count} times" for code, count in self._rejected.most_common())
        found = f"{n} of {n_read} rows are rejected ({n / n_read:.2%}): {by_code}"
        first = f"the first {len(self._first_rejects)} follow"
        if n < n_read:
            found += f"; data.max_rejected_fraction is {allowed:g}"
            raise DataError(
                Problem("LU-D110", "", found, f"mend the rows, or raise the fraction; {first}"), *self._first_rejects
            )
        code = "LU-D048" if self._rejected.most_common(1)[0][0] == "LU-D047" else "LU-D015"
        raise DataError(Problem(code, "", found, f"mend the rows; {first}"), *self._first_rejects)


@contextmanager
def open_audit(rejects: Path) -> Iterator[Audit]:
    with rejects.open("w", encoding="utf-8", newline="\n") as out:
        yield Audit(out)
