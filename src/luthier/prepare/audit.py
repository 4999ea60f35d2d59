"""The audit: what was read, rejected, dropped and noticed. Nothing vanishes uncounted.

Rejected rows go to `rejects.jsonl` as they are met, with their raw text; findings are counted by code and
the first few of each are kept. This module judges nothing but whether too many rows were rejected.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from luthier.errors import DataError, Problem, printable
from luthier.prepare.rows import Fault, Row
from luthier.records import Finding, Severity, Step
from luthier.settings import Data

T = TypeVar("T")
KEPT_OF_EACH = 5
SHOWN = 10


class Hiding(Protocol):
    """What keeps personal data out of what is written here."""

    def finding(self, text: str) -> str: ...
    def row(self, row: Row) -> str | None: ...


class Audit:
    """Collects while the rows flow by."""

    def __init__(self, rejects: TextIO, hiding: Hiding) -> None:
        self._rejects, self._hiding = rejects, hiding
        self.counts: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._first_rejects: list[Problem] = []
        self._rejected: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """For the process that adds it up: what was noticed, and not the file it was written to."""
        return {name: value for name, value in vars(self).items() if name not in ("_rejects", "_hiding")}

    def add(self, part: Audit, rejects: TextIO) -> None:
        """Add what was noticed in the rows that follow, and what was written to `rejects` of them."""
        for finding in part.findings:
            self.counts[finding.code] += 1
            if self.counts[finding.code] <= KEPT_OF_EACH:
                self.findings.append(finding)
        kept = Counter(finding.code for finding in part.findings)
        self.counts += part.counts - kept
        self._rejected += part._rejected
        self._first_rejects += part._first_rejects[: SHOWN - len(self._first_rejects)]
        shutil.copyfileobj(rejects, self._rejects)

    def find(self, code: str, severity: Severity, where: str, found: str, advice: str = "") -> None:
        """Count one finding, and keep it, made printable, if it is among the first of its code."""
        self.counts[code] += 1
        if self.counts[code] <= KEPT_OF_EACH:
            where, found, advice = self._shown(where, found, advice)
            self.findings.append(Finding(code=code, severity=severity, where=where, found=found, advice=advice))

    def _shown(self, where: str, found: str, advice: str) -> tuple[str, str, str]:
        """As they may be shown."""
        found, advice = self._hiding.finding(found), self._hiding.finding(advice)
        return printable(self._place(where), 400), printable(found, 400), printable(advice, 400)

    def _place(self, where: str) -> str:
        """A file's name and the line stay as they are; `:messages[0].name` may hold anything that a row holds."""
        file, line, field = re.match(r"(.*?)(:\d+|$)(.*)", where, re.DOTALL).groups()  # type: ignore[union-attr]
        parts = re.split(r"(^:|\]\.)", field)
        return file + line + "".join(part if i % 2 else self._hiding.finding(part) for i, part in enumerate(parts))

    def warn(self, code: str, where: str, found: str, advice: str = "") -> None:
        self.find(code, "warning", where, found, advice)

    def warn_each(self, code: str, found: Sequence[T], tell: Callable[[T], tuple[str, str, str]]) -> None:
        """Count all that was found, and `tell` the place, what was found and the advice of those that are kept."""
        kept = found[: max(KEPT_OF_EACH - self.counts[code], 0)]
        for one in kept:
            self.warn(code, *tell(one))
        self.counts[code] += len(found) - len(kept)
        self.counts = +self.counts

    def reject(self, row: Row, fault: Fault) -> None:
        """Put the row into quarantine: into the rejects, with everything it held."""
        where = f"{row.where}:{fault.field}" if fault.field else row.where
        self.find(fault.code, "row", where, fault.found, fault.advice)
        self._rejected[fault.code] += 1
        if len(self._first_rejects) < SHOWN:
            self._first_rejects.append(Problem(fault.code, *self._shown(where, fault.found, fault.advice)))
        entry = {
            "code": fault.code,
            "where": self._place(where),
            "found": self._hiding.finding(fault.found),
            "raw": self._hiding.row(row),
        }
        self._rejects.write(json.dumps(entry) + "\n")  # ASCII: escaped bytes stay what they are

    def step(
        self,
        name: str,
        n_in: int,
        n_out: int,
        dropped: Mapping[str, int] | None = None,
        made: Mapping[str, int] | None = None,
    ) -> None:
        dropped, made = +Counter(dropped or {}), +Counter(made or {})
        counted = n_in - dropped.total() + made.total()
        assert n_out == counted, f"step {name}: {n_in} in, {n_out} out, dropped {dropped}, made {made}"
        assert not self.steps or self.steps[-1].n_out == n_in, f"step {name} takes in what {self.steps[-1].name} gave"
        counts = {"dropped": dict(sorted(dropped.items())), "made": dict(sorted(made.items()))}
        self.steps.append(Step(name=name, n_in=n_in, n_out=n_out, **counts))

    def check_rejected(self, n_read: int, data: Data) -> None:
        """Raise DataError LU-D110 (more rows rejected than `data` allows), LU-D015 (all), LU-D048 (all: nothing to
        learn)."""
        n = self._rejected.total()
        if n == 0:
            return
        strict, at_most = data.bad_rows == "strict", data.max_rejected_fraction
        found = f"{n} of {n_read} rows are rejected ({n / n_read:.2%})"
        kept = "in prepare/rejects.jsonl of a run"
        if n < n_read and not strict and n <= at_most * n_read:
            self.notes.append(f"{found}; each is {kept}, with the reason")
            return
        found += ": " + ", ".join(f"{code} {count} times" for code, count in self._rejected.most_common())
        first = f"the first {len(self._first_rejects)} follow, all are {kept}"
        if n < n_read:
            found += "; data.bad_rows is strict" if strict else f"; data.max_rejected_fraction is {at_most:g}"
            advice = f"mend the rows, or {'quarantine them' if strict else 'raise the fraction'}; {first}"
            raise DataError(Problem("LU-D110", "", found, advice), *self._first_rejects)
        code = "LU-D048" if self._rejected.most_common(1)[0][0] == "LU-D047" else "LU-D015"
        raise DataError(Problem(code, "", found, f"mend the rows; {first}"), *self._first_rejects)


@contextmanager
def open_audit(rejects: Path, hiding: Hiding) -> Iterator[Audit]:
    with rejects.open("w", encoding="utf-8", newline="\n") as out:
        yield Audit(out, hiding)
