"""A hundred callers, one Idempotency-Key, and a frontend that is killed while it answers them: one job."""

from __future__ import annotations

import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from service.jobs.store import JobStore
from tests import waiting

if TYPE_CHECKING:
    from pathlib import Path

CALLERS = 100
KILLED_AFTER = 5
"""Answers: the other callers' requests are being served, or wait for it."""
PATIENCE_S = 60.0
wait_until = functools.partial(waiting.wait_until, timeout_s=PATIENCE_S, every_s=0.02)
BODY = json.dumps({"prompt": "a red cube", "seed": 7})
HEADERS = {"Content-Type": "application/json", "Idempotency-Key": "one-for-all"}


class Frontend:
    """The real application in a process of its own; started again, it has the same address and database."""

    def __init__(self, folder: Path, database_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._environment = os.environ | {
            "DREAMSERVE_DATA_DIR": str(folder),
            "DREAMSERVE_DATABASE_URL": database_url,
            "DREAMSERVE_OBJECTS_URL": (folder / "objects").as_uri(),
            "DREAMSERVE_AUTH": "off",
        }
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        command = [sys.executable, "-m", "tests.chaos.subject", "frontend", str(self.port)]
        self.process = subprocess.Popen(command, env=self._environment)
        wait_until(lambda: self._answers("GET", "/readyz") == 200)

    def submit(self) -> str:
        """POST the job; its id, or what was answered instead. Raises OSError, HTTPException where to try again."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v1/jobs", BODY, HEADERS)
            answer = connection.getresponse()
            document = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status == http.client.SERVICE_UNAVAILABLE:
            raise http.client.HTTPException(document["detail"])
        return str(document["id"] if answer.status == http.client.ACCEPTED else document)

    def kill(self) -> None:
        self.process.kill()

    def _answers(self, method: str, path: str) -> int | None:
        assert self.process.poll() is None, f"the frontend ended with {self.process.returncode}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()


@pytest.mark.slow
def test_a_hundred_callers_with_one_key_get_one_job_though_the_frontend_is_killed(
    tmp_path: Path, database_url: str
) -> None:
    frontend = Frontend(tmp_path, database_url)
    begin, restarted, lock = threading.Barrier(CALLERS), threading.Event(), threading.Lock()
    answers: list[str] = []
    refused: list[Exception] = []

    def call() -> None:
        begin.wait()
        while True:
            try:
                job_id = frontend.submit()
            except (OSError, http.client.HTTPException) as error:
                refused.append(error)
                assert restarted.wait(PATIENCE_S)
                continue
            with lock:
                answers.append(job_id)
                if len(answers) == KILLED_AFTER:
                    frontend.kill()
            return

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(call) for _ in range(CALLERS)]
        try:
            frontend.process.wait(PATIENCE_S)
            wait_until(lambda: len(answers) + len(refused) == CALLERS)
            assert KILLED_AFTER <= len(answers) < CALLERS, "the kill did not land among the answers"
            frontend.start()
            restarted.set()
            for caller in callers:
                caller.result(PATIENCE_S)
        finally:
            frontend.kill()
            frontend.process.wait()
            restarted.set()
    assert len(answers) == CALLERS
    store = JobStore(database_url)
    jobs, _ = store.list_jobs(limit=CALLERS)
    submitted = sum(one.value for one in store.snapshot().tallies if one.name == "jobs_submitted")
    store.close()
    assert [job["id"] for job in jobs] == sorted(set(answers))
    assert (len(jobs), submitted) == (1, 1)
