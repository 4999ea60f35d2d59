"""The review page's server: the standard library's, on this machine, for one reviewer.

What it answers is neutral: texts by their place, positions, counts. No id, no name of a model, no score and no line
of a log leaves it. It trusts no request: the Host must be its own (a page elsewhere that rebinds its name to this
address is refused), what changes something must come from its own page (Origin) as JSON of a bounded size, and any
address but this machine's asks for a token. The page runs only its own script and style (Content-Security-Policy).

It knows nothing of how votes are kept (`review`) and of what they say (`agreement`).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from luthier.errors import RunError
from luthier.page.words import visible
from luthier.votes import Tags, Vote, read_votes, votes_file
from luthier.web.review import Ballot, Session, appending, pairs, read_evaluation, review_key

PORT = 8765
PORTS_TRIED = 100
MAX_BODY = 64 * 1024
"""Bytes of a request."""
SHORTEST_TOKEN = 16
LOCAL = "127.0.0.1"
PAGE = {
    "/": ("review.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refused(Exception):
    """A request that gets no answer but its status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        self.status = status
        super().__init__(why)


class ReviewServer(ThreadingHTTPServer):
    """Serves one session. `names` are the hosts under which it may be asked for; with a `token`, who has it only."""

    daemon_threads = True

    def __init__(self, session: Session, host: str, port: int, token: str | None) -> None:
        self.session = session
        self.names = (LOCAL, "localhost") if host == LOCAL else (host,)
        self.token = token
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own would ask the network for a name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        query = f"?token={self.token}" if self.token else ""
        return f"http://{self.names[0]}:{self.server_port}/{query}"

    @property
    def hosts(self) -> set[str]:
        return {f"{name}:{self.server_port}" for name in self.names}

    @property
    def cookie(self) -> tuple[str, str]:
        """Name (a browser shares cookies between ports) and value, which is not the token itself."""
        value = hashlib.sha256((self.token or "").encode()).hexdigest()
        return f"luthier_review_{self.server_port}", value

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a closed tab is no error
            super().handle_error(request, client_address)


def serve(
    run: Path, reviewer: str, *, say: Callable[[str], None], host: str = LOCAL, port: int | None, token: str | None
) -> None:
    """Take `reviewer`'s votes on a run until interrupted; `say` gets the address once the page is there.

    Raises RunError LU-U005 (not evaluated), LU-U016 (nothing to judge), and what `appending` and `open_server` raise.
    """
    report, path = read_evaluation(run), votes_file(run, reviewer)
    shown = pairs(report, review_key(run), reviewer)
    if not shown:
        found = f"both models gave the same answer to all {len(report.samples)} samples"
        raise RunError.of("LU-U016", str(run), found, "there is nothing to judge")
    with appending(path) as write:
        session = Session(shown, read_votes(path), write)
        with open_server(session, host=host, port=port, token=token) as server:
            say(server.url)
            server.serve_forever()


def open_server(
    session: Session, *, host: str = LOCAL, port: int | None = None, token: str | None = None
) -> ReviewServer:
    """Listen at `host`, at `port` or, without one, at the first free from 8765 on.

    Raises RunError LU-U012 (an address that is refused) and LU-U013 (no free port).
    """
    _check_address(host, token)
    tried = [port] if port is not None else list(range(PORT, PORT + PORTS_TRIED))
    for candidate in tried:
        try:
            return ReviewServer(session, host, candidate, token)
        except OSError as error:
            why = error.strerror or str(error)
    raise RunError.of("LU-U013", f"{host}:{tried[0]}", f"cannot be listened at: {why}", "give another --port or --host")


