"""Idle workers: woken by a job on PostgreSQL, looking again soon on SQLite, and patient when the server is away."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import claimed, spec_of

if TYPE_CHECKING:
    from tests.unit.service.jobs.job_samples import FakeClock

LONG_S = 20.0


def waited_s(store: JobStore, timeout_s: float) -> float:
    began = time.monotonic()
    store.wait_for_work(timeout_s)
    return time.monotonic() - began


def test_a_waiting_worker_learns_of_a_job_at_once(database_url: str) -> None:
    frontend, worker = JobStore(database_url), JobStore(database_url)
    frontend.ping()
    worker.wait_for_work(0.01)
    submit = threading.Timer(0.1, frontend.submit, [spec_of()])
    submit.start()
    assert waited_s(worker, LONG_S) < LONG_S / 2
    submit.join()
    claimed(worker)
    for store in (frontend, worker):
        store.close()


def test_a_job_that_came_between_two_looks_is_not_missed(database_url: str) -> None:
    store = JobStore(database_url)
    store.ping()
    store.wait_for_work(0.01)
    store.submit(spec_of())
    assert waited_s(store, LONG_S) < LONG_S / 2
    store.close()


def test_a_job_that_was_given_back_is_announced(store: JobStore, clock: FakeClock) -> None:
    store.submit(spec_of())
    lease = claimed(store)
    for _ in range(2):  # hears of the submission first
        store.wait_for_work(0.01)
    store.release(lease)
    assert waited_s(store, LONG_S) < LONG_S / 2


def test_a_listener_whose_connection_broke_waits_and_listens_again(postgres_url: str) -> None:
    store = JobStore(postgres_url.format(name="postgres"))
    store.ping()
    store.wait_for_work(0.01)
    admin = sa.create_engine(postgres_url.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        assert connection.execute(sa.text(others)).rowcount == 1
    admin.dispose()
    assert waited_s(store, 0.3) >= 0.29
    store.wait_for_work(0.01)
    store.submit(spec_of())
    assert waited_s(store, LONG_S) < LONG_S / 2
    store.close()
