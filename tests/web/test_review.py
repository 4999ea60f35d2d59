"""Blind review: nothing betrays a model, nothing is lost, and only its own page is listened to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reviewed import (
    ask,
    ballot,
    done,
    make_run,
    report_of,
    samples,
    serving,
    session_of,
    vote_for,
    votes_of,
    write_report,
)

from luthier.errors import RunError
from luthier.records import EvalReport
from luthier.votes import CHECK, Tags, Vote, read_votes, votes_file
from luthier.web.agreement import agreement, in_words, summarise
from luthier.web.review import pairs, review_key
from luthier.web.server import MAX_BODY, open_server, serve

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
TELLING = ("tuned", "baseline", "base", "model", "smollm")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "shop-1", samples(20))


# -- blindness -------------------------------------------------------------------------------------------


def everything_sent(run: Path) -> list[tuple[int, bytes, dict[str, str]]]:
    """All replies of a whole review, with an undo; the port, which the headers do not hold, may differ."""
    with serving(run) as server:
        sent = [ask(server, path) for path in ("/", "/review.css", "/review.js", "/state", "/nowhere")]
        for i in range(len(server.session.shown)):
            sent += [ask(server, f"/reference?position={i}"), ask(server, "/vote", ballot(i, "left"))]
        return [*sent, ask(server, "/undo", {})]


def test_swapped_models_are_shown_as_the_very_same_bytes(tmp_path: Path) -> None:
    judged = samples(60)
    swapped = [s.model_copy(update={"baseline": s.tuned, "tuned": s.baseline}) for s in judged]
    first, second = make_run(tmp_path / "a", judged), make_run(tmp_path / "b", swapped)
    key = review_key(first)
    (second / "reviews").mkdir()
    (second / "reviews" / ".key").write_text(key.hex())
    sent = everything_sent(first)
    assert sent == everything_sent(second)
    votes = [read_votes(votes_file(at, "ann")) for at in (first, second)]
    samples_of = [[v.left for name, v in of.items() if not name.startswith(CHECK)] for of in votes]
    assert all(a != b for a, b in zip(*samples_of, strict=True)), "though it was the other model that stood left"
    texts = b"".join(body for _, body, _ in sent).decode().lower() + str([h for *_, h in sent]).lower()
    page = texts.replace("base-uri", "").replace("answer", "")
    assert not [word for word in TELLING if word in page]
    assert not [s.id for s in judged if s.id in texts] and key.hex() not in texts


def test_places_are_balanced_and_differ_between_reviewers() -> None:
    judged = [s.model_copy(update={"id": f"{s.id}{k}"}) for k in range(10) for s in samples(200)]
    report = EvalReport.model_construct(samples=tuple(judged))
    ann, bob = (pairs(report, b"k" * 32, who) for who in ("ann", "bob"))
    assert len(ann) == 1600 + 159 and [p.sample.id for p in ann] == [p.sample.id for p in bob]
    for drawn in (ann, bob):
        assert abs(sum(p.left == "tuned" for p in drawn) - 880) < 4 * 21  # four standard deviations
    assert abs(sum(a.left == b.left for a, b in zip(ann, bob, strict=True)) - 880) < 84
    neighbours = sum(a.left == b.left for a, b in pairwise(ann))
    assert abs(neighbours - 880) < 84


def test_equal_answers_are_left_out_and_counted(run: Path) -> None:
    with session_of(run) as session:
        assert all(p.sample.baseline != p.sample.tuned for p in session.shown)
        assert sum(not p.sample.id.startswith(CHECK) for p in session.shown) == 16
    assert summarise(run, report_of(run)).n_equal == 4


# -- votes -----------------------------------------------------------------------------------------------


def test_votes_outlive_the_server(run: Path) -> None:
    said = {"tags": {"left": ["wrong"], "right": []}, "note": "too short\nby half", "correction": "Yes, in red."}
    tagged = ballot(0, "right", **said)
    with serving(run) as server:
        before = json.loads(ask(server, "/state")[1])
        assert json.loads(ask(server, "/vote", tagged)[1])["sample"]["position"] == 1
        ask(server, "/vote", ballot(1, "tie"))
    with serving(run) as server:
        state = json.loads(ask(server, "/state")[1])
        assert (state["done"], state["sample"]["position"]) == (2, 2)
        ask(server, "/undo", {})
        undone = json.loads(ask(server, "/undo", {})[1])
        assert undone["sample"] == before["sample"] | said
        assert json.loads(ask(server, "/undo", {})[1])["done"] == 0, "nothing left to take back"
    lines = votes_file(run, "ann").read_text().splitlines()
    assert [json.loads(line)["choice"] for line in lines] == ["right", "tie", "undone", "undone"]


def test_a_line_cut_short_by_a_crash_is_no_vote(run: Path) -> None:
    with session_of(run) as session:
        vote_for(session, 0, "tuned")
    path = votes_file(run, "ann")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_votes(path)) == 1
    with session_of(run) as session:
        vote_for(session, 1, "tuned")
    assert path.read_bytes().startswith(whole) and len(read_votes(path)) == 2


def test_a_damaged_line_is_named(run: Path) -> None:
    votes_file(run, "ann").parent.mkdir()
    votes_file(run, "ann").write_text("{}\n")
    with pytest.raises(RunError, match=r"LU-U010 .*ann\.jsonl:1"):
        summarise(run, report_of(run))


def test_a_vote_that_cannot_be_kept_is_not_confirmed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with serving(run) as server:
        with monkeypatch.context() as patch:
            patch.setattr("luthier.web.review.os.fsync", full)
            status, body, _ = ask(server, "/vote", ballot(0, "left"))
        assert status == 507 and b"not saved: No space left" in body
        assert votes_file(run, "ann").read_bytes() == b""
        assert json.loads(ask(server, "/state")[1])["done"] == 0
        assert ask(server, "/vote", ballot(0, "left"))[0] == 200


def test_one_process_a_reviewer_and_names_that_are_files(run: Path) -> None:
    with session_of(run), session_of(run, "bob"), pytest.raises(RunError, match="LU-U011"), session_of(run):
        pass
    for name in ("", "../ann", "a b", ".key", "x" * 65):
        with pytest.raises(RunError, match="LU-U009"):
            votes_file(run, name)


def test_votes_on_answers_that_were_replaced_count_no_more(run: Path) -> None:
    with session_of(run) as session:
        for i in range(4):
            vote_for(session, i, "tuned")
        old = session.shown[0].sample.id
    changed = [s.model_copy(update={"tuned": "another"}) if s.id == old else s for s in samples(20)]
    [ann] = summarise(run, write_report(run, changed)).reviewers
    assert (ann.n, ann.wins, ann.n_outdated) == (3, 3, 1)
    with session_of(run) as session:
        assert session.n_done == 3 and session.first_open() == 0


# -- requests that are refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "path", "content", "headers"),
    [
        (421, "/", None, {"Host": "evil.example"}),
        (421, "/state", None, {"Host": "evil.example:8765"}),
        (421, "/state", None, {"Host": ""}),
        (403, "/state", None, {"Origin": "http://evil.example"}),
        (403, "/vote", ballot(0, "left"), {"Origin": "http://evil.example"}),
        (403, "/vote", ballot(0, "left"), {"Origin": "null"}),
        (403, "/vote", ballot(0, "left"), {"Origin": ""}),
        (415, "/vote", ballot(0, "left"), {"Content_Type": "text/plain"}),
        (411, "/vote", ballot(0, "left"), {"Transfer_Encoding": "chunked"}),
        (411, "/vote", ballot(0, "left"), {"Content_Length": "-1"}),
        (413, "/vote", b" " * (MAX_BODY + 1), {}),
        (413, "/vote", b"", {"Content_Length": "9" * 5000}),
        (400, "/vote", b"[" * 20_000, {}),
        (400, "/vote", ballot(17, "left"), {}),
        (400, "/vote", ballot(0, "left", correction="x" * 10_001), {}),
        (400, "/vote", ballot(-1, "left"), {}),
        (400, "/vote", ballot(0, "undone"), {}),
        (400, "/vote", ballot(0, "left", sample="x"), {}),
        (400, "/vote", ballot(0, "left", note="x" * 2001), {}),
        (400, "/vote", ballot(0, "left", tags={"left": ["rude"], "right": []}), {}),
        (404, "/reference?position=17", None, {}),
        (400, "/reference?position=x", None, {}),
        (404, "/../review.py", None, {}),
        (404, "/undo/x", {}, {}),
    ],
)
def test_what_is_refused_changes_nothing(
    run: Path, status: int, path: str, content: Any, headers: dict[str, str]
) -> None:
    with serving(run) as server:
        found, body, _ = ask(server, path, content, **headers)
        assert found == status and b"answer 0" not in body
        assert server.session.n_done == 0 and votes_file(run, "ann").read_bytes() == b""


def test_localhost_is_the_servers_own_name_too(run: Path) -> None:
    with serving(run) as server:
        own = f"localhost:{server.server_port}"
        assert ask(server, "/vote", ballot(0, "tie"), Host=own, Origin=f"http://{own}")[0] == 200


def test_a_token_opens_the_page_by_a_cookie(run: Path) -> None:
    token = "correct-horse-battery"
    with serving(run, token=token) as server:
        assert ask(server, "/state")[0] == ask(server, "/?token=wrong")[0] == 403
        status, _, headers = ask(server, f"/?token={token}")
        assert status == 303 and headers["Location"] == "/" and "HttpOnly" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].split(";")[0]
        assert ask(server, "/state", Cookie=cookie)[0] == 200 and token not in cookie
        assert ask(server, "/vote", ballot(0, "tie"))[0] == 403
        assert ask(server, "/vote", ballot(0, "tie"), Cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    ("host", "token"),
    [("192.0.2.7", None), ("0.0.0.0", "long-enough-a-token"), ("127.0.0.1", "short"), ("a.example", None)],
)
def test_addresses_that_are_refused(run: Path, host: str, token: str | None) -> None:
    with session_of(run) as session, pytest.raises(RunError, match="LU-U012"):
        open_server(session, host=host, token=token)


def test_a_port_in_use_is_said_and_without_one_the_next_is_taken(run: Path) -> None:
    with serving(run) as taken, session_of(run, "bob") as session:
        with pytest.raises(RunError, match="LU-U013"):
            open_server(session, port=taken.server_port)
        with open_server(session) as first, open_server(session) as second:
            assert 8765 <= first.server_port < second.server_port


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "luthier", "review", str(run), "--reviewer", "ann", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with urllib.request.urlopen(f"{url}state", timeout=30) as reply:
            assert json.load(reply)["total"] == 17
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told


def test_runs_that_cannot_be_reviewed(run: Path) -> None:
    write_report(run, [s.model_copy(update={"tuned": s.baseline}) for s in samples(3)])
    with pytest.raises(RunError, match="LU-U016"):
        serve(run, "ann", say=print, port=None, token=None)
    (run / "evaluate" / "record.json").unlink()
    with pytest.raises(RunError, match="LU-U005"):
        serve(run, "ann", say=print, port=None, token=None)


# -- what the votes say ----------------------------------------------------------------------------------


def test_the_summary_by_hand(run: Path) -> None:
    votes_of(run, "ann", ["tuned"] * 6 + ["baseline"] + ["tie"] * 2 + ["bad"])
    summary = summarise(run, report_of(run))
    [ann] = summary.reviewers
    assert (ann.n, ann.wins, ann.losses, ann.ties, ann.both_bad) == (10, 6, 1, 2, 1)
    assert ann.win_rate == pytest.approx((6 + 3 / 2) / 10)
    assert ann.p == pytest.approx(2 * (1 + 7) / 2**7)
    z, p, n = 1.959964, 0.75, 10  # Wilson's formula
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert (ann.low, ann.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    told = "\n".join(in_words(summary))
    assert "ann: 10 of 16 judged" in told and "tuned better 6, base better 1, ties 2, both bad 1" in told


def test_the_summary_says_what_rules_go_by_and_whose_votes_do_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "shop-2", samples(40))
    votes_of(run, "ann", ["tuned"] * 24 + ["baseline"] * 8)
    votes_of(run, "eve", ["baseline"] * 32, checks="tie")
    summary = summarise(run, report_of(run))
    ann, eve = summary.reviewers
    assert (ann.n_checks, ann.n_wrong_checks, ann.attentive) == (3, 0, True)
    assert (eve.n_checks, eve.n_wrong_checks, eve.attentive) == (3, 3, False)
    assert (summary.human_preference.value, summary.human_preference.n) == (24 / 32, 32)
    told = "\n".join(in_words(summary))
    assert "wrong on 3 of 3 attention checks: not in human_preference" in told
    assert "human_preference: 0.750 of the votes on 32 samples" in told


def test_agreement_by_hand(run: Path) -> None:
    """10 samples: the same on 7; ann says tuned 5, base 3, neither 2, bob 4, 4, 2; by chance 0.2 + 0.12 + 0.04."""
    ann = ["tuned"] * 5 + ["baseline"] * 3 + ["tie"] * 2
    bob = ["tuned"] * 4 + ["baseline"] + ["baseline"] * 2 + ["bad"] + ["tie", "baseline"]
    votes_of(run, "ann", ann)
    votes_of(run, "bob", bob)
    [found] = summarise(run, report_of(run)).agreement
    assert found.reviewers == ("ann", "bob") and (found.n, found.n_same) == (10, 7)
    assert found.kappa == pytest.approx((0.7 - 0.36) / (1 - 0.36))
    assert found.low is not None and found.high is not None and found.low < found.kappa < found.high <= 1
    assert found == summarise(run, report_of(run)).agreement[0], "the bootstrap is seeded"


def test_agreement_that_has_no_value_is_none() -> None:
    def same(choice: str, n: int) -> dict[str, Vote]:
        fields = {"judged": "x", "left": "tuned", "choice": choice, "time": ""}
        return {str(i): Vote.model_validate({"sample": str(i), **fields}) for i in range(n)}

    alike = agreement(("a", "b"), same("left", 5), same("left", 5), 0.95)
    assert (alike.n_same, alike.kappa, alike.low) == (5, None, None)
    assert agreement(("a", "b"), same("left", 5), {}, 0.95).kappa is None


# -- in a browser ----------------------------------------------------------------------------------------


def test_by_keyboard(page: Any, run: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    keys = {
        "1": "left",
        "ArrowRight": "right",
        "0": "tie",
        "Space": "tie",
        "b": "bad",
        "2": "right",
        "ArrowLeft": "left",
    }
    with serving(run) as server:
        page.goto(server.url)
        for i, key in enumerate(keys):
            done(page, i)
            page.keyboard.press(key)
        done(page, len(keys))
        page.keyboard.press("u")
        done(page, len(keys) - 1)
        page.keyboard.press("t")
        page.keyboard.press("1")
        page.keyboard.press("8")
        page.keyboard.press("Escape")
        page.keyboard.press("n")
        page.keyboard.type("1 u b: only a note")
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        page.keyboard.type("2 b: what it should say ")
        page.keyboard.press("Escape")
        assert page.locator("#reference").is_hidden() and "The reference" not in page.content()
        page.keyboard.press("r")
        page.locator("#reference").wait_for(state="visible")
        page.keyboard.press("1")
        done(page, len(keys))
        assert page.locator("#reference").is_hidden()
    votes = list(read_votes(votes_file(run, "ann")).values())
    assert [v.choice for v in votes] == [*list(keys.values())[:-1], "left"]
    assert votes[-1].tags == Tags(left=("wrong",), right=("off-tone",)) and votes[-1].note == "1 u b: only a note"
    assert votes[-1].correction == "2 b: what it should say" and not votes[0].correction
    assert said == []


def test_by_mouse_to_the_end_and_over_a_restart(page: Any, run: Path) -> None:
    for half in (0, 8):
        with serving(run) as server:
            page.goto(server.url)
            for i in range(half, half + 8 + half // 8):
                done(page, i)
                page.locator('[data-choice="left"]').click()
            done(page, half + 8 + half // 8)
    assert page.locator("#over").is_visible() and page.locator("#work").is_hidden()


def test_a_server_that_is_gone_is_said_and_the_sample_stays(page: Any, run: Path) -> None:
    with serving(run) as server:
        page.goto(server.url)
        done(page, 0)
        before = page.locator("#left").inner_text()
    page.keyboard.press("1")
    page.locator("#trouble").wait_for(state="visible")
    assert "Not saved" in page.locator("#trouble").inner_text() and page.locator("#left").inner_text() == before


def test_hostile_answers_are_text(page: Any, tmp_path: Path) -> None:
    hostile = {"prompt": HOSTILE, "reference": HOSTILE, "baseline": HOSTILE + "1\u202e", "tuned": HOSTILE + "2"}
    run = make_run(tmp_path / "hostile", [samples(1)[0].model_copy(update=hostile)])
    with serving(run) as server:
        page.goto(server.url)
        done(page, 0, of=1)
        page.keyboard.press("r")
        page.locator("#reference").wait_for(state="visible")
        shown = page.locator("main").first.inner_text()
        assert shown.count(HOSTILE) == 4 and "\\u202e" in shown
        assert page.title() == "Review · Luthier" and page.locator("main img, main script").count() == 0


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_and_asks_only_its_server(browser: Any, run: Path, width: int, scheme: str) -> None:
    long = [s.model_copy(update={"tuned": "word " * 400 + "x" * 500}) for s in samples(2)]
    write_report(run, long)
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with serving(run) as server:
        page.goto(server.url)
        done(page, 0, of=2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for choice in ("left", "tie", "bad", "right"):
            assert page.locator(f'[data-choice="{choice}"]').is_visible()
        assert all(url.startswith(server.url) for url in asked)
    page.close()
