"""How fast the Serve application takes jobs, beside how fast it answers at all: `python -m tests.bench.submissions`.

The real application runs on a private Ray, without workers, on SQLite in a temporary folder. `CLIENTS` connections
send as fast as they get answers, in turns to `POST /generate`, each of whose answers is a job that is committed and
synced, and to `GET /healthz`, which goes through the same proxy, replica and middleware and touches nothing. Promised:
`posts_over_trivial`, the first ÷ the second, is at least 0.7.
"""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.jobs.states import JobState
from service.jobs.store import JobStore
from service.settings import Settings
from workers.up import free_port, private_ray, start_frontend

__all__ = ["measure"]

HOST = "127.0.0.1"
CLIENTS = 32
ROUNDS, ROUND_S, WARM_S = 5, 2.5, 3.0
Call = tuple[str, str, bytes | None, int]
"""Method, path, body, and the status that must come."""
TRIVIAL: Call = ("GET", "/healthz", None, 200)
SUBMIT: Call = (
    "POST",
    "/generate",
    json.dumps({"prompt": "a red cube on top of a blue cylinder"}).encode(),
    202,
)


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
        start_frontend(settings, HOST, port)
        num_jobs, rates = 0, []
        for call in (TRIVIAL, SUBMIT):
            count, _ = answers_in(port, call, WARM_S)
            num_jobs += count * (call is SUBMIT)
        for _ in range(ROUNDS):
            trivial, trivial_s = answers_in(port, TRIVIAL, ROUND_S)
            posts, posts_s = answers_in(port, SUBMIT, ROUND_S)
            num_jobs += posts
            rates.append((posts / posts_s, trivial / trivial_s))
        store = JobStore(settings.database_url)
        assert store.snapshot().jobs[JobState.QUEUED] == num_jobs
        store.close()
    return {
        "posts_per_s": statistics.median(post for post, _ in rates),
        "trivial_per_s": statistics.median(trivial for _, trivial in rates),
        "posts_over_trivial": statistics.median(post / trivial for post, trivial in rates),
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
