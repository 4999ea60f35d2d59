"""Requests written by a model: what it is shown, what is read of its reply, and that nothing is asked twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from chat_server import Asked as Request
from chat_server import Server, serve

from luthier.conversation import Conversation
from luthier.errors import DataError
from luthier.prepare.augment.contextual import Contextual, contextual, read_numbered
from luthier.prepare.augment.contract import Asked, Unmade

from .rows import asked, plain, talk

__all__ = ["serve"]  # a fixture
Serve = Callable[[Callable[[Request], None]], Server]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))


def say_two(request: Request) -> None:
    text = '1. At what place is it?\n2) "Can you find it?"\n'
    usage = {"prompt_tokens": 30, "completion_tokens": 12}
    reply = {"model": "m", "usage": usage, "choices": [{"message": {"content": text}}]}
    request.send(200, json.dumps(reply).encode())


def method(server: Server, **params: object) -> Contextual:
    given = {"folder": Path(), "seed": 7, "labelled": True, "model": "m", "url": server.url, **params}
    return contextual(**given)  # type: ignore[arg-type]


def ask(augment: Contextual, rows: list[Conversation], train: list[Conversation], n: int = 2) -> list[list[str]]:
    augment.ahead([Asked(row, Random(0), n) for row in rows], train)
    found = ([*augment(row, Random(0))] for row in rows)
    return [[x.reason if isinstance(x, Unmade) else x.messages[0].content for x in one] for one in found]


def test_a_numbered_reply_is_read_and_tokens_are_counted(serve: Serve) -> None:
    server = serve(say_two)
    augment = method(server)
    assert asked(augment, "Where is it?", n=2) == ["At what place is it?", "Can you find it?"]
    assert augment.told().tokens == {"prompt": 30, "reply": 12}
    assert "2 other ways" in server.asked[0].text and server.asked[0].text.endswith("Request: Where is it?")
    again = method(server)
    assert asked(again, "Where is it?", n=2) and len(server.asked) == 1, "kept on disk"
    assert again.told().tokens == {"prompt": 30, "reply": 12}, "and counted alike"


def test_examples_are_of_the_same_label_and_never_the_row_itself(serve: Serve) -> None:
    server = serve(say_two)
    train = [talk(f"request {i} of {label}", label) for label in ("fee", "card") for i in range(20)]
    ask(method(server, examples=3), [train[0]], train)
    shown = server.asked[0].text
    assert shown.count("- request") == 3 and "of card" not in shown and "- request 0 of fee" not in shown
    before = len(server.asked)
    ask(method(server, examples=3), [train[0]], train[::-1])
    assert len(server.asked) == before, "in whatever order the rows come"


def test_what_was_asked_before_a_failure_is_kept(serve: Serve) -> None:
    def fail_later(request: Request) -> None:
        say_two(request) if request.number < 4 else request.send(400, b"no credit")

    rows = [talk(f"where is parcel {'abcdefghij'[i]}", "where") for i in range(10)]
    with pytest.raises(DataError, match="LU-D142.*6 replies did not come.*no credit"):
        ask(method(serve(fail_later), at_once=1), rows, rows)
    server = serve(say_two)
    with pytest.raises(DataError, match="no credit"):
        ask(method(serve(lambda request: request.send(400, b"no credit"))), [talk("who", "where")], rows)
    ask(method(server), rows, rows)
    assert len(server.asked) == 10, "another url is another endpoint"


def test_a_lost_reply_is_said_and_asked_again(serve: Serve) -> None:
    def lose_one(request: Request) -> None:
        say_two(request) if "parcel b" not in request.text[-10:] or request.number > 8 else request.send(400, b"no")

    server = serve(lose_one)
    rows = [talk(f"where is parcel {'abcd'[i]}", str(i)) for i in range(4)]
    found = ask(method(server, examples=0), rows, rows)
    assert found[1] == ["no reply"] and all(len(one) == 2 for one in (found[0], found[2], found[3]))
    ask(method(server, examples=0), rows, rows)
    assert len(server.asked) == 5, "one that can never be answered stops nothing"


def test_a_model_on_this_machine_writes(tiny: Path) -> None:
    augment = contextual(folder=tiny.parent, seed=0, labelled=False, model=str(tiny), max_new_tokens=8, examples=0)
    [[*found]] = ask(augment, [talk("where is it", "there")], [])
    assert found and augment.told().tokens["reply"] <= 8


def test_plain_text_is_left_alone_and_similar_needs_labels(serve: Serve) -> None:
    server = serve(say_two)
    assert ask(method(server), [plain("some text")], []) == [["plain text"]] and not server.asked
    with pytest.raises(DataError, match="LU-D146"):
        method(server, labelled=False, write="similar")
    with pytest.raises(DataError, match="LU-D146"):
        method(server, write="poems")


@pytest.mark.parametrize(
    ("reply", "items"),
    [
        ("1. a b\n2. c", ["a b", "c"]),
        ("Sure!\n1) a\n\n2) “b”\n", ["a", "b"]),
        ("- a\n* b", ["a", "b"]),
        ("just one", ["just one"]),
        ("several\nlines", []),
        ("", []),
        ("1.\n2.", []),
    ],
)
def test_replies_are_read(reply: str, items: list[str]) -> None:
    assert read_numbered(reply) == items
