"""The object store is away: a worker keeps its leases and tries again, beside its other jobs, within a budget."""

from __future__ import annotations

import collections
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.errors import StoreUnavailable
from service.settings import Settings
from tests.unit.workers.small_workers import Service, Watched
from workers.patience import pauses

if TYPE_CHECKING:
    from pathlib import Path

    from service.jobs.states import Lease
    from workers.worker import Worker

LONG = 20_000
"""Steps of a job that does not end by itself within a test."""
FAILURES = 4
"""Tries that fail before the store is back: at 0, 0.5, 1.5 and 3.5 s."""


class Objects(Watched):
    """An object store that does not answer calls of one kind while it is `away`."""

    def __init__(self, real: Any, away: str) -> None:
        super().__init__(real, before=self._fail)
        self.away = away
        self.failures = 0

    def _fail(self, name: str) -> None:
        if name == self.away:
            self.failures += 1
            raise StoreUnavailable("objects", "bucket meshes: unplugged")


def step_of(service: Service, job_id: str) -> int:
    return (service.job(job_id)["progress"] or {"step": 0})["step"]


def with_checkpoint(service: Service, steps: int) -> str:
    """A queued job that has a checkpoint."""
    job_id = service.submit(steps=steps)
    service.run_until(lambda: step_of(service, job_id) >= 10, service.worker("first"))
    assert service.job(job_id)["status"] == "queued"
    return job_id


class Renewals(Watched):
    """A job store that counts how often each lease is renewed."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.counts: collections.Counter[str] = collections.Counter()

    def report(self, lease: Lease, **told: Any) -> Any:
        answer = self._real.report(lease, **told)
        self.counts[lease.job_id] += 1
        return answer


def run_through_an_outage(service: Service, job_id: str, away: str) -> int:
    """Run a job beside one that takes steps meanwhile, until it has succeeded; how often its lease was renewed."""
    other = service.submit(steps=LONG)
    store, objects = Renewals(service.store), Objects(service.objects, away=away)
    renewals = 0

    def succeeded() -> bool:
        nonlocal renewals
        if objects.failures >= FAILURES and step_of(service, other) >= 20 and objects.away:
            objects.away, renewals = "", store.counts[job_id]
        return service.job(job_id)["status"] == "succeeded"

    service.run_until(succeeded, service.worker(store=store, objects=objects))
    assert not objects.away, "it was needed"
    return renewals


def test_the_pauses_between_tries_double_and_end_with_the_budget() -> None:
    now = 0.0
    waits = pauses(Settings().storage_budget_s, clock=lambda: now)
    taken = []
    for pause_s in waits:
        taken.append(pause_s)
        now += pause_s
    assert taken[:7] == [0.5, 1, 2, 4, 8, 10, 10]
    assert sum(taken) == 600, "ten minutes"


def test_a_job_whose_checkpoint_cannot_be_read_waits_for_it_and_hinders_no_other(tmp_path: Path) -> None:
    service = Service(tmp_path)
    job_id = with_checkpoint(service, steps=30)
    assert run_through_an_outage(service, job_id, away="get") >= 10
    preempted, last = service.job(job_id)["attempts"]
    assert (preempted["outcome"], last["outcome"]) == ("preempted", "succeeded")
    assert last["resumed_from_step"] >= 10


@pytest.mark.parametrize("effort", ["full", "preview"])
def test_a_result_that_cannot_be_uploaded_waits_and_hinders_no_other(tmp_path: Path, effort: str) -> None:
    service = Service(tmp_path, checkpoint_interval_s=1000)
    job_id = service.submit(effort=effort, steps=None if effort == "preview" else 5)
    assert run_through_an_outage(service, job_id, away="put") >= 10
    assert len(service.job(job_id)["attempts"]) == 1


@pytest.mark.parametrize("call", ["get", "put"])
def test_an_outage_beyond_the_budget_fails_the_attempt_and_the_next_one_may_succeed(
    tmp_path: Path, call: str
) -> None:
    service = Service(tmp_path, storage_budget_s=1.0, checkpoint_interval_s=0.1 if call == "get" else 1000)
    job_id = with_checkpoint(service, steps=30) if call == "get" else service.submit(steps=5)
    objects = Objects(service.objects, away=call)

    def is_queued_again() -> bool:
        if service.job(job_id)["failures"] == 1:
            objects.away = ""
        return service.job(job_id)["status"] == "succeeded"

    service.run_until(is_queued_again, service.worker(objects=objects))
    *_, failed, last = service.job(job_id)["attempts"]
    assert (failed["outcome"], last["outcome"]) == ("error", "succeeded")
    began, ended = (datetime.fromisoformat(failed[name]) for name in ("started_at", "ended_at"))
    assert (ended - began).total_seconds() >= 1.0
    (lost,) = [
        one["data"]
        for one in service.store.events(job_id)
        if one["type"] == "job.attempt_lost" and one["data"]["code"] == "storage-error"
    ]
    assert "the object store did not answer: bucket meshes: unplugged" in lost["detail"]
    assert 2 <= objects.failures <= 3, "at once, after half a second, at the end of the budget"


def waiting(service: Service) -> tuple[str, Objects, Worker]:
    """A job whose checkpoint cannot be read, the store, and a worker for it."""
    job_id = with_checkpoint(service, steps=30)
    objects = Objects(service.objects, away="get")
    return job_id, objects, service.worker("second", objects=objects)


def test_a_job_that_waits_for_its_checkpoint_is_canceled_soon(tmp_path: Path) -> None:
    service = Service(tmp_path)
    job_id, objects, worker = waiting(service)

    def canceled() -> bool:
        if objects.failures:
            service.store.cancel(job_id)
        return service.job(job_id)["status"] == "canceled"

    service.run_until(canceled, worker)
    assert objects.failures <= 3


def test_a_drained_worker_gives_a_job_back_that_waits_for_its_checkpoint(tmp_path: Path) -> None:
    service = Service(tmp_path)
    job_id, objects, worker = waiting(service)
    service.run_until(lambda: objects.failures > 0, worker)
    job = service.job(job_id)
    assert (job["status"], job["failures"]) == ("queued", 0)
    (job,) = service.finish(job_id)
    assert [one["outcome"] for one in job["attempts"]] == ["preempted", "preempted", "succeeded"]
