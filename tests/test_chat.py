"""Every conversation gets its reply, in order, whatever the server does; what is lost says why."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Answer, Asked, serve

from luthier.chat import Reply, choosing, endpoint, local, model_name, scripted
from luthier.conversation import Message
from luthier.encode import Encoder
from luthier.errors import ModelError
from luthier.http import MAX_REPLY_BYTES, TRIES, _retry_after
from luthier.models import find_base, load_model, load_tokenizer

__all__ = ["serve"]  # a fixture


def talks(*texts: str) -> list[list[Message]]:
    return [[Message(role="user", content=text)] for text in texts]


def ask(urls: str | Sequence[str], *texts: str, **settings: Any) -> list[Reply]:
    urls = [urls] if isinstance(urls, str) else urls
    given = {"max_new_tokens": 8, "timeout_s": 5.0, "first_wait_s": 0.01, **settings}
    return endpoint(urls, "judge", **given)(talks(*texts))


def echo(asked: Asked) -> None:
    asked.say(asked.text)


# -- by HTTP ---------------------------------------------------------------------------------------------


def test_what_is_sent_is_greedy_seeded_and_whole(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " secret-key\n")
    server = serve(echo)
    chat = endpoint([server.url], "judge", key_env="JUDGE_KEY", seed=7, max_new_tokens=8)
    turns = [
        Message(role="user", content="é \ud83d\ude00 <|im_end|>".encode("utf-16", "surrogatepass").decode("utf-16")),
        Message(role="assistant", content="b", learn=True),
        Message(role="user", content="c"),
    ]
    assert chat([turns]) == [Reply("c", model="judge-1")]
    (asked,) = server.asked
    assert asked.handler.path == "/v1/chat/completions"
    assert asked.handler.headers["Authorization"] == "Bearer secret-key"
    said = [{"role": m.role, "content": m.content} for m in turns]
    assert asked.body == {"model": "judge", "messages": said, "temperature": 0, "seed": 7, "max_tokens": 8}


def test_no_key_is_sent_where_none_is_named(serve: Any) -> None:
    server = serve(echo)
    ask(server.url, "a")
    assert server.asked[0].handler.headers["Authorization"] is None


@pytest.mark.parametrize("value", [None, "", "two\nlines", "käse"])
def test_a_missing_key_is_said_at_once_and_not_shown(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ModelError, match="LU-M006 JUDGE_KEY") as caught:
        endpoint(["http://127.0.0.1:9/v1"], "judge", key_env="JUDGE_KEY", max_new_tokens=8)
    assert not value or value not in str(caught.value)


def test_replies_are_in_order_though_they_come_in_another(serve: Any) -> None:
    def later_first(asked: Asked) -> None:
        time.sleep(0.2 - 0.01 * int(asked.text))
        asked.say(asked.text)

    texts = [str(i) for i in range(20)]
    assert [r.text for r in ask(serve(later_first).url, *texts, at_once=20)] == texts


def test_no_more_requests_at_once_than_allowed(serve: Any) -> None:
    lock, in_flight, most = threading.Lock(), 0, 0

    def slowly(asked: Asked) -> None:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        time.sleep(0.05)
        with lock:
            in_flight -= 1
        asked.say(asked.text)

    ask(serve(slowly).url, *map(str, range(20)), at_once=3)
    assert 1 < most <= 3


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_a_busy_or_failing_server_is_asked_again(serve: Any, code: int) -> None:
    server = serve(lambda asked: asked.say("ok") if asked.number == 2 else asked.send(code, b"wait"))
    assert ask(server.url, "a") == [Reply("ok", model="judge-1")]
    assert len(server.asked) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_what_is_refused_is_not_asked_again(serve: Any, code: int) -> None:
    server = serve(lambda asked: asked.send(code, b'{"error": "no such model"}'))
    (reply,) = ask(server.url, "a")
    assert reply.text == "" and reply.failure and f"HTTP {code}" in reply.failure and "no such model" in reply.failure
    assert len(server.asked) == 1


def test_retry_after_is_what_is_waited(serve: Any) -> None:
    """With the first wait that is set here, anything else would hang."""
    server = serve(lambda asked: asked.say("ok") if asked.number else asked.send(429, b"", Retry_After="0"))
    assert ask(server.url, "a", first_wait_s=100.0) == [Reply("ok", model="judge-1")]


def test_who_asks_for_too_long_a_wait_is_not_waited_for(serve: Any) -> None:
    server = serve(lambda asked: asked.send(429, b"", Retry_After="86400"))
    assert ask(server.url, "a")[0].failure == "HTTP 429 Too Many Requests"
    assert len(server.asked) == 1


def test_retry_after_is_read() -> None:
    assert (_retry_after(None), _retry_after("7"), _retry_after("soon")) == (None, 7.0, None)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert _retry_after(format_datetime(later, usegmt=True)) == pytest.approx(3600, abs=60)
    assert _retry_after(format_datetime(later - timedelta(days=1))) == 0.0


GARBAGE = [
    b"",
    b"<html>busy</html>",
    b"[]",
    b"null",
    b'{"choices": []}',
    b'{"choices": [{"message"',
    b'{"choices": {"message": 1}}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda g: repr(g[:20]))
def test_garbage_is_asked_again_and_then_said(serve: Any, garbage: bytes) -> None:
    server = serve(lambda asked: asked.send(200, garbage))
    (reply,) = ask(server.url, "a")
    assert reply.failure and "is no chat completion" in reply.failure and f"tried {TRIES} times" in reply.failure
    assert len(server.asked) == TRIES


def test_a_reply_without_text_is_said(serve: Any) -> None:
    content = json.dumps({"choices": [{"message": {"content": None, "tool_calls": []}}]}).encode()
    assert ask(serve(lambda asked: asked.send(200, content)).url, "a")[0].failure == "the reply holds no text"


def test_a_reply_without_end_is_not_read_to_the_end(serve: Any) -> None:
    (reply,) = ask(serve(lambda asked: asked.send(200, b" " * (MAX_REPLY_BYTES + 1))).url, "a")
    assert reply.failure == f"the reply is over {MAX_REPLY_BYTES} bytes"


def hang_up(asked: Asked) -> None:
    asked.handler.connection.shutdown(socket.SHUT_RDWR)


def half(asked: Asked) -> None:
    asked.handler.send_response(200)
    asked.handler.send_header("Content-Length", "1000")
    asked.handler.end_headers()
    asked.handler.wfile.write(b'{"choices":')
    hang_up(asked)


@pytest.mark.parametrize("fault", [hang_up, half])
def test_a_lost_connection_is_asked_again(serve: Any, fault: Answer) -> None:
    server = serve(lambda asked: asked.say("ok") if asked.number else fault(asked))
    assert ask(server.url, "a") == [Reply("ok", model="judge-1")]


def test_silence_ends(serve: Any) -> None:
    server = serve(lambda asked: time.sleep(3) if asked.text == "b" else asked.say(asked.text))
    replies = ask(server.url, "a", "b", "c", timeout_s=0.1)
    assert [r.text for r in replies] == ["a", "", "c"]
    assert replies[1].failure and "timed out" in replies[1].failure and f"tried {TRIES} times" in replies[1].failure


def test_a_trickle_ends(serve: Any) -> None:
    """Each byte comes in time; the whole does not."""

    def trickle(asked: Asked) -> None:
        asked.handler.send_response(200)
        asked.handler.end_headers()
        for _ in range(60):
            asked.handler.wfile.write(b" ")
            time.sleep(0.05)

    (reply,) = ask(serve(trickle).url, "a", timeout_s=0.2)
    assert reply.failure and "was not whole after 0.2 s" in reply.failure


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        replies = ask(url, "a", "b")
    assert all(r.failure and "refused" in r.failure for r in replies)


def test_a_host_that_is_no_name_is_said() -> None:
    assert [r.failure is not None for r in ask("http://a..b/v1", "a", "b")] == [True, True]


def test_several_servers_share_the_work_and_stand_in_for_each_other(serve: Any) -> None:
    good, other = serve(echo), serve(echo)
    texts = [str(i) for i in range(12)]
    assert [r.text for r in ask([good.url, other.url], *texts)] == texts
    assert len(good.asked) == len(other.asked) == 6
    ill = serve(lambda asked: asked.send(500, b""))
    assert [r.text for r in ask([ill.url, good.url + "/"], *texts)] == texts
    assert len(ill.asked) == 6


def test_a_redirect_does_not_carry_the_key_away(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    thief = serve(echo)
    server = serve(lambda asked: asked.send(302, b"", Location=f"{thief.url}/chat/completions"))
    (reply,) = ask(server.url, "a", key_env="JUDGE_KEY")
    assert reply.failure and "HTTP 302" in reply.failure and not thief.asked


def test_a_key_that_comes_back_is_not_shown(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    server = serve(lambda asked: asked.send(401, b"incorrect key: secret-key"))
    (reply,) = ask(server.url, "a", key_env="JUDGE_KEY")
    assert reply.failure == "HTTP 401 Unauthorized: incorrect key: ***"


def test_nothing_is_lost_whatever_happens(serve: Any) -> None:
    """Each item fails in ways of its own: it gets its own reply or a reason, and its own place."""
    faults = [hang_up, half, lambda a: a.send(500, b""), lambda a: a.send(400, b""), lambda a: a.send(200, b"{")]

    def answer(asked: Asked) -> None:
        rng = random.Random(f"{asked.text} {asked.number}")
        rng.choice(faults)(asked) if rng.random() < 0.4 else asked.say(f"re: {asked.text}")

    texts = [str(i) for i in range(150)]
    replies = ask(serve(answer).url, *texts, at_once=8)
    answered = [r.failure is None for r in replies]
    assert all((r.text == f"re: {text}") == ok for r, text, ok in zip(replies, texts, answered, strict=True))
    assert 100 < sum(answered) < 150 and all(r.failure for r, ok in zip(replies, answered, strict=True) if not ok)


def test_an_interrupt_does_not_wait_for_the_rest(serve: Any) -> None:
    """The waits before the next try are up to 100 s long here, and end with it."""
    server = serve(lambda asked: asked.send(503, b""))
    before = threading.active_count()
    raised = threading.Event()

    def press() -> None:  # again where Python loses it: what a destructor or a callback raises, it ignores
        wait_s = 0.3
        while not raised.wait(wait_s):
            os.kill(os.getpid(), signal.SIGINT)
            wait_s = 5.0

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    presses = threading.Thread(target=press)
    presses.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(server.url, *"abcdefghij", first_wait_s=100.0)
    finally:
        raised.set()
        presses.join()
        signal.signal(signal.SIGINT, handler)
    while threading.active_count() > before + 1:
        time.sleep(0.01)
    assert len(server.asked) <= 4, "what had not begun was not asked"


# -- here ------------------------------------------------------------------------------------------------


def test_a_script_answers() -> None:
    gone = Reply("", "gone")
    chat = scripted(lambda turns: gone if turns[0].content == "b" else turns[0].content.upper())
    assert chat(talks("a", "b", "c")) == [Reply("A", model="scripted"), gone, Reply("C", model="scripted")]


def test_a_local_model_writes_what_it_writes_alone(tiny: Path) -> None:
    base = find_base(str(tiny))
    tokenizer, model = load_tokenizer(base), load_model(base)
    replies = local(base, max_new_tokens=5)(talks("Hello", "What is it?"))
    for turns, reply in zip(talks("Hello", "What is it?"), replies, strict=True):
        ids = torch.tensor([Encoder(tokenizer).prompt(turns)])
        out = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        written = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert reply == Reply(written, model=model_name(base))


def test_what_a_local_model_cannot_take_is_said_and_the_rest_answered(tiny: Path) -> None:
    texts = ("Hello", "x " * 3000, "\uf8f0", "Hello")
    for chat in (local(find_base(str(tiny)), max_new_tokens=2), choosing(find_base(str(tiny)), ["1", "2"])):
        replies = chat(talks(*texts))
        assert [r.failure is None for r in replies] == [True, False, False, True]
        assert replies[0] == replies[3] and replies[1].failure and replies[2].failure
        assert "tokens long" in replies[1].failure and "private-use" in replies[2].failure
        assert chat([]) == []


def test_a_choice_is_the_likeliest_option_alone(tiny: Path) -> None:
    base, options = find_base(str(tiny)), ["1", "10", "first", "tie"]
    tokenizer, model = load_tokenizer(base), load_model(base)
    conversations = [*talks("Hello", "Is it 1 or 2?"), [*talks("Hi")[0], Message(role="assistant", content="Yes?")]]
    conversations[2].append(Message(role="user", content="1"))
    for turns, reply in zip(conversations, choosing(base, options)(conversations), strict=True):
        prompt = Encoder(tokenizer).prompt(turns)
        alone = {}
        for option in options:
            ids = prompt + tokenizer(option + "<|im_end|>")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double()
            nats = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
            alone[option] = float(nats[len(prompt) - 1 :].sum())
        assert reply.nats == pytest.approx(alone, rel=1e-5)
        assert reply.text == min(alone, key=alone.__getitem__)
