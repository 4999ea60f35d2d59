"""What the model is worth beside its base, and the verdict."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.records.data import Task
from luthier.records.record import Record

Outcome = Literal["PASS", "FAIL", "UNDERPOWERED"]


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
