"""A real HTTP server on 127.0.0.1 that speaks enough of the OpenAI protocol, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]
"""Request body → text or fields of the message, or (that, first-token log-probabilities), or one of the errors below."""


class Status(Exception):
    """Answer with an HTTP status."""

    def __init__(self, code: int, message: str = "no", headers: dict[str, str] | None = None):
        self.code, self.message, self.headers = code, message, headers or {}


class Raw(Exception):
    """Answer with these bytes as they are."""


class Slow(Exception):
    """Answer after that many seconds."""


class Drip(Exception):
    """Answer a byte at a time, so many seconds apart."""


def body_of(request: dict[str, Any], answers: list[Any]) -> dict[str, Any]:
    choices = []
    for index, answer in enumerate(answers):
        text, first = answer if isinstance(answer, tuple) else (answer, None)
        message = text if isinstance(text, dict) else {"content": text}
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
        if first and request.get("logprobs"):
            top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first.items()]
            choice["logprobs"] = {"content": [{"token": top[0]["token"], "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}]}
        choices.append(choice)
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": request["model"], "choices": choices, "usage": usage}


@contextmanager
def served(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The server's base URL, and the requests that reached it (headers under "headers")."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**request, "headers": dict(self.headers), "path": self.path})
            try:
                body = json.dumps(body_of(request, [answer(request) for _ in range(request.get("n") or 1)])).encode()
            except Status as status:
                self._send(status.code, json.dumps({"error": {"message": status.message}}).encode(), status.headers)
                return
            except Raw as raw:
                body = raw.args[0]
            except Slow as slow:
                time.sleep(slow.args[0])
                body = b"{}"
            except Drip as drip:
                self._drip(drip.args[0])
                return
            self._send(200, body, {})

        def _drip(self, pause: float) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(b" ")
                    time.sleep(pause)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            try:
                self.send_response(code)
                for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a client that did not wait

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
