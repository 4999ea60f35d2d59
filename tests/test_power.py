"""Plans against the gate itself: exact where answers are right or wrong, by resampling where they are graded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

from luthier import lifecycle, power
from luthier.cli import app
from luthier.errors import EvaluationError
from luthier.evaluate.compare import judged
from luthier.evaluate.reading import read
from luthier.metric import Floats, MeanMetric, Sample
from luthier.power import Gate, Pilot, detectable, plan, power_of, rows_needed
from luthier.records import Comparison, EvalReport
from luthier.stats import compare

SCORE = MeanMetric("score", lambda s: float(s.answer) if s.answer else None)
KEEP = Gate(limit=-0.02)


def samples(scores: Floats, clusters: Floats | None = None) -> list[Sample]:
    owners = np.arange(len(scores)) if clusters is None else clusters
    return [
        Sample(str(i), str(c), "", "", str(s), 0.0, 1, 1) for i, (s, c) in enumerate(zip(scores, owners, strict=True))
    ]


def judge(differences: Floats, clusters: Floats | None = None, base: float | Floats = 5.0) -> Comparison:
    baseline = np.full(len(differences), base)
    return compare(SCORE, samples(baseline + differences, clusters), samples(baseline, clusters), confidence=0.95)


def judge_counts(n: int, wins: int, losses: int) -> Comparison:
    tuned, baseline = np.zeros(n), np.zeros(n)
    tuned[:wins], baseline[n - losses :] = 1.0, 1.0
    # the ties' answers are not the same: such models can differ unseen
    old = [Sample(s.id, s.cluster, "", "", s.answer, 1.0, 1, 1) for s in samples(baseline)]
    return compare(SCORE, samples(tuned), old, confidence=0.95)


def graded(n: int, seed: int = 0) -> Pilot:
    drawn = np.random.default_rng(seed).standard_t(4, n) * 0.2
    return Pilot(np.where(np.arange(n) % 3, drawn, 0.0), np.arange(n), False)


def in_clusters(n: int) -> Pilot:
    owners = np.repeat(np.arange(n), np.arange(n) % 3 + 1)
    rng = np.random.default_rng(1)
    return Pilot(0.2 * (rng.normal(size=n)[owners] + rng.normal(size=len(owners))), owners, False)


# -- the same formula ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 33])
def test_counts_are_judged_as_their_answers_are(n: int) -> None:
    """All (wins, losses), the one with no difference too."""
    counts = [(wins, differ - wins) for differ in range(n + 1) for wins in range(differ + 1)]
    found = power._low_end_of_counts(n, *np.array(counts).T, 0.95)
    assert found == pytest.approx([judge_counts(n, *count).low for count in counts], abs=1e-9)


@pytest.mark.parametrize("limit", [-0.3, -0.02, 0.0, 0.2])
@pytest.mark.parametrize("n", [20, 31, 100])
def test_more_wins_never_judge_worse(n: int, limit: float) -> None:
    least = power._least_wins(n, limit, 0.95)
    for differ in range(n + 1):
        wins = np.arange(differ + 1)
        passes = power._low_end_of_counts(n, wins, differ - wins, 0.95) > limit
        assert passes.tolist() == (wins >= least[differ]).tolist()


@pytest.mark.parametrize("clusters", [25, 90])  # fewer and more than the pilot has
@pytest.mark.parametrize("pilot", [graded(40), in_clusters(40), Pilot(np.eye(1, 40)[0], np.arange(40), False)])
def test_drawn_gates_are_judged_as_their_rows_are(pilot: Pilot, clusters: int) -> None:
    """Drawn again with the same seed and compared row by row; in the last pilot one row differs, or none."""
    sums, sizes = pilot.by_cluster()
    n_pilot, rng = len(sums), np.random.default_rng(7)
    seen = power._draw(sums, sizes, clusters, 60, np.random.default_rng(7))
    if clusters < n_pilot:
        chosen = rng.integers(0, n_pilot, (60, clusters))
    else:
        times = rng.multinomial(clusters, np.full(n_pilot, 1 / n_pilot), 60)
        chosen = np.array([np.repeat(np.arange(n_pilot), row) for row in times])
    value, squares, cubes, differ, trusted = seen
    typical = (squares + clusters * value**2) / np.maximum(differ, 1)
    lows = power.low_ends(value, squares, cubes, typical, clusters, 0.95)
    for row, low, trust in zip(chosen, lows, trusted, strict=True):
        rows = [np.flatnonzero(pilot.clusters == c) for c in row]
        owners = np.repeat(np.arange(clusters), [len(r) for r in rows])
        comparison = judge(pilot.differences[np.concatenate(rows)], owners)
        assert low == pytest.approx(comparison.low, abs=1e-9)
        assert bool(trust) == (comparison.trouble is None)


# -- plans against simulated gates -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "differ", "gain", "limit"), [(50, 0.05, 0.12, 0.0), (30, 0.9, 0.45, 0.0), (150, 0.1, 0.0, -0.05)]
)
def test_the_exact_power_is_that_of_simulated_gates(n: int, differ: float, gain: float, limit: float) -> None:
    share = max(differ, abs(gain))
    rng, gates = np.random.default_rng(3), 1500
    counts = rng.multinomial(n, [(share + gain) / 2, (share - gain) / 2, 1 - share], gates)
    known = {(w, lost): judge_counts(n, w, lost).low > limit for w, lost, _ in set(map(tuple, counts.tolist()))}
    seen = np.mean([known[w, lost] for w, lost, _ in counts.tolist()])
    expected = power_of(Pilot.stated(differ), n, gain, Gate(limit))
    assert 0.02 < expected < 0.98 and seen == pytest.approx(expected, abs=3.3 * np.sqrt(0.25 / gates))


@pytest.mark.parametrize("pilot", [graded(2000), in_clusters(1500)])
def test_the_graded_power_is_that_of_simulated_gates(pilot: Pilot) -> None:
    gain = detectable(pilot, 60)
    assert gain is not None
    rng, passed, gates = np.random.default_rng(5), 0, 500
    n = round(60 * pilot.n_clusters / len(pilot.differences))
    for _ in range(gates):
        rows = [np.flatnonzero(pilot.clusters == c) for c in rng.integers(0, pilot.n_clusters, n)]
        owners = np.repeat(np.arange(n), [len(r) for r in rows])
        comparison = judge((pilot.differences - pilot.differences.mean())[np.concatenate(rows)] + gain, owners)
        passed += comparison.low > 0 and comparison.trouble is None
    assert passed / gates == pytest.approx(0.8, abs=0.06)


def test_right_or_wrong_rows_that_belong_together_count_less() -> None:
    rng = np.random.default_rng(0)
    alone = np.where(rng.random(400) < 0.2, rng.choice([-1.0, 1.0], 400), 0.0)
    one = detectable(Pilot(alone, np.arange(400), True), 100)
    four = detectable(Pilot(np.repeat(alone, 4), np.repeat(np.arange(400), 4), True), 400)
    assert one is not None and four == pytest.approx(one, rel=0.02)


def test_clustered_right_or_wrong_gates_pass_about_as_planned() -> None:
    """Half of the rows do as their cluster does; the design effect is an approximation."""
    rng = np.random.default_rng(2)

    def draw(clusters: int, gain: float) -> tuple[Floats, Floats]:
        owners = np.repeat(np.arange(clusters), np.arange(clusters) % 3 + 1)
        u = np.where(rng.random(clusters)[owners] < 0.5, rng.random(clusters)[owners], rng.random(len(owners)))
        return np.where(u < 0.1 + gain / 2, 1.0, np.where(u > 0.9 + gain / 2, -1.0, 0.0)), owners

    gain = detectable(Pilot(*draw(6000, 0.0), True), 100)
    assert gain is not None
    passed = 0
    for _ in range(300):
        differences, owners = draw(50, gain)
        passed += judge(differences, owners, base=np.where(differences < 0, 1.0, 0.0)).low > 0
    assert 0.72 < passed / 300 < 0.92


# -- what plans promise ----------------------------------------------------------------------------------

PILOTS = [Pilot.stated(0.1), graded(300), in_clusters(200)]


@pytest.mark.parametrize("gate", [Gate(), KEEP])
@pytest.mark.parametrize("pilot", PILOTS)
def test_power_rises_with_rows_and_gain(pilot: Pilot, gate: Gate) -> None:
    by_rows = [power_of(pilot, n, 0.08, gate) for n in (15, 30, 60, 120, 240, 480)]
    by_gain = [power_of(pilot, 120, gain, gate) for gain in np.linspace(gate.limit, 0.3, 12)]
    for powers in (by_rows, by_gain):
        assert (np.diff(powers) >= -0.01).all() and powers[-1] > 0.95
    assert by_rows[0] == 0.0, "fewer than 20 are refused"
    assert by_gain[0] < 0.05


@pytest.mark.parametrize("gate", [Gate(), KEEP, Gate(power=0.9)])
@pytest.mark.parametrize("pilot", PILOTS)
def test_rows_and_gain_are_inverse(pilot: Pilot, gate: Gate) -> None:
    gain = detectable(pilot, 250, gate)
    assert gain is not None and power_of(pilot, 250, gain, gate) == pytest.approx(gate.power, abs=0.002)
    rows = rows_needed(pilot, gain, gate)
    assert rows == pytest.approx(250, rel=0.04)
    again = detectable(pilot, rows, gate)
    assert again is not None and again <= gain * (1 + 1e-4)


def test_a_wider_margin_and_less_power_need_fewer_rows() -> None:
    pilot = Pilot.stated(0.1)
    needed = [
        rows_needed(pilot, 0.03, g) for g in (Gate(-0.05), Gate(-0.02), Gate(), Gate(0.01), Gate(0.01, power=0.95))
    ]
    assert all(needed) and needed == sorted(needed, key=lambda n: n or 0)


def test_plans_are_the_same_twice() -> None:
    assert plan(graded(40), rows=30) == plan(graded(40), rows=30) != plan(graded(40), rows=30, seed=1)


def test_a_range_is_as_wide_as_pilots_differ() -> None:
    """The gains that 40 pilots of 60 rows say lie about as far apart as the range of one of them says."""
    pilots = [Pilot(np.random.default_rng(seed).normal(size=60), np.arange(60), False) for seed in range(40)]
    low, high = np.percentile([detectable(p, 50, draws=1000) or np.inf for p in pilots], power.RANGE)
    told = plan(pilots[0], rows=50)
    assert told.low and told.gain and told.high and told.low < told.gain < told.high
    assert told.high / told.low == pytest.approx(high / low, rel=0.2)


@pytest.mark.parametrize(
    "pilot", [graded(100), Pilot(np.resize([1.0, -1, 0, 0, 1, 0, 0, 0], 200), np.arange(200), True)]
)
def test_each_question_has_its_answer_and_range(pilot: Pilot) -> None:
    gain = plan(pilot, rows=120)
    assert gain.found == "gain" and gain.gain and gain.low and gain.high and gain.low < gain.gain < gain.high
    rows = plan(pilot, gain=gain.gain)
    assert rows.found == "rows" and rows.rows and rows.low and rows.high and rows.low < rows.rows < rows.high
    both = plan(pilot, gain=gain.gain, rows=120)
    assert both.found == "power" and both.power == pytest.approx(0.8, abs=0.002)
    assert both.low and both.high and both.low < 0.8 < both.high


# -- what cannot be planned ------------------------------------------------------------------------------


def report(tuned: Floats, baseline: Floats, *, metric: MeanMetric = SCORE) -> EvalReport:
    new, old = samples(tuned), samples(baseline)
    known = read(metric.name, metric, new, old, [])
    comparison = compare(metric, new, old, confidence=0.95)
    return EvalReport(
        model="tuned", baseline="base", task="answer", confidence=0.95, n=len(new), n_clusters=len(new),
        cluster_by="family", metrics={metric.name: comparison}, samples=judged([known], new, old),
    )  # fmt: skip


def test_a_pilot_is_read_from_an_evaluation() -> None:
    rng = np.random.default_rng(0)
    less_is_better = MeanMetric("score", SCORE.score, higher_is_better=False)
    tuned, baseline = rng.integers(0, 2, 40).astype(float), rng.integers(0, 2, 40).astype(float)
    pilot = Pilot.of(report(tuned, baseline), "score")
    assert pilot.right_or_wrong and pilot.n_clusters == 40
    assert pilot.differences.tolist() == (tuned - baseline).tolist()
    turned = Pilot.of(report(tuned + 0.5, baseline, metric=less_is_better), "score")
    assert not turned.right_or_wrong and turned.differences.tolist() == (baseline - tuned - 0.5).tolist()


def test_what_says_too_little_is_an_error_in_words() -> None:
    ones, rng = np.ones(30), np.random.default_rng(0)
    some = rng.integers(0, 2, 30).astype(float)
    with pytest.raises(EvaluationError, match=r"LU-E014 score: every row differs by the same, mostly by nothing"):
        Pilot.of(report(ones, ones), "score")
    with pytest.raises(EvaluationError, match=r"LU-E014 score: its 19 independent rows say too little"):
        Pilot.of(report(some[:19], ones[:19]), "score")
    with pytest.raises(EvaluationError, match=r"LU-E008 scor: .*\n.*did you mean 'score'"):
        Pilot.of(report(some, ones), "scor")
    told = report(some, ones)
    other = told.metrics["score"].model_copy(update={"value": 0.123})
    for broken in (told.model_copy(update={"metrics": {"score": other}}), told.model_copy(update={"samples": ()})):
        with pytest.raises(EvaluationError, match=r"LU-E014 score: is no mean over rows.*say how it varies$"):
            Pilot.of(broken, "score")
    both = told.model_copy(update={"metrics": {**told.metrics, "other": other}})
    with pytest.raises(EvaluationError, match=r"LU-E014 other: is no mean .*\n.*metrics that are: score$"):
        Pilot.of(both, "other")
    with pytest.raises(EvaluationError, match=r"LU-E014 differ: 1.5 is no share"):
        Pilot.stated(1.5)


def test_a_gain_that_no_number_of_rows_shows_is_an_error_in_words() -> None:
    pilot = Pilot.stated(0.1)
    for gain in (0.0, -0.03):
        with pytest.raises(EvaluationError, match=r"LU-E015 gain: a true gain of .* is not above the limit 0"):
            rows_needed(pilot, gain)
    with pytest.raises(EvaluationError, match=r"LU-E015 gain: 5 is more than all answers"):
        rows_needed(pilot, 5.0)
    assert rows_needed(pilot, -0.01, KEEP), "a loss within the margin can be shown to be one"
    assert rows_needed(pilot, 1e-4) is None
    assert plan(pilot, gain=1e-4).rows is None and plan(pilot, rows=19).gain is None


def test_gates_that_are_mostly_refused_show_no_gain() -> None:
    rare = Pilot(
        np.where(np.arange(200) < 3, [[0.3], [0.1], [9.0]][0][0] * np.arange(1, 201), 0.0), np.arange(200), False
    )
    assert detectable(rare, 40) is None and plan(rare, rows=40).high is None


# -- the command -----------------------------------------------------------------------------------------

RECIPE = """
name: tiny
data: {{sources: [{{path: rows.jsonl}}], split: {{by: row, valid_fraction: 0.1, test_fraction: 0.4}}}}
model: {{base: "{base}"}}
train: {{epochs: 1, examples_per_step: 8, learning_rate: 1e-3}}
evaluate: {{max_new_tokens: 4, probe_documents: 24, suites: [], metrics: [perplexity, {{use: "own:nats"}}]}}
release: {{rules: [{{metric: nats, must: not_regress, by_relative: 0.01}}]}}
"""
OWN = """
from luthier.metric import lower_is_better

