"""A rolling upgrade from the last release, whose commit stands in CHANGELOG.md, with jobs under way."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import waiting
from tests.unit.service.jobs.postgres import find_programs, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = Path(__file__).parents[2]
MEMBER = Path(__file__).with_name("member.py")
NUM_JOBS, STEPS, CHECKPOINT_S = 6, 250, 0.5
wait_until = functools.partial(waiting.wait_until, timeout_s=300, every_s=0.1)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The tree of the last release."""
    told = re.search(r"^## \S+ — \S+, commit ([0-9a-f]+)$", (HEAD / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert told, "CHANGELOG.md names no release's commit"
    if subprocess.run(["git", "cat-file", "-e", told[1]], cwd=HEAD, capture_output=True).returncode:
        pytest.skip(f"this clone's history does not reach back to the last release, {told[1]}")
    folder = tmp_path / "release"
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", told[1], "service", "workers", "reward_models", "tests"],
        cwd=HEAD,
        check=True,
        capture_output=True,
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


class Members:
    """Processes of two releases on one database and one object store."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._environment = os.environ | {
            "DREAMSERVE_DATABASE_URL": database_url,
            "DREAMSERVE_OBJECTS_URL": f"file://{folder / 'objects'}",
            "DREAMSERVE_AUTH": "off",
            "DREAMSERVE_CHECKPOINT_INTERVAL_S": str(CHECKPOINT_S),
            "DREAMSERVE_REPORT_INTERVAL_S": "0.2",
            "DREAMSERVE_TORCH_THREADS": "1",
            "DREAMSERVE_SLOTS_PER_WORKER": "1",
        }
        self._log = (folder / "members.log").open("w")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[httpx.Client] = []

    def start(self, tree: Path, kind: str, argument: str) -> subprocess.Popen[bytes]:
        """Start a frontend or a worker of a tree."""
        process = subprocess.Popen(
            [sys.executable, MEMBER, kind, argument],
            env=self._environment | {"PYTHONPATH": str(tree)},
            stdout=self._log,
            stderr=self._log,
        )
        self._processes.append(process)
        return process

    def start_frontend(self, tree: Path) -> tuple[httpx.Client, subprocess.Popen[bytes]]:
        """Start a frontend, and wait until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = self.start(tree, "frontend", str(port))
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self._clients.append(http)
        wait_until(lambda: is_ready(http))
        return http, process

    def end(self) -> None:
        """End whoever is left."""
        for http in self._clients:
            http.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    programs = find_programs()
    assert programs is not None, "PostgreSQL's programs are not installed; `.ci/run` installs them"
    with running_server(programs) as url:
        members = Members(tmp_path, url.format(name="postgres"))
        yield members
        members.end()


@pytest.mark.cluster
@pytest.mark.slow
def test_jobs_outlive_a_rolling_upgrade_from_the_last_release(release: Path, members: Members) -> None:
    old, old_frontend = members.start_frontend(release)
    old_workers = [members.start(release, "worker", f"old-{number}") for number in range(2)]
    ids = [submit(old) for _ in range(NUM_JOBS)]
    wait_until(lambda: sum(is_under_way(job(old, job_id)) for job_id in ids) == 2)

    new, _ = members.start_frontend(HEAD)  # which brings the database to the new schema
    upgraded_at = datetime.now(UTC)
    old_frontend.send_signal(signal.SIGTERM)
    # The old workers go on: at least one job begins and ends on the new schema, in their hands.
    wait_until(lambda: any(succeeded_on(job(new, job_id), "old-", upgraded_at) for job_id in ids))
    for number, old_worker in enumerate(old_workers):
        wait_until(lambda: sum(is_under_way(job(new, job_id)) for job_id in ids) == 2)
        members.start(HEAD, "worker", f"new-{number}")
        old_worker.send_signal(signal.SIGTERM)
        assert old_worker.wait(timeout=30) == 0
    ids.append(submit(new))
    wait_until(lambda: all(job(new, job_id)["ended_at"] for job_id in ids))

    jobs = [job(new, job_id) for job_id in ids]
    assert [one["status"] for one in jobs] == ["succeeded"] * len(ids), [one["error"] for one in jobs]
    attempts = [attempt for one in jobs for attempt in one["attempts"]]
    assert {attempt["outcome"] for attempt in attempts} == {"preempted", "succeeded"}
    moved = [one for one in jobs if len(one["attempts"]) > 1]
    assert moved
    assert all(one["failures"] == 0 and one["attempts"][-1]["resumed_from_step"] > 0 for one in moved)
    seconds = {
        sample.labels["use"]: sample.value
        for family in text_string_to_metric_families(new.get("/metrics").text)
        for sample in family.samples
        if sample.name == "dreamserve_worker_seconds_total"
    }
    assert seconds["optimizing"] > 0
    assert seconds.get("redone", 0.0) <= CHECKPOINT_S * len(moved)


def submit(http: httpx.Client) -> str:
    body = {
        "prompt": "red",
        "seed": 7,
        "method": "sds",
        "steps": STEPS,
        "outputs": {"thumbnail": False},
        "mesh": {"target_faces": 500, "texture_px": 64},
    }
    answer = http.post("/generate", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(http: httpx.Client, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
    return document


def is_under_way(document: dict[str, Any]) -> bool:
    return document["status"] == "running" and bool((document["progress"] or {}).get("step"))


def succeeded_on(document: dict[str, Any], worker: str, since: datetime) -> bool:
    (*_, last) = document["attempts"] or [None]
    return (
        document["status"] == "succeeded"
        and last["worker"].startswith(worker)
        and datetime.fromisoformat(last["started_at"]) > since
    )


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False
