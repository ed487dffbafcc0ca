"""A real `dreamserve up` as a subprocess, and what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY_S = 300.0
"""Ray and the frontend take 10 s on an idle machine."""
JOB_S = 600.0


def process_table() -> dict[int, tuple[int, str]]:
    """All processes that are alive: parent and command line by id."""
    table = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if stat[0] != "Z":
            table[int(folder.name)] = (int(stat[1]), command)
    return table


def descendants(pid: int) -> dict[int, str]:
    """The living processes that `pid` has started, and theirs: command line by id."""
    table, found = process_table(), {pid: ""}
    while new := {one: line for one, (parent, line) in table.items() if parent in found and one not in found}:
        found |= new
    del found[pid]
    return found


class Up:
    """One `dreamserve up`."""

    def __init__(self, data_dir: Path, *options: str, **environment: str) -> None:
        self.data_dir = data_dir
        command = [sys.executable, "-m", "workers.main", "up", "--port", "0", "--data-dir", str(data_dir)]
        command += options
        quick = {"DREAMSERVE_TORCH_THREADS": "1", "DREAMSERVE_CHECKPOINT_INTERVAL_S": "1"}
        # On a busy machine Ray's niceness would starve the workers.
        environ = os.environ | {"RAY_worker_niceness": "0"} | quick | environment
        self.errors = data_dir.with_suffix(".stderr")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        alarm = threading.Timer(READY_S, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        if not line:
            self.process.stdout.close()
            raise AssertionError(f"`up` ended with {self.process.wait()}: {self.errors.read_text()}")
        self.url: str = json.loads(line)["url"]
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def submit(self, prompt: str = "a red cube", **fields: Any) -> str:
        """Queue a job; its id."""
        answer = self.http.post(
            "/generate", json={"prompt": prompt, "outputs": {"thumbnail": False}} | fields
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's document."""
        document: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return document

    def wait_for(self, job_id: str, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look at a job until something holds of it."""
        deadline = time.monotonic() + JOB_S
        while not what(job := self.job(job_id)):
            assert time.monotonic() < deadline, f"after {JOB_S} s: {job}"
            assert job["status"] != "failed", job["error"]
            threading.Event().wait(0.2)
        return job

    def succeeded(self, job_id: str) -> dict[str, Any]:
        """Wait for a job's success."""
        return self.wait_for(job_id, lambda job: job["status"] == "succeeded")

    def actors(self, kind: str) -> list[int]:
        """The processes of this service's actors of a class."""
        # Their titles are ray::KIND, or ray::NAME:KIND.METHOD while they do something.
        lines = descendants(self.process.pid).items()
        return [pid for pid, line in lines if line.startswith("ray::") and kind in line]

    def actor(self, kind: str) -> int:
        """The process of the only such actor."""
        (pid,) = self.actors(kind)
        return pid

    def terminate(self) -> tuple[int, float]:
        """End it as an operator would; exit status, and seconds that it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60), time.monotonic() - started

    def close(self) -> None:
        """End it however it is."""
        self.http.close()
        if self.process.poll() is None:
            children = descendants(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                for pid in (self.process.pid, *children):
                    os.kill(pid, signal.SIGKILL)
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start services that end with the test."""
    started: list[Up] = []

    def start(name: str = "data", *options: str, **environment: str) -> Up:
        started.append(Up(tmp_path / name, *options, **environment))
        return started[-1]

    yield start
    for one in started:
        one.close()
