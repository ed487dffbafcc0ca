"""`dreamserve up`, as a user runs it, and what happens when parts of it die."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import Up, descendants, process_table
from workers.weights import REWARD_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 40
LEASE_S, LOAD_S = 10.0, 60.0
"""A short lease, and how long a worker may load its networks; it takes seconds on an idle machine."""


def step_of(job: dict) -> int:
    return job["progress"]["step"] if job["progress"] else 0


def test_a_prompt_becomes_a_mesh_over_http_and_the_end_leaves_nothing(up: Callable[..., Up]) -> None:
    service = up()
    job = service.succeeded(service.submit(steps=5, method="dreamdpo"))
    (glb,) = [one for one in job["result"]["artifacts"] if one["kind"] == "glb"]
    content = service.http.get(f"/v1/artifacts/{glb['id']}/content", follow_redirects=True).content
    assert hashlib.sha256(content).hexdigest() == glb["sha256"]

    started = descendants(service.process.pid)
    rewards = service.actors("RewardActor")
    assert len(rewards) == len(REWARD_NAMES)
    assert {service.actor("WorkerActor"), *rewards} <= started.keys()
    status, seconds = service.terminate()
    assert status == 0, service.errors.read_text()
    assert seconds < 30
    assert not started.keys() & process_table().keys()
    assert not list(Path("/tmp").glob(f"dreamserve-{service.process.pid}-*"))
    assert service.process.stdout.read() == "", "stdout has the one line with the URL"


def test_a_killed_worker_is_replaced_and_its_job_ends_with_the_same_bits(up: Callable[..., Up]) -> None:
    service = up()
    spec = {"steps": STEPS, "seed": 3, "method": "sds"}
    job_id = service.submit(**spec)
    service.wait_for(job_id, lambda job: step_of(job) >= STEPS // 2)
    os.kill(service.actor("WorkerActor"), signal.SIGKILL)
    killed_at = datetime.now(UTC)
    job = service.succeeded(job_id)
    lost, last = job["attempts"]
    assert (datetime.fromisoformat(lost["ended_at"]) - killed_at).total_seconds() < 60, "noticed too late"
    assert (lost["outcome"], last["outcome"]) == ("worker_lost", "succeeded")
    assert last["resumed_from_step"] > 0
    assert last["worker"] != lost["worker"]

    calm = service.succeeded(service.submit(**spec))
    assert len(calm["attempts"]) == 1
    field = "field_sha256"
    assert job["result"]["provenance"][field] == calm["result"]["provenance"][field]


def test_a_service_that_ends_saves_its_jobs_and_the_next_one_goes_on(up: Callable[..., Up]) -> None:
    first = up()
    job_id = first.submit(steps=STEPS, method="sds")
    first.wait_for(job_id, lambda job: step_of(job) >= 5)
    worker = first.actor("WorkerActor")
    os.kill(scaler := first.actor("PoolScaler"), signal.SIGKILL)
    while first.actors("PoolScaler") in ([], [scaler]):
        threading.Event().wait(0.2)
    assert first.actors("WorkerActor") == [worker], "the next scaler takes the worker over"
    status, _ = first.terminate()
    assert status == 0, first.errors.read_text()
    second = up()
    job = second.succeeded(job_id)
    assert [one["outcome"] for one in job["attempts"]] == ["preempted", "succeeded"]
    assert job["attempts"][1]["resumed_from_step"] >= 5
    assert job["failures"] == 0


def test_a_service_that_is_killed_takes_its_workers_with_it_and_the_next_one_brings_its_jobs_back(
    up: Callable[..., Up],
) -> None:
    lease = {"DREAMSERVE_LEASE_S": str(LEASE_S)}
    service = up(**lease)
    job_id = service.submit(steps=STEPS, method="sds")
    service.wait_for(job_id, lambda job: step_of(job) >= STEPS // 2)
    started = descendants(service.process.pid)
    working = {pid for pid, line in started.items() if line.startswith("ray::") and "Agent" not in line}
    assert len(working) >= 5
    service.process.kill()
    service.process.wait()
    deadline = time.monotonic() + 30
    while working & process_table().keys():
        assert time.monotonic() < deadline, "Ray's processes outlive their service"
        threading.Event().wait(0.2)

    following = up(**lease)
    ready_at = datetime.now(UTC)
    job = following.succeeded(job_id)
    lost, last = job["attempts"]
    # The second, once nobody has looked at leases for half a minute: then it was not this worker's fault.
    assert lost["outcome"] in ("worker_lost", "preempted")
    assert last["outcome"] == "succeeded"
    assert last["resumed_from_step"] > 0
    waited_s = (datetime.fromisoformat(last["started_at"]) - ready_at).total_seconds()
    assert waited_s < LEASE_S + LOAD_S, "the start, and what is left of the lease"
