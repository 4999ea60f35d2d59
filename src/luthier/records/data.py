"""What became of the data."""

from __future__ import annotations

from typing import Literal

from luthier.records.record import Record

Severity = Literal["reject", "row", "warning"]
Task = Literal["classification", "answer", "dialogue", "text"]


class Finding(Record):
    """One thing that the audit found. `row` faults reject their row; `reject` stops the run."""

    code: str
    severity: Severity
    where: str
    """file:line:field"""
    found: str
    advice: str = ""


class Step(Record):
    """One step of preparation: what went in, what came out, why the rest did not, and what was added."""

    name: str
    n_in: int
    n_out: int
    dropped: dict[str, int] = {}
    """Reason -> count."""
    made: dict[str, int] = {}
    """Of what is new -> count; n_out is n_in less what was dropped and with what was made."""

    @property
    def changes(self) -> list[str]:
        """What it did, in words; nothing where it left all as it was."""
        dropped = [f"{n:,} {reason}" for reason, n in self.dropped.items()]
        return dropped + [f"{n:,} more: {what}" for what, n in self.made.items()]


class Cleaned(Record):
    """What one cleaner of the recipe changed. No sample shows personal data."""

    cleaner: str
    roles: tuple[str, ...]
    """Whose messages it cleans."""
    rows: int
    texts: int
    """Messages and, of a cleaner that hides, tags."""
    characters: tuple[int, int]
    """Of the changed texts, before and after."""
    counts: dict[str, int] = {}
    """What was changed, how often: the values of each kind, the spellings of each label."""
    samples: tuple[tuple[str, str], ...] = ()
    """Before and after, around the first change."""


class Rewritten(Record):
    """What a row said, and what an augmentation made of it."""

    source: str
    """file:line of the row."""
    before: str
    after: str


class Augmentation(Record):
    """What one method made of the training rows: `asked` = `made` + all that was dropped."""

    method: str
    parents: int
    """Training rows that were drawn."""
    asked: int
    """Candidates that were wanted of them."""
    made: int
    """New training rows."""
    dropped: dict[str, int] = {}
    """Reason -> count."""
    samples: tuple[Rewritten, ...] = ()
    tokens: dict[str, int] = {}
    """Read and written by a language model: "prompt", "reply"; kept replies count again."""
    notes: tuple[str, ...] = ()


class Histogram(Record):
    """How many rows of each side lie between two edges: one of n is in the bin with `edges[i] <= n < edges[i + 1]`."""

    name: str
    edges: tuple[int, ...]
    counts: dict[str, tuple[int, ...]]
    """Of each side, one less than there are edges."""


class FactTable(Record):
    """Numbers that a check counted, for people to read."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


class Checked(Record):
    """A check of the good rows, and what it found."""

    check: str
    rows: int
    suspects: int
    tables: tuple[FactTable, ...] = ()
    notes: tuple[str, ...] = ()


class WorthALook(Record):
    """A row that a person should look at."""

    source: str
    score: float
    """From 0 to 1, over all checks."""
    why: dict[str, str]
    """Check -> reason."""
    asked: str
    answer: str


class AuditReport(Record):
    """Nothing vanishes uncounted: every row read is in `steps`, every finding in `counts`."""

    task: Task
    labels: tuple[str, ...] = ()
    format: str
    fields: dict[str, str] = {}
    steps: tuple[Step, ...]
    sides: dict[str, int]
    """Conversations on each side of the split."""
    counts: dict[str, int] = {}
    """Finding code -> how often."""
    findings: tuple[Finding, ...] = ()
    """The first of each code; `counts` has the totals."""
    tokens: dict[str, float] = {}
    """n_tokens, n_learned, longest ... over the training side."""
    lengths: tuple[Histogram, ...] = ()
    """Of a row's tokens and of those that are learned; without rows that were made."""
    augmentation: tuple[Augmentation, ...] = ()
    """By method, in the recipe's order; what was made is on the training side."""
    hashes: dict[str, str] = {}
    """Source file -> SHA-256."""
    cleaning: tuple[Cleaned, ...] = ()
    """In the recipe's order."""
    checks: tuple[Checked, ...] = ()
    """In the recipe's order."""
    worth_a_look: tuple[WorthALook, ...] = ()
    """The rows that checks found most suspect, the worst first."""
    notes: tuple[str, ...] = ()
    """What a reader must know: limits that were applied, decisions that were derived."""
