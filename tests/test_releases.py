"""Runs that older releases left are read, gone on with and talked to by this one.

`tests/fixtures/make_release.py` has made them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from test_lifecycle import Said

from luthier import finished, lifecycle
from luthier.models import find_base
from luthier.records import AuditReport, EvalReport, TrainReport
from luthier.store import damaged, stage_record
from luthier.target import open_target, read_run
from luthier.train import train
from luthier.train.checkpoint import steps_in

RELEASES = sorted(Path(__file__).with_name("fixtures").glob("release-*.tar.xz"))
STAGES = ("prepare", "train", "evaluate", "release")


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.split(".")[0])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As it was left, and moved here."""
    with tarfile.open(request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    for path in tmp_path.glob("*/tiny-*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"origin": str(tmp_path)}))
    return tmp_path


def run_in(workspace: Path) -> Path:
    [found] = workspace.glob("tiny-*")
    return found


def test_there_is_a_release() -> None:
    assert RELEASES


def test_its_records_are_read_and_vouch_for_their_files(project: Path) -> None:
    run = run_in(project / "runs")
    for stage in STAGES:
        record = stage_record(run, stage)
        assert record and record.artifacts and damaged(run, record) is None
    audit, evaluation = AuditReport.read(run / "prepare/audit.json"), EvalReport.read(run / "evaluate/evaluation.json")
    assert audit.sides["test"] == evaluation.n > 0
    verdict, report = read_run(run).verdict, json.loads((run / "release/report.json").read_text())
    assert verdict and verdict.outcome == report["verdict"]
    assert report["metrics"]["perplexity"]["value"] == evaluation.metrics["perplexity"].value
    [(found, stages)] = finished.list_runs(project / "runs")
    assert found.verdict == verdict and tuple(stages) == STAGES


def test_a_half_finished_training_goes_on_to_the_losses_of_its_release(project: Path) -> None:
    half, said = run_in(project / "half"), Said()
    recipe, origin = open_target(half, (), said)
    base = find_base(recipe.model.base, origin)
    newest = steps_in(half / "train" / "checkpoints")[-1]
    done = train(recipe, half / "prepare", base, half / "train", said, origin)
    assert any(line.startswith(f"going on from step {newest} of ") for line in said.lines)
    expected = TrainReport.read(run_in(project / "runs") / "train" / "train.json")
    assert [step for step, _ in done.curve] == [step for step, _ in expected.curve]
    assert [nll for _, nll in done.curve] == pytest.approx([nll for _, nll in expected.curve], rel=1e-6)
    assert [c.nll for c in done.checks] == pytest.approx([c.nll for c in expected.checks], rel=1e-6)
    assert done.best_step == expected.best_step


def test_what_it_trained_is_talked_to_and_compared(project: Path) -> None:
    run = run_in(project / "runs")
    assert isinstance(finished.talk(run)("What size is lamp 3?"), str)
    compared = finished.compare(run, run)
    assert compared.metrics["perplexity"].delta == 0.0


def test_its_recipe_ends_beside_its_runs(project: Path) -> None:
    for workspace in ("runs", "half"):
        assert lifecycle.run(project / "recipe.yaml", workspace=project / workspace).verdict
