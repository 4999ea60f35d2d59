"""JSON posted to servers that stand in for one another: what one of them answers, or why none did.

Busy servers (429), failing ones (408, 5xx), lost connections, silence for `timeout_s` and replies that cannot be read
are tried TRIES times, each time at the next of the urls, after a wait that doubles from `first_wait_s` or is what
`Retry-After` says. Everything else is said at once. Redirects are not followed: they would take the key to another
host. The key is in no message. This module knows nothing of what is asked, nor what for.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError

from luthier.errors import ModelError, first_line, printable

TRIES = 5
LONGEST_WAIT_S = 120.0
"""A server that asks to wait longer is not waited for."""
MAX_REPLY_BYTES = 4 << 20

T = TypeVar("T")


class Failed(Exception):
    """Why there is no answer, in words."""

    def __init__(self, words: str, *, again: bool = False, wait_s: float | None = None) -> None:
        super().__init__(words)
        self.again, self.wait_s = again, wait_s


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Servers that answer alike, and how they are asked."""

    urls: tuple[str, ...]
    """Up to and with `/v1`."""
    key: str = field(repr=False)
    """Empty: none is sent."""
    timeout_s: float
    """Of one try, until the reply is whole."""
    at_once: int
    """Requests in flight for each url."""
    first_wait_s: float = 1.0


def key_in(key_env: str | None) -> str:
    """The key that an environment variable holds, "" where none is named. Raises ModelError LU-M006."""
    if key_env is None:
        return ""
    key = os.environ.get(key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():  # http.client would show a key that it cannot send
        found = "the environment variable holds no key" if key_env in os.environ else "is not set in the environment"
        raise ModelError.of("LU-M006", key_env, found, f"export {key_env}=... before the run")
    return key


def post(
    to: Endpoint,
    path: str,
    body: Mapping[str, Any],
    read: Callable[[bytes], T],
    *,
    number: int = 0,
    stop: threading.Event | None = None,
) -> T:
    """What `read` makes of the reply; request `number` begins at the url of that number. Raises Failed.

    `stop` ends the waits before another try.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "luthier"}
    if to.key:
        headers["Authorization"] = f"Bearer {to.key}"
    content, stop = json.dumps(body).encode(), stop or threading.Event()
    for attempt in range(TRIES):
        url = f"{to.urls[(number + attempt) % len(to.urls)].rstrip('/')}/{path}"
        try:
            return read(_send(urllib.request.Request(url, content, headers), to.timeout_s))
        except Failed as failed:
            failure, wait_s = failed, failed.wait_s
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
            failure, wait_s = Failed(f"{type(error).__name__}: {first_line(error)}", again=True), None
        if wait_s is None:  # spread, so that those turned away together do not come back together
            wait_s = to.first_wait_s * 2**attempt * random.Random(f"{number} {attempt}").uniform(0.5, 1.0)
        if not failure.again or wait_s > LONGEST_WAIT_S or attempt == TRIES - 1 or stop.wait(wait_s):
            break
    words = f"{failure} (tried {attempt + 1} times)" if attempt else str(failure)
    raise Failed(words.replace(to.key, "***") if to.key else words)


def post_all(
    to: Endpoint, path: str, bodies: Sequence[Mapping[str, Any]], read: Callable[[bytes], T]
) -> Generator[tuple[int, T | Failed], None, None]:
    """The number of each request and what became of it, as they arrive; the urls share them in turn."""
    stop, pool = threading.Event(), ThreadPoolExecutor(to.at_once * len(to.urls))

    def ask(number: int, body: Mapping[str, Any]) -> T | Failed:
        try:
            return post(to, path, body, read, number=number, stop=stop)
        except Failed as failed:
            return failed

    try:
        numbers = {pool.submit(ask, number, body): number for number, body in enumerate(bodies)}
        for done in as_completed(numbers):
            yield numbers[done], done.result()
    finally:  # an interrupt must not wait for all that is left to ask
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def parse(content: bytes, what: str, pick: Callable[[Any], T]) -> T:
    """What `pick` takes out of a reply in JSON. Raises Failed, to be tried again, for a reply that is no `what`."""
    try:
        return pick(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        shown = printable(content[:200].decode(errors="replace"), 100)
        raise Failed(f"the reply is no {what}: {shown}", again=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _send(request: urllib.request.Request, timeout_s: float) -> bytes:
    """Raises Failed for what the server refused, OSError and HTTPException for what did not arrive."""
    deadline, content = time.monotonic() + timeout_s, b""
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as response:
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    raise Failed(f"the reply is over {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > deadline:  # the opener's limit is on each piece, and pieces may trickle
                    raise TimeoutError(f"the reply was not whole after {timeout_s:g} s")
    except HTTPError as error:
        with error:
            said = printable(error.read(1000).decode(errors="replace").strip(), 200)
        again = error.code in (408, 429) or error.code >= 500
        words = f"HTTP {error.code} {error.reason}: {said}".removesuffix(": ")
        raise Failed(words, again=again, wait_s=_retry_after(error.headers.get("Retry-After"))) from None
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
