"""Records: what every stage leaves on disk. Frozen, JSON, each naming its parents and hashes.

A record knows nothing of how it came about; the rooms fill it in and `release/` reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import RunError
from luthier.files import write_atomically

Severity = Literal["reject", "row", "warning"]
Task = Literal["classification", "answer", "dialogue", "text"]
Stage = Literal["prepare", "advise", "augment", "train", "evaluate", "release"]
Outcome = Literal["PASS", "FAIL", "UNDERPOWERED"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def write(self, path: Path) -> None:
        """Atomically: a reader sees the old file or the new one."""
        write_atomically(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises RunError LU-U008 where the file is no such record of this version."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            advice = f"delete {path.parent} to do it anew"
            found = (
                "cannot be read" if isinstance(error, OSError) else "is no record that this version of Luthier reads"
            )
            raise RunError.of("LU-U008", str(path), found, advice) from None


class Artifact(Record):
    path: str
    """Relative to the stage's folder."""
    sha256: str
    n_bytes: int


class RunRecord(Record):
    """One finished stage of a run."""

    stage: Stage
    key: str
    """Hash of everything that went in; a stage with an equal key need not run again."""
    inputs: dict[str, Any]
    """What the key is a hash of: recipe sections, parents, data, plug-ins, versions."""
    parents: dict[str, str] = {}
    """Stage -> key."""
    status: Literal["done"] = "done"
    started: str
    finished: str
    """UTC, ISO 8601."""
    seconds: float
    device: str
    threads: int
    artifacts: tuple[Artifact, ...] = ()
    summary: dict[str, Any] = {}


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


class Comparison(Record):
    """One metric, tuned against baseline on the same samples.

    `delta`, `low` and `high` are signed so that more is better, whatever the metric's own direction.
    """

    metric: str
    higher_is_better: bool
    value: float
    baseline: float
    delta: float
    low: float
    high: float
    p: float
    """Two-sided, of no difference, from the procedure that gave the interval."""
    n: int
    n_clusters: int
    wins: int
    losses: int
    ties: int
    min_detectable: float
    """About the true gain that this many samples would show with 80 % power: a quick normal approximation from the
    spread of these very samples. `luthier plan` asks the gate itself."""
    value_low: float
    value_high: float
    baseline_low: float
    baseline_high: float
    trouble: str | None = None
    """Why the interval should not be relied on; None where its method is valid."""


class Judged(Record):
    """One sample beside its two answers."""

    id: str
    prompt: str
    reference: str
    baseline: str
    tuned: str
    tags: dict[str, Any] = {}
    scores: dict[str, tuple[float | None, float | None]] = {}
    """Metric -> (baseline, tuned), each alone."""
    cluster: str | None = None
    """Samples that share it are not independent; None: this one shares with none."""
    cut: tuple[bool, bool] = (False, False)
    """Whether the answer of (baseline, tuned) had not ended after the most tokens that it may have."""


class DiscoveredSlice(Record):
    """Samples on which the tuned model fares worse, found on one half of the clusters and confirmed on the other."""

    condition: str
    """In words: 'topic=returns and prompt of 40 words or more'."""
    kind: Literal["regression", "shortfall"]
    """Worse than the baseline here, or worse here than elsewhere."""
    comparison: Comparison
    """Tuned against baseline in the slice, on the confirming half."""
    rest: float
    """The tuned model's value outside the slice, on the confirming half."""
    gap: float
    gap_low: float
    gap_high: float
    """Slice minus rest of the tuned model, signed so that more is better."""
    p_adjusted: float
    """After Benjamini-Hochberg, over all conditions that were tested on the confirming half."""


class SuiteReport(Record):
    """What a suite of questions besides the test set was for; its results are in `EvalReport.metrics`."""

    name: str
    kind: Literal["retention", "bias", "robustness"]
    about: str
    """One line: what is asked, and what it can tell."""
    n: int
    metrics: tuple[str, ...]
    """Keys of `EvalReport.metrics`, `NAME_...`."""


class ReliabilityBin(Record):
    """Answers of about the same sureness: how sure the model was of them, and how often it was right."""

    low: float
    high: float
    n: int
    sureness: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


