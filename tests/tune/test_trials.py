"""Trials with a tiny model: what is trained, on which rows, how often, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier import lifecycle, show
from luthier.conversation import read_conversations
from luthier.errors import LuthierError
from luthier.progress import Quiet
from luthier.records import EvalReport, RunRecord, TrialsReport
from luthier.tune.trials import halving, plan, trials, variants_of

BAD = ("train.learning_rate=1e-9",)


class Said:
    """A reporter that remembers what was said."""

    bar = Quiet.bar

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run(project: Path, variants: dict[str, tuple[str, ...]], **given: Any) -> tuple[TrialsReport, Path, Said]:
    said = Said()
    given = {"seeds": 2, "new_seeds": 0, "workspace": project / "runs", "report": said} | given
    report, path = trials(project / "recipe.yaml", variants, **given)
    return report, path, said


def asked(folder: Path) -> list[str]:
    rows = map(json.loads, (folder / "evaluate" / "tuned.jsonl").read_text().splitlines())
    return [row["id"] for row in rows if row["of"] == "test"]


def test_the_worse_stops_the_better_wins_and_no_outer_row_is_seen(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe itself hardly learns."""
    variants = {"none": ("train.learning_rate=2e-9",), "good": ("train.learning_rate=2e-2",)}
    report, path, said = run(project, variants, overrides=BAD, seeds=3, rungs=(0.5, 1.0), new_seeds=1)
    baseline, none, good = report.variants
    assert (baseline.word, none.word, none.rung, good.word, good.rung) == ("baseline", "stopped", 0.5, "better", 1.0)
    assert none.p_adjusted is None and good.comparison and good.comparison.delta > 10
    assert good.p_adjusted == 2 * good.comparison.p, "the stopped one counts too"
    assert report.winner == "good" and report.report_word == "better" and report.report_seeds == (6,)
    assert report.metric == "perplexity" and report.seeds == (3, 4, 5) and TrialsReport.read(path) == report
    assert "rung 50%: good go on, none stop" in said.lines
    assert any("one seed judged the winner" in note for note in report.notes)
    order = "baseline none good baseline good".split()
    assert [r.variant for r in report.runs] == [*(v for v in order for _ in range(3)), "baseline", "good"]
    check_rows(project / "runs", report)
    show.trials(report)
    shown = capsys.readouterr().out
    assert (
        "perplexity (less is better)" in shown and "took no part in choosing, seeds 6" in shown and "stopped" in shown
    )


def check_rows(workspace: Path, report: TrialsReport) -> None:
    """Paired: all runs of a rung are asked the same. Nested: nothing of the recipe's other sides, no row twice."""
    [outer] = workspace.glob("tiny-*/prepare")
    sides = {
        side: {c.id for c in read_conversations(outer / f"{side}.jsonl")} for side in ("train", "validation", "test")
    }
    rows: dict[tuple[str, float], set[str]] = {}
    for one in report.runs:
        found = {
            (one.part if side == "test" else side): frozenset(
                c.id for c in read_conversations(workspace / one.run / "prepare" / f"{side}.jsonl")
            )
            for side in sides
        }
        for part, ids in found.items():
            assert ids <= sides["train"] and not ids & (sides["validation"] | sides["test"])
            assert rows.setdefault((part, one.rung if part == "train" else 1.0), set(ids)) == ids
        assert len(frozenset.union(*found.values())) == sum(map(len, found.values()))
        assert len(asked(workspace / one.run)) == report.n[one.part]
    assert rows["train", 0.5] < rows["train", 1.0] and not rows["choose", 1.0] & rows["report", 1.0]
    assert {k: len(rows[k, 1.0]) for k in report.n} == report.n
    assert sum(report.n.values()) == len(sides["train"])