def _check_address(host: str, token: str | None) -> None:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise RunError.of("LU-U012", "--host", f"'{host}' is no IPv4 address", f"for example {LOCAL}") from None
    if address.is_unspecified:
        advice = "name the one address under which reviewers reach this machine: others are then refused"
        raise RunError.of("LU-U012", "--host", f"'{host}' is every address", advice)
    if host != LOCAL and token is None:
        advice = "without a token anybody in reach could read the answers and vote: give --token"
        raise RunError.of("LU-U012", "--host", f"'{host}' is open to other machines", advice)
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise RunError.of("LU-U012", "--token", "is too short to keep anybody out", f"{SHORTEST_TOKEN} characters")


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: a connection each, so that a body that was refused is never read as a request."""

    server: ReviewServer
    server_version, sys_version = "Luthier", ""
    timeout = 30
    """Seconds of silence."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who reviews looks at the page."""

    def _answer(self, method: Any) -> None:
        try:
            self._check_host()
            method(urlsplit(self.path))
        except Refused as refused:
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), "application/json")

    def _check_host(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server is asked for under its own address only")
        origins = self.headers.get_all("Origin", [])
        if origins not in [[], *([f"http://{host}"] for host in self.server.hosts)]:
            raise Refused(HTTPStatus.FORBIDDEN, "only this server's own page may ask it")
        if self.command == "POST" and not origins:
            raise Refused(HTTPStatus.FORBIDDEN, "only this server's own page may vote")

    def _check_token(self, query: str) -> bool:
        """Whether the token came with this address, to be exchanged for a cookie."""
        if self.server.token is None:
            return False
        given = parse_qs(query).get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.server.token.encode()):
            return True
        name, value = self.server.cookie
        try:
            kept = SimpleCookie(self.headers.get("Cookie", "")).get(name)
        except CookieError:
            kept = None
        if kept is None or not hmac.compare_digest(kept.value.encode(), value.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that luthier review printed, with its token")
        return False

    def _get(self, url: Any) -> None:
        if self._check_token(url.query) and url.path == "/":
            name, value = self.server.cookie
            cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Lax"
            self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})
        elif url.path in PAGE:
            name, kind = PAGE[url.path]
            self._send(HTTPStatus.OK, (Path(__file__).with_name("templates") / name).read_bytes(), kind)
        elif url.path == "/state":
            self._send_json(self._state(self.server.session.first_open()))
        elif url.path == "/reference":
            self._send_json({"reference": visible(self._pair(parse_qs(url.query)).sample.reference)})
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, url: Any) -> None:
        self._check_token("")
        body, session = self._body(), self.server.session
        try:
            if url.path == "/vote":
                session.vote(Ballot.model_validate_json(body))
                self._send_json(self._state(session.first_open()))
            elif url.path == "/undo":
                undone = session.undo()
                self._send_json(self._state(*(undone or (session.first_open(),))))
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        except (ValidationError, IndexError):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no vote") from None
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, f"not saved: {error.strerror}") from None

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is JSON")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a vote says how long it is")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a vote has at most {MAX_BODY} bytes")
        return self.rfile.read(int(length))

    def _pair(self, query: dict[str, list[str]]) -> Any:
        given = query.get("position", [""])[0]
        if not (given.isascii() and given.isdigit() and len(given) < 10):
            raise Refused(HTTPStatus.BAD_REQUEST, "there is no such sample")
        if int(given) >= len(self.server.session.shown):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such sample")
        return self.server.session.shown[int(given)]

    def _state(self, position: int | None, earlier: Vote | None = None) -> dict[str, Any]:
        """Where the reviewer stands, and the sample at `position`, with what they said of it `earlier`."""
        session = self.server.session
        state: dict[str, Any] = {"done": session.n_done, "total": len(session.shown), "sample": None}
        if position is not None:
            pair = session.shown[position]
            state["sample"] = {
                "position": position,
                "prompt": visible(pair.sample.prompt),
                "left": visible(pair.text("left")),
                "right": visible(pair.text("right")),
                "tags": (earlier.tags if earlier else Tags()).model_dump(),
                "note": earlier.note if earlier else "",
                "correction": earlier.correction if earlier else "",
            }
        return state

    def _send_json(self, content: dict[str, Any]) -> None:
        self._send(HTTPStatus.OK, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