class Region(Record):
    """A kind of requests, and how much of it the test set holds."""

    by: str
    """What tells it apart: "length", "script", "topic" or "word", or "tag NAME"."""
    name: str
    """Its value: "de", "41 words or more", or a topic's commonest words."""
    requests: float
    """Share of the requests that are of this kind."""
    test: float
    """Share of the test rows."""
    n_test: int
    rows_lacking: int
    """Test rows to add before a right-or-wrong metric is known here to `CoverageReport.half_width`."""
    p: float
    """Two-sided, of equal shares, adjusted for all regions that were looked at."""


class CoverageReport(Record):
    """Whether the test set looks like the requests that the model really gets."""

    n_test: int
    n_requests: int
    p: float
    """Of no difference in any region: the least of the regions' p values."""
    half_width: float
    """Of a 95 % interval, in points of a share."""
    regions: tuple[Region, ...]
    """Those that the test set lacks most come first."""
    lines: tuple[str, ...]
    """The same in words."""


class EvalReport(Record):
    model: str
    baseline: str
    task: Task
    confidence: float
    n: int
    n_clusters: int
    cluster_by: str
    metrics: dict[str, Comparison]
    slices: dict[str, dict[str, dict[str, Comparison]]] = {}
    """Slice -> value -> metric -> comparison."""
    rule_comparisons: dict[str, Comparison] = {}
    """Rules with a `where` filter: 'metric|key=value' -> comparison; with slices, 'metric|key=value; slice=value'."""
    samples: tuple[Judged, ...] = ()
    labels: tuple[str, ...] = ()
    """Of a label task, in the order of `confusion`."""
    confusion: dict[str, tuple[tuple[int, ...], ...]] = {}
    """Of `baseline` and `tuned`, counts of the written answers: rows are true labels, columns answered ones and, as the
    last, none."""
    reliability: dict[str, tuple[ReliabilityBin, ...]] = {}
    """Of `baseline` and `tuned`, where each label was scored by likelihood."""
    suites: tuple[SuiteReport, ...] = ()
    discovered: tuple[DiscoveredSlice, ...] = ()
    searched: str = ""
    """How the slices were searched, in a sentence; empty where they were not."""
    coverage: CoverageReport | None = None
    """None where the recipe names no requests."""
    clean: dict[str, Comparison] = {}
    """Metric -> comparison on the test rows that are not (nearly) in the training data; empty where all are clean."""
    notes: tuple[str, ...] = ()


class RuleResult(Record):
    """One rule in one place, judged."""

    rule: str
    """In words, with its place."""
    must: Literal["beat_baseline", "not_regress"]
    margin: float
    """In points of the metric, never negative."""
    place: str
    """Which samples, e.g. "kind=unseen_fact"; "" for all."""
    outcome: Outcome
    why: str
    """The reason; the numbers that it rests on are the comparison's."""
    comparison: Comparison


class Verdict(Record):
    outcome: Outcome
    rules: tuple[RuleResult, ...] = Field(min_length=1)


class TrialRun(Record):
    """One training of a variant, measured."""

    variant: str
    seed: int
    rung: float
    """Fraction of the training rows."""
    part: Literal["choose", "report"]
    """The nested rows that it was asked."""
    run: str
    """Name of the run's folder."""
    value: float
    seconds: float
    """Of training and evaluation, wherever and whenever they ran."""


class CurvePoint(Record):
    """What a metric came to after training with so many rows."""

    rows: int
    values: tuple[float, ...]
    """One a seed."""


class LearningCurve(Record):
    """A metric at growing sizes of the training side, and what twice the rows would bring."""

    name: str
    metric: str
    higher_is_better: bool
    confidence: float
    asked: int
    """Nested rows that every model was asked."""
    points: tuple[CurvePoint, ...]
    rows: int
    """Of the recipe's own training side."""
    value: float
    """With `rows`, by the fitted law."""
    twice: float
    """With twice as many."""
    gain: float
    """Of the second over the first, positive is better, with its interval."""
    low: float
    high: float
    runs: tuple[TrialRun, ...]


