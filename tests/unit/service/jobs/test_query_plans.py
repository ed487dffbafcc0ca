"""Hot queries step through an index, in its order: they take as long with a million jobs as with a thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.jobs.states import JobState
from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH = "batch_01ARZ3NDEKTSV4RRFFQ69G5FAV"
CURSOR = "job_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
HOT: dict[str, Callable[[JobStore], object]] = {
    "submit": lambda store: store.submit(spec_of(), owner="me", idempotency_key="k", body_hash="b"),
    "get a queued job": lambda store: store.get(_newest(store), "me"),
    "claim": lambda store: store.claim("worker"),
    "sweep": JobStore.sweep,
    "count wanted slots": JobStore.wanted_slots,
    "list": lambda store: store.list_jobs(owner="me"),
    "list from a cursor": lambda store: store.list_jobs(owner="me", cursor=CURSOR),
    "list by status": lambda store: store.list_jobs(owner="me", status=JobState.RUNNING, cursor=CURSOR),
    "list by method": lambda store: store.list_jobs(owner="me", method="psd", cursor=CURSOR),
    "list by batch": lambda store: store.list_jobs(owner="me", batch_id=BATCH, cursor=CURSOR),
    "list by batch and status": lambda store: store.list_jobs(
        owner="me", batch_id=BATCH, status=JobState.QUEUED
    ),
}


def _newest(store: JobStore) -> str:
    return str(store.list_jobs(owner="me", limit=1)[0][0]["id"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobStore]:
    file: Path = tmp_path_factory.mktemp("plans") / "jobs.sqlite3"
    store = JobStore(f"sqlite:///{file}", max_queued=10)
    for owner in ("me", "you"):
        store.submit(spec_of(), owner=owner)
    yield store
    store.close()


@pytest.mark.parametrize("what", HOT)
def test_a_hot_query_reads_no_more_jobs_than_it_tells(store: JobStore, what: str) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if not many and statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            statements.append((statement, parameters))

    engine = store.database._engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        HOT[what](store)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert statements
    with store.database.reading() as tx:
        for statement, parameters in statements:
            plan = tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [str(row.detail) for row in plan]
            told = f"{statement}\n" + "\n".join(steps)
            assert not any(
                step.startswith(("SCAN jobs", "SCAN events", "SCAN attempts")) for step in steps
            ), told
            if what.startswith("list") and "FROM jobs" in statement and "LIMIT" in statement:
                assert not any("TEMP B-TREE" in step for step in steps), told
