"""A real server with a real model in it: what of vLLM's answers is used, and the ways in which servers fail."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from luthier.decoder import Decoder
from luthier.generate import drawn, generate, greedy
from luthier.models import find_base, load_model, load_tokenizer
from luthier.saved import load_merged


class Request:
    """One request, numbered from 0 at its server, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, number: int) -> None:
        self.handler, self.number = handler, number
        self.path, self.key = handler.path.removeprefix("/v1/"), handler.headers["Authorization"]
        self.body: dict[str, Any] = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))

    def send(self, code: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.handler.send_response(code)
        self.handler.send_header("Content-Length", str(len(data)))
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def refuse(self, code: int, why: str) -> None:
        self.send(code, {"error": {"message": why, "code": code}})


class ModelServer:
    """Holds the model of `folder` as `name`, and adapters beside it.

    `fault` may answer a request in the model's place: then it returns True.
    """

    def __init__(self, folder: Path, name: str = "tiny") -> None:
        self.folder, self.name = folder, name
        self.models = {name: self._load()}
        self.tokenizer = load_tokenizer(find_base(str(folder)))
        self.requests: list[Request] = []
        self.fault: Callable[[Request], bool] = lambda request: False
        self.tells_ids, self.stops, self.loads_adapters = True, True, True
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with server._lock:
                    request = Request(self, len(server.requests))
                    server.requests.append(request)
                with contextlib.suppress(OSError):  # the client may have gone
                    if not server.fault(request):
                        server._answer(request)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self, path: str = "completions") -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _load(self, adapter: Path | None = None) -> Decoder:
        model = load_model(find_base(str(self.folder)), torch.device("cpu"), torch.float32)
        return Decoder(load_merged(model, adapter) if adapter else model)

    def _answer(self, request: Request) -> None:
        body = request.body
        if request.path == "completions" and body["model"] in self.models:
            with self._lock:
                ids = self._complete(body)
            text = self.tokenizer.decode(ids, skip_special_tokens=self.stops)
            ended = ids[-1:] in [[end] for end in body["stop_token_ids"]]
            choice = {"index": 0, "text": text, "finish_reason": "stop" if ended else "length"}
            choice |= {"token_ids": ids} if self.tells_ids else {}
            request.send(200, {"model": body["model"], "choices": [choice]})
        elif request.path == "load_lora_adapter" and self.loads_adapters:
            if body["lora_name"] in self.models:
                return request.refuse(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
            self.models[body["lora_name"]] = self._load(Path(body["lora_path"]))
            request.send(200, "Success")
        elif request.path == "unload_lora_adapter" and body["lora_name"] in self.models:
            del self.models[body["lora_name"]]
            request.send(200, "Success")
        else:
            request.send(404, {"detail": "Not Found"})

    def _complete(self, body: dict[str, Any]) -> list[int]:
        """The ids with the one that ended them, as vLLM tells them."""
        ends = body["stop_token_ids"] if self.stops else []
        [ids] = generate(
            self.models[body["model"]],
            [body["prompt"]],
            max_new_tokens=body["max_tokens"],
            end_ids=ends,
            advance=lambda *_, **__: None,
            choose=drawn(body["temperature"], body["seed"]) if body["temperature"] else greedy,
        )
        return ids if len(ids) == body["max_tokens"] else [*ids, ends[0]]
