"""A batch of 100,000 lines over HTTP: seconds until it is accepted, and how much the frontend's memory grows meanwhile.

Run `python -m tests.bench.batch_upload [--lines 100000]`. The frontend is a process of its own, on SQLite in a
temporary folder; its memory is read from /proc. Promised: at most 60 s and 200 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["measure"]

FRONTEND = """
import json, pathlib, sys, uvicorn
from service.http.api import build_api
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings

settings = Settings(data_dir=pathlib.Path(sys.argv[1]), auth="off")
api = build_api(JobStore(settings.database_url), open_object_store(settings.objects_url), settings)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(uvicorn.Config(api, port=0, log_level="warning")).run()
"""
SAMPLE_S = 0.1
BLOCK_LINES = 1_000


def lines(count: int) -> Iterator[bytes]:
    """Valid lines, in blocks."""
    for first in range(0, count, BLOCK_LINES):
        block = (
            {"custom_id": f"object-{n:06d}", "body": {"prompt": f"a red cube on top of a blue cylinder, {n}"}}
            for n in range(first, min(first + BLOCK_LINES, count))
        )
        yield b"".join(json.dumps(one).encode() + b"\n" for one in block)


def resident_mb(pid: int) -> float:
    """Memory of a process, megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1_000


class Watch(threading.Thread):
    """The largest memory of a process while it lasts."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.largest_mb = resident_mb(pid)
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.largest_mb = max(self.largest_mb, resident_mb(self._pid))

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.largest_mb


def measure(count: int = 100_000) -> dict[str, float]:
    """Upload once; what it took, and how long a small batch and a look at the large one take then."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FRONTEND, folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as frontend:
            assert frontend.stdout is not None
            url = f"http://127.0.0.1:{int(frontend.stdout.readline())}"
            try:
                return _upload(url, frontend.pid, count)
            finally:
                frontend.terminate()


def _upload(url: str, pid: int, count: int) -> dict[str, float]:
    headers = {"Content-Type": "application/jsonl"}
    with httpx.Client(base_url=url, timeout=600) as http:
        http.post("/v1/batches", content=b"".join(lines(10)), headers=headers).raise_for_status()
        before_mb, watch = resident_mb(pid), Watch(pid)
        watch.start()
        began = time.monotonic()
        answer = http.post("/v1/batches", content=lines(count), headers=headers)
        took_s = time.monotonic() - began
        grown_mb = watch.end() - before_mb
        assert answer.status_code == 202, answer.text
        assert answer.json()["counts"]["total"] == count
        began = time.monotonic()
        http.get(answer.headers["Location"]).raise_for_status()
        look_s = time.monotonic() - began
    return {"batch_upload_s": took_s, "batch_upload_growth_mb": grown_mb, "batch_get_ms": 1_000 * look_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=100_000)
    found = measure(parser.parse_args().lines)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))
