"""A real server of chat completions on this machine, which answers as a function says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Answer = Callable[["Asked"], None]


class Asked:
    """One request at the server, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, number: int) -> None:
        self.handler, self.number = handler, number
        self.body: dict[str, Any] = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.text: str = self.body["messages"][-1]["content"]

    def say(self, text: str, model: str = "judge-1") -> None:
        self.send(200, json.dumps({"model": model, "choices": [{"message": {"content": text}}]}).encode())

    def send(self, code: int, content: bytes, **headers: str) -> None:
        self.handler.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(content)


class Server:
    """A real server on this machine that answers as a function says, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        asked: list[Asked] = []
        lock = threading.Lock()
        self.asked = asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with lock:
                    one = Asked(self, len(asked))
                    asked.append(one)
                with contextlib.suppress(OSError):  # the client may have gone
                    answer(one)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Server]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