def test_what_was_run_is_not_run_again_and_is_an_ordinary_run(project: Path) -> None:
    variants = {"low": ("train.learning_rate=1e-3",)}
    first, path, _ = run(project, variants)
    assert first.winner == "baseline" and first.report is None and any("keep it" in note for note in first.notes)
    again, same, said = run(project, variants)
    assert (again, same) == (first, path) and not any(line.endswith(": running") for line in said.lines)
    more, _, said = run(project, {**variants, "high": ("model.adapt.rank=8", "train.learning_rate=3e-2")})
    assert sum(line == "train: running" for line in said.lines) == 2, "the new one, with two seeds"
    assert more.variants[1].comparison == first.variants[1].comparison
    folder = project / "runs" / first.runs[0].run
    assert EvalReport.read(folder / "evaluate" / "evaluation.json").metrics["perplexity"].value == first.runs[0].value
    assert lifecycle.run(folder, workspace=project / "runs").verdict is not None, "it can be released like any other"


def test_a_variant_whose_training_stops_is_out_and_the_others_go_on(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"bad": ("train.learning_rate=1e36",), "good": ("train.learning_rate=1e-2",)}
    report, _, said = run(project, variants, overrides=BAD, seeds=[7], judged=False)
    assert [v.name for v in report.variants] == ["baseline", "good"] and report.winner == "good"
    assert report.variants[1].p_adjusted == min(2 * report.variants[1].comparison.p, 1.0), "the one that is out counts"
    [note] = [note for note in report.notes if note.startswith("bad is out: its training stopped: ")]
    assert note in said.lines and {r.part for r in report.runs} == {"choose"} and report.report is None
    assert any("was not judged" in note for note in report.notes)
    show.trials(report)
    assert "bad is out" in capsys.readouterr().out

    alone, _, _ = run(project, {"bad": variants["bad"]}, overrides=BAD, seeds=[7])
    assert alone.winner == "baseline" and [v.word for v in alone.variants] == ["baseline"]


def test_one_seed_and_the_same_trainings_are_said(project: Path) -> None:
    report, _, said = run(project, {"good": ("train.learning_rate=1e-2",)}, overrides=BAD, seeds=[7])
    assert report.winner == "good" and report.report_seeds == (7,) and report.report is not None
    assert report.variants[1].luck is None and report.variants[1].seeds_needed is None
    assert [note.partition(":")[0] for note in report.notes] == [
        "one seed",
        "the winner is judged by the trainings that it was chosen by",
    ]
    trained = [line.split()[1] for line in said.lines if line.startswith("train: ") and "done" not in line]
    assert trained == ["running", "running", "taken", "taken"]


