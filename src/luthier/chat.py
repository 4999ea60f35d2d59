"""Conversations in, replies out: a model on this machine, one behind HTTP, or a function.

A `Chat` gives each conversation its reply, in order. What could not be answered is a reply that says why: nothing is
raised for one lost item and nothing is left out. All are asked for their likeliest reply (temperature 0); a server may
still answer differently from day to day. This module knows nothing of what is asked, nor what for.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Protocol
from urllib.error import HTTPError

from luthier.conversation import Message, make_conversation
from luthier.errors import DataError, ModelError, first_line, printable

if TYPE_CHECKING:
    from luthier.decoder import Decoder
    from luthier.encode import Encoder
    from luthier.models import Base

TRIES = 5
LONGEST_WAIT_S = 120.0
"""A server that asks to wait longer is not waited for."""
MAX_REPLY_BYTES = 4 << 20
TOKENS_AT_ONCE = 2048
"""Distinct tokens in one forward pass over options."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, or why nothing was."""

    text: str
    failure: str | None = None
    """Why there is no reply, in words; `text` is then empty."""
    model: str = ""
    """Who answered: the version that the server says, or the name and digest of the weights."""
    nats: Mapping[str, float] | None = None
    """Of a choice: negative log-likelihood of each option as the whole reply."""


class Chat(Protocol):
    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        """A reply to each conversation, in order. Raises nothing for an item that has none: it says so."""


def scripted(function: Callable[[Sequence[Message]], str | Reply]) -> Chat:
    """A chat that answers by a function: for tests, and for trying a recipe without a model."""

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        said = map(function, conversations)
        return [Reply(found, model="scripted") if isinstance(found, str) else found for found in said]

    return chat


# -- on this machine -------------------------------------------------------------------------------------


def local(base: Base, *, max_new_tokens: int) -> Chat:
    """A base model's greedy replies. It is loaded when first asked."""
    load = cache(partial(_Speaker.of, base))

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        from luthier.generate import generate

        speaker = load()
        encode = partial(speaker.prompt, n_new=max_new_tokens)
        prompts, replies = _encoded(encode, conversations)
        written = generate(
            speaker.decoder,
            [*prompts.values()],
            max_new_tokens=max_new_tokens,
            end_ids=speaker.end_ids,
            advance=lambda *_, **__: None,
        )
        for i, ids in zip(prompts, written, strict=True):
            text = speaker.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()
            replies[i] = Reply(text, model=model_name(base))
        return replies

    return chat


def choosing(base: Base, options: Sequence[str]) -> Chat:
    """A base model that can only reply with one of the `options`: the likeliest, with the nats of all of them.

    Conversation and options are one prefix tree, so five options cost little more than one.
    """
    load = cache(partial(_Speaker.of, base))

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        from luthier.decoder import score_all

        speaker = load()
        asked, replies = _encoded(partial(speaker.with_options, options=options), conversations)
        examples = [example for of in asked.values() for example in of]
        nats = iter(score_all(speaker.decoder, examples, TOKENS_AT_ONCE))
        for i in asked:
            found = dict(zip(options, nats, strict=False))
            replies[i] = Reply(min(found, key=found.__getitem__), model=model_name(base), nats=found)
        return replies

    return chat


def model_name(base: Base) -> str:
    return f"{base.public_name}@{base.fingerprint[:12]}"


