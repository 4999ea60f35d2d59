"""Votes in the life of a run: open until people have judged, decided by them, and their rows never learned unseen."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reviewed import ballot, done, report_of, serving, session_of, vote_for, votes_of

from luthier import lifecycle
from luthier.conversation import read_conversations
from luthier.progress import Lines
from luthier.records import AuditReport, RuleResult
from luthier.target import Run
from luthier.votes import CHECK, differing, read_votes, votes_file
from luthier.web.export import export

COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]
THINGS = ["kettle", "lamp", "spade", "apron", "pot", "knife", "bench", "hose", "bin", "rake", "sieve", "jug"]
RECIPE = """
name: tiny
seed: 3
data: {{sources: [{{path: train.jsonl, split: train}}, {{path: test.jsonl, split: test}}]}}
model: {{base: "{base}", adapt: {{method: lora, rank: 4}}}}
train: {{epochs: 3, examples_per_step: 8, learning_rate: 5e-3}}
evaluate: {{max_new_tokens: 8, probe_documents: 24, metrics: [perplexity]}}
release: {{rules: [{{metric: perplexity, must: beat_baseline}}], needs: [human_review]}}
"""
JUDGED = "{path: judged.jsonl, split: train, format: messages}"


@pytest.fixture
def project(tmp_path: Path, tiny: Path) -> Path:
    rows = [
        {"prompt": f"What colour is {thing} number {i}?", "completion": f"It is {COLOURS[(len(thing) + i) % 8]}."}
        for thing in THINGS
        for i in range(8)
    ]
    for name, some in (("train", rows[::2]), ("test", rows[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=tiny))
    return tmp_path


def run(project: Path, target: str | Path = "recipe.yaml", *overrides: str) -> tuple[Run, list[str]]:
    said: list[str] = []
    at, runs = project / target, project / "runs"
    return lifecycle.run(at, overrides=overrides, workspace=runs, report=Lines(said.append)), said


def by_people(done_: Run) -> RuleResult:
    assert done_.verdict
    return next(r for r in done_.verdict.rules if r.comparison.metric == "human_preference")


def stages(said: list[str]) -> list[str]:
    return [line for line in said if line.split(":")[0] in ("prepare", "train", "evaluate", "release")]


def test_a_release_waits_for_votes_and_is_judged_anew_by_them(project: Path) -> None:
    first, _ = run(project)
    assert first.verdict and first.verdict.outcome == "UNDERPOWERED"
    assert by_people(first).why.startswith(f"no votes yet: luthier review {first.folder.name}")
    assert [r.outcome for r in first.verdict.rules] == ["PASS", "UNDERPOWERED"]
    n = len(differing(report_of(first.folder).samples))
    assert n >= 40, "what people are to judge"

    votes_of(first.folder, "ann", ["tuned"] * (n - 4) + ["baseline"] * 4)
    second, said = run(project, first.folder.relative_to(project))
    unchanged, aside = stages(said)[:3], stages(said)[3]
    assert unchanged == ["prepare: unchanged", "train: unchanged", "evaluate: unchanged"]
    assert aside.startswith("release: votes changed; the earlier result is kept in release-")
    assert second.folder == first.folder and second.verdict and second.verdict.outcome == "PASS"
    seen = by_people(second).comparison
    assert (seen.n, seen.wins, seen.losses) == (n, n - 4, 4) and seen.delta == pytest.approx((n - 8) / n)
    report = json.loads(second.report.read_text())
    assert report["metrics"]["human_preference"]["wins"] == n - 4
    assert "human_preference" in (second.folder / "release" / "MODEL_CARD.md").read_text()
    assert stages(run(project)[1])[3] == "release: unchanged"

    votes_of(first.folder, "ann", ["baseline"] * n)
    third, said = run(project)
    assert stages(said)[:3] == unchanged and third.verdict and third.verdict.outcome == "FAIL"
    assert by_people(third).comparison.delta == -1


def test_asking_for_people_afterwards_runs_nothing_but_the_release(project: Path) -> None:
    first, _ = run(project, "recipe.yaml", "release.needs=[]")
    assert first.verdict and first.verdict.outcome == "PASS"
    asked = 'release.rules=[{"metric": "perplexity", "must": "beat_baseline"}, {"metric": "human_preference", \
"must": "beat_baseline"}]'
    second, said = run(project, "recipe.yaml", "release.needs=[]", asked)
    assert second.folder != first.folder and second.verdict and second.verdict.outcome == "UNDERPOWERED"
    took = f"taken over from {first.folder.name}"
    assert stages(said)[:3] == [f"prepare: {took}", f"train: {took}", f"evaluate: {took}"]


def test_rows_of_the_test_side_that_are_learned_are_counted_as_a_leak(project: Path) -> None:
    first, _ = run(project)
    votes_of(first.folder, "ann", ["tuned"] * 12)
    assert export(first.folder, report_of(first.folder), project / "judged.jsonl", "sft") == {"rows": 12}
    sources = f"[{{path: train.jsonl, split: train}}, {JUDGED}, {{path: test.jsonl, split: test}}]"
    again, _ = run(project, "recipe.yaml", f"data.sources={sources}")
    audit = AuditReport.read(again.folder / "prepare" / "audit.json")
    learned = [c for c in read_conversations(again.folder / "prepare" / "train.jsonl") if c.tags.get("sample")]
    n = len(learned)  # of 12: what the tuned model wrote may be a row that the audit puts aside
    assert n >= 8 and audit.counts["LU-D039"] == n
    share = f"{n} more ({n / 48:.1%}) nearly the same prompt"
    assert f"leak: 0 of 48 test rows (0.0%) have an exact copy in train, {share}" in audit.notes
    assert share in (again.folder / "release" / "MODEL_CARD.md").read_text()


def test_where_a_run_draws_its_sides_exported_rows_are_never_learned_beside_their_test_rows(project: Path) -> None:
    sources = "[{path: train.jsonl}, {path: test.jsonl}]"
    first, _ = run(project, "recipe.yaml", f"data.sources={sources}", "data.split.test_fraction=0.3")
    votes_of(first.folder, "ann", ["tuned"] * 12)
    export(first.folder, report_of(first.folder), project / "judged.jsonl", "sft")
    sources = f"[{{path: train.jsonl}}, {{path: test.jsonl}}, {JUDGED}]"
    for seed in range(3):
        overrides = (f"data.sources={sources}", "data.split.test_fraction=0.3", f"seed={seed}")
        again = lifecycle.run(project / "recipe.yaml", overrides=overrides, workspace=project / "runs", until="prepare")
        sides = {
            side: list(read_conversations(again.folder / "prepare" / f"{side}.jsonl")) for side in ("train", "test")
        }
        exported = [c for side in sides.values() for c in side if c.tags.get("sample")]
        assert exported, "they are there"
        assert not {c.prompt_text for c in sides["train"]} & {c.prompt_text for c in sides["test"]}
        assert "LU-D039" not in AuditReport.read(again.folder / "prepare" / "audit.json").counts


# -- in a browser, and by kill -9 ----------------------------------------------------------------------------


def test_votes_in_a_browser_turn_the_verdict(page: Any, project: Path) -> None:
    first, _ = run(project)
    with serving(first.folder) as server:
        shown = server.session.shown
        page.goto(server.url)
        for i, pair in enumerate(shown):
            done(page, i, of=len(shown))
            page.keyboard.press("1" if pair.left == "tuned" else "2")
        done(page, len(shown), of=len(shown))
    checks = sum(pair.sample.id.startswith(CHECK) for pair in shown)
    assert checks == 4
    second, _ = run(project)
    seen = by_people(second).comparison
    n = len(shown) - checks
    assert (seen.n, seen.wins, seen.value, seen.delta) == (n, n, 1.0, 1.0)
    error = (2 / (n * (n - 1))) ** 0.5  # all influences are 0: the pseudo pair alone, of size 1
    assert 1 - 2.03 * error < seen.low < 1 - 2.01 * error and second.verdict and second.verdict.outcome == "PASS"


def test_a_vote_that_was_confirmed_survives_kill_9_and_a_second_server_is_refused(project: Path) -> None:
    first, _ = run(project)
    command = [sys.executable, "-m", "luthier", "review", str(first.folder), "--reviewer", "ann", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{port}"}
        connection.request("POST", "/vote", json.dumps(ballot(0, "left", correction="Red.")), headers)
        assert json.load(connection.getresponse())["done"] == 1
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and "LU-U011" in second.stderr
        os.kill(process.pid, signal.SIGKILL)
    [vote] = read_votes(votes_file(first.folder, "ann")).values()
    assert (vote.choice, vote.correction) == ("left", "Red.")
    with session_of(first.folder) as session:
        assert session.n_done == 1 and session.first_open() == 1
        vote_for(session, 1, "tuned")