@lower_is_better
def nats(sample):
    return sample.nats / sample.n_tokens
"""


Planned = Callable[..., str]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """What `luthier plan` prints, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        capsys.readouterr()
        app(["plan", *arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_a_finished_run_plans_the_next_one(tmp_path: Path, tiny: Path, planned: Planned) -> None:
    rows = [
        {"prompt": f"Number {i} in the list?", "completion": f"It is the {'red' * (i % 3)} one."} for i in range(100)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    run = lifecycle.run("recipe.yaml", until="evaluate")
    seen = EvalReport.read(run.folder / "evaluate" / "evaluation.json").metrics["nats"]

    told = json.loads(planned("tiny", "--rows", "60", "--json"))
    assert told["metric"] == "nats" and told["limit"] == pytest.approx(-0.01 * seen.baseline)
    assert told["pilot_clusters"] == seen.n_clusters and told["confidence"] == 0.95
    [by_rows] = told["plans"]
    assert by_rows["low"] <= by_rows["gain"] <= by_rows["high"]
    [by_gain] = json.loads(planned("tiny", "--gain", str(by_rows["gain"]), "--json"))["plans"]
    assert by_gain["rows"] == pytest.approx(60, rel=0.05)
    table = planned("tiny", "--limit", "0", "--power", "0.9")
    assert "interval above 0" in table and table.count("90%") == 4 and "1,000" in table
    for wrong, said in [
        (("--metric", "perplexity"), "metrics that are: nats"),
        (("--metric", "nat"), "LU-E008 nat: "),
        (("--limit", "0", "--gain", "0"), "LU-E015 gain: a true gain of 0 is not above"),
    ]:
        with pytest.raises(EvaluationError, match=said):
            planned("tiny", *wrong)


def test_a_stated_share_needs_no_run(planned: Planned) -> None:
    [told] = json.loads(planned("--differ", "0.1", "--gain", "0.03", "--json"))["plans"]
    assert told["rows"] == rows_needed(Pilot.stated(0.1), 0.03) and told["low"] is told["high"] is None
    assert "over 100,000" in planned("--differ", "0.1", "--gain", "0.001")
    for wrong, said in [
        ((), "give a RUN, and perhaps its --metric, or --differ"),
        (("--differ", "0.1", "--metric", "token_f1"), "give a RUN"),
        (("--differ", "0", "--gain", "1"), "LU-E014 differ: 0 is no share"),
        (("--differ", "0.1", "--gain", "-1"), "LU-E015 gain"),
        (("--differ", "0.1", "--rows", "0"), "--rows between 1 and 100,000"),
    ]:
        with pytest.raises((EvaluationError, typer.BadParameter), match=said):
            planned(*wrong)


def test_a_mistake_shows_no_traceback(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "luthier", "plan", "--differ", "0.1", "--gain", "-1"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("LU-E015") and "Traceback" not in done.stderr
