"""How fast the Serve application takes jobs, beside how fast it answers at all: `python -m tests.bench.submissions`.

The real application runs on a private Ray, without workers, on SQLite in a temporary folder. `CLIENTS` connections
send as fast as they get answers, in turns to `POST /generate`, each of whose answers is a job that is committed and
synced, and to `GET /healthz`, which goes through the same proxy, replica and middleware and touches nothing. Promised:
`posts_over_trivial`, the first ÷ the second, is at least 0.7. `posts_over_refused` compares with POSTs of a body that
is no JSON: Ray Serve fetches every body by a call from the replica back to the proxy, which a GET does not wait for.
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
ROUNDS, ROUND_S = 5, 2.5
Call = tuple[str, str, bytes | None, int]
"""Method, path, body, and the status that must come."""
TRIVIAL: Call = ("GET", "/healthz", None, 200)
REFUSED: Call = ("POST", "/generate", b"{", 400)
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
        for turn in range(1 + ROUNDS):
            per_s = []
            for call in (TRIVIAL, SUBMIT, REFUSED):
                count, took_s = answers_in(port, call, ROUND_S)
                num_jobs += count * (call is SUBMIT)
                per_s.append(count / took_s)
            if turn:  # the first one warms up
                rates.append(per_s)
        store = JobStore(settings.database_url)
        assert store.snapshot().jobs[JobState.QUEUED] == num_jobs
        store.close()
    return {
        "posts_per_s": statistics.median(posts for _, posts, _ in rates),
        "trivial_per_s": statistics.median(trivial for trivial, _, _ in rates),
        "posts_over_trivial": statistics.median(posts / trivial for trivial, posts, _ in rates),
        "posts_over_refused": statistics.median(posts / refused for _, posts, refused in rates),
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
