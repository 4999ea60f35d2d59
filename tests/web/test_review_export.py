"""What was judged as rows to learn from: what reviewers wrote, what they chose, and where it comes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reviewed import ballot, done, make_run, report_of, samples, serving, session_of, vote_for, votes_of

from luthier.errors import RunError
from luthier.votes import read_votes, votes_file
from luthier.web.export import export, in_words
from luthier.web.review import Ballot


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "shop-1", samples(20))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_preferences(run: Path, tmp_path: Path) -> None:
    votes_of(run, "ann", ["tuned", "baseline", "tie", "tuned"])
    votes_of(run, "bob", ["tuned", "tie", "bad", "baseline"])
    out = tmp_path / "preferences.jsonl"
    assert export(run, report_of(run), out, "preferences") == {"rows": 2, "ties": 1, "opposed": 1}
    by_id = {s.id: s for s in report_of(run).samples}
    rows = rows_of(out)
    assert sorted(row["votes"] for row in rows) == [1, 2]
    for row in rows:
        sample = by_id[row["sample"]]
        better, worse = (sample.tuned, sample.baseline) if row["votes"] == 2 else (sample.baseline, sample.tuned)
        assert row["prompt"] == [{"role": "user", "content": sample.prompt.removeprefix("user: ")}]
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (better, worse)
        assert (row["split"], row["family"], row["source"]) == ("train", *sample.id.split())
    with pytest.raises(RunError, match=r"LU-U017 .*\n.*did you mean 'ann'"):
        export(run, report_of(run), out, "preferences", reviewer="anne")
    assert export(run, report_of(run), out, "preferences", reviewer="bob")["rows"] == 2


def test_a_correction_is_learned_and_beats_both_answers(run: Path, tmp_path: Path) -> None:
    with session_of(run) as session:
        session.vote(Ballot(position=0, choice="bad", correction="  In red.\n"))
        session.vote(Ballot(position=1, choice="left", correction=session.shown[1].text("left")))
        vote_for(session, 2, "tuned")
        vote_for(session, 3, "tie")
        ids = [pair.sample.id for pair in session.shown]
    out = tmp_path / "rows.jsonl"
    assert export(run, report_of(run), out, "sft") == {"rows": 3, "ties": 1}
    lessons = {row["sample"]: row for row in rows_of(out)}
    written = lessons[ids[0]]
    assert [m["role"] for m in written["messages"]] == ["user", "assistant"] and written["corrected"]
    assert written["messages"][-1]["content"] == "In red." and not lessons[ids[2]]["corrected"]
    assert export(run, report_of(run), out, "preferences") == {"rows": 4, "ties": 1}
    rejected = [row["rejected"][0]["content"] for row in rows_of(out) if row["sample"] == ids[0]]
    sample = session.shown[0].sample
    assert sorted(rejected) == sorted([sample.tuned, sample.baseline])


def test_the_latest_correction_counts(run: Path, tmp_path: Path) -> None:
    for name, text, time in (("ann", "Late.", "2026-01-02"), ("bob", "Early.", "2026-01-01")):
        with session_of(run, name) as session:
            session.vote(Ballot(position=0, choice="bad", correction=text))
        [vote] = read_votes(votes_file(run, name)).values()
        votes_file(run, name).write_text(vote.model_copy(update={"time": time}).model_dump_json() + "\n")
    assert export(run, report_of(run), tmp_path / "rows.jsonl", "sft") == {"rows": 1}
    assert rows_of(tmp_path / "rows.jsonl")[0]["messages"][-1]["content"] == "Late."


def test_marked_rows_as_they_are(run: Path, tmp_path: Path) -> None:
    tagged = ballot(0, "tie", tags={"left": ["wrong"], "right": ["off-tone"]}, note="hm", correction="Yes.")
    with session_of(run) as session:
        session.vote(Ballot.model_validate(tagged))
        vote_for(session, 1, "baseline")
        left = session.shown[0].left
    out = tmp_path / "marked.jsonl"
    assert export(run, report_of(run), out, "marked") == {"rows": 2}
    assert export(run, report_of(run), out, "marked", tag="wrong") == {"rows": 1, "unmarked": 1}
    [row] = rows_of(out)
    assert row["tags"][left] == ["wrong"] and sorted(map(len, row["tags"].values())) == [1, 1]
    assert (row["choice"], row["note"], row["correction"], row["reviewer"]) == ("tie", "hm", "Yes.", "ann")
    with pytest.raises(RunError, match="LU-U015"):
        export(run, report_of(run), out, "marked", tag="wrnog")


def test_who_failed_the_attention_checks_is_left_out_unless_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "shop-2", samples(40))
    votes_of(run, "ann", ["tuned"] * 5)
    votes_of(run, "eve", ["baseline"] * 32, checks="baseline")
    out = tmp_path / "rows.jsonl"
    counts = export(run, report_of(run), out, "sft")
    assert counts == {"rows": 5, "inattentive": 1}
    assert "1 reviewers who failed" in in_words(out, counts) and "test side" in in_words(out, counts)
    assert export(run, report_of(run), out, "sft", reviewer="eve") == {"rows": 32}


def test_a_correction_written_in_the_browser_is_exported(page: Any, run: Path, tmp_path: Path) -> None:
    with serving(run) as server:
        page.goto(server.url)
        done(page, 0)
        asked = page.locator("#prompt").inner_text().removeprefix("user: ")
        page.keyboard.press("c")
        page.keyboard.type("It is red.")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("2 u b")
        page.keyboard.press("Escape")
        page.keyboard.press("b")
        done(page, 1)
        assert page.locator("#correction").input_value() == ""
        page.keyboard.press("u")
        done(page, 0)
        assert page.locator("#correction").input_value() == "It is red.\n2 u b"
        page.keyboard.press("b")
        done(page, 1)
    assert export(run, report_of(run), tmp_path / "rows.jsonl", "sft") == {"rows": 1}
    [row] = rows_of(tmp_path / "rows.jsonl")
    asked_and_answered = [{"role": "user", "content": asked}, {"role": "assistant", "content": "It is red.\n2 u b"}]
    assert row["messages"] == asked_and_answered


def test_the_command_writes_the_shape_that_is_asked_for(run: Path, tmp_path: Path) -> None:
    votes_of(run, "ann", ["tuned"] * 3)

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        called = [sys.executable, "-m", "luthier", "review", str(run), "--export", str(tmp_path / "rows.jsonl"), *more]
        return subprocess.run(called, capture_output=True, text=True, timeout=120)

    assert json.loads(command("--as", "sft", "--json").stdout)["rows"] == 3
    assert "messages" in rows_of(tmp_path / "rows.jsonl")[0]
    assert "what learns from them is not tested by it any more" in command("--as", "marked", "--tag", "wrong").stdout
    for wrong in (("--as", "dpo"), ("--tag", "wrong")):
        refused = command(*wrong)
        assert refused.returncode == 2 and "marked" in refused.stderr and "Traceback" not in refused.stderr
