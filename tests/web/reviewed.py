"""Runs to review, reviewers at work, and requests as the page makes them."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.conversation import Message, make_conversation, write_conversations
from luthier.records import Comparison, EvalReport, Judged, RunRecord
from luthier.votes import CHECK, read_votes, votes_file
from luthier.web.review import Ballot, Session, appending, pairs, review_key
from luthier.web.server import MAX_BODY, ReviewServer, open_server

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def samples(n: int) -> list[Judged]:
    """Every fifth has equal answers."""
    found = []
    for i in range(n):
        asked = make_conversation(
            [Message(role="user", content=f"Question {i}?"), Message(role="assistant", content="Yes.")], f"rows:{i}"
        )
        texts = (f"first answer {i}", f"first answer {i}" if i % 5 == 4 else f"second answer {i}")
        found.append(
            Judged(
                id=f"{asked.id} {asked.source}",
                prompt=f"user: Question {i}?",
                reference=f"The reference of {i}",
                baseline=texts[0],
                tuned=texts[1],
            )
        )
    return found


def make_run(folder: Path, judged: list[Judged]) -> Path:
    (folder / "prepare").mkdir(parents=True)
    (folder / "evaluate").mkdir()
    for name in ("recipe.yaml", "run.json"):
        (folder / name).write_text("{}")
    asked = [
        make_conversation(
            [Message(role="user", content=s.prompt.removeprefix("user: ")), Message(role="assistant", content="Yes.")],
            s.id.split()[1],
        )
        for s in judged
    ]
    write_conversations(folder / "prepare" / "test.jsonl", asked)
    write_report(folder, judged)
    RunRecord(
        stage="evaluate", key="k", inputs={}, started="", finished="", seconds=0.0, device="cpu", threads=1
    ).write(folder / "evaluate" / "record.json")
    return folder


def write_report(folder: Path, judged: list[Judged]) -> EvalReport:
    no_metrics: dict[str, Comparison] = {}
    report = EvalReport(
        model="tuned",
        baseline="smollm2",
        task="answer",
        confidence=0.95,
        n=len(judged),
        n_clusters=len(judged),
        cluster_by="family",
        metrics=no_metrics,
        samples=tuple(judged),
    )
    report.write(folder / "evaluate" / "evaluation.json")
    return report


def report_of(run: Path) -> EvalReport:
    return EvalReport.read(run / "evaluate" / "evaluation.json")


@contextmanager
def session_of(run: Path, reviewer: str = "ann") -> Iterator[Session]:
    path = votes_file(run, reviewer)
    shown = pairs(report_of(run), review_key(run), reviewer)
    with appending(path) as write:
        yield Session(shown, read_votes(path), write)


@contextmanager
def serving(run: Path, reviewer: str = "ann", token: str | None = None) -> Iterator[ReviewServer]:
    with session_of(run, reviewer) as session, open_server(session, port=0, token=token) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: ReviewServer, path: str, content: Any = None, method: str = "", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """A request as the page makes it, with `headers` changed or, where None, left out."""
    host = f"127.0.0.1:{server.server_port}"
    body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    own = {"Host": host} | ({} if body is None else {"Origin": f"http://{host}", "Content-Type": "application/json"})
    sent = {k.replace("_", "-"): v for k, v in (own | headers).items() if v}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    for name, value in sent.items():
        connection.putheader(name, value)
    if body is not None and "Content-Length" not in sent and "Transfer-Encoding" not in sent:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body if body is None or len(body) < MAX_BODY else b"")
    reply = connection.getresponse()
    found = (reply.status, reply.read(), {k: v for k, v in reply.getheaders() if k != "Date"})
    connection.close()
    return found


def ballot(position: int, choice: str, **more: Any) -> dict[str, Any]:
    return {"position": position, "choice": choice, "tags": {"left": [], "right": []}, "note": "", **more}


def vote_for(session: Session, position: int, what: str) -> None:
    """Prefer a model by name, or say tie or bad."""
    pair = session.shown[position]
    choice = what if what in ("tie", "bad") else "left" if pair.left == what else "right"
    session.vote(Ballot.model_validate(ballot(position, choice)))


def votes_of(run: Path, reviewer: str, words: Sequence[str], *, checks: str = "tuned") -> None:
    """Vote on the samples in their order, a word each, and on the attention checks in between."""
    left = list(words)
    with session_of(run, reviewer) as session:
        for i, pair in enumerate(session.shown):
            is_check = pair.sample.id.startswith(CHECK)
            if not (left or is_check):
                return
            vote_for(session, i, checks if is_check else left.pop(0))


def done(page: Any, n: int, of: int = 17) -> None:
    """Wait until the page says so."""
    page.wait_for_function("text => document.getElementById('count').textContent === text", arg=f"{n} of {of} judged")