class VariantResult(Record):
    """A variant on the rows by which is chosen, at the rung that it reached."""

    name: str
    settings: tuple[str, ...]
    rung: float
    value: float
    """Mean over the seeds."""
    comparison: Comparison | None
    """With the baseline at that rung, over the same rows and seeds; None for the baseline itself."""
    p_adjusted: float | None = None
    """After Holm, over all variants, those that were stopped too; None where none is claimed."""
    luck: float | None = None
    """Share of the difference's variance that is the luck of training; None with one seed."""
    seeds_needed: int | None = None
    """To show a difference of this size with 80 % power; None: over 100, or not known."""
    word: Literal["baseline", "stopped", "better", "worse", "not shown"]


class TrialsReport(Record):
    """Variants of a recipe on a nested split of its training side."""

    name: str
    metric: str
    higher_is_better: bool
    confidence: float
    seeds: tuple[int, ...]
    rungs: tuple[float, ...]
    n: dict[str, int]
    """Conversations to train, validation, choose and report."""
    variants: tuple[VariantResult, ...]
    """The baseline first, then as they were given."""
    winner: str
    """The best of the finished variants, if it is ahead of the baseline; else the baseline."""
    report_seeds: tuple[int, ...] = ()
    report: Comparison | None = None
    """The winner against the baseline on rows that took no part in choosing; None where the baseline won."""
    report_luck: float | None = None
    report_word: Literal["better", "worse", "not shown"] | None = None
    runs: tuple[TrialRun, ...]
    notes: tuple[str, ...] = ()


class Advised(Record):
    """One technique that the advice looked at."""

    name: str
    settings: tuple[str, ...]
    """Of a recipe that trains so: `model.adapt={...}`, `train.learning_rate=...`."""
    n_trainable: int = 0
    memory: dict[str, int] = {}
    """Predicted bytes at the peak, by what they are for."""
    minutes: float | None = None
    """Predicted for all of training, its validations included."""
    points: int = 0
    rules: tuple[str, ...] = ()
    """That are met."""
    out: str | None = None
    """Why it is no choice; None: it may be chosen."""
    gain: Comparison | None = None
    """In the short trials, over the candidate that the rules put first; None where it was not tried."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


class AdviceReport(Record):
    """Which technique to train with, and why: measurements, what the rules make of them, and short trials."""

    base: str
    facts: dict[str, float]
    """What the rules ask for, of machine, data and distance."""
    measured: dict[str, float]
    """The trial step: seconds, peak_bytes, and the machine's rates."""
    path: str
    """Which forward path the trial step ran."""
    candidates: tuple[Advised, ...]
    """The best first."""
    chosen: str
    settings: tuple[str, ...]
    """Of the chosen candidate."""
    why: tuple[str, ...]
    trials: str = ""
    """The file of the short trials' report; empty where there were none."""
    notes: tuple[str, ...] = ()


class KeptAugmentation(Record):
    """Which augmentations with `keep: if_it_helps` are learned from, and why."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    why: tuple[str, ...]
    trials: str
    """The file of the trials' report; empty where there were none."""


class Check(Record):
    """One validation during training."""

    step: int
    nll: float
    train_nll: float | None
    best: bool


class Given(Record):
    """An adapter that acts together with what was trained."""

    path: str
    """As in the recipe."""
    weight: float
    sha256: str
    """Over its files."""


class TrainReport(Record):
    """What training did, for the report's curves and for the card."""

    method: str
    learning_rate: float
    """The highest one."""
    adapters: tuple[Given, ...] = ()
    n_trainable: int
    n_parameters: int
    steps_planned: int
    steps: int
    stopped: str
    """Why it ended, in words."""
    best_step: int
    """Of the lowest validation nll."""
    kept_step: int
    """Whose weights the run ended with."""
    n_tokens: int
    """Learned tokens seen."""
    n_input_tokens: int
    n_computed_tokens: int
    """Tokens that went through the layers that learn: fewer than the input tokens where prefixes were shared."""
    seconds: float
    path: str
    """Which forward path ran, and why."""
    checks: tuple[Check, ...]
    curve: tuple[tuple[int, float], ...]
    """(step, training nll), thinned to a few hundred points."""
