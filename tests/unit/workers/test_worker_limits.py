"""What ends a job before its last step and is not a fault: a cancel that keeps what there is, a budget used up."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.workers.small_workers import Service
from workers import publish
from workers.attempt import Attempt
from workers.ending import Ending

if TYPE_CHECKING:
    from pathlib import Path

LONG = 20_000
"""Steps of a job that does not end by itself within a test."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def cancel_running(service: Service, job_id: str, *, keep_partial: bool) -> None:
    """Cancel a job after its first steps and wait for its end."""

    def canceled() -> bool:
        job = service.job(job_id)
        if job["status"] == "running" and job["progress"]["step"] >= 5:
            service.store.cancel(job_id, keep_partial=keep_partial)
        return bool(job["status"] == "canceled")

    service.run_until(canceled, service.worker())


def test_a_cancel_may_keep_the_scene_as_it_is(service: Service) -> None:
    job_id = service.submit(steps=LONG)
    cancel_running(service, job_id, keep_partial=True)
    job = service.job(job_id)
    assert job["result"]["partial"]
    assert [one["kind"] for one in job["result"]["artifacts"]] == ["glb", "report"]
    found = service.store.artifact(job["result"]["artifacts"][0]["id"])
    assert found is not None
    described, key = found
    assert hashlib.sha256(service.objects.get(key)).hexdigest() == described["sha256"]
    assert job["result"]["candidates"][0]["scores"]
    assert 5 <= job["progress"]["step"] < LONG
    assert [one["outcome"] for one in job["attempts"]] == ["canceled"]
    assert job["score_series"][-1]["step"] == job["progress"]["step"]


def test_a_plain_cancel_keeps_nothing(service: Service) -> None:
    job_id = service.submit(steps=LONG)
    cancel_running(service, job_id, keep_partial=False)
    assert service.job(job_id)["result"] is None
    assert service.store.artifacts(job_id) == []


def test_a_cancel_is_obeyed_between_the_exports_of_two_candidates(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []
    export_mesh = publish.export_mesh

    def export_and_cancel(*arguments: Any) -> Any:
        exported.append(arguments)
        service.store.cancel(job_id)
        time.sleep(10 * service.settings.report_interval_s)  # the worker hears of it
        return export_mesh(*arguments)

    monkeypatch.setattr(publish, "export_mesh", export_and_cancel)
    job_id = service.submit(candidates={"count": 3}, steps=5)
    (job,) = service.finish(job_id)
    assert (job["status"], job["result"], len(exported)) == ("canceled", None, 1)


def test_an_attempt_whose_lease_only_seemed_lost_is_given_back(service: Service) -> None:
    job_id = service.submit(steps=LONG)
    lease = service.store.claim("worker")
    assert lease is not None
    ending = Ending(
        service.store,
        service.objects,
        lambda _key: None,
        lambda _attempt, _stage: None,
        storage_budget_s=1,
        draining=threading.Event(),
    )
    ending.stop(Attempt(lease, time.monotonic()))
    job = service.job(job_id)
    assert (job["status"], job["failures"], job["attempts"][0]["outcome"]) == ("queued", 0, "preempted")


def test_a_job_that_uses_up_its_budget_of_worker_seconds_ends(service: Service) -> None:
    (job,) = service.finish(service.submit(steps=LONG, limits={"max_gpu_s": 0.5}))
    assert job["status"] == "failed"
    assert job["error"]["code"] == "gpu-budget-exceeded"
    assert "limits.max_gpu_s allows 0.5 s" in job["error"]["detail"]
    assert not job["error"]["retryable"]
    assert 0.5 <= job["attempts"][0]["worker_s"] < 5