def test_classification_keeps_its_labels_its_system_text_and_its_families(project: Path) -> None:
    labels = ("refund", "delivery", "other")
    rows = [
        {
            "text": f"Case {i} of customer {i // 2}: {'money', 'parcel', 'hello'!r}",
            "intent": labels[i % 3],
            "who": f"c{i // 2}",
        }
        for i in range(300)
    ]
    (project / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    overrides = (
        "data.fields={text: text, label: intent}",
        "data.format=classification",
        "data.system=Sort it.",
        "data.slices=[]",
        "data.split.by=who",
        "data.limit=150",
        "evaluate.metrics=[choice_accuracy, f1]",
        "evaluate.limit=24",
        "release.rules=[{metric: choice_accuracy, must: beat_baseline}]",
    )
    report, _, _ = run(project, {"high": ("train.learning_rate=3e-2",)}, overrides=overrides, held_out=0.5)
    assert report.metric == "choice_accuracy" and report.n["choose"] == 24
    prepared = project / "runs" / report.runs[0].run / "prepare"
    assert json.loads((prepared / "audit.json").read_text())["labels"] == sorted(labels)
    of_side = {side: list(read_conversations(prepared / f"{side}.jsonl")) for side in ("train", "validation", "test")}
    assert all(c.messages[0].content == "Sort it." and c.tags["who"] for side in of_side.values() for c in side)
    families = [{c.family for c in side} for side in of_side.values()]
    assert not families[0] & families[1] and not families[0] & families[2] and not families[1] & families[2]


TWO = {"a": ("train.epochs=2",)}
TYPOS = {"a": ("model.adapt.rnak=8",), "b": ("train.epohcs=1",)}


@pytest.mark.parametrize(
    ("variants", "given", "said"),
    [
        (TYPOS, {}, "LU-R008 variant 'a': model.adapt.rnak: no such setting"),
        (TYPOS, {}, "did you mean 'epochs'?"),
        ({"a": ("evaluate.limit=5",)}, {}, "LU-U031 variant 'a': 'evaluate.limit=5' would change what is compared"),
        ({"a": ("data={}",)}, {}, "LU-U031"),
        ({"a": ("model={base: x}",)}, {}, "LU-U031"),
        ({"a": ("model.adapt.rank=4",)}, {}, "LU-U030 variants: no variant differs"),
        ({}, {}, "LU-U030"),
        ({**TWO, "b": ("train.epochs=2",)}, {}, "LU-U032 variant 'b': is the same recipe as 'a'"),
        ({"baseline": ("train.epochs=2",)}, {}, "LU-U032 variant 'baseline'"),
        (TWO, {"seeds": [1, 1]}, "LU-U033 seeds: a seed stands twice"),
        (TWO, {"seeds": 0}, "LU-U033 seeds: no seed"),
        (TWO, {"rungs": (0.5,)}, "LU-U033 rungs"),
        (TWO, {"metric": "preplexity"}, "LU-E008 metric: no metric measures 'preplexity'"),
        (TWO, {"held_out": 0.1}, "independent conversations to choose by, where at least 20"),
    ],
)
def test_mistakes_are_said(
    project: Path, variants: dict[str, tuple[str, ...]], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(LuthierError) as error:
        run(project, variants, **given)
    assert said in str(error.value) and error.value.exit_code == 2
    assert not list(project.glob("runs/tiny.*")), "nothing was trained"


def test_variants_from_the_command_line() -> None:
    grid = variants_of(
        ["model.adapt.rank=4,8", "train.learning_rate=1e-4,2e-4"], ["long:train.epochs=9,model.adapt.target=[a, b]"]
    )
    rates = [f"learning_rate={rate}" for rate in ("1e-4", "2e-4")]
    assert list(grid) == [*(f"rank={rank} {rate}" for rank in (4, 8) for rate in rates), "long"]
    assert grid["rank=8 learning_rate=1e-4"] == ("model.adapt.rank=8", "train.learning_rate=1e-4")
    assert list(variants_of(["train.weight_decay=0.1,0.25"], [])) == ["weight_decay=0.1", "weight_decay=0.25"]
    assert grid["long"] == ("train.epochs=9", "model.adapt.target=[a, b]")
    for vary, named in (
        (["train.epochs"], []),
        (["train.epochs=1,"], []),
        ([], ["x"]),
        ([], ["x:1"]),
        ([], ["x:a=1", "x:a=2"]),
    ):
        with pytest.raises(LuthierError, match="LU-U032"):
            variants_of(vary, named)


def test_the_plan_says_what_it_will_cost() -> None:
    assert halving(3) == (0.25, 0.5, 1.0)
    counted, cost = plan(4, 3, halving(3), 3)
    assert counted.startswith("4 variants and the baseline, 3 seeds each: ")
    assert counted.endswith("15 on 25% of the rows + 9 on 50% of the rows + 6 on 100% of the rows")
    assert cost == "30 runs, of the cost of 14.2 full ones; up to 6 more, with new seeds, to judge the winner"


# -- the command ------------------------------------------------------------------------------------------------------

ARGUMENTS = ("trials", "recipe.yaml", "--vary", "train.learning_rate=1e-9", "--seeds", "2", "--json")
COMMAND = (sys.executable, "-m", "luthier", *ARGUMENTS)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def trained(project: Path) -> dict[str, str]:
    """When each training ended: a second one would have another time, or another place in the file system."""
    records = project.glob("runs/tiny.*/train/record.json")
    return {p.parents[1].name: f"{RunRecord.read(p).finished} {p.stat().st_ino}" for p in records}


def test_kill_9_after_the_second_run_and_nothing_is_run_twice(project: Path) -> None:
    process = subprocess.Popen(
        COMMAND, cwd=project, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(trained(project)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = trained(project)
    assert 2 <= len(before) < 4
    done = subprocess.run(COMMAND, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    after = trained(project)
    assert before.items() <= after.items() and len(after) == 4
    assert done.stderr.count("train: running") == len(after) - len(before)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["winner"] == "baseline" and TrialsReport.read(project / found["report"]).winner == "baseline"
