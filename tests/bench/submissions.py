"""How fast the Serve application takes jobs, beside how fast it answers at all: `python -m tests.bench.submissions`.

The real application runs on a private Ray, without workers, on SQLite in a temporary folder. `CLIENTS` connections
send as fast as they get answers, in turns to

* `POST /generate`, each of whose answers is a job that is committed and synced,
* `POST /trivial`, a route that this benchmark adds to the application: it gets the same request, reads its body, and
  does nothing,
* `GET /healthz`, which has no body. Ray Serve fetches a body by a call from the replica back to the proxy, which costs
  about as much as all the rest of such a request.

Promised: `posts_over_trivial`, the first ÷ the second, is at least 0.7. `posts_over_get` is the first ÷ the third.
"""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from service.jobs.states import JobState
from service.jobs.store import JobStore
from service.settings import Settings
from workers.up import free_port, private_ray, start_frontend

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from starlette.requests import Request

__all__ = ["measure"]

HOST = "127.0.0.1"
CLIENTS = 32
ROUNDS, ROUND_S = 5, 2.5
Call = tuple[str, str, bytes | None, int]
"""Method, path, body, and the status that must come."""
BODY = json.dumps({"prompt": "a red cube on top of a blue cylinder"}).encode()
SUBMIT: Call = ("POST", "/generate", BODY, 202)
TRIVIAL: Call = ("POST", "/trivial", BODY, 200)
GET: Call = ("GET", "/healthz", None, 200)


def beside_trivial(settings: Settings) -> Application:
    """Describe the frontend with one route more."""
    # Ray reads its environment when it is imported: `private_ray` comes first.
    from service.http.app import Frontend

    class BesideTrivial(Frontend.func_or_class):  # type: ignore[name-defined,misc]
        def __serve_build_asgi_app__(self) -> FastAPI:
            api: FastAPI = super().__serve_build_asgi_app__()

            async def trivial(request: Request) -> JSONResponse:
                return JSONResponse({"bytes": len(await request.body())})

            api.add_route("/trivial", trivial, methods=["POST"])
            return api

    application: Application = Frontend.options(func_or_class=BesideTrivial).bind(settings)  # type: ignore[attr-defined]
    return application


def answers_in(port: int, call: Call, seconds: float) -> tuple[int, float]:
    """Let all clients call for some time: the number of answers, and the seconds until the last one came."""
    method, path, body, expected = call
    began = time.perf_counter()

    def send(_: int) -> int:
        count = 0
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        while time.perf_counter() < began + seconds:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == expected, text
            count += 1
        connection.close()
        return count

    with ThreadPoolExecutor(CLIENTS) as clients:
        counts = list(clients.map(send, range(CLIENTS)))
    return sum(counts), time.perf_counter() - began


def measure() -> dict[str, float]:
    """Measure in turns; every job that was answered must be in the database."""
    with tempfile.TemporaryDirectory() as folder, private_ray():
        settings = Settings(data_dir=Path(folder), auth="off", max_queued=1_000_000)
        port = free_port(HOST, 0)
        start_frontend(settings, HOST, port, beside_trivial(settings))
        num_jobs, rates = 0, []
        for turn in range(1 + ROUNDS):
            per_s = []
            for call in (SUBMIT, TRIVIAL, GET):
                count, took_s = answers_in(port, call, ROUND_S)
                num_jobs += count * (call is SUBMIT)
                per_s.append(count / took_s)
            if turn:  # the first one warms up
                rates.append(per_s)
        store = JobStore(settings.database_url)
        assert store.snapshot().jobs[JobState.QUEUED] == num_jobs
        store.close()
    return {
        "posts_per_s": statistics.median(posts for posts, _, _ in rates),
        "trivial_per_s": statistics.median(trivial for _, trivial, _ in rates),
        "gets_per_s": statistics.median(gets for _, _, gets in rates),
        "posts_over_trivial": statistics.median(posts / trivial for posts, trivial, _ in rates),
        "posts_over_get": statistics.median(posts / gets for posts, _, gets in rates),
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
