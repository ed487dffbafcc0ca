"""The service from above, on both databases: the queue, the usage, and what one more job would take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from service.jobs.erasing import Eraser
from service.jobs.local_store import LocalStore
from service.jobs.overview import Overview
from service.jobs.states import FailureCode, JobState, Stage
from tests.unit.service.jobs.job_samples import FakeClock, claimed, result_of, spec_of

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    from service.jobs.store import JobStore

DAY_S = 86_400


def today(clock: FakeClock) -> date:
    return datetime.fromtimestamp(clock.now, UTC).date()


def finished(store: JobStore, clock: FakeClock, took_s: float, owner: str = "local", **fields: object) -> str:
    store.submit(spec_of(**fields), owner=owner)
    lease = claimed(store)
    clock.advance(took_s)
    store.report(lease, stage=Stage.EXPORT, step=100, steps_total=100, worker_s=took_s)
    store.finish(lease, result_of(), [])
    return lease.job_id


def test_an_estimate_is_the_middle_half_of_recent_jobs_of_the_same_kind(
    store: JobStore, clock: FakeClock
) -> None:
    store.heartbeat("worker-1", slots=1, ttl_s=10 * DAY_S)
    spec = spec_of(method="sds", steps=100)
    overview = Overview(store.database)
    assert overview.estimate(spec, "local")["run_s"] is None
    for took_s in (10, 20, 30, 40, 50):
        finished(store, clock, took_s, method="sds", steps=100)
    finished(store, clock, 1_000, method="psd", steps=100)
    found = overview.estimate(spec, "local")
    assert (found["run_s"], found["based_on"], found["reason"]) == ([20.0, 40.0], 5, None)
    assert found["queue"]["position"] == 1
    twice = overview.estimate(spec_of(method="sds", steps=200), "local")
    assert twice["run_s"] == [40.0, 80.0]
    assert store.list_jobs(status=JobState.QUEUED)[0] == []


def test_the_queue_counts_all_owners_and_tells_mine(store: JobStore, clock: FakeClock) -> None:
    for owner, priority in (("ann", "high"), ("ann", "low"), ("bob", "normal")):
        store.submit(spec_of(priority=priority), owner=owner)
    clock.advance(7)
    store.heartbeat("worker-1", slots=2, busy_slots=0)
    queue = Overview(store.database).queue("ann")
    assert queue["depth"] == {"high": 1, "normal": 1, "low": 1, "total": 3}
    assert queue["yours"] == {"queued": 2, "running": 0}
    assert queue["oldest_wait_s"] == 7.0
    assert queue["capacity"]["slots"] == 2


def test_usage_is_by_owner_and_day_and_survives_an_erasure(
    store: JobStore, clock: FakeClock, tmp_path: Path
) -> None:
    clock.advance(DAY_S - clock.now % DAY_S + 60)  # a minute past midnight
    first_day = today(clock)
    erased = finished(store, clock, 10, owner="ann")
    finished(store, clock, 5, owner="bob")
    clock.advance(DAY_S)
    store.submit(spec_of(), owner="ann")
    lease = claimed(store)
    store.fail(lease, FailureCode.EMPTY_MESH, "nothing there")
    Eraser(store.database, LocalStore(tmp_path)).forget(erased)
    overview, second_day = Overview(store.database), first_day + timedelta(days=1)

    none = {"canceled": 0, "failed": 0, "succeeded": 0}
    ann = [
        {"day": str(second_day), "owner": "ann", "worker_s": 0.0, "jobs": none | {"failed": 1}},
        {"day": str(first_day), "owner": "ann", "worker_s": 10.0, "jobs": none | {"succeeded": 1}},
    ]
    bob = {"day": str(first_day), "owner": "bob", "worker_s": 5.0, "jobs": none | {"succeeded": 1}}
    assert overview.usage("ann", first_day, second_day) == ann
    assert overview.usage(None, first_day, second_day) == [*ann, bob]
    assert overview.usage("ann", second_day, second_day) == ann[:1]
