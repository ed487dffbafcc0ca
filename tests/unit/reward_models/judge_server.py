"""A local server that speaks the OpenAI protocol and answers as a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reply(NamedTuple):
    """One answer over HTTP; a completion if `text` is given, else `body` as it is."""

    text: str | None = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay_s: float = 0.0

    @property
    def payload(self) -> bytes:
        if self.text is None:
            return self.body
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": self.text}}]}).encode()


class JudgeServer:
    """What arrived, and where; `answer(number, request)` decides what is sent back."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self._answer = answer
        self._lock = threading.Lock()
        self.base_url = ""

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        request = json.loads(body)
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            self.paths.append(path)
            number = len(self.requests)
        return self._answer(number, request)


def said(request: dict[str, Any]) -> str:
    """The text of a request's only message."""
    (text,) = [part["text"] for part in request["messages"][0]["content"] if part["type"] == "text"]
    return str(text)


def pictures(request: dict[str, Any]) -> list[str]:
    """The picture addresses of a request's only message."""
    content = request["messages"][0]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


@contextlib.contextmanager
def judge_server(answer: Callable[[int, dict[str, Any]], Reply]) -> Iterator[JudgeServer]:
    server = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = server.reply(self.path, dict(self.headers), body)
            time.sleep(reply.delay_s)
            with contextlib.suppress(ConnectionError):  # a caller that did not wait
                self.send_response(reply.status)
                for name, value in (*reply.headers, ("Content-Length", str(len(reply.payload)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.payload)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