def _encoded(
    encode: Callable[[Sequence[Message]], Any], conversations: Sequence[Sequence[Message]]
) -> tuple[dict[int, Any], list[Reply]]:
    """What can be asked, by its place; and a reply for each place, which says why something cannot."""
    asked, replies = {}, [Reply("") for _ in conversations]
    for i, messages in enumerate(conversations):
        try:
            asked[i] = encode(messages)
        except DataError as error:
            replies[i] = Reply("", "; ".join(problem.found for problem in error.problems))
    return asked, replies


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A loaded model with what it needs to speak."""

    decoder: Decoder
    encoder: Encoder
    end_ids: frozenset[int]
    window: int | None
    """Tokens."""

    @classmethod
    def of(cls, base: Base) -> _Speaker:
        from luthier.decoder import Decoder
        from luthier.encode import Encoder
        from luthier.models import context_tokens, load_model, load_tokenizer

        encoder = Encoder(load_tokenizer(base), context_tokens(base))
        turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        example = encoder(make_conversation(turns, ""))
        end = example.ids[max(t for t, learned in enumerate(example.learn) if learned)]
        ends = frozenset({encoder.tokenizer.eos_token_id, end})
        return cls(Decoder(load_model(base)), encoder, ends, encoder.max_tokens)

    def prompt(self, messages: Sequence[Message], n_new: int) -> list[int]:
        ids = self.encoder.prompt(messages)
        if self.window and len(ids) + n_new > self.window:
            found = f"is {len(ids)} tokens long, over the model's window of {self.window} less {n_new} for the reply"
            raise DataError.of("LU-D046", "", found)
        return ids

    def with_options(self, messages: Sequence[Message], options: Sequence[str]) -> list[Any]:
        """The conversation with each option as what is learned."""
        before = [m.model_copy(update={"learn": False}) for m in messages]
        replies = [Message(role="assistant", content=option) for option in options]
        return [self.encoder(make_conversation([*before, reply], "")) for reply in replies]


# -- by HTTP ---------------------------------------------------------------------------------------------


def endpoint(
    urls: Sequence[str],
    model: str,
    *,
    key_env: str | None = None,
    seed: int = 0,
    max_new_tokens: int,
    timeout_s: float = 60.0,
    at_once: int = 4,
    first_wait_s: float = 1.0,
) -> Chat:
    """Any server that answers OpenAI's `POST /chat/completions`.

    Busy servers (429), failing ones (408, 5xx), lost connections, silence for `timeout_s` and replies that are no
    chat completion are tried TRIES times, each time at the next of the `urls`, after a wait that doubles from
    `first_wait_s` or is what `Retry-After` says. Everything else is said at once. Redirects are not followed: they
    would take the key to another host.

    Raises ModelError LU-M006 where the environment variable `key_env` holds no key.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "luthier"}
    key = _key(key_env) if key_env else ""
    if key:
        headers["Authorization"] = f"Bearer {key}"
    opener = urllib.request.build_opener(_NoRedirect)

    def ask(i: int, messages: Sequence[Message], stop: threading.Event) -> Reply:
        said = [{"role": m.role, "content": m.content} for m in messages]
        settings = {"model": model, "messages": said, "temperature": 0, "seed": seed, "max_tokens": max_new_tokens}
        body = json.dumps(settings).encode()
        for attempt in range(TRIES):
            url = f"{urls[(i + attempt) % len(urls)].rstrip('/')}/chat/completions"
            try:
                return _read(_post(opener, urllib.request.Request(url, body, headers), timeout_s))
            except _Failed as failed:
                failure, wait_s = failed, failed.wait_s
            except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
                failure, wait_s = _Failed(f"{type(error).__name__}: {first_line(error)}", again=True), None
            if wait_s is None:  # spread, so that those turned away together do not come back together
                wait_s = first_wait_s * 2**attempt * random.Random(f"{i} {attempt}").uniform(0.5, 1.0)
            if not failure.again or wait_s > LONGEST_WAIT_S or attempt == TRIES - 1 or stop.wait(wait_s):
                break
        words = f"{failure} (tried {attempt + 1} times)" if attempt else str(failure)
        return Reply("", words.replace(key, "***") if key else words)

    def chat(conversations: Sequence[Sequence[Message]]) -> list[Reply]:
        stop, pool = threading.Event(), ThreadPoolExecutor(at_once * len(urls))
        try:
            return list(pool.map(partial(ask, stop=stop), range(len(conversations)), conversations))
        finally:  # an interrupt must not wait for all that is left to ask
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    return chat


class _Failed(Exception):
    def __init__(self, words: str, *, again: bool, wait_s: float | None = None) -> None:
        super().__init__(words)
        self.again, self.wait_s = again, wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _key(key_env: str) -> str:
    key = os.environ.get(key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():  # http.client would show a key that it cannot send
        found = "the environment variable holds no key" if key_env in os.environ else "is not set in the environment"
        raise ModelError.of("LU-M006", key_env, found, f"export {key_env}=... before the run")
    return key


def _post(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout_s: float) -> bytes:
    """Raises _Failed for what the server refused, OSError and HTTPException for what did not arrive."""
    deadline, content = time.monotonic() + timeout_s, b""
    try:
        with opener.open(request, timeout=timeout_s) as response:
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    raise _Failed(f"the reply is over {MAX_REPLY_BYTES} bytes", again=False)
                if time.monotonic() > deadline:  # the opener's limit is on each piece, and pieces may trickle
                    raise TimeoutError(f"the reply was not whole after {timeout_s:g} s")
    except HTTPError as error:
        with error:
            said = printable(error.read(1000).decode(errors="replace").strip(), 200)
        again = error.code in (408, 429) or error.code >= 500
        words = f"HTTP {error.code} {error.reason}: {said}".removesuffix(": ")
        raise _Failed(words, again=again, wait_s=_retry_after(error.headers.get("Retry-After"))) from None
    return content


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a number of seconds or an HTTP date; None where it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _read(content: bytes) -> Reply:
    try:
        data = json.loads(content)
        text, model = data["choices"][0]["message"]["content"], data.get("model") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        shown = printable(content[:200].decode(errors="replace"), 100)
        raise _Failed(f"the reply is no chat completion: {shown}", again=True) from None
    if not isinstance(text, str):
        raise _Failed("the reply holds no text", again=False)
    return Reply(text, model=str(model))
