"""Both clients wait out a 429 that says when to come back, and no other; they read every page of the usage."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.client import AsyncClient, Client, RefusedError
from service.client_batches import submit_batch
from service.jobs import tables
from service.jobs.database import DAY_S
from service.jobs.keys import KeyStore, NewKey
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.jobs.store import JobStore

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])


def done(kind: Callable[..., Any], url: str, what: Callable[[Any], Any], **options: Any) -> Any:
    """What a call of either client gives."""

    async def call() -> Any:
        client = kind(url, **options)
        try:
            answer = what(client)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            if inspect.isawaitable(closing := client.close()):
                await closing

    return asyncio.run(call())


class Refusing:
    """A server that refuses its first requests, each with a code and a time to wait, and then has nothing to tell."""

    def __init__(self, *refusals: tuple[str, str]) -> None:
        left = list(refusals)
        self.times: list[float] = []
        self.bodies: list[bytes] = []
        """Of what was posted."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.times.append(time.monotonic())
                code, wait = left.pop(0) if left else ("", "")
                body = json.dumps({"code": code, "detail": "no"} if code else {"items": []}).encode()
                self.send_response(429 if code else 200)
                self.send_header("Retry-After", wait)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                outer.bodies.append(body)
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Refusing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@BOTH
def test_a_rate_limit_is_waited_out_as_long_as_it_says(kind: type) -> None:
    with Refusing(("rate-limited", "0"), ("rate-limited", "1")) as server:
        assert done(kind, server.url, lambda client: client.methods()) == []
    _, second, third = server.times
    assert third - second >= 1, "it said one second"


@BOTH
@pytest.mark.parametrize("code", ["queue-full", "quota-exceeded", "too-many-streams"])
def test_other_refusals_are_told_at_once(kind: type, code: str) -> None:
    with Refusing((code, "0")) as server, pytest.raises(RefusedError) as caught:
        done(kind, server.url, lambda client: client.methods())
    assert (caught.value.code, len(server.times)) == (code, 1)


@BOTH
def test_a_wait_beyond_the_clients_timeout_is_not_begun(kind: type) -> None:
    with Refusing(("rate-limited", "60")) as server, pytest.raises(RefusedError, match="no"):
        done(kind, server.url, lambda client: client.methods(), timeout_s=5)
    assert len(server.times) == 1


class TestWhereKeysAreLimited:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(data_dir=tmp_path / "data", auth="on", rate_limit_per_s=1)

    @BOTH
    def test_many_requests_of_one_key_all_get_through(self, kind: type, url: str, store: JobStore) -> None:
        _, key = KeyStore(store.database).create(NewKey.model_validate({"name": "first"}))
        for _ in range(2 + 1):  # two at once, then one a second
            done(kind, url, lambda client: client.methods(), api_key=key)


@BOTH
def test_usage_has_the_days_of_all_pages(kind: type, url: str, store: JobStore) -> None:
    with store.database.writing() as tx:
        today = int(tx.now // DAY_S)
        days = [{"owner": tables.LOCAL_OWNER, "day": today - ago, "worker_s": 1.0} for ago in (0, 500, 900)]
        tx.execute(sa.insert(tables.usage), days)
    found = done(kind, url, lambda client: client.usage(since=date(2020, 1, 1)))
    assert len(found) == 3


def test_a_batch_that_waits_for_its_turn_is_sent_whole_again() -> None:
    with Refusing(("rate-limited", "0")) as server, Client(server.url) as client:
        submit_batch(client, lambda: [b"first\n", b"second\n"])
    assert server.bodies == [b"first\nsecond\n"] * 2
